"""Couplings of slopes prove less than one multiplier does, and only what holds where every slope is at an end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from contracting.certificates import CertificateError
from contracting.errors import InputError, PreconditionError
from equilibrium.lipschitz import (
    Coupled,
    Couplings,
    InteriorPoint,
    LipschitzCertificate,
    LipschitzSystem,
    certified_bound,
    check_lipschitz,
)
from equilibrium.lipschitz.checker import _coupled
from tests.equilibrium.lipschitz.test_branches import largest_gain, system

F64 = torch.float64


@pytest.fixture(scope="module")
def proved() -> tuple[LipschitzSystem, LipschitzCertificate]:
    of = system()
    return of, Coupled().certify(of)


@pytest.mark.parametrize("low", [0.0, 0.2])
def test_couplings_close_most_of_the_gap_of_one_multiplier(low: float) -> None:
    of = system(low=low)
    one, coupled, truth = InteriorPoint().certify(of).bound, Coupled().certify(of), largest_gain(of)
    assert truth * (1 - 1e-9) <= coupled.bound and coupled.margin > 0
    assert coupled.bound - truth <= 0.5 * (one - truth) + 1e-3 * truth
    assert low > 0 or one > 1.05 * truth
    assert certified_bound(of, couplings=3).bound <= coupled.bound * (1 + 1e-12)


@pytest.mark.parametrize("low", [0.0, 0.2])
def test_the_form_of_the_checker_is_a_sum_of_squares_at_the_ends_of_all_slopes(low: float) -> None:
    of, count = system(low=low), 3
    draw = torch.Generator().manual_seed(0)
    couplings = Couplings(
        neurons=torch.stack([torch.randperm(of.size, generator=draw)[:2] for _ in range(count)]),
        weights=torch.randn(count, 4, generator=draw, dtype=F64),
        signs=torch.randn(count, 2, 2, generator=draw, dtype=F64).sign(),
    )
    form, error = _coupled(couplings, of, of.slopes)
    x = torch.randn(of.U.shape[1], generator=draw, dtype=F64)
    ends = torch.tensor(list(itertools.product((0.0, 1.0), repeat=of.size)), dtype=F64)
    J = of.slopes.low + (of.slopes.high - of.slopes.low) * ends
    states = torch.linalg.solve(torch.eye(of.size, dtype=F64) - J[:, :, None] * of.W, J * (of.U @ x))
    both = torch.cat([states, x.expand(len(states), -1)], 1)
    left = (of.slopes.high - of.slopes.low) * both @ torch.cat([of.W, of.U], 1).mT  # of p and r, in every neuron
    expected = torch.zeros(len(states), dtype=F64)
    for (i, j), h, s in zip(couplings.neurons, couplings.weights, couplings.signs, strict=True):
        one, other = 1 - ends[:, i].long(), 1 - ends[:, j].long()  # 0 where p is left, 1 where r is
        expected += (h[one] * left[:, i] - s[one, other] * h[2 + other] * left[:, j]).square()
    found = ((both @ form) * both).sum(1)
    assert bool(((found - expected).abs() <= 1e-9 * expected.max()).all()) and bool((error >= 0).all())
    assert float(torch.linalg.eigvalsh(form)[0]) < 0 < float(expected.min())  # elsewhere it may be negative


def test_what_is_no_coupling_and_a_smaller_constant_are_refused(
    proved: tuple[LipschitzSystem, LipschitzCertificate],
) -> None:
    of, good = proved
    couplings = good.couplings
    assert couplings is not None and check_lipschitz(good, of) == good.margin
    forged: list[dict[str, Any]] = [
        {"couplings": None},
        {"couplings": replace(couplings, signs=2 * couplings.signs)},
        {"couplings": replace(couplings, neurons=couplings.neurons[:, :1].expand(-1, 2))},
        {"couplings": replace(couplings, neurons=couplings.neurons - of.size)},
        {"couplings": replace(couplings, weights=couplings.weights / 0)},
        {"couplings": replace(couplings, weights=couplings.weights[:, :2])},
        {"bound": 0.999 * largest_gain(of)},
        {"multiplier": -good.multiplier if good.multiplier is not None else None},
    ]
    for change in forged:
        with pytest.raises(CertificateError):
            check_lipschitz(replace(good, **change), of)
    with pytest.raises(CertificateError):
        check_lipschitz(good, replace(of, U=1.05 * of.U))


def test_bad_settings_and_maps_without_slopes_to_couple_are_refused() -> None:
    with pytest.raises(InputError, match="rounds"):
        Coupled(rounds=0)
    with pytest.raises(InputError, match="pairs"):
        Coupled(pairs=-1)
    of = system()
    with pytest.raises(PreconditionError):
        Coupled().certify(replace(of, C=0 * of.C))
    with pytest.raises(InputError, match="couplings"):
        certified_bound(of, couplings=-1)
