"""The units in which a system is written do not matter, and no bound lies below a certificate: the faults that were."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracting.certificates import (
    Certificate,
    CertificateError,
    FiringRateSystem,
    HopfieldSystem,
    InclusionSystem,
    LinearSystem,
    SectorInequality,
    VertexInequalities,
    abscissa_bound,
    certification,
    certify,
    check,
    find_metric,
    fixed_input_convergence,
    report,
    rules_out,
    switching_bound,
    upper_bound,
)
from contracting.certificates.balance import balancing, rescale
from contracting.certificates.definite import definite_margin, definite_margins, sizes
from contracting.certificates.search import golden_section
from contracting.certificates.spectra import abscissa_from_below, eigenvalues, radius_from_below
from contracting.certificates.sweeps import sweep_skewness
from contracting.errors import InputError
from contracting.metrics import FullP, WeightedL1, WeightedL2, WeightedLinf
from tests.contracting.certificates.instances import gaussian
from tests.systems import KINDS, normal, seeded

F64 = torch.float64
W3 = torch.tensor([[0.1, 0.3, -0.2], [-0.3, 0.2, 0.1], [0.2, -0.3, 0.1]], dtype=F64)


def graded(e: float) -> tuple[Tensor, Tensor]:
    s = torch.tensor([10**-e, 1.0, 10**e], dtype=F64)
    return W3 * s[:, None] / s, s**-2


@pytest.mark.parametrize("e", [4, 6, 8])
def test_reports_of_graded_weights_are_those_of_the_balanced_one(e: float) -> None:
    W, hint = graded(e)
    plain, there = report(FiringRateSystem(W=W3)), report(FiringRateSystem(W=W, hint=hint))
    assert there.best.rate == pytest.approx(plain.best.rate, abs=1e-6)
    assert there.bound.rate == pytest.approx(plain.bound.rate, abs=1e-6)
    assert plain.quadratic is not None and there.quadratic is not None
    assert there.quadratic.rate == pytest.approx(plain.quadratic.rate, abs=1e-5)
    assert there.best.rate <= there.bound.rate
    for start in (hint, None, torch.ones(3, dtype=F64)):
        assert find_metric(W, start=start).monotonicity == pytest.approx(find_metric(W3).monotonicity, abs=1e-6)


def test_the_best_quadratic_metric_is_the_same_in_all_coordinates() -> None:
    torch.manual_seed(0)
    W = 0.4 * torch.randn(5, 5, dtype=F64)
    for e in (2, 3):
        moved = FiringRateSystem(W=rescale(W, torch.logspace(-e, e, 5, dtype=F64)))
        assert VertexInequalities().certify(moved).rate == pytest.approx(0.5232, abs=1e-4)
        assert SectorInequality().certify(moved).rate == pytest.approx(0.4947, abs=1e-4)


def test_slopes_of_a_bound_are_slopes_of_the_system() -> None:
    for n in (3, 20):
        system = FiringRateSystem(W=3e6 * torch.eye(n, dtype=F64), slopes=(0.0, 1 / 6))
        for bound in (switching_bound(system), abscissa_bound(system)):
            assert bool(((bound.slopes == 0) | (bound.slopes == 1 / 6)).all())
        assert certify(system).rate <= upper_bound(system).rate


@pytest.mark.parametrize("n", [3, 8, 16, 24])
def test_a_nilpotent_weight_of_integers_has_the_bound_1(n: int) -> None:
    """Rounding alone gives its eigenvalues a size of eps^(1/n)."""
    lower = normal(n, n, seed=n).sign().tril(-1) + torch.eye(n, dtype=F64)
    chain = torch.zeros(n, n, dtype=F64)
    chain.diagonal(1).fill_(1.0)
    inverse = torch.linalg.inv(lower).round()
    assert torch.equal(lower @ inverse, torch.eye(n, dtype=F64))
    N = lower @ chain @ inverse  # exact: no triangle to be seen, and NⁿN = 0
    assert float(torch.linalg.matrix_power(N, n).abs().max()) == 0
    bound = abscissa_bound(LinearSystem(W=N - torch.eye(n, dtype=F64)))
    assert 1 <= bound.rate <= 1 + 1e-6
    assert certify(LinearSystem(W=N - torch.eye(n, dtype=F64))).rate <= bound.rate


def test_no_report_gives_a_bound_below_what_it_certifies(monkeypatch: pytest.MonkeyPatch) -> None:
    low = replace(upper_bound(FiringRateSystem(W=W3)), rate=-5.0)
    monkeypatch.setattr(certification, "upper_bound", lambda system, metric: low)
    found = report(FiringRateSystem(W=W3))
    assert found.bound.rate == found.best.rate > 0.7 and found.gap == 0


def test_eigenvalues_that_fail_to_converge_end_no_report() -> None:
    a, b, c = 0.22594058619373425, 0.7120394158340211, 0.5088347039695575
    W = torch.tensor([[0.0, -a, -b], [a, 0.0, c], [b, -c, 0.0]], dtype=F64)
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.eigvals(W)
    assert eigenvalues(W).real.abs().max() < 1e-14
    assert eigenvalues(torch.stack([W, torch.eye(3, dtype=F64)]))[1].real.tolist() == [1.0] * 3
    for flow in (FiringRateSystem, HopfieldSystem, InclusionSystem, LinearSystem):  # torch.linalg.eig(W) kills them
        found = report(flow(W=W))
        assert found.best.rate <= found.bound.rate <= 1
    assert 0.5 < report(FiringRateSystem(W=W)).best.rate


def test_eigenvalues_are_bounded_from_below_in_spite_of_rounding() -> None:
    for seed in range(10):
        M = normal(6, 6, seed=seed)
        exact = torch.linalg.eigvals(M)
        for found, true in (
            (abscissa_from_below(M), float(exact.real.max())),
            (radius_from_below(M, 0.0), float(exact.abs().max())),
        ):
            assert true - 1e-9 <= found <= true
        assert radius_from_below(M, 1e-3) < float(exact.abs().max()) - 1e-3
    jordan = torch.zeros(12, 12, dtype=F64)
    jordan.diagonal(1).fill_(1.0)
    basis = torch.linalg.qr(normal(12, 12, seed=1)).Q
    assert abs(abscissa_from_below(basis.mT @ jordan @ basis)) < 1e-13  # of eigenvalues that come out as 0.05
    assert radius_from_below(basis.mT @ jordan @ basis, 0.0) < 1e-13


def test_checkers_believe_nothing_that_underflows() -> None:
    zeros, witness = torch.zeros(2, 2, dtype=F64), torch.full((2, 1), 1e-200, dtype=F64)
    assert not rules_out(witness, zeros)
    assert rules_out(witness, torch.tensor([[0.9, 4.0], [4.0, 0.9]], dtype=F64))
    far = torch.tensor([[0.9, 4e-150], [4e150, 0.9]], dtype=F64)
    assert rules_out(torch.tensor([[1e-300], [1e-150]], dtype=F64), far)
    subnormal = torch.full((10,), 5e-324, dtype=F64)
    system = FiringRateSystem(W=torch.full((10, 10), 0.4))
    claim = Certificate(
        rate=0.7, metric=WeightedL2(subnormal), multiplier=subnormal, slopes=(0.0, 1.0), method="", flow="", margin=0.0
    )  # fmt: skip
    for metric in (WeightedL2(subnormal), WeightedL1(subnormal), WeightedLinf(subnormal)):
        with pytest.raises(CertificateError):
            check(replace(claim, metric=metric), system)
    # what does hold is proved in the smallest and in the largest units as well as in others
    mild = FiringRateSystem(W=torch.full((10, 10), 0.04))
    for unit in (5e-324, 2.0**-600, 1.0, 2.0**600):
        lam = torch.full((10,), unit, dtype=F64)
        assert check(replace(claim, metric=WeightedL2(lam), multiplier=2 * lam, rate=0.59), mild) > 0
        for other in (WeightedL1(lam), WeightedLinf(lam), FullP(torch.diag(lam))):
            assert check(replace(claim, metric=other, multiplier=None, rate=0.59), mild) > 0
    # W and the metric in units so different that products of the two leave the range
    units = torch.tensor([1e-150, 1e150], dtype=F64)
    swapped = torch.tensor([[0.0, 1e150], [-1e-150, 0.0]], dtype=F64) * 1e-150
    with pytest.raises(CertificateError):
        check(replace(claim, metric=WeightedL2(units**2), multiplier=units**2), FiringRateSystem(W=swapped.flip(0)))


@pytest.mark.parametrize("size", [1e-320, 1e-160, 1e-20])
def test_tiny_weights_have_the_rate_and_the_metric_of_none(size: float) -> None:
    W = size * normal(4, 4, seed=0)
    assert find_metric(W).monotonicity == pytest.approx(1)
    for system in (FiringRateSystem(W=W), HopfieldSystem(W=W), InclusionSystem(W=W)):
        found = report(system)
        assert found.best.rate == pytest.approx(1, abs=1e-5) and found.best.rate <= found.bound.rate
    linear = LinearSystem(W=W)
    assert abs(certify(linear).rate) <= 10 * max(size, 1e-300)
    assert fixed_input_convergence(HopfieldSystem(W=W)).rate == pytest.approx(1, abs=1e-5)


def test_convergence_is_certified_in_all_units() -> None:
    W, hint = graded(6)
    for flow in (HopfieldSystem, FiringRateSystem):
        there, plain = (fixed_input_convergence(flow(W=w, hint=h)) for w, h in ((W, hint), (W3, torch.ones(3))))
        assert (there.rate, there.overshoot) == pytest.approx((plain.rate, plain.overshoot), rel=1e-8)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "subnormal"])
@pytest.mark.parametrize("n", [1, 3, 6])
def test_balanced_coordinates_are_the_same_from_everywhere(kind: str, n: int) -> None:
    for seed in range(3):
        W = KINDS[kind](n, seed)
        d = 10 ** (torch.rand(n, generator=seeded(seed), dtype=F64) * 20 - 10)
        here, moved = rescale(W, balancing(W)), rescale(W, d)
        there = rescale(moved, balancing(moved))
        assert torch.allclose(here, there, rtol=1e-10, atol=1e-10 * float(here.abs().max()))
    off = here - torch.diag(here.diagonal())
    if n > 1 and kind in ("plain", "skewed", "huge", "tiny"):
        rows, columns = (torch.linalg.vector_norm(off / off.abs().max(), dim=dim) for dim in (1, 0))
        assert torch.allclose(rows, columns, rtol=1e-2)


def test_rescaling_by_powers_of_two_is_exact_where_quotients_leave_the_range() -> None:
    W, t = gaussian(2, 0), torch.tensor([2.0**-600, 2.0**500], dtype=F64)
    there = rescale(W, t)
    assert float(there[1, 0]) == float(W[1, 0]) * 2.0**1000 * 2.0**100 and float(there[0, 1]) == 0
    assert torch.equal(there.diagonal(), W.diagonal())


def test_definiteness_is_proved_in_batches_complex_or_real_in_any_unit() -> None:
    G = torch.randn(5, 4, 4, dtype=torch.complex128, generator=seeded(0))
    definite = G @ G.mH + 1e-3 * torch.eye(4)
    smallest = torch.linalg.eigvalsh(definite)[:, 0]
    zero = torch.zeros(4, 4, dtype=F64)
    margins = definite_margins(definite, zero)
    assert bool((margins > 0).all())
    # ½·margin·D is a lower bound
    bound = definite - 0.5 * margins[:, None, None] * torch.diag_embed(definite.diagonal(dim1=-2, dim2=-1))
    assert bool((torch.linalg.eigvalsh(bound) > 0).all())
    shifted = definite - 1.001 * smallest[:, None, None] * torch.eye(4)
    assert definite_margins(shifted, zero).tolist() == [-float("inf")] * 5
    unit = torch.tensor([2.0**-537, 1.0, 2.0**300, 2.0**-200], dtype=F64)
    assert definite_margin(definite[0] * unit[:, None] * unit, zero) == float(margins[0])
    mixed = torch.stack([definite[0], -definite[1], torch.full((4, 4), torch.nan, dtype=torch.complex128)])
    assert (definite_margins(mixed, zero) > 0).tolist() == [True, False, False]
    error = torch.full((4, 4), float("inf"), dtype=F64)
    assert definite_margin(definite[0], error) == -float("inf")
    assert float(sizes(torch.zeros(1, dtype=F64))) > 0


def test_golden_section_finds_the_bottom_of_a_valley() -> None:
    assert golden_section(lambda x: abs(x - 0.7), -3.0, 5.0) == pytest.approx(0.7, abs=1e-7)
    assert golden_section(lambda x: float("inf") if x > 0 else -x, -1.0, 9.0) == pytest.approx(0.0, abs=1e-7)
    assert golden_section(lambda x: x, 2.0, 3.0, steps=3) == pytest.approx(2.0, abs=0.3)


def test_rounding_is_no_skew_part_to_scale() -> None:
    S = torch.tensor([[0.3, 0.2, 0.1], [0.2, -0.4, 0.3], [0.1, 0.3, 0.2]], dtype=F64)
    s = torch.tensor([3e-4, 1.0, 7e3], dtype=F64)
    for W in (S * s[:, None] / s, (S * s[:, None] / s).float()):
        with pytest.raises(InputError, match=r"\bW\b"):
            sweep_skewness(W, WeightedL2(s**-2), torch.ones(1, dtype=F64))
