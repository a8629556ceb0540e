"""Lur'e systems that run: layers by substitution, full D by a solve, the steady state as an equilibrium."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from contracting import (
    Blockwise,
    FiringRate,
    Hopfield,
    InputError,
    PeacemanRachford,
    PreconditionError,
    ReLU,
    SemismoothNewton,
    Stop,
    Tanh,
    VectorField,
    WeightedL2,
    find_metric,
    solve,
)  # fmt: skip
from contracting.flows.fields import LinearFlow
from contracting.lure.flow import LureFlow
from contracting.maps.dense import Dense
from contracting.problem import EquilibriumProblem

EXACT = Stop(rtol=1e-13, atol=1e-14)
N, M, K, ROWS = 3, 5, 2, 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flow(D: Tensor | None = None, **changes: Any) -> LureFlow:
    given: dict[str, Any] = {
        "A": drawn(N, N) - 3 * torch.eye(N), "B": drawn(N, M, seed=1), "C": drawn(M, N, seed=2), "D": D,
        "B2": drawn(N, K, seed=3), "D12": drawn(M, K, seed=4), "C2": drawn(2, N, seed=5), "D21": drawn(2, M, seed=6),
        "D22": drawn(2, K, seed=7), "e": drawn(N, seed=8), "q": drawn(ROWS, M, seed=9), "u": drawn(K, seed=10),
        "activation": Tanh(), "stop": EXACT,
    }  # fmt: skip
    return LureFlow(**{**given, **changes})


def full() -> Tensor:
    """Well-posed in the unit metric, neither triangular nor symmetric."""
    X = drawn(M, M, seed=11)
    return 0.5 * torch.eye(M) - X @ X.mT + 2 * (X - X.mT)


def lower() -> Tensor:
    return 3 * drawn(M, M, seed=12).tril(-1)


LOOPS = {"none": None, "lower": lower(), "full": full()}


@pytest.mark.parametrize("name", LOOPS)
def test_the_field_and_the_output_are_what_the_equations_say(name: str) -> None:
    f, s = flow(LOOPS[name]), drawn(ROWS, N, seed=20)
    w, v, u = f.activations(s), f.preactivations(s), f.u
    D = torch.zeros(M, M).double() if f.D is None else f.D
    assert torch.allclose(w, torch.tanh(v), atol=1e-12)
    assert torch.allclose(v, s @ f.C.mT + w @ D.mT + u @ f.D12.mT + f.q, atol=1e-12)
    assert torch.allclose(f(0.0, s), s @ f.A.mT + w @ f.B.mT + u @ f.B2.mT + f.e, atol=1e-12)
    assert torch.allclose(f.output(s), s @ f.C2.mT + w @ f.D21.mT + u @ f.D22.mT, atol=1e-12)


@pytest.mark.parametrize("name", LOOPS)
def test_jacobians_are_those_of_autograd_and_of_the_matrices(name: str) -> None:
    f, s = flow(LOOPS[name]), drawn(ROWS, N, seed=20)
    J = f.jacobian(s)
    assert torch.allclose(J, VectorField.jacobian(f, s), atol=1e-9)
    assert torch.allclose(J, f.system().jacobians(1 - f.activations(s) ** 2), atol=1e-10)
    d = drawn(ROWS, N, seed=21)
    assert torch.allclose(f.jvp(s, d), (J @ d[..., None])[..., 0], atol=1e-12)


def test_derivatives_reach_every_tensor() -> None:
    names = ("A", "B", "C", "D", "B2", "D12", "C2", "D21", "D22", "e", "q", "u")
    f, s = flow(full()), drawn(2, N, seed=20)
    tensors = [getattr(f, name)[: 2 if name == "q" else None].clone().requires_grad_() for name in names]

    def value(state: Tensor, *given: Tensor) -> Tensor:
        made = flow(**dict(zip(names, given, strict=True)))
        return torch.cat([made(0.0, state), made.output(state)], -1)

    assert torch.autograd.gradcheck(value, (s.requires_grad_(), *tensors))
    assert torch.autograd.gradgradcheck(lambda D, q: flow(D, q=q)(0.0, s.detach()), (tensors[3], tensors[10]))


def test_a_loop_that_is_learned_is_solved_for_although_it_starts_triangular() -> None:
    D, s = lower().requires_grad_(), drawn(ROWS, N, seed=20)
    (found,) = torch.autograd.grad(flow(D, metric=find_metric(lower()).metric)(0.0, s).sum(), D)
    assert bool(found.triu().abs().amax() > 0)  # entries that are zero may become others
    learned = flow(D, layers=[1] * M)
    (below,) = torch.autograd.grad(learned(0.0, s).sum(), D)
    assert torch.allclose(below.tril(-1), found.tril(-1), atol=1e-9) and not bool(below.triu().any())


def test_layers_are_found_and_may_differ() -> None:
    D = torch.zeros(M, M).double()
    D[2:4, :2], D[4, 1:4] = drawn(2, 2, seed=1), drawn(3, seed=2)
    mixed = Blockwise(parts=(ReLU(), Tanh()), sizes=(3, 2))
    f, s = flow(D, activation=mixed), drawn(ROWS, N, seed=20)
    assert [(layer.start, layer.stop) for layer in f._plan] == [(0, 2), (2, 4), (4, 5)]
    v = f.preactivations(s)
    assert torch.allclose(f.activations(s), torch.cat([v[:, :3].relu(), v[:, 3:].tanh()], -1), atol=1e-14)
    low, high = flow(D, activation=mixed).system().slopes
    assert low.tolist() == [0.0] * M and high.tolist() == [1.0] * M
    D[:2, :2] = full()[:2, :2]  # an equilibrium in the first layer only
    f = flow(D, activation=mixed, layers=(2, 2, 1))
    assert [layer.problem is None for layer in f._plan] == [False, True, True]
    assert torch.allclose(f.activations(s), mixed(f.preactivations(s)), atol=1e-12)
    with pytest.raises(InputError, match="layers"):
        flow(D, layers=(2, 2))
    with pytest.raises(InputError, match="layers|D"):
        flow(full(), layers=(2, 3))


def test_a_loop_changed_in_place_is_noticed() -> None:
    D, s = lower(), drawn(ROWS, N, seed=20)
    f = flow(D)
    before = f(0.0, s)
    D.copy_(full())
    assert torch.allclose(f(0.0, s), flow(full())(0.0, s)) and not torch.allclose(f(0.0, s), before)
    D.copy_(3 * torch.eye(M))
    with pytest.raises(PreconditionError, match="D"):
        f(0.0, s)


def test_what_is_not_well_posed_is_refused() -> None:
    with pytest.raises(PreconditionError, match="metric"):
        flow(1.01 * torch.eye(M).double())  # w = σ(1.01w + …) has three solutions
    skewed = torch.diag(torch.tensor([1e2, 1.0, 1.0, 1.0, 1e-2]).double())
    D = torch.linalg.solve(skewed, full()) @ skewed
    with pytest.raises(PreconditionError, match="metric"):
        flow(D)
    metric = WeightedL2(torch.diagonal(skewed) ** 2)
    found = flow(D, metric=metric)
    assert torch.allclose(found.activations(s := drawn(ROWS, N, seed=20)), torch.tanh(found.preactivations(s)))
    with pytest.raises(PreconditionError, match="metric"):
        flow(D, metric=WeightedL2(1 / torch.diagonal(skewed) ** 2))


def test_firing_rate_hopfield_and_linear_flows_are_instances() -> None:
    W, q, s, eye = 0.5 * drawn(4, 4), drawn(ROWS, 4, seed=1), drawn(ROWS, 4, seed=2), torch.eye(4).double()
    problem = EquilibriumProblem(linear=Dense(W), q=q, activation=Tanh())
    firing_rate = LureFlow(A=-eye, B=eye, C=W, activation=Tanh(), q=q)
    hopfield = LureFlow(A=-eye, B=W, C=eye, activation=Tanh(), e=q)
    for ours, theirs in ((firing_rate, FiringRate()), (hopfield, Hopfield())):
        assert torch.allclose(ours(0.0, s), theirs.bind(problem)(0.0, s), atol=1e-14)
        assert torch.allclose(ours.jacobian(s), theirs.bind(problem).jacobian(s), atol=1e-14)
        at_rest = ours.equilibrium_problem()
        assert torch.equal(at_rest.linear.to_dense(), W) and torch.allclose(at_rest.q, q)
    linear = LureFlow(A=W, B=W[:, :0], C=W[:0], activation=Tanh(), e=q)
    assert torch.equal(linear(0.0, s), LinearFlow(W, q)(0.0, s)) and torch.equal(linear.jacobian(s)[0], W)


@pytest.mark.parametrize("solver", [PeacemanRachford(), SemismoothNewton()])
@pytest.mark.parametrize("name", LOOPS)
def test_the_steady_state_is_an_equilibrium(name: str, solver: Any) -> None:
    f = flow(LOOPS[name], B=0.1 * drawn(N, M, seed=1))
    problem = f.equilibrium_problem(metric=find_metric(f.system().steady_weight).metric)
    w = solve(problem, solver, stop=EXACT).z
    s = f.steady_state(w)
    assert torch.allclose(f(0.0, s), torch.zeros(ROWS, N).double(), atol=1e-11)
    assert torch.allclose(f.activations(s), w, atol=1e-11)
    assert torch.allclose(problem.linear.to_dense(), f.system().steady_weight)


def test_inputs_may_move_and_differ_between_rows() -> None:
    f, s, amplitude = flow(lower()), drawn(ROWS, N, seed=20), drawn(K, seed=1)
    moving, times = f.with_input(lambda t: torch.sin(t) * amplitude), drawn(ROWS, 1, seed=2).abs()
    each = torch.cat([moving(t, s)[row : row + 1] for row, t in enumerate(times[:, 0])])
    assert torch.allclose(moving(times, s), each, atol=1e-14)
    assert torch.allclose(moving(0.7, s), f.with_input(torch.sin(torch.tensor(0.7)) * amplitude)(0.0, s))
    assert torch.allclose(f.with_input(None)(0.0, s), flow(lower(), u=torch.zeros(K).double())(0.0, s))
    for row in range(ROWS):
        alone = flow(lower(), q=f.q[row])
        assert torch.allclose(alone(0.0, s[row : row + 1])[0], f(0.0, s)[row], atol=1e-14)
    with pytest.raises(PreconditionError, match="u"):
        moving.equilibrium_problem()
    with pytest.raises(InputError, match="u"):
        f.with_input(lambda t: torch.zeros(K + 1).double())(0.0, s)
    with pytest.raises(InputError, match="u"):
        f.with_input(torch.zeros(K + 1).double())


def test_another_precision() -> None:
    f, s = flow(full(), metric=WeightedL2(torch.ones(M).double()), stop=None), drawn(ROWS, N, seed=20)
    single = f.to(torch.zeros(1))
    assert single(0.0, s.float()).dtype == torch.float32
    assert torch.allclose(single(0.0, s.float()).double(), f(0.0, s), atol=1e-3)
    with pytest.raises(InputError, match="state"):
        single(0.0, s)


def test_without_a_state_it_is_an_equilibrium_network() -> None:
    D, C = full(), torch.zeros(M, 0).double()
    f = LureFlow(A=D[:0, :0], B=D[:0], C=C, D=D, D12=drawn(M, K), q=drawn(M), D21=drawn(2, M), activation=Tanh())
    y = f.with_input(x := drawn(ROWS, K, seed=3)).output(torch.zeros(ROWS, 0).double())
    problem = EquilibriumProblem(linear=Dense(D), q=x @ f.D12.mT + f.q, activation=Tanh())
    assert torch.allclose(y, solve(problem, SemismoothNewton(), stop=EXACT).z @ f.D21.mT, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"A": torch.zeros(3, 2).double()}, "A"), ({"A": torch.zeros(3, 3)}, "B"), ({"B": drawn(2, M)}, "B"),
        ({"C": drawn(M, 2)}, "C"), ({"C": torch.full((M, N), torch.nan).double()}, "C"), ({"e": drawn(4)}, "e"),
        ({"q": drawn(1, 1, M)}, "q"), ({"u": drawn(3)}, "u"), ({"B2": drawn(N, 3)}, "D12"), ({"D": drawn(4, 4)}, "D"),
        ({"D21": drawn(3, M)}, "D21"), ({"activation": "tan"}, "activation"), ({"metric": 1.0}, "metric"),
        ({"metric": WeightedL2(torch.ones(2))}, "metric"), ({"solver": 3}, "solver"), ({"layers": (0, M)}, "layers"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=name):
        flow(**{"D": lower(), **changes})


def test_no_single_steady_state_where_a_is_singular() -> None:
    for A in (torch.zeros(N, N).double(), (x := drawn(N, 2)) @ x.mT):
        with pytest.raises(PreconditionError, match="A"):
            flow(A=A).equilibrium_problem()
        with pytest.raises(PreconditionError, match="A"):
            flow(A=A).steady_state(drawn(ROWS, M))
