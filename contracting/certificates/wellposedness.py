r"""Condition 1 for any weight: a diagonal Λ with ΛA + AᵀΛ ≻ 0, A = I − W, or a proof that there is none.

The proof is Farkas' lemma: a matrix X = YYᵀ ≠ 0 with (AX)ᵢᵢ ≤ 0 for every i rules out every Λ, because ⟨ΛA + AᵀΛ, X⟩ =
2Σλᵢ(AX)ᵢᵢ. A diagonal entry Wᵢᵢ ≥ 1 is one (Y = eᵢ), and so is the eigenvector of any principal submatrix of A whose
eigenvalue has real part ≤ 0, in particular every failure of I − W to be a P-matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.certificates.balance import rescale
from contracting.certificates.candidates import Candidate, best_rate, certified
from contracting.certificates.definite import UNIT, sizes
from contracting.certificates.lmi import available, monotone_weights
from contracting.certificates.multipliers import monotone_metric, scaled
from contracting.certificates.numerical_range import support
from contracting.certificates.records import CertificateError
from contracting.certificates.spectra import eigenvectors
from contracting.certificates.systems import InclusionSystem, as_matrix
from contracting.certificates.upper_bounds import abscissa_bound
from contracting.certificates.views import view_of
from contracting.display import Displayed
from contracting.errors import MissingExtraError
from contracting.metrics import WeightedL2

# The largest n for the semidefinite program: of all that is tried, its time grows fastest with n.
_LARGEST_PROGRAM = 80


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Wellposedness(Displayed):
    r"""What is known of Condition 1 for a weight.

    Attributes:
        metric: Λ with λmin(sym Ã) ≥ ``monotonicity`` > 0, checked; None if none was found.
        monotonicity: m, certified if a metric is given, else the best value seen, at most 0.
        margin: of the matrix inequality at unit diagonal, after rounding; 0 without a metric.
        witness: Y, (n, k), a checked proof that no Λ exists; None where nothing is proved.
        method: where the metric or the proof comes from.
    """

    monotonicity: float
    method: str
    metric: WeightedL2 | None = None
    margin: float = 0.0
    witness: Tensor | None = None

    @property
    def impossible(self) -> bool:
        """Whether it is proved that no diagonal metric satisfies Condition 1."""
        return self.witness is not None

    def __str__(self) -> str:
        if self.metric is not None:
            return f"Condition 1 holds with m ≥ {self.monotonicity:.4g} ({self.method})"
        if self.impossible:
            return f"no diagonal metric satisfies Condition 1 ({self.method})"
        return f"no metric was found, best m = {self.monotonicity:.3g}; that none exists is not proved"


def find_metric(W: Tensor, *, start: Tensor | None = None) -> Wellposedness:
    """Search a diagonal Λ in which I − W is strongly monotone, as strongly as possible.

    Starts at the best of ``start``, the balanced coordinates and the quotient of the Perron vectors (which works where
    α(⌈W⌉) < 1); goes on by gradient, and by a semidefinite program if that fails, n ≤ 80 and cvxpy is installed.

    Args:
        W: (n, n).
        start: a first guess, (n,).

    Raises:
        InputError: if W is not a finite square matrix.
    """
    system = InclusionSystem(W=W, hint=start)
    view = view_of(system)
    W = view.system.W
    if bool((W.diagonal() >= 1).any()):
        Y = torch.eye(W.shape[0], dtype=torch.float64)[:, [int(W.diagonal().argmax())]]
        return _ruled_out(system, Y, "Wᵢᵢ ≥ 1", 1 - support(scaled(W, view.guess), 0.0))
    found = _checked(system, view.own(monotone_metric(W, view.guess)), "gradient on log Λ")
    if found.metric is not None:
        return found
    bound = abscissa_bound(system)
    if bound.rate <= 0:
        Y = _eigenvector(W, bound.slopes[0]) / view.scale[:, None]
        proof = _ruled_out(system, Y, "an unstable principal submatrix", found.monotonicity)
        if proof.impossible:
            return proof
    if W.shape[0] <= _LARGEST_PROGRAM and available():
        try:
            lam, X = monotone_weights(scaled(W, view.guess))
        except (CertificateError, MissingExtraError):
            return found
        programmed = _checked(system, view.own(view.guess * lam.clamp_min(1e-12)), "semidefinite program")
        if programmed.metric is not None:
            return programmed
        values, vectors = torch.linalg.eigh((X + X.mT) / 2)
        found = max(found, programmed, key=lambda seen: seen.monotonicity)
        Y = vectors * values.clamp_min(0).sqrt() / (view.guess.sqrt() * view.scale)[:, None]
        proof = _ruled_out(system, Y, "dual of the semidefinite program", found.monotonicity)
        if proof.impossible:
            return proof
    return found


def rules_out(witness: Tensor, W: Tensor) -> bool:
    """Whether Y proves that no Λ satisfies Condition 1: (AYYᵀ)ᵢᵢ ≤ 0 for every i beyond rounding, Y ≠ 0.

    Args:
        witness: Y, (n, k).
        W: (n, n).
    """
    W, Y = as_matrix("W", W), witness.detach().to("cpu", torch.float64)
    if Y.ndim != 2 or Y.shape[0] != W.shape[0] or not bool(torch.isfinite(Y).all()) or not bool(Y.any()):
        return False
    used = Y.any(1)
    W, Y = W[used][:, used], Y[used]
    if len(Y) == 1:  # no rounding: the sign of 1 − Wᵢᵢ
        return bool(W[0, 0] >= 1)
    # what is asked is the same for DWD⁻¹ and DY: rows of Y whose largest entry is next to 1, by powers of two
    scale = torch.ldexp(torch.ones(len(Y), dtype=torch.float64), -torch.frexp(Y.abs().amax(1))[1])
    A, Y = torch.eye(len(Y), dtype=torch.float64) - rescale(W, scale), Y * scale[:, None]
    values = ((A @ Y) * Y).sum(1)
    terms = ((torch.eye(len(Y), dtype=torch.float64) + sizes(rescale(W, scale))) @ sizes(Y)) * sizes(Y)
    return bool((values <= -(len(Y) + Y.shape[1] + 4) * UNIT * terms.sum(1)).all())


def _checked(system: InclusionSystem, lam: Tensor, method: str) -> Wellposedness:
    """What is proved in a metric that was found."""
    metric = WeightedL2(lam)
    try:
        certificate = certified(system, Candidate(metric=metric), method=method)
    except CertificateError:
        seen = best_rate(system, Candidate(metric=metric))
        return Wellposedness(monotonicity=min(0.0, seen), method=method)
    m, margin = certificate.rate, certificate.margin
    if m <= 0:
        return Wellposedness(monotonicity=m, method=method)
    return Wellposedness(metric=metric, monotonicity=m, margin=margin, method=method)


def _ruled_out(system: InclusionSystem, Y: Tensor, method: str, seen: float) -> Wellposedness:
    """What a witness proves, where ``seen`` is the best value of m that was found."""
    proved = rules_out(Y, system.W)
    return Wellposedness(
        monotonicity=min(0.0, seen), witness=Y if proved else None, method=method if proved else ""
    )


def _eigenvector(W: Tensor, slopes: Tensor) -> Tensor:
    """Real and imaginary part of the leading eigenvector of W_SS, S where the slopes are 1, zero elsewhere: (n, 2)."""
    index = slopes.nonzero()[:, 0]
    values, vectors = eigenvectors(W[index][:, index])
    x = vectors[:, int(values.real.argmax())]
    Y = torch.zeros(W.shape[0], 2, dtype=torch.float64)
    Y[index] = torch.stack([x.real, x.imag], 1)
    return Y
