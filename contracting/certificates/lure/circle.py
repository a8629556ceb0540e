r"""The circle criterion: the best rate for a given multiplier, exactly, with its metric from one Riccati equation.

For slopes in [0, 1] and Λ there is a P ≻ 0 with the inequality of rate c iff A + cI is Hurwitz and, for all ω,

    Λ(I − G(jω)) + its conjugate transpose ≻ 0,   G(jω) = D + C(jωI − A − cI)⁻¹B,

by the Kalman–Yakubovich–Popov lemma, and iff a Hamiltonian matrix has no imaginary eigenvalue. The set of such c is a
half-line, as P of one rate serves all smaller ones. The parabola test is the case A = −I.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from contracting.certificates.candidates import Candidate, best_rate
from contracting.certificates.finders import slopes_of
from contracting.certificates.lure.questions import RateQuestion
from contracting.certificates.lure.search import best_multiplier, well_posed
from contracting.certificates.lure.views import lure_view
from contracting.certificates.optimised import OptimisingFinder
from contracting.certificates.records import CertificateError
from contracting.certificates.systems import System
from contracting.errors import PreconditionError
from contracting.lure.system import LureSystem
from contracting.metrics import FullP

# How far below the best rate the metric is looked for, from this share of the rate to that of the Jacobian, ten times
# farther each time: closer gives more of the rate, farther an equation that float64 solves.
_NEAREST, _FARTHEST = 1e-8, 1e-2


@dataclass(frozen=True, kw_only=True, eq=False)
class CircleCriterion(OptimisingFinder):
    r"""The best rate of a Lur'e system for a multiplier Λ, exactly, with its metric from one Riccati equation.

    The linear part must be stable at the lowest slopes, and 2Λ − ΛD − DᵀΛ ≻ 0 there (frontier.md 7). O((n + m)³) time.

    Args:
        multiplier: Λ, (m,); None takes the hint of the system, else the best guess.
        optimise: gradients of log Λ at most per level of smoothing; 0 keeps Λ. None keeps a Λ that is given, and else
            takes 25 for n + m ≤ 40, 6 for n + m ≤ 120 and 0 beyond. The result is about the optimum of the full-P
            matrix inequality.
        tolerance: of the rate, relative to ‖A‖.
    """

    title = "circle criterion"

    def cost(self, system: System) -> int:
        return system.size + slopes_of(system)

    def applies(self, system: System) -> bool:
        return isinstance(system, LureSystem) and system.size > 0

    def find(self, system: System) -> Candidate:
        if not isinstance(system, LureSystem):
            raise PreconditionError("CircleCriterion() is for Lur'e systems; use ParabolaTest() for flows with slopes")
        if not system.size:
            raise PreconditionError("a system without a state has no rate; ask for its gain")
        view = lure_view(system)
        question = RateQuestion(system=view.system)
        lam = view.multiplier(self.multiplier)
        tolerance = self.tolerance * question.scale
        if self.multiplier is None:
            lam = well_posed(question, lam)
        if gradients := self.settled(system).optimise:
            lam = best_multiplier(question, lam, evaluations=gradients, tolerance=1e-6 * question.scale)
        rate = question.best(lam, tolerance)
        if rate == -math.inf:
            raise CertificateError(
                "circle criterion: 2Λ − ΛD − DᵀΛ is not positive definite, so the multiplier does not make the loop "
                "v = Cs + Dσ(v) well-posed; give another one, or scale D down"
            )
        found: list[tuple[float, Candidate]] = []
        below = _NEAREST * min(question.scale, max(abs(rate), question.most - rate, 1e-9 * question.scale))
        while below <= _FARTHEST * question.scale:
            P = question.inequality(rate - below, lam).metric(0.1 * below)
            if P is not None:
                candidate = Candidate(metric=FullP(P), multiplier=lam)
                found.append((best_rate(view.system, candidate), candidate))
                if found[-1][0] >= rate - 2 * below:
                    break
            below *= 10
        if not found:
            raise CertificateError("circle criterion: the Riccati equation has no positive definite solution")
        return view.candidate(max(found, key=lambda pair: pair[0])[1])
