r"""The firing-rate and Hopfield flows: an equilibrium network as the steady state of a recurrent one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from contracting.flows.base import BoundFlow, less_identity
from contracting.maps.operator import StepChoice, slope_rate
from contracting.problem import EquilibriumProblem
from contracting.types import Time


@dataclass(frozen=True, kw_only=True)
class FiringRate:
    """z' = −z + σ(Wz + q), with the rate z as its state."""

    def bind(self, problem: EquilibriumProblem) -> BoundFlow:
        """The flow on a problem."""
        return BoundFiringRate(problem)


@dataclass(frozen=True, kw_only=True)
class Hopfield:
    """v' = −v + Wσ(v) + q with z = σ(v): the membrane potential v as its state."""

    def bind(self, problem: EquilibriumProblem) -> BoundFlow:
        """The flow on a problem."""
        return BoundHopfield(problem)


class BoundFiringRate(BoundFlow):
    """z' = −z + σ(Wz + q) on one problem."""

    def map(self, state: Tensor) -> Tensor:
        return self.problem.map(state)

    def jacobian(self, state: Tensor, t: Time = 0.0) -> Tensor:
        return less_identity(self.problem.jacobian(state))

    def jvp(self, state: Tensor, direction: Tensor, t: Time = 0.0) -> Tensor:
        return self.problem.slopes(state) * self.problem.linear.apply(direction) - direction

    @property
    def euler_step(self) -> StepChoice:
        return self.problem.require_operator("explicit Euler on the firing-rate flow").best_euler

    @property
    def rate(self) -> float | None:
        # Lur'e–Postnikov: convergence for constant input under Condition 1, not contraction
        operator = self.problem.operator
        return None if operator is None else 0.5 * min(1.0, operator.bounds.monotonicity)

    @property
    def contraction_rate(self) -> float | None:
        operator = self.problem.operator
        return None if operator is None else slope_rate(operator.bounds.monotonicity, operator.bounds.gain)


class BoundHopfield(BoundFiringRate):
    """v' = −v + Wσ(v) + q on one problem."""

    def map(self, state: Tensor) -> Tensor:
        return self.problem.preactivation(self.problem.activation(state))

    def init(self, z: Tensor) -> Tensor:
        return self.problem.preactivation(z)

    def read(self, state: Tensor) -> Tensor:
        return self.problem.activation(state)

    def jacobian(self, state: Tensor, t: Time = 0.0) -> Tensor:
        return less_identity(self.problem.linear.to_dense() * self.problem.activation.derivative(state)[:, None, :])

    def jvp(self, state: Tensor, direction: Tensor, t: Time = 0.0) -> Tensor:
        return self.problem.linear.apply(self.problem.activation.derivative(state) * direction) - direction
