r"""Entrywise bounds: |Δy| ≤ (|C|(I − ⌈W⌉)⁻¹|U| + |D|)|Δx|, ⌈W⌉ = |W| off the diagonal and W on it.

One linear solve bounds every input–output pair and every ℓp norm. It needs α(⌈W⌉) < 1 (α the spectral abscissa), which
is more than Condition 1 and fails for most trained networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.certificates.definite import SMALLEST, sizes
from contracting.certificates.finder import Finder
from contracting.certificates.records import CertificateError
from contracting.errors import PreconditionError
from equilibrium.lipschitz.certificate import LipschitzCertificate, Norm
from equilibrium.lipschitz.checker import checked, comparison, norm_of, positive_vector
from equilibrium.lipschitz.system import LipschitzSystem, in_power, times_power


@dataclass(frozen=True, kw_only=True)
class Elementwise(Finder[LipschitzSystem, Tensor, LipschitzCertificate]):
    """The Lipschitz constant in ``norm`` from the entrywise bound; ``entrywise`` holds the constant of every pair.

    It proposes X ≥ (I − ⌈bW⌉)⁻¹|bU|, (n, in), in ``system.units``; a positive smallest slope does not help.

    Args:
        norm: of inputs and outputs.
    """

    norm: Norm = Norm.L2

    name = "elementwise"

    def find(self, system: LipschitzSystem) -> Tensor:
        """X up to rounding.

        Raises:
            PreconditionError: if α(⌈bW⌉) ≥ 1: use an ℓ2 bound.
        """
        small = system.in_units(system.units)
        T = comparison(small.W, small.slopes[1])
        if positive_vector(T) is None:
            raise PreconditionError(
                "the elementwise bound needs the spectral abscissa of |W| (diagonal as it is) to be below 1; "
                "use the ℓ2 bounds, which need Condition 1 only"
            )
        return torch.linalg.solve(T, _target(small)).clamp_min(0)

    def judge(self, system: LipschitzSystem, proposal: Tensor) -> LipschitzCertificate:
        """The certificate of X, increased as little as the checker asks for."""
        units = system.units
        small = system.in_units(units)
        T, target = comparison(small.W, small.slopes[1]), _target(small)
        allowed = sizes(T) @ proposal  # what rounding is relative to, row by row
        for slack in (1e-13, 1e-11, 1e-9, 1e-7):
            X = torch.linalg.solve(T, target * (1 + slack) + slack * allowed).clamp_min(0) + SMALLEST
            gains = (sizes(small.C) + small.errors[1]) @ X + small.D.abs() + small.errors[2]
            gains = gains * (1 + slack)
            bound = norm_of(gains, self.norm) * (1 + slack + 1e-12)
            entrywise = times_power(gains * (1 + 1e-14 * system.size), sum(units))
            certificate = LipschitzCertificate(
                bound=in_power(bound, sum(units)),
                norm=self.norm,
                method=self.name,
                slopes=(0.0, system.slopes[1]),
                margin=0.0,
                state_gains=X,
                entrywise=entrywise + torch.finfo(torch.float64).tiny * (entrywise < torch.finfo(torch.float64).tiny),
                units=units,
            )
            try:
                return checked(certificate, system)
            except CertificateError:
                continue
        raise CertificateError("the elementwise bound is lost in rounding: |W| is too close to its limit")


def _target(system: LipschitzSystem) -> Tensor:
    return system.slopes[1] * (system.U.abs() + system.errors[0])
