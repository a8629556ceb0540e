r"""W = C + LRᵀ with L and R of few columns: a map such as a convolution, and what it lacks to be the weight.

The readout of a Lipschitz-bounded network in its own weight is such a term: of few columns, one for each output, and no
convolution. The sum has no blocks, but needs none:

* the resolvent is that of C and a small matrix (Woodbury): with B = I + D(I − C) and K = B⁻¹,
  (B − DLRᵀ)⁻¹ = K + KDL(I − RᵀKDL)⁻¹RᵀK, once more a map plus a term of few columns;
* in a metric, Ã = Ã_C + N with N = −L̃R̃ᵀ, L̃ = Λ^½L, R̃ = Λ^−½R. With E = L̃ + R̃, N = R̃R̃ᵀ − ER̃ᵀ, and by polarisation
  its symmetric part is ¼(L̃ − R̃)(L̃ − R̃)ᵀ − ¼EEᵀ. So m ≥ m_C − ¼‖E‖², L ≤ L_C + ‖L̃‖‖R̃‖, and so on, from the
  eigenvalues of r×r matrices. Where L̃ = −R̃ the term of I − W is positive semidefinite, and costs no monotonicity.

Up to ``exact_up_to`` neurons, the matrix of Ã is formed instead, and everything is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError, PreconditionError
from contracting.maps.base import LinearMap
from contracting.maps.bounded import BoundedOperator, gain_bound
from contracting.maps.estimates import Estimates, estimate
from contracting.maps.operator import Bounds, MonotoneOperator, StepChoice
from contracting.metrics import Metric
from contracting.types import Step

_ROUNDING = 1e-13  # relative, of a norm found from a Gram matrix in float64; charged to the safe side
_USELESS = 0.1  # what a computed inverse may miss the identity by; one of a singular matrix misses it by more
_HALVINGS = 6  # of the step of C, tried where the term of few columns asks for a smaller one


@dataclass(frozen=True, eq=False)
class LowRank(LinearMap):
    r"""W = C + LRᵀ.

    Args:
        base: C, any map with a resolvent and bounds of its own, such as a convolution.
        left: L, (n, r).
        right: R, (n, r).
        exact_up_to: the largest n for which the matrix of Ã is formed, so that bounds and factors are exact.

    Raises:
        InputError: on wrong shapes, dtypes or devices.
    """

    base: LinearMap
    left: Tensor
    right: Tensor
    exact_up_to: int = field(default=300, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            value = checks.floating_tensor(name, getattr(self, name))
            checks.same_kind(name, value, "base", self.base.tensors()[0])
            if value.ndim != 2 or value.shape[0] != self.base.size:
                raise InputError(f"{name} must have shape ({self.base.size}, r), got {tuple(value.shape)}")
        if self.left.shape != self.right.shape:
            raise InputError(
                f"left and right must have as many columns, got {self.left.shape[1]} and {self.right.shape[1]}"
            )

    @property
    def size(self) -> int:
        return self.base.size

    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.base.tensors(), self.left, self.right)

    def with_tensors(self, tensors: Sequence[Tensor]) -> LowRank:
        *base, left, right = tensors
        return LowRank(self.base.with_tensors(base), left, right, exact_up_to=self.exact_up_to)

    def apply(self, z: Tensor) -> Tensor:
        return self.base.apply(z) + (z @ self.right) @ self.left.mT

    def affine(self, z: Tensor, offset: Tensor, out: Tensor | None = None) -> Tensor:
        graph = torch.is_grad_enabled() and any(t.requires_grad for t in (z, offset, *self.tensors()))
        known = self.base.affine(z, offset, out)
        if graph or known.ndim != 2:
            return known + (z @ self.right) @ self.left.mT
        return known.addmm_(z @ self.right, self.left.mT)

    def laid_out(self, rows: Tensor) -> Tensor:
        return self.base.laid_out(rows)

    def pullback(self, z: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        of_left = cotangent.mT @ (z @ self.right)
        of_right = z.mT @ (cotangent @ self.left)
        return (*self.base.pullback(z, cotangent), of_left, of_right)

    def make_adjoint(self) -> LowRank:
        return LowRank(
            self.base.adjoint, self.right, self.left, exact_up_to=self.exact_up_to
        )

    def combined(self, scale: float, shift: float) -> LowRank:
        return replace(
            self, base=self.base.combined(scale, shift), left=scale * self.left
        )

    def make_resolvent(self, step: Step) -> LowRank:
        K = self.base.resolvent(step)
        scaled = (step[:, None] if isinstance(step, Tensor) and step.ndim else step) * self.left
        near = K.apply(scaled.mT.contiguous()).mT  # KDL
        identity = torch.eye(self.left.shape[1], dtype=self.dtype, device=self.device)
        core = identity - self.right.mT @ near
        inverse, info = torch.linalg.inv_ex(core)
        with torch.no_grad():
            miss = torch.linalg.matrix_norm(core @ inverse - identity)
        if int(info) != 0 or not float(miss) < _USELESS:
            raise PreconditionError(
                f"I + step·(I − W) is singular for step = {step}: I − W is not monotone (the matrix I − RᵀKL of "
                "Woodbury's formula has no inverse); a term with L = −R would leave it monotone"
            )
        far = K.adjoint.apply(self.right.mT.contiguous()).mT  # KᵀR
        return LowRank(K, near @ inverse, far, exact_up_to=self.exact_up_to)

    @property
    def _small(self) -> bool:
        return self.size <= self.exact_up_to

    @property
    def block_size(self) -> int:
        return self.size if self._small else self.base.block_size

    def blocks(self, metric: Metric) -> Tensor:
        if not self._small:
            raise PreconditionError(
                f"a map plus a term of few columns has no blocks but its matrix, which is formed up to n = "
                f"{self.exact_up_to} (exact_up_to), and n is {self.size}; operator(metric) gives proved bounds"
            )
        return super().blocks(metric)

    def make_operator(self, metric: Metric) -> MonotoneOperator:
        if self._small:
            return super().make_operator(metric)
        base, term = self.base.operator(metric), self._term(metric)
        return LowRankOperator(blocks=base.blocks, base=base, term=term)

    def make_estimates(self, metric: Metric) -> Estimates | None:
        if self._small:
            return super().make_estimates(metric)
        term = self._term(metric)
        blocks = self.base.blocks(metric)
        blocks.diagonal(dim1=-2, dim2=-1).sub_(term.lost)  # so that its Cholesky proves H_C − ¼‖E‖²I ≻ 0
        found = estimate(blocks)
        if found is None:
            return None
        mean = found.mean + term.lost + term.mean
        lipschitz = max(found.lipschitz + term.lost + term.norm, mean)
        return Estimates(monotonicity=min(found.monotonicity, mean), lipschitz=lipschitz, mean=mean)

    def _term(self, metric: Metric) -> LowRankTerm:
        """What is proved of N = −L̃R̃ᵀ, in float64."""
        root = self.weights_of(metric).sqrt()[:, None]
        L, R = (t.detach().to("cpu", torch.float64) for t in (self.left, self.right))
        L, R = root * L, R / root
        scale = _balance(L, R)  # LRᵀ does not change if a column of L grows by as much as that of R shrinks
        L, R = L * scale, R / scale
        lost = _square_norm(L + R) / 4
        left, right = math.sqrt(_square_norm(L)), math.sqrt(_square_norm(R))
        return LowRankTerm(
            lost=lost,
            gained=_square_norm(L - R) / 4,
            rest=min(left, right) * 2 * math.sqrt(lost),
            positive=max(left, right) ** 2,
            norm=left * right,
            mean=-float((L * R).sum()) / self.size,
        )


@dataclass(frozen=True, kw_only=True)
class LowRankTerm:
    """What is proved of N = −L̃R̃ᵀ, the term of few columns in Ã.

    Attributes:
        lost: ¼‖E‖²: the symmetric part of N is ⪰ −lost. Zero where N is positive semidefinite.
        gained: ¼‖L̃ − R̃‖²: the symmetric part of N is ⪯ gained.
        rest: ‖E‖ times the smaller of ‖L̃‖ and ‖R̃‖: what N differs from a positive semidefinite term by, in norm, and
            so an upper bound of its skew part.
        positive: an upper bound of the norm of that term.
        norm: an upper bound of ‖N‖.
        mean: its trace over n.
    """

    lost: float
    gained: float
    rest: float
    positive: float
    norm: float
    mean: float


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRankOperator(BoundedOperator):
    r"""Ã = Ã_C + N, known through Ã_C and norms of N.

    Write N = N₊ + P with N₊ = R̃R̃ᵀ and P = −ER̃ᵀ, or the same with L̃. The factor of Peaceman–Rachford is
    factor² = (g − 1)/(g + 1) with g(α) = max_x (‖x‖²/α + α‖Ãx‖²)/(2⟨x, Hx⟩), exact for C. Of Ã_C + N₊ it is
    g₊ ≤ max(√2·g_C(√2α), α‖N₊‖), because ‖(Ã_C + N₊)x‖² ≤ 2‖Ã_Cx‖² + 2‖N₊‖⟨x, N₊x⟩. And P of norm p = θm_C, θ < 1,
    changes ‖Ãx‖² to at most (1 + θ)‖(Ã_C + N₊)x‖² + (1 + 1/θ)p²‖x‖² and ⟨x, Hx⟩ to at least (1 − θ) of it, so that
    g ≤ (1 + θ)(g₊ + αm_Cθ/2)/(1 − θ).

    Args:
        blocks: those of Ã_C, which are not those of Ã.
        base: Ã_C.
        term: N.
    """

    base: MonotoneOperator
    term: LowRankTerm

    @cached_property
    def bounds(self) -> Bounds:
        """Proved bounds: m from below, the others from above."""
        base, term = self.base.bounds, self.term
        m, L = base.monotonicity - term.lost, base.lipschitz + term.norm
        return Bounds(
            monotonicity=m,
            symmetric=base.symmetric + term.gained,
            skew=base.skew + term.rest,
            lipschitz=L,
            gain=min(base.gain + term.norm, gain_bound(m, L)),
        )

    @cached_property
    def mean(self) -> float:
        """The mean of C, as its blocks give it, and the trace of N over n."""
        return self.base.mean + self.term.mean

    def reflected_factor(self, step: float) -> float:
        """An upper bound of ‖(I − αÃ)(I + αÃ)⁻¹‖₂ for one number α."""
        bound = super().reflected_factor(step)
        m, square = self.base.bounds.monotonicity, self.base.reflected_factor(math.sqrt(2) * step) ** 2
        if square >= 1 or self.term.rest >= m:
            return bound
        share = self.term.rest / m
        g = max(math.sqrt(2) * (1 + square) / (1 - square), step * self.term.positive)
        g = (1 + share) * (g + step * m * share / 2) / (1 - share)
        return min(bound, math.sqrt((g - 1) / (g + 1)))

    @cached_property
    def best_reflected(self) -> StepChoice:
        """The best of the step that is proved best for C, over √2 and its halvings, and 1/L."""
        known = float(self.base.best_reflected.step) / math.sqrt(2)
        candidates = [1 / self.bounds.lipschitz, *(known / 2**k for k in range(_HALVINGS))]
        step = min(candidates, key=self.reflected_factor)
        return StepChoice(step=step, factor=self.reflected_factor(step))


def _balance(left: Tensor, right: Tensor) -> Tensor:
    """By what to scale the columns of L, and divide those of R, so that they are of the same length: (r,)."""
    lengths = torch.linalg.vector_norm(left, dim=0), torch.linalg.vector_norm(right, dim=0)
    ratio = (lengths[1] / lengths[0]).sqrt()
    return torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)


def _square_norm(columns: Tensor) -> float:
    """‖X‖₂² from its Gram matrix, rounded up: (n, r)."""
    if columns.shape[1] == 0:
        return 0.0
    return max(0.0, float(torch.linalg.eigvalsh(columns.mT @ columns)[-1])) * (1 + _ROUNDING * len(columns))
