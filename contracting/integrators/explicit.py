"""Explicit Runge–Kutta integrators, fixed-step and adaptive, as methods on any flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from contracting.flows.base import SteadyFlow
from contracting.flows.fields import VectorField
from contracting.integrators.base import ExplicitIteration, FlowMethod, TimeStepping
from contracting.integrators.step_control import first_step, judge, row_rms
from contracting.loop.method import Iteration, State
from contracting.loop.records import Stop
from contracting.problem import Problem
from contracting.types import Time


@dataclass(frozen=True, kw_only=True)
class Tableau:
    """Butcher tableau of an explicit Runge–Kutta method.

    Attributes:
        order: order of the solution.
        stages: aᵢⱼ, one row per stage after the first.
        weights: bᵢ of the solution.
        error: bᵢ − b̂ᵢ of the embedded error estimate, or None.
    """

    order: int
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] | None = None

    @cached_property
    def nodes(self) -> tuple[float, ...]:
        """cᵢ, the times of the stages after the first as fractions of the step."""
        return tuple(sum(row) for row in self.stages)

    @cached_property
    def last_stage_is_first(self) -> bool:
        """Whether the last stage is evaluated at the new state, so that the next step can reuse it."""
        return bool(self.stages) and self.stages[-1] == self.weights[:-1] and self.weights[-1] == 0


EULER = Tableau(order=1, stages=(), weights=(1.0,))
HEUN = Tableau(order=2, stages=((1.0,),), weights=(1 / 2, 1 / 2))
RK4_CLASSIC = Tableau(
    order=4, stages=((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), weights=(1 / 6, 1 / 3, 1 / 3, 1 / 6)
)
BOGACKI_SHAMPINE = Tableau(
    order=3,
    stages=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    weights=(2 / 9, 1 / 3, 4 / 9, 0.0),
    error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)
DORMAND_PRINCE = Tableau(
    order=5,
    stages=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    weights=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    error=(
        35 / 384 - 5179 / 57600,
        0.0,
        500 / 1113 - 7571 / 16695,
        125 / 192 - 393 / 640,
        -2187 / 6784 + 92097 / 339200,
        11 / 84 - 187 / 2100,
        -1 / 40,
    ),
)


def runge_kutta_step(
    tableau: Tableau,
    flow: VectorField,
    state: Tensor,
    step: Tensor | float,
    first: Tensor | None = None,
    clock: Callable[[float], Time] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """One step of size h: the new state and the stage derivatives; ``first`` is f(s) where it is already known.

    Args:
        tableau: which method.
        flow: s' = f(t, s).
        state: s, (batch, n).
        step: h, a number or (batch, 1).
        first: f at the beginning of the step, or None.
        clock: the time t at a fraction of the step; None for an autonomous flow, to which time 0 is passed.
    """
    clock = clock or (lambda fraction: 0.0)
    slopes = [flow(clock(0.0), state) if first is None else first]
    for node, row in zip(tableau.nodes, tableau.stages, strict=True):
        slopes.append(flow(clock(node), _along(state, step, combine(row, slopes))))
    if tableau.last_stage_is_first:
        return _along(state, step, combine(tableau.weights[:-1], slopes[:-1])), slopes
    return _along(state, step, combine(tableau.weights, slopes)), slopes


def _along(state: Tensor, step: Tensor | float, slope: Tensor) -> Tensor:
    """s + h·k in one pass."""
    if isinstance(step, Tensor):
        return torch.addcmul(state, step, slope)
    return torch.add(state, slope, alpha=step)


def combine(coefficients: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """Σ cᵢkᵢ over the stage derivatives kᵢ."""
    (c, slope), *others = [(c, slope) for c, slope in zip(coefficients, slopes, strict=True) if c != 0]
    total = c * slope
    for c, slope in others:
        total = torch.add(total, slope, alpha=c)
    return total


@dataclass(frozen=True, kw_only=True)
class _FixedStep(TimeStepping):
    tableau: ClassVar[Tableau]

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        """The integrator on one problem; refuses an automatic step where nothing supports one."""
        return _FixedStepIteration(self.tableau, self.flow_on(problem), self.step)


@dataclass(frozen=True, kw_only=True)
class ExplicitEuler(_FixedStep):
    """s⁺ = s + h f(s), order 1.

    With unit step it is the fixed-point iteration of the flow's map. The automatic step minimises the proved
    contraction factor of Euler on the chosen flow; RK methods of circle-contractivity radius 1 may use the same step.

    Args:
        flow: which flow to integrate, for example FiringRate() or PeacemanRachfordFlow().
        step: time step h in units of the flow's time constant; None computes it from the operator.
    """

    tableau: ClassVar[Tableau] = EULER


@dataclass(frozen=True, kw_only=True)
class Heun(_FixedStep):
    """Heun's method (SSPRK22), order 2; arguments as for ``ExplicitEuler``."""

    tableau: ClassVar[Tableau] = HEUN


@dataclass(frozen=True, kw_only=True)
class RK4(_FixedStep):
    """The classical Runge–Kutta method, order 4; arguments as for ``ExplicitEuler``."""

    tableau: ClassVar[Tableau] = RK4_CLASSIC


# these stability functions are convex combinations of powers of Euler's, so their factor on a linear flow is at most
# that combination of powers of Euler's factor: coefficients of E⁰, E¹, E², … (for Heun, an SSP method, on any flow)
_EULER_POWERS = {
    EULER: (0.0, 1.0),
    HEUN: (1 / 2, 0.0, 1 / 2),
    RK4_CLASSIC: (3 / 8, 1 / 3, 1 / 4, 0.0, 1 / 24),
}


class _FixedStepIteration(ExplicitIteration):
    def __init__(self, tableau: Tableau, flow: SteadyFlow, step: float | None):
        super().__init__(flow)
        self.tableau = tableau
        if step is None:
            choice = flow.euler_step
            step = float(choice.step)
            if choice.factor is not None:
                self.factor = sum(c * choice.factor**k for k, c in enumerate(_EULER_POWERS[tableau]))
        self.step_size = step
        if self.factor is not None:
            # about once per halving of the error: a check costs one map, as each stage does
            self.check_every = max(1, min(50, round(0.5 / max(1e-6, 1 - self.factor))))

    def step(self, state: State) -> State:
        assert self.step_size is not None
        return (runge_kutta_step(self.tableau, self.flow, state[0], self.step_size)[0],)


# The error of a step may be this share of the distance that it travels, as ``BogackiShampine`` explains.
_STEADY_ACCURACY = 0.1


@dataclass(frozen=True, kw_only=True)
class _Adaptive(FlowMethod):
    tableau: ClassVar[Tableau]

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        return _AdaptiveIteration(self.tableau, self.flow_on(problem))


@dataclass(frozen=True, kw_only=True)
class BogackiShampine(_Adaptive):
    """The embedded pair 3(2), each row with its own step size.

    Steps are accepted and sized per row (PI controller), so an answer does not depend on the other rows. The error of a
    step is held to a tenth of h‖f(s)‖, the distance the step travels: loose far from the steady state, where accuracy
    buys nothing, tighter and tighter as the residual falls, and always inside the region of stability, where the error
    estimate of an unstable component exceeds that tenth. For an accurate trajectory see ``simulate``.
    """

    tableau: ClassVar[Tableau] = BOGACKI_SHAMPINE


@dataclass(frozen=True, kw_only=True)
class DormandPrince(_Adaptive):
    """The embedded pair 5(4), each row with its own step size; otherwise as ``BogackiShampine``."""

    tableau: ClassVar[Tableau] = DORMAND_PRINCE


class _AdaptiveIteration(ExplicitIteration):
    # state: s, f(s), per-row step h, per-row error ratio of the last accepted step
    def __init__(self, tableau: Tableau, flow: SteadyFlow):
        super().__init__(flow)
        assert tableau.error is not None
        self.tableau, self.error = tableau, tableau.error

    def init(self, z0: Tensor) -> State:
        state = self.flow.init(z0)
        slope = self.flow(0.0, state)
        step = first_step(state, slope, longest=1.0)
        return state, slope, step, torch.ones_like(step)

    def step(self, state: State) -> State:
        s, slope, h, last = state
        new, slopes = runge_kutta_step(self.tableau, self.flow, s, h[:, None], slope)
        error, travel = row_rms(h[:, None] * combine(self.error, slopes)), row_rms(h[:, None] * slope)
        ratio = error / (_STEADY_ACCURACY * travel).clamp_min(torch.finfo(error.dtype).tiny)
        # relative to the distance travelled, the error of a step is of one order less
        accept, growth, last = judge(ratio, last, self.tableau.order - 1)
        chosen = accept[:, None]
        return torch.where(chosen, new, s), torch.where(chosen, slopes[-1], slope), h * growth, last
