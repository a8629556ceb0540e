"""The contract of flows: all of the library's keep it, a small one of one's own does, and broken ones do not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracting.contracts import FlowContract
from contracting.errors import InputError, PreconditionError
from contracting.flows.base import BoundFlow, Flow
from contracting.flows.network import FiringRate, Hopfield
from contracting.flows.speed import DouglasRachfordFlow, ScaledFlow, TimeScaledForwardBackward
from contracting.flows.splitting import ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.integrators import DormandPrince, ExplicitEuler
from contracting.loop.run import solve
from contracting.problem import EquilibriumProblem
from contracting.solvers.newton_krylov import NewtonKrylov
from contracting.types import Time

STEPS = torch.tensor([0.2, 0.5, 0.1, 0.3, 0.4], dtype=torch.float64)


def suite(flow: Flow | type[Flow], **others: object) -> type[FlowContract]:
    return type(f"Test{type(flow).__name__}", (FlowContract,), {"flow": lambda self: flow, **others})


class Damped(BoundFlow):
    """The least that a flow may bring: s' = ½(σ(Ws + q) − s), by its map."""

    def map(self, state: Tensor) -> Tensor:
        return 0.5 * (state + self.problem.map(state))


class Cubic(BoundFlow):
    """By its field, which is no map less the state: s' = r + r³ with r = σ(Ws + q) − s."""

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        r = self.problem.map(state) - state
        return r + r**3


TestFiringRate = suite(FiringRate())
TestHopfield = suite(Hopfield())
TestForwardBackward = suite(ForwardBackwardFlow())
TestPeacemanRachford = suite(PeacemanRachfordFlow())
TestPeacemanRachfordGivenStep = suite(PeacemanRachfordFlow(step=2.5))
TestDouglasRachford = suite(DouglasRachfordFlow())
TestTimeScaled = suite(TimeScaledForwardBackward(step=0.1))
ONE_DTYPE = {"test_the_dtype_is_that_of_the_problem": None}  # of the step of every neuron
TestForwardBackwardDiagonal = suite(ForwardBackwardFlow(step=STEPS), **ONE_DTYPE)
TestPeacemanRachfordDiagonal = suite(PeacemanRachfordFlow(step=STEPS), **ONE_DTYPE)
TestDouglasRachfordDiagonal = suite(DouglasRachfordFlow(step=STEPS), **ONE_DTYPE)
TestOwnMap = suite(Damped)
TestOwnField = suite(Cubic)


def test_a_flow_that_brings_nothing_is_refused() -> None:
    class Nothing(BoundFlow):
        pass

    problem, _ = suite(FiringRate())().known()
    with pytest.raises(InputError, match=r"\bmap\b"):
        Nothing(problem)


def test_nothing_is_proved_of_an_own_flow() -> None:
    problem, z = suite(FiringRate())().known()
    flow = Damped(problem)
    assert flow.rate is None and flow.contraction_rate is None
    with pytest.raises(PreconditionError, match=r"\bstep\b"):
        solve(problem, ExplicitEuler(flow=Damped))
    for method in (ExplicitEuler(flow=Damped, step=0.5), DormandPrince(flow=Cubic), NewtonKrylov(flow=Cubic)):
        assert torch.allclose(solve(problem, method).z, z, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- broken ones


class Elsewhere(Damped):
    def read(self, state: Tensor) -> Tensor:
        return 2 * state


class WrongJacobian(Damped):
    def jacobian(self, state: Tensor, t: Time = 0.0) -> Tensor:
        return self.problem.jacobian(state)


class WrongAction(Damped):
    def jvp(self, state: Tensor, direction: Tensor, t: Time = 0.0) -> Tensor:
        return -direction


class Hidden(Damped):
    def map(self, state: Tensor) -> Tensor:
        return super().map(state.detach()).detach()


class Crowd(Damped):
    def map(self, state: Tensor) -> Tensor:
        r = super().map(state) - state
        return state + r + r.mean(0)


class Stale(Damped):
    def __init__(self, problem: EquilibriumProblem):
        super().__init__(problem)
        self.first = problem

    def map(self, state: Tensor) -> Tensor:
        return 0.5 * (state + self.first.map(state))


class Writes(Damped):
    def map(self, state: Tensor) -> Tensor:
        found = super().map(state)
        state.mul_(1.5)
        return found


class Boasts(Damped):
    @property
    def rate(self) -> float:
        return 10.0


class Contracts(Damped):
    @property
    def contraction_rate(self) -> float:
        return 10.0


class HalfMoved(ScaledFlow):
    """The flow at another speed as it was: ``on`` left the inner flow behind."""

    def __init__(self, problem: EquilibriumProblem):
        super().__init__(Damped(problem), 2.0)

    on = BoundFlow.on


class Double(Damped):
    def map(self, state: Tensor) -> Tensor:
        return super().map(state).double()


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (Elsewhere, "steady_states"), (WrongJacobian, "jacobians"), (WrongAction, "jacobians"),
        (Hidden, "gradients"), (Crowd, "rows"), (Stale, "another_input"), (HalfMoved, "another_input"),
        (Writes, "the_field"), (Boasts, "no_rate"), (Contracts, "no_rate"), (Double, "the_dtype"),
    ],
)  # fmt: skip
def test_broken_flows_are_found_out(broken: type[BoundFlow], test: str) -> None:
    case = suite(broken)()
    (name,) = (name for name in dir(case) if name.startswith(f"test_{test}"))
    with pytest.raises(AssertionError):
        getattr(case, name)()
