r"""The circle criterion: the best rate for a given multiplier, exactly, with its metric from one Riccati equation.

For slopes in [0, 1] and Λ there is a P ≻ 0 with the inequality of rate c iff A + cI is Hurwitz and, for all ω,

    Λ(I − G(jω)) + its conjugate transpose ≻ 0,   G(jω) = D + C(jωI − A − cI)⁻¹B,

by the Kalman–Yakubovich–Popov lemma, and iff a Hamiltonian matrix has no imaginary eigenvalue. The set of such c is a
half-line, as P of one rate serves all smaller ones. The parabola test is the case A = −I.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.candidates import Candidate, best_rate
from contracting.certificates.finders import RateFinder
from contracting.certificates.lure.views import lure_view
from contracting.certificates.records import CertificateError
from contracting.certificates.riccati import riccati_inequality
from contracting.certificates.spectra import eigenvalues
from contracting.certificates.systems import System
from contracting.errors import PreconditionError
from contracting.lure.system import LureSystem
from contracting.metrics import FullP

# How far below the best rate the metric is looked for, in units of ‖A‖: closer gives more of the rate, farther an
# equation that float64 solves.
_BACK_OFF = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
# A pair of eigenvalues this near to the imaginary axis, relative to the matrix, counts as imaginary: pairs leave the
# axis like a square root, so that rounding moves them by the root of 1e-16.
_IMAGINARY = 1e-8
_FARTHEST = 2.0**60  # In units of ‖A‖: where no rate above minus this is possible, none is looked for.


@dataclass(frozen=True, kw_only=True, eq=False)
class Inequality:
    r"""[[AᵀP + PA + Q, PB + S], [·, −R]] ≺ 0 for a P ≻ 0: what is asked once the multiplier is given.

    Attributes:
        A: (n, n).
        B: (n, m).
        Q: (n, n), positive semidefinite.
        S: (n, m).
        R: (m, m), positive definite.
    """

    A: Tensor
    B: Tensor
    Q: Tensor
    S: Tensor
    R: Tensor

    def riccati(self, rate: float) -> tuple[Tensor, Tensor, Tensor, float] | None:
        """F, G and H of FᵀP + PF + PGP + H ≺ 0 at a rate, for P times a unit in which G and H are alike, and the unit.

        None if R is not positive definite.
        """
        root, info = torch.linalg.cholesky_ex(self.R)
        if int(info):
            return None
        B, S = (torch.linalg.solve_triangular(root, part.mT, upper=False) for part in (self.B, self.S))
        F = self.A + rate * torch.eye(len(self.A), dtype=self.A.dtype) + B.mT @ S
        G, H = B.mT @ B, self.Q + S.mT @ S
        unit = float(torch.linalg.matrix_norm(G)) / max(float(torch.linalg.matrix_norm(H)), 1e-300)
        unit = math.sqrt(unit) if 0 < unit < math.inf else 1.0
        return F, G / unit, H * unit, unit

    def solvable(self, rate: float) -> bool:
        """Whether there is a P at a rate, up to rounding, by the eigenvalues of a Hamiltonian matrix."""
        parts = self.riccati(rate)
        if parts is None or not bool(eigenvalues(self.A).real.max() < -rate):
            return False
        F, G, H, _ = parts
        matrix = torch.cat([torch.cat([F, G], 1), torch.cat([-H, -F.mT], 1)])
        if not bool(torch.isfinite(matrix).all()):
            return False
        distance = eigenvalues(matrix).real.abs().amin()
        return bool(distance > _IMAGINARY * torch.linalg.matrix_norm(matrix, 1))

    def best_rate(self, scale: float, tolerance: float) -> float:
        """The largest rate at which there is a P, by bisection; −∞ if there is none.

        Args:
            scale: of rates.
            tolerance: absolute.
        """
        top, gap = -float(eigenvalues(self.A).real.max()), scale
        while not self.solvable(top - gap):
            top, gap = top - gap, 2 * gap
            if gap > _FARTHEST * scale:
                return -math.inf
        bottom = top - gap
        while top - bottom > tolerance:
            middle = (top + bottom) / 2
            top, bottom = (top, middle) if self.solvable(middle) else (middle, bottom)
        return bottom

    def metric(self, rate: float, room: float) -> Tensor | None:
        """A P at a rate, with some room: G and H are enlarged by about ``room``, so that extreme solutions exist."""
        parts = self.riccati(rate)
        if parts is None:
            return None
        F, G, H, unit = parts
        extra = room * torch.eye(len(F), dtype=F.dtype)
        P = riccati_inequality(F, G + extra, H + extra)
        return None if P is None else P / unit


def rate_inequality(system: LureSystem, multiplier: Tensor) -> Inequality:
    """The inequality of a rate, slopes in [0, 1]."""
    half = multiplier[:, None] * system.D
    return Inequality(
        A=system.A,
        B=system.B,
        Q=torch.zeros_like(system.A),
        S=system.C.mT * multiplier,
        R=torch.diag(2 * multiplier) - half - half.mT,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class CircleCriterion(RateFinder):
    r"""The best rate of a Lur'e system for a multiplier Λ, exactly, with its metric from one Riccati equation.

    The linear part must be stable at the lowest slopes, and 2Λ − ΛD − DᵀΛ ≻ 0 there (frontier.md 7). O((n + m)³) time.

    Args:
        multiplier: Λ, (m,); None takes the hint of the system, else the best guess.
        tolerance: of the rate, relative to ‖A‖.
    """

    multiplier: Tensor | None = None
    tolerance: float = 1e-9

    def __post_init__(self) -> None:
        checks.number("tolerance", self.tolerance, low=0, high=1, low_open=True)

    name = "circle criterion"

    def applies(self, system: System) -> bool:
        return isinstance(system, LureSystem) and system.size > 0

    def affordable(self, system: System) -> Self:
        return self

    def find(self, system: System) -> Candidate:
        if not isinstance(system, LureSystem):
            raise PreconditionError("CircleCriterion() is for Lur'e systems; use ParabolaTest() for flows with slopes")
        if not system.size:
            raise PreconditionError("a system without a state has no rate; ask for its gain")
        view = lure_view(system)
        seen, lam = view.system, view.multiplier(self.multiplier)
        inequality = rate_inequality(seen, lam)
        rate = inequality.best_rate(view.scale, self.tolerance * view.scale)
        if rate == -math.inf:
            raise CertificateError(
                "circle criterion: 2Λ − ΛD − DᵀΛ is not positive definite, so the multiplier does not make the loop "
                "v = Cs + Dσ(v) well-posed; give another one, or scale D down"
            )
        found: list[tuple[float, Candidate]] = []
        for back_off in _BACK_OFF:
            P = inequality.metric(rate - back_off * view.scale, 0.1 * back_off * view.scale)
            if P is not None:
                candidate = Candidate(metric=FullP(P), multiplier=lam)
                found.append((best_rate(seen, candidate), candidate))
                if found[-1][0] >= rate - 2 * back_off * view.scale:
                    break
        if not found:
            raise CertificateError("circle criterion: the Riccati equation has no positive definite solution")
        return view.candidate(max(found, key=lambda pair: pair[0])[1])
