"""A = I − W in a metric: bounds, exact factors, best steps, and the linear maps behind them."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from contracting.errors import InputError, PreconditionError
from contracting.maps.bounded import BoundedOperator
from contracting.maps.dense import Dense
from contracting.maps.operator import MonotoneOperator
from contracting.metrics import FullP, WeightedL2
from tests.problems import monotone_weight

SKEWS = [0.0, 1.0, 20.0]


def operator(n: int = 6, **shape: float) -> tuple[MonotoneOperator, torch.Tensor]:
    W, lam = monotone_weight(n, seed=1, **shape)  # type: ignore[arg-type]
    metric = WeightedL2(lam)
    return Dense(W).operator(metric), torch.eye(n, dtype=torch.float64) - metric.whiten(W)


@pytest.mark.parametrize("skew", SKEWS)
def test_bounds_are_those_of_the_matrix(skew: float) -> None:
    op, A = operator(skew=skew, spread=2.0, monotonicity=0.3, scale=5.0)
    H, K = (A + A.mT) / 2, (A - A.mT) / 2
    assert op.bounds.monotonicity == pytest.approx(0.3, rel=1e-9)
    assert op.bounds.symmetric == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-9)
    assert op.bounds.skew == pytest.approx(skew, abs=1e-9)
    assert op.bounds.lipschitz == pytest.approx(float(torch.linalg.matrix_norm(A, 2)), rel=1e-9)
    assert op.bounds.gain == pytest.approx(float(torch.linalg.matrix_norm(torch.eye(6) - A, 2)), rel=1e-9)
    assert torch.allclose(H + K, A)


@pytest.mark.parametrize("skew", SKEWS)
def test_best_steps_beat_a_fine_sweep(skew: float) -> None:
    op, _ = operator(skew=skew, scale=4.0)
    sweep = np.logspace(-5, 2, 1500)
    for best, factor in (
        (op.best_forward, op.forward_factor),
        (op.best_reflected, op.reflected_factor),
        (op.best_euler, op.euler_factor),
    ):
        swept = min(factor(step) for step in sweep if factor is not op.euler_factor or step <= 1)
        assert best.factor == pytest.approx(factor(best.step))
        assert best.factor <= swept + 2e-4 * (1 - swept)


def test_symmetric_steps_are_the_classical_ones() -> None:
    op, _ = operator(skew=0.0, scale=4.0)
    m, L = op.bounds.monotonicity, op.bounds.lipschitz
    kappa = L / m
    assert op.best_forward.factor == pytest.approx((kappa - 1) / (kappa + 1), rel=1e-3)
    assert op.best_reflected.factor == pytest.approx((kappa**0.5 - 1) / (kappa**0.5 + 1), rel=1e-3)


@pytest.mark.parametrize("skew", SKEWS)
def test_textbook_bounds_hold(skew: float) -> None:
    op, _ = operator(skew=skew, scale=4.0)
    m, L = op.bounds.monotonicity, op.bounds.lipschitz
    for step in (1e-3, 0.1, 1.0):
        square = 1 - 2 * step * m + step**2 * L**2
        assert op.forward_factor(step) <= square**0.5 + 1e-12
        assert op.reflected_factor(step) <= (square / (1 + 2 * step * m + step**2 * L**2)) ** 0.5 + 1e-12


@pytest.mark.parametrize("skew", SKEWS)
def test_euler_factor_bounds_every_linearisation(skew: float) -> None:
    op, A = operator(n=5, skew=skew, scale=3.0)
    W = torch.eye(5, dtype=torch.float64) - A
    best = op.best_euler
    J = torch.rand(2000, 5, 1, dtype=torch.float64).pow(0.3).round(decimals=1)
    maps = (1 - best.step) * torch.eye(5, dtype=torch.float64) + best.step * J * W
    assert torch.linalg.eigvals(maps).abs().max() <= best.factor + 1e-9
    assert best.factor < 1


class Known(BoundedOperator):
    """An operator of which no more is told than its exact bounds."""

    def __init__(self, exact: MonotoneOperator):
        super().__init__(exact.blocks)
        self.__dict__["bounds"] = exact.bounds


@pytest.mark.parametrize("step", [0.1, 0.5, 1.0, 1.5, 3.0])
def test_factors_from_bounds_alone_are_bounds(step: float) -> None:
    """On both sides of 1, where the symmetric part of W̃ changes its sign in the factor of Euler."""
    generator, spare = torch.Generator().manual_seed(0), []
    for n in [2, 3, 6] * 20:
        V = torch.randn(n, n, generator=generator, dtype=torch.float64)
        size, lean = (4 * torch.rand(2, generator=generator, dtype=torch.float64)).tolist()
        W = (size * V + (V + V.mT)) / n - lean * torch.eye(n, dtype=torch.float64)
        exact = Dense(W).operator(WeightedL2(0.5 + torch.rand(n, generator=generator, dtype=torch.float64)))
        known, b = Known(exact), exact.bounds
        for factor in ("forward_factor", "euler_factor"):
            assert getattr(known, factor)(step) >= getattr(exact, factor)(step) - 1e-12
        excess = 2 * step * (1 - step) * (1 - b.monotonicity) + (step * b.gain) ** 2
        spare.append(math.sqrt((1 - step) ** 2 + max(0.0, excess)) - exact.euler_factor(step))
    assert (min(spare) < -0.1) == (step > 1)  # m proves it up to h = 1 only
    for size in (-1.5, 0.4):  # of a multiple of the identity the bounds tell everything
        exact = Dense(size * torch.eye(3, dtype=torch.float64)).operator(WeightedL2.identity(3, dtype=torch.float64))
        assert Known(exact).euler_factor(step) == pytest.approx(exact.euler_factor(step), abs=1e-12)


def test_the_analysis_is_computed_once_and_shared_with_the_adjoint() -> None:
    W, lam = monotone_weight(6, seed=2, spread=1.0)
    linear, metric = Dense(W.clone().requires_grad_()), WeightedL2(lam)
    shared = linear.operator(metric)
    assert linear.detached.operator(metric) is shared
    assert linear.adjoint.operator(metric.dual()) is shared
    assert linear.adjoint.detached.operator(metric.dual()) is shared
    assert linear.adjoint.adjoint is linear
    # nothing is remembered under a metric of equal values that is another object, and copies do not mix up
    assert linear.operator(WeightedL2(lam)) is not shared
    assert copy.deepcopy(linear).operator(metric) is not shared
    assert not linear.operator(metric).blocks.requires_grad


def test_adjoint_and_resolvent_are_exact() -> None:
    W, _ = monotone_weight(7, seed=3, skew=4.0)
    linear = Dense(W)
    x, y = torch.randn(2, 9, 7, dtype=torch.float64)
    forward, backward = (linear.apply(x) * y).sum(-1), (x * linear.adjoint.apply(y)).sum(-1)
    assert (forward - backward).abs().max() < 1e-12
    identity = torch.eye(7, dtype=torch.float64)
    for step in (0.3, torch.rand(7, dtype=torch.float64) + 0.1):
        K = linear.resolvent(step)
        D = torch.diag(step) if isinstance(step, torch.Tensor) else step * identity
        assert ((K.apply(x) @ (identity + D @ (identity - W)).mT) - x).abs().max() < 1e-11
        back = linear.adjoint.resolvent(step)
        assert ((back.apply(x) @ (identity + D @ (identity - W.mT)).mT) - x).abs().max() < 1e-11
    assert linear.resolvent(0.3) is linear.resolvent(0.3)


def test_resolvent_keeps_the_graph_and_is_then_not_remembered() -> None:
    W = monotone_weight(3, seed=4)[0].requires_grad_()
    linear = Dense(W)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(linear.resolvent(0.5).to_dense().sum(), W)
        assert gradient.abs().sum() > 0


def test_pullback_is_the_gradient() -> None:
    W = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    z, g = torch.randn(2, 5, 4, dtype=torch.float64)
    (expected,) = torch.autograd.grad((Dense(W).apply(z) * g).sum(), W)
    assert torch.allclose(Dense(W).pullback(z, g)[0], expected)
    # the generic route that other maps inherit
    assert torch.allclose(super(Dense, Dense(W)).pullback(z, g)[0], expected)


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(InputError, match=r"\bweight\b"):
        Dense(torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"\bweight\b"):
        Dense(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(PreconditionError, match=r"\bsingular\b"):
        Dense(2 * torch.eye(2)).resolvent(1.0)
    P = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    with pytest.raises(PreconditionError, match=r"\bWeightedL2\b"):
        Dense(torch.zeros(2, 2)).operator(FullP(P))


def test_a_map_that_is_not_monotone_has_infinite_condition() -> None:
    op = Dense(3 * torch.eye(2, dtype=torch.float64)).operator(WeightedL2.identity(2, dtype=torch.float64))
    assert not op.bounds.strongly_monotone and op.bounds.condition == float("inf")
    assert op.bounds.monotonicity == pytest.approx(-2)
