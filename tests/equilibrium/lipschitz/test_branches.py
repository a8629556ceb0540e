"""Cases of slopes close the gap of one multiplier, and a proof that leaves out a case is none."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from contracting.certificates import CertificateError
from equilibrium.lipschitz import Branches, InteriorPoint, LipschitzSystem, check_lipschitz, lipschitz_system
from tests.contracting.certificates.instances import random_lben

F64 = torch.float64


def system(*, low: float = 0.0) -> LipschitzSystem:
    found = lipschitz_system(random_lben(8, 1, skew=2.0, spread=0.5))
    return replace(found, slopes=type(found.slopes)(low, 1.0))


def largest_gain(of: LipschitzSystem) -> float:
    ends = torch.tensor(list(itertools.product(of.slopes, repeat=of.size)), dtype=F64)
    states = torch.linalg.solve(torch.eye(of.size, dtype=F64) - ends[:, :, None] * of.W, ends[:, :, None] * of.U)
    return float(torch.linalg.matrix_norm(of.C @ states + of.D, 2).max())


@pytest.mark.parametrize("low", [0.0, 0.2])
def test_cases_close_the_gap_of_one_multiplier(low: float) -> None:
    of = system(low=low)
    one, cases, truth = InteriorPoint().certify(of).bound, Branches(leaves=32).certify(of), largest_gain(of)
    assert truth * (1 - 1e-9) <= cases.bound <= truth * 1.002
    assert cases.margin > 0 and (cases.branches is None or len(cases.branches[0]) <= 32)
    assert low > 0 or one > 1.05 * truth and cases.branches is not None
    some = Branches(leaves=2).certify(of).bound
    assert cases.bound <= some <= one * (1 + 1e-5)


def test_a_proof_without_a_case_or_of_a_smaller_constant_is_refused() -> None:
    of = system()
    good = Branches(leaves=6).certify(of)
    assert check_lipschitz(good, of) == good.margin and good.branches is not None and good.multiplier is not None
    patterns, multipliers = good.branches
    twice = torch.cat([patterns[:1], patterns[:-1]])
    for branches in (
        (patterns[1:], multipliers[1:]),
        (twice, multipliers),
        (patterns.clamp_min(0), multipliers),
        (0.5 * patterns, multipliers),
        (patterns, -multipliers),
        (1 - patterns, multipliers),
    ):
        with pytest.raises(CertificateError):
            check_lipschitz(replace(good, branches=branches), of)
    for forged in (
        replace(good, bound=0.999 * largest_gain(of)),
        replace(good, multiplier=None),
        replace(good, multiplier=-good.multiplier),
        replace(good, branches=None, multiplier=good.multiplier),
    ):
        with pytest.raises(CertificateError):
            check_lipschitz(forged, of)
    with pytest.raises(CertificateError):
        check_lipschitz(good, replace(of, U=1.05 * of.U))
