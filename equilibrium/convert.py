r"""Feed-forward networks, and those with equilibrium layers among others, as one equilibrium network: the same map.

A perceptron is z = (h₁, …, h_K) with W strictly block lower triangular; a residual network x ← x + G_kσ(H_kx + b_k) is
W_kj = H_kG_j for j < k, U_k = H_k, W_o = [G₁ … G_K] and a feedthrough D = I. Both are Lur'e systems without a state and
read as those are. Λ_k = θ^{2k}I has Condition 1 for a small enough θ, which is found here and verified. W is nilpotent,
so that K fixed-point steps give z exactly. The other way round, an equilibrium layer inside a field is read by what
stands here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.activations.base import Activation
from contracting.activations.catalogue import ReLU
from contracting.activations.names import as_activation
from contracting.errors import InputError, PreconditionError
from contracting.loop.records import Stop
from contracting.lure.operations import register_reader
from contracting.lure.reading import read
from contracting.lure.tracing import Traced, neurons
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
    """A network of layers that follow each other as one equilibrium layer: the same map, exactly.

    Args:
        network: linear layers (convolutions and average pooling of an nn.Unflatten too), activations of bounded slope
            (each layer its own), equilibrium layers with a metric, nested nn.Sequential, modules with skip connections
            and whatever else ``contracting.lure_of`` reads. Its weights are copied.

    Returns:
        The layer; its metric is Λ_k = θ^{2k}, times the metric of the k-th layer where that is an equilibrium layer.
        Without one it is solved by as many fixed-point steps as there are hidden layers.

    Raises:
        InputError: on modules that cannot be read, by their name; on sizes that do not fit; or without a hidden layer.
        PreconditionError: if Condition 1 does not hold for an equilibrium layer in its metric.
    """
    if not isinstance(network, nn.Sequential) or len(network) == 0:
        raise InputError(f"network must be an nn.Sequential of Linear and activations, got {type(network).__name__}")
    first = next((m for m in network.modules() if isinstance(m, nn.Linear | nn.Unflatten | EquilibriumLayer)), None)
    example = next(itertools.chain(network.parameters(), network.buffers()), None)
    if first is None or example is None:
        raise InputError("network must have at least one hidden layer: a Linear followed by an activation")
    size = math.prod(first.unflattened_size) if isinstance(first, nn.Unflatten) else first.in_features
    try:
        return _read_network(network, example.new_zeros(1, size))
    except RuntimeError as error:
        raise InputError(f"network cannot be run on rows of {size} entries: {error}") from error


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
    first, width = blocks[0][0].weight, blocks[0][0].in_features
    for k, (H, G) in enumerate(blocks):
        checks.shape(f"the weight of H in block {k}", H.weight, (H.out_features, width))
        checks.shape(f"the weight of G in block {k}", G.weight, (width, H.out_features))
        checks.same_kind(f"H in block {k}", H.weight, "H in block 0", first)
        checks.same_kind(f"G in block {k}", G.weight, "H in block 0", first)
    sigma = ReLU() if activation is None else as_activation(activation)

    def network(x: Tensor) -> Tensor:
        for H, G in blocks:
            x = x + G(neurons(H(x), sigma))
        return x

    return _read_network(network, first.new_zeros(1, width))


def _read_network(network: Callable[[Tensor], Tensor], x: Tensor) -> EquilibriumLayer:
    """What a function of rows like x computes, as a layer."""
    with torch.no_grad():
        found = read(network, x)
    if not found.layers:
        raise InputError("network must have at least one hidden layer: a Linear followed by an activation")
    weights = explicit_weights(
        found.D.to(x),
        found.C.to(x),
        found.B.to(x),
        bias=found.q.to(x),
        output_bias=found.e.to(x),
        feedthrough=found.A.to(x) if bool(found.A.any()) else None,
        metric=_graded_metric(found.D.to(x), found.layers, found.metric),
    )
    if found.metric is not None:
        return from_weights(weights, activation=found.activation)
    # step 1 makes forward–backward the plain fixed-point iteration, which ends after as many steps as there are layers
    depth = len(found.layers)
    stop = Stop(max_steps=max(10, 2 * depth + 2), check_every=depth + 1)
    return from_weights(weights, activation=found.activation, solver=ForwardBackward(step=1.0), stop=stop)


def _read_layer(layer: EquilibriumLayer, x: Traced, *, z0: Tensor | None = None) -> Tensor:
    """An equilibrium layer inside a field: neurons that see each other by its W."""
    weights, rows = layer.weights(), x.reshape(1, -1)
    v = weights.input_term(rows)
    return weights.readout(neurons(v, layer.activation, weights.state.to_dense(), weights.metric), rows)


register_reader(EquilibriumLayer.forward, _read_layer)


def _graded_metric(W: Tensor, sizes: Sequence[int], own: WeightedL2 | None) -> Tensor:
    """Λ_k = θ^{2k}Λ⁰_k of geometric mean one, Λ⁰ the own metrics of the layers, with θ halved until Condition 1 holds.

    Without implicit layers ‖Λ^½WΛ^−½‖ < 1, which implies it. With them the least margin of a layer is halved at most.
    """
    values, base = W.detach().to("cpu", torch.float64), torch.ones(len(W), dtype=torch.float64)
    if own is not None:
        base = own.weights.detach().to("cpu", torch.float64)
    white = WeightedL2(base).whiten(values)
    level = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(torch.float64)
    starts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    blocks = [white[starts[k] : starts[k + 1], starts[k - 1] : starts[k]] for k in range(1, len(sizes))]
    largest = max((float(torch.linalg.matrix_norm(block, 2)) for block in blocks), default=0.0)
    theta, limit = min(1.0, 0.95 / max(largest, 1e-12)), 1 - 1e-6
    if own is not None:
        within = [white[a:b, a:b] for a, b in itertools.pairwise(starts)]
        limit = (1 + max(float(WeightedL2.identity(len(M), dtype=M.dtype).matrix_measure(M)) for M in within)) / 2
        if not limit < 1:
            raise PreconditionError(
                "Condition 1 does not hold for an equilibrium layer of this network in its metric: find_metric(W) may "
                "know a better one, if there is one"
            )
    for _ in range(_MOST_HALVINGS):
        graded = base.log() + 2 * level * torch.tensor(theta, dtype=torch.float64).log()
        rounded = (graded - graded.mean()).exp().to(W.dtype)
        if bool(torch.isfinite(rounded).all()) and bool((rounded > 0).all()):
            metric = WeightedL2(rounded.double())
            if float(metric.operator_norm(values) if own is None else metric.matrix_measure(values)) < limit:
                return rounded.to(W.device)
        theta /= 1.25
    raise PreconditionError(
        f"no Λ_k = θ^{{2k}} is representable in {W.dtype} for this depth and these norms: convert it to float64"
    )
