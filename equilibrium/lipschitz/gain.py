r"""γ(Λ): the best ℓ2 constant that one diagonal multiplier proves, exactly.

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


def _eliminated(system: LipschitzSystem, lam: Tensor) -> tuple[Tensor, Tensor] | None:
    """K and −2ab UᵀΛU, or None where Λ proves nothing."""
    W, U = system.W, system.U
    low, high = system.slopes
    scaled, weighted = lam[:, None] * W, lam[:, None] * U
    P = torch.diag(2 * lam) - (low + high) * (scaled + scaled.mT) + 2 * low * high * W.mT @ scaled
    N = (low + high) * weighted - 2 * low * high * W.mT @ weighted
    R, info = torch.linalg.cholesky_ex(P)
    K = torch.linalg.solve_triangular(R, torch.cat([N, system.C.mT], 1), upper=False)
    return None if int(info) != 0 or not bool(torch.isfinite(K).all()) else (K, -2 * low * high * U.mT @ weighted)


@torch.no_grad()
def gain(system: LipschitzSystem, lam: Tensor) -> float:
    """γ(Λ); infinite where Λ, (n,), proves nothing."""
    if (eliminated := _eliminated(system, lam)) is None:
        return float("inf")
    (K, corner), D = eliminated, system.D
    feed = torch.cat([torch.cat([corner, D.mT], 1), torch.cat([D, D.new_zeros(len(D), len(D))], 1)])
    matrix = K.mT @ K + feed
    return float(torch.linalg.eigvalsh(matrix)[-1]) if bool(torch.isfinite(matrix).all()) else float("inf")


@torch.no_grad()
def halves(system: LipschitzSystem, lam: Tensor) -> tuple[float, float]:
    """‖R⁻¹N‖ and ‖R⁻¹Cᵀ‖, the two halves of K, which γ(tΛ) weighs by √t and 1/√t; infinite where Λ proves nothing."""
    if (eliminated := _eliminated(system, lam)) is None:
        return float("inf"), float("inf")
    K, inputs = eliminated[0], system.U.shape[1]
    return float(torch.linalg.matrix_norm(K[:, :inputs], 2)), float(torch.linalg.matrix_norm(K[:, inputs:], 2))
