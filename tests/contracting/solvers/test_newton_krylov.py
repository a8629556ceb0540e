"""Newton–Krylov: exact where splitting crawls, without matrices, and its linear solver row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.activations.catalogue import ReLU, Tanh
from contracting.errors import InputError, PreconditionError
from contracting.flows.network import FiringRate
from contracting.flows.speed import TimeScaledForwardBackward
from contracting.flows.splitting import ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.linear_systems import solve_rows_by_products
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.problem import EquilibriumProblem
from equilibrium import ForwardBackward, NewtonKrylov, PeacemanRachford
from tests.problems import monotone_weight, planted


class ProductsOnly(Dense):
    """A weight that can be applied and nothing else."""

    has_matrix = False

    def to_dense(self) -> Tensor:
        raise AssertionError("nobody may ask for the matrix")

    def blocks(self, metric: object) -> Tensor:
        raise PreconditionError("no blocks")

    def resolvent(self, step: object) -> Dense:
        raise AssertionError("nobody may invert")


def systems(batch: int, n: int) -> tuple[Tensor, Tensor]:
    matrices = torch.eye(n, dtype=torch.float64) + torch.randn(batch, n, n, dtype=torch.float64) / n**0.5
    return matrices, torch.randn(batch, n, dtype=torch.float64)


def test_each_row_solves_its_own_system() -> None:
    matrices, right = systems(6, 30)
    tolerance = torch.logspace(-1, -11, 6, dtype=torch.float64)
    x, products = solve_rows_by_products(lambda d: (matrices @ d[:, :, None])[:, :, 0], right, tolerance, dimension=30)
    rest = torch.linalg.vector_norm(right - (matrices @ x[:, :, None])[:, :, 0], dim=-1)
    assert (rest <= 1.001 * tolerance + 1e-13).all() and products <= 31
    for row in range(6):
        alone, _ = solve_rows_by_products(
            lambda d, row=row: d @ matrices[row].mT, right[row : row + 1], tolerance[row : row + 1], dimension=30
        )
        assert torch.allclose(alone[0], x[row], rtol=1e-9, atol=1e-11)


def test_it_minimises_the_residual_over_the_krylov_space() -> None:
    """Against a dense least-squares problem on the explicit basis."""
    matrices, right = systems(3, 20)
    x, _ = solve_rows_by_products(lambda d: (matrices @ d[:, :, None])[:, :, 0], right, torch.zeros(3), dimension=5)
    for row in range(3):
        basis = [right[row]]
        for _ in range(4):
            basis.append(matrices[row] @ basis[-1])
        images = matrices[row] @ torch.stack(basis, 1)
        best = right[row] - images @ torch.linalg.lstsq(images, right[row][:, None]).solution[:, 0]
        assert torch.linalg.vector_norm(right[row] - matrices[row] @ x[row]) == pytest.approx(float(best.norm()))


def test_bad_rows_and_no_way_forward() -> None:
    matrices, right = systems(3, 5)
    right[1, 0] = float("nan")
    matrices[2] = torch.roll(torch.eye(5, dtype=torch.float64), 1, 0)  # GMRES stands still for four steps here
    right[2] = torch.eye(5, dtype=torch.float64)[0]
    x, _ = solve_rows_by_products(
        lambda d: (matrices @ d[:, :, None])[:, :, 0], right, torch.full((3,), 1e-12), dimension=5, restarts=2
    )
    assert x[1].isnan().all() and not x[[0, 2]].isnan().any()
    assert torch.allclose(x[2], torch.eye(5, dtype=torch.float64)[4], atol=1e-12)


@pytest.mark.parametrize("flow", [None, FiringRate()], ids=["Peaceman–Rachford", "firing rate"])
def test_reaches_1e_12_where_splitting_needs_thousands_of_steps(flow: FiringRate | None) -> None:
    """κ ≥ 1e4, symmetric: the spectrum fills a long interval, which is hard for splitting."""
    W, lam = monotone_weight(200, seed=5, skew=1.0, monotonicity=1e-3, scale=100.0)
    problem, exact = planted(ReLU(), W, lam, batch=4, seed=6)
    operator = problem.require_operator("test")
    assert operator.bounds.condition >= 1e4
    stop = Stop(rtol=1e-12, atol=0.0, max_steps=1000)
    for splitting in (ForwardBackward(), PeacemanRachford(step=operator.best_reflected.step)):
        assert not solve(problem, splitting, stop=stop, throw=False).converged.any()
    solution = solve(problem, NewtonKrylov(flow=flow), stop=stop)
    assert solution.relative_residual.max() <= 1e-12 and solution.map_evals < 1000
    assert (solution.z - exact).abs().max() < 1e-8


def test_reaches_1e_12_where_the_resolvent_rounds_most() -> None:
    """L = 1000: T(u) − u as a difference is rounded to some 1e-11 of u, and Newton's method would stand still there."""
    W, lam = monotone_weight(200, seed=5, skew=1.0, monotonicity=1e-2, scale=1000.0)
    problem, _ = planted(ReLU(), W, lam, batch=4, seed=6)
    solution = solve(problem, NewtonKrylov(), stop=Stop(rtol=1e-12, atol=0.0, max_steps=60))
    assert solution.relative_residual.max() <= 1e-12


@pytest.mark.parametrize("step", [0.3, "per neuron"])
@pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=str)
def test_the_defect_of_a_flow_is_its_field(activation: Activation, step: float | str) -> None:
    W, lam = monotone_weight(12, seed=1, skew=2.0)
    problem, exact = planted(activation, W, lam, batch=3, seed=2)
    state = torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    chosen = torch.linspace(0.1, 2.0, 12, dtype=torch.float64) if isinstance(step, str) else step
    for flow in (FiringRate(), ForwardBackwardFlow(step=chosen), PeacemanRachfordFlow(step=chosen)):
        bound = flow.bind(problem)
        assert torch.allclose(bound.defect(state), bound(0.0, state), rtol=0, atol=1e-13)
        assert bound.defect(bound.init(exact)).abs().max() < 1e-13


def test_needs_products_only() -> None:
    W = 0.3 * torch.randn(40, 40, dtype=torch.float64) / 40**0.5
    problem, exact = planted(ReLU(), W, None, batch=4, seed=2)
    bare = EquilibriumProblem(linear=ProductsOnly(W), q=problem.q, activation=ReLU())
    solution = solve(bare, NewtonKrylov(), stop=Stop(rtol=1e-12))
    assert torch.allclose(solution.z, exact, atol=1e-11)


def test_chunks_of_rows_change_nothing() -> None:
    W, lam = monotone_weight(20, seed=3, skew=3.0)
    problem, _ = planted(Tanh(), W, lam, batch=7, seed=4)
    for flow in (None, FiringRate(), ForwardBackwardFlow()):
        whole = solve(problem, NewtonKrylov(flow=flow), stop=Stop(rtol=1e-10))
        parts = solve(problem, NewtonKrylov(flow=flow, memory=3 * 2 * 20 * 20 * 8), stop=Stop(rtol=1e-10))
        assert torch.equal(parts.steps, whole.steps) and torch.allclose(parts.z, whole.z, rtol=0, atol=1e-12)


def test_falls_back_and_returns() -> None:
    W, lam = monotone_weight(15, seed=22, skew=30.0)
    problem, _ = planted(Tanh(), W, lam, batch=2, seed=23)
    problem = problem.with_tensors([problem.q * 50, W])
    for flow in (None, TimeScaledForwardBackward(step=0.01)):
        assert solve(problem, NewtonKrylov(flow=flow, halvings=0), stop=Stop(rtol=1e-10)).converged.all()


def test_settings_are_checked() -> None:
    for options in ({"krylov": 0}, {"restarts": -1}, {"halvings": -1}, {"memory": 0}, {"flow": 3}):
        with pytest.raises(InputError, match=rf"\b{next(iter(options))}\b"):
            NewtonKrylov(**options)  # type: ignore[arg-type]
