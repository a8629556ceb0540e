r"""The equilibrium inside a region, proved: a field that contracts and hardly moves at a point rests near that point.

Where ∂f/∂s has the measure −c on a ball of radius r around s₀ and ‖f(t, s₀)‖ ≤ cr, the distance to s₀ cannot grow on
the sphere: d/dt‖s − s₀‖ ≤ −c‖s − s₀‖ + ‖f(t, s₀)‖ ≤ 0. So no trajectory leaves the ball, all of them come together, and
a field that does not depend on time has exactly one equilibrium there, within ‖f(s₀)‖/c of s₀.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contracting.loop.records import Stop
from contracting.metrics import FullP, Metric, WeightedL2
from contracting.regions import intervals as iv
from contracting.regions.branch import Search, supremum
from contracting.regions.field import FieldOnBoxes
from contracting.regions.intervals import Interval
from contracting.regions.measures import half_widths, measure_over, norm_above, pencil_over, quadratic
from contracting.regions.sets import Ball, Box, Region, same_metric
from contracting.solvers.newton import SemismoothNewton
from contracting.steady_states.solving import steady_state

_TIGHT = 1e-12  # The share of its terms that is left of f at a resting point: what float64 can reach in most fields.
_FACE_BOXES = 4096  # Boxes of a face on which the field is shown to point inwards; more than it takes where it does.


def resting_point(field: FieldOnBoxes, start: Tensor) -> Tensor | None:
    """A point next to a zero of the field, by Newton's method from a point nearby; None if it does not come to one."""
    near = start[None].to(field.like)
    tight = Stop(rtol=_TIGHT) if near.dtype == torch.float64 else None
    time = 0.0 if field.times is None else field.times[0]
    with torch.no_grad():
        found = steady_state(field.flow, near, method=SemismoothNewton(), stop=tight, time=time, throw=False)
    return found.z[0].detach().to("cpu", torch.float64) if bool(found.converged.all()) else None


def invariant_ball(
    field: FieldOnBoxes, region: Region, metric: Metric, rate: float, point: Tensor
) -> tuple[Ball, Ball | None] | None:
    """The largest ball around a point inside a region of this rate, if no trajectory leaves it, and its equilibrium.

    Returns:
        The ball; and one around the same point that holds the equilibrium, or None if the field depends on time.
    """
    radius = inscribed_radius(region, metric, point)
    speed = float(norm_above(metric, _row(field.at(point))))
    if not (rate > 0 and radius > 0 and speed <= math.nextafter(rate * radius, 0)):
        return None
    if isinstance(region, Ball) and same_metric(region.metric, metric) and torch.equal(point, region.centre):
        ball = region
    else:
        ball = Ball(point, radius, metric)
    return ball, _around(field, metric, rate, point, speed)


def invariant_box(
    field: FieldOnBoxes, box: Box, metric: Metric, rate: float, point: Tensor
) -> tuple[Box, Ball | None] | None:
    """The box, if the field points inwards on all of its faces, and the equilibrium in it."""
    if rate <= 0 or not points_inwards(field, box):
        return None
    return box, _around(field, metric, rate, point, float(norm_above(metric, _row(field.at(point)))))


def _around(field: FieldOnBoxes, metric: Metric, rate: float, point: Tensor, speed: float) -> Ball | None:
    """The equilibrium is within ‖f‖/c of the point, for the rate of the region and for that of this small ball too."""
    if field.times is not None:
        return None
    small = Ball(point, max(math.nextafter(speed / rate, math.inf), 1e-300), metric)
    faster = -float(measure_over(metric, field.over(field.cover(small))[1]))
    return small if faster <= rate else Ball(point, max(math.nextafter(speed / faster, math.inf), 1e-300), metric)


def _row(vector: Interval) -> Interval:
    return vector.map(lambda x: x[None])


def points_inwards(field: FieldOnBoxes, box: Box) -> bool:
    """Whether the field is proved to point inwards or along on all faces of a box, so that no trajectory leaves it."""
    cover = field.cover(box)
    for i in range(field.size):
        for end, sign in ((cover.hi, 1.0), (cover.lo, -1.0)):
            lo, hi = cover.lo.clone(), cover.hi.clone()
            lo[:, i] = hi[:, i] = end[:, i]

            def bound(boxes: Interval, i: int = i, sign: float = sign) -> Tensor:
                value = field.over(boxes)[0]
                return value.hi[:, i] if sign > 0 else -value.lo[:, i]

            def value(points: Tensor, i: int = i, sign: float = sign) -> Tensor:
                return sign * field.over(iv.exactly(points))[0].lo[:, i]

            search = Search(
                bound=bound,
                value=value,
                away=None,
                radius=math.inf,
                influence=torch.ones(lo.shape[1], dtype=torch.float64),
            )
            if supremum(search, Interval(lo, hi), budget=_FACE_BOXES, tolerance=0.0, target=0.0).upper > 0:
                return False
    return True


def inscribed_radius(region: Region, metric: Metric, centre: Tensor) -> float:
    """The radius of a ball around a point that lies inside the region, rounded down; 0 where none is known."""
    if isinstance(region, Box):
        gaps = torch.minimum(region.upper - centre, centre - region.lower) * (1 - 1e-15)
        return max(0.0, float((gaps / half_widths(metric, 1.0)).min()) * (1 - 1e-12))
    distance = float(norm_above(region.metric, _row(iv.subtract(iv.exactly(centre), iv.exactly(region.centre)))))
    if torch.equal(centre, region.centre):
        distance = 0.0
    room = (region.radius - distance) * (1.0 if distance == 0 else 1 - 1e-15)
    if room <= 0:
        return 0.0
    if same_metric(region.metric, metric):
        return room
    if not isinstance(metric, (FullP, WeightedL2)) or not isinstance(region.metric, (FullP, WeightedL2)):
        return 0.0
    (outer, _), (P, Y) = quadratic(region.metric), quadratic(metric)
    turned = Y.map(lambda x: x.mT)
    largest = pencil_over(iv.matmul(turned, iv.matmul(outer, Y)), iv.matmul(turned, iv.matmul(P, Y)))
    return room / math.sqrt(float(largest)) * (1 - 1e-12)
