"""Every finder of rates keeps the contract that a third party's must, and one of a user's own is tried like ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from contracting.certificates import (
    Candidate,
    CircleCriterion,
    DiagonalMetric,
    ExplicitMetric,
    FiringRateSystem,
    GivenMetric,
    HopfieldSystem,
    InclusionMetric,
    InclusionSystem,
    LinearSystem,
    LyapunovMetric,
    ParabolaTest,
    PolyhedralMetric,
    RateFinder,
    SectorInequality,
    System,
    VertexInequalities,
    applicable,
    catalogue,
    certificates,
    register_finder,
)
from contracting.contracts import FinderContract
from contracting.errors import InputError, PreconditionError
from contracting.metrics import WeightedL1, WeightedL2, WeightedLinf
from tests.contracting.certificates.instances import gaussian
from tests.contracting.certificates.lure.lure_instances import random_system


class TestDiagonalMetric(FinderContract):
    def finder(self) -> RateFinder:
        return DiagonalMetric()


class TestExplicitMetric(FinderContract):
    def finder(self) -> RateFinder:
        return ExplicitMetric()


class TestPolyhedralRows(FinderContract):
    def finder(self) -> RateFinder:
        return PolyhedralMetric(norm=WeightedLinf)


class TestPolyhedralColumns(FinderContract):
    def finder(self) -> RateFinder:
        return PolyhedralMetric(norm=WeightedL1)

    def systems(self) -> Sequence[System]:
        return *super().systems(), LinearSystem(W=gaussian(4, 0) - 2 * torch.eye(4, dtype=torch.float64), speed=0.5)


class TestParabolaTest(FinderContract):
    def finder(self) -> RateFinder:
        return ParabolaTest()


class TestOptimisedParabolaTest(FinderContract):
    def finder(self) -> RateFinder:
        return ParabolaTest(optimise=10)


class TestSectorInequality(FinderContract):
    def finder(self) -> RateFinder:
        return SectorInequality()


class TestVertexInequalities(FinderContract):
    def finder(self) -> RateFinder:
        return VertexInequalities()


LOOPS = [random_system(3, n=2, m=3), random_system(1, n=3, m=2, intervals="random")]


class TestCircleCriterion(FinderContract):
    def finder(self) -> RateFinder:
        return CircleCriterion()

    def systems(self) -> Sequence[System]:
        return LOOPS


class TestOptimisedCircleCriterion(TestCircleCriterion):
    def finder(self) -> RateFinder:
        return CircleCriterion(optimise=10)


class TestRowsOfLoops(TestCircleCriterion):
    def finder(self) -> RateFinder:
        return PolyhedralMetric(norm=WeightedLinf)


class TestColumnsOfLoops(TestCircleCriterion):
    def finder(self) -> RateFinder:
        return PolyhedralMetric(norm=WeightedL1)


class TestSectorInequalityOfLoops(TestCircleCriterion):
    def finder(self) -> RateFinder:
        return SectorInequality()


class TestVertexInequalitiesOfLoops(TestCircleCriterion):
    def finder(self) -> RateFinder:
        return VertexInequalities()


class TestInclusionMetric(FinderContract):
    def finder(self) -> RateFinder:
        return InclusionMetric()

    def systems(self) -> Sequence[System]:
        return InclusionSystem(W=gaussian(4, 1)), InclusionSystem(W=gaussian(3, 2), speed=2)


class TestLyapunovMetric(FinderContract):
    def finder(self) -> RateFinder:
        return LyapunovMetric()

    def systems(self) -> Sequence[System]:
        return (LinearSystem(W=gaussian(4, 0) - 2 * torch.eye(4, dtype=torch.float64), speed=0.5),)


@dataclass(frozen=True, kw_only=True)
class Euclidean(RateFinder):
    """A finder of a user's own that looks in one place only."""

    def find(self, system: System) -> Candidate:
        if not self.applies(system):
            raise PreconditionError("Euclidean() is for flows with slopes")
        ones = torch.ones(system.size, dtype=torch.float64)
        return Candidate(metric=WeightedL2(ones), multiplier=ones)


def test_a_finder_of_your_own_is_one_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "FINDERS", list(catalogue.FINDERS))
    monkeypatch.setattr("contracting.certificates.certification.FINDERS", catalogue.FINDERS)
    own = register_finder(Euclidean())
    system = HopfieldSystem(W=gaussian(3, 0))
    assert own in applicable(system) and own not in applicable(LinearSystem(W=system.W))
    assert own.certify(system).rate in [c.rate for c in certificates(system) if c.method == "Euclidean"]
    with pytest.raises(InputError, match=r"\bfinder\b"):
        register_finder(GivenMetric)  # type: ignore[arg-type]


def test_a_finder_that_breaks_the_contract_fails_it() -> None:
    """"1" is another metric in other coordinates, so that its rate depends on them."""

    class Suite(FinderContract):
        def finder(self) -> RateFinder:
            return Euclidean()

    Suite().test_what_it_finds_is_proved()
    with pytest.raises(AssertionError, match=r"\bcoordinates\b"):
        Suite().test_the_coordinates_do_not_matter()


def test_what_is_affordable_depends_on_the_size() -> None:
    small, large = FiringRateSystem(W=gaussian(4, 0)), FiringRateSystem(W=torch.zeros(500, 500))
    assert DiagonalMetric().affordable(large) is None and DiagonalMetric().affordable(small) is not None
    assert ParabolaTest().affordable(large) is None
    assert ParabolaTest(optimise=0).affordable(large).tolerance > ParabolaTest(optimise=0).affordable(small).tolerance
    assert SectorInequality().affordable(small) is None and VertexInequalities().affordable(small) is not None
