"""Tseng's splitting: the inverse-free method for strongly skewed weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from contracting import checks
from contracting.flows.splitting import forward_backward
from contracting.loop.method import Family, Iteration, Method, State
from contracting.loop.records import Stop
from contracting.maps.operator import StepChoice
from contracting.problem import EquilibriumProblem, Problem, with_weights

# Where L is only estimated, and from below, the step is this share of 1/L.
_SHARE = 0.7


@dataclass(frozen=True, kw_only=True)
class Tseng(Method):
    r"""z̄ = prox_{αf}(z − α((I − W)z − q)), z ← z̄ − α(I − W)(z̄ − z): forward–backward–forward, two products per step.

    The second forward step undoes the rotation of a skew part. 1 − factor is then of the order of 1/κ where that of
    forward–backward is of the order of 1/κ². For W that is close to self-adjoint the second product is wasted, and
    where a resolvent (I + α(I − W))⁻¹ is affordable, PeacemanRachford takes fewer steps.

    The predicted factor √(1 − 1/λmax((I − α²ÃᵀÃ)⁻¹ + (2αH)⁻¹)), H the symmetric part of Ã, is a proved bound on
    ‖z⁺ − z*‖_Λ/‖z − z*‖_Λ for the distance to the solution, not between any two points.

    Args:
        step: α, proved to contract below 1/L; None minimises the bound on the factor exactly, or takes 0.7/L with an
            estimate of L where W changes in every step or is large; one per neuron where W has a metric for each.

    Raises:
        PreconditionError: on binding, if α is automatic and Condition 1 is not certified.

    Source: Tseng, A modified forward–backward splitting method for maximal monotone mappings, SIAM J. Control Optim. 38
    (2000); the factor is derived in ``MonotoneOperator.tseng_factor``.
    """

    step: float | None = None
    family: ClassVar[Family] = Family.SPLITTING

    def __post_init__(self) -> None:
        if self.step is not None:
            checks.number("step", self.step, low=0, low_open=True, high=float("inf"), high_open=True)

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        """The iteration on one problem."""
        return _TsengIteration(with_weights(problem, "Tseng"), self.step)


class _TsengIteration(Iteration):
    def __init__(self, problem: EquilibriumProblem, step: float | None):
        self.problem = problem
        choice = _choice(problem) if step is None else _prediction(problem, step)
        self.alpha = choice.step
        self.step_size = None if isinstance(choice.step, Tensor) else choice.step
        self.factor = choice.factor if choice.factor is not None and choice.factor < 1 else None

    def init(self, z0: Tensor) -> State:
        return (z0,)

    def step(self, state: State) -> State:
        (z,) = state
        middle = forward_backward(self.problem, z, self.alpha)
        change = middle - z
        return (middle - self.alpha * (change - self.problem.linear.apply(change)),)

    def read(self, state: State) -> Tensor:
        return state[0]


def _exactly_analysed(problem: EquilibriumProblem) -> bool:
    return problem.metric is not None and problem.linear.exactly_analysed(problem.metric)


def _choice(problem: EquilibriumProblem) -> StepChoice:
    if not _exactly_analysed(problem) and problem.metric is not None and problem.well_posed:
        estimates = problem.linear.estimates(problem.metric)
        assert estimates is not None
        return StepChoice(step=estimates.of_number(_SHARE / estimates.lipschitz), factor=None)
    return problem.require_operator("Tseng's splitting").best_tseng


def _prediction(problem: EquilibriumProblem, step: float) -> StepChoice:
    operator = problem.operator if _exactly_analysed(problem) else None
    return StepChoice(step=step, factor=None if operator is None else operator.tseng_factor(step))
