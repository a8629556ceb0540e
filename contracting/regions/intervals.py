r"""Interval arithmetic on tensors with outward rounding: what float64 computes holds what is meant in exact numbers.

An operation of IEEE 754 that is rounded to nearest (+, −, ×, ÷) is off by less than the distance to the next float64,
so the next one outwards is a bound. A function of the mathematical library is off by at most a few units in the last
place. A sum or product of matrices of k terms is off by at most k units of the sum of the sizes of its terms, in
whatever order the terms are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.certificates.definite import SMALLEST, UNIT

_DOWN, _UP = (torch.tensor(end, dtype=torch.float64) for end in (-math.inf, math.inf))

# The functions of the mathematical libraries that torch calls are off by at most one unit in the last place (Sleef and
# MKL say so); the tests find no larger error on any function used here. Four units leave room for other builds.
LIBRARY_ULPS = 4

# A product of two intervals of matrices is formed term by term up to so many terms, and from midpoints and radii, which
# needs less memory and is up to half wider, beyond.
_MOST_TERMS = 2**22


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """[lo, hi] for every entry, float64. Where ``lo`` and ``hi`` are one object the value is exact: see ``thin``."""

    lo: Tensor
    hi: Tensor

    @property
    def thin(self) -> bool:
        """Whether the value is known exactly."""
        return self.lo is self.hi

    @property
    def shape(self) -> torch.Size:
        """Of the entries."""
        return self.lo.shape

    @property
    def size(self) -> Tensor:
        """The largest absolute value in each entry."""
        return self.lo.abs() if self.thin else torch.maximum(self.lo.abs(), self.hi.abs())

    @property
    def bounded(self) -> Tensor:
        """Whether both ends are finite numbers, entry by entry."""
        return torch.isfinite(self.lo) & torch.isfinite(self.hi)

    def map(self, change: Callable[[Tensor], Tensor]) -> Interval:
        """The interval after a change that is exact and keeps order, such as a choice of entries."""
        lo = change(self.lo)
        return Interval(lo, lo if self.thin else change(self.hi))


def exactly(value: Tensor | float) -> Interval:
    """A number that is known, float64 on the CPU."""
    known = value.detach().to("cpu") if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    known = known.to(torch.float64)
    return Interval(known, known)


def outward(lo: Tensor, hi: Tensor) -> Interval:
    """One float64 further on both sides; what is no number bounds nothing."""
    return Interval(
        torch.nextafter(lo, _DOWN).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf),
        torch.nextafter(hi, _UP).nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf),
    )


def widened(lo: Tensor, hi: Tensor, ulps: int = LIBRARY_ULPS) -> Interval:
    """Wider by so many units in the last place on both sides."""
    share = 2 * UNIT * ulps
    return outward(lo - lo.abs() * share, hi + hi.abs() * share)


def everything(like: Tensor) -> Interval:
    """(−∞, ∞) in every entry."""
    return Interval(torch.full_like(like, -math.inf), torch.full_like(like, math.inf))


def hull(a: Interval, b: Interval) -> Interval:
    """The smallest interval that holds both."""
    return Interval(torch.minimum(a.lo, b.lo), torch.maximum(a.hi, b.hi))


def chosen(where: Tensor, a: Interval, b: Interval) -> Interval:
    """``a`` where the condition is true, else ``b``."""
    return Interval(torch.where(where, a.lo, b.lo), torch.where(where, a.hi, b.hi))


def negative(a: Interval) -> Interval:
    """−a, exactly."""
    lo = -a.hi
    return Interval(lo, lo if a.thin else -a.lo)


def add(a: Interval, b: Interval) -> Interval:
    """a + b."""
    return outward(a.lo + b.lo, a.hi + b.hi)


def subtract(a: Interval, b: Interval) -> Interval:
    """a − b."""
    return outward(a.lo - b.hi, a.hi - b.lo)


def multiply(a: Interval, b: Interval) -> Interval:
    """ab; of an unbounded factor and one that may be zero nothing is known."""
    if b.thin:
        a, b = b, a
    if a.thin:
        first, second = a.lo * b.lo, a.lo * b.hi
        return outward(torch.minimum(first, second), torch.maximum(first, second))
    low, high = _extremes(a.lo * b.lo, a.lo * b.hi, a.hi * b.lo, a.hi * b.hi)
    return outward(low, high)


def divide(a: Interval, b: Interval) -> Interval:
    """a/b; where b may be zero nothing is known."""
    low, high = _extremes(a.lo / b.lo, a.lo / b.hi, a.hi / b.lo, a.hi / b.hi)
    found = outward(low, high)
    return chosen((b.lo > 0) | (b.hi < 0), found, everything(found.lo))


def square(a: Interval) -> Interval:
    """a², never negative."""
    smallest = torch.where((a.lo > 0) | (a.hi < 0), torch.minimum(a.lo.abs(), a.hi.abs()), 0.0)
    found = outward(smallest * smallest, a.size * a.size)
    return Interval(found.lo.clamp_min(0.0), found.hi)


def total(a: Interval, dims: tuple[int, ...], keepdim: bool = False) -> Interval:
    """The sum over some dimensions."""
    terms = math.prod(a.shape[d] for d in dims)
    share = 1.01 * terms * UNIT
    ends = []
    for end, sign in ((a.lo, -1), (a.hi, 1)):
        ends.append(end.sum(dims, keepdim) + sign * share * end.abs().sum(dims, keepdim))
    return outward(*ends)


def matmul(a: Interval, b: Interval) -> Interval:
    """The product of (batches of) matrices."""
    terms = a.shape[-1]
    if not a.thin and not b.thin and a.lo.numel() * b.shape[-1] <= _MOST_TERMS:
        product = multiply(a.map(lambda x: x[..., None]), b.map(lambda x: x[..., None, :, :]))
        return total(product, (product.lo.ndim - 2,))
    sizes = a.size @ b.size
    if a.thin and b.thin:
        lo = hi = a.lo @ b.lo
    elif a.thin:
        up, down = a.lo.clamp_min(0), a.lo.clamp_max(0)
        lo, hi = up @ b.lo + down @ b.hi, up @ b.hi + down @ b.lo
    elif b.thin:
        up, down = b.lo.clamp_min(0), b.lo.clamp_max(0)
        lo, hi = a.lo @ up + a.hi @ down, a.hi @ up + a.lo @ down
    else:
        (p, r), (q, s) = _middle(a), _middle(b)
        centre, radius = p @ q, r @ b.size + p.abs() @ s
        lo, hi = centre - radius, centre + radius
    error = 1.01 * (4 * terms + 8) * UNIT * sizes + terms * SMALLEST
    return outward(lo - error, hi + error)


def _middle(a: Interval) -> tuple[Tensor, Tensor]:
    """A point of the interval and a radius around it that covers it."""
    middle = a.lo / 2 + a.hi / 2
    return middle, torch.nextafter(torch.maximum(a.hi - middle, middle - a.lo), _UP)


def middle_and_radius(a: Interval) -> tuple[Tensor, Tensor]:
    """A point of each interval and a radius around it that covers it, rounded up."""
    return (a.lo, torch.zeros_like(a.lo)) if a.thin else _middle(a)


def _extremes(*values: Tensor) -> tuple[Tensor, Tensor]:
    low, high = values[0], values[0]
    for value in values[1:]:
        low, high = torch.minimum(low, value), torch.maximum(high, value)
    return low, high
