r"""Metrics from one matrix equation, solved by doubling, without a solver for matrix inequalities.

Of a linear flow it is Lyapunov's, of the parabola test an algebraic Riccati equation: for Jacobians −I + DW with slopes
in [a, β], s = 1 − c, M = Q^½WQ^−½, N = 2sI − (a + β)M and δ = β − a, the sector inequality is
NᵀP + PN − δP² − δMᵀM ⪰ 0. Its solutions lie between the two extreme solutions of the *equation*; halfway the inequality
is strict.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contracting.certificates.spectra import eigenvalues
from contracting.types import UNIT_SLOPES, Slopes

_MOST_DOUBLINGS = 60  # Convergence is quadratic: where 60 doublings do not suffice, there is no solution.


def hamiltonian(M: Tensor, slopes: Slopes, rate: float) -> Tensor:
    """[[N, −δI], [δMᵀM, −Nᵀ]]: the inequality is solvable iff no eigenvalue is imaginary, where s is large enough."""
    low, high = slopes
    identity = torch.eye(M.shape[0], dtype=M.dtype)
    N, width = 2 * (1 - rate) * identity - (low + high) * M, high - low
    return torch.cat([torch.cat([N, -width * identity], 1), torch.cat([width * (M.mT @ M), -N.mT], 1)])


def hamiltonian_rate(M: Tensor, slopes: Slopes = UNIT_SLOPES, *, tolerance: float = 1e-9) -> float:
    """The largest c for which the sector inequality is solvable, by bisection on the Hamiltonian's eigenvalues.

    The condition says that M has gain at most 2/δ in the half-plane Re ζ ≥ 1 − c, so it is monotone in c above the
    abscissa where the transfer function is analytic.

    Args:
        M: Q^½WQ^−½, (n, n).
        slopes: [a, β].
        tolerance: absolute.
    """
    low, high = slopes
    size = max(1e-3, float(torch.linalg.matrix_norm(M, 2)))
    analytic = float(eigenvalues((low + high) / 2 * M).real.max())
    # s = max(|a|, β)‖M‖ always suffices; for slopes that include 0 no s ≤ 0 does
    bottom = max(analytic, 0.0) if low <= 0 <= high else analytic
    top = max(abs(low), abs(high)) * size * (1 + 1e-9)
    while top - bottom > tolerance * max(1.0, size):
        middle = (top + bottom) / 2
        matrix = hamiltonian(M, slopes, 1 - middle)
        distance = eigenvalues(matrix).real.abs().amin()
        # imaginary up to rounding: pairs leave the axis like a square root
        imaginary = bool(distance <= 1e-8 * torch.linalg.matrix_norm(matrix, 1))
        top, bottom = (top, middle) if imaginary else (middle, bottom)
    return 1 - top


def riccati_metric(M: Tensor, slopes: Slopes, rate: float) -> Tensor | None:
    """A P ≻ 0 inside the sector inequality at ``rate``: the mean of the two extreme solutions; None if there is none.

    Structure-preserving doubling (Chu, Fan, Lin 2005): quadratically convergent, matrix products only, O(n²) memory.
    """
    low, high = slopes
    identity = torch.eye(M.shape[0], dtype=M.dtype)
    return riccati_inequality(
        (low + high) * M - 2 * (1 - rate) * identity, (high - low) * identity, (high - low) * (M.mT @ M)
    )


def riccati_inequality(F: Tensor, G: Tensor, H0: Tensor) -> Tensor | None:
    """A P ≻ 0 with FᵀP + PF + PGP + H ⪯ 0, the mean of the two extreme solutions of the equation, or None.

    Args:
        F: (n, n).
        G: (n, n), positive definite, without which there may be no largest solution.
        H0: H, (n, n), positive semidefinite.
    """
    n = F.shape[0]
    identity = torch.eye(n, dtype=F.dtype)
    shift = max(float(torch.linalg.matrix_norm(F)) / n**0.5, 1e-8)
    shifted = F - shift * identity
    inverse, info = torch.linalg.inv_ex(shifted)
    if int(info):
        return None
    driven = inverse @ G
    coupled, info = torch.linalg.inv_ex(shifted.mT - H0 @ driven)
    if int(info):
        return None
    E = identity + 2 * shift * coupled.mT
    G = -2 * shift * (driven @ coupled)
    H = 2 * shift * (coupled @ H0 @ inverse)
    for _ in range(_MOST_DOUBLINGS):
        solved, info = torch.linalg.solve_ex(identity + G @ H, torch.cat([E, G @ E.mT], 1))
        if int(info):
            return None
        left, right = solved[:, :n], solved[:, n:]
        step = E.mT @ (H @ left)
        E, G, H = E @ left, _symmetric(G + E @ right), _symmetric(H + step)
        if not bool(torch.isfinite(H).all()) or float(H.abs().max()) > 1e14 * (1 + float(H0.abs().max())):
            return None
        if float(step.abs().max()) <= 1e-13 * max(float(H.abs().max()), 1e-300):
            break
    largest, info = torch.linalg.inv_ex(-G)
    if int(info):
        return None
    return _positive_definite(_symmetric(H + largest) / 2)


def lyapunov_metric(F: Tensor) -> Tensor | None:
    """P ≻ 0 with FᵀP + PF = −I, scaled to unit trace, by the doubling of Smith (1968); None if it is not found."""
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
    return _positive_definite(_symmetric(P) / P.trace())


def _positive_definite(P: Tensor) -> Tensor | None:
    return P if bool(torch.isfinite(P).all()) and int(torch.linalg.cholesky_ex(P)[1]) == 0 else None


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2
