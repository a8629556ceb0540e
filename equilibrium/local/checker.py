r"""The one place that says what is proved: bounds of linear forms in float64, whatever found their multipliers.

It takes explicit matrices, intervals of slopes, a multiplier λ and pulls ω, and believes none of them: it makes T and M
anew, proves M ≻ 0 by a factorisation with a margin that covers what T and M may have rounded, and evaluates the bound
of ``relaxation``. A row that it cannot prove has the bound ∞.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contracting.certificates.definite import UNIT
from equilibrium.local.relaxation import Forms, Matrices, Pull, evaluated, moves, quadratic
from equilibrium.local.surroundings import Surroundings

# What is added to every bound for the rounding of its evaluation, in units of it. Against 50-digit arithmetic the bounds
# of 40 random networks differed by less than 1e-11 of themselves (test_the_room_for_rounding_is_ample).
_ROOM = 1e-8
_MOST_DEFECT = 1e-6  # of ‖I − K(I − Wm)‖ for the computed inverse K: a larger one says that the loop is ill-posed


def bounds(
    matrices: Matrices,
    low: Tensor,
    high: Tensor,
    multiplier: Tensor,
    forms: Forms,
    omega: Tensor | None,
    around: Surroundings,
) -> Tensor:
    """An upper bound of every form over the surroundings, (batch, k); ∞ where nothing is proved.

    Args:
        matrices: float64.
        low: lowest secant slopes of each neuron over the surroundings, (batch, n).
        high: highest ones, (batch, n).
        multiplier: λ > 0, (batch, n); that of a decided neuron is ignored.
        forms: k for each row.
        omega: ω, (batch, k, in), or None for zero.
        around: the surroundings.
    """
    around, forms = around.to(torch.float64), forms.to(torch.float64)
    low, high, multiplier = (part.to(torch.float64) for part in (low, high, multiplier))
    move = moves(matrices, low, high)
    # an undecided neuron without a multiplier could move anywhere
    constrained = (torch.isfinite(multiplier) & (multiplier > 0)) | ~move.undecided
    usable = torch.isfinite(move.T).all(-1).all(-1) & constrained.all(-1)
    T = torch.where(usable[:, None, None], move.T, 0.0)
    move = move._replace(T=T)
    multiplier = torch.where(move.undecided & usable[:, None], multiplier, 0.0)
    M = quadratic(T, multiplier)
    doubt = _doubt(matrices, move.middle, move.half, T, multiplier)
    usable &= torch.isfinite(doubt)
    M.diagonal(dim1=-2, dim2=-1).sub_(torch.where(usable, doubt, 0.0)[:, None])
    factor, info = torch.linalg.cholesky_ex(M)
    usable &= info == 0
    factor = torch.where(usable[:, None, None], factor, torch.eye(M.shape[-1], dtype=M.dtype))
    pull = Pull.made(matrices, forms.direct, None if omega is None else omega.to(torch.float64))
    found = evaluated(factor, move.coefficients(forms), pull, around).bound
    found = found + _ROOM * found.abs()
    return torch.where(usable[:, None] & torch.isfinite(found), found, math.inf)


def _doubt(matrices: Matrices, middle: Tensor, half: Tensor, T: Tensor, multiplier: Tensor) -> Tensor:
    """How much λmin(M) may be lost to the rounding of T and M, (batch,); ∞ where I − Wm is not provably regular."""
    W, F, _ = matrices
    n = len(W)
    identity = torch.eye(n, dtype=W.dtype)
    loop = identity - W * middle[:, None, :]
    inverse, info = torch.linalg.inv_ex(loop)
    norm = torch.linalg.matrix_norm(inverse)
    defect = torch.linalg.matrix_norm(identity - inverse @ loop) + 4 * n * UNIT * norm * torch.linalg.matrix_norm(loop)
    inputs = torch.cat([W * half[:, None, :], F.expand(len(T), -1, -1)], -1)
    residual = torch.linalg.matrix_norm(inputs - loop @ T)
    residual = residual + 4 * n * UNIT * (torch.linalg.matrix_norm(loop) * torch.linalg.matrix_norm(T) + 1)
    wrong = norm / (1 - _MOST_DEFECT) * residual  # ‖T − computed T‖
    largest = multiplier.amax(-1).sqrt()
    weighted = torch.linalg.matrix_norm(multiplier.sqrt()[..., None] * T)
    size = 1 + multiplier.amax(-1) + weighted.square()
    doubt = 2 * weighted * largest * wrong + (largest * wrong).square() + 8 * (T.shape[-1] + 2) * UNIT * size * n
    return torch.where((info == 0) & (defect < _MOST_DEFECT), doubt, math.inf)
