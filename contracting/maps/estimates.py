"""Cheap estimates of what the exact analysis of I − W knows: for weights that change in every step, and for large ones.

An estimate chooses a step; it certifies nothing but its sign. Every step of Peaceman–Rachford converges under Condition
1, so that a poor estimate costs iterations, never correctness. Each is a function of the weights alone: the same
weights give the same step, whatever was solved before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from contracting.maps.operator import StepChoice
from contracting.types import Step

# Four vectors are iterated together, so that close eigenvalues do no harm, and twice, which is few enough not to need
# normalising in between. A norm that only judges rounding takes six iterations of one vector.
_VECTORS, _ITERATIONS, _POWER_ITERATIONS = 4, 2, 6
# m counts as positive above this share of L, which is beyond what rounding leaves of it in float64 and in float32.
_DOUBLE, _SINGLE = 1e-12, 1e-4
# The balanced step is this share of the geometric mean of 1/√(mL), the best in the worst case, and 1/mean, which suits
# the bulk: the same as of ``usual_reflected``, whose steps are proved.
_USUAL_SHARE = 0.94


@dataclass(frozen=True, kw_only=True)
class Estimates:
    r"""m and L of A = I − W in a metric, within a few per cent.

    Attributes:
        monotonicity: m = λmin(H), from above.
        lipschitz: L = ‖Ã‖₂, from below.
        mean: of the spectrum of Ã, its trace over n.
        balanced: the same of D^½ÃD^½ with D = 1/diag Ã, where W is one matrix; else None.
    """

    monotonicity: float
    lipschitz: float
    mean: float
    balanced: BalancedEstimates | None = None

    def of_number(self, step: float) -> Step:
        """The step that the number α stands for: itself, or one per neuron."""
        return step

    @cached_property
    def reflected_step(self) -> Step:
        """α of Peaceman–Rachford: one over the mean of the spectrum, in whose bulk most of an error lies."""
        return self.of_number(self._number)

    @property
    def _number(self) -> float:
        return 1 / self.mean

    @cached_property
    def reflected_choice(self) -> StepChoice:
        """That step, of which nothing is proved, with what to expect of it."""
        return StepChoice(step=self.reflected_step, factor=None, expected=self.slowest_decay)

    @property
    def slowest_decay(self) -> float:
        """The factor of the slowest direction with that step, as if W were symmetric."""
        low, high = self._number * self.monotonicity, self._number * self.lipschitz
        return max((1 - low) / (1 + low), (high - 1) / (high + 1))


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaledEstimates(Estimates):
    """m and L of another operator than Ã, D^½ÃD^½, for which one step per neuron stands.

    Attributes:
        unit_step: D, (n,), which stands for α = 1.
    """

    unit_step: Tensor = field(repr=False)

    def of_number(self, step: float) -> Tensor:
        """αD."""
        return step * self.unit_step


@dataclass(frozen=True, eq=False, kw_only=True)
class BalancedEstimates(ScaledEstimates):
    r"""Of D^½ÃD^½ with D = 1/diag Ã: neurons whose gains differ converge together.

    Peaceman–Rachford converges with every positive D, in ‖·‖_{ΛD⁻¹} (``DiagonalStep``): so this too is a guess that can
    cost steps only. On LBENs with γ = 1 after a training on MNIST it took 17 steps instead of 43 (n = 80) and 32
    instead of 41 (n = 250) to a residual of 1e-4, in both passes.
    """

    @property
    def _number(self) -> float:
        return _USUAL_SHARE / math.sqrt(self.mean * math.sqrt(self.monotonicity * self.lipschitz))


def balanced(found: Estimates, matrix: Tensor, *, single: bool, like: Tensor) -> Estimates:
    """Estimates of Ã, (n, n), with those of D^½ÃD^½ beside them.

    Args:
        found: those of Ã, which is strongly monotone and so has a positive diagonal.
        matrix: Ã.
        single: as of ``estimate``.
        like: what has the dtype and the device of the steps.
    """
    scale = 1 / matrix.diagonal()
    root = scale.sqrt()
    scaled = estimate((root[:, None] * matrix * root)[None], single=single)
    if scaled is None:
        return found
    own = BalancedEstimates(
        monotonicity=scaled.monotonicity, lipschitz=scaled.lipschitz, mean=scaled.mean, unit_step=scale.to(like)
    )
    return replace(found, balanced=own)


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
