"""The parabola test: the best rate that one diagonal multiplier proves, exactly, and the search for the best one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from contracting.certificates.candidates import Candidate, best_rate
from contracting.certificates.finders import IN_PASSING, full_metric
from contracting.certificates.lure.questions import RateQuestion
from contracting.certificates.lure.search import best_multiplier
from contracting.certificates.multipliers import parabola_multiplier, scaled, small_gain_multiplier
from contracting.certificates.numerical_range import reach
from contracting.certificates.optimised import OptimisingFinder
from contracting.certificates.records import CertificateError
from contracting.certificates.riccati import hamiltonian_rate, riccati_metric
from contracting.certificates.spectra import eigenvalues
from contracting.certificates.systems import FiringRateSystem, System
from contracting.certificates.views import slopes_view
from contracting.lure.system import LureSystem
from contracting.types import Slopes

_EXACT_BISECTION = 150  # Up to here a general slope interval is bisected by the eigenvalues of matrices of size 2n.


@dataclass(frozen=True, kw_only=True, eq=False)
class ParabolaTest(OptimisingFinder):
    r"""The best rate for a multiplier Q, exactly, with its metric from one Riccati equation.

    The numerical range of M = Q^½WQ^−½ must lie in a parabola (arXiv 2604.15238 Thm 12 has the matrix inequality; the
    two are equivalent by the Kalman–Yakubovich–Popov lemma). O(n³) time, O(n²) memory.

    Args:
        multiplier: Q, (n,); None takes the better of the metric of the problem and other guesses.
        optimise: gradients of log Q at most per level of smoothing; 0 keeps Q. None keeps a Q that is given, and else
            takes 25 for n ≤ 40, 6 for n ≤ 120 and 0 beyond. The result is the full-P matrix inequality's optimum.
        tolerance: of the rate, relative to ‖W‖.
    """

    tolerance: float = 1e-7

    title = "parabola test"

    def cost(self, system: System) -> int:
        return system.size

    def affordable(self, system: System) -> Self | None:
        if not self.optimises:
            return replace(self, tolerance=self.tolerance if system.size <= IN_PASSING else 1e-4)
        return super().affordable(system)

    def find(self, system: System) -> Candidate:
        view, seen = slopes_view(system)
        Q = view.guess if self.multiplier is None else view.weights("multiplier", self.multiplier)
        low, high = seen.slopes
        if gradients := self.settled(system).optimise:
            Q = _optimal_multiplier(seen, Q, gradients)
        M = scaled(seen.W, Q)
        size = 1e-3 + float(torch.linalg.matrix_norm(M, 2))
        if low == 0:
            rate = 1 - reach(high * M, tolerance=self.tolerance).upper
        elif low == -high:
            rate = 1 - high * float(torch.linalg.matrix_norm(M, 2))  # the small-gain theorem
        elif seen.size <= _EXACT_BISECTION:
            rate = hamiltonian_rate(M, seen.slopes, tolerance=self.tolerance)
        else:
            rate = _riccati_rate(M, seen.slopes, tolerance=(1e-3 if seen.size <= 500 else 5e-3) * size)
        for back_off in (1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
            P = riccati_metric(M, seen.slopes, rate - max(back_off, self.tolerance) * size)
            if P is not None:
                break
        else:
            raise CertificateError("parabola test: the Riccati equation has no positive definite solution")
        root = Q.sqrt()
        candidate = Candidate(metric=full_metric(root[:, None] * P * root[None, :]), multiplier=Q)
        return view.candidate(candidate)


def _optimal_multiplier(seen: FiringRateSystem, start: Tensor, gradients: int) -> Tensor:
    """The Q with the best rate found from ``start``, each kind of interval of slopes by the quickest exact test."""
    low, high = seen.slopes
    if low == 0:
        return parabola_multiplier(high * seen.W, start, evaluations=gradients)
    if low == -high:
        return small_gain_multiplier(seen.W, start, evaluations=gradients)
    identity, ones = torch.eye(seen.size, dtype=torch.float64), torch.ones(seen.size, dtype=torch.float64)
    # with slopes low + width·J, J in [0, 1], the multiplier of J is width times the one of the record
    loop = LureSystem(A=low * seen.W - identity, B=(high - low) * identity, C=seen.W, D=0 * seen.W)
    question = RateQuestion(system=loop.rescaled(ones, start.sqrt()))
    tolerance = 1e-6 * question.scale
    return start * best_multiplier(question, ones, evaluations=gradients, tolerance=tolerance)


def _riccati_rate(M: Tensor, slopes: Slopes, *, tolerance: float) -> float:
    """A rate that the Riccati metric keeps, near the largest one: bisection for large n.

    Above the largest rate the doubling may still return some P; only the rate that P really has counts.
    """
    system, ones = FiringRateSystem(W=M, slopes=slopes), torch.ones(M.shape[0], dtype=torch.float64)
    size = float(torch.linalg.matrix_norm(M, 2))
    low, high = slopes
    bottom = 1 - slopes.largest * size - 1e-3
    top = 1 - float(eigenvalues((low + high) / 2 * M).real.max())
    while top - bottom > tolerance:
        middle = (top + bottom) / 2
        P = riccati_metric(M, slopes, middle)
        rate = -math.inf if P is None else best_rate(system, Candidate(metric=full_metric(P), multiplier=ones))
        kept = rate >= middle - tolerance
        top, bottom = (top, middle) if kept else (middle, bottom)
    return bottom
