r"""Feed-forward networks as equilibrium networks: exactly the same map, hence the same certificates.

A perceptron is z = (h₁, …, h_K) with W strictly block lower triangular; a residual network x ← x + G_kσ(H_kx + b_k) is
W_kj = H_kG_j for j < k, U_k = H_k, W_o = [G₁ … G_K] and a feedthrough D = I. In both Λ_k = θ^{2k}I has Condition 1
for a small enough θ, which is found here and verified. W is nilpotent, so that K fixed-point steps give z exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.activations.base import Activation
from contracting.activations.names import as_activation
from contracting.errors import InputError, PreconditionError
from contracting.loop.records import Stop
from contracting.metrics import WeightedL2
from contracting.solvers.splitting import ForwardBackward
from equilibrium.layers import EquilibriumLayer, LayerOptions
from equilibrium.parameterizations import DenseParameterization
from equilibrium.weights import Weights, explicit_weights

_MOST_HALVINGS = 60


class Explicit(DenseParameterization):
    """Given weights, kept as they are: parameters without gradient, so that a layer can hold and save them.

    Args:
        weights: explicit weights; a claimed metric is kept, other certificates are not.
    """

    lam: Tensor | None

    def __init__(self, weights: Weights):
        super().__init__(
            weights.in_features,
            weights.hidden_features,
            weights.out_features,
            feedthrough=weights.feedthrough is not None,
            device=weights.input.device,
            dtype=weights.input.dtype,
        )
        self.W = self.new_parameter(weights.hidden_features, weights.hidden_features)
        metric = weights.metric
        self.register_buffer("lam", None if metric is None else metric.weights.detach().clone())
        values = {
            "W": weights.state.to_dense(),
            "U": weights.input,
            "bias": weights.bias,
            "output": weights.output,
            "output_bias": weights.output_bias,
            "D": weights.feedthrough,
        }
        with torch.no_grad():
            for name, value in values.items():
                if value is not None:
                    getattr(self, name).copy_(value)
        self.requires_grad_(False)

    @property
    def settings(self) -> dict[str, Any]:
        """Whether a metric and a feedthrough were given."""
        return {**super().settings, "metric": self.lam is not None}

    def reset_parameters(self) -> None:
        """Refused: these weights were given.

        Raises:
            PreconditionError: always.
        """
        raise PreconditionError("explicit weights were given and cannot be drawn anew; build another layer")

    def explicit(self) -> Weights:
        """The weights with their metric."""
        # copies of what is analysed: a layer compares values to know whether the weights are those of before
        return self.with_state(
            self.W.clone(), metric=None if self.lam is None else WeightedL2(self.lam.clone())
        )


def from_weights(weights: Weights, **options: Unpack[LayerOptions]) -> EquilibriumLayer:
    """A layer over given explicit weights, which stay fixed; gradients flow to its inputs only.

    Args:
        weights: W, U, W_o, D, biases and, if known, a metric.
        options: as for ``EquilibriumLayer``. A solver needs a metric unless it is SemismoothNewton.
    """
    return EquilibriumLayer(Explicit(weights), **options)


def from_sequential(network: nn.Sequential) -> EquilibriumLayer:
    """A multilayer perceptron as an equilibrium layer: the same map, exactly.

    Args:
        network: Linear, σ, Linear, σ, …, Linear or ending in σ, with one admissible σ throughout. Its weights are
            copied.

    Returns:
        The layer, solved by as many fixed-point steps as there are hidden layers; its metric is Λ_k = θ^{2k}.

    Raises:
        InputError: on other modules, sizes that do not fit, two different σ, or no hidden layer.
    """
    linears, activation, ends_in_activation = _perceptron(network)
    hidden = linears if ends_in_activation else linears[:-1]
    if not hidden:
        raise InputError("network must have at least one hidden layer: a Linear followed by an activation")
    first = hidden[0].weight
    sizes = [linear.out_features for linear in hidden]
    starts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    n = starts[-1]
    W, U = first.new_zeros(n, n), first.new_zeros(n, first.shape[1])
    U[: sizes[0]] = first.detach()
    for k in range(1, len(hidden)):
        W[starts[k] : starts[k + 1], starts[k - 1] : starts[k]] = hidden[k].weight.detach()
    if ends_in_activation:
        output, output_bias = first.new_zeros(sizes[-1], n), first.new_zeros(sizes[-1])
        output[:, starts[-2] :] = torch.eye(sizes[-1], dtype=first.dtype, device=first.device)
    else:
        output, output_bias = first.new_zeros(linears[-1].out_features, n), _bias(linears[-1])
        output[:, starts[-2] :] = linears[-1].weight.detach()
    weights = explicit_weights(
        W,
        U,
        output,
        bias=torch.cat([_bias(linear) for linear in hidden]),
        output_bias=output_bias,
        metric=_graded_metric(W, sizes),
    )
    return _feed_forward(weights, activation, len(hidden))


def from_residual(
    blocks: Sequence[tuple[nn.Linear, nn.Linear]], *, activation: Activation | nn.Module | None = None
) -> EquilibriumLayer:
    """A residual network x ← x + G_kσ(H_kx + b_k) + g_k, k = 1 … K, as an equilibrium layer with feedthrough D = I.

    Args:
        blocks: the pairs (H_k, G_k), nn.Linear(d, m_k) and nn.Linear(m_k, d), with or without bias; copied.
        activation: σ; ReLU if None.

    Returns:
        The layer, exactly the same map; its metric is Λ_k = θ^{2k}.

    Raises:
        InputError: if there is no block or the sizes do not fit.
    """
    if not blocks:
        raise InputError("blocks must hold at least one pair (H, G) of nn.Linear")
    for k, block in enumerate(blocks):
        if len(block) != 2 or not all(isinstance(linear, nn.Linear) for linear in block):
            raise InputError(f"block {k} must be a pair (H, G) of nn.Linear, got {block!r}")
    first = blocks[0][0].weight
    width = first.shape[1]
    for k, (H, G) in enumerate(blocks):
        checks.shape(f"the weight of H in block {k}", H.weight, (H.out_features, width))
        checks.shape(f"the weight of G in block {k}", G.weight, (width, H.out_features))
        checks.same_kind(f"H in block {k}", H.weight, "H in block 0", first)
        checks.same_kind(f"G in block {k}", G.weight, "H in block 0", first)
    sizes = [H.out_features for H, _ in blocks]
    U = torch.cat([H.weight.detach() for H, _ in blocks])
    output = torch.cat([G.weight.detach() for _, G in blocks], 1)
    step = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(first.device)
    W = (U @ output) * (step[:, None] > step[None, :])
    shifts, shift = [], first.new_zeros(width)
    for H, G in blocks:
        shifts.append(_bias(H) + H.weight.detach() @ shift)
        shift = shift + _bias(G)
    weights = explicit_weights(
        W,
        U,
        output,
        bias=torch.cat(shifts),
        output_bias=shift,
        feedthrough=torch.eye(width, dtype=first.dtype, device=first.device),
        metric=_graded_metric(W, sizes),
    )
    return _feed_forward(weights, None if activation is None else as_activation(activation), len(blocks))


def _perceptron(network: nn.Sequential) -> tuple[list[nn.Linear], Activation | None, bool]:
    """The linear layers, their activation, and whether it also comes last."""
    if not isinstance(network, nn.Sequential) or len(network) == 0:
        raise InputError(f"network must be an nn.Sequential of Linear and activations, got {type(network).__name__}")
    linears: list[nn.Linear] = []
    activation: Activation | None = None
    for k, module in enumerate(network):
        if k % 2 == 0:
            if not isinstance(module, nn.Linear):
                raise InputError(
                    f"module {k} must be an nn.Linear, got {type(module).__name__}: linear layers and activations must "
                    "alternate; flatten the input outside, and merge consecutive linear layers"
                )
            if linears and module.in_features != linears[-1].out_features:
                raise InputError(
                    f"module {k} takes {module.in_features} entries but the one before gives {linears[-1].out_features}"
                )
            linears.append(module)
            checks.same_kind(f"the weight of module {k}", module.weight, "that of module 0", linears[0].weight)
            continue
        here = as_activation(module)
        if activation is not None and here != activation:
            raise InputError(f"module {k} is {here}, earlier ones are {activation}: one activation must serve all")
        activation = here
    return linears, activation, len(network) % 2 == 0


def _feed_forward(weights: Weights, activation: Activation | None, depth: int) -> EquilibriumLayer:
    # step 1 makes forward–backward the plain fixed-point iteration, which ends after as many steps as there are layers
    stop = Stop(max_steps=max(10, 2 * depth + 2), check_every=depth + 1)
    return from_weights(weights, activation=activation, solver=ForwardBackward(step=1.0), stop=stop)


def _graded_metric(W: Tensor, sizes: Sequence[int]) -> Tensor:
    """Λ_k = θ^{2k}, scaled to geometric mean one, with θ halved until ‖Λ^½WΛ^−½‖ < 1, which implies Condition 1."""
    values = W.detach().to("cpu", torch.float64)
    level = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(torch.float64)
    starts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    blocks = [values[starts[k] : starts[k + 1], starts[k - 1] : starts[k]] for k in range(1, len(sizes))]
    largest = max((float(torch.linalg.matrix_norm(block, 2)) for block in blocks), default=0.0)
    theta = min(1.0, 0.95 / max(largest, 1e-12))
    for _ in range(_MOST_HALVINGS):
        lam = (2 * (level - level.mean()) * torch.tensor(theta, dtype=torch.float64).log()).exp()
        rounded = lam.to(W.dtype)
        usable = bool(torch.isfinite(rounded).all()) and bool((rounded > 0).all())
        if usable and float(WeightedL2(rounded.double()).operator_norm(values)) < 1 - 1e-6:
            return rounded.to(W.device)
        theta /= 1.25
    raise PreconditionError(
        f"no Λ_k = θ^{{2k}} is representable in {W.dtype} for this depth and these norms: convert it to float64"
    )


def _bias(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
