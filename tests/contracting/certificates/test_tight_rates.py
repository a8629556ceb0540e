"""Rates meet the truth where they were loose: multipliers are optimised and metrics graded without being asked."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from contracting.certificates import (
    CertificateError,
    CircleCriterion,
    DiagonalMetric,
    FiringRateSystem,
    HopfieldSystem,
    LinearSystem,
    LyapunovMetric,
    ParabolaTest,
    certify,
    check,
    peaceman_rachford_system,
    upper_bound,
)
from contracting.certificates.lmi import VertexInequalities, available
from contracting.certificates.multipliers import scaled, small_gain_multiplier
from contracting.certificates.spectra import schur
from contracting.lure.system import LureSystem
from contracting.maps.operator import MonotoneOperator
from contracting.metrics import WeightedL2
from tests.contracting.certificates.instances import gaussian
from tests.problems import monotone_weight

F64 = torch.float64


def reflected(*, off: float, slopes: tuple[float, float] = (0.0, 1.0), n: int = 5) -> HopfieldSystem:
    """A Peaceman–Rachford flow whose hint is off by factors up to e^±off."""
    W, lam = monotone_weight(n, seed=3, skew=2.0, spread=1.5, monotonicity=0.1)
    operator = MonotoneOperator((torch.eye(n, dtype=F64) - WeightedL2(lam).whiten(W))[None])
    wrong = off * (2 * torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=F64) - 1)
    return peaceman_rachford_system(W, step=operator.best_reflected.step, slopes=slopes, hint=lam * wrong.exp())


def test_the_multiplier_of_peaceman_rachford_is_optimised_whatever_the_hint_says() -> None:
    exact, wrong = reflected(off=0.0), reflected(off=2.0)
    before = DiagonalMetric().certify(exact).rate
    assert DiagonalMetric().certify(wrong).rate < 0 < before  # what the hint alone proves
    rates = [ParabolaTest().certify(system).rate for system in (exact, wrong)]
    assert rates[0] == pytest.approx(rates[1], abs=1e-4) and rates[0] > 2 * before
    assert rates[0] <= upper_bound(exact).rate
    found = ParabolaTest().certify(exact)
    with pytest.raises(CertificateError):
        check(replace(found, rate=found.rate + 1e-3), exact)


def test_the_smallest_scaled_norm_is_the_one_of_a_rotation_in_other_units() -> None:
    """For DRD⁻¹ with R orthogonal ‖Q^½DRD⁻¹Q^−½‖ ≥ 1, the spectral radius, and Q = D⁻² attains it."""
    R = torch.linalg.qr(gaussian(6, 0)).Q
    D = torch.logspace(-1, 1, 6, dtype=F64)
    Q = small_gain_multiplier(D[:, None] * R / D, torch.ones(6, dtype=F64), evaluations=25)
    assert float(torch.linalg.matrix_norm(scaled(D[:, None] * R / D, Q), 2)) == pytest.approx(1, abs=1e-4)
    known = (Q * D.square()).log()
    assert float((known - known.mean()).abs().max()) < 0.02


@pytest.mark.parametrize("low", [-0.6, 0.3])
def test_slopes_of_any_interval_have_their_own_optimum(low: float) -> None:
    """The circle criterion on the same matrices, written as a Lur'e system, searches in another way."""
    W, eye = gaussian(4, 5, 1.3), torch.eye(4, dtype=F64)
    system = FiringRateSystem(W=W, slopes=(low, 1.0))
    ends = torch.full((4,), low, dtype=F64), torch.ones(4, dtype=F64)
    loop = LureSystem(A=-eye, B=eye, C=W, D=0 * W, slopes=ends)
    rate, kept = ParabolaTest().certify(system).rate, ParabolaTest(optimise=0).certify(system).rate
    assert rate == pytest.approx(CircleCriterion().certify(loop).rate, abs=1e-4)
    assert rate > kept + 1e-3


def test_a_finder_called_by_itself_optimises_and_keeps_a_multiplier_that_is_given() -> None:
    system, ones = FiringRateSystem(W=gaussian(6, 1)), torch.ones(6, dtype=F64)
    asked = ParabolaTest(optimise=25).certify(system)
    by_itself, kept = ParabolaTest().certify(system), ParabolaTest(multiplier=ones).certify(system)
    assert by_itself.rate == asked.rate and by_itself.method == asked.method
    assert kept.method == "parabola test" and kept.rate < by_itself.rate - 0.05
    assert kept.multiplier is not None and torch.allclose(kept.multiplier, ones)
    assert ParabolaTest().settled(FiringRateSystem(W=torch.zeros(500, 500))).optimise == 0
    assert ParabolaTest().name != ParabolaTest(optimise=0).name == ParabolaTest(multiplier=ones).name


@pytest.mark.skipif(not available(), reason="needs cvxpy and clarabel")
@pytest.mark.parametrize("n", [6, 7])
def test_all_vertices_are_affordable_up_to_seven_units(n: int) -> None:
    system = FiringRateSystem(W=gaussian(n, 1))
    assert VertexInequalities().affordable(system) is not None
    assert VertexInequalities().affordable(FiringRateSystem(W=gaussian(12, 1))) is None
    rate, sector = VertexInequalities().certify(system).rate, ParabolaTest().certify(system).rate
    assert sector + 4e-3 < rate <= upper_bound(system).rate


def nilpotent(n: int, *, rotated: bool) -> LinearSystem:
    """−I and ones above the diagonal, in rotated coordinates or not: its abscissa is −1 whatever n is."""
    A = torch.diag(torch.ones(n - 1, dtype=F64), 1) - torch.eye(n, dtype=F64)
    Q = torch.linalg.qr(gaussian(n, 1)).Q if rotated else torch.eye(n, dtype=F64)
    return LinearSystem(W=Q @ A @ Q.mT)


@pytest.mark.parametrize(("rotated", "least"), [(False, 0.999), (True, 0.5)])
def test_nilpotent_flows_have_a_graded_metric(rotated: bool, least: float) -> None:
    """Rotated, rounding of the matrix itself moves its eigenvalues by 0.1, and P may be no worse than 1e15."""
    system = nilpotent(16, rotated=rotated)
    certificate = LyapunovMetric().certify(system)
    assert least < certificate.rate < 1 and certify(system).rate >= certificate.rate
    assert certificate.rate <= -float(torch.linalg.eigvals(system.W).real.max()) + 1e-9
    with pytest.raises(CertificateError):
        check(replace(certificate, rate=certificate.rate + 0.2), system)
    euclidean = -float(WeightedL2(torch.ones(16, dtype=F64)).matrix_measure(system.W))
    assert euclidean < 0.02 < certificate.rate


def test_a_schur_form_is_one_for_defective_matrices_as_well() -> None:
    for matrix in (nilpotent(12, rotated=True).W, gaussian(8, 0), torch.zeros(1, 1, dtype=F64)):
        U, T = schur(matrix)
        assert torch.allclose(U @ U.mH, torch.eye(len(U), dtype=U.dtype), atol=1e-13)
        assert torch.allclose(U @ T @ U.mH, matrix.to(U.dtype), atol=1e-13 * max(1.0, math.sqrt(len(U))))
        assert not bool(T.tril(-1).any())
