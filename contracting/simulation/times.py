"""The times of a simulation: forwards or backwards, repeated, one grid for all rows or one for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from contracting.errors import InputError


def time_grid(times: Any, rows: int | None = None, *, forwards: bool = False) -> Tensor:
    """The times in float64, whatever dtype they and the states have: (T, 1) for one grid, (T, rows) for one per row.

    Args:
        times: (T,), or (T, rows) where ``rows`` is given; whole numbers are times as well.
        rows: how many rows may have grids of their own, None for none.
        forwards: whether a row's times must not decrease.

    Raises:
        InputError: if they are no times, not finite, of another shape, or do not go in one direction.
    """
    if not isinstance(times, Tensor) or times.is_complex() or times.dtype == torch.bool:
        what = times.dtype if isinstance(times, Tensor) else type(times).__name__
        raise InputError(f"times must be a tensor of real numbers, got {what}; use torch.as_tensor(...)")
    grid = times.detach().to(torch.float64)
    if grid.ndim == 1:
        grid = grid[:, None]
    elif rows is None or grid.ndim != 2 or grid.shape[1] != rows:
        each = "" if rows is None else f" or, with a grid for each row, (T, {rows})"
        raise InputError(f"times must have shape (T,){each}, got {tuple(times.shape)}")
    if not len(grid):
        raise InputError("times must have at least one entry")
    if not bool(torch.isfinite(grid).all()):
        raise InputError("times must be finite; a row that ends before the others repeats its last time")
    steps = grid.diff(dim=0)
    rising, falling = (steps >= 0).all(0), (steps <= 0).all(0)
    if not bool((rising if forwards else rising | falling).all()):
        raise InputError(
            "times must not decrease: this is a statement about what comes later"
            if forwards
            else "times must go in one direction in each row, forwards or backwards; sort them"
        )
    return grid


def elapsed_times(grid: Tensor, like: Tensor) -> Tensor:
    """Time since the first, subtracted before it is rounded to the dtype of ``like``: (T, rows) -> (T, rows)."""
    return (grid - grid[0]).to(like)
