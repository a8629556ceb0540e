r"""Runge–Kutta–Chebyshev: an explicit integrator with many stages, for flows that are stiff but hardly rotate.

One step of s stages has a stability polynomial built from the Chebyshev polynomial T_s, so that the stable part of the
negative real axis grows like s² while the cost grows like s. The wider a field's spectrum is off the axis, the less is
gained: see ``RungeKuttaChebyshev`` for when not to use it.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.errors import InputError, PreconditionError
from contracting.flows.base import BoundFlow, SteadyFlow
from contracting.flows.fields import VectorField
from contracting.flows.network import BoundFiringRate
from contracting.flows.speed import ScaledFlow
from contracting.flows.splitting import BoundForwardBackward, BoundSplitting
from contracting.integrators.base import ExplicitIteration, FlowMethod
from contracting.loop.method import Iteration, State
from contracting.loop.records import Stop
from contracting.maps.operator import Bounds
from contracting.problem import Problem

# More stages than this are not tried: the longer a step, the less do its first stages know of the slopes at its end.
_MOST_STAGES = 200
# A step takes as many stages as reduce the error to this share: by then the slopes of σ may be others.
_REDUCTION = 0.1
# A disc that contains the spectrum is replaced by a polygon around it with so many sides, which is 0.1 % wider.
_SIDES = 64
# A factor per step closer to one may be a rounding error, and would take ages if it were none.
_USELESS = 1 - 1e-9


@dataclass(frozen=True, kw_only=True)
class Scheme:
    r"""The numbers of one step: Y₁ = Y₀ + first·F₀, Yⱼ = Yⱼ₋₁ + m(Yⱼ₋₁ − Yⱼ₋₂) + gain·Fⱼ₋₁; the last Y is the result.

    Attributes:
        step: the time that all stages take together, in time constants of the flow.
        first: the time that the first stage takes.
        stages: (m, gain) of the others, m the momentum and gain a time.
    """

    step: float
    first: float
    stages: tuple[tuple[float, float], ...]

    def advance(self, flow: VectorField, state: Tensor) -> Tensor:
        """The state after one step."""
        before, now = state, state + self.first * flow(0.0, state)
        for momentum, gain in self.stages:
            before, now = now, (1 + momentum) * now - momentum * before + gain * flow(0.0, now)
        return now


def first_order(center: float, focal: float, stages: int) -> Scheme:
    """Order 1 with stability polynomial T_s((d + λ)/φ)/T_s(d/φ), which is small between the foci −d ± φ.

    Args:
        center: d > 0.
        focal: φ² < d²; negative for foci off the real axis.
        stages: s ≥ 1.
    """
    rate = 1 / center
    rows = []
    early, time = 0.0, rate
    for _ in range(stages - 1):
        following = 1 / (2 * center - focal * rate)
        momentum = focal * following * rate
        rows.append((momentum, 2 * following))
        early, time = time, time + momentum * (time - early) + 2 * following
        rate = following
    return Scheme(step=time, first=1 / center, stages=tuple(rows))


def spectral_hull(flow: SteadyFlow) -> tuple[complex, ...] | None:
    r"""Corners of a convex region that contains −λ for every eigenvalue λ of f'(s), at every s; None where unknown.

    With slopes J, the Jacobian −I + JW̃ is similar to −I + J^½W̃J^½, whose numerical range lies between −1 and −𝒲(Ã):
    real parts from min(1, m) to max(1, λmax(H)), imaginary parts up to ‖K‖; for forward–backward with αÃ in place of Ã.
    Of other maps only the Lipschitz constant ρ is used: a disc of radius ρ around 1. The region is symmetric about the
    real axis; the corners above it are returned.
    """
    if isinstance(flow, ScaledFlow):
        inner = spectral_hull(flow.inner)
        return None if inner is None else tuple(flow.speed * corner for corner in inner)
    operator = flow.problem.operator if isinstance(flow, BoundFlow) else None
    if operator is None:
        return None
    if isinstance(flow, BoundFiringRate):
        return _rectangle(operator.bounds, 1.0)
    if isinstance(flow, BoundForwardBackward) and not isinstance(flow.step, Tensor):
        return _rectangle(operator.bounds, flow.step)
    factor = None
    if isinstance(flow, BoundSplitting):
        # a Lipschitz constant in any norm will do: with one step per neuron it is not that of the problem
        factor = flow.prediction.factor if flow.factor is None else flow.factor
    if factor is None or factor >= 1:
        return None
    radius = factor / math.cos(math.pi / _SIDES)
    return tuple(1 + cmath.rect(radius, 2 * math.pi * side / _SIDES) for side in range(_SIDES // 2 + 1))


def _rectangle(bounds: Bounds, step: float) -> tuple[complex, ...]:
    low, high = min(1.0, step * bounds.monotonicity), max(1.0, step * bounds.symmetric)
    return complex(low, step * bounds.skew), complex(high, step * bounds.skew)


def growth(hull: tuple[complex, ...], center: float, focal: float, stages: int) -> float:
    """A bound on |T_s((d − x)/φ)/T_s(d/φ)| over the hull: its value on the smallest such ellipse around it."""
    outer = max(abs(_far_root(center - corner, focal)) for corner in hull)
    origin = abs(_far_root(center, focal))
    sign = 1 if focal >= 0 or stages % 2 == 0 else -1
    above = (outer / origin) ** stages + (abs(focal) / (outer * origin)) ** stages if outer > 0 else 0.0
    return above / (1 + sign * (abs(focal) / origin**2) ** stages)


def _far_root(x: complex, focal: float) -> complex:
    """x ± √(x² − φ²), the one of larger modulus: it grows with the ellipse of foci ±φ through x."""
    root = cmath.sqrt(x * x - focal)
    return max(x + root, x - root, key=abs)


def best_ellipse(hull: tuple[complex, ...]) -> tuple[float, float]:
    """Centre d and squared focal length φ² for which the error per stage is smallest (Manteuffel's parameters)."""
    corners = torch.tensor(hull, dtype=torch.complex128)
    low, high = float(corners.real.min()), float(corners.real.max())
    tall = float(corners.imag.abs().max())
    scale = torch.cat([torch.linspace(low, high, 17), torch.linspace(high, high + 2 * tall + 1e-9, 9)]).double()
    center = scale[scale > 0][:, None]
    share = torch.linspace(0, 1, 101, dtype=torch.float64)
    # Foci above each other: the less the hull's distance from the origin, the farther apart, without a limit. Foci
    # beside each other: up to where the ellipse would be flat, just below d².
    focal = torch.cat([-(2 * tall) ** 2 * torch.logspace(8, -4, 193, dtype=torch.float64) * torch.ones_like(center),
                       (1 - (1 - share) ** 4) * center**2 * (1 - 1e-9)], 1)  # fmt: skip
    x = center[..., None] - corners
    root = torch.sqrt(x * x - focal[..., None])
    outer = torch.maximum((x + root).abs(), (x - root).abs()).amax(-1)
    ratio = outer / (center + torch.sqrt(center**2 - focal))
    row, column = divmod(int(ratio.argmin()), ratio.shape[1])
    return float(center[row, 0]), float(focal[row, column])


@dataclass(frozen=True, kw_only=True)
class RungeKuttaChebyshev(FlowMethod):
    r"""An explicit step of s stages with T_s for its stability polynomial: steps ∝ s² for the price of s fields.

    For stiff flows whose Jacobians have nearly real spectra: symmetric or slightly skewed W with large ‖I − W‖. There
    it needs about √κ stages where Euler's method needs κ. The foci and the number of stages follow from a region that
    contains the spectrum of every Jacobian of the flow (``spectral_hull``); for a tall region the foci leave the real
    axis, so that a skew part costs stages but not stability.

    Not for the Peaceman–Rachford flow, which is not stiff: the steps are then s steps of Euler. And the predicted
    factor is that of the spectrum of the linearised flow: Jacobians far from normal grow before they decay.

    Args:
        flow: which flow to integrate.
        hull: complex numbers on or above the real axis, corners of a convex region that, with its mirror image, holds
            −λ for every eigenvalue λ of a Jacobian that is met, per unit of time; None takes what is proved of the
            flow. Nothing is proved of a field of your own: ``hull=(0.5, 900.0)`` is for real λ from −900 to −0.5.

    Raises:
        InputError: if a corner of the hull is no finite number, or is below the real axis.
        PreconditionError: on binding, where nothing is known of the spectrum, or it comes too near the imaginary axis.

    Source: Sommeijer, Shampine and Verwer, RKC: an explicit solver for parabolic PDEs, J. Comput. Appl. Math. 88, 1998;
    Manteuffel, The Tchebychev iteration for nonsymmetric linear systems, Numer. Math. 28 (1977), for the foci.
    """

    hull: tuple[complex, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hull is not None:
            good = isinstance(self.hull, tuple) and self.hull and all(map(_is_corner, self.hull))
            if not good:
                raise InputError(
                    f"hull must be a tuple of finite complex numbers on or above the real axis, got {self.hull!r}"
                )

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        flow = self.flow_on(problem)
        return _ChebyshevIteration(flow, *best_scheme(spectral_hull(flow) if self.hull is None else self.hull))


def _is_corner(value: object) -> bool:
    return isinstance(value, int | float | complex) and cmath.isfinite(value) and complex(value).imag >= 0


def best_scheme(hull: tuple[complex, ...] | None) -> tuple[Scheme, float]:
    """The numbers of a step, and the largest modulus of its stability polynomial over the hull, which is below 1.

    Args:
        hull: corners of a region that contains −λ for every eigenvalue λ of a Jacobian; None where unknown.

    Raises:
        PreconditionError: if it is unknown, or no number of stages is stable there.
    """
    if hull is None:
        raise PreconditionError(
            "RungeKuttaChebyshev cannot choose its step: nothing is known of the spectrum of this flow. Use a "
            "well-posed parameterisation, hull=… where you know it, or DormandPrince(), which adapts its step"
        )
    center, focal = best_ellipse(hull)
    factors = {stages: growth(hull, center, focal, stages) for stages in range(1, _MOST_STAGES + 1)}
    enough = [stages for stages, factor in factors.items() if factor <= _REDUCTION]
    stages = enough[0] if enough else min(factors, key=lambda s: factors[s])
    if not factors[stages] < _USELESS:
        raise PreconditionError(
            f"no number of stages up to {_MOST_STAGES} is stable on the spectrum of this flow, which comes too near to "
            "the imaginary axis: use BackwardEuler(), or a splitting such as PeacemanRachford()"
        )
    return first_order(center, focal, stages), factors[stages]


class _ChebyshevIteration(ExplicitIteration):
    def __init__(self, flow: SteadyFlow, scheme: Scheme, factor: float):
        super().__init__(flow)
        self.scheme, self.factor, self.step_size = scheme, factor, scheme.step

    def step(self, state: State) -> State:
        return (self.scheme.advance(self.flow, state[0]),)
