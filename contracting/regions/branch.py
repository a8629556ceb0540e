r"""Branch and bound over boxes: what is true of every box of a cover is true of the region.

Many boxes are looked at in one pass, those first that matter most. A box that lies outside the region is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.regions.intervals import Interval

_AT_ONCE = 512  # Boxes split in one pass: their halves are as many as an inclusion takes at once.
_LEAST_INFLUENCE = 0.05  # Of a coordinate on the split, in shares of the strongest: none is left whole for ever.

Bound = Callable[[Interval], Tensor]
"""An upper bound of something over each box: (rows, d) -> (rows,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """What is searched: something that has an upper bound over boxes and a value at points.

    Attributes:
        bound: an upper bound over boxes, (rows, d) -> (rows,).
        value: the same thing at points, (rows, d) -> (rows,); what is no number counts for nothing.
        away: a lower bound of the distance of each box from the region, or of what else orders boxes, None for a region
            that is itself a box.
        radius: boxes that are farther than this are outside.
        influence: how much each coordinate matters to the bound, (d,).
    """

    bound: Bound
    value: Callable[[Tensor], Tensor]
    away: Bound | None
    radius: float
    influence: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Supremum:
    """lower ≤ sup ≤ upper.

    Attributes:
        upper: proved.
        lower: the largest value at a point that was looked at.
        at: that point, (d,).
        boxes: how many boxes were bounded.
    """

    upper: float
    lower: float
    at: Tensor
    boxes: int


def supremum(
    search: Search, start: Interval, *, budget: int, tolerance: float, target: float | None = None
) -> Supremum:
    """Enclose the supremum over the region.

    Args:
        search: what is bounded.
        start: boxes that cover the region, (rows, d).
        budget: so many boxes are bounded at most.
        tolerance: of upper − lower, relative to |lower|.
        target: stop as soon as it is known on which side of this number the supremum lies.
    """
    boxes, weights = start, _weights(search, start)
    bounds, used = search.bound(boxes), len(boxes.lo)
    lower, at = -math.inf, boxes.lo[0]
    retired = -math.inf  # the largest bound of boxes that are not looked at again
    while True:
        points = inside(search, boxes, bounds)
        if len(points):
            values = search.value(points).nan_to_num(nan=-math.inf)
            best = int(values.argmax())
            if float(values[best]) > lower:
                lower, at = float(values[best]), points[best]
        upper = max(retired, float(bounds.max()) if len(bounds) else -math.inf)
        settled = lower + tolerance * abs(lower) if math.isfinite(lower) else -math.inf
        if target is not None:
            settled = max(settled, target)
        decided = target is not None and lower > target
        order = bounds.argsort(descending=True)
        picked = order[: max(0, min(_AT_ONCE, (budget - used) // 2))]
        picked = picked[bounds[picked] > settled]
        if decided or not len(picked):
            return Supremum(upper=max(upper, lower), lower=lower, at=at, boxes=used)
        rest = torch.ones(len(bounds), dtype=torch.bool)
        rest[picked] = False
        # what is settled waits as a number
        waits = rest & (bounds > settled)
        if bool((rest & ~waits).any()):
            retired = max(retired, float(bounds[rest & ~waits].max()))
        fresh = halves(Interval(boxes.lo[picked], boxes.hi[picked]), weights)
        if search.away is not None:
            kept = search.away(fresh) <= search.radius
            fresh = Interval(fresh.lo[kept], fresh.hi[kept])
        found = search.bound(fresh) if len(fresh.lo) else bounds[:0]
        used += 2 * len(picked)
        boxes = Interval(torch.cat([fresh.lo, boxes.lo[waits]]), torch.cat([fresh.hi, boxes.hi[waits]]))
        bounds = torch.cat([found, bounds[waits]])


def _weights(search: Search, start: Interval) -> Tensor:
    """What the length of each side counts: shares of the whole, by influence; nothing across a face."""
    width = start.hi.amax(0) - start.lo.amin(0)
    return torch.where(width > 0, search.influence / width, 0.0)


def inside(search: Search, boxes: Interval, bounds: Tensor) -> Tensor:
    """Points of the region in the boxes with the largest bounds: their middles that are no farther than the radius."""
    most = bounds.argsort(descending=True)[:_AT_ONCE]
    middles = boxes.lo[most] / 2 + boxes.hi[most] / 2
    if search.away is None:
        return middles
    return middles[search.away(Interval(middles, middles)) <= search.radius]


def halves(boxes: Interval, weights: Tensor) -> Interval:
    """Every box cut in two across the side that counts most: (rows, d) -> (2 rows, d)."""
    side = ((boxes.hi - boxes.lo) * weights).argmax(1, keepdim=True)
    lo, hi = boxes.lo.gather(1, side), boxes.hi.gather(1, side)
    middle = lo / 2 + hi / 2
    return Interval(
        torch.cat([boxes.lo, boxes.lo.scatter(1, side, middle)]),
        torch.cat([boxes.hi.scatter(1, side, middle), boxes.hi]),
    )


def influence_of(spread: Callable[[Interval], Tensor], box: Interval) -> Tensor:
    """How much narrower something becomes when a coordinate of a box is known: (1, d) -> (d,), at most 1.

    Args:
        spread: the width of it over each box, (rows, d) -> (rows,).
        box: one box.
    """
    d = box.lo.shape[1]
    middle = box.lo / 2 + box.hi / 2
    eye = torch.eye(d, dtype=torch.bool)
    lo, hi = (torch.where(eye, middle, end.expand(d, d)) for end in (box.lo, box.hi))
    all_widths = spread(Interval(torch.cat([box.lo, lo]), torch.cat([box.hi, hi])))
    gains = all_widths[0] - all_widths[1:]
    if not bool(torch.isfinite(gains).all()) or float(gains.max()) <= 0:
        return torch.ones(d, dtype=torch.float64)
    return (gains / gains.max()).clamp_min(_LEAST_INFLUENCE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Reach:
    """How far from a centre something is proved.

    Attributes:
        radius: within it everything is proved.
        bound: the largest bound of the boxes that reach nearer than the radius.
        broken: the smallest distance of a point at which it was seen to be false, or the radius that was searched.
        at: that point, (d,); None if there is none.
        boxes: how many boxes were bounded.
    """

    radius: float
    bound: float
    broken: float
    at: Tensor | None
    boxes: int


def reach(
    search: Search, start: Interval, *, far: Callable[[Tensor], Tensor], limit: float, budget: int, tolerance: float
) -> Reach:
    """The largest ball over which the bound is below ``limit``, nearest boxes first.

    Args:
        search: what is bounded; ``away`` gives distances from the centre, ``radius`` how far to search.
        start: boxes that cover the ball of that radius.
        far: the distance of points from the centre, (rows, d) -> (rows,).
        limit: what the bound must stay below.
        budget: so many boxes are bounded at most.
        tolerance: stop when the radius is within this share of ``broken``.
    """
    assert search.away is not None
    boxes, weights = start, _weights(search, start)
    distances, used = torch.zeros(len(boxes.lo), dtype=torch.float64), 0
    broken, at = search.radius, None
    proved: list[tuple[Tensor, Tensor]] = []
    while True:
        used += len(boxes.lo)
        fresh_bounds, fresh_distances = search.bound(boxes), search.away(boxes)
        middles = boxes.lo / 2 + boxes.hi / 2
        open_ = ~(fresh_bounds < limit)
        if bool(open_.any()):
            values = search.value(middles[open_]).nan_to_num(nan=-math.inf)
            lengths = torch.where(values >= limit, far(middles[open_]), math.inf)
            nearest = int(lengths.argmin())
            if float(lengths[nearest]) < broken:
                broken, at = float(lengths[nearest]), middles[open_][nearest]
        proved.append((fresh_distances[~open_], fresh_bounds[~open_]))
        boxes = Interval(boxes.lo[open_], boxes.hi[open_])
        distances = fresh_distances[open_]
        if used == len(start.lo):
            pool, pool_distances = boxes, distances
        else:
            pool = Interval(torch.cat([boxes.lo, pool.lo]), torch.cat([boxes.hi, pool.hi]))
            pool_distances = torch.cat([distances, pool_distances])
        # a point of an open box may be as near as its box, so the ball ends just before
        radius = min(search.radius, math.nextafter(float(pool_distances.min()), 0) if len(pool_distances) else math.inf)
        order = pool_distances.argsort()
        picked = order[: max(0, min(_AT_ONCE, (budget - used) // 2))]
        picked = picked[pool_distances[picked] < broken * (1 - tolerance)]
        if not len(picked):
            near = torch.cat([bounds[lengths <= radius] for lengths, bounds in proved])
            bound = float(near.max()) if len(near) else math.inf
            return Reach(radius=radius, bound=bound, broken=broken, at=at, boxes=used)
        rest = torch.ones(len(pool_distances), dtype=torch.bool)
        rest[picked] = False
        boxes = halves(Interval(pool.lo[picked], pool.hi[picked]), weights)
        pool, pool_distances = Interval(pool.lo[rest], pool.hi[rest]), pool_distances[rest]
