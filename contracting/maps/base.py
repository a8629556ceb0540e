"""Linear maps z ↦ Wz on batches of rows: what the solvers, the flows and the certificates may ask of a weight.

A map is immutable; whatever is expensive and depends on its values alone (resolvents, bounds, factors) is computed once
and remembered on the map itself. New weights are a new map; a tensor changed in place is noticed (``memory``).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass, fields, replace
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from contracting.display import Displayed
from contracting.errors import PreconditionError
from contracting.maps.bounded import FactoredOperator
from contracting.maps.counting import counted
from contracting.maps.estimates import Estimates, estimate, rough_norm
from contracting.maps.operator import MonotoneOperator
from contracting.memory import Remembering
from contracting.metrics import Metric, WeightedL2
from contracting.types import Step

# Blocks up to this size have their eigenvalues computed although nobody asked for them: with larger ones that takes
# longer than the solves which a better step would shorten.
_EXACT_LIMIT = 300


# Of larger blocks no eigenvalues or singular values are computed, which take seconds from n = 1,000 on, and a solve
# needs about seventeen of them: their bounds come from products and Cholesky factorisations.
_DECOMPOSED = 500


class OfTensors:
    """A frozen dataclass that depends on its fields that are tensors, and on the tensors of fields like itself."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors it depends on, in the order of its fields; gradients flow to these."""
        parts = self._parts().values()
        return tuple(t for part in parts for t in ((part,) if isinstance(part, Tensor) else part.tensors()))

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """The same on other tensors (detached copies, leaves of a new graph, …)."""
        rest, made = iter(tensors), {}
        for name, part in self._parts().items():
            own = isinstance(part, Tensor)
            made[name] = next(rest) if own else part.with_tensors(list(islice(rest, len(part.tensors()))))
        return replace(self, **made)

    def _parts(self) -> dict[str, Any]:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if isinstance(part, (Tensor, OfTensors))}


class LinearMap(Displayed, OfTensors, Remembering):
    r"""A linear map W on Rⁿ acting on rows: (batch, n) ↦ (batch, n).

    A map of one's own *must* bring

    * ``size``: n;
    * ``tensors()`` and ``with_tensors(tensors)``: what W depends on, and the same map on other tensors; a frozen
      dataclass has both, for those of its fields that are tensors or maps;
    * ``apply(z)``: rows of Wz, differentiable in z and in the tensors;
    * ``make_adjoint()``: the map Wᵀ.

    With these it can be solved by methods that need products only, and be analysed exactly where n is small. It *may*
    bring more, each of which has a default here:

    * ``make_resolvent(step)`` and ``combined(scale, shift)``, for Peaceman–Rachford and whatever else inverts; without
      them these methods refuse the map;
    * ``blocks(metric)`` and ``block_size``: I − W as a block-diagonal matrix, from which bounds, factors and steps are
      computed; by default its matrix, one block. A circular convolution has one small block per frequency;
    * ``make_operator(metric)`` and ``make_estimates(metric)``, where bounds are known without blocks;
    * ``to_dense``, ``affine``, ``iterated``, ``laid_out``, ``pullback`` and ``make_reflection``, where it is faster.

    Hooks named ``make_…`` compute; ``adjoint``, ``resolvent``, ``reflection``, ``operator`` and ``estimates`` ask them
    once and remember. A map and its adjoint know each other: what is known of the adjoint is found on the map.
    ``contracting.contracts.LinearMapContract`` tests all that is promised here.
    """

    _transposed_from: LinearMap | None = None  # the map that this one was made from as its adjoint

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in ("apply", "affine"):  # the products that ``Solution.map_evals`` counts
            if name in vars(cls):
                setattr(cls, name, counted(vars(cls)[name]))

    @property
    @abstractmethod
    def size(self) -> int:
        """Dimension n of the state."""

    @abstractmethod
    def apply(self, z: Tensor) -> Tensor:
        """Rows of W z: (..., n) -> (..., n)."""

    @abstractmethod
    def make_adjoint(self) -> LinearMap:
        """Wᵀ, on tensors that are views of these, or made of them."""

    def make_resolvent(self, step: Step) -> LinearMap:
        """What ``resolvent`` computes, differentiable."""
        raise PreconditionError(
            f"{type(self).__name__} has no resolvent; use ForwardBackward() or Tseng(), which need products only, or "
            "bring make_resolvent(step)"
        )

    @property
    def resolvent_products(self) -> float:
        """What a resolvent costs before its first use, in products of W with one row; ∞ where there is none."""
        return math.inf if type(self).make_resolvent is LinearMap.make_resolvent else 0.0

    def make_reflection(self, step: Step) -> LinearMap:
        """What ``reflection`` computes, differentiable."""
        return self.resolvent(step).combined(2.0, -1.0)

    def combined(self, scale: float, shift: float) -> LinearMap:
        """scale·W + shift·I, as a map of the same kind."""
        raise PreconditionError(f"{type(self).__name__} has no multiples; bring combined(scale, shift)")

    def blocks(self, metric: Metric) -> Tensor:
        """Ã = Λ^½(I − W)Λ^−½ as diagonal blocks in a unitary basis: (blocks, k, k), float64 or complex128, on the CPU.

        Raises:
            PreconditionError: if the map has no such form in this metric.
        """
        root = self.weights_of(metric).sqrt()
        blocks = (self.to_dense().detach().to("cpu", torch.float64) * root[:, None]).div_(root).neg_()
        blocks.diagonal().add_(1)
        return blocks[None]

    @property
    def block_size(self) -> int:
        """Size k of the blocks of ``blocks``."""
        return self.size

    def make_operator(self, metric: Metric) -> MonotoneOperator:
        """What ``operator`` remembers, of weights that are in no graph."""
        blocks = self.blocks(metric)
        return (MonotoneOperator if blocks.shape[-1] <= _DECOMPOSED else FactoredOperator)(blocks)

    def make_estimates(self, metric: Metric) -> Estimates | None:
        """What ``estimates`` remembers, of weights that are in no graph."""
        return estimate(self.blocks(metric), single=self.dtype == torch.float32)

    def weights_of(self, metric: Metric) -> Tensor:
        """Λ in float64 on the CPU, (n,).

        Raises:
            PreconditionError: if the metric is not diagonal.
        """
        if not isinstance(metric, WeightedL2):
            raise PreconditionError(
                f"bounds of a {type(self).__name__} need a WeightedL2 metric, got {type(metric).__name__}; "
                "the splitting methods and their rates live in a diagonal metric"
            )
        return metric.weights.detach().to("cpu", torch.float64)

    @property
    def has_matrix(self) -> bool:
        """Whether W is there as a matrix, so that ``to_dense`` costs next to nothing."""
        return False

    def to_dense(self) -> Tensor:
        """The matrix of W, shape (n, n)."""
        return self.apply(torch.eye(self.size, dtype=self.dtype, device=self.device)).mT

    def affine(self, z: Tensor, offset: Tensor, out: Tensor | None = None) -> Tensor:
        """Rows of W z + offset: (batch, n) -> (batch, n), into ``out`` where that is given (no gradient then)."""
        return torch.add(self.apply(z), offset, out=out)

    def iterated(self, h: Callable[..., Tensor], offset: Tensor, u: Tensor, steps: int) -> Tensor:
        """u after u ← W h(u) + offset so often, in no graph: (batch, n) -> (batch, n).

        Args:
            h: a function (u, out=…) of rows that writes into ``out``.
            offset: (batch, n).
            u: where to begin, (batch, n), which is not changed.
            steps: how many.
        """
        between, out = torch.empty_like(u), None
        for _ in range(steps):
            u = out = self.affine(h(u, out=between), offset, out)
        return u

    def laid_out(self, rows: Tensor) -> Tensor:
        """The same (batch, n), laid out in memory as products with this map are fastest."""
        return rows

    def pullback(self, z: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        """Gradient of ⟨cotangent, W z⟩ with respect to ``tensors()``, itself differentiable."""
        vjp: Callable[[Tensor], tuple[Tensor, ...]]
        _, vjp = torch.func.vjp(lambda *tensors: self.with_tensors(tensors).apply(z), *self.tensors())  # type: ignore[misc]
        return vjp(cotangent)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the map."""
        return self.tensors()[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of the map."""
        return self.tensors()[0].device

    def to(self, dtype: torch.dtype) -> LinearMap:
        """The same map in another precision."""
        return self.with_tensors([t.to(dtype) for t in self.tensors()])

    @property
    def adjoint(self) -> LinearMap:
        """The transposed map Wᵀ."""
        if self._transposed_from is not None:
            return self._transposed_from
        adjoint = self.make_adjoint()
        adjoint.__dict__["_transposed_from"] = self
        return adjoint

    def resolvent(self, step: Step) -> LinearMap:
        """(I + α(I − W))⁻¹ as a map; α scalar, or (n,) for the diagonal step D in (I + D(I − W))⁻¹.

        Raises:
            PreconditionError: if the matrix is singular or this map has no resolvent for such a step.
        """
        return self._of_step("resolvent", step, lambda linear: linear.make_resolvent(step))

    def reflection(self, step: Step) -> LinearMap:
        """2(I + α(I − W))⁻¹ − I, the reflected resolvent; α as in ``resolvent``."""
        return self._of_step("reflection", step, lambda linear: linear.make_reflection(step))

    def _of_step(self, what: str, step: Step, make: Callable[[LinearMap], LinearMap]) -> LinearMap:
        if self._transposed_from is not None and not isinstance(step, Tensor):
            return self._transposed_from._of_step(what, step, make).adjoint
        return make(self) if self._in_graph else self.remember(what, step, lambda: make(self))

    def operator(self, metric: Metric) -> MonotoneOperator:
        """A = I − W seen in ``metric``: its bounds, contraction factors and best steps, computed once."""
        if self._transposed_from is not None:  # Ã and Ãᵀ have the same norms
            return self._transposed_from.operator(metric.dual())
        values = self.detached
        return values.remember("operator", metric, lambda: values.make_operator(metric))

    def estimates(self, metric: Metric) -> Estimates | None:
        """Cheap estimates of m and L in ``metric``, computed once; None where A is not strongly monotone there.

        Raises:
            PreconditionError: as ``blocks``.
        """
        if self._transposed_from is not None:
            return self._transposed_from.estimates(metric.dual())
        values = self.detached
        return values.guide("estimates", metric, lambda: values.make_estimates(metric))

    def exactly_analysed(self, metric: Metric) -> bool:
        """Whether ``operator`` is worth its eigenvalues: W will stay, and its blocks are of moderate size."""
        return not self.changing and self.block_size <= _EXACT_LIMIT

    @property
    def rough_norm(self) -> float:
        """‖W‖₂ from below, usually within a few per cent: some power iterations on WᵀW, enough to judge rounding."""
        values = self.untransposed

        def compute() -> float:
            start = torch.empty(1, values.size, dtype=values.dtype, device=values.device)
            return rough_norm(values.apply, values.adjoint.apply, start)

        return values.remember("rough norm", None, compute)

    @property
    def norm_bound(self) -> float:
        """‖W‖₂ from above, from one look at the entries; ∞ where these say nothing of it."""
        return math.inf

    @property
    def finite(self) -> bool:
        """Whether every entry of W is finite."""
        values = self.untransposed
        if math.isfinite(values.norm_bound):
            return True
        return values.remember("finite", None, lambda: all(_all_finite(t) for t in values.tensors()))

    @property
    def _in_graph(self) -> bool:
        """Whether W is part of a graph, which nothing that is remembered may outlive."""
        owner = self._transposed_from or self
        if owner._momentary:  # it was cut from one
            return False
        for tensor in self.tensors():
            if tensor.requires_grad:
                return True
        return False

    @property
    def changing(self) -> bool:
        """Whether W is part of a graph or was cut from one: the next optimiser step will bring other values."""
        values = self._transposed_from or self
        return values._momentary or values._in_graph

    @cached_property
    def _momentary(self) -> bool:
        return False

    @property
    def watched(self) -> tuple[Tensor, ...]:
        """The tensors whose change in place makes what is remembered stale; an adjoint may hold copies of them."""
        return self.tensors() if self._transposed_from is None else self._transposed_from.watched

    @property
    def detached(self) -> LinearMap:
        """The same map cut from the autograd graph, made once so that its analyses are shared by all who detach it."""
        if not self._in_graph:
            return self
        if self._transposed_from is not None:
            return self._transposed_from.detached.adjoint
        return self._cut() if torch.compiler.is_compiling() else self._memory.keep("detached", self._cut)

    def _cut(self) -> LinearMap:
        values = self.with_tensors([t.detach() for t in self.tensors()])
        values.__dict__.update(_momentary=True, _lineage=self._lineage)
        return values

    def start_anew(self) -> bool:
        """As of any ``Remembering``; what was guessed is on the map that W and Wᵀ have in common."""
        values = self.untransposed
        return super().start_anew() if values is self else values.start_anew()

    @property
    def untransposed(self) -> LinearMap:
        """The map that remembers what W and Wᵀ have in common; this one itself, unless it was made as an adjoint."""
        return (self._transposed_from or self).detached


@dataclass(frozen=True, eq=False, repr=False)
class Around(LinearMap):
    """A map that is made of another one, of the same size and with rows laid out as that one likes them."""

    inner: LinearMap

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def has_matrix(self) -> bool:
        return self.inner.has_matrix

    def laid_out(self, rows: Tensor) -> Tensor:
        return self.inner.laid_out(rows)


def _all_finite(tensor: Tensor) -> bool:
    # a finite sum has finite terms, and costs less than to look at each
    return math.isfinite(float(tensor.detach().sum())) or bool(torch.isfinite(tensor).all())
