"""What every finder of Lipschitz constants is, and the one that needs no search: the built-in γ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from contracting.certificates.finder import Finder
from contracting.certificates.records import CertificateError
from contracting.errors import PreconditionError
from contracting.types import UNIT_SLOPES, Slopes
from equilibrium.lipschitz.certificate import LipschitzCertificate, Norm
from equilibrium.lipschitz.checker import checked
from equilibrium.lipschitz.gain import compressed, gain
from equilibrium.lipschitz.system import LipschitzSystem, in_power

# The checker needs a little room for its rounding: the bound grows until it is accepted, first relatively, and at last,
# where rounding errors that the system declares are all there is, absolutely, in units in which the weights are one.
_RELATIVE = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_ABSOLUTE = tuple(16.0**-k for k in range(24, -1, -1))


class LipschitzFinder(Finder[LipschitzSystem, Tensor, LipschitzCertificate]):
    """Proposes Λ, (n,), or several of them, best first, (k, n): an ℓ2 bound.

    They are in the units and the normalisation of ``gain(system.in_units(system.units), Λ)``. A finder of your own
    brings ``find``; ``prepared(system, None)`` of ``equilibrium.lipschitz.start`` is a Λ to begin with.
    """

    @abstractmethod
    def find(self, system: LipschitzSystem) -> Tensor:
        """Λ as above.

        Raises:
            PreconditionError: if no Λ is known or found in which Condition 1 holds.
        """

    def bounds(self, system: LipschitzSystem, lam: Tensor) -> Iterable[float]:
        """Constants to try with one Λ, in ``system.units``, smallest first: γ(Λ), and ever more room for rounding."""
        value = 0.0 if system.constant else gain(compressed(system.in_units(system.units)), lam)
        return _grown(value) if value < float("inf") else ()

    def judge(self, system: LipschitzSystem, proposal: Tensor) -> LipschitzCertificate:
        """The first certificate that the checker accepts, in the order of the proposals and of ``bounds``."""
        for lam in proposal.reshape(-1, system.size):
            for bound in self.bounds(system, lam):
                certificate = LipschitzCertificate(
                    bound=in_power(bound, sum(system.units)),
                    norm=Norm.L2,
                    method=self.name,
                    slopes=self.slopes(system),
                    margin=0.0,
                    multiplier=lam if system.constant else bound * lam,
                    units=system.units,
                )
                try:
                    return checked(certificate, system)
                except CertificateError:
                    continue
        raise CertificateError(f"{self.name}: no multiplier proves a bound, or only within rounding")

    def slopes(self, system: LipschitzSystem) -> Slopes:
        """The slopes that the certificate is for."""
        return system.slopes


def _grown(value: float) -> Iterator[float]:
    for share in _RELATIVE:
        yield value * (1 + share)
    for extra in _ABSOLUTE:
        if extra > _RELATIVE[-1] * value:
            yield value + extra


@dataclass(frozen=True, kw_only=True)
class BuiltIn(LipschitzFinder):
    """The γ that a parameterisation promises, with its own Λ: nothing is searched."""

    name = "built-in"

    def find(self, system: LipschitzSystem) -> Tensor:
        if system.claimed is None or system.metric is None:
            raise PreconditionError("this map has no built-in Lipschitz bound; use certified_lipschitz")
        metric = system.in_units(system.units).metric
        assert metric is not None
        return metric

    def bounds(self, system: LipschitzSystem, lam: Tensor) -> Iterable[float]:
        """γ itself, but for rounding; what Λ alone proves may be less, and is what the other finders are for."""
        claimed = system.in_units(system.units).claimed or 0.0
        return [claimed * (1 + inflation) for inflation in (0.0, 1e-9, 1e-7)]

    def slopes(self, system: LipschitzSystem) -> Slopes:
        """[0, 1], whatever the activation has: the parameterisation knows no other."""
        return UNIT_SLOPES
