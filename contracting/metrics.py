"""Metrics: the norms in which maps are Lipschitz and flows contract.

Every metric answers the same questions: the norm of a vector, the induced norm of a matrix, and the matrix measure
(logarithmic norm) of a matrix. All are exact and batched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from contracting import checks
from contracting.display import Displayed
from contracting.errors import InputError
from contracting.memory import Memory

T = TypeVar("T")

# Entries whose squares are held at a time: they stay in the cache of a core.
_TOGETHER = 100_000


class Metric(Displayed, ABC):
    r"""A norm on Rⁿ with its induced matrix norm and matrix measure μ(M) = lim_{h→0⁺} (‖I + hM‖ − 1)/h.

    A metric of your own subclasses this and must bring ``size``, ``tensors``, ``vector_norm``, ``induced_norm``,
    ``log_norm``, ``make_dual``, ``rescaled`` and ``to``; what it is given has been checked to be of its size.
    ``contracting.contracts.MetricContract`` has the tests that each must pass. Flows can then be simulated, tracked and
    sampled in it; a certificate needs a proof, and the checker knows those of the four metrics of this file and of
    ``LiftedForm``.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """Dimension n of the space."""

    @property
    def convex(self) -> bool:
        """Whether its balls are convex, as those of every norm are; a ``LiftedForm`` may be no more than a gauge."""
        return True

    @property
    def words(self) -> str:
        """What it is, in words."""
        return type(self).__name__

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors the norm depends on."""

    @abstractmethod
    def vector_norm(self, vectors: Tensor) -> Tensor:
        """What ``norm`` computes: (..., n) -> (...), differentiable."""

    @abstractmethod
    def induced_norm(self, matrices: Tensor) -> Tensor:
        """What ``operator_norm`` computes, exactly and not a bound: (..., n, n) -> (...)."""

    @abstractmethod
    def log_norm(self, matrices: Tensor) -> Tensor:
        """What ``matrix_measure`` computes, exactly and not a bound: (..., n, n) -> (...)."""

    @abstractmethod
    def make_dual(self) -> Metric:
        """The dual norm max {⟨x, y⟩ : ‖y‖ ≤ 1} as a new object; ``dual`` remembers it."""

    @abstractmethod
    def rescaled(self, scale: Tensor) -> Metric:
        """The same norm in the coordinates x' = scale∘x, so that rescaled.norm(scale∘x) = norm(x); scale > 0, (n,)."""

    @abstractmethod
    def to(self, like: Tensor) -> Metric:
        """The same metric in the dtype and on the device of ``like``."""

    def norm(self, vectors: Tensor) -> Tensor:
        """Norm of each vector, in the wider of the dtypes: (..., n) -> (...).

        Raises:
            InputError: if the vectors are of another size.
        """
        metric, vectors = self._beside(checks.last_size("vectors", vectors, self.size))
        return metric.vector_norm(vectors)

    def operator_norm(self, matrices: Tensor) -> Tensor:
        """Induced norm of each matrix: (..., n, n) -> (...).

        Raises:
            InputError: if the matrices are of another size.
        """
        metric, matrices = self._beside(self._fitting(matrices))
        return metric.induced_norm(matrices)

    def matrix_measure(self, matrices: Tensor) -> Tensor:
        """Matrix measure (log norm) of each matrix: (..., n, n) -> (...).

        The flow z' = f(z) contracts at rate c in this metric iff the measure of its Jacobian is ≤ −c everywhere.

        Raises:
            InputError: if the matrices are of another size.
        """
        metric, matrices = self._beside(self._fitting(matrices))
        return metric.log_norm(matrices)

    def _beside(self, values: Tensor) -> tuple[Metric, Tensor]:
        """This metric and the values, both in the wider of their dtypes and on the device of the values."""
        own = self.tensors()[0]
        if values.is_complex() or (own.dtype, own.device) == (values.dtype, values.device):
            return self, values
        values = values.to(torch.promote_types(own.dtype, values.dtype))
        return self.to(values), values

    def _fitting(self, matrices: Tensor) -> Tensor:
        if tuple(matrices.shape[-2:]) != 2 * (self.size,):  # a metric of one entry would broadcast
            raise InputError(
                f"matrices must have shape (..., {self.size}, {self.size}), as the metric acts on {self.size} entries, "
                f"got {tuple(matrices.shape)}"
            )
        return matrices

    def dual(self) -> Metric:
        """The dual norm, in which the transposed map has the same induced norm; the dual of the dual is this object."""
        return self._once("dual", self._linked_dual)

    def _linked_dual(self) -> Metric:
        dual = self.make_dual()
        dual._once("dual", lambda: self)
        return dual

    @cached_property
    def _memory(self) -> Memory:
        return Memory()

    def _once(self, what: str, compute: Callable[[], T]) -> T:
        return self._memory.recall(what, self.tensors(), compute)


@dataclass(frozen=True, eq=False, repr=False)
class _Weighted(Metric):
    weights: Tensor

    def __post_init__(self) -> None:
        if checks.floating_tensor("weights", self.weights).ndim != 1:
            raise InputError(f"weights must have shape (n,), got {tuple(self.weights.shape)}")
        checks.positive_tensor("weights", self.weights)

    @property
    def size(self) -> int:
        return self.weights.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weights,)

    def to(self, like: Tensor) -> Metric:
        return type(self)(self.weights.to(dtype=like.dtype, device=like.device))

    def rescaled(self, scale: Tensor) -> Metric:
        return type(self)(self.weights / scale)


@dataclass(frozen=True, eq=False, repr=False)
class WeightedL2(_Weighted):
    r"""‖x‖ = (Σ λᵢ xᵢ²)^½: the norm of ⟨x, y⟩_Λ = xᵀΛy.

    Args:
        weights: λ > 0, shape (n,).

    Raises:
        InputError: if the weights are not a positive floating-point vector.
    """

    @classmethod
    def identity(cls, size: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> WeightedL2:
        """The Euclidean norm on Rⁿ, n ≥ 1."""
        return cls(torch.ones(checks.whole_number("size", size), dtype=dtype, device=device))

    @property
    def root(self) -> Tensor:
        """λ^½, shape (n,)."""
        if self.weights.requires_grad:
            return self.weights.sqrt()
        return self._once("root", self.weights.sqrt)

    @property
    def matrix(self) -> Tensor:
        """Λ, so that ‖x‖² = xᵀΛx as in a ``FullP``: (n, n)."""
        return torch.diag(self.weights)

    def whiten(self, matrices: Tensor) -> Tensor:
        """Λ^½ M Λ^−½: the matrix in coordinates where this metric is Euclidean. (..., n, n) -> (..., n, n)."""
        return self._fitting(matrices) * self.root[:, None] / self.root[None, :]

    def vector_norm(self, vectors: Tensor) -> Tensor:
        return euclidean(vectors * self.root)

    def induced_norm(self, matrices: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(self.whiten(matrices), 2)

    def log_norm(self, matrices: Tensor) -> Tensor:
        return _symmetric_measure(self.whiten(matrices))

    def rescaled(self, scale: Tensor) -> WeightedL2:
        return WeightedL2(self.weights / scale / scale)

    def make_dual(self) -> WeightedL2:
        return WeightedL2(1.0 / self.weights)


class _Sums(_Weighted):
    """A norm in which the norm and the measure of a matrix are its largest weighted sum along one axis."""

    summed: ClassVar[int]

    def induced_norm(self, matrices: Tensor) -> Tensor:
        return self._scaled(matrices).abs().sum(self.summed).amax(-1)

    def log_norm(self, matrices: Tensor) -> Tensor:
        scaled = self._scaled(matrices)
        diagonal = scaled.diagonal(dim1=-2, dim2=-1)  # which keeps its sign
        return (scaled.abs().sum(self.summed) - diagonal.abs() + diagonal).amax(-1)

    def _scaled(self, matrices: Tensor) -> Tensor:
        return matrices * self.weights[:, None] / self.weights[None, :]


@dataclass(frozen=True, eq=False, repr=False)
class WeightedL1(_Sums):
    r"""‖x‖ = Σ λᵢ |xᵢ|; the induced norm and the measure are weighted column sums.

    Args:
        weights: λ > 0, shape (n,).
    """

    summed: ClassVar[int] = -2

    def vector_norm(self, vectors: Tensor) -> Tensor:
        return (vectors.abs() * self.weights).sum(-1)

    def make_dual(self) -> WeightedLinf:
        return WeightedLinf(1.0 / self.weights)


@dataclass(frozen=True, eq=False, repr=False)
class WeightedLinf(_Sums):
    r"""‖x‖ = max λᵢ |xᵢ|; the induced norm and the measure are weighted row sums.

    Args:
        weights: λ > 0, shape (n,).
    """

    summed: ClassVar[int] = -1

    def vector_norm(self, vectors: Tensor) -> Tensor:
        return (vectors.abs() * self.weights).amax(-1)

    def make_dual(self) -> WeightedL1:
        return WeightedL1(1.0 / self.weights)


@dataclass(frozen=True, eq=False, repr=False)
class FullP(Metric):
    r"""‖x‖ = (xᵀPx)^½ for a symmetric positive definite P.

    Args:
        matrix: P, shape (n, n), symmetric positive definite.

    Raises:
        InputError: if P is not square, finite, symmetric and positive definite.
    """

    matrix: Tensor

    def __post_init__(self) -> None:
        P = checks.floating_tensor("matrix", self.matrix).detach()
        if P.ndim != 2 or P.shape[0] != P.shape[1] or not len(P):
            raise InputError(f"matrix must have shape (n, n) with n ≥ 1, got {tuple(P.shape)}")
        checks.finite("matrix", P)
        root = P.diagonal().clamp_min(0).sqrt()  # what rounding is relative to, whatever the units of the entries
        if bool(((P - P.mT).abs() > 100 * torch.finfo(P.dtype).eps * root[:, None] * root).any()):
            raise InputError("matrix must be symmetric; pass (P + P.T) / 2")
        if int(torch.linalg.cholesky_ex(P)[1]) != 0:
            raise InputError("matrix must be positive definite: its Cholesky factorisation failed")

    @property
    def _upper(self) -> Tensor:
        """R with P = RᵀR, so that ‖x‖ = ‖Rx‖₂."""
        if self.matrix.requires_grad:
            return torch.linalg.cholesky(self.matrix).mT
        return self._once("root", lambda: torch.linalg.cholesky(self.matrix).mT)

    @property
    def size(self) -> int:
        return self.matrix.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.matrix,)

    def to(self, like: Tensor) -> FullP:
        return FullP(self.matrix.to(dtype=like.dtype, device=like.device))

    def whiten(self, matrices: Tensor) -> Tensor:
        """R M R⁻¹ with P = RᵀR: the matrix in coordinates where this metric is Euclidean."""
        return torch.linalg.solve_triangular(self._upper, self._upper @ self._fitting(matrices), upper=True, left=False)

    def vector_norm(self, vectors: Tensor) -> Tensor:
        return euclidean(vectors @ self._upper.mT)

    def induced_norm(self, matrices: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(self.whiten(matrices), 2)

    def log_norm(self, matrices: Tensor) -> Tensor:
        return _symmetric_measure(self.whiten(matrices))

    def rescaled(self, scale: Tensor) -> FullP:
        return FullP(self.matrix / scale[:, None] / scale[None, :])

    def make_dual(self) -> FullP:
        inverse = torch.cholesky_inverse(self._upper.mT)
        return FullP((inverse + inverse.mT) / 2)


def euclidean(vectors: Tensor) -> Tensor:
    """‖x‖₂, also where the squares of the entries leave the range of the dtype: (..., n) -> (...).

    Scaled by a power of two, which leaves every bit of the others as it is.
    """
    if not vectors.numel():
        return torch.linalg.vector_norm(vectors, dim=-1)
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    exponent = torch.where(torch.isfinite(largest), torch.frexp(largest)[1] - 1, 0)
    power = torch.ldexp(torch.ones_like(largest), exponent)  # at most the largest entry, so never infinite
    return power.squeeze(-1) * torch.linalg.vector_norm(vectors / power, dim=-1)


def lengths(rows: Tensor) -> Tensor:
    """‖x‖₂ of every row, of whatever layout: (batch, n) -> (batch,), for numbers whose squares stay in range."""
    if rows.is_contiguous() or not rows.mT.is_contiguous():
        return torch.linalg.vector_norm(rows, dim=-1)
    # entries that lie together are of different rows, and torch's norm would go through memory once for each row
    parts = [part.square().sum(0) for part in torch.split(rows.mT, max(1, _TOGETHER // rows.shape[0]))]
    return (parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)).sqrt()


def _symmetric_measure(matrices: Tensor) -> Tensor:
    return torch.linalg.eigvalsh((matrices + matrices.mT) / 2)[..., -1]
