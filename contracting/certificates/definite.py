r"""Positive definiteness proved in float64: the one Cholesky factorisation that every certificate rests on.

A Hermitian matrix whose factorisation succeeds after a shift has λmin ≥ shift − γ·trace, γ = (n + 1)u/(1 − (n + 1)u)
(Rump, "Verification of positive definiteness", BIT 2006). The shift also covers what the assembly of the matrix may
have rounded, which the caller bounds entry by entry. First it is scaled to (almost) unit diagonal by powers of two,
so that the answer is the same in all units of the coordinates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNIT = 2.0**-53  # the largest relative error of one rounding in float64

# Results smaller than 2⁻¹⁰²² lose up to 2⁻¹⁰⁷⁵ absolutely. Whoever bounds the rounding of a product by
# (number of roundings)·UNIT·|A||B| with this added to every entry of |A| and |B| has covered that as well.
SMALLEST = 2.0**-1000

# The margins that are tried, each by a factorisation, in units of the diagonal; the largest that is proved is reported.
_MARGINS = (torch.finfo(torch.float64).tiny, 1e-12, 1e-9, 1e-6, 1e-4, 1e-2, 0.1)


def sizes(matrix: Tensor) -> Tensor:
    """|M| entry by entry, with the room that underflow needs: what bounds of rounding errors are computed from."""
    return matrix.abs() + SMALLEST


def definite_margins(matrices: Tensor, errors: Tensor) -> Tensor:
    """A lower bound of λmin of each matrix at unit diagonal, if it is proved positive definite; else −∞.

    "At unit diagonal": with D = diag(M) and S = M scaled from both sides by powers of two next to D^−½, every matrix
    within the errors of M satisfies S ⪰ margin·I, and so M ⪰ ½·margin·D. A number is one of a few levels.

    Args:
        matrices: Hermitian, (..., n, n), float64 or complex128; only the Hermitian part counts.
        errors: entrywise bounds of what is wrong with them, (..., n, n) or broadcastable to it.

    Returns:
        (...).
    """
    n, diagonal = matrices.shape[-1], torch.real(matrices.diagonal(dim1=-2, dim2=-1))
    errors = errors.expand(matrices.shape)
    proved = torch.isfinite(matrices).all(-1).all(-1) & torch.isfinite(errors).all(-1).all(-1)
    proved = proved & (diagonal > 0).all(-1)
    scale = torch.exp2(torch.round(-0.5 * torch.log2(torch.where(diagonal > 0, diagonal, 1.0))))
    rows, columns = scale[..., :, None], scale[..., None, :]
    scaled = torch.where(proved[..., None, None], matrices, 0.0) * rows * columns
    scaled = (scaled + scaled.mH) / 2
    spread = torch.where(proved[..., None, None], errors, 0.0) * rows * columns
    # a product of complex numbers rounds up to 2√2 times as much as one of real numbers
    gamma = (4 if matrices.is_complex() else 1) * (n + 2) * UNIT / (1 - (n + 2) * UNIT)
    trace = torch.real(scaled.diagonal(dim1=-2, dim2=-1)).sum(-1)
    # no scale exceeds 2⁵³⁷, so that what underflows while scaling stays below 2⁻⁵⁰⁰
    allowance = 1.01 * ((gamma + 4 * UNIT) * trace + torch.linalg.matrix_norm(spread) + n * 2.0**-500)
    proved = proved & torch.isfinite(allowance)
    allowance = torch.where(proved, allowance, 0.0)
    identity = torch.eye(n, dtype=matrices.dtype)
    margins = torch.full_like(trace, -math.inf)
    for margin in _MARGINS:
        shifted = scaled - (allowance + margin)[..., None, None] * identity
        proved = proved & (torch.linalg.cholesky_ex(shifted)[1] == 0)
        if not bool(proved.any()):
            break
        margins = torch.where(proved, margin, margins)
    return margins


def definite_margin(matrix: Tensor, error: Tensor) -> float:
    """``definite_margins`` of a single matrix."""
    return float(definite_margins(matrix, error))
