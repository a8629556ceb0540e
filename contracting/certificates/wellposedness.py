r"""Condition 1 for any weight: a diagonal Λ with ΛA + AᵀΛ ≻ 0, A = I − W, or a proof that there is none.

The proof is Farkas' lemma: a matrix X = YYᵀ ≠ 0 with (AX)ᵢᵢ ≤ 0 for every i rules out every Λ, because ⟨ΛA + AᵀΛ, X⟩ =
2Σλᵢ(AX)ᵢᵢ. A diagonal entry Wᵢᵢ ≥ 1 is one (Y = eᵢ), and so is the eigenvector of any principal submatrix of A whose
eigenvalue has real part ≤ 0, in particular every failure of I − W to be a P-matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracting.certificates.candidates import Candidate, best_rate, certified
from contracting.certificates.lmi import available, monotone_weights
from contracting.certificates.multipliers import monotone_metric, perron_weights, scaled
from contracting.certificates.numerical_range import support
from contracting.certificates.records import CertificateError
from contracting.certificates.systems import InclusionSystem, as_matrix
from contracting.certificates.upper_bounds import abscissa_bound
from contracting.errors import MissingExtraError
from contracting.metrics import WeightedL2

_LARGEST_PROGRAM = 80


@dataclass(frozen=True, kw_only=True, eq=False)
class Wellposedness:
    r"""What is known of Condition 1 for a weight.

    Attributes:
        metric: Λ with λmin(sym Ã) ≥ ``monotonicity`` > 0, checked; None if none was found.
        monotonicity: m, certified if a metric is given, else the best value seen, at most 0.
        margin: of the matrix inequality at unit diagonal, after rounding; 0 without a metric.
        witness: Y, (n, k), a checked proof that no Λ exists; None where nothing is proved.
        method: where the metric or the proof comes from.
    """

    metric: WeightedL2 | None
    monotonicity: float
    margin: float
    witness: Tensor | None
    method: str

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

    Starts at 1, at ``start`` and, where α(⌈W⌉) < 1, at the quotient of the Perron vectors (which then works); goes on
    by gradient, and by a semidefinite program if that fails, n ≤ 80 and cvxpy is installed.

    Args:
        W: (n, n).
        start: a first guess, (n,).

    Raises:
        InputError: if W is not a finite square matrix.
    """
    W = as_matrix("W", W)
    system = InclusionSystem(W=W, hint=start)
    guesses = [torch.ones(W.shape[0], dtype=torch.float64)]
    if system.hint is not None:
        guesses.append(system.hint)
    abscissa, left, right = perron_weights(W)
    if abscissa < 1:
        quotient = left / right
        if bool(torch.isfinite(quotient).all() and (quotient > 0).all()):
            guesses.append(quotient)
    best = min(guesses, key=lambda lam: support(scaled(W, lam), 0.0))
    if bool((W.diagonal() >= 1).any()):
        Y = torch.eye(W.shape[0], dtype=torch.float64)[:, [int(W.diagonal().argmax())]]
        return _impossible(W, Y, "Wᵢᵢ ≥ 1", 1 - support(scaled(W, best), 0.0))
    found = _checked(system, monotone_metric(W, best), "gradient on log Λ")
    if found.metric is not None:
        return found
    bound = abscissa_bound(system)
    if bound.rate <= 0:
        proof = _impossible(W, _eigenvector(W, bound.slopes[0]), "an unstable principal submatrix", found.monotonicity)
        if proof.impossible:
            return proof
    if W.shape[0] <= _LARGEST_PROGRAM and available():
        try:
            lam, X = monotone_weights(W)
        except (CertificateError, MissingExtraError):
            return found
        programmed = _checked(system, lam.clamp_min(1e-12), "semidefinite program")
        if programmed.metric is not None:
            return programmed
        values, vectors = torch.linalg.eigh((X + X.mT) / 2)
        found = max(found, programmed, key=lambda seen: seen.monotonicity)
        Y = vectors * values.clamp_min(0).sqrt()
        proof = _impossible(W, Y, "dual of the semidefinite program", found.monotonicity)
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
    n = W.shape[0]
    if Y.ndim != 2 or Y.shape[0] != n or not bool(torch.isfinite(Y).all()) or not bool(Y.any()):
        return False
    used = Y.any(1)
    if int(used.sum()) == 1:  # no rounding: the sign of 1 − Wᵢᵢ
        return bool(W.diagonal()[used] >= 1)
    A = torch.eye(n, dtype=torch.float64) - W
    values = ((A @ Y) * Y).sum(1)
    allowance = (n + Y.shape[1] + 4) * 2.0**-53 * ((A.abs() @ Y.abs()) * Y.abs()).sum(1)
    return bool((values <= -allowance)[used].all())


def _checked(system: InclusionSystem, lam: Tensor, method: str) -> Wellposedness:
    candidate = Candidate(metric=WeightedL2(lam))
    try:
        certificate = certified(system, candidate, method=method)
    except CertificateError:
        return _open(best_rate(system, candidate), method)
    if not certificate.contracting:
        return _open(certificate.rate, method)
    metric = certificate.metric
    assert isinstance(metric, WeightedL2)
    return Wellposedness(
        metric=metric, monotonicity=certificate.rate, margin=certificate.margin, witness=None, method=method
    )


def _open(seen: float, method: str) -> Wellposedness:
    return Wellposedness(metric=None, monotonicity=min(0.0, seen), margin=0.0, witness=None, method=method)


def _impossible(W: Tensor, Y: Tensor, method: str, seen: float) -> Wellposedness:
    return replace(_open(seen, method), witness=Y) if rules_out(Y, W) else _open(seen, "")


def _eigenvector(W: Tensor, slopes: Tensor) -> Tensor:
    """Real and imaginary part of the leading eigenvector of W_SS, S where the slopes are 1, zero elsewhere: (n, 2)."""
    index = slopes.nonzero()[:, 0]
    values, vectors = torch.linalg.eig(W[index][:, index])
    x = vectors[:, int(values.real.argmax())]
    Y = torch.zeros(W.shape[0], 2, dtype=torch.float64)
    Y[index] = torch.stack([x.real, x.imag], 1)
    return Y
