"""Every finder of contraction rates that is tried where none is named: the one place where a finder is registered."""

from __future__ import annotations

from contracting.certificates.finders import (
    DiagonalMetric,
    ExplicitMetric,
    InclusionMetric,
    LyapunovMetric,
    PolyhedralMetric,
    RateFinder,
)
from contracting.certificates.lifted.finder import LiftedInequality
from contracting.certificates.lmi import SectorInequality, VertexInequalities
from contracting.certificates.lure.circle import CircleCriterion
from contracting.certificates.parabola import ParabolaTest
from contracting.errors import InputError
from contracting.metrics import WeightedL1, WeightedLinf

FINDERS: list[RateFinder] = [
    InclusionMetric(),
    LyapunovMetric(),
    DiagonalMetric(),
    PolyhedralMetric(norm=WeightedLinf),
    PolyhedralMetric(norm=WeightedL1),
    ParabolaTest(optimise=0),
    ParabolaTest(),
    SectorInequality(diagonal=True),
    SectorInequality(),
    ExplicitMetric(),
    VertexInequalities(),
    LiftedInequality(),
    CircleCriterion(optimise=0),
    CircleCriterion(),
]


def register_finder(finder: RateFinder) -> RateFinder:
    """Let ``certify``, ``report`` and ``applicable`` try a finder of your own as well; it is returned.

    Raises:
        InputError: if it is no RateFinder.
    """
    if not isinstance(finder, RateFinder):
        raise InputError(f"finder must be a RateFinder, got {finder!r}")
    FINDERS.append(finder)
    return finder
