"""What every finder of Lipschitz constants is, and the one that needs no search: the built-in γ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from contracting.certificates.finder import Finder
from contracting.certificates.records import CertificateError
from contracting.errors import PreconditionError
from equilibrium.lipschitz.certificate import LipschitzCertificate, Norm
from equilibrium.lipschitz.checker import checked
from equilibrium.lipschitz.gain import compressed, gain
from equilibrium.lipschitz.system import LipschitzSystem, in_power

# The checker needs a little room for its rounding: the bound grows until it is accepted, first relatively, and at last,
# where rounding errors that the system declares are all there is, absolutely, in units in which the weights are one.
_RELATIVE = (0.0, 1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_ABSOLUTE = tuple(16.0**-k for k in range(24, -1, -1))


class LipschitzFinder(Finder[LipschitzSystem, Tensor, LipschitzCertificate]):
    """Proposes Λ, (n,), or several of them, best first, (k, n): an ℓ2 bound.

    They are in the units and the normalisation of ``gain(system.in_units(system.units), Λ)``.
    """

    @abstractmethod
    def find(self, system: LipschitzSystem) -> Tensor:
        """Λ as above.

        Raises:
            PreconditionError: if no Λ is known or found in which Condition 1 holds.
        """

    def judge(self, system: LipschitzSystem, proposal: Tensor) -> LipschitzCertificate:
        """The certificate of the first Λ that proves something: γ(Λ), increased as little as the checker asks for."""
        small = compressed(system.in_units(system.units))
        for lam in proposal.reshape(-1, system.size):
            value = 0.0 if system.constant else float(gain(small, lam))
            for bound in _grown(value) if value < float("inf") else ():
                certificate = LipschitzCertificate(
                    bound=in_power(bound, sum(system.units)),
                    norm=Norm.L2,
                    method=self.name,
                    slopes=system.slopes,
                    margin=0.0,
                    multiplier=lam if system.constant else bound * lam,
                    units=system.units,
                )
                try:
                    return checked(certificate, system)
                except CertificateError:
                    continue
        raise CertificateError(f"{self.name}: no multiplier proves a bound, or only within rounding")


def _grown(value: float) -> Iterator[float]:
    for share in _RELATIVE:
        yield value * (1 + share)
    for extra in _ABSOLUTE:
        if extra > _RELATIVE[-1] * value:
            yield value + extra


@dataclass(frozen=True, kw_only=True)
class BuiltIn(LipschitzFinder):
    """The γ that a parameterisation promises, with its own Λ: nothing is searched."""

    @property
    def name(self) -> str:
        """The method in words."""
        return "built-in"

    def find(self, system: LipschitzSystem) -> Tensor:
        if system.claimed is None or system.metric is None:
            raise PreconditionError("this map has no built-in Lipschitz bound; use certified_lipschitz")
        metric = system.in_units(system.units).metric
        assert metric is not None
        return metric

    def judge(self, system: LipschitzSystem, proposal: Tensor) -> LipschitzCertificate:
        """γ itself, but for rounding; what Λ alone proves may be less, and is what the other finders are for.

        Raises:
            CertificateError: if the promise does not hold for these weights.
        """
        claimed = system.in_units(system.units).claimed or 0.0
        for inflation in (0.0, 1e-9, 1e-7):
            bound = claimed * (1 + inflation)
            certificate = LipschitzCertificate(
                bound=in_power(bound, sum(system.units)),
                norm=Norm.L2,
                method=self.name,
                slopes=(0.0, 1.0),
                margin=0.0,
                multiplier=bound * proposal,
                units=system.units,
            )
            try:
                return checked(certificate, system)
            except CertificateError:
                continue
        raise CertificateError(f"the built-in constant {system.claimed:.6g} does not hold for these weights")
