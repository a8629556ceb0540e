"""One linear system per row, dense or by products alone, solved so that a bad row spoils no other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def solve_rows(matrices: Tensor, right: Tensor) -> Tensor:
    """x with Mx = r for each row: (batch, n, n), (batch, n) -> (batch, n); NaN where M is singular or not finite."""
    # LAPACK may loop or raise on NaN, so such rows get the identity and their answer is thrown away
    usable = torch.isfinite(matrices).flatten(1).all(1) & torch.isfinite(right).all(1)
    if not bool(usable.all()):
        identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
        matrices = torch.where(usable[:, None, None], matrices, identity)
        right = torch.where(usable[:, None], right, 0.0)
    solution, info = torch.linalg.solve_ex(matrices, right)
    usable = usable & (info == 0)
    return torch.where(usable[:, None], solution, float("nan"))


# A residual that is still above this share of the last one is a poor new direction: the last basis vector is taken.
_STALE = 0.9
# A row whose residual is still above this share of itself after a whole Krylov space is left as it is.
_HOPELESS = 0.999


def solve_rows_by_products(
    apply: Callable[[Tensor], Tensor], right: Tensor, tolerance: Tensor, *, dimension: int, restarts: int = 0
) -> tuple[Tensor, int]:
    r"""x with ‖r − Mx‖ ≤ tolerance for each row by GMRES, or the best x found.

    Each row minimises its residual over its own Krylov space, built from an orthonormal basis of M·space ("simpler
    GMRES"; Jiránek and Rozložník, Numer. Algorithms 53, 2010), and stops on its own: other rows change nothing but
    rounding. A row that is not finite gives NaN.

    Args:
        apply: d ↦ Md on rows, (batch, n) -> (batch, n).
        right: r, (batch, n).
        tolerance: (batch,).
        dimension: largest dimension of a Krylov space.
        restarts: how often a row may start a new one.

    Returns:
        x, (batch, n), and the number of products.
    """
    x, rest = torch.zeros_like(right), right
    size = torch.linalg.vector_norm(rest, dim=-1)
    active = size > tolerance
    products = 0
    for _ in range(restarts + 1):
        before = size
        # directions P and M·P, of which the latter is orthonormal
        directions = right.new_zeros(right.shape[0], dimension, right.shape[1])
        images = torch.zeros_like(directions)
        last, stale = rest, torch.zeros_like(active)
        for j in range(dimension):
            if not bool(active.any()):
                return _finite_rows(x, right), products
            direction = _unit(torch.where(stale[:, None], last, rest))[0]
            image = apply(direction)
            products += 1
            known, knew = images[:, :j], directions[:, :j]
            for _ in range(2):  # once leaves rounding errors along the basis
                along = known @ image[:, :, None]
                image = image - (along.mT @ known)[:, 0]
                direction = direction - (along.mT @ knew)[:, 0]
            image, length = _unit(image)
            direction = torch.where(length > 0, direction / length, 0.0)
            # a finished row adds nothing to its space
            image = torch.where(active[:, None], image, 0.0)
            directions[:, j], images[:, j] = direction, image
            share = (image * rest).sum(-1, keepdim=True)
            x = torch.where(active[:, None], x + share * direction, x)
            rest = torch.where(active[:, None], rest - share * image, rest)
            new = torch.linalg.vector_norm(rest, dim=-1)
            stale, last = new > _STALE * size, image
            size = new
            active = active & (size > tolerance)
        # the recursion drifts from the true residual
        rest = torch.where(active[:, None], right - apply(x), rest)
        products += 1
        size = torch.linalg.vector_norm(rest, dim=-1)
        active = active & (size > tolerance) & (size <= _HOPELESS * before)
    return _finite_rows(x, right), products


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length one, and their lengths (batch, 1); a zero row stays zero."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return torch.where(length > 0, rows / torch.where(length > 0, length, 1.0), 0.0), length


def _finite_rows(x: Tensor, right: Tensor) -> Tensor:
    return torch.where(torch.isfinite(right).all(-1, keepdim=True), x, float("nan"))
