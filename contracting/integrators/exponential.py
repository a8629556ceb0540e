"""Exponential Euler: exact in the linear part of a flow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from contracting.flows.base import BoundFlow
from contracting.flows.speed import ScaledFlow
from contracting.flows.splitting import BoundSplitting
from contracting.integrators.base import FlowIteration, TimeStepping
from contracting.loop.method import Iteration, State
from contracting.loop.records import Stop
from contracting.problem import EquilibriumProblem

_ROUNDING_TIME = 36.0  # e⁻³⁶ is below the rounding of float64: the linear part has decayed


@dataclass(frozen=True, kw_only=True)
class ExponentialEuler(TimeStepping):
    r"""s⁺ = e^{−h}s + (1 − e^{−h})T(s) for a flow s' = −s + T(s): order 1, exact where T is constant.

    The linear part −s, the leak of a firing-rate or Hopfield network, is integrated exactly; for a flow of speed a (see
    ``contracting.flows.speed``) it is −as, and h is multiplied by a. It is Euler's step with 1 − e^{−h} in place of h,
    which never exceeds one: no step size overshoots the map T, so that every h is stable where T is a contraction. It
    cannot solve what explicit Euler with a step below one cannot; for a stiff T take an implicit integrator.

    Args:
        flow: which flow to integrate.
        step: time step h in units of the flow's time constant; None takes the step for which 1 − e^{−h} is the best
            step of Euler, at most 36 time constants (then s⁺ = T(s) up to rounding).

    Raises:
        PreconditionError: on binding, if the step is automatic and Condition 1 is not certified.

    Source: Hochbruck and Ostermann, Exponential integrators, Acta Numerica 19 (2010).
    """


    def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        """The integrator on one problem."""
        return _ExponentialIteration(self.flow_on(problem), self.step)


class _ExponentialIteration(FlowIteration):
    def __init__(self, flow: BoundFlow, step: float | None):
        super().__init__(flow)
        speed = 1.0
        unscaled = flow
        while isinstance(unscaled, ScaledFlow):
            speed *= unscaled.speed
            unscaled = unscaled.inner
        self.unscaled = unscaled
        if step is None:
            best = unscaled.euler_step.step
            step = (-math.log1p(-best) if best < 1 else _ROUNDING_TIME) / speed
        self.step_size = step
        self.share = -math.expm1(-speed * step)
        self.factor = _euler_factor(unscaled, self.share)

    def step(self, state: State) -> State:
        (s,) = state
        return (s + self.share * (self.unscaled.map(s) - s),)


def _euler_factor(flow: BoundFlow, step: float) -> float | None:
    """The contraction factor of explicit Euler with this step, in the sense of ``Iteration.factor``."""
    operator = flow.problem.operator
    if operator is None:
        return None
    if not isinstance(flow, BoundSplitting):
        factor: float | None = operator.euler_factor(step)
    else:
        factor = None if flow.factor is None else 1 - step + step * flow.factor
    return factor if factor is not None and factor < 1 else None
