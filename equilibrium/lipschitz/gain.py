r"""γ(Λ): the best ℓ2 constant that one diagonal multiplier proves, exact, batched over outputs and differentiable.

With V = [W U], slopes [a, b], P = 2Λ − (a + b)(ΛW + WᵀΛ) + 2ab WᵀΛW ≻ 0, N = (a + b)ΛU − 2ab WᵀΛU and P = RRᵀ,

    γ(Λ) = λmax( KᵀK + [[−2ab UᵀΛU, Dᵀ], [D, 0]] ),   K = R⁻¹[N, Cᵀ],

convex in Λ where a = 0. It is the Schur complement of the matrix inequality for ‖Δy‖ ≤ γ‖Δx‖ whose multiplier is γΛ.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from equilibrium.lipschitz.system import LipschitzSystem


def compressed(system: LipschitzSystem) -> LipschitzSystem:
    """The same gain with as few inputs and outputs as possible, for finders; the checker never sees it."""
    n, D = system.size, system.D
    rows = [system.U, D] if bool((D != 0).any()) else [system.U]
    stacked = torch.cat(rows)
    if stacked.shape[1] > stacked.shape[0]:
        factor = torch.linalg.qr(stacked.mT, mode="r").R.mT
        U = factor[:n]
        D = factor[n:] if len(rows) == 2 else torch.zeros(D.shape[0], U.shape[1], dtype=torch.float64)
        system = replace(system, U=U, D=D)
    both = torch.cat([system.C, system.D], 1)
    if both.shape[0] > both.shape[1]:
        both = torch.linalg.qr(both, mode="r").R
        system = replace(system, C=both[:, :n], D=both[:, n:])
    return system


def _eliminated(system: LipschitzSystem, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K, −2ab UᵀΛU, and which rows failed."""
    W, U, C = system.W, system.U, system.C
    low, high = system.slopes
    scaled = lam[..., :, None] * W
    P = torch.diag_embed(2 * lam) - (low + high) * (scaled + scaled.mT)
    N = (low + high) * lam[..., :, None] * U
    corner = torch.zeros(*lam.shape[:-1], U.shape[1], U.shape[1], dtype=lam.dtype)
    if low > 0:
        P = P + 2 * low * high * W.mT @ scaled
        weighted = 2 * low * high * lam[..., :, None] * U
        N = N - W.mT @ weighted
        corner = corner - U.mT @ weighted
    R, info = torch.linalg.cholesky_ex(P)
    K = torch.linalg.solve_triangular(R, torch.cat([N, C.mT.expand(*lam.shape[:-1], -1, -1)], -1), upper=False)
    return K, corner, info


def gain_matrix(system: LipschitzSystem, lam: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric matrix whose largest eigenvalue is γ(Λ), and which rows failed.

    Args:
        system: its C and D may have leading batch dimensions, (..., out, n) and (..., out, in).
        lam: Λ, (..., n).

    Returns:
        (..., in + out, in + out), and (...) nonzero where P is not positive definite: that entry means nothing.
    """
    K, corner, info = _eliminated(system, lam)
    C, D = system.C, system.D
    outputs = C.shape[-2]
    D = D.expand(*lam.shape[:-1], -1, -1)
    feed = torch.cat(
        [
            torch.cat([corner, D.mT], -1),
            torch.cat([D, torch.zeros(*D.shape[:-1], outputs, dtype=lam.dtype)], -1),
        ],
        -2,
    )
    return K.mT @ K + feed, info


@torch.no_grad()
def gain(system: LipschitzSystem, lam: Tensor) -> Tensor:
    """γ(Λ), (...); infinite where Λ proves nothing."""
    matrix, info = gain_matrix(system, lam)
    bad = (info != 0) | ~torch.isfinite(matrix).all(-1).all(-1)
    matrix = torch.where(bad[..., None, None], torch.zeros_like(matrix), matrix)
    return torch.where(bad, float("inf"), torch.linalg.eigvalsh(matrix)[..., -1])


@torch.no_grad()
def halves(system: LipschitzSystem, lam: Tensor) -> tuple[float, float]:
    """‖R⁻¹N‖ and ‖R⁻¹Cᵀ‖, the two halves of K, which γ(tΛ) weighs by √t and 1/√t; infinite where Λ proves nothing."""
    K, _, info = _eliminated(system, lam)
    if int(info) != 0 or not bool(torch.isfinite(K).all()):
        return float("inf"), float("inf")
    inputs = system.U.shape[1]
    return float(torch.linalg.matrix_norm(K[:, :inputs], 2)), float(torch.linalg.matrix_norm(K[:, inputs:], 2))
