"""Rates past the best quadratic metric: the known ones, below every bound, and what the checker refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracting.certificates import (
    Certificate,
    CertificateError,
    FiringRateSystem,
    GivenMetric,
    HopfieldSystem,
    LiftedForm,
    LiftedInequality,
    LinearSystem,
    RateFinder,
    System,
    VertexInequalities,
    check,
    report,
    upper_bound,
)
from contracting.certificates.systems import vertex_jacobians
from contracting.contracts import FinderContract
from contracting.errors import PreconditionError
from contracting.lure.system import LureSystem
from contracting.types import Slopes
from tests.contracting.certificates.instances import gaussian
from tests.contracting.certificates.lure.lure_instances import random_system

pytest.importorskip("cvxpy")
pytest.importorskip("clarabel")

# The best rates of W = k[[0, 1], [−1, 0]] without relations for d = 1, 2, 3, 4
KNOWN = {
    1.9: (0.050, 0.208, 0.269, 0.287),
    2.01: (-0.005, 0.163, 0.226, 0.246),
    2.5: (-0.25, -0.042, 0.038, 0.062),
    2.8: (-0.40, -0.167, -0.078, -0.050),
    4.0: (-1.0, -0.667, -0.540, -0.500),
}
PLAIN = {degree: LiftedInequality(degree=degree, relations=False, norm=False) for degree in (1, 2, 3, 4)}


def trap(gain: float) -> FiringRateSystem:
    return FiringRateSystem(W=gain * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64))


class TestLiftedInequality(FinderContract):
    tolerance = 3e-3

    def finder(self) -> RateFinder:
        return LiftedInequality(tolerance=1e-3)

    def systems(self) -> Sequence[System]:
        return trap(2.5), HopfieldSystem(W=gaussian(2, 3), speed=2.5), random_system(3, n=2, m=3)


def slowest(certificate: Certificate, jacobians: Tensor) -> float:
    """−d log‖s‖/dt along s' = Fs, at its smallest over directions: by the derivative of the norm, without any lift."""
    metric, n = certificate.metric, jacobians.shape[-1]
    s = torch.randn(400, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rates = [torch.autograd.functional.jvp(metric.norm, s, s @ F.mT)[1] / metric.norm(s) for F in jacobians]
    return -float(torch.stack(rates).max())


@pytest.mark.parametrize("gain", KNOWN)
def test_the_known_rates_of_the_trap(gain: float) -> None:
    system, bound = trap(gain), upper_bound(trap(gain)).rate
    for degree, expected in enumerate(KNOWN[gain], start=1):
        certificate = PLAIN[degree].certify(system)
        assert certificate.rate == pytest.approx(expected, abs=2e-3) and certificate.rate <= bound
        assert certificate.rate <= slowest(certificate, vertex_jacobians(system)) + 1e-9
    # a control: where the flow does not contract, no degree says that it does
    assert gain < 2.9 or certificate.rate < bound < -0.3255 + 1e-4


def test_relations_go_as_far_as_twice_the_degree() -> None:
    for gain in (1.9, 4.0):
        certificate = LiftedInequality().certify(trap(gain))
        assert certificate.rate == pytest.approx(KNOWN[gain][3], abs=1e-3) and certificate.metric.convex
        assert certificate.rate <= slowest(certificate, vertex_jacobians(trap(gain))) + 1e-9


def test_the_best_form_need_not_be_a_norm_but_decays() -> None:
    certificate = LiftedInequality(norm=False).certify(trap(2.5))
    assert certificate.rate == pytest.approx(0.0625, abs=1e-3)
    metric = certificate.metric
    assert isinstance(metric, LiftedForm) and 1 < metric.overshoot < 1.3
    spread = metric.norm(torch.nn.functional.normalize(torch.randn(1000, 2, dtype=torch.float64)))
    low, high = metric.bounds
    assert bool((low <= spread).all()) and bool((spread <= high).all())
    bare = replace(certificate, metric=replace(metric, curvature=None))
    if not bare.metric.convex:
        with pytest.raises(PreconditionError, match=r"LiftedForm"):
            bare.error_bound(None, torch.zeros(1, 2))  # type: ignore[arg-type]
    assert "LiftedForm of degree 4" in str(certificate)


@pytest.mark.parametrize("seed", range(20))
def test_no_rate_exceeds_the_bound_or_is_below_the_best_quadratic_one(seed: int) -> None:
    n = 2 if seed % 4 else 3
    system: System = (FiringRateSystem, HopfieldSystem)[seed % 2](W=2 * gaussian(n, seed))
    if seed % 5 == 4:
        system = random_system(seed, n=2, m=2)
    certificate = LiftedInequality(degree=2 + (seed % 3 == 0 and n == 2), tolerance=1e-3).certify(system)
    assert certificate.metric.convex and check(certificate, system) > 0
    quadratic = VertexInequalities(tolerance=1e-3).certify(system).rate
    assert quadratic - 0.01 * (1 + abs(quadratic)) <= certificate.rate <= upper_bound(system).rate + 1e-9


def test_four_units_of_random_skewness() -> None:
    G = gaussian(4, 0)
    W = 1.2 * (G - G.mT) / torch.linalg.matrix_norm(G - G.mT, 2)
    system = FiringRateSystem(W=W)
    quadratic, lifted = VertexInequalities().certify(system), PLAIN[2].certify(system)
    assert lifted.rate > quadratic.rate + 0.02 and lifted.rate <= upper_bound(system).rate
    assert lifted.rate <= slowest(lifted, vertex_jacobians(system)) + 1e-9


@pytest.mark.parametrize("relations", [False, True])
def test_what_is_not_so_is_refused(relations: bool) -> None:
    system = trap(2.5)
    certificate = LiftedInequality(relations=relations).certify(system)
    metric, S = certificate.metric, certificate.multiplier
    assert isinstance(metric, LiftedForm)
    spoilt = metric.matrix.clone()
    spoilt[0, 2] += 0.05 * metric.matrix[0, 0]
    spoilt[2, 0] = spoilt[0, 2]
    forged: list[tuple[Certificate, System]] = [
        (replace(certificate, rate=certificate.rate + 1e-4), system),
        (replace(certificate, metric=LiftedForm(spoilt, 2)), system),
        (certificate, replace(system, slopes=Slopes(-0.01, 1.0))),
        (certificate, trap(2.51)),
        (certificate, FiringRateSystem(W=gaussian(3, 0))),
    ]
    if S is not None:
        identity = torch.eye(3, dtype=torch.float64)
        forged += [(replace(certificate, multiplier=S.flip(0)), system)]
        forged += [(replace(certificate, multiplier=S[:-1]), system)]
        forged += [(replace(certificate, multiplier=torch.cat([S, S])), system)]
        forged += [(replace(certificate, rate=certificate.rate + 1e-3, multiplier=S + 10 * identity), system)]
        # the part of a matrix that has a form is no relation: it counts for nothing
        formed = metric.lift.matrix(metric.lift.tensor(identity))
        assert check(replace(certificate, rate=certificate.rate - 1e-6, multiplier=S + formed), system) > 0
    for wrong, about in forged:
        with pytest.raises(CertificateError):
            check(wrong, about)


def test_the_hull_of_balls_that_are_no_ellipses_shrinks_as_they_do() -> None:
    """Linear maps keep hulls: the gauge of the hull is a norm with the same rate, whether the form is convex or not."""
    certificate = LiftedInequality(norm=False, relations=False, degree=3).certify(trap(4.0))
    angle = torch.linspace(0, 2 * torch.pi, 721, dtype=torch.float64)[:-1]
    ball = torch.stack([angle.cos(), angle.sin()], 1)
    ball = ball / certificate.metric.norm(ball)[:, None]
    support = (ball @ ball.mT).amax(1)  # of the hull, in the directions of its points
    for F in vertex_jacobians(trap(4.0)):
        moved = ball @ torch.linalg.matrix_exp(0.3 * F).mT
        assert bool(((ball @ moved.mT).amax(1) <= support * torch.exp(torch.tensor(-0.3 * certificate.rate))).all())


def test_it_stands_in_the_report_and_what_it_is_not_about_is_refused() -> None:
    rates = report(trap(2.5))
    assert rates.best.method == LiftedInequality().name and rates.quadratic is not None
    assert rates.quadratic.rate < 0 < rates.best.rate <= rates.bound.rate
    assert "LiftedForm of degree 4, a norm" in str(rates)
    assert rates.to_records()[0]["norm"] == "LiftedForm of degree 4, a norm"
    for finder, system in (
        (LiftedInequality(degree=5), FiringRateSystem(W=gaussian(5, 0))),  # 126 monomials
        (LiftedInequality(), FiringRateSystem(W=gaussian(9, 0))),  # 512 vertices with relations of their own
        (LiftedInequality(), FiringRateSystem(W=gaussian(11, 0))),
    ):
        with pytest.raises(PreconditionError):
            finder.certify(system)


def test_given_forms_and_linear_flows() -> None:
    A = LinearSystem(W=torch.tensor([[-1.0, 3.0], [0.0, -1.2]], dtype=torch.float64), speed=2.0)
    certificate = LiftedInequality().certify(A)
    assert 1.99 < certificate.rate <= 2.0
    again = GivenMetric(metric=certificate.metric).certify(A)
    assert again.rate <= certificate.rate + 1e-9
    nothing = torch.zeros(2, 0, dtype=torch.float64)
    loop = LureSystem(A=-torch.eye(2), B=torch.eye(2), C=trap(2.5).W, D=torch.zeros(2, 2), D12=nothing)
    assert LiftedInequality().certify(loop).rate == pytest.approx(0.0625, abs=1e-3)
