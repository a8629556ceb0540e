"""Flows: steady states are equilibria, Jacobians are derivatives, Euler with unit step is the splitting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from contracting.activations.catalogue import ADMISSIBLE, Tanh
from contracting.certificates import certify
from contracting.errors import InputError, PreconditionError
from contracting.flows.base import Flow, as_flow
from contracting.flows.fields import InputFlow, LinearFlow, NeuralFlow, VectorField
from contracting.flows.network import BoundFiringRate, FiringRate, Hopfield
from contracting.flows.speed import DouglasRachfordFlow, ScaledFlow, TimeScaledForwardBackward
from contracting.flows.splitting import BoundPeacemanRachford, ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.integrators import ExplicitEuler
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.simulation.sampled import sampled_rate
from contracting.simulation.trajectories import simulate
from contracting.solvers.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from contracting.types import Time
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
    DouglasRachfordFlow(),
    DouglasRachfordFlow(step=STEPS),
    TimeScaledForwardBackward(step=0.1),
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


@pytest.mark.parametrize(
    ("flow", "method", "time_step"),
    [
        (ForwardBackwardFlow(), ForwardBackward(), 1.0),
        (PeacemanRachfordFlow(step=0.4), PeacemanRachford(step=0.4), 1.0),
        (PeacemanRachfordFlow(step=0.4), DouglasRachford(step=0.4), 0.5),
        (PeacemanRachfordFlow(step=0.4), DouglasRachford(step=0.4, relaxation=1.6), 0.8),
        (DouglasRachfordFlow(step=0.4), DouglasRachford(step=0.4), 1.0),
        (TimeScaledForwardBackward(step=0.2), ForwardBackward(step=0.2), 0.2),
    ],
    ids=str,
)
def test_splittings_are_euler_steps(flow: Flow, method: object, time_step: float) -> None:
    W, lam = monotone_weight(5, seed=5, skew=2.0)
    problem, _ = planted(Tanh(), W, lam, batch=3, seed=6)
    field = flow.bind(problem)
    state = torch.randn(3, 5, dtype=torch.float64)
    iteration = method.bind(problem, Stop())  # type: ignore[attr-defined]
    start = iteration.init(state)
    moved = iteration.step(start._replace(s=state) if hasattr(start, "s") else (state,))[0]
    assert torch.allclose(moved, state + time_step * field(0.0, state), atol=1e-13)


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


@pytest.mark.parametrize(
    "flow",
    [
        ForwardBackwardFlow(), ForwardBackwardFlow(step=0.05), PeacemanRachfordFlow(), DouglasRachfordFlow(),
        TimeScaledForwardBackward(step=0.05),
    ],
    ids=str,
)  # fmt: skip
def test_contracting_flows_contract_at_their_proved_rate(flow: Flow) -> None:
    W, lam = monotone_weight(5, seed=9, skew=3.0, spread=1.0)
    problem, _ = planted(Tanh(), W, lam, batch=400, seed=10)
    field = flow.bind(problem)
    assert field.rate is not None and 0 < field.rate < 1 and problem.metric is not None
    assert field.rate == field.contraction_rate
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
        with pytest.raises(PreconditionError, match=r"\bSemismoothNewton\(\)"):
            flow.bind(problem)
        return
    if isinstance(flow, (PeacemanRachfordFlow, DouglasRachfordFlow)):
        return  # I + α(I − W) may be singular here, which has its own refusal
    field = flow.bind(problem)
    assert field.rate is None and field.contraction_rate is None
    with pytest.raises(PreconditionError, match=r"\bSemismoothNewton\(\)"):
        _ = field.euler_step


def test_flows_may_be_named_by_class() -> None:
    assert as_flow(FiringRate) == FiringRate()
    with pytest.raises(InputError, match=r"\bflow\b"):
        as_flow("firing-rate")  # type: ignore[arg-type]


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), torch.tensor([1.0, -1.0]), "1"])
@pytest.mark.parametrize(
    "kind",
    [
        ForwardBackwardFlow, PeacemanRachfordFlow, DouglasRachfordFlow, TimeScaledForwardBackward, ForwardBackward,
        PeacemanRachford,
    ],
)  # fmt: skip
def test_bad_steps_are_refused(kind: type, step: object) -> None:
    with pytest.raises(InputError, match=r"\bstep\b"):
        kind(step=step)


@pytest.mark.parametrize("relaxation", [0.0, 2.0, -1.0])
def test_bad_relaxation_is_refused(relaxation: float) -> None:
    with pytest.raises(InputError, match=r"\brelaxation\b"):
        DouglasRachford(relaxation=relaxation)


@each_flow
@pytest.mark.parametrize("bound_under_no_grad", [False, True])
def test_gradients_do_not_depend_on_what_ran_before_without_a_graph(flow: Flow, bound_under_no_grad: bool) -> None:
    """Looked at under no_grad first, a flow keeps its values, and none of its gradients is lost."""
    W, lam = monotone_weight(5, seed=5, skew=2.0)
    state = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def gradients(*, looked_at: bool, moved: bool) -> tuple[torch.Tensor, ...]:
        weight = W.clone().requires_grad_()
        problem, _ = planted(Tanh(), W, lam, batch=3, seed=6)
        q = problem.q.clone().requires_grad_()
        with torch.set_grad_enabled(not (looked_at and bound_under_no_grad)):
            field = flow.bind(replace(problem, linear=Dense(weight), q=torch.zeros_like(q) if moved else q))
        if moved:
            field = field.with_input(q)
        if looked_at:
            with torch.no_grad():
                field(0.0, state)
        return torch.autograd.grad(field(0.0, state).square().sum(), (weight, q))

    for moved in (False, True):
        reference = gradients(looked_at=False, moved=moved)
        assert all(float(g.abs().sum()) > 0 for g in reference)
        for found, expected in zip(gradients(looked_at=True, moved=moved), reference, strict=True):
            assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("flow", [FiringRate(), Hopfield()], ids=lambda f: type(f).__name__)
def test_the_contraction_rate_of_the_firing_rate_flow_holds_for_all_slopes(flow: Flow) -> None:
    """½(1 + m − w) in Λ, over all vertices; attained by the rotation."""
    W, lam = monotone_weight(5, seed=11, skew=1.0, spread=1.0)
    problem, _ = planted(Tanh(), W, lam, batch=1, seed=12)
    rate = flow.bind(problem).contraction_rate
    identity = torch.eye(5, dtype=torch.float64)
    J = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 5)
    jacobians = (J[:, :, None] * W if isinstance(flow, FiringRate) else W * J[:, None, :]) - identity
    assert problem.metric is not None and rate is not None
    assert problem.metric.matrix_measure(jacobians).max() <= -rate + 1e-10
    for k in (1.0, 1.9, 2.01, 4.0, 10.0):
        W = torch.tensor([[0.0, k], [-k, 0.0]], dtype=torch.float64)
        problem, _ = planted(Tanh(), W, torch.ones(2, dtype=torch.float64), batch=1, seed=0)
        assert flow.bind(problem).contraction_rate == pytest.approx(1 - k / 2, abs=1e-12)


def test_the_time_scaled_flow_runs_from_the_firing_rate_flow_to_the_inclusion() -> None:
    W, lam = monotone_weight(5, seed=13, skew=2.0, spread=0.5, monotonicity=0.6)
    problem, _ = planted(Tanh(), W, lam, batch=3, seed=14)
    state = torch.tanh(torch.randn(3, 5, dtype=torch.float64))
    one = TimeScaledForwardBackward(step=1.0).bind(problem)
    firing = FiringRate().bind(problem)
    assert torch.allclose(one(0.0, state), firing(0.0, state), atol=1e-14)
    assert one.contraction_rate == pytest.approx(firing.contraction_rate)
    small = TimeScaledForwardBackward(step=1e-6).bind(problem)
    # −Az + q − f'(z), with f'(z) = artanh z − z
    inclusion = problem.preactivation(state) - state - (torch.atanh(state) - state)
    assert torch.allclose(small(0.0, state), inclusion, atol=1e-3)
    assert small.contraction_rate == pytest.approx(0.6, abs=1e-4)  # m
    with pytest.raises(InputError, match=r"\bstep\b"):
        TimeScaledForwardBackward(step=STEPS)  # type: ignore[arg-type]


def test_scaled_flows_are_solved_like_others() -> None:
    W, lam = monotone_weight(5, seed=15, skew=2.0)
    problem, z = planted(Tanh(), W, lam, batch=3, seed=16)
    for flow in (DouglasRachfordFlow(), TimeScaledForwardBackward(step=0.1)):
        assert isinstance(flow.bind(problem), ScaledFlow)
        assert torch.allclose(solve(problem, ExplicitEuler(flow=flow)).z, z, atol=1e-6)


def test_linear_flows_know_their_jacobian_and_rate() -> None:
    A = torch.tensor([[-1.0, 2.0], [-1.0, -3.0]], dtype=torch.float64)
    flow = LinearFlow(A, torch.randn(3, 2, dtype=torch.float64))
    state, direction = torch.randn(2, 3, 2, dtype=torch.float64)
    assert torch.equal(flow.jacobian(state), A.expand(3, 2, 2))
    assert torch.allclose(VectorField.jacobian(flow, state), flow.jacobian(state))
    assert torch.allclose(flow.jvp(state, direction), direction @ A.mT)
    metric = WeightedL2(torch.ones(2, dtype=torch.float64))
    assert float(metric.matrix_measure(flow.jacobian(state)).max()) == pytest.approx(
        float(torch.linalg.eigvalsh((A + A.mT) / 2).max())
    )
    with pytest.raises(InputError, match=r"\bmatrix\b"):
        LinearFlow(torch.ones(2, 3))
    with pytest.raises(InputError, match=r"\boffset\b"):
        LinearFlow(A, torch.ones(3, dtype=torch.float64))


def test_neural_flows_have_jacobians_by_autograd() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()

    def field(t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return net(torch.cat([s, t.expand(len(s), 1)], -1)) - s

    flow, state = NeuralFlow(field), torch.randn(5, 3, dtype=torch.float64)
    direction, times = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 1, dtype=torch.float64)
    for t in (0.3, times):
        jacobian = flow.jacobian(state, t)
        for row in range(5):
            moment = times[row : row + 1] if isinstance(t, torch.Tensor) else t
            exact = torch.autograd.functional.jacobian(lambda s, m=moment: flow(m, s[None])[0], state[row])
            assert torch.allclose(jacobian[row], exact, atol=1e-12)  # type: ignore[arg-type]
        assert torch.allclose(flow.jvp(state, direction, t), (jacobian @ direction[:, :, None])[:, :, 0], atol=1e-12)
    with torch.no_grad():
        assert not flow.jacobian(state).requires_grad and not flow.jvp(state, direction).requires_grad
    # differentiable: in the state and in the weights
    assert torch.autograd.gradcheck(lambda s: flow.jacobian(s), state[:2].requires_grad_())
    assert torch.autograd.grad(flow.jacobian(state).sum(), net[0].weight)[0].abs().sum() > 0
    with pytest.raises(InputError, match=r"\bmodule\b"):
        NeuralFlow(3)  # type: ignore[arg-type]


def test_a_field_that_ignores_its_state_has_no_jacobian() -> None:
    flow, state = NeuralFlow(lambda t, s: torch.ones_like(s) * t), torch.zeros(2, 3, dtype=torch.float64)
    assert not flow.jacobian(state).any() and not flow.jvp(state, state + 1).any()


class Crowd(torch.nn.Module):
    """Modules in which the rows of a batch see each other, or that draw at random."""

    def __init__(self, inside: torch.nn.Module | None):
        super().__init__()
        self.inside = inside

    def forward(self, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        if self.inside is None:
            return -s - 0.1 * s.detach().mean(0)
        return self.inside(s) - s


@pytest.mark.parametrize(
    ("inside", "mends"),
    [
        (torch.nn.BatchNorm1d(3), True), (torch.nn.BatchNorm1d(3, track_running_stats=False), False),
        (torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)), True),
        (torch.nn.Dropout(0.5), True), (torch.nn.Softmax(dim=0), False), (None, False),
    ],
    ids=["norm", "norm without memory", "inside", "dropout", "softmax over rows", "detached mean"],
)  # fmt: skip
def test_rows_that_see_each_other_have_no_rate(inside: torch.nn.Module | None, mends: bool) -> None:
    torch.manual_seed(0)
    module = Crowd(inside).double().train()
    states, metric = torch.randn(9, 3, dtype=torch.float64), WeightedL2.identity(3, dtype=torch.float64)
    calls = (
        lambda: sampled_rate(NeuralFlow(module), states, metric),
        lambda: simulate(NeuralFlow(module), states, torch.tensor([0.0, 0.1])),
    )
    for call in calls:
        with pytest.raises(InputError, match=r"\brows\b"):
            call()
    module.eval()
    for call in calls:
        if mends:
            call()
        else:
            with pytest.raises(InputError, match=r"\brows\b"):
                call()


@pytest.mark.parametrize(
    ("inside", "rows"),
    [
        (torch.nn.BatchNorm1d(3), 2), (torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8)), 2),
        (torch.nn.Dropout(0.5), 1), (None, 2),
    ],
    ids=["norm", "inside", "dropout", "detached mean"],
)  # fmt: skip
def test_one_or_two_rows_are_a_crowd_too(inside: torch.nn.Module | None, rows: int) -> None:
    """Batch normalisation maps two rows to −1 and 1, however far apart they are."""
    torch.manual_seed(0)
    if isinstance(inside, torch.nn.Sequential):
        inside = torch.nn.Sequential(*inside, torch.nn.Linear(8, 3))
    module, states = Crowd(inside).double().train(), torch.randn(rows, 3, dtype=torch.float64)
    with pytest.raises(InputError, match="rows"):
        sampled_rate(NeuralFlow(module), states, WeightedL2.identity(3, dtype=torch.float64))


def test_layer_normalisation_and_row_parameters_are_no_crowd() -> None:
    states, metric = torch.randn(9, 3, dtype=torch.float64), WeightedL2.identity(3, dtype=torch.float64)
    rates = torch.linspace(1, 2, 9, dtype=torch.float64)[:, None]
    normalised = torch.nn.LayerNorm(3).double()
    for field in (lambda t, s: normalised(s) - s, lambda t, s: -rates * s, lambda t, s: 0 * s):
        flow = NeuralFlow(field)
        assert sampled_rate(flow, states, metric).measures.shape == (9,)
        assert bool(simulate(flow, states, torch.tensor([0.0, 0.1])).complete.all())


def test_a_flow_with_a_field_of_its_own_is_not_certified_as_its_parent() -> None:
    """It would be certified as something that it is not: three times the map expands here."""
    problem, _ = planted(Tanh(), 0.5 * torch.eye(2, dtype=torch.float64), None, batch=1, seed=0)

    class Louder(BoundFiringRate):
        def map(self, state: torch.Tensor) -> torch.Tensor:
            return 3 * super().map(state)

    class Steeper(LinearFlow):
        def __call__(self, t: Time, state: torch.Tensor) -> torch.Tensor:
            return -2 * super().__call__(t, state)

    class Named(BoundFiringRate):
        """The same flow under another name."""

    assert certify(Named(problem)).rate == pytest.approx(certify(FiringRate().bind(problem)).rate)
    for flow in (Louder(problem), ScaledFlow(Louder(problem), 2.0)):
        with pytest.raises(InputError, match=r"\b(flow|certificate)\b"):
            certify(flow)
    assert certify(Steeper(-torch.eye(2, dtype=torch.float64))).rate == pytest.approx(-2, abs=1e-3)  # as it was read


def test_an_own_equilibrium_model_is_a_flow_under_its_input() -> None:
    """z = tanh(Wz + Ux) as f(z, x), beside the same as a problem."""
    W, lam = monotone_weight(5, seed=3, skew=2.0)
    problem, z = planted(Tanh(), W, lam, batch=3, seed=4)
    flow = InputFlow(lambda s, x: torch.tanh(s @ W.mT + x), problem.q)
    firing, states = FiringRate().bind(problem), torch.randn(3, 5, dtype=torch.float64)
    assert flow(0.0, z).abs().max() < 1e-11
    assert torch.allclose(flow(0.0, states), firing(0.0, states), atol=1e-14)
    metric = WeightedL2(lam)
    assert sampled_rate(flow, states, metric).rate == pytest.approx(sampled_rate(firing, states, metric).rate)
    times = torch.tensor([0.0, 30.0])
    assert torch.allclose(simulate(flow, states, times).states[-1], z, atol=1e-5)
    one = InputFlow(torch.nn.Bilinear(2, 1, 2, bias=False).double(), torch.ones(1, dtype=torch.float64), leak=0.0)
    weight = one.module.weight[:, :, 0]  # type: ignore[union-attr]
    assert torch.allclose(one(0.0, states[:, :2]), states[:, :2] @ weight.mT)
    with pytest.raises(InputError, match=r"\bx\b"):
        flow(0.0, states[:2])
    for x in (3.0, torch.ones(2, 3, 4), torch.arange(3)):
        with pytest.raises(InputError, match=r"\bx\b"):
            InputFlow(lambda s, x: s, x)  # type: ignore[arg-type]
    assert certify(flow).rate == pytest.approx(certify(firing).rate, abs=1e-3)


@pytest.mark.parametrize("method", [ForwardBackward, PeacemanRachford, DouglasRachford])
def test_a_diagonal_step_must_fit_the_problem(method: type) -> None:
    W, lam = monotone_weight(5, seed=11)
    problem, z = planted(Tanh(), W, lam, batch=2, seed=12)
    with pytest.raises(InputError, match=r"\bstep\b"):
        solve(problem, method(step=torch.ones(3, dtype=torch.float64)))
    with pytest.raises(InputError, match=r"\bstep\b"):
        solve(problem, method(step=torch.ones(5)))
    scalar = solve(problem, method(step=torch.tensor(0.2, dtype=torch.float64)))
    assert torch.equal(scalar.z, solve(problem, method(step=0.2)).z)
    assert torch.allclose(scalar.z, z, atol=1e-6)


def held_flow() -> tuple[EquilibriumProblem, BoundPeacemanRachford, torch.Tensor]:
    W, lam = monotone_weight(5, seed=1, skew=2.0)
    problem, z = planted(Tanh(), W, lam, batch=4, seed=2)
    return problem, PeacemanRachfordFlow(step=0.7).bind(problem), z


@pytest.mark.parametrize("which", ["q", "W"])
def test_a_held_flow_follows_changes_in_place(which: str) -> None:
    problem, flow, z = held_flow()
    before = flow(0.0, z)
    (problem.q if which == "q" else problem.linear.to_dense()).mul_(0.5)
    after = flow(0.0, z)
    assert not torch.allclose(after, before)
    assert torch.equal(after, PeacemanRachfordFlow(step=0.7).bind(problem)(0.0, z))


def test_a_held_flow_can_be_trained_through() -> None:
    problem, _, z = held_flow()
    W = problem.linear.to_dense().clone().requires_grad_()
    flow = PeacemanRachfordFlow(step=0.7).bind(replace(problem, linear=Dense(W)))
    losses = []
    optimiser = torch.optim.SGD([W], lr=0.01)
    for _ in range(3):
        loss = flow(0.0, z + 1).square().sum()
        fresh = PeacemanRachfordFlow(step=0.7).bind(replace(problem, linear=Dense(W)))(0.0, z + 1).square().sum()
        assert torch.equal(loss, fresh)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("module", [torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2)), lambda s: -s])
def test_a_module_without_time_is_a_field_without_time(module) -> None:
    state = torch.randn(3, 2)
    assert torch.equal(NeuralFlow(module)(0.0, state), module(state))
    assert torch.equal(NeuralFlow(lambda t, s: module(s)).jacobian(state), NeuralFlow(module).jacobian(state))
    with pytest.raises(InputError, match=r"\bmodule\b"):
        InputFlow(module, state)
    for wrong in (lambda: 0, lambda a, b, c: a):
        with pytest.raises(InputError, match=r"\bmodule\b"):
            NeuralFlow(wrong)
    assert torch.equal(NeuralFlow(lambda t, s, scale=2.0: scale * s)(0.0, state), 2 * state)
    assert torch.equal(NeuralFlow(torch.mul)(2.0, state), 2 * state)  # compiled in C, says nothing of its arguments
