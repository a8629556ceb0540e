r"""The forward–backward and Peaceman–Rachford flows: explicit Euler with unit step is the splitting of that name."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import torch
from torch import Tensor

from contracting import checks
from contracting.activations.base import Reflection
from contracting.flows.base import BoundFlow, less_identity
from contracting.maps.base import LinearMap
from contracting.maps.operator import MonotoneOperator, StepChoice, slope_rate
from contracting.memory import Held
from contracting.problem import EquilibriumProblem, Problem
from contracting.types import Step, Time


@dataclass(frozen=True, kw_only=True)
class ForwardBackwardFlow:
    """z' = −z + prox_{αf}(z − α((I − W)z − q)), contracting in Λ for small α under Condition 1.

    Args:
        step: α > 0, a number or one per neuron (n,); None takes the step with the smallest exact factor ‖I − αÃ‖.
    """

    step: Step | None = None

    def __post_init__(self) -> None:
        _check_step(self.step)

    def bind(self, problem: EquilibriumProblem, choice: StepChoice | None = None) -> BoundSplitting:
        """The flow on a problem; ``choice`` is what whoever chose a given step knows of it."""
        return BoundForwardBackward(problem, self.step, choice)


@dataclass(frozen=True, kw_only=True)
class PeacemanRachfordFlow:
    """u' = −u + R_A R_f u with z = prox_{αf}(u), contracting in Λ for every α > 0 under Condition 1.

    R_f = 2prox_{αf} − I and R_A = 2(I + αA)⁻¹(· + αq) − I are the reflections of the two halves of the problem. (In the
    other order, R_f R_A, it is the same flow in the coordinates R_A u.)

    Args:
        step: α > 0, a number or one per neuron (n,); None takes the step with the smallest exact factor
            ‖(I − αÃ)(I + αÃ)⁻¹‖.
    """

    step: Step | None = None

    def __post_init__(self) -> None:
        _check_step(self.step)

    def bind(self, problem: EquilibriumProblem, choice: StepChoice | None = None) -> BoundPeacemanRachford:
        """The flow on a problem; ``choice`` is what whoever chose a given step knows of it."""
        return BoundPeacemanRachford(problem, self.step, choice)


def _check_step(step: Step | None) -> None:
    if isinstance(step, Tensor):
        checks.positive_tensor("step", checks.floating_tensor("step", step))
    elif step is not None:
        checks.positive_number("step", step)


def _fitting(step: Step, problem: EquilibriumProblem) -> Step:
    """The step in the form that the problem can use: a number, or a tensor (n,) of its dtype and device."""
    if isinstance(step, Tensor):
        checks.same_kind("step", step, "q", problem.q)
        return checks.shape("step", step, (problem.size,)) if step.ndim else float(step)
    return step


def _rows(step: Step, matrix: Tensor) -> Tensor:
    """Scale row i of a matrix by the step of neuron i."""
    return (step[:, None] if isinstance(step, Tensor) and step.ndim else step) * matrix


def forward(problem: EquilibriumProblem, z: Tensor, step: Step, preactivation: Tensor | None = None) -> Tensor:
    """z − α((I − W)z − q), the forward half of a step; from Wz + q where that is known."""
    return z + step * ((problem.preactivation(z) if preactivation is None else preactivation) - z)


def forward_backward(problem: EquilibriumProblem, z: Tensor, step: Step) -> Tensor:
    """prox_{αf}(z − α((I − W)z − q)), the step of forward–backward."""
    return problem.activation.prox(forward(problem, z, step), step)


def driven(reflection: LinearMap, drive: Tensor) -> Tensor:
    """2Kd for M = 2K − I: what an input αq = d adds to Mh in the backward half, R_A(h) = Mh + 2Kαq."""
    return reflection.affine(drive, drive)


def reflected_steps(
    reflection: LinearMap, offset: Tensor, reflect: Reflection, u: Tensor, steps: int, relaxation: float = 1.0
) -> Tensor:
    """The step of Peaceman–Rachford, u ← (1 − θ)u + M h(u) + c, so often and with as little memory as it takes.

    Args:
        reflection: M = 2K − I, times θ.
        offset: c = 2Kαq, times θ.
        reflect: h = R_f.
        u: the state, (batch, n), which is not changed.
        steps: how many.
        relaxation: θ, 1 for Peaceman–Rachford and 1/2 for Douglas–Rachford.
    """
    u, offset = reflection.laid_out(u), reflection.laid_out(offset)
    if relaxation == 1:
        return reflection.iterated(reflect, offset, u, steps)
    reflected = torch.empty_like(u)
    for _ in range(steps):
        u = reflection.affine(reflect(u, out=reflected), torch.add(offset, u, alpha=1 - relaxation))
    return u


def contracting_flow(problem: Problem) -> BoundSplitting | None:
    """A flow whose map contracts: Peaceman–Rachford's where W has a resolvent, else forward–backward's, else None."""
    if not (isinstance(problem, EquilibriumProblem) and problem.well_posed):
        return None
    if math.isfinite(problem.linear.resolvent_products):
        return PeacemanRachfordFlow().bind(problem)
    return ForwardBackwardFlow().bind(problem)


class BoundSplitting(BoundFlow):
    """A flow whose map T is a splitting with step α: what the steps and the factors of all of them have in common."""

    name: ClassVar[str]

    def __init__(self, problem: EquilibriumProblem, step: Step | None, choice: StepChoice | None = None):
        super().__init__(problem)
        self.choice = self._best(problem) if step is None else choice
        self.step: Step = cast(StepChoice, self.choice).step if step is None else _fitting(step, problem)

    @classmethod
    @abstractmethod
    def _best(cls, problem: EquilibriumProblem) -> StepChoice: ...

    @staticmethod
    @abstractmethod
    def _factor(operator: MonotoneOperator, step: float) -> float: ...

    @property
    def factor(self) -> float | None:
        """Lipschitz constant of T in the metric of the problem; None without a certificate or with a diagonal step."""
        operator = self.problem.operator
        return None if operator is None or isinstance(self.step, Tensor) else self._factor(operator, self.step)

    @property
    def prediction(self) -> StepChoice:
        """The step with its factor, or what else to expect of it, as far as that costs little."""
        if self.choice is not None:
            return self.choice
        return StepChoice(step=math.nan, factor=None) if isinstance(self.step, Tensor) else self._predict(self.step)

    def _predict(self, step: float) -> StepChoice:
        return StepChoice(step=step, factor=self.factor)

    @property
    def euler_step(self) -> StepChoice:
        # with unit step, Euler is the splitting itself
        self.problem.require_operator(f"explicit Euler on {self.name}")
        return StepChoice(step=1.0, factor=self.factor)

    @property
    def rate(self) -> float | None:
        rate = self.contraction_rate
        return rate if rate is not None and rate > 0 else None


class BoundForwardBackward(BoundSplitting):
    """z' = −z + prox_{αf}(z − α((I − W)z − q)) on one problem, ‖I − αÃ‖ the Lipschitz constant of its map."""

    name: ClassVar[str] = "the forward–backward flow"

    @classmethod
    def _best(cls, problem: EquilibriumProblem) -> StepChoice:
        return problem.require_operator(cls.name).best_forward

    @staticmethod
    def _factor(operator: MonotoneOperator, step: float) -> float:
        return operator.forward_factor(step)

    def map(self, state: Tensor) -> Tensor:
        return forward_backward(self.problem, state, self.step)

    def jacobian(self, state: Tensor, t: Time = 0.0) -> Tensor:
        W = self.problem.linear.to_dense()
        identity = torch.eye(W.shape[0], dtype=W.dtype, device=W.device)
        slopes = self.problem.activation.prox_derivative(forward(self.problem, state, self.step), self.step)
        return less_identity(slopes[:, :, None] * (identity + _rows(self.step, W - identity)))

    def jvp(self, state: Tensor, direction: Tensor, t: Time = 0.0) -> Tensor:
        slopes = self.problem.activation.prox_derivative(forward(self.problem, state, self.step), self.step)
        return slopes * (direction + self.step * (self.problem.linear.apply(direction) - direction)) - direction

    @property
    def contraction_rate(self) -> float | None:
        factor = self.factor
        if factor is None:
            return None
        assert not isinstance(self.step, Tensor)
        operator = self.problem.require_operator(self.name)
        return slope_rate(self.step * operator.bounds.monotonicity, factor)


class BoundPeacemanRachford(BoundSplitting):
    """u' = −u + R_A R_f u on one problem, ‖(I − αÃ)(I + αÃ)⁻¹‖ the Lipschitz constant of its map.

    What is computed from q and W in a graph belongs to that graph: it serves one backward pass, as any result does.
    """

    name: ClassVar[str] = "the Peaceman–Rachford flow"

    @classmethod
    def _best(cls, problem: EquilibriumProblem) -> StepChoice:
        return problem.reflected_step(cls.name)

    @staticmethod
    def _factor(operator: MonotoneOperator, step: float) -> float:
        return operator.reflected_factor(step)

    def __init__(self, problem: EquilibriumProblem, step: Step | None, choice: StepChoice | None = None):
        super().__init__(problem, step, choice)
        self._held = Held()
        _ = self.reflection  # now, so that a singular I + αA is refused before work starts

    @property
    def reflection(self) -> LinearMap:
        """2K − I with the resolvent K = (I + αA)⁻¹."""
        linear = self.problem.linear
        return self._held.recall("reflection", linear.tensors(), lambda: linear.reflection(self.step))

    @property
    def offset(self) -> Tensor:
        """2K(αq), the part of R_A(h) = (2K − I)h + 2K(αq) that does not change; 2K = (2K − I) + I."""
        return self._held.recall("offset", self.problem.tensors(), self._offset)

    def _offset(self) -> Tensor:
        return driven(self.reflection, self.step * self.problem.q)

    def _predict(self, step: float) -> StepChoice:
        return StepChoice(step=step, factor=self.problem.reflected_factor(step))

    def map(self, state: Tensor) -> Tensor:
        reflected = 2 * self.read(state) - state
        if reflected.shape == self.offset.shape:
            return self.reflection.affine(reflected, self.offset)
        return self.reflection.apply(reflected) + self.offset

    def defect(self, state: Tensor) -> Tensor:
        # = 2K α(Wz + q − v) at z = prox(u) = σ(v); the difference T(u) − u is rounded relative to u, times up to αL
        return driven(self.reflection, self.init(self.read(state)) - state)

    def init(self, z: Tensor) -> Tensor:
        # at the equilibrium v − z ∈ ∂f(z) for v = Wz + q, and u − z ∈ α∂f(z)
        return forward(self.problem, z, self.step)

    def read(self, state: Tensor) -> Tensor:
        return self.problem.activation.prox_value(state, self.step)

    def jacobian(self, state: Tensor, t: Time = 0.0) -> Tensor:
        slopes = self.problem.activation.prox_derivative(state, self.step)
        return less_identity(self.reflection.to_dense() * (2 * slopes - 1)[:, None, :])

    def jvp(self, state: Tensor, direction: Tensor, t: Time = 0.0) -> Tensor:
        slopes = self.problem.activation.prox_derivative(state, self.step)
        return self.reflection.apply((2 * slopes - 1) * direction) - direction

    def on(self, problem: EquilibriumProblem) -> Self:
        flow = object.__new__(type(self))
        flow.__dict__.update(self.__dict__, problem=problem, _held=self._held.without("offset"))
        return flow

    @property
    def contraction_rate(self) -> float | None:
        factor = self.factor
        return None if factor is None else 1 - factor
