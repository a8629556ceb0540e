"""The automatic choice: every branch, its reason, and that the answer is that of the chosen method."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from contracting.activations.catalogue import Identity, ReLU, Tanh
from contracting.errors import PreconditionError
from contracting.flows.network import FiringRate
from contracting.loop.method import Method
from contracting.loop.records import Stop, Trace
from contracting.loop.run import solve
from contracting.problem import EquilibriumProblem
from contracting.solvers.relay import Relay
from equilibrium import LBEN, Automatic, NewtonKrylov, PeacemanRachford, SemismoothNewton, Tseng
from tests.problems import monotone_weight, planted


def problem_of(n: int, *, batch: int = 500, activation=ReLU(), certified: bool = True, **shape) -> EquilibriumProblem:  # type: ignore[no-untyped-def]  # noqa: B008
    W, lam = monotone_weight(n, seed=1, **shape)
    return planted(activation, W, lam if certified else None, batch=batch, seed=2)[0]


CASES: list[tuple[dict, Method, str]] = [
    ({"n": 80, "skew": 2.0, "scale": 20.0}, PeacemanRachford(), "proved factor"),
    ({"n": 400, "skew": 2.0, "scale": 20.0}, PeacemanRachford(), "estimated factor"),
    ({"n": 80, "certified": False}, SemismoothNewton(), "no metric certifies"),
    ({"n": 600, "certified": False}, NewtonKrylov(flow=FiringRate()), "too large"),
    ({"n": 20, "skew": 50.0, "monotonicity": 0.01}, SemismoothNewton(), "more than Newton's method costs"),
    ({"n": 600, "skew": 1.0, "monotonicity": 1e-6, "scale": 50.0}, NewtonKrylov(), "Newton–Krylov solve costs"),
    ({"n": 20, "skew": 90.0, "monotonicity": 0.01, "activation": Tanh()}, SemismoothNewton(), "σ is curved"),
    ({"n": 20, "skew": 11.0, "monotonicity": 0.01, "activation": Tanh()}, PeacemanRachford(), "proved factor"),
    ({"n": 20, "skew": 2.0, "scale": 10.0, "activation": Tanh()}, PeacemanRachford(), "proved factor"),
    ({"n": 200, "skew": 2.0, "scale": 10.0, "activation": Tanh()}, PeacemanRachford(), "proved factor"),
    ({"n": 20, "skew": 20.0, "activation": Identity()}, SemismoothNewton(), "σ is linear"),
    ({"n": 280, "batch": 1, "skew": 3.0, "scale": 0.1}, PeacemanRachford(), "one factorisation"),
    ({"n": 600, "batch": 1, "skew": 1.0, "scale": 1.0}, Tseng(), "Tseng needs about"),
    ({"n": 600, "batch": 1, "skew": 1.0, "scale": 20.0}, NewtonKrylov(flow=FiringRate()), "products only"),
]


@pytest.mark.parametrize(("shape", "expected", "reason"), CASES, ids=[str(case[2]) for case in CASES])
def test_every_branch(shape: dict, expected: Method, reason: str) -> None:
    problem = problem_of(**shape)
    choice = Automatic().choose(problem)
    assert choice.method == expected, choice.reason
    assert reason in choice.reason


def test_the_choice_solves_and_is_the_chosen_method() -> None:
    for shape, expected, _ in CASES:
        problem = problem_of(**(shape | {"batch": 2})) if shape.get("batch") != 1 else problem_of(**shape)
        chosen = Automatic().choose(problem).method
        if problem.size <= 100:
            automatic, direct = solve(problem, Automatic()), solve(problem, chosen)
            assert torch.equal(automatic.z, direct.z) and automatic.map_evals == direct.map_evals
        del expected


def test_the_tolerance_matters() -> None:
    problem = problem_of(20, skew=80.0, scale=5.0)
    loose, tight = (Automatic().choose(problem, Stop(rtol=rtol)).method for rtol in (1e-1, 1e-12))
    assert loose == PeacemanRachford() and tight == SemismoothNewton()


def test_rows_that_leave_a_large_batch_keep_their_method() -> None:
    problem = problem_of(250, batch=300, skew=0.1)
    solution = solve(problem, Automatic(), stop=Stop(rtol=1e-10, check_every=1))
    assert solution.converged.all()


def at_the_rounding_of_peaceman_rachford() -> tuple[EquilibriumProblem, Stop]:
    """A float32 problem, adjoint to another, whose tolerance Newton's method reaches and the splitting does not."""
    W, lam = monotone_weight(100, seed=1, skew=30.0, monotonicity=0.5, scale=10.0)
    problem, exact = planted(ReLU(), W.float(), lam.float(), batch=6, seed=2)
    return problem.adjoint(problem.slopes(exact), torch.sign(problem.q)), Stop(rtol=3.5e-6)


def test_rows_that_a_splitting_does_not_finish_go_on_with_newtons_method() -> None:
    problem, stop = at_the_rounding_of_peaceman_rachford()
    assert isinstance(Automatic().choose(problem, stop).method, PeacemanRachford)
    short = Stop(rtol=stop.rtol, patience=300)
    alone = solve(problem, PeacemanRachford(), stop=short, throw=False)
    assert not alone.converged.all()  # negative control
    solution = solve(problem, Automatic(), stop=stop)
    image = problem.map(solution.z)
    tolerance = 1e-7 + 3.5e-6 * image.norm(dim=-1)  # with the default atol of float32
    assert ((solution.z - image).norm(dim=-1) <= 1.001 * tolerance).all()
    assert solve(problem, Automatic(), stop=short).converged.all()  # also where there is less patience


def test_changing_methods_depends_on_no_other_row_and_on_no_trace() -> None:
    problem, stop = at_the_rounding_of_peaceman_rachford()
    together = solve(problem, Automatic(), stop=stop)
    watched = solve(problem, Automatic(), stop=stop, trace=Trace(every=50))
    assert torch.equal(watched.z, together.z) and torch.equal(watched.steps, together.steps)
    assert watched.map_evals == together.map_evals
    sparse = solve(problem, Automatic(), stop=replace(stop, check_every=37))
    assert sparse.converged.all()
    easy = replace(problem, q=problem.q.index_fill(0, torch.tensor([1]), 0.0))
    mixed = solve(easy, Automatic(), stop=stop)
    others = [0, 2, 3, 4, 5]
    assert torch.equal(mixed.steps[others], together.steps[others])
    assert torch.equal(mixed.z[others], together.z[others])


@pytest.mark.parametrize(("shape", "then"), [
    ({"n": 80, "skew": 2.0, "scale": 20.0}, SemismoothNewton()),
    ({"n": 600, "skew": 2.0, "scale": 20.0}, NewtonKrylov()),
    ({"n": 600, "batch": 1, "skew": 1.0, "scale": 1.0}, NewtonKrylov(flow=FiringRate())),
    ({"n": 80, "certified": False}, None),
])  # fmt: skip
def test_who_goes_on_with_unfinished_rows(shape: dict, then: Method | None) -> None:
    problem = problem_of(**shape)
    method = Automatic().chosen(problem, Stop(patience=300).resolved(problem))
    if then is None:
        assert isinstance(method, SemismoothNewton)
        return
    assert isinstance(method, Relay) and method.then == then and method.after <= 150
    q = problem.q.clone().requires_grad_()
    assert not isinstance(Automatic().chosen(replace(problem, q=q), Stop().resolved(problem)), Relay)


def test_works_in_a_layer_and_in_its_gradient() -> None:
    torch.manual_seed(3)
    layer = LBEN(4, 6, 2, lipschitz=1.0, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    gradients = []
    for method in (None, Automatic()):
        layer.zero_grad()
        if method is not None:
            layer.solver = method
        layer(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-8)


def test_float32_that_resolves_nothing_is_refused_by_default() -> None:
    """Weights Λ of 26 decades: the tolerance that rounding allows is 1, which every z would satisfy."""
    torch.manual_seed(0)
    layer, x = LBEN(6, 8, 3, lipschitz=5.0), torch.randn(4, 6)
    with torch.no_grad():
        layer.parameterization.psi.copy_(torch.linspace(-15, 15, 8))  # type: ignore[operator,union-attr]
    with pytest.raises(PreconditionError, match=r"\blayer\.double\(\)"):
        layer(x)
    assert layer.solve(x, stop=Stop(rtol=1.0)).converged.all()  # who asks for it gets it
    assert layer.double().solve(x.double()).converged.all()
