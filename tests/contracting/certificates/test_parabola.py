"""The parabola test, its multiplier search and its Riccati metric, against matrix inequalities and enumeration."""

from __future__ import annotations

import pytest
import torch

from contracting.certificates import (
    ExplicitMetric,
    FiringRateSystem,
    GivenMetric,
    HopfieldSystem,
    ParabolaTest,
    SectorInequality,
    VertexInequalities,
    check,
    find_metric,
)
from contracting.certificates.multipliers import scaled
from contracting.certificates.numerical_range import boundary, reach
from contracting.certificates.riccati import hamiltonian_rate, riccati_metric
from contracting.errors import InputError, PreconditionError
from contracting.metrics import FullP
from tests.contracting.certificates.instances import gaussian, quadratic_rate, random_lben, rotation, swept_reach
from tests.problems import monotone_weight

SLOPES = [(0.0, 1.0), (0.0, 0.25), (0.1, 1.0), (0.5, 0.8), (-1.0, 1.0), (-0.5, 1.0), (1.0, 1.0)]


@pytest.mark.parametrize("k", [1, 1.9, 2.01, 4, 10])
def test_counterexample_has_the_rate_1_minus_half_k(k: float) -> None:
    """Condition 1 holds with m = 1 for every k, yet the best constant quadratic metric gives exactly 1 − k/2."""
    W = rotation(k)
    assert find_metric(W).monotonicity == pytest.approx(1, abs=1e-9)
    for system in (FiringRateSystem(W=W), HopfieldSystem(W=W)):
        for method in (VertexInequalities(), SectorInequality(), ParabolaTest(), ParabolaTest(optimise=25)):
            assert method.certify(system).rate == pytest.approx(1 - k / 2, abs=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_parabola_rate_is_the_optimum_of_the_inequality_for_its_multiplier(seed: int) -> None:
    n = 3 + seed % 10
    Q = torch.exp(gaussian(n, 100 + seed)[0])
    flow = HopfieldSystem if seed % 2 else FiringRateSystem  # Q is that of the flow, not of its transpose
    system = flow(W=gaussian(n, seed, 1.5))
    by_program = SectorInequality(multiplier=Q, tolerance=1e-5).certify(system).rate
    by_parabola = ParabolaTest(multiplier=Q).certify(system).rate
    assert by_parabola == pytest.approx(by_program, abs=1e-4)
    assert by_parabola >= by_program - 1e-5


@pytest.mark.parametrize("method", [SectorInequality, ParabolaTest])
def test_a_multiplier_that_does_not_fit_is_refused(method: type[SectorInequality] | type[ParabolaTest]) -> None:
    for system in (FiringRateSystem(W=gaussian(4, 0)), HopfieldSystem(W=gaussian(4, 0))):
        with pytest.raises(InputError, match=r"\bmultiplier\b"):
            method(multiplier=torch.ones(3)).certify(system)
        with pytest.raises(InputError, match=r"\bmultiplier\b"):
            method(multiplier=torch.tensor([1.0, -1.0, 1.0, 1.0])).certify(system)


@pytest.mark.parametrize("seed", range(8))
def test_sweep_cutting_planes_and_hamiltonian_agree(seed: int) -> None:
    M = gaussian(2 + seed, seed, 2.0)
    exact = hamiltonian_rate(M)
    cut, (lower, upper) = reach(M), swept_reach(M)
    assert 1 - cut.upper == pytest.approx(exact, abs=1e-7)
    assert cut.lower <= cut.upper and lower <= cut.upper and cut.lower <= upper
    assert len(cut.angles) < 40


def test_reach_of_a_known_range() -> None:
    """𝒲(k[[0,1],[−1,0]]) = j[−k, k]: g = k/2. A Jordan block has the disc of radius ½: g = ½. −I: g = 0."""
    assert reach(rotation(3.0)).upper == pytest.approx(1.5, abs=1e-8)
    assert reach(torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)).upper == pytest.approx(0.5, abs=1e-8)
    assert reach(-torch.eye(3, dtype=torch.float64)).upper == pytest.approx(0, abs=1e-8)
    assert reach(torch.zeros(2, 2, dtype=torch.float64)).upper == 0


@pytest.mark.parametrize("seed", range(40))
def test_riccati_metric_passes_the_checker(seed: int) -> None:
    """40 of 40, every slope interval, both flows; the certificate keeps the rate of the exact test."""
    n, slopes = 2 + seed % 11, SLOPES[seed % len(SLOPES)]
    W = gaussian(n, seed, 0.5 + seed % 4)
    firing, hopfield = FiringRateSystem(W=W, slopes=slopes), HopfieldSystem(W=W, slopes=slopes)
    exact = hamiltonian_rate(W, firing.slopes)
    size = 1 + float(torch.linalg.matrix_norm(W, 2))
    for system in (firing, hopfield):
        certificate = ParabolaTest(multiplier=torch.ones(n)).certify(system)
        assert check(certificate, system) > 0
        assert exact - 1e-5 * size <= certificate.rate <= exact + 1e-6 * size
        if n <= 8:
            assert isinstance(certificate.metric, FullP)
            true = quadratic_rate(certificate.metric.matrix, W, slopes=slopes, hopfield=system is hopfield)
            assert certificate.rate <= true + 1e-8


def test_no_riccati_metric_above_the_best_rate() -> None:
    for seed in range(5):
        M = gaussian(6, seed)
        rate = hamiltonian_rate(M)
        assert riccati_metric(M, (0.0, 1.0), rate - 1e-4) is not None
        P = riccati_metric(M, (0.0, 1.0), rate + 0.05)
        if P is not None:  # whatever comes out, its true rate is judged, not believed
            certificate = GivenMetric(metric=FullP(P)).certify(FiringRateSystem(W=M))
            assert certificate.rate <= quadratic_rate(P, M) + 1e-9


@pytest.mark.parametrize("seed", range(7))
def test_optimised_multiplier_reaches_the_full_inequality(seed: int) -> None:
    n = 3 + seed % 8
    system = FiringRateSystem(W=gaussian(n, 50 + seed, 1.6))
    start, best = (ParabolaTest(optimise=count).certify(system).rate for count in (0, 25))
    assert best >= start - 1e-7
    assert best == pytest.approx(SectorInequality().certify(system).rate, abs=1e-3)


@pytest.mark.parametrize("slopes", SLOPES[2:5])
def test_slope_intervals_are_exact_for_their_multiplier(slopes: tuple[float, float]) -> None:
    for seed in range(3):
        system = HopfieldSystem(W=gaussian(4, seed, 1.5), slopes=slopes)
        ones = torch.ones(4, dtype=torch.float64)
        rate = ParabolaTest(multiplier=ones).certify(system).rate
        assert rate == pytest.approx(SectorInequality(multiplier=ones).certify(system).rate, abs=1e-4)
        assert rate >= ParabolaTest(multiplier=ones).certify(system.with_slopes((min(0.0, slopes[0]), 1.0))).rate - 1e-6


@pytest.mark.parametrize("skew", [0.0, 0.3])
def test_full_metric_is_within_one_percent_of_the_truth_for_mild_skew(skew: float) -> None:
    for seed in range(2):
        W, lam = monotone_weight(5, seed=seed, skew=skew, spread=0.5, monotonicity=0.5)
        system = FiringRateSystem(W=W, hint=lam)
        true = VertexInequalities().certify(system).rate
        assert true * 0.99 <= SectorInequality().certify(system).rate <= true + 1e-5
        assert true * 0.99 <= ParabolaTest(optimise=25).certify(system).rate <= true + 1e-5


def test_explicit_metric_is_exact_without_skew_and_certifies_the_contracting_parameterisation() -> None:
    W, lam = monotone_weight(7, seed=5, skew=0.0, spread=1.0, monotonicity=0.4)
    rate = ExplicitMetric().certify(FiringRateSystem(W=W, hint=lam)).rate
    assert rate == pytest.approx(0.4, abs=1e-6)
    for c in (0.0, 0.3, 0.7):
        weights = random_lben(6, 3, skew=4.0, spread=1.0, contraction_rate=c)
        assert weights.metric is not None
        matrix, hint = weights.state.to_dense(), weights.metric.weights
        for system in (FiringRateSystem(W=matrix, hint=hint), HopfieldSystem(W=matrix, hint=hint)):
            assert ExplicitMetric().certify(system).rate >= c - 1e-6
    with pytest.raises(PreconditionError, match=r"\bslopes\b"):
        ExplicitMetric().certify(FiringRateSystem(W=W, slopes=(-1.0, 1.0)))


def test_the_metric_of_the_hopfield_flow_comes_from_the_transposed_weight() -> None:
    """QP⁻¹Q with P of the same weight is *not* a metric of the Hopfield flow; with P of Q⁻¹WᵀQ it is, as is W⁻ᵀPW⁻¹."""
    W = gaussian(5, 11, 1.5)
    rate = hamiltonian_rate(W)
    P, transposed = (riccati_metric(M, (0.0, 1.0), rate - 1e-6) for M in (W, W.mT))
    assert P is not None and transposed is not None
    inverse = torch.linalg.inv(W)
    assert quadratic_rate(torch.linalg.inv(transposed), W, hopfield=True) >= rate - 1e-5
    conjugate = inverse.mT @ P @ inverse
    assert quadratic_rate((conjugate + conjugate.mT) / 2, W, hopfield=True) == pytest.approx(quadratic_rate(P, W))
    assert quadratic_rate(torch.linalg.inv(P), W, hopfield=True) < rate - 0.1


def test_scaled_is_the_weight_in_the_coordinates_of_q() -> None:
    Q = torch.tensor([4.0, 1.0], dtype=torch.float64)
    expected = torch.tensor([[1.0, 2.0], [0.5, 1.0]], dtype=torch.float64)
    assert torch.equal(scaled(torch.ones(2, 2, dtype=torch.float64), Q), expected)


def test_general_slopes_of_large_weights_are_bisected_by_riccati(monkeypatch: pytest.MonkeyPatch) -> None:
    system = FiringRateSystem(W=gaussian(30, 2), slopes=(0.1, 1.0))
    exact = ParabolaTest(optimise=0).certify(system).rate
    monkeypatch.setattr("contracting.certificates.parabola._EXACT_BISECTION", 0)
    assert ParabolaTest(optimise=0).certify(system).rate == pytest.approx(exact, abs=5e-3)


@pytest.mark.slow
def test_a_certificate_with_its_metric_at_n_200_takes_seconds() -> None:
    W = gaussian(200, 0)
    for system in (FiringRateSystem(W=W), HopfieldSystem(W=W, slopes=(0.1, 1.0))):
        rate = ParabolaTest().certify(system).rate
        assert 1 - 0.99 * float(torch.linalg.matrix_norm(W, 2)) < rate < 1 - float(torch.linalg.eigvals(W).real.max())


@pytest.mark.parametrize("points", [0, -1, 0.5])
def test_no_directions_show_nothing(points: int) -> None:
    M = torch.tensor([[0.0, 3.0], [-3.0, 0.0]], dtype=torch.float64)
    with pytest.raises(InputError, match=r"\bpoints\b"):
        boundary(M, points=points)
    assert boundary(M, points=1).shape == (1,)
