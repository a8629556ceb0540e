r"""W = C − TᵀT with T: Rⁿ → Rʳ given by its products: a map such as a convolution, and what it lacks to be the weight.

The readout of a Lipschitz-bounded network in its own weight is such a term, and so is its input convolution in a metric
that varies over the image: T is pooling and a small matrix, or a convolution and a multiplication, and is applied as
that. The sum has no blocks, but needs none:

* TᵀT is positive semidefinite. In the Euclidean norm I − W therefore is as monotone as I − C, its symmetric part grows
  by ‖T‖² at most, and its skew part is that of I − C;
* the resolvent is that of C and an r×r matrix (Woodbury): with K = (I + D(I − C))⁻¹,
  (I + D(I − W))⁻¹ = K − KDTᵀ(I + TKDTᵀ)⁻¹TK. The matrix costs r products with K, which is said by
  ``resolvent_products``, and it is kept; no n×r matrix ever is.

Up to ``exact_up_to`` neurons, the matrix of I − W is formed instead, and everything is exact.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError, PreconditionError
from contracting.maps.base import Around, LinearMap, OfTensors
from contracting.maps.bounded import BoundedOperator, gain_bound
from contracting.maps.estimates import Estimates
from contracting.maps.operator import Bounds, MonotoneOperator, StepChoice
from contracting.metrics import Metric
from contracting.types import Step

# A norm found from a Gram matrix in float64 is charged this much, relative and for each row, to the safe side.
ROUNDING = 1e-13
# A computed inverse may miss the identity by this much; that of a singular matrix misses it by more.
_USELESS = 0.1
# The step that is best for C is halved this often where the term asks for a smaller one.
_HALVINGS = 6
# Up to this many rows, the resolvent keeps TK, whose products then cost less than another product with K: 2rn
# operations against some 300n for 54 channels on 30×30.
_FEW = 64
# The r×r matrix of the resolvent is made from this many unit vectors at a time, which bounds the memory that takes.
_CHUNK = 128


class Factor(OfTensors, ABC):
    """A rectangular map T: Rⁿ → Rʳ acting on rows, a frozen dataclass with its products and bounds of its size."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """r."""

    @abstractmethod
    def apply(self, z: Tensor) -> Tensor:
        """Rows of Tz: (batch, n) -> (batch, r)."""

    @abstractmethod
    def adjoint(self, c: Tensor) -> Tensor:
        """Rows of Tᵀc: (batch, r) -> (batch, n)."""

    @abstractmethod
    def square_norm(self) -> float:
        """An upper bound of ‖T‖₂², computed in float64."""

    @abstractmethod
    def square_sum(self) -> float:
        """The trace of TᵀT, the sum of the squares of its entries."""


@dataclass(frozen=True, eq=False)
class Rows(Factor):
    """T given by its rows, for the few that a matrix may have.

    Args:
        matrix: T, (r, n).
    """

    matrix: Tensor

    @property
    def rank(self) -> int:
        return self.matrix.shape[0]

    def apply(self, z: Tensor) -> Tensor:
        return z @ self.matrix.mT

    def adjoint(self, c: Tensor) -> Tensor:
        return c @ self.matrix

    def square_norm(self) -> float:
        return largest_square(self.matrix)

    def square_sum(self) -> float:
        return float(self.matrix.detach().double().square().sum())


def largest_square(matrix: Tensor) -> float:
    """‖X‖₂² of a matrix with few rows, rounded up."""
    exact = matrix.detach().to("cpu", torch.float64)
    if not exact.numel():
        return 0.0
    return max(0.0, float(torch.linalg.eigvalsh(exact @ exact.mT)[-1])) * (1 + ROUNDING * exact.shape[1])


@dataclass(frozen=True, eq=False, repr=False)
class MinusGram(Around):
    r"""W = C − TᵀT.

    Args:
        inner: C, any map with a resolvent and bounds of its own, such as a convolution.
        factor: T.
        exact_up_to: the largest n for which the matrix of I − W is formed, so that bounds and factors are exact.

    Raises:
        InputError: if T is of another dtype or on another device.
    """

    factor: Factor
    exact_up_to: int = field(default=300, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.factor, Factor):
            raise InputError(f"factor must be a Factor such as Rows(matrix), got {self.factor!r}")
        for tensor in self.factor.tensors():
            checks.same_kind("factor", checks.floating_tensor("factor", tensor), "inner", self.inner.tensors()[0])

    def apply(self, z: Tensor) -> Tensor:
        rows = z.reshape(-1, self.size) if z.ndim != 2 else z
        return (self.inner.apply(rows) - self.factor.adjoint(self.factor.apply(rows))).reshape(z.shape)

    def pullback(self, z: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        def form(*tensors: Tensor) -> Tensor:  # ⟨cotangent, −TᵀTz⟩
            factor = self.factor.with_tensors(tensors)
            return -(factor.apply(cotangent) * factor.apply(z)).sum()

        value, vjp = torch.func.vjp(form, *self.factor.tensors())  # type: ignore[misc]
        return (*self.inner.pullback(z, cotangent), *vjp(torch.ones_like(value)))

    def make_adjoint(self) -> MinusGram:
        return replace(self, inner=self.inner.adjoint)

    @property
    def resolvent_products(self) -> float:
        """One product with the resolvent of C for each row of T."""
        return self.inner.resolvent_products + self.factor.rank

    def make_resolvent(self, step: Step) -> LinearMap:
        K, T = self.inner.resolvent(step), self.factor
        identity = torch.eye(T.rank, dtype=self.dtype, device=self.device)
        images = [T.apply(K.apply(step * T.adjoint(unit))) for unit in torch.split(identity, _CHUNK)]
        core = identity + torch.cat([identity[:0], *images]).mT
        inverse, info = torch.linalg.inv_ex(core)
        with torch.no_grad():
            miss = torch.linalg.matrix_norm(core @ inverse - identity)
        if int(info) != 0 or not float(miss) < _USELESS:
            raise PreconditionError(
                f"I + step·(I − W) is singular for step = {step}: I − W is not monotone (the matrix I + TKDTᵀ of "
                "Woodbury's formula has no inverse)"
            )
        seen = Rows(K.adjoint.apply(T.adjoint(identity))) if T.rank <= _FEW else None
        return Corrected(K, T, inverse, torch.as_tensor(step, dtype=self.dtype, device=self.device), seen)

    @property
    def _small(self) -> bool:
        return self.size <= self.exact_up_to

    @property
    def block_size(self) -> int:
        return self.size if self._small else self.inner.block_size

    def blocks(self, metric: Metric) -> Tensor:
        if not self._small:
            raise PreconditionError(
                f"a map less TᵀT has no blocks but its matrix, which is formed up to n = {self.exact_up_to} "
                f"(exact_up_to), and n is {self.size}; operator(metric) gives proved bounds"
            )
        return super().blocks(metric)

    def _square_norm(self, metric: Metric) -> float:
        """‖T‖² where TᵀT is positive semidefinite in the metric."""
        weights = self.weights_of(metric)
        if float(weights.max() - weights.min()) > 64 * torch.finfo(self.dtype).eps * float(weights.max()):
            raise PreconditionError(
                "bounds of a map less TᵀT are known in the Euclidean metric, or a multiple of it; write a weight with "
                "another metric as Scaled(…), whose inner map is this one"
            )
        return self.factor.square_norm()

    def make_operator(self, metric: Metric) -> MonotoneOperator:
        if self._small:
            return super().make_operator(metric)
        norm, base = self._square_norm(metric), self.inner.operator(metric)
        return MinusGramOperator(
            blocks=base.blocks, base=base, norm=norm, mean=base.mean + self.factor.square_sum() / self.size
        )

    def make_estimates(self, metric: Metric) -> Estimates | None:
        if self._small:
            return super().make_estimates(metric)
        norm, found = self._square_norm(metric), self.inner.estimates(metric)
        if found is None:
            return None
        mean = found.mean + self.factor.square_sum() / self.size
        return Estimates(monotonicity=min(found.monotonicity, mean), lipschitz=found.lipschitz + norm, mean=mean)


@dataclass(frozen=True, eq=False, repr=False)
class Corrected(Around):
    """s(K − KDTᵀETK) + tI, the resolvent of C − TᵀT, or its adjoint.

    Args:
        inner: K.
        factor: T.
        core: E, (r, r).
        step: the diagonal of D, (n,) or a number.
        seen: TK, where r is so small that its rows cost less than a product with K.
        scale: s.
        shift: t.
        transposed: whether this is the adjoint.
    """

    factor: Factor
    core: Tensor
    step: Tensor
    seen: Rows | None = None
    scale: float = 1.0
    shift: float = 0.0
    transposed: bool = False

    def apply(self, z: Tensor) -> Tensor:
        rows, T = z.reshape(-1, self.size) if z.ndim != 2 else z, self.factor
        K = (self.inner.adjoint if self.transposed else self.inner).apply
        if self.transposed:
            image = K(rows)
            c = T.apply(self.step * image) @ self.core
            image = image - (K(T.adjoint(c)) if self.seen is None else self.seen.adjoint(c))
        else:
            c = (T.apply(K(rows)) if self.seen is None else self.seen.apply(rows)) @ self.core.mT
            image = K(rows - self.step * T.adjoint(c))
        image = image.reshape(z.shape)
        return image if self.scale == 1 and self.shift == 0 else self.scale * image + self.shift * z

    def make_adjoint(self) -> Corrected:
        return replace(self, transposed=not self.transposed)

    def combined(self, scale: float, shift: float) -> Corrected:
        return replace(self, scale=scale * self.scale, shift=scale * self.shift + shift)


@dataclass(frozen=True, eq=False, kw_only=True)
class MinusGramOperator(BoundedOperator):
    r"""Ã = Ã_C + N, known through Ã_C and a bound of the positive semidefinite N = TᵀT.

    The factor of Peaceman–Rachford is factor² = (g − 1)/(g + 1) with g(α) = max_x (‖x‖²/α + α‖Ãx‖²)/(2⟨x, Hx⟩), exact
    for C. Of Ã_C + N it is g ≤ max(√2·g_C(√2α), α‖N‖), because ‖(Ã_C + N)x‖² ≤ 2‖Ã_Cx‖² + 2‖N‖⟨x, Nx⟩.

    Args:
        blocks: those of Ã_C, which are not those of Ã.
        base: Ã_C.
        norm: an upper bound of ‖N‖.
        mean: the mean of C, as its blocks give it, and the trace of N over n.
    """

    base: MonotoneOperator
    norm: float
    mean: float

    @cached_property
    def bounds(self) -> Bounds:
        base = self.base.bounds
        m, L = base.monotonicity, base.lipschitz + self.norm
        return Bounds(
            monotonicity=m,
            symmetric=base.symmetric + self.norm,
            skew=base.skew,
            lipschitz=L,
            gain=min(base.gain + self.norm, gain_bound(m, L)),
        )

    def reflected_factor(self, step: float) -> float:
        g = max(self._of_base(step), step * self.norm)
        return min(super().reflected_factor(step), math.sqrt((g - 1) / (g + 1)) if math.isfinite(g) else math.inf)

    def _of_base(self, step: float) -> float:
        """√2·g_C(√2α)."""
        square = self.base.reflected_factor(math.sqrt(2) * step) ** 2
        return math.sqrt(2) * (1 + square) / (1 - square) if square < 1 else math.inf

    @cached_property
    def best_reflected(self) -> StepChoice:
        """The best of 1/L and of the step that is best for C, over √2 and halved as long as the term asks for it."""
        candidates = [1 / self.bounds.lipschitz, float(self.base.best_reflected.step) / math.sqrt(2)]
        while len(candidates) < _HALVINGS and candidates[-1] * self.norm > self._of_base(candidates[-1]):
            candidates.append(candidates[-1] / 2)
        step = min(candidates, key=self.reflected_factor)
        return StepChoice(step=step, factor=self.reflected_factor(step))
