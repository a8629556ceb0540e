"""ℓ1 and ℓ∞ certificates against enumeration, splitting rates against their formulas, upper bounds above everything."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from contracting.certificates import (
    DiagonalMetric,
    FiringRateSystem,
    GivenMetric,
    HopfieldSystem,
    InclusionMetric,
    InclusionSystem,
    PolyhedralMetric,
    abscissa_bound,
    best_forward_backward_step,
    best_peaceman_rachford_step,
    forward_backward_system,
    peaceman_rachford_system,
    switching_bound,
    upper_bound,
)
from contracting.errors import InputError, PreconditionError
from contracting.metrics import WeightedL1, WeightedL2, WeightedLinf
from tests.contracting.certificates.instances import constant_slope_bound, corners, gaussian, rotation, splitting_rates
from tests.problems import monotone_weight


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 0.9), (-0.7, 1.0)])
@pytest.mark.parametrize("norm", [WeightedLinf, WeightedL1])
@pytest.mark.parametrize("flow", [FiringRateSystem, HopfieldSystem])
def test_polyhedral_rates_equal_enumeration(
    flow: type[FiringRateSystem], norm: type[WeightedLinf], slopes: tuple[float, float]
) -> None:
    for seed in range(10):
        W = gaussian(5, seed)
        certificate = PolyhedralMetric(norm=norm).certify(flow(W=W, slopes=slopes))
        D = corners(slopes, 5)
        M = D[:, :, None] * W if flow is FiringRateSystem else W * D[:, None, :]
        enumerated = 1 - float(certificate.metric.matrix_measure(M).max())
        assert certificate.rate == pytest.approx(enumerated, abs=1e-12)
        assert certificate.rate <= enumerated


def perron_root(W: torch.Tensor) -> float:
    """α(⌈W⌉)."""
    return float(torch.linalg.eigvals(W.abs() - torch.diag(W.diagonal().abs() - W.diagonal())).real.max())


def test_polyhedral_rates_are_the_formulas_of_the_perron_root() -> None:
    for seed in range(10):
        W = gaussian(6, seed, 1.3)
        root = perron_root(W)
        positive = W - torch.diag(W.diagonal().clamp(max=0))
        clipped = perron_root(positive)
        for flow, plain, other in (
            (FiringRateSystem, WeightedLinf, WeightedL1),
            (HopfieldSystem, WeightedL1, WeightedLinf),
        ):
            assert PolyhedralMetric(norm=plain).certify(flow(W=W)).rate == pytest.approx(1 - max(0, root), abs=1e-8)
            assert PolyhedralMetric(norm=other).certify(flow(W=W)).rate == pytest.approx(1 - max(0, clipped), abs=1e-8)
        # no other weights do better
        for trial in range(20):
            weights = torch.exp(gaussian(6, 1000 + trial)[0])
            assert GivenMetric(metric=WeightedLinf(weights)).certify(FiringRateSystem(W=W)).rate <= 1 - max(0, root)


def test_splitting_rates_are_the_formulas_and_reach_the_inclusion() -> None:
    W, lam = monotone_weight(6, seed=1, skew=2.0, spread=0.7, monotonicity=0.6)
    metric = WeightedL2(lam)
    A = torch.eye(6, dtype=torch.float64) - metric.whiten(W)
    steps = torch.tensor([1e-4, 0.02, 0.1, 0.2], dtype=torch.float64)
    forward, reflected = splitting_rates(W, lam, steps)
    eye = torch.eye(6, dtype=torch.float64)
    for step, got, mirrored in zip(steps.tolist(), forward.tolist(), reflected.tolist(), strict=True):
        formula = 0.5 * (1 + 0.6 * step - float(torch.linalg.matrix_norm(eye - step * A, 2)))
        assert got >= formula - 1e-9
        factor = float(torch.linalg.matrix_norm(torch.linalg.solve(eye + step * A, eye - step * A), 2))
        assert mirrored == pytest.approx(1 - factor, abs=1e-6)
    assert float(forward[0]) / 1e-4 == pytest.approx(0.6, abs=2e-3)
    inclusion = InclusionMetric(optimise=0).certify(InclusionSystem(W=W, hint=lam))
    assert inclusion.rate == pytest.approx(0.6, abs=1e-9)


def test_best_steps_beat_a_grid() -> None:
    W, lam = monotone_weight(6, seed=2, skew=2.0, monotonicity=0.6)
    metric, grid = WeightedL2(lam), torch.logspace(-2, 0.2, 25, dtype=torch.float64)
    forward, reflected = splitting_rates(W, lam, grid)
    best = best_forward_backward_step(W, metric)
    rate = DiagonalMetric().certify(forward_backward_system(W, step=best.step, hint=lam)).rate
    assert rate >= float(forward.max()) - 2e-3 and rate >= 1 - best.factor - 1e-9
    best = best_peaceman_rachford_step(W, metric)
    certificate = DiagonalMetric().certify(peaceman_rachford_system(W, step=best.step, hint=lam))
    assert certificate.rate >= float(reflected.max()) - 1e-5
    assert certificate.rate == pytest.approx(1 - best.factor, abs=1e-6)
    with pytest.raises(PreconditionError, match="Condition 1"):
        best_forward_backward_step(2 * torch.eye(6, dtype=torch.float64), metric)


def test_switching_finds_the_divergence_of_the_counterexample() -> None:
    for flow in (FiringRateSystem, HopfieldSystem):
        bound = switching_bound(flow(W=rotation(10.0)))
        assert bound.rate == pytest.approx(-2.314, rel=0.01)
        assert bound.rate >= 1 - 10 / 2
        # the word is evidence that anyone can check
        F = flow(W=rotation(10.0)).jacobians(bound.slopes)
        product = torch.eye(2, dtype=torch.float64)
        for matrix, time in zip(F, bound.dwell, strict=True):
            product = torch.linalg.matrix_exp(matrix * time) @ product
        growth = torch.linalg.eigvals(product).abs().max().log() / bound.dwell.sum()
        assert -float(growth) == pytest.approx(bound.rate, abs=1e-6)
    assert abscissa_bound(FiringRateSystem(W=rotation(10.0))).rate == pytest.approx(1)


@pytest.mark.parametrize("flow", [FiringRateSystem, HopfieldSystem])
def test_the_word_of_a_switching_bound_shows_its_rate(flow: type[FiringRateSystem] | type[HopfieldSystem]) -> None:
    """In the flow itself, in the order given: for words of three pieces or more the other order shows another rate."""

    def rate(slopes: torch.Tensor, dwell: torch.Tensor) -> float:
        product = torch.eye(6, dtype=torch.float64)
        for matrix, time in zip(system.jacobians(slopes), dwell, strict=True):
            product = torch.linalg.matrix_exp(matrix * time) @ product
        return -float(torch.linalg.eigvals(product).abs().max().log() / dwell.sum())

    for seed in (0, 2):
        W = monotone_weight(6, seed=seed, skew=8.0, spread=0.5)[0]
        system = flow(W=W if flow is HopfieldSystem else W.mT.contiguous(), speed=1.5)
        bound = switching_bound(system)
        assert len(bound.slopes) >= 3
        assert rate(bound.slopes, bound.dwell) <= bound.rate <= rate(bound.slopes, bound.dwell) + 1e-7
        assert abs(rate(bound.slopes.flip(0), bound.dwell.flip(0)) - bound.rate) > 0.1


@pytest.mark.parametrize("build", [forward_backward_system, peaceman_rachford_system])
def test_a_step_per_neuron_moves_the_hint_to_the_metric_of_the_splitting(build) -> None:  # type: ignore[no-untyped-def]
    """The step D contracts in ΛD⁻¹, which is where searches should start."""
    W, lam = monotone_weight(4, seed=1, skew=2.0, spread=0.5)
    D = torch.tensor([0.1, 0.5, 1.0, 0.02], dtype=torch.float64)
    system = build(W, step=D, hint=lam)
    assert torch.allclose(system.hint, lam / D)
    assert DiagonalMetric().certify(system).rate == DiagonalMetric(weights=lam / D).certify(system).rate > 0
    assert DiagonalMetric(weights=lam).certify(system).rate < 0
    assert torch.equal(build(W, step=0.3, hint=lam).hint, lam)


@pytest.mark.parametrize("build", [forward_backward_system, peaceman_rachford_system])
@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf, "1", torch.ones(3), torch.tensor([1.0, 1, 1, -1])])
def test_a_step_that_cannot_be_is_refused(build, step) -> None:  # type: ignore[no-untyped-def]
    W, lam = monotone_weight(4, seed=1)
    with pytest.raises(InputError, match=r"\bstep\b"):
        build(W, step=step, hint=lam)


def test_a_step_without_resolvent_is_refused() -> None:
    with pytest.raises(PreconditionError, match="step"):
        peaceman_rachford_system(2 * torch.eye(2, dtype=torch.float64), step=1.0)


@pytest.mark.parametrize("slopes", [(-1.0, -1.0), (-1.0, -0.99999), (1.0, 1.0), (0.5, 0.5)])
def test_narrow_slopes_are_widened_to_an_interval_that_is_allowed(slopes: tuple[float, float]) -> None:
    low, high = FiringRateSystem(W=rotation(1.0), slopes=slopes).slopes
    assert -1 <= low <= slopes[0] <= slopes[1] <= high <= 1 and high - low >= 0.999e-3


def test_a_long_step_of_peaceman_rachford_is_certified() -> None:
    """α = 2000 and slopes up to ¼ leave slopes of 2prox − 1 in [−1, −.99967]."""
    W, lam = monotone_weight(4, seed=1, skew=1.0)
    system = peaceman_rachford_system(W, step=2000.0, slopes=(0.0, 0.25), hint=lam)
    assert system.slopes[0] == -1 and system.slopes[1] < -0.99
    A = torch.eye(4, dtype=torch.float64) - W
    factor = 1 - DiagonalMetric().certify(system).rate
    reflection = torch.linalg.solve(torch.eye(4, dtype=torch.float64) + 2000 * A, torch.eye(4) - 2000 * A)
    assert factor <= float(torch.linalg.matrix_norm(reflection, 2)) + 1e-6


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 0.9), (-1.0, 1.0)])
def test_abscissa_bound_is_the_maximum_over_vertices(slopes: tuple[float, float]) -> None:
    for seed in range(3):
        W = gaussian(7, seed)
        for flow in (FiringRateSystem, HopfieldSystem):
            bound = abscissa_bound(flow(W=W, slopes=slopes))
            assert bound.rate == pytest.approx(constant_slope_bound(W, slopes), abs=1e-10)
    W = gaussian(12, 0)
    assert abscissa_bound(FiringRateSystem(W=W)).rate >= constant_slope_bound(W) - 1e-10


def test_bound_of_the_inclusion_is_over_principal_submatrices() -> None:
    W = -3 * torch.eye(3, dtype=torch.float64) + gaussian(3, 0)
    values = [
        float(torch.linalg.eigvals(W[list(S)][:, list(S)]).real.max())
        for size in (1, 2, 3)
        for S in itertools.combinations(range(3), size)
    ]
    assert upper_bound(InclusionSystem(W=W)).rate == pytest.approx(1 - max(values))
