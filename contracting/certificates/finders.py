"""Finders: each proposes a norm in which a flow may contract. They may be any heuristic; the checker decides."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.candidates import Candidate, best_rate, certified
from contracting.certificates.finder import Finder
from contracting.certificates.lure.checker import LARGEST_BY_VERTICES
from contracting.certificates.lure.polyhedral import polyhedral_candidates
from contracting.certificates.lure.views import lure_view
from contracting.certificates.multipliers import monotone_metric, perron_weights, scaled
from contracting.certificates.records import Certificate, CertificateError
from contracting.certificates.riccati import lyapunov_metric
from contracting.certificates.search import golden_section
from contracting.certificates.spectra import eigenvalues, schur
from contracting.certificates.systems import (
    InclusionSystem,
    LinearSystem,
    SlopeSystem,
    System,
)
from contracting.certificates.views import slopes_view, view_of
from contracting.errors import InputError, PreconditionError
from contracting.lure.system import LureSystem
from contracting.metrics import FullP, WeightedL1, WeightedL2, WeightedLinf
from contracting.types import Slopes

# Sizes n of the state that trade time for the rate.
IN_PASSING = 400  # Beyond, what the parabola test contains anyway is not worth its time where no method is named.
_STEEPEST = 1e-3  # Places of a Schur basis differ by no larger factor, with which T above the diagonal is gone.
_LARGEST_GAP = 1e-3  # A metric that stays farther from −α(A), relative to ‖A‖, is compared with graded ones.
_GRADED = 100  # Up to here a Schur basis is computed where the Lyapunov equation fails, in O(n⁴) time.
_OPTIMISED_INCLUSION = 150  # Up to here Λ is optimised where no method is named, at one eigenvalue problem a gradient.


class RateFinder(Finder[System, Candidate, Certificate]):
    """A finder of contraction rates: proposes a norm, which the best rate in it and the checker turn to a certificate.

    What must be brought is said by ``Finder``.
    """

    def applies(self, system: System) -> bool:
        return isinstance(system, SlopeSystem)

    def judge(self, system: System, proposal: Candidate) -> Certificate:
        """The certificate with the best rate that the checker accepts for a candidate."""
        return certified(system, proposal, method=self.name)


@dataclass(frozen=True, kw_only=True, eq=False)
class ExplicitMetric(RateFinder):
    r"""P = (1 − 2c)Λ + G with G = sym ΛA: a formula, for slopes in [0, β], once Λ is known.

    With Ã = Λ^½(I − βW)Λ^−½ = H + K: if KᵀK ⪯ 4(1 − c)(H − cI), the firing-rate flow contracts at rate c in P with
    multiplier Λ, because the Riccati expression there equals 4(1 − c)(H − cI) − KᵀK. Exact for self-adjoint W (K = 0).

    Args:
        weights: Λ, (n,); None takes the metric of the problem, else the best guess.
    """

    weights: Tensor | None = None

    name = "explicit metric"

    def applies(self, system: System) -> bool:
        return isinstance(system, SlopeSystem) and system.slopes.low >= 0

    def affordable(self, system: System) -> Self | None:
        view, _ = slopes_view(system)
        return replace(self, weights=view.own(view.guess)) if system.size <= IN_PASSING else None

    def find(self, system: System) -> Candidate:
        view, seen = slopes_view(system)
        high = seen.slopes.high
        if seen.slopes.low < 0:
            raise PreconditionError("the explicit metric needs slopes in [0, β]; use ParabolaTest()")
        lam = view.weights("weights", self.weights)
        A = torch.eye(seen.size, dtype=torch.float64) - high * scaled(seen.W, lam)
        H, K = (A + A.mT) / 2, (A - A.mT) / 2
        gram, identity = K.mT @ K, torch.eye(seen.size, dtype=torch.float64)
        smallest = float(torch.linalg.eigvalsh(H)[0])
        # both factors shrink as c grows up to min(1, m), so the admissible c are a half-line
        top, bottom = min(1.0, smallest), min(1.0, smallest) - 1 - float(torch.linalg.matrix_norm(K, 2))
        for _ in range(45):
            middle = (top + bottom) / 2
            inside = float(torch.linalg.eigvalsh(4 * (1 - middle) * (H - middle * identity) - gram)[0]) >= 0
            top, bottom = (top, middle) if inside else (middle, bottom)
        rate = min(bottom, 1 - 1e-9)  # at rate 1 the metric of W = 0 would vanish
        root = lam.sqrt()
        P = root[:, None] * ((1 - 2 * rate) * identity + H) * root[None, :]
        # the sector inequality in W with slopes βJ is the one in βW with slopes J, with P and Q scaled alike
        candidate = Candidate(metric=full_metric(P), multiplier=high * lam, slopes=Slopes(0.0, high))
        return view.candidate(candidate)


@dataclass(frozen=True, kw_only=True, eq=False)
class DiagonalMetric(RateFinder):
    r"""The norm of Λ itself: rate ≥ 1 − ½(β‖W̃‖ + βλmax(sym W̃)) for slopes in [0, β], 1 − β‖W̃‖ for [−β, β].

    For the splitting flows this is where Condition 1 alone is enough: ½(1 + αm − ‖I − αÃ‖) for forward–backward, and
    1 − ‖(I − αÃ)(I + αÃ)⁻¹‖ for Peaceman–Rachford with every α > 0. The multiplier is Λ over a number that a
    one-dimensional search picks, so the rate can be a little better than the formula.

    Args:
        weights: Λ, (n,); None takes the metric of the problem, else the best guess.
    """

    weights: Tensor | None = None

    name = "diagonal metric"

    def affordable(self, system: System) -> Self | None:
        return self if system.size <= IN_PASSING else None

    def find(self, system: System) -> Candidate:
        view, seen = slopes_view(system)
        lam = view.weights("weights", self.weights)
        low, high = seen.slopes
        M = scaled(seen.W, lam)
        gram, symmetric = M.mT @ M, (M + M.mT) / 2

        def cost(log_ratio: float) -> float:
            ratio = math.exp(log_ratio)
            matrix = 2 * (low + high) * symmetric + (high - low) * gram / ratio
            return float(torch.linalg.eigvalsh(matrix)[-1] + (high - low) * ratio) / 4

        size = torch.tensor(max(float(torch.linalg.matrix_norm(M, 2)), 1e-3), dtype=torch.float64)
        middle = float(size.log())
        ratio = math.exp(golden_section(cost, middle - 3, middle + 3, steps=25))
        candidate = Candidate(metric=WeightedL2(lam), multiplier=lam / ratio)
        return view.candidate(candidate)


@dataclass(frozen=True, kw_only=True, eq=False)
class PolyhedralMetric(RateFinder):
    r"""Weighted ℓ∞ or ℓ1 norms with the Perron vector of ⌈W⌉ as weights: the best rate of the norm class.

    For slopes in [0, 1]: ℓ∞ for firing rate and ℓ1 for Hopfield give 1 − max(0, α(⌈W⌉)), ⌈W⌉ᵢᵢ = Wᵢᵢ, ⌈W⌉ᵢⱼ = |Wᵢⱼ|;
    the other two the same with max(Wᵢᵢ, 0) on the diagonal; linear flows −α(⌈A⌉). (Attained if ⌈W⌉ is irreducible.)

    Args:
        norm: WeightedLinf or WeightedL1.
    """

    norm: type[WeightedLinf] | type[WeightedL1] = WeightedLinf

    def __post_init__(self) -> None:
        if self.norm not in (WeightedLinf, WeightedL1):
            raise InputError(f"norm must be WeightedLinf or WeightedL1, got {self.norm!r}")

    name = "Perron weights"

    def applies(self, system: System) -> bool:
        return isinstance(system, SlopeSystem | LinearSystem) or has_rate(system)

    def find(self, system: System) -> Candidate:
        if isinstance(system, LureSystem):
            return self._of_loop(system)
        view = view_of(system) if isinstance(system, LinearSystem) else slopes_view(system)[0]
        matrix, (low, high) = view.system.W, view.system.slopes
        by_rows = (self.norm is WeightedLinf) != view.transposed
        if not isinstance(system, LinearSystem) and (not by_rows or low < 0):
            diagonal = matrix.diagonal()
            worst = torch.maximum(low * diagonal, high * diagonal)
            matrix = view.system.slopes.largest * (matrix - torch.diag(diagonal)) + torch.diag(worst)
        left, right = perron_weights(matrix)
        return view.candidate(Candidate(metric=WeightedLinf(1 / right) if by_rows else WeightedL1(left)))

    def _of_loop(self, system: LureSystem) -> Candidate:
        view = lure_view(system)
        balanced = system.rescaled(view.states, view.neurons)
        found = [Candidate(metric=metric) for metric in polyhedral_candidates(balanced, self.norm)]
        if not found:
            raise CertificateError(
                "Perron weights: D is too large for the sizes of its entries alone to prove the loop"
            )
        best = max(found, key=lambda candidate: best_rate(balanced, candidate))
        return view.candidate(best)


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenMetric(RateFinder):
    """A metric of your own, judged at all 2ⁿ vertices of the slopes (n ≤ 14), or at A or W: exact for that metric.

    Args:
        metric: any metric on Rⁿ.
    """

    metric: FullP | WeightedL2 | WeightedL1 | WeightedLinf

    name = "given metric, vertices"

    def applies(self, system: System) -> bool:
        return True

    def find(self, system: System) -> Candidate:
        if self.metric.size != system.size:
            raise InputError(f"metric must act on the {system.size} entries of the flow, got {self.metric.size}")
        without = isinstance(system, LinearSystem | InclusionSystem)
        slopes = slopes_of(system)
        if isinstance(self.metric, FullP | WeightedL2) and not without and slopes > LARGEST_BY_VERTICES:
            limit = f"at most {LARGEST_BY_VERTICES} slopes, got {slopes}"
            raise PreconditionError(f"vertex enumeration needs {limit}; use ParabolaTest() or CircleCriterion()")
        return Candidate(metric=self.metric.to(torch.zeros((), dtype=torch.float64)))


@dataclass(frozen=True, kw_only=True, eq=False)
class InclusionMetric(RateFinder):
    r"""Rate m = λmin(sym Ã) of the inclusion, in the best diagonal Λ that gradients find; exact for a given Λ.

    Args:
        weights: Λ to start from, (n,); None takes the metric of the problem, else the best guess.
        optimise: gradients of log Λ at most per level of smoothing; 0 keeps Λ.
    """

    weights: Tensor | None = None
    optimise: int = 25

    @property
    def name(self) -> str:
        """The method in words."""
        return "monotonicity in the best diagonal metric" if self.optimise else "monotonicity"

    def applies(self, system: System) -> bool:
        return isinstance(system, InclusionSystem)

    def affordable(self, system: System) -> Self:
        return replace(self, optimise=self.optimise if system.size <= _OPTIMISED_INCLUSION else 0)

    def find(self, system: System) -> Candidate:
        if not isinstance(system, InclusionSystem):
            raise PreconditionError("InclusionMetric() is for the inclusion; use ParabolaTest() for flows")
        view = view_of(system)
        lam = view.weights("weights", self.weights)
        if self.optimise:
            lam = monotone_metric(view.system.W, lam, evaluations=self.optimise)
        return view.candidate(Candidate(metric=WeightedL2(lam)))


@dataclass(frozen=True, kw_only=True, eq=False)
class LyapunovMetric(RateFinder):
    r"""P from (A + cI)ᵀP + P(A + cI) = −I with c just below −α(A), the best rate of any norm.

    The rate −α(A) itself need not be attained (Jordan blocks), and comes with an ill-conditioned P. Where float64
    cannot solve that (nilpotent A − αI), P is graded along a Schur basis, A = UTUᴴ: P = UD²Uᴴ, D = diag(εⁿ, …, ε², ε),
    in which an entry of T that is k places above the diagonal counts εᵏ times as much.

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
        unit, identity = max(size, math.ulp(1.0)), torch.eye(system.size, dtype=torch.float64)
        rated: list[tuple[float, Candidate]] = []

        def rate(P: Tensor | None) -> float:
            """What the checker accepts in P, in the caller's own coordinates."""
            if P is None:
                return -math.inf
            try:
                candidate = view.candidate(Candidate(metric=full_metric(P)))
                proved = certified(system, candidate, method=self.name).rate
            except (CertificateError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                return -math.inf
            rated.append((proved, candidate))
            return proved

        for gap in (self.gap, 10 * self.gap, 1e-3, 1e-2, 0.03, 0.1):
            if rate(lyapunov_metric(A - (abscissa + gap * unit) * identity)) > -math.inf:
                break
        if gap > _LARGEST_GAP and system.size <= _GRADED:
            (U, T), ratio = schur(A), 1.0
            while rate(_graded(U, T, ratio)) > -math.inf and ratio > _STEEPEST:
                ratio *= 0.95
        if not rated:
            raise CertificateError("Lyapunov equation: no positive definite solution in float64")
        return max(rated, key=lambda pair: pair[0])[1]


def _graded(U: Tensor, T: Tensor, ratio: float) -> Tensor:
    """The real part of UD²Uᴴ, which is as good as that itself for a real matrix, at unit trace."""
    D = ratio ** torch.arange(len(T), 0, -1, dtype=torch.float64)
    P = torch.real((U * D.square()) @ U.mH)
    return P / P.trace()


def slopes_of(system: System) -> int:
    """How many slopes there are."""
    return system.neurons if isinstance(system, LureSystem) else system.size


def has_rate(system: System) -> bool:
    """Whether it is a Lur'e system with a state."""
    return isinstance(system, LureSystem) and system.size > 0


def full_metric(P: Tensor) -> FullP:
    """P as a metric.

    Raises:
        CertificateError: if it is not positive definite in float64.
    """
    try:
        return FullP((P + P.mT) / 2)
    except InputError as error:
        raise CertificateError(f"the metric found is not positive definite in float64: {error}") from error
