"""Operator splittings: fixed-point iterations of the forward–backward and Peaceman–Rachford maps.

A splitting is explicit Euler on the flow of the same name: with unit step for forward–backward and Peaceman–Rachford,
with half a step for Douglas–Rachford. The step α is chosen by its exact contraction factor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from contracting import checks
from contracting.activations.catalogue import Identity
from contracting.flows.splitting import (
    BoundPeacemanRachford,
    BoundSplitting,
    ForwardBackwardFlow,
    PeacemanRachfordFlow,
)
from contracting.loop.method import Family, Iteration, Method
from contracting.loop.records import Stop
from contracting.problem import EquilibriumProblem, Problem, with_weights
from contracting.solvers.diagonal_step import DiagonalStep
from contracting.solvers.reflected import FoldedIteration, usual_forecast, usual_step
from contracting.solvers.reflected_curved import CurvedIteration, leads
from contracting.solvers.reflected_single import RefinedIteration, refinable
from contracting.solvers.relaxed import RelaxedIteration, interval, planned_steps, relaxed


@dataclass(frozen=True, kw_only=True)
class _Splitting(Method):
    step: float | Tensor | DiagonalStep | None = None
    flow_of: ClassVar[type[ForwardBackwardFlow] | type[PeacemanRachfordFlow]] = PeacemanRachfordFlow
    family: ClassVar[Family] = Family.SPLITTING

    def __post_init__(self) -> None:
        if not isinstance(self.step, DiagonalStep):
            self.flow_of(step=self.step)  # which checks the step

    @property
    def share(self) -> float:
        """θ in s ← s + θ(T(s) − s)."""
        return 1.0

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        """The iteration on one problem."""
        flow = self._flow(with_weights(problem, type(self).__name__))
        steps = planned_steps(relaxed(flow.prediction.expected, self.share), max(stop.rtol or 0.0, 1e-15))
        return RelaxedIteration(flow, self.share, interval(steps))

    def _flow(self, problem: EquilibriumProblem) -> BoundSplitting:
        if isinstance(self.step, DiagonalStep):
            return self.step.bind(problem, self.flow_of)
        return self.flow_of(step=self.step).bind(problem)


@dataclass(frozen=True, kw_only=True)
class _ReflectedSplitting(_Splitting):
    mixed_precision: bool = True

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        """The iteration on one problem; what depends on no row of it is remembered on weights that stay."""
        found = with_weights(problem, type(self).__name__)
        linear, step = found.linear, self.step
        if linear.changing or not (step is None or isinstance(step, float)):
            return self._iteration(found, stop)
        kind = type(found.activation)
        owner = found.metric, type(self), step, self.share, self.mixed_precision, stop.rtol, kind

        def without_rows() -> FoldedIteration:  # so that what is remembered keeps no batch alive
            activation = Identity() if found.activation.tensors() else found.activation
            empty = replace(found, q=found.q.new_empty(0, found.size), activation=activation)
            return self._iteration(empty, stop)

        return linear.remember("iteration", owner, without_rows).on(found)

    def _iteration(self, problem: EquilibriumProblem, stop: Stop) -> FoldedIteration:
        if self.step is None:
            choice = usual_step(problem, BoundPeacemanRachford.name)
            flow: BoundSplitting = BoundPeacemanRachford(problem, choice.step, choice)
        else:
            flow = self._flow(problem)
        assert isinstance(flow, BoundPeacemanRachford)
        forecast = usual_forecast(flow, self.share)
        if leads(problem.activation, flow.step):
            kind: type[FoldedIteration] = CurvedIteration
        else:
            kind = RefinedIteration if self.mixed_precision and refinable(flow, forecast) else FoldedIteration
        return kind(flow, self.share, stop, forecast)


@dataclass(frozen=True, kw_only=True)
class ForwardBackward(_Splitting):
    r"""z ← prox_{αf}(z − α((I − W)z − q)): one product with W per step, no resolvent.

    Factor ‖I − αÃ‖ in ‖·‖_Λ; needs 0 < α < 2m/L². Not for strongly skewed or ill-conditioned W: the factor is then
    close to one, and PeacemanRachford or SemismoothNewton takes far fewer steps.

    Args:
        step: α, a number, one per neuron, or DiagonalStep(); None minimises the factor exactly.

    Raises:
        PreconditionError: on binding, if α is automatic and Condition 1 is not certified.
    """

    flow_of: ClassVar[type[ForwardBackwardFlow]] = ForwardBackwardFlow


@dataclass(frozen=True, kw_only=True)
class PeacemanRachford(_ReflectedSplitting):
    r"""u ← R_A R_f u, z = prox_{αf}(u): one product with the resolvent (I + α(I − W))⁻¹ per step.

    Factor ‖(I − αÃ)(I + αÃ)⁻¹‖ in ‖·‖_Λ, below one for every α > 0 under Condition 1. The default solver: the inverse
    is computed once per weight, and few steps are needed. For n in the thousands prefer a method without a resolvent.

    Args:
        step: α, a number, one per neuron, or DiagonalStep(); None minimises the factor exactly, and for weights in
            training takes one per neuron from estimates, where σ is not curved.
        mixed_precision: take the steps of a float64 problem in float32, as iterative refinement. What is returned is as
            accurate, but two solves of a row in batches of different size then agree to the tolerance, not to the last
            digits. A curved σ keeps its steps in float64, where it is not σ itself that they apply (α = 1).

    Raises:
        PreconditionError: on binding, if α is automatic and Condition 1 is not certified.
    """

    flow_of: ClassVar[type[PeacemanRachfordFlow]] = PeacemanRachfordFlow


@dataclass(frozen=True, kw_only=True)
class DouglasRachford(_ReflectedSplitting):
    r"""u ← u + (θ/2)(R_A R_f u − u), z = prox_{αf}(u), with relaxation θ in (0, 2); θ = 1 is the classical method.

    Factor |1 − θ/2| + (θ/2)ρ with ρ that of Peaceman–Rachford. Steadier than Peaceman–Rachford where I − W is barely
    monotone, otherwise slower.

    Args:
        step: α, a number, one per neuron, or DiagonalStep(); None minimises ρ exactly, or nearly so for weights in
            training.
        mixed_precision: as for ``PeacemanRachford``.
        relaxation: θ; 2 would be Peaceman–Rachford.

    Raises:
        InputError: if θ is not in (0, 2).
        PreconditionError: on binding, if α is automatic and Condition 1 is not certified.
    """

    relaxation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("relaxation", self.relaxation, low=0, low_open=True, high=2, high_open=True)

    @property
    def share(self) -> float:
        """θ/2."""
        return self.relaxation / 2
