"""The sweep over random networks finds nothing wrong, and would: spoilt certificates and weights are reported."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contracting.certificates import Certificate, System
from tests.contracting.certificates import instances
from tests.contracting.certificates import sweep as judges

REAL = judges._certificates


def test_random_networks_keep_what_is_certified() -> None:
    result = judges.sweep(range(45), seed=1)
    assert result.networks == 45 and result.large == 4 and result.pairs == 360 and result.judged > 1500
    assert result.violations == []
    assert result.kept_rates == result.kept_lipschitz == result.asked == 15
    assert 0 <= result.smallest_gap < 0.05 and 0.95 < result.tightest <= 1 + 1e-6  # tight somewhere: not vacuous
    assert "violations                   0" in str(result)
    parts = judges.sweep(range(3), seed=1) + judges.sweep(range(3, 6), seed=1)
    assert parts.networks == 6 and parts.ratios == result.ratios[: len(parts.ratios)]


def test_rates_that_are_too_high_are_seen_by_every_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    def inflated(system: System, result: judges.Result) -> list[Certificate]:
        found = REAL(system, result)
        return [replace(c, rate=c.rate + 0.3 * system.speed) for c in found]

    monkeypatch.setattr(judges, "_certificates", inflated)
    violations = judges.sweep(range(12), seed=1).violations
    assert any("log distance" in text for text in violations)
    assert any("sampled" in text for text in violations)


def test_weights_that_lost_their_certificates_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(n: int, seed: int, **options: float) -> object:
        weights = instances.random_lben(n, seed, **options)  # type: ignore[arg-type]
        # the asked rate is missed by a little, the asked Lipschitz constant by a lot
        return replace(weights, lipschitz=0.01 if weights.lipschitz else None)

    monkeypatch.setattr(judges, "random_lben", spoilt)
    result = judges.sweep(range(9), seed=1)
    assert result.kept_lipschitz == 0 < result.asked == result.kept_rates
    monkeypatch.setattr(judges, "random_lben", instances.random_lben)
    asked = judges._asked_for
    monkeypatch.setattr(judges, "_asked_for", lambda w, rate, label, r: asked(w, rate + 0.5 * (1 - rate), label, r))
    result = judges.sweep(range(9), seed=1)
    assert result.kept_rates < result.asked and any("asked for rate" in text for text in result.violations)
