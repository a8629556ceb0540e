"""Anderson acceleration: never behind the method inside, on every known problem."""

from __future__ import annotations

import pytest
import torch

from contracting.activations.catalogue import Identity, ReLU, Tanh
from contracting.errors import InputError, Status
from contracting.integrators import ExplicitEuler
from contracting.loop.method import Method
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.counting import Count, counting
from contracting.solvers.anderson import _coefficients
from equilibrium import Anderson, ForwardBackward, PeacemanRachford
from tests.methods import FLOWS, ONE_OF_EACH, SELF_ADJOINT_ONLY, name
from tests.problems import KNOWN, KnownProblem, monotone_weight, planted

# One of each class, and every flow: diagonal steps and other flows of the same class look alike to Anderson.
CLASSES = {type(method): method for method in reversed(ONE_OF_EACH) if not isinstance(method, Anderson)}
INNER = [*CLASSES.values(), *(ExplicitEuler(flow=flow) for flow in FLOWS[1:])]


@pytest.mark.slow
@pytest.mark.parametrize("method", INNER, ids=name)
@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_never_ends_worse_than_its_inner_method(known: KnownProblem, method: Method) -> None:
    if isinstance(method, SELF_ADJOINT_ONLY) and not known.self_adjoint:
        return
    problem, _ = known.make()
    stop = Stop(rtol=1e-8, max_steps=150, check_every=1)
    plain, accelerated = (solve(problem, m, stop=stop, throw=False) for m in (method, Anderson(method)))
    solved = plain.status == Status.CONVERGED
    assert (accelerated.status[solved] == Status.CONVERGED).all()
    assert (accelerated.steps[solved] <= plain.steps[solved] + 1).all()


@pytest.mark.parametrize("method", [PeacemanRachford(), ForwardBackward()], ids=name)
@pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=lambda a: type(a).__name__)
def test_no_step_leaves_a_larger_residual_than_the_plain_one(activation, method: Method) -> None:
    W, lam = monotone_weight(20, seed=3, skew=5.0, scale=20.0)
    problem, _ = planted(activation, W, lam, batch=6, seed=4)
    iteration = Anderson(method).bind(problem, Stop().resolved(problem))
    inner = method.bind(problem, Stop().resolved(problem))
    state = iteration.init(problem.zeros())
    better = 0
    for _ in range(30):
        plain = inner.read(inner.step(state.inner))
        state = iteration.step(state)
        residuals = [torch.linalg.vector_norm(problem.residual(z), dim=-1) for z in (iteration.read(state), plain)]
        assert (residuals[0] <= residuals[1] * (1 + 1e-12)).all()
        better += int((residuals[0] < 0.9 * residuals[1]).sum())
    assert better > 30


def test_it_accelerates_where_it_should() -> None:
    W, lam = monotone_weight(60, seed=5, skew=1.0, scale=300.0)
    problem, _ = planted(ReLU(), W, lam, batch=5, seed=6)
    stop = Stop(rtol=1e-8, max_steps=20_000, check_every=1)
    plain, accelerated = (solve(problem, m, stop=stop) for m in (ForwardBackward(), Anderson(ForwardBackward())))
    assert 3 * accelerated.steps.max() < plain.steps.max()
    assert accelerated.map_evals < plain.map_evals


def test_on_a_linear_problem_it_ends_after_n_steps() -> None:
    """Type-II Anderson with a full window is GMRES: n + 1 steps for n unknowns."""
    W, lam = monotone_weight(4, seed=7)
    problem, exact = planted(Identity(), W, lam, batch=3, seed=8)
    solution = solve(problem, Anderson(ForwardBackward(), window=4), stop=Stop(rtol=1e-7, check_every=1))
    assert (solution.steps <= 7).all()
    assert torch.allclose(solution.z, exact, rtol=1e-5, atol=1e-6)


def test_every_map_evaluation_is_counted() -> None:
    W, lam = monotone_weight(5, seed=9)
    problem, _ = planted(ReLU(), W, lam, batch=2, seed=10)
    iteration = Anderson(ForwardBackward()).bind(problem, Stop().resolved(problem))
    state = iteration.init(problem.zeros())
    count = Count()
    with counting(count):
        iteration.step(state)
    assert count.rows == 3 * problem.batch  # one of the step, two residuals


def test_coefficients_solve_the_least_squares_problem() -> None:
    differences, target = torch.randn(7, 3, 9, dtype=torch.float64), torch.randn(7, 9, dtype=torch.float64)
    expected = torch.linalg.lstsq(differences.mT, target[:, :, None]).solution[:, :, 0]
    assert torch.allclose(_coefficients(differences, target), expected, atol=1e-9)
    differences[:, 1] = 0  # a step that is not known yet
    assert (_coefficients(differences, target)[:, 1] == 0).all()


def test_settings_are_checked() -> None:
    for wrong in (Anderson(), "PeacemanRachford"):
        with pytest.raises(InputError, match=r"\bmethod\b"):
            Anderson(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\bwindow\b"):
        Anderson(window=0)
