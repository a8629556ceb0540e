"""Semismooth Newton from any start: the layers that saturate, rounding errors, rows that change coordinates."""

from __future__ import annotations

import pytest
import torch

from contracting.activations.base import Activation
from contracting.activations.catalogue import ELU, Arctan, ReLU, ReLU6, Sigmoid, Softplus, Softsign, Tanh
from contracting.errors import Status
from contracting.loop.method import Method
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.solvers.automatic import Automatic
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.newton_krylov import NewtonKrylov
from tests.problems import monotone_weight, perturbed, planted

CURVED = (Tanh(), Softsign(), Arctan(), Sigmoid(), Softplus(), ELU())


@pytest.mark.parametrize("activation", [*CURVED, ReLU(), ReLU6()], ids=str)
@pytest.mark.parametrize(("lipschitz", "scale"), [(1e-5, 1.0), (1e-5, 100.0), (1e-3, 1.0), (0.1, 1.0)])
def test_every_row_of_a_well_posed_layer_is_solved(activation: Activation, lipschitz: float, scale: float) -> None:
    """Newton's method on z − σ(Wz + q) itself loses nearly all of these rows, where σ saturates or clips."""
    problem = perturbed(activation, lipschitz, scale=scale, rows=40)
    solution = solve(problem, SemismoothNewton(), stop=Stop(max_steps=80))
    residual = solution.z - activation(solution.z @ problem.linear.to_dense().mT + problem.q)
    assert (residual.norm(dim=-1) <= 1.001e-8 * solution.z.norm(dim=-1) + 1e-12).all()


@pytest.mark.parametrize("activation", [Tanh(), Softsign(), Arctan()], ids=str)
def test_the_default_solves_them_and_so_does_its_adjoint(activation: Activation) -> None:
    problem = perturbed(activation, 1e-5)
    solution = solve(problem, Automatic(), stop=Stop())
    residual = solution.z - activation(solution.z @ problem.linear.to_dense().mT + problem.q)
    assert (residual.norm(dim=-1) <= 1.001e-8 * solution.z.norm(dim=-1) + 1e-12).all()
    slopes = problem.slopes(solution.z)
    adjoint = problem.adjoint(slopes, torch.randn_like(problem.q))
    gradient = solve(adjoint, Automatic(), stop=Stop()).z
    W = problem.linear.to_dense()
    image = slopes * (gradient @ W + adjoint.q)
    assert ((gradient - image).norm(dim=-1) <= 1.001e-8 * image.norm(dim=-1) + 1e-12).all()


@pytest.mark.parametrize("activation", [Tanh(), ReLU()], ids=str)
def test_float32_solves_them_to_what_it_resolves(activation: Activation) -> None:
    problem = perturbed(activation, 0.1)
    W = problem.linear.to_dense().float()
    assert problem.metric is not None
    single, _ = planted(activation, W, problem.metric.weights.float(), batch=1, seed=0)  # type: ignore[attr-defined]
    single = single.with_tensors([problem.q.float(), W])
    assert solve(single, SemismoothNewton(), stop=Stop(max_steps=80)).converged.all()


def test_the_defect_falls_in_every_step_whatever_the_start() -> None:
    """The proof of convergence, looked at: no residual is accepted here, so that each step lessens ‖T(s) − s‖."""
    W, lam = monotone_weight(12, seed=1, skew=30.0, monotonicity=0.05, spread=1.0)
    problem, _ = planted(Tanh(), W, lam, batch=20, seed=2)
    problem = problem.with_tensors([50 * problem.q, W])
    for halvings in (0, 6):  # without halvings most steps are Peaceman–Rachford steps
        iteration = SemismoothNewton(halvings=halvings).bind(problem, Stop().resolved(problem))
        state = iteration.init(100 * torch.randn(20, 12, generator=torch.Generator().manual_seed(3)).double())
        for _ in range(30):
            after = iteration.step((state[0], torch.full((20,), -1.0).double(), *state[2:]))
            assert ((after[2] < state[2]) | (after[2] <= 1e-12)).all()
            state = after


@pytest.mark.parametrize("method", [SemismoothNewton(), NewtonKrylov()], ids=str)
@pytest.mark.parametrize("certified", [True, False])
def test_a_tolerance_below_rounding_is_given_up_at_once(method: Method, certified: bool) -> None:
    W, lam = monotone_weight(8, seed=1, skew=2.0)
    problem, exact = planted(Tanh(), W, lam if certified else None, batch=20, seed=2)
    solution = solve(problem, method, stop=Stop(rtol=0.0, atol=0.0), throw=False)
    assert (solution.status[~solution.converged] == Status.STALLED).all() and not solution.converged.all()
    assert solution.steps.max() < 60
    assert (solution.z - exact).abs().max() < 1e-13  # negative control: not before the digits are there
