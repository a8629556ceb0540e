"""What the suites have in common: how a promise is checked, and what they draw."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DOUBLE = torch.float64


def require(kept: object, promise: str) -> None:
    """That a promise is kept, by every entry where it is a tensor; python -O does not remove this."""
    if not (bool(kept.all()) if isinstance(kept, Tensor) else kept):
        raise AssertionError(promise)


def close(found: Tensor, expected: Tensor, promise: str, tolerance: float = 1e-9) -> None:
    """That two tensors have one shape, and entries that differ by at most ``tolerance``·(1 + |expected|)."""
    shapes = tuple(found.shape), tuple(expected.shape)
    require(shapes[0] == shapes[1], f"{promise}: the shape is {shapes[0]} in place of {shapes[1]}")
    miss = ((found - expected).abs() / (1 + expected.abs())).detach()
    require(miss <= tolerance, f"{promise}: entries differ by up to {float(miss.max()) if miss.numel() else 0:.1e}")


def refused(error: type[Exception], call: Callable[[], object], promise: str) -> None:
    """That a call raises this error."""
    try:
        call()
    except error:
        return
    raise AssertionError(f"{promise}: there is no {error.__name__}")


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal float64 numbers, the same in each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def monotone(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """W, (n, n), with a skew part as large as its symmetric one, and λ, (n,), in which I − W has m = 1."""
    V, S = draw(2, n, n, seed=seed) / n**0.5
    root, identity = (0.3 * draw(n, seed=seed + 1)).exp(), torch.eye(n, dtype=DOUBLE)
    A = identity + V @ V.mT - torch.linalg.eigvalsh(V @ V.mT)[0] * identity
    return identity - (A + S - S.mT) / root[:, None] * root, root.square()
