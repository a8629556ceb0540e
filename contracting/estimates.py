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

_USUAL_DECAY = 0.6  # trained networks of the reference code have 0.62 to 0.75
_VECTORS = 4  # iterated together, so that close eigenvalues do no harm
_ITERATIONS = 3  # few enough not to need normalising in between


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
        """What to plan with: (√κ − 1)/(√κ + 1), the factor where W is symmetric; a skew part adds to a small one."""
        root = math.sqrt(max(1.0, self.lipschitz / self.monotonicity))
        return max((root - 1) / (root + 1), _USUAL_DECAY)


def estimate(blocks: Tensor) -> Estimates | None:
    """Estimates from the diagonal blocks of Ã, or None where I − W is not strongly monotone (a Cholesky fails).

    Args:
        blocks: (blocks, k, k), float64 or complex128.
    """
    if blocks.shape[0] == 1:  # plain matrix products cost less than batches of one
        blocks = blocks[0]
    factor, info = torch.linalg.cholesky_ex((blocks + blocks.mH) / 2)
    if bool((info != 0).any()):
        return None
    generator = torch.Generator().manual_seed(0)
    shape = (*blocks.shape[:-1], min(_VECTORS, blocks.shape[-1]))
    low = high = torch.randn(shape, generator=generator, dtype=torch.float64).to(blocks.dtype)
    for _ in range(_ITERATIONS):
        low = torch.cholesky_solve(low, factor)
        high = blocks.mH @ (blocks @ high)
    # Rayleigh quotients: ⟨x, Hx⟩ = ‖Rᴴx‖² with H = RRᴴ
    smallest = (_length(factor.mH @ low) / _length(low)).min()
    largest = (_length(blocks @ high) / _length(high)).max()
    found = float(smallest) ** 2, float(largest)
    if not (found[0] > 1e-12 * max(1.0, found[1]) and math.isfinite(found[1])):
        return None
    return Estimates(monotonicity=found[0], lipschitz=max(found))


def _length(columns: Tensor) -> Tensor:
    return torch.linalg.vector_norm(columns, dim=-2)
