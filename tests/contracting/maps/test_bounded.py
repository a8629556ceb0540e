"""Bounds of large operators come from products and factorisations, lie on the safe side and are close."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracting.activations.catalogue import ReLU
from contracting.integrators import ExplicitEuler
from contracting.loop.method import Method
from contracting.loop.run import solve
from contracting.maps import base
from contracting.maps.bounded import FactoredOperator
from contracting.maps.dense import Dense
from contracting.maps.operator import MonotoneOperator
from contracting.metrics import WeightedL2
from contracting.solvers.fista import FISTA
from contracting.solvers.splitting import ForwardBackward
from contracting.solvers.tseng import Tseng
from tests.problems import monotone_weight, planted


@pytest.mark.parametrize("n", [1, 2, 40])
@pytest.mark.parametrize(
    "shape",
    [{"skew": 0.0}, {"skew": 3.0}, {"skew": 1.0, "monotonicity": 1e-6}, {"skew": 1.0, "scale": 1e4}, {"skew": 1e3}],
    ids=str,
)
def test_bounds_are_on_the_safe_side_and_close(n: int, shape: dict[str, float]) -> None:
    blocks = Dense(monotone_weight(n, seed=1, **shape)[0]).blocks(WeightedL2(torch.ones(n, dtype=torch.float64)))  # type: ignore[arg-type]
    found, exact = FactoredOperator(blocks).bounds, MonotoneOperator(blocks).bounds
    slack = 1e-11 * exact.lipschitz
    assert 0.75 * exact.monotonicity - slack <= found.monotonicity <= exact.monotonicity + slack
    for name, close in (("symmetric", 1.3), ("skew", 1.3), ("lipschitz", 1.3), ("gain", 3.0)):
        bound, true = getattr(found, name), getattr(exact, name)
        rough = 0.5 if name == "gain" else 0.0  # which is found from m and L alone
        assert true - slack <= bound <= close * true + rough + slack, name
    step = FactoredOperator(blocks).best_forward
    assert step.factor is not None and MonotoneOperator(blocks).forward_factor(float(step.step)) <= step.factor + 1e-12


def test_what_is_not_monotone_is_not_called_so() -> None:
    W = torch.diag(torch.tensor([0.5, 1.0 + 1e-9, -3.0], dtype=torch.float64))
    blocks = Dense(W).blocks(WeightedL2(torch.ones(3, dtype=torch.float64)))
    bounds = FactoredOperator(blocks).bounds
    assert not bounds.strongly_monotone and bounds.monotonicity <= -1e-9 * (1 - 1e-6)
    assert bounds.lipschitz >= 4 and bounds.symmetric >= 4


@pytest.mark.parametrize(
    "method",
    [ForwardBackward(), ForwardBackward(step=0.3), Tseng(), Tseng(step=0.2), ExplicitEuler(), FISTA()],
    ids=lambda m: f"{type(m).__name__}-{getattr(m, 'step', None)}",
)
def test_methods_of_products_only_decompose_no_large_matrix(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also to say afterwards how far the answer may be off."""
    monkeypatch.setattr(base, "_DECOMPOSED", 30)
    monkeypatch.setattr(base, "_EXACT_LIMIT", 30)
    W, lam = monotone_weight(60, seed=2, skew=0.0 if isinstance(method, FISTA) else 0.5)
    problem, exact = planted(ReLU(), W, lam, batch=3, seed=3)

    def refused(*args: Tensor, **options: object) -> Tensor:
        raise AssertionError("a decomposition of a large matrix")

    for name in ("eigh", "eigvalsh", "eig", "eigvals", "svd", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, refused)
    solution = solve(problem, method)
    assert solution.error_bound is not None and problem.metric is not None
    assert (problem.metric.norm(solution.z - exact) <= solution.error_bound).all()
