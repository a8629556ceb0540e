"""What methods that follow a flow have in common: the flow among their settings, and how its states are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from contracting import checks
from contracting.flows.base import Flow, SteadyFlow, as_flow
from contracting.flows.network import FiringRate
from contracting.flows.steady import followed
from contracting.loop.method import Family, Iteration, Method, State
from contracting.problem import Problem


@dataclass(frozen=True, kw_only=True)
class FlowMethod(Method):
    """A method that follows a flow s' = T(s) − s to its steady state.

    Args:
        flow: which flow of z = σ(Wz + q), such as ``FiringRate()`` or ``PeacemanRachfordFlow``; where the problem is a
            field, that is followed itself.
    """

    flow: Flow | type[Flow] | None = field(default_factory=FiringRate)
    family: ClassVar[Family] = Family.INTEGRATOR

    def __post_init__(self) -> None:
        if self.flow is not None:
            object.__setattr__(self, "flow", as_flow(self.flow))

    def flow_on(self, problem: Problem) -> SteadyFlow:
        """The flow on a problem.

        Raises:
            PreconditionError: if another flow than the default one was asked for, and the problem is a field.
        """
        flow = as_flow(FiringRate() if self.flow is None else self.flow)
        return followed(problem, flow, named=not isinstance(flow, FiringRate))


@dataclass(frozen=True, kw_only=True)
class TimeStepping(FlowMethod):
    """An integrator with a time step among its settings.

    Args:
        step: h > 0 in units of the flow's time constant; what None means is the method's own.
    """

    step: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step is not None:
            checks.positive_number("step", self.step)


class FlowIteration(Iteration):
    """The iteration of a method that follows a flow: the state begins with that of the flow."""

    def __init__(self, flow: SteadyFlow):
        self.flow = flow

    def init(self, z0: Tensor) -> State:
        return (self.flow.init(z0),)

    def read(self, state: State) -> Tensor:
        return self.flow.read(state[0])


class ExplicitIteration(FlowIteration):
    """That of an integrator whose step costs a few evaluations of the flow, no more than a look may cost."""

    def check_after(self, state: State, taken: int) -> int:
        """An eighth of the steps so far where a look costs several evaluations: few looks, and few steps too many."""
        return max(self.check_every, taken // 8) if self.flow.problem.costly else self.check_every
