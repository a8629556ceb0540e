r"""Linear flows: a quadratic metric in which s' = As + b contracts almost as fast as its slowest eigenvalue decays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.candidates import Candidate
from contracting.certificates.finders import RateFinder
from contracting.certificates.records import CertificateError
from contracting.certificates.spectra import eigenvalues
from contracting.certificates.systems import LinearSystem, System
from contracting.certificates.views import view_of
from contracting.errors import PreconditionError
from contracting.metrics import FullP

_MOST_DOUBLINGS = 60  # Convergence is quadratic: where 60 doublings do not suffice, there is no solution.


@dataclass(frozen=True, kw_only=True, eq=False)
class LyapunovMetric(RateFinder):
    r"""P from (A + cI)ᵀP + P(A + cI) = −I with c just below −α(A), the best rate of any norm.

    The rate −α(A) itself need not be attained (Jordan blocks), and comes with an ill-conditioned P.

    Args:
        gap: how far c stays below −α(A), relative to ‖A‖.
    """

    gap: float = 1e-6

    def __post_init__(self) -> None:
        checks.number("gap", self.gap, low=0, high=1, low_open=True)

    name = "Lyapunov equation"

    def applies(self, system: System) -> bool:
        return isinstance(system, LinearSystem)

    def find(self, system: System) -> Candidate:
        if not isinstance(system, LinearSystem):
            raise PreconditionError("LyapunovMetric() is for linear flows; use ParabolaTest() for flows with slopes")
        view = view_of(system)
        A = view.system.W
        abscissa, size = float(eigenvalues(A).real.max()), float(torch.linalg.matrix_norm(A, 2))
        identity = torch.eye(system.size, dtype=torch.float64)
        for gap in (self.gap, 10 * self.gap, 1e-3, 1e-2, 0.1):
            P = _lyapunov(A - (abscissa + gap * max(size, math.ulp(1.0))) * identity)
            if P is None:
                continue
            try:
                return view.candidate(Candidate(metric=FullP(P)))
            except CertificateError:
                continue
        raise CertificateError("Lyapunov equation: no positive definite solution in float64")


def _lyapunov(F: Tensor) -> Tensor | None:
    """P with FᵀP + PF = −I, scaled to unit trace, by the doubling of Smith (1968); None if it is not found."""
    identity = torch.eye(F.shape[0], dtype=F.dtype)
    shift = float(torch.linalg.matrix_norm(F)) / F.shape[0] ** 0.5
    resolvent, info = torch.linalg.inv_ex(shift * identity - F)
    if int(info):
        return None
    power, P = resolvent @ (shift * identity + F), 2 * shift * resolvent.mT @ resolvent
    for _ in range(_MOST_DOUBLINGS):
        step = power.mT @ P @ power
        P, power = P + step, power @ power
        if not bool(torch.isfinite(P).all()):
            return None
        if float(step.abs().max()) <= 1e-15 * float(P.abs().max()):
            break
    P = (P + P.mT) / (2 * P.trace())
    return P if int(torch.linalg.cholesky_ex(P)[1]) == 0 else None
