r"""Runge–Kutta–Chebyshev: explicit integrators with many stages, for flows that are stiff but hardly rotate.

One step of s stages has a stability polynomial built from the Chebyshev polynomial T_s, so that the stable part of the
negative real axis grows like s² while the cost grows like s. The wider a field's spectrum is off the axis, the less is
gained: see ``RungeKuttaChebyshev`` for when not to use it.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError, PreconditionError
from contracting.flows.base import BoundFlow
from contracting.flows.network import BoundFiringRate
from contracting.flows.speed import ScaledFlow
from contracting.flows.splitting import BoundForwardBackward, BoundSplitting
from contracting.integrators.base import FlowIteration, TimeStepping
from contracting.loop.method import Iteration, State
from contracting.loop.records import Stop
from contracting.maps.operator import Bounds
from contracting.problem import EquilibriumProblem
from contracting.types import Time

_MOST_STAGES = 200
_REDUCTION = 0.1  # per step of the automatic choice: after so much, the slopes may have changed
_DAMPING = {1: 0.05, 2: 2 / 13}  # the customary values
_SIDES = 64  # of the polygon around a disc
_USELESS = 1 - 1e-9  # A factor per step closer to one may be a rounding error, and would take ages if it were none.


@dataclass(frozen=True, kw_only=True)
class Scheme:
    r"""The numbers of one Runge–Kutta–Chebyshev step of size h.

    Y₁ = Y₀ + first·F₀, Yⱼ = (1 − μ − ν)Y₀ + μYⱼ₋₁ + νYⱼ₋₂ + gain·Fⱼ₋₁ + start·F₀, and the last Y is the new state.

    Attributes:
        step: h.
        first: of the first stage, in units of time.
        stages: (μ, ν, gain, start) of the others; gain and start in units of time.
    """

    step: float
    first: float
    stages: tuple[tuple[float, float, float, float], ...]

    def advance(
        self, flow: Callable[[Time, Tensor], Tensor], state: Tensor, clock: Callable[[float], Time] = lambda time: 0.0
    ) -> Tensor:
        """The state after one step; ``clock`` turns the time since its beginning into t (for an autonomous flow, 0)."""
        start = flow(clock(0.0), state)
        before, now = state, state + self.first * start
        early, time = 0.0, self.first  # of before and now
        for mu, nu, gain, initial in self.stages:
            after = mu * now + nu * before + gain * flow(clock(time), now) + initial * start
            rest = 1 - mu - nu
            before, now = now, after + rest * state if rest else after
            early, time = time, mu * time + nu * early + gain + initial
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
        rows.append((1 + momentum, -momentum, 2 * following, 0.0))
        early, time = time, time + momentum * (time - early) + 2 * following
        rate = following
    return Scheme(step=time, first=1 / center, stages=tuple(rows))


def damped(order: int, step: float, stages: int, damping: float) -> Scheme:
    """The classical scheme of order 1 or 2 with damping ε: w₀ = 1 + ε/s², |P(hλ)| < 1 on [−``stability_limit``, 0)."""
    w0 = 1 + damping / stages**2
    T, dT, ddT = _chebyshev(w0, stages)
    if order == 1:
        focal = dT[-1] / (T[-1] * step)
        return first_order(w0 * focal, focal**2, stages)
    w1 = dT[-1] / ddT[-1]
    b = [ddT[max(j, 2)] / dT[max(j, 2)] ** 2 for j in range(stages + 1)]
    rows = []
    for j in range(2, stages + 1):
        gain = 2 * b[j] * w1 / b[j - 1] * step
        mu, nu = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2]
        rows.append((mu, nu, gain, -(1 - b[j - 1] * T[j - 1]) * gain))
    return Scheme(step=step, first=b[1] * w1 * step, stages=tuple(rows))


def stability_limit(order: int, stages: int, damping: float) -> float:
    """The damped scheme is stable for real hλ from −limit to 0; with strong damping also a little beyond."""
    w0 = 1 + damping / stages**2
    T, dT, ddT = _chebyshev(w0, stages)
    return (1 + w0) * (dT[-1] / T[-1] if order == 1 else ddT[-1] / dT[-1])


def _chebyshev(x: float, degree: int) -> tuple[list[float], list[float], list[float]]:
    """Values and first two derivatives of T₀ … T_degree at x."""
    T, dT, ddT = [1.0, x], [0.0, 1.0], [0.0, 0.0]
    for j in range(1, degree):
        ddT.append(4 * dT[j] + 2 * x * ddT[j] - ddT[j - 1])
        dT.append(2 * T[j] + 2 * x * dT[j] - dT[j - 1])
        T.append(2 * x * T[j] - T[j - 1])
    return T[: degree + 1], dT[: degree + 1], ddT[: degree + 1]


def spectral_hull(flow: BoundFlow) -> tuple[complex, ...] | None:
    r"""Corners of a convex region that contains −λ for every eigenvalue λ of f'(s), at every s; None where unknown.

    With slopes J, the Jacobian −I + JW̃ is similar to −I + J^½W̃J^½, whose numerical range lies between −1 and −𝒲(Ã):
    real parts from min(1, m) to max(1, λmax(H)), imaginary parts up to ‖K‖; for forward–backward with αÃ in place of Ã.
    Of other maps only the Lipschitz constant ρ is used: a disc of radius ρ around 1. The region is symmetric about the
    real axis; the corners above it are returned.
    """
    if isinstance(flow, ScaledFlow):
        inner = spectral_hull(flow.inner)
        return None if inner is None else tuple(flow.speed * corner for corner in inner)
    operator = flow.problem.operator
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
class RungeKuttaChebyshev(TimeStepping):
    r"""An explicit step of s stages with T_s for its stability polynomial: steps ∝ s² for the price of s fields.

    For stiff flows whose Jacobians have nearly real spectra: symmetric or slightly skewed W with large ‖I − W‖. There
    it needs about √κ stages where Euler's method needs κ. The automatic step, for steady states, takes the foci and the
    number of stages from a region that contains the spectrum of every Jacobian of the flow (``spectral_hull``); for a
    tall region the foci leave the real axis, so that a skew part costs stages but not stability.

    Not for an accurate trajectory of a strongly skewed W: a given step is made stable by damping, which costs stages.
    Not for the Peaceman–Rachford flow, which is not stiff: the steps are then s steps of Euler. And the predicted
    factor is that of the spectrum of the linearised flow: Jacobians far from normal grow before they decay.

    Args:
        flow: which flow to integrate.
        order: 1, or 2 for accurate trajectories; order 2 needs a step.
        step: h in units of the flow's time constant; None as above.
        stages: s; None takes as few as are stable for ``step``.
        damping: ε with ``step``: more damping widens the stable strip around the axis and shortens it. None starts from
            the customary value (0.05 for order 1, 2/13 for order 2) and raises it where the flow has a skew part.

    Raises:
        InputError: if a setting is out of range, or ``stages`` or ``damping`` come without ``step``.
        PreconditionError: on binding, where something is automatic and nothing is known of the spectrum.

    Source: Sommeijer, Shampine and Verwer, RKC: an explicit solver for parabolic PDEs, J. Comput. Appl. Math. 88, 1998;
    Manteuffel, The Tchebychev iteration for nonsymmetric linear systems, Numer. Math. 28 (1977), for the foci.
    """

    order: int = 1
    stages: int | None = None
    damping: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if checks.whole_number("order", self.order) > 2:
            raise InputError(f"order must be 1 or 2, got {self.order}")
        if self.step is None and (self.order == 2 or self.stages is not None or self.damping is not None):
            raise InputError("order=2, stages and damping go with a step: pass step=..., or leave all of them out")
        if self.stages is not None and checks.whole_number("stages", self.stages, low=self.order) > _MOST_STAGES:
            raise InputError(f"stages must be at most {_MOST_STAGES}, got {self.stages}")
        if self.damping is not None:
            checks.number("damping", self.damping, low=0, low_open=True, high=1e3)

    def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        """The integrator on one problem."""
        flow = self.flow_on(problem)
        scheme, factor = self.scheme(spectral_hull(flow))
        return _ChebyshevIteration(flow, scheme, factor)

    def scheme(self, hull: tuple[complex, ...] | None) -> tuple[Scheme, float | None]:
        """The numbers of a step, and the largest modulus of its stability polynomial over the hull where it is < 1.

        Args:
            hull: corners of a region that contains −λ for every eigenvalue λ of a Jacobian; None where unknown.
        """
        if self.step is None:
            if hull is None:
                raise PreconditionError(
                    "RungeKuttaChebyshev cannot choose its step: nothing is known of the spectrum of this flow. Use a "
                    "well-posed parameterisation, pass step and stages, or use DormandPrince(), which adapts its step"
                )
            center, focal = best_ellipse(hull)
            factors = {stages: growth(hull, center, focal, stages) for stages in range(1, _MOST_STAGES + 1)}
            enough = [stages for stages, factor in factors.items() if factor <= _REDUCTION]
            stages = enough[0] if enough else min(factors, key=lambda s: factors[s])
            if not factors[stages] < _USELESS:
                raise PreconditionError(
                    f"no number of stages up to {_MOST_STAGES} is stable on the spectrum of this flow, which comes too "
                    "near to the imaginary axis: use BackwardEuler(), or a splitting such as PeacemanRachford()"
                )
            return first_order(center, focal, stages), factors[stages]
        damping, stages = self._damping_and_stages(hull, self.step)
        bound = 1.0 if hull is None else self._growth(hull, self.step, stages, damping)
        return damped(self.order, self.step, stages, damping), bound if bound < 1 else None

    def _damping_and_stages(self, hull: tuple[complex, ...] | None, step: float) -> tuple[float, int]:
        customary = _DAMPING[self.order]
        dampings = [customary * 2**k for k in range(9)] if self.damping is None else [self.damping]
        if hull is None:
            if self.stages is None:
                raise PreconditionError(
                    "RungeKuttaChebyshev cannot choose its stages: nothing is known of the spectrum of this flow; pass "
                    "stages, with stability_limit(order, stages, damping) above step times the spectral radius"
                )
            return dampings[0], self.stages
        for damping in dampings:
            for stages in range(self.order, _MOST_STAGES) if self.stages is None else [self.stages]:
                if self._growth(hull, step, stages, damping) < 1:
                    return damping, stages
        if self.stages is not None:
            return dampings[0], self.stages  # the caller's own choice, unstable as it may be: the status will tell
        raise PreconditionError(
            f"no number of stages up to {_MOST_STAGES} is stable with step = {step:g} on the spectrum of this flow, "
            "which is too wide or too far from real; use a smaller step, or BackwardEuler() with this one"
        )

    def _growth(self, hull: tuple[complex, ...], step: float, stages: int, damping: float) -> float:
        w0 = 1 + damping / stages**2
        T, dT, ddT = _chebyshev(w0, stages)
        if self.order == 1:
            focal = dT[-1] / (T[-1] * step)
            return growth(hull, w0 * focal, focal**2, stages)
        # P = a + b·T_s(w₀ + w₁hλ)
        focal, b = ddT[-1] / (dT[-1] * step), ddT[-1] / dT[-1] ** 2
        return abs(1 - b * T[-1]) + b * T[-1] * growth(hull, w0 * focal, focal**2, stages)


class _ChebyshevIteration(FlowIteration):
    def __init__(self, flow: BoundFlow, scheme: Scheme, factor: float | None):
        super().__init__(flow)
        self.scheme, self.factor = scheme, factor
        self.step_size = scheme.step

    def step(self, state: State) -> State:
        return (self.scheme.advance(self.flow, state[0]),)
