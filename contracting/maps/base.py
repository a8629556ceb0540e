"""Linear maps z ↦ Wz on batches of rows: what the solvers, the flows and the certificates may ask of a weight.

A map is immutable; whatever is expensive and depends on its values alone (resolvents, bounds, factors) is computed once
and remembered on the map itself. New weights are a new map; a tensor changed in place is noticed (``memory``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from contracting.maps.estimates import Estimates, estimate
from contracting.maps.operator import MonotoneOperator
from contracting.memory import Lineage, Memory
from contracting.metrics import Metric
from contracting.types import Step

T = TypeVar("T")

_EXACT_LIMIT = 300  # the largest block whose eigenvalues are computed where nobody asked for them

class LinearMap(ABC):
    r"""A linear map W on Rⁿ acting on rows: (batch, n) ↦ (batch, n).

    The one thing an implementation must bring besides its action is ``blocks``: A = I − W written, in a unitary basis
    and in coordinates where the metric is Euclidean, as a block-diagonal matrix. A dense matrix is one block; a
    circular convolution has one small complex block per frequency. Bounds, contraction factors and optimal steps are
    computed from the blocks and therefore need no second implementation.

    A map and its adjoint know each other: resolvents, bounds and estimates of the adjoint are those of the map.
    """

    _transposed_from: LinearMap | None = None  # the map that this one was made from as its adjoint

    @property
    @abstractmethod
    def size(self) -> int:
        """Dimension n of the state."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors W depends on; gradients flow to these."""

    @abstractmethod
    def with_tensors(self, tensors: Sequence[Tensor]) -> LinearMap:
        """The same map on other tensors (detached copies, leaves of a new graph, …)."""

    @abstractmethod
    def apply(self, z: Tensor) -> Tensor:
        """Rows of W z: (..., n) -> (..., n)."""

    @abstractmethod
    def _transpose(self) -> LinearMap:
        """Wᵀ, which refers to this map by ``_transposed_from``."""

    @abstractmethod
    def _resolvent(self, step: Step) -> LinearMap:
        """What ``resolvent`` computes, differentiable."""

    @abstractmethod
    def blocks(self, metric: Metric) -> Tensor:
        """Ã = Λ^½(I − W)Λ^−½ as diagonal blocks in a unitary basis: (blocks, k, k), float64 or complex128, on the CPU.

        Raises:
            PreconditionError: if the map has no such form in this metric.
        """

    @abstractmethod
    def to_dense(self) -> Tensor:
        """The matrix of W, shape (n, n)."""

    @abstractmethod
    def combined(self, scale: float, shift: float) -> LinearMap:
        """scale·W + shift·I, as a map of the same kind."""

    def affine(self, z: Tensor, offset: Tensor, out: Tensor | None = None) -> Tensor:
        """Rows of W z + offset: (batch, n) -> (batch, n), into ``out`` where that is given (no gradient then)."""
        return torch.add(self.apply(z), offset, out=out)

    def steps_with(self, offset: Tensor) -> Callable[[Tensor, Tensor | None], Tensor]:
        """``affine`` with this offset as a function (z, out), for many calls."""
        return lambda z, out: self.affine(z, offset, out)

    def laid_out(self, rows: Tensor) -> Tensor:
        """The same (batch, n), laid out in memory as products with this map are fastest."""
        return rows

    @property
    def adjoint(self) -> LinearMap:
        """The transposed map Wᵀ."""
        return self._transposed_from or self._transpose()

    def resolvent(self, step: Step) -> LinearMap:
        """(I + α(I − W))⁻¹ as a map; α scalar, or (n,) for the diagonal step D in (I + D(I − W))⁻¹.

        Raises:
            PreconditionError: if the matrix is singular or this map has no resolvent for such a step.
        """
        if self._transposed_from is not None and not isinstance(step, Tensor):
            return self._transposed_from.resolvent(step).adjoint
        if self._in_graph:
            return self._resolvent(step)
        return self.remember("resolvent", step, lambda: self._resolvent(step))

    def reflection(self, step: Step) -> LinearMap:
        """2(I + α(I − W))⁻¹ − I, the reflected resolvent; α as in ``resolvent``."""
        if self._transposed_from is not None and not isinstance(step, Tensor):
            return self._transposed_from.reflection(step).adjoint
        if self._in_graph:
            return self._reflection(step)
        return self.remember("reflection", step, lambda: self._reflection(step))

    def _reflection(self, step: Step) -> LinearMap:
        return self.resolvent(step).combined(2.0, -1.0)

    @property
    def _in_graph(self) -> bool:
        """Whether W is part of a graph, which nothing that is remembered may outlive."""
        return any(t.requires_grad for t in self.tensors())

    @property
    def changing(self) -> bool:
        """Whether W is part of a graph or was cut from one: the next optimiser step will bring other values."""
        if self._transposed_from is not None:
            return self._transposed_from.changing
        return self._momentary or self._in_graph

    @cached_property
    def _momentary(self) -> bool:
        return False

    def exactly_analysed(self, metric: Metric) -> bool:
        """Whether ``operator`` is worth its eigenvalues: W will stay, and its blocks are of moderate size."""
        return not self.changing and self.block_size <= _EXACT_LIMIT

    @property
    def block_size(self) -> int:
        """Size k of the blocks of ``blocks``."""
        return self.size

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the map."""
        return self.tensors()[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of the map."""
        return self.tensors()[0].device

    @cached_property
    def _memory(self) -> Memory:
        return Memory()

    @property
    def _watched(self) -> tuple[Tensor, ...]:
        """The tensors whose change in place makes what is remembered stale; an adjoint may hold copies of them."""
        return self.tensors() if self._transposed_from is None else self._transposed_from._watched

    def remember(self, what: str, owner: Any, compute: Callable[[], T]) -> T:
        """Compute ``what`` once per map and ``owner`` (a metric or tensor step by identity, a number by value).

        Computed again after a change in place of the map or its owner; of each kind, only the latest few are kept.
        """
        return self._memory.recall(what, self._watched, compute, owner)

    def descend_from(self, lineage: Lineage) -> None:
        """Take over what guided the solves with earlier weights, for as long as it may serve."""
        lineage.next_generation()
        self.__dict__["_lineage"] = lineage

    @cached_property
    def _lineage(self) -> Lineage | None:
        return None

    @cached_property
    def _guides(self) -> Memory:
        return Memory()

    def guide(self, what: str, owner: Any, compute: Callable[[], T], key: float | None = None) -> T:
        """``remember``, or what is known of earlier weights for this key: for what costs steps at worst."""

        def found() -> T:
            lineage = self._lineage
            if lineage is None:
                return compute()
            guess = lineage.guess(what, key)
            if guess is None:
                guess = compute()
                lineage.keep(what, key, guess)
            else:
                self.__dict__["_guessed"] = True
            return cast(T, guess)

        return self._guides.recall(what, self._watched, found, owner)

    def start_anew(self) -> bool:
        """Forget what is known of earlier weights only, as a solve has failed with it; False if nothing was guessed."""
        values = self.untransposed
        guessed: bool = values.__dict__.pop("_guessed", False)
        if guessed and values._lineage is not None:
            values._lineage.forget()
            values.__dict__["_guides"] = Memory()
        return guessed

    @property
    def detached(self) -> LinearMap:
        """The same map cut from the autograd graph, made once so that its analyses are shared by all who detach it."""
        if not self._in_graph:
            return self
        if self._transposed_from is not None:
            return self._transposed_from.detached.adjoint
        return self.remember("detached", None, self._cut)

    def _cut(self) -> LinearMap:
        values = self.with_tensors([t.detach() for t in self.tensors()])
        values.__dict__.update(_momentary=True, _lineage=self._lineage)
        return values

    def to(self, dtype: torch.dtype) -> LinearMap:
        """The same map in another precision."""
        return self.with_tensors([t.to(dtype) for t in self.tensors()])

    @property
    def untransposed(self) -> LinearMap:
        """The map that remembers what W and Wᵀ have in common; this one itself, unless it was made as an adjoint."""
        return self.detached if self._transposed_from is None else self._transposed_from.untransposed

    @property
    def rough_norm(self) -> float:
        """‖W‖₂ from below, usually within a few per cent: some power iterations on WᵀW, enough to judge rounding."""
        values = self.untransposed
        return values.remember("rough norm", None, lambda: _power_iteration(values))

    @property
    def finite(self) -> bool:
        """Whether every entry of W is finite."""
        values = self.untransposed
        return values.remember("finite", None, lambda: all(_all_finite(t) for t in values.tensors()))

    def pullback(self, z: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        """Gradient of ⟨cotangent, W z⟩ with respect to ``tensors()``, itself differentiable."""
        vjp: Callable[[Tensor], tuple[Tensor, ...]]
        _, vjp = torch.func.vjp(lambda *tensors: self.with_tensors(tensors).apply(z), *self.tensors())  # type: ignore[misc]
        return vjp(cotangent)

    def operator(self, metric: Metric) -> MonotoneOperator:
        """A = I − W seen in ``metric``: its bounds, contraction factors and best steps, computed once."""
        if self._transposed_from is not None:  # Ã and Ãᵀ have the same norms
            return self._transposed_from.operator(metric.dual())
        values = self.detached
        return values.remember("operator", metric, lambda: values._operator(metric))

    def _operator(self, metric: Metric) -> MonotoneOperator:
        return MonotoneOperator(self.blocks(metric))

    def estimates(self, metric: Metric) -> Estimates | None:
        """Cheap estimates of m and L in ``metric``, computed once; None where A is not strongly monotone there.

        Raises:
            PreconditionError: as ``blocks``.
        """
        if self._transposed_from is not None:
            return self._transposed_from.estimates(metric.dual())
        values = self.detached
        return values.guide("estimates", metric, lambda: values._estimates(metric))

    def _estimates(self, metric: Metric) -> Estimates | None:
        return estimate(self.blocks(metric), single=self.dtype == torch.float32)


def _all_finite(tensor: Tensor) -> bool:
    # a finite sum has finite terms, and costs less than to look at each
    return math.isfinite(float(tensor.detach().sum())) or bool(torch.isfinite(tensor).all())


@torch.no_grad()
def _power_iteration(linear: LinearMap, steps: int = 6) -> float:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, linear.size, generator=generator).to(dtype=linear.dtype, device=linear.device)
    size = 0.0
    for _ in range(steps):
        x = x / torch.linalg.vector_norm(x).clamp_min(torch.finfo(x.dtype).tiny)
        y = linear.apply(x)
        size = float(torch.linalg.vector_norm(y))
        x = linear.adjoint.apply(y)
    return size










