"""Rates of Lur'e systems: special cases, exactness for a multiplier, coordinates, and what the checker refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from contracting.certificates import (
    CertificateError,
    CircleCriterion,
    FiringRateSystem,
    HopfieldSystem,
    ParabolaTest,
    PolyhedralMetric,
    certify,
    check,
    frequency_margin,
    upper_bound,
)
from contracting.errors import InputError, PreconditionError
from contracting.lure.system import LureSystem
from contracting.metrics import FullP, WeightedL1, WeightedLinf
from tests.contracting.certificates.instances import gaussian
from tests.contracting.certificates.lure.lure_instances import corners, firing_rate, hopfield, random_system


@pytest.mark.parametrize("seed", range(8))
def test_firing_rate_and_hopfield_flows_have_the_rate_of_the_parabola_test(seed: int) -> None:
    W = gaussian(3 + seed % 3, seed, size=1.5)
    Q = torch.rand(len(W), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
    circle, parabola = CircleCriterion(multiplier=Q), ParabolaTest(multiplier=Q)
    for lure, system in ((firing_rate(W), FiringRateSystem(W=W)), (hopfield(W), HopfieldSystem(W=W))):
        assert abs(circle.certify(lure).rate - parabola.certify(system).rate) < 1e-6


@pytest.mark.parametrize("intervals", ["unit", "random", "points"])
def test_no_slopes_are_faster_than_certified(intervals: str) -> None:
    system = random_system(3, intervals=intervals)
    certificate = CircleCriterion(optimise=10).certify(system)
    measure = float(certificate.metric.matrix_measure(system.jacobians(corners(system))).max())
    assert certificate.rate <= -measure + 1e-9 and check(certificate, system) == certificate.margin > 0
    assert certificate.rate <= upper_bound(system, certificate.metric).rate


def test_a_single_slope_is_a_linear_flow_with_its_exact_rate() -> None:
    system = random_system(1, intervals="points")
    abscissa = float(torch.linalg.eigvals(system.jacobians(system.low)).real.max())
    assert abs(CircleCriterion(multiplier=1e3 * torch.ones(4).double()).certify(system).rate + abscissa) < 1e-4


def test_the_coordinates_do_not_matter() -> None:
    system = random_system(2, intervals="random")
    rate = certify(system).rate
    states, neurons = torch.tensor([1e-6, 1.0, 1e6]).double(), torch.tensor([1e5, 1e-5, 1.0, 10.0]).double()
    assert abs(certify(system.rescaled(states, neurons)).rate - rate) < 1e-6 * abs(rate)


@pytest.mark.parametrize("intervals", ["unit", "random"])
def test_the_bisection_and_the_frequencies_agree(intervals: str) -> None:
    """Two proofs that share no formula: the best rate of one is where the other ends."""
    system, multiplier = random_system(3, intervals=intervals), torch.tensor([0.7, 1.0, 1.3, 0.9]).double()
    rate = CircleCriterion(multiplier=multiplier).certify(system).rate
    margins = [frequency_margin(system, multiplier, rate - below) for below in (1.0, 0.1, 1e-4)]
    assert margins[0] > margins[1] > margins[2] > 0
    assert frequency_margin(system, multiplier, rate + 1e-4) == -float("inf")
    assert frequency_margin(system, multiplier, 100.0) == -float("inf")  # not Hurwitz
    for few in (0, 1):  # what was not looked at is not proved
        assert frequency_margin(system, multiplier, rate - 1.0, most=few) == -float("inf")


@pytest.mark.parametrize("seed", range(12))
def test_no_rate_exceeds_what_single_slopes_show(seed: int) -> None:
    """In coordinates of 1e±6, with stiff states, for norms of every kind."""
    kinds = ("unit", "random", "points")
    system = random_system(seed, n=1 + seed % 3, m=1 + seed % 4, intervals=kinds[seed % 3])
    g = torch.Generator().manual_seed(seed)
    states, neurons = (10 ** (12 * torch.rand(k, generator=g).double() - 6) for k in (system.size, system.neurons))
    stiff = 10 ** (3 * torch.rand(system.size, generator=g).double()) if seed % 2 else torch.ones(system.size).double()
    system = replace(system, A=system.A * stiff[:, None], B=system.B * stiff[:, None]).rescaled(states, neurons)
    F = system.jacobians(corners(system))
    bound = -float(torch.linalg.eigvals(F).real.max())
    for finder in (CircleCriterion(), PolyhedralMetric(norm=WeightedLinf), PolyhedralMetric(norm=WeightedL1)):
        try:
            certificate = finder.certify(system)
        except CertificateError:  # a large D is beyond norms from entries
            assert not isinstance(finder, CircleCriterion)
            continue
        size = 1e-9 * (1 + float(torch.linalg.eigvals(F).abs().max()))
        assert certificate.rate <= bound + size
        assert certificate.rate <= -float(certificate.metric.matrix_measure(F).max()) + size


def test_what_is_spoilt_is_refused() -> None:
    system = random_system(0, intervals="random")
    good = CircleCriterion().certify(system)
    assert isinstance(good.metric, FullP) and good.multiplier is not None
    P = good.metric.matrix
    spoilt = [
        replace(good, rate=good.rate + 1e-5),
        replace(good, metric=FullP(1.3 * P)),
        replace(good, metric=FullP(P + 0.1 * float(P.diagonal().max()) * torch.eye(3).double())),
        replace(good, multiplier=good.multiplier * torch.tensor([2.0, 0.5, 1.0, 1.0])),
        replace(good, multiplier=-good.multiplier),
        replace(good, multiplier=good.multiplier[:-1]),
        replace(good, slopes=(system.low - 0.05, system.high)),
    ]
    for certificate in spoilt:
        with pytest.raises(CertificateError):
            check(certificate, system)
    # made for smaller slopes, used on larger ones: refused both as it stands and when its slopes are forged
    smaller = system.with_slopes((0.95 * system.low, 0.95 * system.high))
    made = CircleCriterion().certify(smaller)
    for certificate in (made, replace(made, slopes=(system.low, system.high))):
        with pytest.raises(CertificateError):
            check(certificate, system)
    for changed in (replace(system, A=system.A + 0.05 * torch.eye(3).double()), replace(system, B=1.05 * system.B)):
        with pytest.raises(CertificateError):
            check(good, changed)


def test_what_has_no_certificate_is_refused_by_a_sentence() -> None:
    system = random_system(0)
    with pytest.raises(CertificateError, match="D"):
        certify(replace(system, D=3 * torch.eye(4).double()))
    ill_posed = replace(system, D=torch.eye(4).double(), slopes=(torch.ones(4).double(), torch.ones(4).double()))
    with pytest.raises((CertificateError, PreconditionError), match="D"):
        certify(ill_posed)
    with pytest.raises(InputError, match="multiplier"):
        CircleCriterion(multiplier=torch.ones(3)).certify(system)
    with pytest.raises(PreconditionError, match="CircleCriterion"):
        ParabolaTest().certify(system)
    nothing = torch.zeros(0, 0).double()
    with pytest.raises(PreconditionError, match="state"):
        CircleCriterion().certify(LureSystem(A=nothing, B=torch.zeros(0, 4).double(), C=torch.zeros(4, 0), D=system.D))
