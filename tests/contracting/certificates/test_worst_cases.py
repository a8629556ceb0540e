"""Certified rates are not vacuous: trajectories of the flow itself come within 5 % of them, and never below."""

from __future__ import annotations

import pytest
import torch

from contracting.certificates import PolyhedralMetric
from tests.contracting.certificates.instances import gaussian
from tests.contracting.certificates.worst_cases import (
    FAMILIES,
    Family,
    at_equilibrium,
    certified_and_measured,
    inclusion_certified_and_measured,
    measured,
)
from tests.problems import monotone_weight

ROUNDING = 1e-5  # of a decay measured over a short time


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_worst_pair_found_decays_within_five_percent_of_the_certified_rate(family: Family) -> None:
    """Mildly skewed weights; ℓ1 and ℓ∞, quadratic metrics by vertices and by inequalities are nearly exact."""
    ratios = []
    for seed in (0, 1):
        W, lam = monotone_weight(3, seed=seed, skew=0.3, spread=0.5, monotonicity=0.5)
        certificate, seen = certified_and_measured(family, W, lam)
        assert certificate.rate <= seen * (1 + ROUNDING) and seen > 0.01
        ratios.append(certificate.rate / seen)
    assert max(ratios) > 0.95


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_without_skew_the_decay_stays_at_the_certified_rate(family: Family) -> None:
    """For self-adjoint W, and for W ≥ 0 in ℓ1 and ℓ∞, not only at the start: the rate is that of a mode of the flow."""
    if isinstance(family.method, PolyhedralMetric):
        W, lam = gaussian(3, 4).abs() / 4, torch.ones(3, dtype=torch.float64)
    else:
        W, lam = monotone_weight(3, seed=3, skew=0.0, spread=0.7, monotonicity=0.4)
    certificate, seen = certified_and_measured(family, W, lam, units=4.0)
    assert 0.95 * seen < certificate.rate <= seen * (1 + ROUNDING)


def test_the_inclusion_decays_at_its_rate() -> None:
    for skew in (0.0, 1.0, 3.0):
        W, lam = monotone_weight(4, seed=5, skew=skew, spread=0.5, monotonicity=0.5)
        certificate, seen = inclusion_certified_and_measured(W, lam)
        assert 0.95 * seen < certificate.rate <= seen * 1.01  # the flow that is simulated has a step of 1e-3


def test_another_direction_or_pattern_decays_faster() -> None:
    """The control: what is measured depends on the worst case being looked for."""
    family = FAMILIES[0]
    W, lam = monotone_weight(4, seed=3, skew=0.0, spread=0.7, monotonicity=0.1)
    certificate, seen = certified_and_measured(family, W, lam)
    flow, state = at_equilibrium(family.flow, W, lam, torch.zeros(4, dtype=torch.bool))
    inactive = measured(flow, state, torch.ones(4, dtype=torch.float64), certificate.metric, time=1e-3)
    assert inactive == pytest.approx(1, abs=1e-5) and certificate.rate == pytest.approx(seen, rel=1e-3)
    assert certificate.rate < 0.2 * inactive
