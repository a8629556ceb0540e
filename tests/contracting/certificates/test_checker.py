"""The checker accepts what holds and refuses a wrong flow, a wrong weight, a higher rate and a spoilt metric."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from contracting.certificates import (
    Certificate,
    CertificateError,
    DiagonalMetric,
    ExplicitMetric,
    Finder,
    FiringRateSystem,
    HopfieldSystem,
    InclusionMetric,
    InclusionSystem,
    LinearSystem,
    LyapunovMetric,
    ParabolaTest,
    PolyhedralMetric,
    SectorInequality,
    System,
    VertexInequalities,
    check,
    forward_backward_system,
    peaceman_rachford_system,
)
from contracting.certificates.definite import definite_margin
from contracting.certificates.enclosures import Compensated, Enclosure, definite_form
from contracting.metrics import FullP, WeightedL1, WeightedL2, WeightedLinf
from tests.contracting.certificates.instances import gaussian
from tests.problems import monotone_weight

METHODS: list[Finder] = [
    ExplicitMetric(),
    ParabolaTest(),
    ParabolaTest(optimise=10),
    DiagonalMetric(),
    PolyhedralMetric(norm=WeightedLinf),
    PolyhedralMetric(norm=WeightedL1),
    SectorInequality(),
    SectorInequality(diagonal=True),
    VertexInequalities(),
]
W4 = monotone_weight(4, seed=3, skew=1.5, spread=0.5)[0]
FLOWS: list[System] = [FiringRateSystem(W=W4), HopfieldSystem(W=W4), FiringRateSystem(W=W4, slopes=(0.1, 0.9))]


@pytest.mark.parametrize("system", FLOWS, ids=["firing rate", "Hopfield", "leaky"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name} {getattr(m, 'norm', type(m)).__name__}")
def test_every_certificate_passes_and_its_forgeries_fail(method: Finder, system: System) -> None:
    certificate = method.certify(system)
    assert certificate.margin > 0 and check(certificate, system) == certificate.margin
    forged: list[tuple[Certificate, System]] = [
        (replace(certificate, rate=certificate.rate + 1e-4), system),
        (certificate, replace(system, W=system.W + 0.2 * torch.eye(4, dtype=torch.float64))),
        (certificate, replace(system, W=3 * system.W.mT)),
    ]
    other = HopfieldSystem if isinstance(system, FiringRateSystem) else FiringRateSystem
    if not isinstance(certificate.metric, WeightedL1 | WeightedLinf):  # these norms may suit the transposed flow too
        forged.append((certificate, other(W=system.W, slopes=system.slopes)))
    for claim, about in forged:
        with pytest.raises(CertificateError):
            check(claim, about)
    with pytest.raises(CertificateError, match=r"\bentries\b"):
        check(certificate, FiringRateSystem(W=torch.zeros(3, 3, dtype=torch.float64)))


@pytest.mark.parametrize(
    "system",
    [
        forward_backward_system(W4, step=0.3),
        peaceman_rachford_system(W4, step=0.8),
        peaceman_rachford_system(W4, step=torch.full((4,), 0.8, dtype=torch.float64)),
    ],
    ids=["forward–backward", "Peaceman–Rachford", "diagonal step"],
)
def test_splitting_certificates_are_about_their_step(system: System) -> None:
    certificate = DiagonalMetric().certify(system)
    with pytest.raises(CertificateError):
        check(replace(certificate, rate=certificate.rate + 1e-4), system)
    with pytest.raises(CertificateError):
        check(certificate, forward_backward_system(W4, step=3.0))
    with pytest.raises(CertificateError):
        check(certificate, peaceman_rachford_system(W4, step=20.0))


def test_inclusion_certificates() -> None:
    W, lam = monotone_weight(6, seed=4, skew=3.0, spread=1.0, monotonicity=0.3)
    system = InclusionSystem(W=W, hint=lam)
    certificate = InclusionMetric(optimise=0).certify(system)
    assert certificate.rate == pytest.approx(0.3, abs=1e-10)
    assert InclusionMetric().certify(system).rate >= certificate.rate - 1e-10
    for claim, about in [
        (replace(certificate, rate=0.3001), system),
        (certificate, InclusionSystem(W=W + 0.2 * gaussian(6, 0))),
        (replace(certificate, metric=FullP(torch.eye(6, dtype=torch.float64))), system),
        (replace(certificate, metric=WeightedL2(1 / lam)), system),
    ]:
        with pytest.raises(CertificateError):
            check(claim, about)


def test_a_certificate_of_another_kind_of_flow_is_refused() -> None:
    """The inclusion's slopes are unbounded, a linear flow has none: neither proves anything of bounded slopes."""
    W, lam = monotone_weight(4, seed=4, skew=1.0, monotonicity=0.3)
    inclusion = InclusionMetric(optimise=0).certify(InclusionSystem(W=W, hint=lam))
    linear = LyapunovMetric().certify(LinearSystem(W=W - torch.eye(4, dtype=torch.float64)))
    for certificate in (inclusion, linear, replace(inclusion, slopes=(float("nan"), 1.0))):
        for system in (FiringRateSystem(W=W), HopfieldSystem(W=W, slopes=(0.2, 1.0)), FiringRateSystem(W=W, speed=2)):
            with pytest.raises(CertificateError, match=rf"\b{system.name}\b"):
                check(certificate, system)


def test_other_slopes_than_certified_are_refused() -> None:
    narrow = FiringRateSystem(W=W4, slopes=(0.0, 0.25))
    certificate = ParabolaTest().certify(narrow)
    assert certificate.assumption == "slopes in [0, 0.25]"
    with pytest.raises(CertificateError, match=r"\bslopes\b"):
        check(certificate, FiringRateSystem(W=W4))
    assert check(certificate, narrow.with_slopes((0.1, 0.2))) == certificate.margin


def test_a_spoilt_multiplier_or_metric_is_refused() -> None:
    system = FiringRateSystem(W=W4)
    certificate = ParabolaTest().certify(system)
    assert certificate.multiplier is not None
    for multiplier in (-certificate.multiplier, certificate.multiplier[:3], 1e3 * certificate.multiplier):
        with pytest.raises(CertificateError):
            check(replace(certificate, multiplier=multiplier), system)
    with pytest.raises(CertificateError):
        check(replace(certificate, metric=WeightedL2.identity(4, dtype=torch.float64)), system)
    # without a multiplier the vertices decide: P proves at least what it proved with one
    assert check(replace(certificate, multiplier=None), system) > 0
    with pytest.raises(CertificateError, match=r"\bvertices\b"):
        large = FiringRateSystem(W=torch.zeros(20, 20, dtype=torch.float64))
        check(replace(certificate, multiplier=None, metric=WeightedL2.identity(20, dtype=torch.float64)), large)


def test_rounding_is_never_taken_for_a_proof() -> None:
    """Singular matrices, and matrices whose smallest eigenvalue is lost in rounding, are not called definite."""
    for n in (2, 10, 60):
        X = gaussian(n, n)
        singular = X[:, : n - 1] @ X[:, : n - 1].mT
        zero = torch.zeros_like(singular)
        assert definite_margin(singular, zero) <= 0
        assert definite_margin(singular + 1e-17 * torch.eye(n, dtype=torch.float64), zero) <= 0
        assert definite_margin(singular + 1e-6 * torch.eye(n, dtype=torch.float64), zero) > 0
        assert definite_margin(singular + 1e-6 * torch.eye(n, dtype=torch.float64), 1e-5 * torch.ones_like(zero)) <= 0
    bad = torch.eye(2, dtype=torch.float64)
    bad[0, 0] = float("nan")
    assert definite_margin(bad, torch.zeros_like(bad)) <= 0
    assert definite_margin(torch.diag(torch.tensor([1.0, -1e-300], dtype=torch.float64)), torch.zeros_like(bad)) <= 0


def test_cancellation_on_the_diagonal_is_no_proof() -> None:
    """n = 1, slopes [0, b]: where b·W rounds to 1 from above, −1 + bW looks like 0, and the true rate is negative."""
    tried = 0
    for numerator in range(3, 200, 2):
        b = numerator / 256.0 / 0.9
        if b >= 1:
            break
        w = 1 / b
        true = 1 - Fraction(b) * Fraction(w)
        if b * w != 1.0 or true >= 0:
            continue
        tried += 1
        system = FiringRateSystem(W=torch.tensor([[w]], dtype=torch.float64), slopes=(0.0, b))
        claim = Certificate(
            rate=float(true) / 2, metric=WeightedL2.identity(1, dtype=torch.float64), slopes=(0.0, b), method="",
            flow="", margin=0.0,
        )  # fmt: skip
        assert Fraction(claim.rate) > true
        with pytest.raises(CertificateError):
            check(claim, system)
        assert check(replace(claim, rate=-1e-14), system) > 0
    assert tried > 5


def test_both_halves_of_a_matrix_count() -> None:
    """FullP allows an asymmetry of rounding; the norm is that of the symmetric part, and so is the proof."""
    certificate = ParabolaTest().certify(FiringRateSystem(W=W4))
    assert isinstance(certificate.metric, FullP)
    P = certificate.metric.matrix
    skew = torch.zeros_like(P)
    skew[0, 1], skew[1, 0] = 1.0, -1.0
    skewed = FullP(P + 10 * 2.0**-52 * float(P.abs().max()) * skew)
    assert not torch.equal(skewed.matrix, skewed.matrix.mT)
    symmetric = FullP((skewed.matrix + skewed.matrix.mT) / 2)
    system = FiringRateSystem(W=W4)
    for multiplier in (None, certificate.multiplier):
        margins = [
            check(replace(certificate, metric=metric, multiplier=multiplier), system) for metric in (skewed, symmetric)
        ]
        assert margins[0] == margins[1]


def test_scaling_does_not_matter() -> None:
    """A metric spread over twelve orders of magnitude is judged as well as a balanced one."""
    W, lam = monotone_weight(8, seed=2, skew=0.5, spread=14.0)
    system = FiringRateSystem(W=W, hint=lam)
    plain = monotone_weight(8, seed=2, skew=0.5)[0]
    assert ParabolaTest().certify(system).rate == pytest.approx(
        ParabolaTest().certify(FiringRateSystem(W=plain, hint=torch.ones(8))).rate, abs=1e-5
    )


def test_twice_the_digits_for_products_that_are_smaller_than_their_terms() -> None:
    """Bounds of the rounding hold against exact fractions, and are far below those of plain products."""
    draw = torch.Generator().manual_seed(0)
    A = 10.0 ** torch.arange(8) * torch.randn(3, 8, generator=draw, dtype=torch.float64)
    B = torch.randn(8, 3, generator=draw, dtype=torch.float64)
    B[0] = -(A[:, 1:] @ B[1:])[0] / A[0, 0]
    radii = []
    for kind in (Enclosure, Compensated):
        product = kind.exact(A) @ kind.exact(B)
        radii.append(float(product.radius[0].max()))
        for i in range(3):
            for j in range(3):
                exact = sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(A[i], B[:, j], strict=True))
                assert abs(exact - Fraction(float(product.value[i, j]))) <= Fraction(float(product.radius[i, j]))
    assert radii[1] < 1e-6 * radii[0]


@pytest.mark.parametrize(("e", "f"), [(2.0**-7, 2.0**-7), (0.0, 0.0), (2.0**-7, -(2.0**-7))])
def test_more_digits_are_taken_where_only_the_allowance_is_in_the_way(e: float, f: float) -> None:
    """[1 1; 1 1 + ef], where terms of 2³⁶ cancel: definite iff ef > 0, which is less than the allowance."""
    t, proved, asked = 2.0**18, e * f > 0, []
    left = torch.tensor([[1.0, 0.0, t, -t], [1.0, e, t, -t]], dtype=torch.float64)
    right = torch.tensor([[1.0, 1.0], [0.0, f], [t, t], [t, t]], dtype=torch.float64)

    def form(kind: type[Enclosure]) -> Enclosure:
        asked.append(kind)
        return kind.exact(left) @ kind.exact(right)

    assert (definite_form(form) > 0) == proved
    assert asked == ([Enclosure, Compensated] if proved else [Enclosure])
