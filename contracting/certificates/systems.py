r"""What a certificate is about: explicit matrices and an interval of slopes, nothing else.

Every flow z' = f(z) of an equilibrium network has Jacobians that are affine in the slopes of its activation, so the
flow is certified for all activations, all inputs (constant or not) and all states at once:

* firing rate −I + DW, and with it forward–backward, whose map has the weight I − α(I − W);
* Hopfield −I + WD, and with it Peaceman–Rachford, whose map is the reflection 2(I + αA)⁻¹ − I after one of the prox;
* the inclusion z' ∈ −Az + q − ∂f(z), whose "slopes" range over [0, ∞);
* a linear flow s' = As + b, whose Jacobian is A;
* any of them at another constant speed a, with a times the Jacobians: Douglas–Rachford is Peaceman–Rachford at ½.

The Hopfield flow of W contracts at rate c in a norm iff the firing-rate flow of Wᵀ does in the dual norm, because
−I + WD is the transpose of −I + DWᵀ. Finders therefore see firing-rate systems only; the checker never uses this.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self, TypeGuard, TypeVar, overload

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.balance import rescale
from contracting.display import Displayed
from contracting.errors import InputError, PreconditionError
from contracting.flows.base import BoundFlow
from contracting.flows.driven import DrivenFlow
from contracting.flows.fields import LinearFlow, VectorField
from contracting.flows.network import BoundFiringRate, BoundHopfield
from contracting.flows.speed import ScaledFlow
from contracting.flows.splitting import BoundForwardBackward, BoundPeacemanRachford
from contracting.lure.flow import LureFlow
from contracting.lure.reading import lure_of
from contracting.lure.system import LureSystem
from contracting.metrics import WeightedL2
from contracting.types import UNIT_SLOPES, Slopes, Step

_BLOCK = 2048  # So many vertices are made at a time, which bounds the memory that 2ⁿ matrices take.
_NARROWEST = 1e-3  # A narrower interval of slopes is widened to this width: a superset, so still certified.


def as_matrix(name: str, value: Tensor) -> Tensor:
    """A finite square matrix as float64 on the CPU, cut from its graph.

    Raises:
        InputError: if it is not one.
    """
    matrix = checks.finite(name, checks.floating_tensor(name, value)).detach().to("cpu", torch.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise InputError(f"{name} must have shape (n, n) with n ≥ 1, got {tuple(matrix.shape)}")
    return matrix


def vertices(slopes: Slopes | tuple[Tensor, Tensor], size: int) -> Iterator[Tensor]:
    """All 2ⁿ vertices of the box of slopes, highest first, in blocks: (block, n)."""
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in slopes)
    corners = itertools.product((True, False), repeat=size)
    while block := list(itertools.islice(corners, _BLOCK)):
        yield torch.where(torch.tensor(block, dtype=torch.bool).reshape(len(block), size), high, low)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class WeightSystem(Displayed):
    """A flow given by one weight: what the kinds of flows below have in common.

    Attributes:
        W: weight, (n, n), float64 on the CPU after construction.
        slopes: interval [a, β] that holds every slope of the activation.
        hint: a diagonal metric λ > 0 that may be a good start for searches, (n,); trusted by nobody.
        speed: a > 0; the field is a times that of the matrices, and so is every rate.
        label: the flow in words, whatever its speed.
    """

    W: Tensor
    slopes: Slopes = UNIT_SLOPES
    hint: Tensor | None = None
    speed: float = 1.0
    label: str = ""

    def __post_init__(self) -> None:
        checks.number("speed", self.speed, low=0, low_open=True, high=math.inf, high_open=True)
        object.__setattr__(self, "W", as_matrix("W", self.W))
        low, high = Slopes.checked(self.slopes)
        low = max(-1.0, min(low, high - _NARROWEST))
        object.__setattr__(self, "slopes", Slopes(low, max(high, low + _NARROWEST)))
        if self.hint is not None:
            hint = checks.shape("hint", checks.positive_tensor("hint", self.hint), (self.size,))
            object.__setattr__(self, "hint", hint.detach().to("cpu", torch.float64))

    @property
    def size(self) -> int:
        """Dimension n of the state."""
        return self.W.shape[0]

    @property
    def name(self) -> str:
        """The flow in words, with its speed."""
        return self.label if self.speed == 1 else f"{self.label}, at speed {self.speed:.4g}"

    def with_slopes(self, slopes: Slopes) -> Self:
        """The same system under another assumption on the slopes."""
        return replace(self, slopes=slopes)

    def at_speed(self, speed: float) -> Self:
        """The same system at another speed."""
        return replace(self, speed=speed)

    def rescaled(self, scale: Tensor) -> Self:
        """The same system in the coordinates x' = scale∘x, scale > 0, (n,): exact for powers of two."""
        hint = None if self.hint is None else self.hint / scale / scale
        return replace(self, W=rescale(self.W, scale), hint=hint)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FiringRateSystem(WeightSystem):
    """Jacobians −I + DW with diagonal D, entries in ``slopes``, times the speed."""

    label: str = "firing rate"

    def jacobians(self, slopes: Tensor) -> Tensor:
        """Jacobians at diagonal slopes: (..., n) -> (..., n, n)."""
        return self.speed * (slopes[..., :, None] * self.W - torch.eye(self.size, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HopfieldSystem(WeightSystem):
    """Jacobians −I + WD with diagonal D, entries in ``slopes``, times the speed."""

    label: str = "Hopfield"

    def jacobians(self, slopes: Tensor) -> Tensor:
        """Jacobians at diagonal slopes: (..., n) -> (..., n, n)."""
        return self.speed * (self.W * slopes[..., None, :] - torch.eye(self.size, dtype=torch.float64))

    def transposed(self) -> FiringRateSystem:
        """The firing-rate system that contracts in the dual norm at the same rate."""
        hint = None if self.hint is None else 1 / self.hint
        return FiringRateSystem(
            W=self.W.mT.contiguous(), slopes=self.slopes, hint=hint, speed=self.speed, label=self.label
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class InclusionSystem(WeightSystem):
    """z' ∈ −(I − W)z + q − ∂f(z): the limit of the forward–backward flow as α → 0, with time measured in α."""

    label: str = "inclusion"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LinearSystem(WeightSystem):
    """s' = As + b, with A in the place of ``W``: contracts in a norm at exactly −μ(A). Slopes mean nothing here."""

    label: str = "linear"


SlopeSystem = FiringRateSystem | HopfieldSystem  # those with one slope for each entry of the state
System = WeightSystem | LureSystem  # whatever a certificate can be about


def vertex_jacobians(system: System) -> Tensor:
    """The Jacobians at all vertices of the slopes, whose hull holds all others, or A alone: (count, n, n).

    Raises:
        PreconditionError: for the inclusion, whose slopes are unbounded.
    """
    if isinstance(system, InclusionSystem):
        raise PreconditionError("vertices need bounded slopes; for the inclusion use InclusionMetric()")
    if isinstance(system, LureSystem):
        return torch.cat([system.jacobians(block) for block in vertices((system.low, system.high), system.neurons)])
    if isinstance(system, SlopeSystem):
        return torch.cat([system.jacobians(block) for block in vertices(system.slopes, system.size)])
    return system.speed * system.W[None]


def with_slopes(system: System, slopes: Slopes | tuple[Tensor, Tensor]) -> System:
    """The same system under another assumption on the slopes.

    Raises:
        InputError: if they are no interval, or one for each neuron and the system is no Lur'e system.
    """
    return system.with_slopes(slopes) if isinstance(system, LureSystem) else system.with_slopes(Slopes.checked(slopes))


F = TypeVar("F", bound=VectorField)


def _is(flow: Any, kind: type[F]) -> TypeGuard[F]:
    """Whether a flow is of a kind and moves as it does: a subclass with a field of its own is another flow."""
    return isinstance(flow, kind) and all(
        getattr(type(flow), name, None) is getattr(kind, name, None) for name in ("__call__", "map")
    )


@overload
def system_of(flow: BoundFlow) -> WeightSystem: ...


@overload
def system_of(flow: VectorField | System) -> System: ...


def system_of(flow: VectorField | System) -> System:
    """The explicit matrices of a flow; a system is returned as it is.

    A ``NeuralFlow``, and any other field of one's own, is read as a Lur'e system; see ``lure_of``.

    Raises:
        InputError: if no certificate is known for such a flow, or a field cannot be read, and what of it.
    """
    if isinstance(flow, System):
        return flow
    if _is(flow, ScaledFlow):
        inner = system_of(flow.inner)
        return inner.at_speed(inner.speed * flow.speed)
    if isinstance(flow, LureFlow):
        return flow.system()
    if _is(flow, LinearFlow):
        return LinearSystem(W=flow.matrix)
    if _is(flow, DrivenFlow):  # a rate holds under every input
        return system_of(flow.flow)
    if not isinstance(flow, VectorField):
        raise InputError(
            f"flow must be a flow such as layer.flow(FiringRate) or NeuralFlow(module), or explicit matrices such as "
            f"FiringRateSystem(W=W) or LureSystem(A=A, B=B, C=C, D=D), got {type(flow).__name__}"
        )
    if not isinstance(flow, BoundFlow):
        return _read(flow)
    problem = flow.problem
    # in double precision before it becomes a matrix, which for a convolution takes a transform
    exact = problem.linear.with_tensors([t.detach().to("cpu", torch.float64) for t in problem.linear.tensors()])
    W = as_matrix("W", exact.to_dense())
    slopes, metric = problem.activation.slopes, problem.metric
    hint = metric.weights.detach() if isinstance(metric, WeightedL2) else None
    if _is(flow, BoundHopfield):
        return HopfieldSystem(W=W, slopes=slopes, hint=hint)
    if _is(flow, BoundFiringRate):
        return FiringRateSystem(W=W, slopes=slopes, hint=hint)
    if _is(flow, BoundForwardBackward):
        return forward_backward_system(W, step=flow.step, slopes=slopes, hint=hint)
    if _is(flow, BoundPeacemanRachford):
        return peaceman_rachford_system(W, step=flow.step, slopes=slopes, hint=hint)
    raise InputError(
        f"no certificate is known for {type(flow).__name__}; known are the firing-rate, Hopfield, forward–backward, "
        "Peaceman–Rachford and linear flows, at any constant speed"
    )


def _read(flow: VectorField) -> LureSystem:
    """A field of one's own as a Lur'e system, in double precision."""
    try:
        return lure_of(flow, dtype=torch.float64).system()
    except InputError as error:
        raise InputError(
            f"the flow {type(flow).__name__} has no certificate for all states, because it is no Lur'e system that can "
            f"be read ({error}); certify_region proves a rate on a region for any field, sampled_rate, worst_point and "
            "fit_metric look at samples"
        ) from error


def forward_backward_system(
    W: Tensor, *, step: Step, slopes: Slopes = UNIT_SLOPES, hint: Tensor | None = None
) -> FiringRateSystem:
    """The forward–backward flow as a firing-rate system: weight I − αA, slopes those of prox_{αf}.

    Args:
        W: (n, n).
        step: α > 0, a number or one per neuron.
        slopes: interval of σ.
        hint: Λ, a diagonal metric in which I − W may be monotone, to start searches from.

    Raises:
        InputError: if W is not a finite square matrix, the step is not positive or does not fit W, or the slopes are no
            interval.
    """
    scaled, slopes, hint, words = _splitting(W, step, slopes, hint)
    identity = torch.eye(len(scaled), dtype=torch.float64)
    return FiringRateSystem(W=identity - scaled, slopes=slopes, hint=hint, label=f"forward–backward, {words}")


def peaceman_rachford_system(
    W: Tensor, *, step: Step, slopes: Slopes = UNIT_SLOPES, hint: Tensor | None = None
) -> HopfieldSystem:
    """The Peaceman–Rachford flow as a Hopfield system: weight 2(I + αA)⁻¹ − I, slopes those of 2prox_{αf} − 1.

    The certificate is about the resolvent as computed in float64. Arguments as for ``forward_backward_system``.

    Raises:
        InputError: as ``forward_backward_system``.
        PreconditionError: if I + αA is singular.
    """
    scaled, (low, high), hint, words = _splitting(W, step, slopes, hint)
    identity = torch.eye(len(scaled), dtype=torch.float64)
    resolvent, info = torch.linalg.inv_ex(identity + scaled)
    if int(info):
        raise PreconditionError(f"I + step·(I − W) is singular for a step {words}: take another step")
    slopes = Slopes(2 * low - 1, 2 * high - 1)
    return HopfieldSystem(W=2 * resolvent - identity, slopes=slopes, hint=hint, label=f"Peaceman–Rachford, {words}")


def _splitting(W: Tensor, step: Step, slopes: Slopes, hint: Tensor | None) -> tuple[Tensor, Slopes, Tensor | None, str]:
    """αA, slopes of prox_{αf}, the metric in which the splitting lives, and the step in words.

    The metric is ΛD⁻¹ for a step D per neuron. The slopes are s/(α + (1 − α)s), increasing in s; their hull over the
    neurons where α has one per neuron.
    """
    W = as_matrix("W", W)
    if isinstance(step, Tensor):
        step = checks.positive_tensor("step", checks.floating_tensor("step", step))
        checks.shape("step", step, (len(W),) if step.ndim else ())
        steps = step.detach().to("cpu", torch.float64)
    else:
        number = checks.number("step", step, low=0, low_open=True, high=math.inf, high_open=True)
        steps = torch.tensor(number, dtype=torch.float64)
    if steps.ndim:
        words = f"α = {float(steps.min()):.3g}…{float(steps.max()):.3g} per neuron"
        if hint is not None:
            hint = checks.shape("hint", hint, (len(W),)).detach().to("cpu", torch.float64) / steps
    else:
        words = f"α = {float(steps):.4g}"
    slopes, values = Slopes.checked(slopes), steps.reshape(-1).tolist()
    low = min(slopes[0] / (a + (1 - a) * slopes[0]) for a in values)
    high = max(slopes[1] / (a + (1 - a) * slopes[1]) for a in values)
    # outward, so that rounding cannot exclude a slope
    slopes = Slopes(low * (1 - 1e-15) if low > 0 else 0.0, min(1.0, high * (1 + 1e-15)))
    return steps[..., None] * (torch.eye(len(W), dtype=torch.float64) - W), slopes, hint, words
