"""Properties of every certificate, on thousands of generated systems: units do not matter, certified ≤ bound."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contracting.certificates import (
    Certificate,
    CertificateError,
    DiagonalMetric,
    ExplicitMetric,
    FiringRateSystem,
    HopfieldSystem,
    InclusionMetric,
    InclusionSystem,
    LinearSystem,
    LyapunovMetric,
    ParabolaTest,
    PolyhedralMetric,
    RateFinder,
    System,
    abscissa_bound,
    check,
    find_metric,
    rules_out,
    upper_bound,
)
from contracting.metrics import WeightedL1, WeightedLinf
from contracting.types import Slopes
from tests.systems import EXAMPLES, Drawn, systems

pytestmark = pytest.mark.slow

FINDERS: tuple[RateFinder, ...] = (
    DiagonalMetric(),
    ExplicitMetric(),
    ParabolaTest(),
    PolyhedralMetric(norm=WeightedLinf),
    PolyhedralMetric(norm=WeightedL1),
)
FLOWS: tuple[type[System], ...] = (FiringRateSystem, HopfieldSystem, InclusionSystem, LinearSystem)
SLOPES = (Slopes(0.0, 1.0), Slopes(0.0, 0.25), Slopes(0.2, 0.9), Slopes(-1.0, 1.0))


def finder_of(flow: type[System], choice: int) -> RateFinder:
    if flow is InclusionSystem:
        return InclusionMetric(optimise=0)
    if flow is LinearSystem:
        return (LyapunovMetric(), *FINDERS[3:])[choice % 3]
    return FINDERS[choice]


def certificate_of(finder: RateFinder, system: System) -> Certificate | None:
    """What is certified, and checked again; None where the finder refuses."""
    if not finder.applies(system):
        return None
    try:
        certificate = finder.certify(system)
    except CertificateError:
        return None
    assert check(certificate, system) > 0
    return certificate


def rate_of(finder: RateFinder, system: System) -> float | None:
    """The rate that is certified, and checked again; None where the finder refuses."""
    certificate = certificate_of(finder, system)
    return None if certificate is None else certificate.rate


@settings(EXAMPLES, max_examples=600)
@given(drawn=systems(largest=4), flow=st.sampled_from(FLOWS), slopes=st.sampled_from(SLOPES), choice=st.integers(0, 4))
def test_rates_and_bounds_do_not_depend_on_units_and_no_rate_exceeds_a_bound(
    drawn: Drawn, flow: type[System], slopes: Slopes, choice: int
) -> None:
    finder = finder_of(flow, choice)
    system, moved = flow(W=drawn.W, slopes=slopes), flow(W=drawn.rescaled, slopes=slopes)
    bounds = abscissa_bound(system).rate, abscissa_bound(moved).rate
    assert abs(bounds[0] - bounds[1]) <= 1e-6 * (1 + abs(bounds[0]))
    here, there = rate_of(finder, system), rate_of(finder, moved)
    assert (here is None) == (there is None)
    if here is not None and there is not None:
        assert abs(here - there) <= 1e-5 * (1 + abs(here))
        assert max(here, there) <= min(bounds)


@EXAMPLES
@given(drawn=systems(largest=4), slopes=st.sampled_from(SLOPES), choice=st.integers(0, 4), power=st.integers(-40, 40))
def test_a_hint_in_any_unit_is_the_same_hint(drawn: Drawn, slopes: Slopes, choice: int, power: int) -> None:
    """λ and 2^k λ are the same metric up to a factor, and so are D⁻²λ for DWD⁻¹."""
    hint = torch.exp2(torch.arange(len(drawn.W), dtype=torch.float64) - 1)
    rates = [
        rate_of(FINDERS[choice], FiringRateSystem(W=W, slopes=slopes, hint=scale * 2.0**power))
        for W, scale in ((drawn.W, hint), (drawn.rescaled, hint / drawn.d**2))
    ]
    assert (rates[0] is None) == (rates[1] is None)
    if rates[0] is not None and rates[1] is not None:
        assert abs(rates[0] - rates[1]) <= 1e-5 * (1 + abs(rates[0]))


@settings(EXAMPLES, max_examples=100)
@given(drawn=systems(largest=3), hopfield=st.booleans(), slopes=st.sampled_from(SLOPES))
def test_no_certificate_exceeds_the_bound_by_switching(drawn: Drawn, hopfield: bool, slopes: Slopes) -> None:
    system = (HopfieldSystem if hopfield else FiringRateSystem)(W=drawn.rescaled, slopes=slopes)
    rates = [rate for finder in FINDERS if (rate := rate_of(finder, system)) is not None]
    assert max(rates, default=-torch.inf) <= upper_bound(system).rate


@EXAMPLES
@given(drawn=systems(largest=4))
def test_metric_searches_do_not_depend_on_units(drawn: Drawn) -> None:
    here, there = find_metric(drawn.W), find_metric(drawn.rescaled)
    assert abs(here.monotonicity - there.monotonicity) <= 1e-4 * (1 + abs(here.monotonicity))
    for found, W in ((here, drawn.W), (there, drawn.rescaled)):
        bound = abscissa_bound(InclusionSystem(W=W)).rate
        assert found.monotonicity <= bound or found.metric is None
        if found.witness is not None:
            assert found.metric is None and bound < 1 and rules_out(found.witness, W)
            assert rules_out(2.0**-300 * found.witness, W)


@EXAMPLES
@given(drawn=systems(largest=4), power=st.integers(-30, 30), choice=st.integers(0, 2))
def test_linear_flows_in_other_units_of_time_have_rates_in_them(drawn: Drawn, power: int, choice: int) -> None:
    """Except where coordinates can make A as small as they like, so that it has no unit."""
    unit, finder = 2.0**power, finder_of(LinearSystem, choice)
    here, there = rate_of(finder, LinearSystem(W=drawn.W)), rate_of(finder, LinearSystem(W=unit * drawn.W))
    sped = rate_of(finder, LinearSystem(W=drawn.W, speed=unit))
    assert (here is None) == (there is None) == (sped is None)
    if here is not None and there is not None and sped is not None and drawn.kind not in ("nilpotent", "sparse"):
        size = max(float(drawn.W.abs().max()), 1e-280)  # rates are lowered by 1e-300 at least
        assert abs(here - there / unit) <= 1e-5 * size and abs(here - sped / unit) <= 1e-5 * size


@EXAMPLES
@given(drawn=systems(largest=4), flow=st.sampled_from(FLOWS), choice=st.integers(0, 4), power=st.integers(-300, 300))
def test_the_checker_says_the_same_in_all_units(
    drawn: Drawn, flow: type[System], choice: int, power: int
) -> None:
    """A certificate moved to other coordinates by powers of two is accepted with the same margin."""
    if drawn.kind in ("tiny", "subnormal"):
        return
    system = flow(W=drawn.W)
    certificate = certificate_of(finder_of(flow, choice), system)
    if certificate is None:
        return
    scale = torch.exp2(torch.round(drawn.d.log2()) + power / 2)
    scale = torch.exp2(scale.log2().round())
    multiplier = certificate.multiplier
    moved = replace(
        certificate,
        metric=certificate.metric.rescaled(scale),
        multiplier=None if multiplier is None else multiplier / scale / scale,
    )
    assert check(moved, system.rescaled(scale)) == certificate.margin
