r"""Flows at another constant speed: the same steady states and certificates, with rates and time steps scaled.

Speed ½ makes the Peaceman–Rachford flow the Douglas–Rachford flow; speed 1/α makes the forward–backward flow a bridge
from the firing-rate flow to the differential inclusion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from contracting import checks
from contracting.flows.base import BoundFlow
from contracting.flows.splitting import ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.maps.operator import StepChoice
from contracting.problem import EquilibriumProblem
from contracting.types import Step, Time


@dataclass(frozen=True, kw_only=True)
class DouglasRachfordFlow:
    """u' = ½(R_A R_f u − u) with z = prox_{αf}(u): the Peaceman–Rachford flow at half speed.

    Explicit Euler with unit step is Douglas–Rachford splitting.

    Args:
        step: α as for ``PeacemanRachfordFlow``.
    """

    step: Step | None = None

    def __post_init__(self) -> None:
        PeacemanRachfordFlow(step=self.step)

    def bind(self, problem: EquilibriumProblem) -> BoundFlow:
        """The flow on a problem."""
        return ScaledFlow(PeacemanRachfordFlow(step=self.step).bind(problem), 0.5)


@dataclass(frozen=True, kw_only=True)
class TimeScaledForwardBackward:
    """z' = (prox_{αf}(z − α((I − W)z − q)) − z)/α: from the firing-rate flow to the inclusion.

    At α = 1 it is the firing-rate flow; as α → 0 it becomes z' ∈ −(I − W)z + q − ∂f(z), and its proved contraction rate
    in Λ rises to m = λmin(sym Ã). It contracts in Λ for 0 < α < 4m/(L² − m²).

    Args:
        step: α > 0. One number: a different scale for each neuron would be no change of time.
    """

    step: float

    def __post_init__(self) -> None:
        checks.positive_number("step", self.step)

    def bind(self, problem: EquilibriumProblem) -> BoundFlow:
        """The flow on a problem."""
        return ScaledFlow(ForwardBackwardFlow(step=self.step).bind(problem), 1 / self.step)


class ScaledFlow(BoundFlow):
    """s' = a·(T(s) − s): a flow at another constant speed, with the same steady states, rates and steps scaled.

    Attributes:
        inner: the flow at speed one.
        speed: a > 0.
    """

    def __init__(self, inner: BoundFlow, speed: float):
        super().__init__(inner.problem)
        self.inner = inner
        self.speed = checks.positive_number("speed", speed)

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        return self.speed * self.inner(t, state)

    def init(self, z: Tensor) -> Tensor:
        return self.inner.init(z)

    def read(self, state: Tensor) -> Tensor:
        return self.inner.read(state)

    def jacobian(self, state: Tensor, t: Time = 0.0) -> Tensor:
        return self.speed * self.inner.jacobian(state, t)

    def jvp(self, state: Tensor, direction: Tensor, t: Time = 0.0) -> Tensor:
        return self.speed * self.inner.jvp(state, direction, t)

    def on(self, problem: EquilibriumProblem) -> Self:
        flow = super().on(problem)
        flow.inner = self.inner.on(problem)
        return flow

    @property
    def euler_step(self) -> StepChoice:
        choice = self.inner.euler_step
        return StepChoice(step=choice.step / self.speed, factor=choice.factor)

    @property
    def rate(self) -> float | None:
        return None if self.inner.rate is None else self.speed * self.inner.rate

    @property
    def contraction_rate(self) -> float | None:
        rate = self.inner.contraction_rate
        return None if rate is None else self.speed * rate
