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
from equilibrium.local.relaxation import (
    Ellipsoid,
    Forms,
    Matrices,
    Moves,
    Pull,
    Whitened,
    evaluated,
    middles,
    moves,
    whitened,
)
from equilibrium.local.surroundings import Surroundings

# What is added to every bound for the rounding of its evaluation, in units of it. Against 50-digit arithmetic bounds
# of random networks are off by less than a thousandth of that (test_the_room_for_rounding_is_ample).
_ROOM = 1e-8


def bounds(
    matrices: Matrices,
    low: Tensor,
    high: Tensor,
    multiplier: Tensor,
    forms: Forms,
    omega: Tensor | None,
    around: Surroundings,
    shift: Tensor | None = None,
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
        shift: k of Δz = sΔv + k for slopes s within these intervals, (batch, n), or None for zero.
    """
    around, forms = around.to(torch.float64), forms.to(torch.float64)
    low, high, multiplier = (part.to(torch.float64) for part in (low, high, multiplier))
    move = moves(matrices, *middles(low, high), None if shift is None else shift.to(torch.float64))
    # an undecided neuron without a multiplier could move anywhere
    multiplier = multiplier.gather(-1, move.places)
    constrained = (torch.isfinite(multiplier) & (multiplier > 0)) | ~move.undecided
    usable = torch.isfinite(move.T).all(-1).all(-1) & constrained.all(-1)
    T, own = (torch.where(usable[:, None, None], part, 0.0) for part in (move.T, move.own))
    move = move._replace(T=T, own=own)
    white = whitened(move, torch.where(usable[:, None], multiplier, 1.0))
    doubt = _doubt(matrices, move, white, around.radius)
    usable &= torch.isfinite(doubt)
    M = white.quadratic
    M.diagonal(dim1=-2, dim2=-1).sub_(torch.where(usable, doubt, 0.0)[:, None])
    factor, info = torch.linalg.cholesky_ex(M)
    usable &= info == 0
    factor = torch.where(usable[:, None, None], factor, torch.eye(M.shape[-1], dtype=M.dtype))
    pull = Pull.made(matrices, forms.direct, None if omega is None else omega.to(torch.float64))
    ellipsoid = Ellipsoid.of(factor, white, around, torch.where(usable, doubt * around.radius.square(), 0.0))
    values = evaluated(ellipsoid, move.coefficients(forms) * white.scale[:, None], pull, around)
    found = values.bound + _ROOM * values.sizes
    return torch.where(usable[:, None] & torch.isfinite(found), found, math.inf)


def _doubt(matrices: Matrices, move: Moves, white: Whitened, radius: Tensor) -> Tensor:
    """How much λmin(M̃) may lose to the rounding of T and M̃, (batch,); ∞ where I − Wm is not provably regular.

    The constant of a move is counted in units of the radius, so that so many radii squared are what else may be wrong.
    """
    W, F, _ = matrices
    n, size, u = len(W), move.T.shape[-1], move.places.shape[-1]
    norm = torch.linalg.matrix_norm
    loop = torch.eye(n, dtype=W.dtype) - W * move.middle[:, None, :]
    inverse, info = torch.linalg.inv_ex(loop)
    usable = (info == 0) & torch.isfinite(inverse).all(-1).all(-1)
    inverse = torch.where(usable[:, None, None], inverse, 0.0)
    defect = norm(torch.eye(n, dtype=W.dtype) - inverse @ loop) + 4 * n * UNIT * norm(inverse) * norm(loop)
    # T − computed T = K·(what is left of the equations), each column in the units of its own coordinate
    columns = torch.cat([white.scale[:, :-1], 1 / radius[:, None]], -1)[:, None]
    T = torch.cat([white.T[..., :-1], white.T[..., -1:] / radius[:, None, None]], -1)
    parts = [W.mT[move.places].mT * move.half[:, None, :], F.expand(len(move.T), -1, -1), W @ move.shift[..., None]]
    inputs = torch.cat(parts, -1) * columns
    computed = move.T * columns
    left = norm(inputs - loop @ computed) + 4 * n * UNIT * (norm(loop) * norm(computed) + norm(inputs))
    root = torch.where(move.undecided, 1 / white.scale[:, :u], 0.0)
    rows = inverse.gather(1, move.places[..., None].expand(-1, -1, n))
    wrong = 2 * norm(root[..., None] * rows) * left  # as ‖K − computed K‖ is less than half of ‖computed K‖
    rounding = 4 * (size + 2) * UNIT * (norm(T).square() + size)
    doubt = 2 * norm(T) * wrong + wrong.square() + rounding
    return torch.where(usable & (defect < 0.5), doubt, math.inf)
