"""A = I − W of which only bounds are known: what they prove of factors and steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from contracting.maps.operator import Bounds, MonotoneOperator, StepChoice

# So many inverse iterations of four vectors find a smallest eigenvalue within a few per cent; powers take four times as
# many.
_ITERATIONS = 5
# A guess is widened by these shares of itself, one after the other, until a factorisation proves it.
_WIDER = (0.05, 0.2, 1.0)


@dataclass(frozen=True, eq=False)
class BoundedOperator(MonotoneOperator):
    """Ã known through ``bounds`` alone: m from below, the others from above, and every factor an upper bound.

    An implementation brings ``bounds``; its ``blocks`` are those of a part of Ã, and not those of Ã.
    """

    def self_adjoint(self, tolerance: float) -> bool:
        """From the bounds alone: whether the skew part is small beside the whole."""
        return self.bounds.skew <= tolerance * self.bounds.lipschitz

    @property
    def matrix(self) -> None:
        """None: the blocks are not those of Ã."""
        return None

    def forward_factor(self, step: float) -> float:
        """An upper bound of ‖I − αÃ‖₂ for one number α."""
        m, M, L = self.bounds.monotonicity, self.bounds.symmetric, self.bounds.lipschitz
        split = max(abs(1 - step * m), abs(1 - step * M)) + step * self.bounds.skew  # ‖I − αH‖ + α‖K‖
        return min(split, math.sqrt(max(0.0, 1 - 2 * step * m + (step * L) ** 2)))

    def reflected_factor(self, step: float) -> float:
        """An upper bound of ‖(I − αÃ)(I + αÃ)⁻¹‖₂ for one number α."""
        m, square = step * self.bounds.monotonicity, 1 + (step * self.bounds.lipschitz) ** 2
        return math.sqrt(max(0.0, (square - 2 * m) / (square + 2 * m)))

    def euler_factor(self, step: float) -> float:
        """An upper bound of that of the exact operator, from 1 − λmax(H) ⪯ sym(W̃) ⪯ 1 − m and ‖W̃‖."""
        # beyond h = 1 the symmetric part counts with the other sign
        end = self.bounds.monotonicity if step <= 1 else self.bounds.symmetric
        excess = 2 * step * (1 - step) * (1 - end) + (step * self.bounds.gain) ** 2
        return math.sqrt((1 - step) ** 2 + max(0.0, excess))

    def _tseng_excess(self, step: float) -> tuple[float, float]:
        # ÃᵀÃ ⪯ L² and H ⪰ m
        m, L = self.bounds.monotonicity, self.bounds.lipschitz
        near, far = 1 / (1 - (step * L) ** 2), 1 / (2 * step * m)
        return near + far, 2 * step * (L * near) ** 2 - far / step

    @cached_property
    def best_forward(self) -> StepChoice:
        """The better of m/L² and 2/(m + λmax(H)), which minimise the two bounds in ``forward_factor``."""
        m, M, L = self.bounds.monotonicity, self.bounds.symmetric, self.bounds.lipschitz
        step = min(m / L**2, 2 / (m + M), key=self.forward_factor)
        return StepChoice(step=step, factor=self.forward_factor(step))

    @cached_property
    def best_reflected(self) -> StepChoice:
        """The step 1/L, which minimises the bound from m and L in ``reflected_factor``."""
        step = 1 / self.bounds.lipschitz
        return StepChoice(step=step, factor=self.reflected_factor(step))

    @cached_property
    def best_euler(self) -> StepChoice:
        """The step that minimises the bound in ``euler_factor``, a piecewise quadratic function of h."""
        m, w = self.bounds.monotonicity, self.bounds.gain
        # (1−h)² + 2h(1−h)(1−m) + h²w², without the maximum: a parabola whose minimum has the excess at or above zero,
        # or else the excess vanishes first
        curvature = 1 - 2 * (1 - m) + w**2
        candidates = [1.0]
        if curvature > 0:
            candidates.append(m / curvature)
        if m > 1:
            candidates.append(2 * (m - 1) / (2 * (m - 1) + w**2))
        step = min((h for h in candidates if 0 < h <= 1), key=self.euler_factor)
        return StepChoice(step=step, factor=self.euler_factor(step))


def gain_bound(monotonicity: float, lipschitz: float) -> float:
    """What m and L prove of ‖W̃‖: ‖W̃x‖² = ‖x‖² − 2⟨x, Ãx⟩ + ‖Ãx‖², and ‖W̃‖ ≤ 1 + ‖Ã‖."""
    return min(1 + lipschitz, math.sqrt(max(0.0, 1 - 2 * monotonicity + lipschitz**2)))


@dataclass(frozen=True, eq=False)
class FactoredOperator(BoundedOperator):
    """Ã of one large block, with bounds from products and Cholesky factorisations: no eigenvalue is computed.

    A bound is guessed by a few iterations, widened, and proved by a factorisation that succeeds, which costs a
    thirtieth of an eigendecomposition.
    """

    @cached_property
    def bounds(self) -> Bounds:
        """m from below and the others from above, mostly within a tenth."""
        A = self.blocks
        H, K = (A + A.mH) / 2, (A - A.mH) / 2
        lipschitz = _norm_bound(A)
        m = _smallest_bound(H, lipschitz)
        symmetric = _largest_bound(H, lipschitz) if m > 0 else lipschitz
        skew = min(_norm_bound(K), lipschitz) if bool(K.any()) else 0.0
        gain = gain_bound(m, lipschitz)
        return Bounds(monotonicity=m, symmetric=symmetric, skew=skew, lipschitz=lipschitz, gain=gain)


def _smallest_bound(hermitian: Tensor, norm: float) -> float:
    """A lower bound of the smallest eigenvalue of matrices whose norms are at most ``norm``."""
    identity = torch.eye(hermitian.shape[-1], dtype=hermitian.dtype)
    low = -norm
    x = _start(hermitian)
    shift = 0.0
    factor, info = torch.linalg.cholesky_ex(hermitian)
    if bool((info != 0).any()):  # the same iteration on M + norm·I, whose smallest eigenvalue is not negative
        shift = norm * (1 + _WIDER[0])
        factor, info = torch.linalg.cholesky_ex(hermitian + shift * identity)
        if bool((info != 0).any()):
            return low * (1 + _WIDER[0])
    for _ in range(_ITERATIONS):
        x = torch.linalg.qr(torch.cholesky_solve(x, factor)).Q
    guess = float(torch.linalg.vector_norm(torch.cholesky_solve(x, factor), dim=-2).amax())
    smallest = 1 / guess  # of M + shift·I, from above
    for wider in _WIDER:
        candidate = smallest / (1 + wider) - shift
        if _definite(hermitian - candidate * identity, norm):
            return candidate
    return low * (1 + _WIDER[0])


def _largest_bound(positive: Tensor, norm: float) -> float:
    """An upper bound of the largest eigenvalue of positive definite matrices whose norms are at most ``norm``."""
    guess = _power(positive)
    for wider in _WIDER:
        candidate = guess * (1 + wider)
        identity = torch.eye(positive.shape[-1], dtype=positive.dtype)
        if candidate < norm and _definite(candidate * identity - positive, norm):
            return candidate
    return norm


def _norm_bound(matrices: Tensor) -> float:
    """An upper bound of the largest singular value."""
    gram = matrices.mH @ matrices
    square = float(torch.real(gram.diagonal(dim1=-2, dim2=-1)).sum(-1).amax())  # of the Frobenius norm
    return math.sqrt(_largest_bound(gram, square * (1 + 1e-12)))


def _power(positive: Tensor) -> float:
    """The largest eigenvalue of positive semidefinite matrices from below, by products with a few vectors."""
    x = _start(positive)
    for _ in range(4 * _ITERATIONS):
        x = torch.linalg.qr(positive @ x).Q
    return float(torch.linalg.vector_norm(positive @ x, dim=-2).amax())


def _definite(hermitian: Tensor, size: float) -> bool:
    """Whether the matrices are proved to be positive definite; ``size`` bounds the norm of what they were made from."""
    n = hermitian.shape[-1]
    trace = torch.real(hermitian.diagonal(dim1=-2, dim2=-1)).sum(-1).abs().amax()
    # the rounding of the factorisation, (n + 1)u·trace, and that of forming the matrix, each rounded up
    allowance = 8 * (n + 2) * torch.finfo(torch.float64).eps * (float(trace) + size)
    shifted = hermitian - allowance * torch.eye(n, dtype=hermitian.dtype)
    return not bool((torch.linalg.cholesky_ex(shifted)[1] != 0).any())


def _start(matrices: Tensor) -> Tensor:
    vectors = torch.randn(matrices.shape[-1], 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return vectors.to(matrices.dtype).expand(*matrices.shape[:-2], -1, -1)
