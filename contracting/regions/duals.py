r"""Values with their derivatives over boxes: what the operations that a field is made of do to both.

A ``Dual`` holds an interval for a tensor and, for each coordinate of the state, one for its derivative by that
coordinate. The derivative is taken by the chain rule here, so that the range of σ′ is that of the function σ′ and
a field that jumps is noticed where it jumps: then nothing is known of its derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from contracting.errors import InputError
from contracting.regions import intervals as iv
from contracting.regions.functions import (
    FUNCTIONS,
    ScalarFunction,
    clamp,
    real_power,
    softplus,
    whole_power,
)
from contracting.regions.intervals import Interval

Rule = Callable[..., Any]


@dataclass(frozen=True, slots=True, eq=False)
class Dual:
    """A tensor over boxes.

    Attributes:
        value: of shape S.
        slope: its derivative by each of the n coordinates, (n, *S); None where it depends on none.
    """

    value: Interval
    slope: Interval | None = None

    def slopes(self, n: int) -> Interval:
        """The derivative, zero where there is none: (n, *S)."""
        if self.slope is not None:
            return self.slope
        return iv.exactly(torch.zeros((n, *self.value.shape), dtype=torch.float64))


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The answer to a comparison over boxes.

    Attributes:
        surely: whether it is true at every point of the box.
        perhaps: whether it may be true at one.
        n: how many coordinates the state has, if the answer depends on it; 0 if only on constants and the time.
    """

    surely: Tensor
    perhaps: Tensor
    n: int = 0

    @property
    def decided(self) -> Tensor:
        """Whether the answer is the same everywhere in the box."""
        return self.surely == self.perhaps


def known(value: Any) -> Dual:
    """A number, a tensor that depends on no box, or a truth, which is 0 or 1, as a dual."""
    if isinstance(value, Truth):
        return select(value, 1.0, 0.0)
    return value if isinstance(value, Dual) else Dual(iv.exactly(value))


def _aligned(slope: Interval, shape: torch.Size) -> Interval:
    """Derivatives of a tensor that is broadcast to a shape: (n, *S) -> (n, *shape)."""
    n, own = slope.shape[0], tuple(slope.shape[1:])
    return slope.map(lambda x: x.reshape(n, *(1,) * (len(shape) - len(own)), *own).expand(n, *shape))


def _sum_of(*slopes: Interval | None) -> Interval | None:
    present = [slope for slope in slopes if slope is not None]
    return reduce(iv.add, present) if present else None


def _scaled(slope: Interval | None, factor: Interval, shape: torch.Size) -> Interval | None:
    if slope is None:
        return None
    return iv.multiply(_aligned(slope, shape), factor)


def add(a: Any, b: Any, *, alpha: float = 1) -> Dual:
    """a + αb."""
    if alpha != 1:
        b = multiply(b, alpha)
    a, b = known(a), known(b)
    value = iv.add(a.value, b.value)
    slopes = [None if x.slope is None else _aligned(x.slope, value.shape) for x in (a, b)]
    return Dual(value, _sum_of(*slopes))


def negate(a: Any) -> Dual:
    """−a."""
    a = known(a)
    return Dual(iv.negative(a.value), None if a.slope is None else iv.negative(a.slope))


def subtract(a: Any, b: Any, *, alpha: float = 1) -> Dual:
    """a − αb."""
    return add(a, negate(b), alpha=alpha)


def multiply(a: Any, b: Any) -> Dual:
    """ab; of a thing with itself, its square."""
    if a is b:
        return apply(FUNCTIONS["square"], a)
    a, b = known(a), known(b)
    value = iv.multiply(a.value, b.value)
    return Dual(
        value, _sum_of(_scaled(a.slope, b.value, value.shape), _scaled(b.slope, a.value, value.shape))
    )


def divide(a: Any, b: Any, *, rounding_mode: str | None = None) -> Dual:
    """a/b, with the derivative (a′ − (a/b)b′)/b."""
    if rounding_mode is not None:
        raise InputError(f"a division rounded by {rounding_mode!r} jumps: a region cannot be proved for it")
    a, b = known(a), known(b)
    value = iv.divide(a.value, b.value)
    rest = _scaled(b.slope, value, value.shape)
    top = _sum_of(
        None if a.slope is None else _aligned(a.slope, value.shape), None if rest is None else iv.negative(rest)
    )
    return Dual(value, None if top is None else _unless_unbounded(iv.divide(top, b.value), value))


def _unless_unbounded(slope: Interval, value: Interval) -> Interval:
    return iv.chosen(value.bounded, slope, iv.everything(slope.lo))


def apply(function: ScalarFunction, a: Any) -> Dual:
    """σ(a)."""
    a = known(a)
    value = function.value(a.value)
    if a.slope is None:
        return Dual(value)
    slope = iv.multiply(a.slope, function.derivative(a.value, value))
    return Dual(value, slope if function.everywhere else _unless_unbounded(slope, value))


def power(a: Any, b: Any) -> Dual:
    """a^b, for a whole or real exponent, or a positive base."""
    if isinstance(b, (int, float)):
        whole = float(b).is_integer() and abs(b) < 2**10
        return apply(whole_power(int(b)) if whole else real_power(float(b)), a)
    if isinstance(a, (int, float)) and not a > 0:
        raise InputError(f"a power with the base {a} and an exponent that varies has no real value everywhere")
    return apply(FUNCTIONS["exp"], multiply(b, apply(FUNCTIONS["log"], a)))


def add_in_logarithms(a: Any, b: Any) -> Dual:
    """log(eᵃ + eᵇ)."""
    return add(b, apply(softplus(1.0, math.inf), subtract(a, b)))


def matmul(a: Any, b: Any) -> Dual:
    """ab of (batches of) matrices."""
    a, b = known(a), known(b)
    value = iv.matmul(a.value, b.value)
    left = None if a.slope is None else iv.matmul(a.slope, b.value)
    right = None if b.slope is None else iv.matmul(a.value, b.slope)
    return Dual(value, _sum_of(left, right))


def add_matmul(a: Any, b: Any, c: Any, *, beta: float = 1, alpha: float = 1) -> Dual:
    """βa + αbc."""
    return add(multiply(beta, a) if beta != 1 else a, matmul(b, c), alpha=alpha)


def matrix_vector(a: Any, b: Any) -> Dual:
    """A matrix times a vector."""
    column = structural(torch.ops.aten.unsqueeze.default, b, -1)
    return structural(torch.ops.aten.squeeze.dim, matmul(a, column), -1)


def inner(a: Any, b: Any) -> Dual:
    """The inner product of two vectors."""
    return total(multiply(a, b))


def total(a: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Dual:
    """The sum over some or all dimensions."""
    a = known(a)
    dims = _dims(dim, len(a.value.shape))
    value = iv.total(a.value, dims, keepdim)
    return Dual(value, None if a.slope is None else iv.total(a.slope, tuple(d + 1 for d in dims), keepdim))


def mean(a: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Dual:
    """The mean over some or all dimensions."""
    a = known(a)
    count = math.prod(a.value.shape[d] for d in _dims(dim, len(a.value.shape)))
    return divide(total(a, dim, keepdim), float(count))


def variance(a: Any, dim: Any = None, correction: float | None = None, keepdim: bool = False) -> Dual:
    """The variance over some or all dimensions."""
    a = known(a)
    count = math.prod(a.value.shape[d] for d in _dims(dim, len(a.value.shape)))
    apart = subtract(a, mean(a, dim, True))
    return divide(total(multiply(apart, apart), dim, keepdim), float(count - (1 if correction is None else correction)))


def _dims(dim: Any, ndim: int) -> tuple[int, ...]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return tuple(range(ndim))
    return tuple(sorted({d % ndim for d in (dim if isinstance(dim, (list, tuple)) else (dim,))}))


def larger(a: Any, b: Any) -> Dual:
    """max(a, b) entry by entry."""
    a, b = known(a), known(b)
    lo, hi = torch.maximum(a.value.lo, b.value.lo), torch.maximum(a.value.hi, b.value.hi)
    value = Interval(lo, hi)
    if a.slope is None and b.slope is None:
        return Dual(value)
    n = next(len(x.slope.lo) for x in (a, b) if x.slope is not None)
    left, right = (_aligned(x.slopes(n), value.shape) for x in (a, b))
    mixed = iv.hull(left, right)
    return Dual(
        value,
        iv.chosen(a.value.lo > b.value.hi, left, iv.chosen(b.value.lo > a.value.hi, right, mixed)),
    )


def smaller(a: Any, b: Any) -> Dual:
    """min(a, b) entry by entry."""
    return negate(larger(negate(a), negate(b)))


def largest(a: Any, dim: Any = None, keepdim: bool = False) -> Dual:
    """The largest entry over some dimensions."""
    a = known(a)
    for d in _dims(dim, len(a.value.shape)):
        parts = [structural(torch.ops.aten.slice.Tensor, a, d, i, i + 1) for i in range(a.value.shape[d])]
        a = reduce(larger, parts)
    return a if keepdim else structural(torch.ops.aten.squeeze.dims, a, list(_dims(dim, len(a.value.shape))))


def smallest(a: Any, dim: Any = None, keepdim: bool = False) -> Dual:
    """The smallest entry over some dimensions."""
    return negate(largest(negate(a), dim, keepdim))


def clamped(a: Any, low: Any = None, high: Any = None) -> Dual:
    """a kept between two numbers or tensors."""
    if all(end is None or isinstance(end, (int, float)) for end in (low, high)):
        return apply(clamp(low, high), a)
    a = known(a) if low is None else larger(a, low)
    return a if high is None else smaller(a, high)


def greater(a: Any, b: Any) -> Truth:
    """a > b."""
    (a, b), n = (known(a).value, known(b).value), _coordinates(a, b)
    return Truth(a.lo > b.hi, a.hi > b.lo, n)


def at_least(a: Any, b: Any) -> Truth:
    """a ≥ b."""
    (a, b), n = (known(a).value, known(b).value), _coordinates(a, b)
    return Truth(a.lo >= b.hi, a.hi >= b.lo, n)


def equal(a: Any, b: Any) -> Truth:
    """a = b."""
    (a, b), n = (known(a).value, known(b).value), _coordinates(a, b)
    return Truth((a.lo == b.hi) & (a.hi == b.lo), (a.lo <= b.hi) & (b.lo <= a.hi), n)


def opposite(a: Truth) -> Truth:
    """not a."""
    return Truth(~a.perhaps, ~a.surely, a.n)


def both(a: Truth, b: Truth) -> Truth:
    """a and b."""
    return Truth(a.surely & b.surely, a.perhaps & b.perhaps, max(a.n, b.n))


def either(a: Truth, b: Truth) -> Truth:
    """a or b."""
    return opposite(both(opposite(a), opposite(b)))


def _coordinates(*operands: Any) -> int:
    """n, if an operand depends on the state; else 0."""
    return max(
        (len(x.slope.lo) if isinstance(x, Dual) and x.slope is not None else getattr(x, "n", 0) for x in operands),
        default=0,
    )


def select(condition: Any, a: Any, b: Any) -> Dual:
    """``a`` where the condition holds, else ``b``; in a box that has both the field may jump: its slope is unknown.

    Where only the time decides it jumps in time, which harms no contraction: it has the slope of one side or the other.
    """
    a, b = known(a), known(b)
    if isinstance(condition, Tensor):
        condition = Truth(condition.cpu(), condition.cpu())
    surely, never = condition.surely, ~condition.perhaps
    value = iv.chosen(surely, a.value, iv.chosen(never, b.value, iv.hull(a.value, b.value)))
    n = _coordinates(a, b, condition)
    if not n:
        return Dual(value)
    left, right = (_aligned(x.slopes(n), value.shape) for x in (a, b))
    undecided = iv.everything(left.lo) if condition.n else iv.hull(left, right)
    return Dual(value, iv.chosen(surely, left, iv.chosen(never, right, undecided)))


def step(function: Callable[[Tensor], Tensor]) -> Rule:
    """A function that is constant between its jumps, and never falls."""

    def rule(a: Any) -> Dual:
        a = known(a)
        value = Interval(function(a.value.lo), function(a.value.hi))
        if a.slope is None:
            return Dual(value)
        same = (value.lo == value.hi) & (a.value.lo != a.value.hi)
        zero = iv.exactly(torch.zeros_like(a.slope.lo))
        return Dual(value, iv.chosen(same, zero, iv.everything(zero.lo)))

    return rule


def convert(a: Any, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Any:
    """A change of precision, which exact numbers do not have; a truth becomes 0 or 1."""
    if isinstance(a, Truth):
        return known(a) if dtype is None or dtype.is_floating_point else a
    if isinstance(a, Dual) and dtype is not None and not dtype.is_floating_point:
        raise InputError("f(t, s) rounds its state to whole numbers, so it jumps: a region cannot be proved for it")
    return a


def overwritten(a: Any, b: Any, *_: Any) -> Any:
    """``a`` after ``b`` was copied into it."""
    shape = list(known(a).value.shape)
    return structural(torch.ops.aten.expand.default, known(b), shape)


def reshaped(a: Any, shape: list[int]) -> Any:
    """The same entries in another shape, however they lie in memory."""
    return structural(torch.reshape, a, shape)


def structural(target: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation that chooses, moves or repeats entries: applied to both ends, and to the derivatives one by one."""
    leaves, spec = tree_flatten((args, kwargs), is_leaf=lambda x: isinstance(x, (Dual, Truth)))
    pick = _picker(target, leaves, spec)
    if any(isinstance(leaf, Truth) for leaf in leaves):
        n = _coordinates(*leaves)
        return tree_map(lambda p, q: Truth(p, q, n), pick(lambda x: x.surely), pick(lambda x: x.perhaps))
    found = [leaf for leaf in leaves if isinstance(leaf, Dual)]
    lo = pick(lambda x: x.value.lo)
    hi = lo if all(leaf.value.thin for leaf in found) else pick(lambda x: x.value.hi)
    n = next((len(leaf.slope.lo) for leaf in found if leaf.slope is not None), 0)
    if not n:
        return _zipped(lo, hi, None, None)
    full = {id(leaf): leaf.slopes(n) for leaf in found}
    slopes = []
    for end in ("lo", "hi"):
        ends = {leaf: getattr(slope, end) for leaf, slope in full.items()}
        each = [pick(partial(_one_slope, ends, k)) for k in range(n)]
        several = isinstance(lo, (list, tuple))
        slopes.append(tuple(map(torch.stack, zip(*each, strict=True))) if several else torch.stack(each))
    return _zipped(lo, hi, *slopes)


def _one_slope(ends: dict[int, Tensor], k: int, leaf: Dual) -> Tensor:
    return ends[id(leaf)][k]


def _picker(target: Any, leaves: list[Any], spec: Any) -> Callable[[Callable[[Any], Tensor]], Any]:
    def pick(part: Callable[[Any], Tensor]) -> Any:
        chosen = [part(leaf) if isinstance(leaf, (Dual, Truth)) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(chosen, spec)
        return target(*args, **kwargs)

    return pick


def _zipped(lo: Any, hi: Any, slope_lo: Any, slope_hi: Any) -> Any:
    if isinstance(lo, (list, tuple)):
        count = len(lo)
        slopes = [(None, None)] * count if slope_lo is None else list(zip(slope_lo, slope_hi, strict=True))
        return tuple(_zipped(a, b, *s) for a, b, s in zip(lo, hi, slopes, strict=True))
    if lo.dtype != torch.float64:
        raise InputError("f(t, s) looks at the bits of its state as whole numbers: a region cannot be proved for it")
    return Dual(Interval(lo, hi), None if slope_lo is None else Interval(slope_lo, slope_hi))
