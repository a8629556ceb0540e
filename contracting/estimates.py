"""Cheap estimates of what the exact analysis of I − W knows: for weights that change in every step, and for large ones.

An estimate chooses a step; it certifies nothing but its sign. Every step of Peaceman–Rachford converges under Condition
1, so that a poor estimate costs iterations, never correctness. Each is a function of the weights alone: the same
weights give the same step, whatever was solved before.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from contracting.proximal import Step

if TYPE_CHECKING:
    from contracting.linear import LinearMap

_VECTORS = 4  # iterated together, so that close eigenvalues do no harm
_ITERATIONS = 2  # few enough not to need normalising in between
_PATTERNS = 12  # of active neurons that are tried, from none to all of them
_SETTLING, _WATCHED = 8, 8  # steps before the decay is measured, and over which it is


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

    @property
    def reflected_step(self) -> Step:
        """α of Peaceman–Rachford: one over the mean of the spectrum, in whose bulk most of an error lies."""
        return 1 / self.mean

    @property
    def slowest_decay(self) -> float:
        """The factor of the slowest direction with that step, as if W were symmetric."""
        low, high = self.monotonicity / self.mean, self.lipschitz / self.mean
        return max((1 - low) / (1 + low), (high - 1) / (high + 1))


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
    mean = float(torch.real(blocks.diagonal(dim1=-2, dim2=-1)).mean())
    return Estimates(monotonicity=min(found[0], mean), lipschitz=max(found), mean=mean)


@torch.no_grad()
def sampled_decay(reflection: LinearMap) -> float:
    """What a step of Peaceman–Rachford leaves of an error when neurons are active at random: of ReLU, R_f is ±1 then.

    The slowest of a few patterns, over a few steps from a random error. Thousands of rows of trained networks, the
    slowest of them, take 0.8 to 1.07 times the steps that this predicts.

    Args:
        reflection: 2K − I, or its transpose, which decays alike.
    """
    signs, error = _random_pattern(reflection.size, reflection.dtype, reflection.device)
    for _ in range(_SETTLING):
        error = reflection.apply(error * signs)
    start = torch.linalg.vector_norm(error, dim=-1)
    for _ in range(_WATCHED):
        error = reflection.apply(error * signs)
    return float((torch.linalg.vector_norm(error, dim=-1) / start).max()) ** (1 / _WATCHED)


@functools.lru_cache(maxsize=8)
def _random_pattern(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Signs of neurons and an error, each (patterns, n): the same in every call."""
    generator = torch.Generator().manual_seed(0)
    share = torch.linspace(0, 1, _PATTERNS)[:, None]
    signs = 2.0 * (torch.rand(_PATTERNS, size, generator=generator) < share) - 1
    return signs.to(device, dtype), torch.randn(_PATTERNS, size, generator=generator).to(device, dtype)


def _length(columns: Tensor) -> Tensor:
    return torch.linalg.vector_norm(columns, dim=-2)
