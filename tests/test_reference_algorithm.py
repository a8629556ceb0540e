"""The reference algorithm that the benchmarks compare with is right, and is what it is said to be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from contracting.activations.catalogue import ReLU
from contracting.gradients.implicit import Implicit
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers.newton import SemismoothNewton
from equilibrium.layers import LBEN

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = pytest.importorskip("reference_algorithm")
    yield module
    sys.modules.pop("reference_algorithm", None)


@pytest.fixture
def problem() -> EquilibriumProblem:
    generator = torch.Generator().manual_seed(3)
    V, S = (torch.randn(20, 20, generator=generator, dtype=torch.float64) / 20**0.5 for _ in range(2))
    q = torch.randn(7, 20, generator=generator, dtype=torch.float64)
    metric = WeightedL2.identity(20, dtype=torch.float64)
    return EquilibriumProblem(linear=Dense(-(V.mT @ V + S - S.mT)), q=q, activation=ReLU(), metric=metric)


def test_finds_the_equilibrium_and_halves_while_that_helps(reference: Any, problem: EquilibriumProblem) -> None:
    W, q = problem.linear.to_dense(), problem.q
    setting = reference.halved(W, q, 1e-12)
    z, iterations = reference.equilibrium(W, q, reference.inverse(W, setting.alpha), setting)
    expected = solve(problem, SemismoothNewton(), stop=Stop(rtol=1e-13)).z
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-11)
    assert iterations == setting.iterations

    def count(alpha: float) -> int:
        tried = reference.Setting(alpha=alpha, tolerance=1e-12, iterations=0)
        return reference.equilibrium(W, q, reference.inverse(W, alpha), tried)[1]

    alpha = 1.0
    while alpha > setting.alpha:
        assert count(alpha / 2) <= count(alpha)
        alpha /= 2
    assert count(alpha / 2) > count(alpha)


def test_its_step_norm_can_lie(reference: Any, problem: EquilibriumProblem) -> None:
    """With a tiny step the iteration stops far from the equilibrium: what the oracle has to be protected from."""
    W, q = problem.linear.to_dense(), problem.q
    setting = reference.Setting(alpha=1e-3, tolerance=1e-3, iterations=0, applied=False)
    z, _ = reference.equilibrium(W, q, reference.inverse(W, 1e-3), setting)
    relative = problem.residual(z).norm(dim=-1) / problem.map(z).norm(dim=-1)
    assert float(relative.max()) > 10 * setting.tolerance


@pytest.mark.parametrize("target", [1e-3, 1e-8])
def test_the_oracle_reaches_the_target_and_no_step_of_its_list_is_cheaper(
    reference: Any, problem: EquilibriumProblem, target: float
) -> None:
    W, q = problem.linear.to_dense(), problem.q
    alphas = [2.0, 1.0, 0.5, 0.25, 0.125]
    best = reference.oracle(W, q, target, alphas)
    z, iterations = reference.equilibrium(W, q, reference.inverse(W, best.alpha), best)
    assert iterations == best.iterations
    assert bool((problem.residual(z).norm(dim=-1) <= target * problem.map(z).norm(dim=-1)).all())
    for alpha in alphas:
        alone = reference.oracle(W, q, target, [alpha])
        assert alone.iterations >= best.iterations
        # one iteration fewer is not enough, with either ending
        for applied in (False, True):
            fewer = reference.Setting(alpha=alpha, tolerance=0.0, iterations=0, applied=applied)
            z, _ = reference.equilibrium(W, q, reference.inverse(W, alpha), fewer, most=best.iterations - 1)
            assert bool((problem.residual(z).norm(dim=-1) > target * problem.map(z).norm(dim=-1)).any())


def test_the_best_step_is_that_of_the_list_with_the_fewest_iterations(
    reference: Any, problem: EquilibriumProblem
) -> None:
    W, q = problem.linear.to_dense(), problem.q
    alphas, target = [2.0, 1.0, 0.5, 0.25, 1e-3], 1e-6
    best = reference.best_step(W, q, target, alphas)
    counts = {}
    for alpha in alphas:
        for tolerance in (1e-6, 1e-7, 1e-8, 1e-9):  # as its user would go on
            tried = reference.Setting(alpha=alpha, tolerance=tolerance, iterations=0)
            z, iterations = reference.equilibrium(W, q, reference.inverse(W, alpha), tried)
            if bool((problem.residual(z).norm(dim=-1) <= target * problem.map(z).norm(dim=-1)).all()):
                counts[iterations, alpha, tolerance] = None
                break
    iterations, alpha, tolerance = min(counts)
    assert (best.iterations, best.alpha, best.applied) == (iterations, alpha, True)
    assert best.tolerance == pytest.approx(tolerance)
    assert best.iterations >= reference.oracle(W, q, target, alphas).iterations
    assert reference.best_step(W, q, 1e-18, alphas) is None


def test_its_gradient_is_that_of_the_layer(reference: Any) -> None:
    torch.manual_seed(0)
    layer = LBEN(
        5, 12, 3, lipschitz=1.0, stop=Stop(rtol=1e-13), backward=Implicit(stop=Stop(rtol=1e-13, atol=0.0)),
        dtype=torch.float64,
    )  # fmt: skip
    setting = reference.Setting(alpha=0.5, tolerance=1e-14, iterations=0)
    rival = reference.ReferenceLayer(layer.parameterization, setting, 1e-14)
    x = torch.randn(4, 5, dtype=torch.float64)
    layer(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    layer.zero_grad()
    rival(x).square().sum().backward()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-10)
    layer.zero_grad()
    reference.ReferenceLayer(layer.parameterization, setting, 1e-1)(x).square().sum().backward()  # a loose adjoint
    assert any(not torch.allclose(p.grad, expected[name], rtol=1e-6, atol=0) for name, p in layer.named_parameters())
