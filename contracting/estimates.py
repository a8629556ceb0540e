"""Cheap estimates of what the exact analysis of I − W knows: for weights that change in every step, and for large ones.

An estimate chooses a step; it certifies nothing but its sign. Every step of Peaceman–Rachford converges under Condition
1, so that a poor estimate costs iterations, never correctness. Each is a function of the weights alone: the same
weights give the same step, whatever was solved before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.proximal import Step

_VECTORS = 4  # iterated together, so that close eigenvalues do no harm
_ITERATIONS = 4


@dataclass(frozen=True, kw_only=True)
class Estimates:
    r"""m and L of A = I − W in a metric, within a few per cent.

    Attributes:
        monotonicity: m = λmin(H), from above.
        lipschitz: L = ‖Ã‖₂, from below.
    """

    monotonicity: float
    lipschitz: float

    @property
    def reflected_step(self) -> Step:
        """α = 1/√(mL) of Peaceman–Rachford: the best for symmetric W, seldom far from it otherwise."""
        return 1 / math.sqrt(self.monotonicity * self.lipschitz)

    @property
    def reflected_decay(self) -> float:
        """(√κ − 1)/(√κ + 1): what Peaceman–Rachford reaches with this step where W is symmetric. A guess otherwise."""
        root = math.sqrt(max(1.0, self.lipschitz / self.monotonicity))
        return (root - 1) / (root + 1)


def estimate(blocks: Tensor) -> Estimates | None:
    """Estimates from the diagonal blocks of Ã, or None where I − W is not strongly monotone (a Cholesky fails).

    Args:
        blocks: (blocks, k, k), float64 or complex128.
    """
    factor, info = torch.linalg.cholesky_ex((blocks + blocks.mH) / 2)
    if bool((info != 0).any()):
        return None
    generator = torch.Generator().manual_seed(0)
    shape = (blocks.shape[0], blocks.shape[-1], min(_VECTORS, blocks.shape[-1]))
    start = torch.randn(shape, generator=generator, dtype=torch.float64).to(blocks.dtype)
    low, high = start, start
    for _ in range(_ITERATIONS):
        low = _normalised(torch.cholesky_solve(low, factor))
        high = _normalised(blocks.mH @ (blocks @ high))
    # ⟨x, Hx⟩ = ‖Rᴴx‖² with H = RRᴴ
    smallest = torch.linalg.vector_norm(factor.mH @ low, dim=-2).square().min()
    largest = torch.linalg.vector_norm(blocks @ high, dim=-2).max()
    found = float(smallest), float(largest)
    if not (found[0] > 1e-12 * max(1.0, found[1]) and math.isfinite(found[1])):
        return None
    return Estimates(monotonicity=found[0], lipschitz=max(found))


def _normalised(columns: Tensor) -> Tensor:
    return columns / torch.linalg.vector_norm(columns, dim=-2, keepdim=True).clamp_min(1e-300)
