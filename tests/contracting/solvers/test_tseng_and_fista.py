"""Tseng's splitting and FISTA: proved factors, the rates the theory promises, and where FISTA must not be used."""

from __future__ import annotations

import pytest
import torch

from contracting.activations.catalogue import Identity, ReLU, Tanh
from contracting.errors import PreconditionError
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.operator import MonotoneOperator
from contracting.metrics import WeightedL2
from contracting.solvers.fista import _FISTAIteration
from equilibrium import FISTA, ForwardBackward, Tseng
from tests.problems import monotone_weight, planted


@pytest.mark.parametrize("activation", [ReLU(), Tanh(), Identity()], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("skew", [0.0, 2.0, 10.0])
@pytest.mark.parametrize("step", [None, 0.02])
def test_tseng_contracts_with_the_proved_factor(step: float | None, skew: float, activation) -> None:
    W, lam = monotone_weight(6, seed=14, skew=skew, spread=0.7)
    problem, exact = planted(activation, W, lam, batch=8, seed=15)
    iteration = Tseng(step=step).bind(problem, Stop().resolved(problem))
    assert iteration.factor is not None and iteration.factor < 1 and problem.metric is not None
    state = iteration.init(problem.zeros())
    for _ in range(30):
        before = problem.metric.norm(state[0] - exact)
        state = iteration.step(state)
        assert (problem.metric.norm(state[0] - exact) <= iteration.factor * before + 1e-13).all()


@pytest.mark.parametrize("skew", [0.5, 5.0, 50.0])
def test_the_factor_is_close_to_the_worst_case(skew: float) -> None:
    """Against the S-procedure, exact over all convex f: max ‖Me + (I − M)x‖², ⟨e, Mx − e⟩ ≥ 0, M = I − αÃ."""
    W, lam = monotone_weight(8, seed=2, skew=skew)
    identity = torch.eye(8, dtype=torch.float64)
    A = identity - W
    assert torch.equal(lam, torch.ones_like(lam))
    operator = MonotoneOperator(A[None])
    alpha = operator.best_tseng.step
    M = identity - alpha * A
    norm = float(torch.linalg.matrix_norm(M, 2)) ** 2
    values = []
    for excess in torch.logspace(-3, 2, 400, dtype=torch.float64).tolist():
        tau = norm + excess
        inner, cross = M.mT @ M - tau * identity, M.mT @ (identity - M) + tau / 2 * M
        whole = (identity - M).mT @ (identity - M) - cross.mT @ torch.linalg.solve(inner, cross)
        values.append(float(torch.linalg.eigvalsh((whole + whole.mT) / 2)[-1]))
    exact = min(values) ** 0.5
    bound = operator.best_tseng.factor
    assert bound is not None and exact <= bound * (1 + 1e-9)
    assert 1 - bound > 0.8 * (1 - exact)


def test_the_best_step_is_the_best_of_a_sweep() -> None:
    W, lam = monotone_weight(10, seed=3, skew=4.0, spread=0.5)
    problem, _ = planted(ReLU(), W, lam, batch=1, seed=1)
    operator = problem.require_operator("test")
    sweep = [operator.tseng_factor(t / operator.bounds.lipschitz) for t in torch.linspace(0.01, 0.999, 300).tolist()]
    best = operator.best_tseng.factor
    assert best is not None and min(sweep) == pytest.approx(best, abs=1e-4)
    assert operator.tseng_factor(1.0 / operator.bounds.lipschitz) == 1.0


def test_tseng_is_the_inverse_free_choice_for_skewed_weights() -> None:
    """κ = 125: an order of magnitude fewer products than forward–backward with its exact best step."""
    W, lam = monotone_weight(20, seed=1, skew=112.0, scale=67.0)
    problem, _ = planted(ReLU(), W, lam, batch=2, seed=2)
    assert problem.require_operator("test").bounds.condition == pytest.approx(125, rel=0.02)
    stop = Stop(rtol=1e-6, max_steps=30_000, check_every=1)
    tseng, forward = (solve(problem, method, stop=stop) for method in (Tseng(), ForwardBackward()))
    assert 15 * tseng.steps.max() < forward.steps.max()
    assert 7 * tseng.map_evals < forward.map_evals


def test_tseng_refuses_and_a_wrong_step_is_not_silent() -> None:
    uncertified, _ = planted(ReLU(), torch.zeros(3, 3, dtype=torch.float64), None, batch=1, seed=0)
    with pytest.raises(PreconditionError, match=r"\bSemismoothNewton\(\)"):
        solve(uncertified, Tseng())
    W, lam = monotone_weight(6, seed=1, skew=10.0)
    problem, _ = planted(Identity(), W, lam, batch=2, seed=1)
    assert not solve(problem, Tseng(step=10.0), throw=False).converged.any()


def fista_products(condition: float, method: FISTA) -> int:
    W, lam = monotone_weight(20, seed=4, skew=0.0, scale=condition - 1, spread=0.5)
    problem, _ = planted(Identity(), W, lam, batch=3, seed=5)
    return int(solve(problem, method, stop=Stop(rtol=1e-8)).steps.max())


@pytest.mark.parametrize("restart", [True, False])
def test_fista_needs_the_root_of_the_condition(restart: bool) -> None:
    few, many = (fista_products(condition, FISTA(restart=restart)) for condition in (100.0, 1600.0))
    assert many / few == pytest.approx(4, rel=0.3)
    W, lam = monotone_weight(20, seed=4, skew=0.0, scale=1599.0, spread=0.5)
    problem, _ = planted(Identity(), W, lam, batch=3, seed=5)
    assert many * 5 < solve(problem, ForwardBackward(), stop=Stop(rtol=1e-8, max_steps=100_000)).steps.max()


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=lambda a: type(a).__name__)
def test_fista_keeps_its_proved_rate(activation, restart: bool) -> None:
    """‖z − z*‖² ≤ 2/m·(gap + m/2‖z₀ − z*‖²)·rate^2k, the gap at most L/2‖z₀ − z*‖² plus what f adds: constant κ + 1."""
    W, lam = monotone_weight(30, seed=6, skew=0.0, scale=300.0, spread=0.5)
    problem, exact = planted(activation, W, lam, batch=4, seed=7)
    iteration = FISTA(restart=restart).bind(problem, Stop().resolved(problem))
    assert iteration.factor is not None and problem.metric is not None
    state = iteration.step(iteration.init(problem.zeros()))  # after one prox step the gap is that of the smooth part
    first = problem.metric.norm(problem.zeros() - exact)
    for k in range(200):
        state = iteration.step(state)
        bound = (2 * 301.0) ** 0.5 * iteration.factor**k * first
        assert (problem.metric.norm(state[0] - exact) <= bound + 1e-12).all()


def test_fista_refuses_a_skew_part_because_momentum_is_unstable_there() -> None:
    """Skew 0.05 is enough to keep the forced iteration from converging, where forward–backward does."""
    W, lam = monotone_weight(60, seed=8, skew=0.05, monotonicity=1e-3)
    problem, _ = planted(Identity(), W, lam, batch=2, seed=9)
    with pytest.raises(PreconditionError, match=r"\bPeacemanRachford\(\)"):
        solve(problem, FISTA())
    assert isinstance(problem.metric, WeightedL2)
    forced = _FISTAIteration(problem, problem.metric, problem.require_operator("test").bounds, False)
    state = forced.init(problem.zeros())
    for _ in range(4000):
        state = forced.step(state)
    size = torch.linalg.vector_norm(problem.q, dim=-1)
    assert (torch.linalg.vector_norm(problem.residual(state[0]), dim=-1) > 1e-2 * size).all()


def test_fista_accepts_what_is_symmetric_up_to_float32() -> None:
    W, lam = monotone_weight(30, seed=6, skew=0.0, scale=10.0, spread=0.5)
    problem, _ = planted(ReLU(), W.float(), lam.float(), batch=4, seed=7)
    assert problem.require_operator("test").bounds.skew > 0
    assert solve(problem, FISTA()).converged.all()
