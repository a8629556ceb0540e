r"""Metrics that change with the state, M(s) = Θ(s)ᵀΘ(s): lengths of paths in them, and the rate at which they shrink.

Moved by the flow, a small piece δ of a path has the length |Θδ| with (Θδ)' = FΘδ for the generalised Jacobian
F = (Θ' + ΘJ)Θ⁻¹, Θ' the change of Θ along the flow (Lohmiller and Slotine, 1998). Where μ₂(F) ≤ −c, the length of every
path that stays inside falls like e^{−ct}. No inverse is needed: xᵀΘᵀ(Θ' + ΘJ)x ≤ −c|Θx|² says the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.certificates.records import PER_TIME
from contracting.display import Displayed
from contracting.errors import InputError
from contracting.flows.fields import VectorField
from contracting.regions import intervals as iv
from contracting.regions.branch import Search, influence_of, supremum
from contracting.regions.field import FieldOnBoxes, Times
from contracting.regions.intervals import Interval
from contracting.regions.measures import pencil_over
from contracting.regions.rest import points_inwards
from contracting.regions.sets import Ball, Box, Region, checked_region
from contracting.regions.tracing import Inclusion


class StateMetric:
    r"""|δ|² = |Θ(s)δ|²: a length of small steps δ that depends on where they are taken.

    Args:
        module: Θ, of torch operations, (batch, n) -> (batch, m, n) with independent columns, in float64.

    Raises:
        InputError: if it cannot be called.
    """

    def __init__(self, module: nn.Module | Callable[[Tensor], Tensor]):
        if not callable(module):
            raise InputError(f"module must be a function of states, got {type(module).__name__}")
        self.module = module

    def factor(self, states: Tensor) -> Tensor:
        """Θ(s): (batch, n) -> (batch, m, n).

        Raises:
            InputError: on another shape.
        """
        value = checks.floating_tensor("the metric", self.module(states))
        batch, n = states.shape
        if value.ndim != 3 or len(value) != batch or value.shape[2] != n or value.shape[1] < n:
            raise InputError(
                f"the metric must be a factor Θ(s) of shape (batch, m, {n}) with m ≥ {n}, got {tuple(value.shape)}"
            )
        return value

    def measure(self, flow: VectorField, points: Tensor, *, t: float = 0.0) -> Tensor:
        """μ₂(F) at points, the rate at which the length of a small step grows at most: (batch, n) -> (batch,).

        Raises:
            InputError: on shapes that do not fit.
        """
        with torch.no_grad():
            velocity = flow(t, points)
            jacobian = flow.jacobian(points, t).detach()
        with torch.inference_mode(False), torch.enable_grad():
            theta, change = torch.autograd.functional.jvp(self.factor, points.clone(), velocity.clone())  # type: ignore[no-untyped-call]
        moved = change + theta @ jacobian
        upper = torch.linalg.qr(theta, mode="r").R
        turned = torch.linalg.solve_triangular(upper, moved.mT @ theta, upper=True, left=False)
        turned = torch.linalg.solve_triangular(upper.mT, turned, upper=False)
        return torch.linalg.eigvalsh((turned + turned.mT) / 2)[..., -1]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PathCertificate(Displayed):
    """The length of every path in a metric that changes with the state falls like e^{−ct} while the path stays inside.

    Attributes:
        rate: c, proved.
        metric: M(s).
        region: over which it is proved.
        invariant: the region, if it is a box that no trajectory leaves: then every two trajectories from it come
            together at the rate c, as the straight line between them never leaves it. Else None.
        sampled: the rate at the worst point that was looked at.
        flow: the field in words.
        boxes: how many boxes were bounded.
        complete: whether ``rate`` is as close to ``sampled`` as was asked.
        times: the interval of time for which it is proved; None for all times, of a field without time.
    """

    _units = {"rate": PER_TIME, "sampled": PER_TIME}

    rate: float
    metric: StateMetric
    region: Region
    invariant: Region | None
    sampled: float
    flow: str
    boxes: int
    complete: bool
    times: Times | None = None

    @property
    def contracting(self) -> bool:
        """Whether the rate is positive."""
        return self.rate > 0

    def __str__(self) -> str:
        claim = "while they stay inside" if self.invariant is None else "and no trajectory leaves it"
        return f"{self.flow}: lengths of paths fall at rate ≥ {self.rate:.6g} over {self.region}, {claim}"


def certify_paths(
    flow: VectorField,
    region: Region,
    metric: StateMetric,
    *,
    times: Times | None = None,
    budget: int = 20_000,
    tolerance: float = 0.02,
) -> PathCertificate:
    """A contraction rate proved over a region in a metric that changes with the state, by branch and bound.

    Args:
        flow: any vector field of torch operations.
        region: a ``Box`` or a ``Ball``.
        metric: M(s) = Θ(s)ᵀΘ(s).
        times: the interval of time (first, last) of a field that depends on time.
        budget: so many boxes are bounded at most.
        tolerance: stop when the rate is so close to the sampled one, relative to it.

    Raises:
        InputError: if shapes do not fit, or an operation of the field or of Θ has no inclusion function; it is named.
    """
    region = checked_region(region)
    checks.whole_number("budget", budget, low=2)
    checks.number("tolerance", tolerance, low=0.0, high=1.0)
    if not isinstance(metric, StateMetric):
        raise InputError(f"metric must be a StateMetric, got {metric!r}; certify_region takes the constant ones")
    field, n = FieldOnBoxes(flow, region.size, times), region.size
    factor = Inclusion(lambda t, s: metric.factor(s), torch.empty(0, dtype=torch.float64), n)
    centred = _centred(flow, metric, n)

    def bound(boxes: Interval) -> Tensor:
        velocity, jacobian = field.over(boxes)
        theta = factor(boxes.map(lambda x: x[:, :n]))
        # the change of Θ along the flow: its derivatives by the coordinates, times their velocities
        rates = velocity.map(lambda x: x.mT[:, :, None, None])
        change = iv.total(iv.multiply(theta.slopes(n), rates), (0,))
        moved = iv.add(change, iv.matmul(theta.value, jacobian))
        across = theta.value.map(lambda x: x.mT)
        growth, unit = iv.matmul(across, moved), iv.matmul(across, theta.value)
        known = moved.bounded.all(-1).all(-1) & theta.value.bounded.all(-1).all(-1)
        if centred is not None:  # which does not see where the field jumps, as the derivatives above do
            nearer = centred(boxes)
            growth, unit = _both(growth, nearer.map(lambda e: e[:, 0])), _both(unit, nearer.map(lambda e: e[:, 1]))
        middle = torch.where(known[:, None, None], unit.lo / 2 + unit.hi / 2, torch.eye(n, dtype=torch.float64))
        upper, failed = torch.linalg.cholesky_ex(middle, upper=True)
        known = known & (failed == 0)
        upper = torch.where(known[:, None, None], upper, torch.eye(n, dtype=torch.float64))
        Y = iv.exactly(torch.linalg.solve_triangular(upper, torch.eye(n, dtype=torch.float64), upper=True))
        half, unit = (iv.matmul(Y.map(lambda x: x.mT), iv.matmul(x, Y)) for x in (growth, unit))
        return torch.where(known, pencil_over(half, unit), math.inf)

    def value(points: Tensor) -> Tensor:
        if times is None:
            return metric.measure(flow, points)
        each = [metric.measure(flow, point[None, :n], t=float(point[n])) for point in points]
        return torch.cat(each)

    def spread(boxes: Interval) -> Tensor:
        jacobians = field.over(boxes)[1]
        own = factor(boxes.map(lambda x: x[:, :n])).value
        widths = [(x.hi - x.lo).square().sum((-1, -2)) for x in (jacobians, own)]
        return (widths[0] + widths[1]).sqrt()

    search = Search(
        bound=bound,
        value=value,
        away=field.away(region) if isinstance(region, Ball) else None,
        radius=region.radius if isinstance(region, Ball) else math.inf,
        influence=influence_of(spread, field.cover(region)),
    )
    found = supremum(search, field.cover(region), budget=budget, tolerance=tolerance)
    stays = found.upper < 0 and isinstance(region, Box) and points_inwards(field, region)
    return PathCertificate(
        rate=-found.upper,
        metric=metric,
        region=region,
        invariant=region if stays else None,
        sampled=-found.lower,
        flow=field.name,
        boxes=found.boxes,
        complete=found.upper - found.lower <= tolerance * abs(found.lower),
        times=times,
    )


def _pulled(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The value of a function, and u ↦ (∂function)ᵀu."""
    value, pull, *_ = torch.func.vjp(function, at)
    return value, lambda u: pull(u)[0]


def _both(a: Interval, b: Interval) -> Interval:
    """What is in both, of two intervals that hold the same number."""
    return Interval(torch.maximum(a.lo, b.lo), torch.minimum(a.hi, b.hi))


def _centred(flow: VectorField, metric: StateMetric, n: int) -> Callable[[Interval], Interval] | None:
    """Θᵀ(Θ' + ΘJ) and ΘᵀΘ over boxes from their values at the middles and their own derivatives: (rows, 2, n, n).

    Θ' and ΘJ may be large and cancel; in this form their sum is as narrow as it is, up to the square of the width of a
    box. None where the derivatives of the field cannot be traced in their turn.
    """

    def both(t: Tensor, s: Tensor) -> Tensor:
        velocity, pull = _pulled(lambda x: flow(t, x), s)
        eye = torch.eye(n, dtype=s.dtype, device=s.device)
        jacobian = torch.stack([pull(eye[i].expand_as(velocity)) for i in range(n)], -2)
        theta, pull_theta = _pulled(metric.factor, s)
        # the derivative along the velocity, as the derivative of the transposed one, which is linear
        _, along = _pulled(pull_theta, torch.zeros_like(theta))
        moved = along(velocity) + theta @ jacobian
        return torch.stack([theta.mT @ moved, theta.mT @ theta], 1)

    try:
        inclusion = Inclusion(both, torch.empty(0, dtype=torch.float64), n)
    except InputError:
        return None

    def over(boxes: Interval) -> Interval:
        states, times = boxes.map(lambda x: x[:, :n]), boxes.map(lambda x: x[:, n:])
        clock = times if times.lo.shape[1] else None
        middle = states.lo / 2 + states.hi / 2
        found, at = inclusion(states, clock), inclusion(iv.exactly(middle), clock).value
        steps = iv.subtract(states, iv.exactly(middle)).map(lambda x: x.mT[:, :, None, None, None])
        moved = iv.total(iv.multiply(found.slopes(n), steps), (0,))
        return _both(found.value, iv.add(at, moved))

    return over
