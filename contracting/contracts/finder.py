"""The contract of a finder of contraction rates: subclass ``FinderContract``, bring the finder, inherit the tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from contracting.certificates.candidates import Candidate, best_rate
from contracting.certificates.checker import check
from contracting.certificates.finders import RateFinder
from contracting.certificates.records import Certificate
from contracting.certificates.systems import FiringRateSystem, HopfieldSystem, InclusionSystem, LinearSystem, System
from contracting.certificates.upper_bounds import upper_bound
from contracting.errors import PreconditionError
from contracting.types import Slopes

_SAMPLES = 200  # Jacobians at random slopes


class FinderContract:
    """What every finder promises: proofs that hold, the same in all coordinates, from settings that stay as they are.

    Bring ``finder``; bring ``systems`` as well if it is not for flows with slopes in [0, 1].
    """

    tolerance = 1e-4
    """By how much a rate may differ between coordinates, where the method itself stops at a tolerance."""

    def finder(self) -> RateFinder:
        """The settings of the finder."""
        raise NotImplementedError("bring finder(), which returns the settings of your finder")

    def systems(self) -> Sequence[System]:
        """Systems that it applies to, without a hint."""
        generator = torch.Generator().manual_seed(0)
        G, S = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
        W = 0.5 * torch.eye(4, dtype=torch.float64) - 0.1 * G @ G.mT + 0.3 * (S - S.mT)
        return FiringRateSystem(W=W), HopfieldSystem(W=W, speed=2.5), FiringRateSystem(W=-W, slopes=Slopes(0.0, 0.5))

    def test_what_it_finds_is_proved(self) -> None:
        """The checker accepts the certificate; it is about this system and names the method."""
        for system in self.systems():
            certificate = self.finder().certify(system)
            assert isinstance(certificate, Certificate), "certify must return a Certificate"
            assert certificate.margin > 0 and check(certificate, system) > 0, "the checker must accept the certificate"
            assert certificate.method == self.finder().name, "the certificate must name the finder"
            assert certificate.metric.size == system.size, "the metric must be one of the system's own coordinates"

    def test_what_it_proposes_is_about_the_system(self) -> None:
        """``find`` returns a candidate in the system's own coordinates, and the certificate is the best it proves."""
        for system in self.systems():
            proposal = self.finder().find(system)
            assert isinstance(proposal, Candidate), "find must return a Candidate"
            assert proposal.metric.size == system.size, "the metric must be one of the system's own coordinates"
            rate = self.finder().judge(system, proposal).rate
            seen = best_rate(system if proposal.slopes is None else system.with_slopes(proposal.slopes), proposal)
            assert seen - 1e-3 * (1 + abs(seen)) <= rate <= seen + 1e-9, "the certificate must be the candidate's best"

    def test_no_rate_exceeds_the_truth(self) -> None:
        """Nor any Jacobian, measured in the metric, nor the bound in any norm."""
        for system in self.systems():
            certificate = self.finder().certify(system)
            assert certificate.rate <= upper_bound(system, certificate.metric).rate + 1e-9, "no rate exceeds a bound"
            if isinstance(system, LinearSystem):
                assert float(certificate.metric.matrix_measure(system.W)) <= -certificate.rate + 1e-9, "μ(A) ≤ −c"
            if isinstance(system, FiringRateSystem | HopfieldSystem):
                generator = torch.Generator().manual_seed(1)
                draws = torch.rand(_SAMPLES, system.size, generator=generator, dtype=torch.float64)
                jacobians = system.jacobians(system.slopes.low + system.slopes.width * draws)
                worst = float(certificate.metric.matrix_measure(jacobians).max())
                assert worst <= -certificate.rate + 1e-9, "no Jacobian may be slower than certified"

    def test_the_coordinates_do_not_matter(self) -> None:
        """The same rate for DWD⁻¹, D powers of two and other numbers over six orders of magnitude."""
        for system in self.systems():
            rate = self.finder().certify(system).rate
            for D in (2.0 ** torch.linspace(-10, 10, system.size).round().double(), torch.logspace(3, -3, system.size)):
                moved = self.finder().certify(system.rescaled(D.double())).rate
                assert abs(moved - rate) <= self.tolerance * (1 + abs(rate)), "the rate must not depend on coordinates"

    def test_it_keeps_nothing(self) -> None:
        """The same answer twice, and from the same settings anew, with the system left as it was."""
        finder = self.finder()
        for system in self.systems():
            before, settings = system.W.clone(), repr(finder)
            rates = [finder.certify(system).rate, finder.certify(system).rate, self.finder().certify(system).rate]
            assert rates[0] == rates[1] == rates[2], "a finder must keep nothing from one call to the next"
            assert torch.equal(system.W, before) and repr(finder) == settings, "nothing may be written to"

    def test_it_says_what_it_is_about(self) -> None:
        """``applies`` is true of its systems, others ``find`` refuses; what is affordable is of the same kind."""
        finder = self.finder()
        W = 0.5 * torch.eye(3, dtype=torch.float64)
        for system in (*self.systems(), FiringRateSystem(W=W), InclusionSystem(W=W), LinearSystem(W=-W)):
            if finder.applies(system):
                assert isinstance(finder.affordable(system), type(finder) | None), "affordable keeps the kind of finder"
                continue
            assert not any(system is own for own in self.systems()), "it must apply to the systems that it brings"
            try:
                finder.find(system)
            except PreconditionError:
                continue
            raise AssertionError(f"it does not apply to the {system.name} flow: find must raise PreconditionError")
        assert all(finder.applies(system) for system in self.systems()), "it must apply to the systems that it brings"
