"""Cheap estimates of what the exact analysis of I − W knows: for weights that change in every step, and for large ones.

An estimate chooses a step; it certifies nothing but its sign. Every step of Peaceman–Rachford converges under Condition
1, so that a poor estimate costs iterations, never correctness. Each is a function of the weights alone: the same
weights give the same step, whatever was solved before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.types import Step

# Four vectors are iterated together, so that close eigenvalues do no harm, and twice, which is few enough not to need
# normalising in between. A norm that only judges rounding takes six iterations of one vector.
_VECTORS, _ITERATIONS, _POWER_ITERATIONS = 4, 2, 6
# m counts as positive above this share of L, which is beyond what rounding leaves of it in float64 and in float32.
_DOUBLE, _SINGLE = 1e-12, 1e-4


@dataclass(frozen=True, kw_only=True)
class Estimates:
    r"""m and L of A = I − W in a metric, within a few per cent.

    Attributes:
        monotonicity: m = λmin(H), from above.
        lipschitz: L = ‖Ã‖₂, from below.
        mean: of the spectrum of Ã, its trace over n.
    """

    monotonicity: float
    lipschitz: float
    mean: float

    def of_number(self, step: float) -> Step:
        """The step that the number α stands for: itself, or one per neuron."""
        return step

    @property
    def reflected_step(self) -> Step:
        """α of Peaceman–Rachford: one over the mean of the spectrum, in whose bulk most of an error lies."""
        return self.of_number(1 / self.mean)

    @property
    def slowest_decay(self) -> float:
        """The factor of the slowest direction with that step, as if W were symmetric."""
        low, high = self.monotonicity / self.mean, self.lipschitz / self.mean
        return max((1 - low) / (1 + low), (high - 1) / (high + 1))


def estimate(blocks: Tensor, *, single: bool = False) -> Estimates | None:
    """Estimates from the diagonal blocks of Ã, or None where I − W is not strongly monotone (a Cholesky fails).

    Args:
        blocks: (blocks, k, k), float64 or complex128.
        single: whether W has rounding errors of float32 itself: float32 is then tried first, and is enough where m is
            far above such errors.
    """
    if blocks.shape[0] == 1:  # plain matrix products cost less than batches of one
        blocks = blocks[0]
    if single:
        found = _estimated(blocks.to(torch.complex64 if blocks.is_complex() else torch.float32))
        if found is not None and found.monotonicity > _SINGLE * found.lipschitz:
            return found
    found = _estimated(blocks)
    return found if found is not None and found.monotonicity > _DOUBLE * max(1.0, found.lipschitz) else None


@torch.no_grad()
def rough_norm(apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], like: Tensor) -> float:
    """‖W‖₂ from below by power iterations on WᵀW, from products with rows shaped like (1, n)."""
    x = _random_rows(1, like.shape[-1], like.dtype).to(like.device)
    size = 0.0
    for _ in range(_POWER_ITERATIONS):
        x = x / torch.linalg.vector_norm(x).clamp_min(torch.finfo(x.dtype).tiny)
        y = apply(x)
        size = float(torch.linalg.vector_norm(y))
        x = adjoint(y)
    return size


def _estimated(blocks: Tensor) -> Estimates | None:
    factor, info = torch.linalg.cholesky_ex(blocks + blocks.mH)  # of 2H
    if bool((info != 0).any()):
        return None
    before = low = _random_rows(min(_VECTORS, blocks.shape[-1]), blocks.shape[-1], blocks.dtype).mT
    high = low.mT.expand(*blocks.shape[:-2], *low.mT.shape)  # as rows, for which products with few vectors are fastest
    for _ in range(_ITERATIONS):
        before, low = low, torch.cholesky_solve(low.expand(*blocks.shape[:-1], -1), factor)
        image = high @ blocks.mT
        high = image @ blocks.conj()
    # Rayleigh quotients ⟨x, 2Hx⟩/‖x‖², where 2Hx is the vector before x, and ‖Ãx‖/‖x‖
    smallest = (torch.real((low.conj() * before).sum(-2)) / _squared(low, -2)).min()
    largest = (_squared(high @ blocks.mT, -1) / _squared(high, -1)).max()
    mean = torch.real(blocks.diagonal(dim1=-2, dim2=-1)).mean()
    found: list[float] = torch.stack((smallest / 2, largest.sqrt(), mean)).tolist()
    m, L, middle = found
    if not (m > 0 and math.isfinite(L)):
        return None
    return Estimates(monotonicity=min(m, middle), lipschitz=max(m, L), mean=middle)


@functools.lru_cache(maxsize=8)
def _random_rows(rows: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def _squared(vectors: Tensor, dim: int) -> Tensor:
    """Squared lengths."""
    return torch.linalg.vector_norm(vectors, dim=dim).square()
