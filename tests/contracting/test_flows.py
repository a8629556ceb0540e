"""Flows: steady states are equilibria, Jacobians are derivatives, Euler with unit step is the splitting."""

from __future__ import annotations

import pytest
import torch

from contracting.activations import ADMISSIBLE, Tanh
from contracting.errors import InputError, PreconditionError
from contracting.flows import FiringRate, Flow, ForwardBackwardFlow, Hopfield, PeacemanRachfordFlow, as_flow
from contracting.solve import Stop
from equilibrium.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from tests.problems import monotone_weight, planted

STEPS = torch.tensor([0.2, 0.5, 0.1, 0.3, 0.4], dtype=torch.float64)
FLOWS: list[Flow] = [
    FiringRate(),
    Hopfield(),
    ForwardBackwardFlow(),
    ForwardBackwardFlow(step=STEPS),
    PeacemanRachfordFlow(),
    PeacemanRachfordFlow(step=2.5),
    PeacemanRachfordFlow(step=STEPS),
]
each_flow = pytest.mark.parametrize("flow", FLOWS, ids=lambda f: type(f).__name__)


@each_flow
@pytest.mark.parametrize("activation", ADMISSIBLE, ids=lambda a: type(a).__name__)
def test_equilibria_are_steady_states(flow: Flow, activation: object) -> None:
    W, lam = monotone_weight(5, seed=1, skew=2.0, spread=1.0)
    problem, z = planted(activation, W, lam, batch=4, seed=2)  # type: ignore[arg-type]
    field = flow.bind(problem)
    state = field.init(z)
    assert field(0.0, state).abs().max() < 1e-11
    assert torch.allclose(field.read(state), z, atol=1e-12)


@each_flow
def test_jacobian_is_the_derivative(flow: Flow) -> None:
    W, lam = monotone_weight(5, seed=3, skew=2.0)
    problem, z = planted(Tanh(), W, lam, batch=3, seed=4)
    field = flow.bind(problem)
    state = field.init(z) + 0.1
    jacobian = field.jacobian(state)
    for row in range(3):
        single = flow.bind(problem.rows(torch.tensor([row])))
        exact = torch.autograd.functional.jacobian(lambda s, f=single: f(0.0, s), state[row : row + 1])
        assert torch.allclose(jacobian[row], exact.reshape(5, 5), atol=1e-10)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("flow", "method", "time_step"),
    [
        (ForwardBackwardFlow(), ForwardBackward(), 1.0),
        (PeacemanRachfordFlow(), PeacemanRachford(), 1.0),
        (PeacemanRachfordFlow(), DouglasRachford(), 0.5),
        (PeacemanRachfordFlow(), DouglasRachford(relaxation=1.6), 0.8),
    ],
    ids=str,
)
def test_splittings_are_euler_steps(flow: Flow, method: object, time_step: float) -> None:
    W, lam = monotone_weight(5, seed=5, skew=2.0)
    problem, _ = planted(Tanh(), W, lam, batch=3, seed=6)
    field = flow.bind(problem)
    state = torch.randn(3, 5, dtype=torch.float64)
    iteration = method.bind(problem, Stop())  # type: ignore[attr-defined]
    assert torch.allclose(iteration.step((state,))[0], state + time_step * field(0.0, state), atol=1e-13)


def test_peaceman_rachford_is_adi_on_the_inclusion() -> None:
    """With step h = 2α, in coordinates z = (I + αA)⁻¹(u + αq): (I + αA)z⁺ = … of the alternating directions."""
    W, lam = monotone_weight(5, seed=7, skew=2.0)
    problem, _ = planted(Tanh(), W, lam, batch=3, seed=8)
    alpha, identity = 0.3, torch.eye(5, dtype=torch.float64)
    A = identity - W
    field = PeacemanRachfordFlow(step=alpha).bind(problem)
    u = torch.randn(3, 5, dtype=torch.float64)
    # half a step implicit in ∂f, explicit in A; then half a step the other way round
    p = problem.activation.prox(u, alpha)
    w = p + (p - u)
    z = torch.linalg.solve(identity + alpha * A, (w + alpha * problem.q).mT).mT
    assert torch.allclose(field.map(u), z - alpha * (z @ A.mT - problem.q), atol=1e-12)


@pytest.mark.parametrize("flow", [ForwardBackwardFlow(), PeacemanRachfordFlow()], ids=lambda f: type(f).__name__)
def test_contracting_flows_contract_at_their_proved_rate(flow: Flow) -> None:
    W, lam = monotone_weight(5, seed=9, skew=3.0, spread=1.0)
    problem, _ = planted(Tanh(), W, lam, batch=400, seed=10)
    field = flow.bind(problem)
    assert field.rate is not None and 0 < field.rate < 1 and problem.metric is not None
    jacobian = field.jacobian(3 * torch.randn(400, 5, dtype=torch.float64))
    assert problem.metric.matrix_measure(jacobian).max() <= -field.rate + 1e-10


def test_condition_1_does_not_make_the_firing_rate_flow_contract() -> None:
    """The known trap: W = 10·rotation has m = 1, yet the flow expands in Λ, and no contraction rate is claimed."""
    W = torch.tensor([[0.0, 10.0], [-10.0, 0.0]], dtype=torch.float64)
    problem, _ = planted(Tanh(), W, torch.ones(2, dtype=torch.float64), batch=1, seed=0)
    assert problem.operator is not None and problem.operator.bounds.monotonicity == pytest.approx(1)
    assert problem.metric is not None
    J = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert problem.metric.matrix_measure(J[:, None] * W - torch.eye(2, dtype=torch.float64)) > 3
    # what is proved is convergence for constant input (Lur'e–Postnikov), at half of min(1, m)
    assert FiringRate().bind(problem).rate == pytest.approx(0.5)


@each_flow
def test_unproved_flows_say_so(flow: Flow) -> None:
    W = 2 * torch.eye(5, dtype=torch.float64)
    problem, _ = planted(Tanh(), W, None, batch=1, seed=0)
    automatic = getattr(flow, "step", 1.0) is None
    if automatic:
        with pytest.raises(PreconditionError, match="no metric is claimed"):
            flow.bind(problem)
        return
    if isinstance(flow, PeacemanRachfordFlow):
        return  # I + α(I − W) may be singular here, which has its own refusal
    field = flow.bind(problem)
    assert field.rate is None
    with pytest.raises(PreconditionError, match="no metric is claimed"):
        _ = field.euler_step


def test_flows_may_be_named_by_class() -> None:
    assert as_flow(FiringRate) == FiringRate()
    with pytest.raises(InputError, match="flow must be a flow"):
        as_flow("firing-rate")  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), torch.tensor([1.0, -1.0]), "1"])
@pytest.mark.parametrize("kind", [ForwardBackwardFlow, PeacemanRachfordFlow, ForwardBackward, PeacemanRachford])
def test_bad_steps_are_refused(kind: type, step: object) -> None:
    with pytest.raises(InputError, match="step"):
        kind(step=step)


@pytest.mark.parametrize("relaxation", [0.0, 2.0, -1.0])
def test_bad_relaxation_is_refused(relaxation: float) -> None:
    with pytest.raises(InputError, match="relaxation"):
        DouglasRachford(relaxation=relaxation)
