"""The contract of a finder of contraction rates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from contracting.certificates.candidates import Candidate, best_rate
from contracting.certificates.checker import check
from contracting.certificates.finders import RateFinder
from contracting.certificates.records import Certificate
from contracting.certificates.systems import (
    FiringRateSystem,
    HopfieldSystem,
    InclusionSystem,
    LinearSystem,
    System,
    with_slopes,
)
from contracting.certificates.upper_bounds import upper_bound
from contracting.contracts.base import DOUBLE, draw, refused, require
from contracting.errors import PreconditionError
from contracting.lure.system import LureSystem
from contracting.types import Slopes

_SAMPLES = 200  # Jacobians at random slopes


class FinderContract(ABC):
    """What every finder promises: proofs that hold, the same in all coordinates, from settings that stay as they are.

    Bring ``finder``; and ``systems``, if it is not for flows with slopes in [0, 1]. ``tolerance`` is by how much a rate
    may differ between coordinates, where the method itself stops at a tolerance.
    """

    tolerance = 1e-4

    @abstractmethod
    def finder(self) -> RateFinder:
        """The finder to be tested."""

    def systems(self) -> Sequence[System]:
        """Systems that it applies to, without a hint."""
        G, S = draw(2, 4, 4)
        W = 0.5 * torch.eye(4, dtype=DOUBLE) - 0.1 * G @ G.mT + 0.3 * (S - S.mT)
        return FiringRateSystem(W=W), HopfieldSystem(W=W, speed=2.5), FiringRateSystem(W=-W, slopes=Slopes(0.0, 0.5))

    def test_what_it_finds_is_proved(self) -> None:
        for system in self.systems():
            certificate = self.finder().certify(system)
            require(isinstance(certificate, Certificate), "certify must return a Certificate")
            require(min(certificate.margin, check(certificate, system)) > 0, "the checker must accept the certificate")
            require(certificate.method == self.finder().name, "the certificate must name the finder")

    def test_what_it_proposes_is_about_the_system(self) -> None:
        for system in self.systems():
            proposal = self.finder().find(system)
            require(isinstance(proposal, Candidate), "find must return a Candidate")
            require(proposal.metric.size == system.size, "the metric must be one of the system's own coordinates")
            rate = self.finder().judge(system, proposal).rate
            seen = best_rate(with_slopes(system, proposal.slopes or system.slopes), proposal)
            best = seen - 1e-3 * (1 + abs(seen)) <= rate <= seen + 1e-9
            require(best, f"the certificate must be the candidate's best: {rate}, not {seen}")

    def test_no_rate_exceeds_the_truth(self) -> None:
        for system in self.systems():
            certificate = self.finder().certify(system)
            rate, measure = certificate.rate - 1e-9, certificate.metric.matrix_measure
            require(rate <= upper_bound(system, certificate.metric).rate, "no rate exceeds the bound in any norm")
            if isinstance(system, LinearSystem):
                require(measure(system.W) <= -rate, "the rate exceeds −μ(A)")
            if isinstance(system, FiringRateSystem | HopfieldSystem | LureSystem):
                neurons = system.neurons if isinstance(system, LureSystem) else system.size
                draws = torch.rand(_SAMPLES, neurons, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
                low, high = system.slopes
                jacobians = system.jacobians(low + (high - low) * draws)
                require(measure(jacobians) <= -rate, "no Jacobian may be slower than certified")

    def test_the_coordinates_do_not_matter(self) -> None:
        for system in self.systems():
            rate = self.finder().certify(system).rate
            for D in (2.0 ** torch.linspace(-10, 10, system.size).round(), torch.logspace(3, -3, system.size)):
                moved = self.finder().certify(system.rescaled(D.double())).rate
                same = abs(moved - rate) <= self.tolerance * (1 + abs(rate))
                require(same, f"the rate must not depend on coordinates: {rate} becomes {moved}")

    def test_it_keeps_nothing(self) -> None:
        finder = self.finder()
        for system in self.systems():
            before, settings = [matrix.clone() for matrix in _matrices(system)], repr(finder)
            rates = {of.certify(system).rate for of in (finder, finder, self.finder())}
            require(len(rates) == 1, "a finder must keep nothing from one call to the next")
            same = all(map(torch.equal, _matrices(system), before))
            require(same and repr(finder) == settings, "nothing may be written to")

    def test_it_says_what_it_is_about(self) -> None:
        finder, W = self.finder(), 0.5 * torch.eye(3, dtype=DOUBLE)
        require(all(map(finder.applies, self.systems())), "it must apply to the systems that it brings")
        for system in (*self.systems(), FiringRateSystem(W=W), InclusionSystem(W=W), LinearSystem(W=-W)):
            if finder.applies(system):
                affordable = finder.affordable(system)
                require(isinstance(affordable, type(finder) | None), "affordable must keep the kind of finder")
            else:
                refused(PreconditionError, partial(finder.find, system), "find must refuse what it does not apply to")


def _matrices(system: System) -> list[Tensor]:
    """What must stay as it is."""
    return [value for value in vars(system).values() if isinstance(value, Tensor)]
