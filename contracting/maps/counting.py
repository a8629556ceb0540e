"""Products with W, counted and kept in full precision where they are made: no method has to think of either."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from contracting.precision import full_precision, under_autocast


class Count:
    """How many rows were multiplied by W, or by a map that was made from it, such as its resolvent."""

    rows = 0


class _Here(threading.local):
    count: Count | None = None


_here = _Here()


class counting:  # noqa: N801  # a context, which as a generator would take four times as long
    """Count the products that this thread makes in ``count``; None counts none."""

    def __init__(self, count: Count | None):
        self._count = count

    def __enter__(self) -> None:
        self._before, _here.count = _here.count, self._count

    def __exit__(self, *error: object) -> None:
        _here.count = self._before


def report(rows: int) -> None:
    """Count so many rows at once: for fused steps and for solves within a solve, counted elsewhere."""
    if _here.count is not None:
        _here.count.rows += rows


def counted(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The product of a map with rows z, counted once, whatever products of other maps it consists of."""

    @functools.wraps(product)
    def apply(linear: Any, z: Tensor, *args: Any, **options: Any) -> Tensor:
        if under_autocast(z.device.type):
            with full_precision(z):
                return apply(linear, z, *args, **options)
        count = None if torch.compiler.is_compiling() else _here.count
        if count is None:
            return product(linear, z, *args, **options)
        _here.count = None
        try:
            return product(linear, z, *args, **options)
        finally:
            _here.count = count
            count.rows += z.numel() // max(1, z.shape[-1])

    return apply
