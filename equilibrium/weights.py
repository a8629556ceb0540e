"""Explicit weights of an equilibrium network: what the parameterisations produce and everything else reads."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.activations.base import Activation
from contracting.certificates.definite import UNIT, definite_margin, sizes
from contracting.display import Displayed
from contracting.errors import InputError
from contracting.maps.base import LinearMap
from contracting.maps.dense import Dense
from contracting.metrics import FullP, WeightedL2
from contracting.modules.settings import WithSettings
from contracting.precision import full_precision
from contracting.problem import EquilibriumProblem


class NetworkWeights(Displayed, ABC):
    """z = σ(Wz + Ux + b), y = W_o z + Dx + b_o, whatever U and W_o are: matrices, convolutions, pooling.

    One of your own is a frozen dataclass whose fields include the attributes.

    Attributes:
        state: W as a map on Rⁿ.
        metric: Λ such that 2Λ − ΛW − WᵀΛ ≻ 0 by construction, or None where nothing is certified.
        lipschitz: γ, a certified ℓ2 Lipschitz constant of x ↦ y, as a 0-dim tensor (it may be learnt), or None.
        contraction_rate: c, a certified contraction rate of the firing-rate and Hopfield flows, or None.
    """

    state: LinearMap
    metric: WeightedL2 | None
    lipschitz: Tensor | None
    contraction_rate: float | None

    @property
    @abstractmethod
    def in_features(self) -> int:
        """Number of inputs."""

    @property
    @abstractmethod
    def out_features(self) -> int:
        """Number of outputs."""

    @property
    def hidden_features(self) -> int:
        """Dimension n of the state."""
        return self.state.size

    @property
    @abstractmethod
    def output_matrix(self) -> Tensor:
        """W_o as a matrix on states, with all that comes before the readout: (out, n)."""

    @property
    def firing_rate_metric(self) -> FullP | None:
        """P as a matrix, in which the firing-rate flow contracts at ``contraction_rate``; meant for small n."""
        return self.dense().firing_rate_metric

    @property
    def hopfield_metric(self) -> FullP | None:
        """A matrix in which the Hopfield flow contracts at the same rate; meant for small n."""
        return self.dense().hopfield_metric

    @abstractmethod
    def input_term(self, x: Tensor) -> Tensor:
        """q = Ux + b: (batch, in) -> (batch, n)."""

    @abstractmethod
    def readout(self, z: Tensor, x: Tensor) -> Tensor:
        """y = W_o z + Dx + b_o: (..., n), (..., in) -> (..., out)."""

    @abstractmethod
    def dense(self) -> Weights:
        """The same network with every map written as a matrix; meant for small n."""

    def recalled_from(self, known: NetworkWeights | None) -> Self:
        """These weights, with W and the metric of ``known``, and what is remembered of them, where they are equal."""
        if known is None or self.metric is None or known.metric is None:
            return self
        mine, theirs = self.state, known.state
        pairs = [(self.metric.weights, known.metric.weights), *zip(mine.tensors(), theirs.tensors(), strict=False)]
        if type(mine) is not type(theirs) or not all(identical(a, b) for a, b in pairs):
            return self
        return cast(Self, replace(cast(Any, self), state=theirs, metric=known.metric))

    def problem(self, x: Tensor, activation: Activation) -> EquilibriumProblem:
        """The equilibrium problem of inputs x, (batch, in)."""
        with full_precision(x):
            q = self.input_term(x)
        known: EquilibriumProblem | None = self.__dict__.get("_checked")
        if known is None or known.activation is not activation:
            problem = EquilibriumProblem(linear=self.state, q=q, activation=activation, metric=self.metric)
            self.__dict__["_checked"] = problem.of_inputs(q[:0].detach())  # which keeps no inputs alive
            return problem
        return known.of_inputs(q)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Weights(NetworkWeights):
    r"""Input and output weights that are matrices, and what the parameterisation certifies by construction.

    Attributes, beside those of ``NetworkWeights``:
        input: U, shape (n, in).
        bias: b, shape (n,).
        output: W_o, shape (out, n).
        output_bias: b_o, shape (out,).
        feedthrough: D, shape (out, in), or None.
        contraction_matrix: the P in which the firing-rate flow contracts, or None.
    """

    state: LinearMap
    input: Tensor
    bias: Tensor
    output: Tensor
    output_bias: Tensor
    feedthrough: Tensor | None = None
    metric: WeightedL2 | None = None
    lipschitz: Tensor | None = None
    contraction_rate: float | None = None
    contraction_matrix: Tensor | None = None

    @property
    def in_features(self) -> int:
        return self.input.shape[1]

    @property
    def out_features(self) -> int:
        return self.output.shape[0]

    @property
    def firing_rate_metric(self) -> FullP | None:
        return None if self.contraction_matrix is None else FullP(self.contraction_matrix.detach())

    @property
    def hopfield_metric(self) -> FullP | None:
        """A metric in which the Hopfield flow contracts at the same rate: its linear part is WJ in place of JW.

        In coordinates with Λ = I, where P + W = 2√(1−c) SV with VᵀV = P and ‖S‖ < 1, let A = WV⁻¹ and Y = AAᵀ + H. Then
        4(1−c)Y − (W + Y)(W + Y)ᵀ ⪰ 4(1−c)H − H(I − SSᵀ)⁻¹H, by completing the square, which is ½·4(1−c)H for the middle
        H = 2(1−c)(I − SSᵀ). So Y = ½(WP⁻¹Wᵀ + 4(1−c)I − P − W − Wᵀ), and Y⁻¹ is the metric, in float64: of large
        weights near the edge its condition is beyond float32. None if nothing is left.
        """
        if self.contraction_matrix is None or self.metric is None or self.contraction_rate is None:
            return None
        root, share = self.metric.weights.detach().double().sqrt(), 4 * (1 - self.contraction_rate)
        W = self.state.to_dense().detach().double() * root[:, None] / root
        P = self.contraction_matrix.detach().double() / root[:, None] / root
        factor, info = torch.linalg.cholesky_ex(P)
        if int(info):
            return None
        Z = torch.linalg.solve_triangular(factor, W.mT, upper=False)
        Y = (Z.mT @ Z + share * torch.eye(len(P), dtype=P.dtype, device=P.device) - P - W - W.mT) / 2
        factor, info = torch.linalg.cholesky_ex(Y)
        if int(info):
            return None
        inverse = torch.cholesky_inverse(factor)
        inverse = root[:, None] * inverse * root
        return FullP((inverse + inverse.mT) / 2)

    @property
    def output_matrix(self) -> Tensor:
        return self.output

    @torch.no_grad()
    def proved(self) -> Weights:
        """These weights with those claims only that factorisations in float64 prove of the numbers as they are.

        With all of (W, U, W_o, D, Λ) exact, γ holds where γ‖Δx‖² − ‖Δy‖²/γ − 2⟨Δz, Λ(Δz − WΔz − UΔx)⟩ is a definite
        form, and c where [[4(1 − c)(G − cΛ), S̃ᵀ], [S̃, Λ]] ≻ 0, G and S̃ the symmetric and the skew part of Λ(I − W).
        """
        if self.metric is None:
            return replace(self, lipschitz=None, contraction_rate=None, contraction_matrix=None)
        lam, W, U, C = (
            t.detach().to("cpu", torch.float64)
            for t in (self.metric.weights, self.state.to_dense(), self.input, self.output)
        )
        D = torch.zeros(len(C), U.shape[1]).double() if self.feedthrough is None else self.feedthrough.cpu().double()
        bracket = torch.diag(lam) - lam[:, None] * W
        room = 2 * UNIT * sizes(bracket)  # the rounding of a product and a difference
        G, S = (bracket + bracket.mT) / 2, (bracket - bracket.mT) / 2
        proved = self
        if self.lipschitz is not None:
            gamma, n = float(self.lipschitz), len(W)
            y = torch.cat([C, D], 1)
            across, identity = -lam[:, None] * U, torch.eye(U.shape[1]).double()
            form = torch.cat([torch.cat([2 * G, across], 1), torch.cat([across.mT, gamma * identity], 1)])
            error = (len(C) + 8) * UNIT * (sizes(form) + sizes(y).mT @ sizes(y) / gamma)
            error[:n, :n] += 2 * (room + room.mT)
            if not definite_margin(form - y.mT @ y / gamma, error) > 0:
                proved = replace(proved, lipschitz=None)
        if self.contraction_rate is not None:
            share = 4 * (1 - self.contraction_rate)
            corner = share * (G - self.contraction_rate * torch.diag(lam))
            form = torch.cat([torch.cat([corner, S.mT], 1), torch.cat([S, torch.diag(lam)], 1)])
            error = 8 * UNIT * sizes(form) + 8 * (room + room.mT).repeat(2, 2)
            if not definite_margin(form, error) > 0:
                proved = replace(proved, contraction_rate=None, contraction_matrix=None)
        return proved

    def input_term(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.input, self.bias)

    def dense(self) -> Weights:
        return self

    def readout(self, z: Tensor, x: Tensor) -> Tensor:
        y = torch.nn.functional.linear(z, self.output, self.output_bias)
        return y if self.feedthrough is None else y + torch.nn.functional.linear(x, self.feedthrough)


def survives_rounding(size: Tensor, skew: Tensor, lam: Tensor, epsilon: float, rate: float | None) -> bool:
    r"""Whether the rounding of W is proved to leave the certificates of a bracket Λ(I − W) = G + S̃ with margin ε.

    Let E be the error of the bracket; ‖E‖ ≤ u(size + 16(‖S̃‖_F + max Λ)). The inequality of γ keeps 2(ε − ‖E‖), and
    (S̃ + E)ᵀΨ(S̃ + E) ⪯ 4(1 − c)(G + E − cΛ) holds if 2‖Ψ^½S̃‖‖Ψ^½E‖ + ‖Ψ^½E‖² + 4(1 − c)‖E‖ ≤ 4(1 − c)ε.

    Args:
        size: number of roundings in an entry of G, times a bound on the norm of G with all its terms made positive.
        skew: S̃, (n, n), or a matrix with no smaller Frobenius norm.
        lam: Λ, any shape.
        epsilon: ε.
        rate: c, or None.
    """
    if checks.on_trust(size):
        return True
    low, high = lam.aminmax()
    values = torch.stack([size, torch.linalg.vector_norm(skew), low, high]).double().tolist()
    total, skewness, least, largest = values
    error = 0.51 * torch.finfo(size.dtype).eps * (total + 16 * (skewness + largest))
    if rate is None:
        return error <= epsilon
    room, spread = 4 * (1 - rate), error / math.sqrt(least)
    return 2 * skewness / math.sqrt(least) * spread + spread**2 + room * error <= room * epsilon


def identical(mine: Tensor, theirs: Tensor) -> bool:
    """Whether theirs can stand for mine; one from ``torch.inference_mode`` could not be saved for a backward pass."""
    if theirs.is_inference() and not mine.is_inference():
        return False
    return mine.dtype == theirs.dtype and mine.device == theirs.device and torch.equal(mine, theirs)


@dataclass(frozen=True)
class KnownWeights:
    """Weights, with a copy of all that they were made from.

    Attributes:
        weights: what ``explicit()`` gave, in no graph.
        values: the parameters and buffers, copied: a change through ``.data`` leaves no trace but in the values.
        settings: what else the weights depend on.
    """

    weights: NetworkWeights
    values: tuple[_Copy, ...]
    settings: dict[str, Any]

    @classmethod
    def of(cls, parameterization: WithSettings, weights: NetworkWeights) -> KnownWeights | None:
        """What is known now; None where nobody can look at the values."""
        sources = _sources(parameterization)
        # what torch.func.jacrev does to parameters it does to their aliases first
        if checks.on_trust(*sources, *(tensor.detach() for tensor in sources)):
            return None
        with torch.inference_mode(False), torch.no_grad():
            return cls(weights, tuple(map(_Copy, sources)), parameterization.settings)

    def still_of(self, parameterization: WithSettings) -> bool:
        """Whether the weights are those of the present parameters, and a graph that is recorded needs no others."""
        sources, recording = _sources(parameterization), torch.is_grad_enabled()
        # what torch.inference_mode made could not be part of a graph later
        if len(sources) != len(self.values) or (self._of_inference and not torch.is_inference_mode_enabled()):
            return False
        if checks.on_trust(*sources) or (recording and any(tensor.requires_grad for tensor in sources)):
            return False
        for now, then in zip(sources, self.values, strict=True):
            if not then.is_of(now):
                return False
        return self.settings == parameterization.settings

    @cached_property
    def _of_inference(self) -> bool:
        return any(tensor.is_inference() for tensor in self.weights.state.tensors())


class _Copy:
    """What a tensor held. On the host its bytes are compared, which takes a tenth of the time of ``torch.equal``."""

    def __init__(self, tensor: Tensor):
        values = tensor.detach()
        self.source, self.place = tensor, tensor.data_ptr()
        self.dtype, self.shape, self.device = tensor.dtype, tensor.shape, tensor.device
        self.view: memoryview | None = None  # of the memory of the tensor itself
        self.contents: bytes | Tensor
        if values.device.type == "cpu" and values.dtype in _IN_NUMPY:
            self.contents = values.contiguous().numpy().tobytes()
            self.view = values.numpy().data if values.is_contiguous() else None
        else:
            self.contents = values.clone()

    def is_of(self, tensor: Tensor) -> bool:
        """Whether a tensor is of the same kind and holds the same."""
        contents, view = self.contents, self.view
        if tensor.dtype != self.dtype or tensor.shape != self.shape or tensor.device != self.device:
            return False
        if isinstance(contents, Tensor):
            return torch.equal(tensor, contents)
        if view is None or tensor is not self.source or tensor.data_ptr() != self.place or not tensor.is_contiguous():
            values = tensor.detach()
            return not checks.on_trust(values) and contents == values.contiguous().numpy().tobytes()
        return contents.startswith(view)  # which has as many bytes: a comparison that copies none of them


_IN_NUMPY = frozenset({torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.bool})


def _sources(module: nn.Module) -> list[Tensor]:
    """All parameters and buffers, without the names and sets of ``parameters()``, which take longer than a product."""
    found = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    for child in module._modules.values():
        if child is not None:
            found += _sources(child)
    return found


def explicit_weights(
    W: Tensor,
    U: Tensor,
    output: Tensor,
    *,
    bias: Tensor | None = None,
    output_bias: Tensor | None = None,
    feedthrough: Tensor | None = None,
    metric: Tensor | None = None,
) -> Weights:
    """Weights given as plain matrices, of which nothing is certified except a metric that is verified on use.

    Args:
        W: (n, n).
        U: (n, in).
        output: W_o, (out, n).
        bias: b, (n,); zero if None.
        output_bias: b_o, (out,); zero if None.
        feedthrough: D, (out, in).
        metric: diagonal Λ > 0, (n,), in which I − W is claimed to be strongly monotone.

    Raises:
        InputError: on wrong shapes, dtypes, devices or non-finite entries.
    """
    linear = Dense(W)
    checks.finite("W", W)
    n = linear.size
    for name, value in (("U", U), ("output", output)):
        if checks.floating_tensor(name, value).ndim != 2:
            raise InputError(f"{name} must be a matrix, got shape {tuple(value.shape)}")
    inputs, outputs = U.shape[1], len(output)
    given: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "U": (U, (n, inputs)),
        "output": (output, (outputs, n)),
        "bias": (bias, (n,)),
        "output_bias": (output_bias, (outputs,)),
        "feedthrough": (feedthrough, (outputs, inputs)),
    }
    for name, (tensor, shape) in given.items():
        if tensor is not None:
            checks.finite(name, checks.shape(name, checks.same_kind(name, tensor, "W", W), shape))
    return Weights(
        state=linear,
        input=U,
        bias=W.new_zeros(n) if bias is None else bias,
        output=output,
        output_bias=W.new_zeros(outputs) if output_bias is None else output_bias,
        feedthrough=feedthrough,
        metric=None if metric is None else WeightedL2(checks.same_kind("metric", metric, "W", W)),
    )
