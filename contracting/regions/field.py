"""A vector field on boxes: its value, its Jacobian, and the Jacobian at points, for one search after another."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from contracting.errors import InputError
from contracting.flows.fields import VectorField, refuse_crowds
from contracting.metrics import Metric
from contracting.regions.branch import Search, influence_of
from contracting.regions.intervals import Interval, exactly
from contracting.regions.measures import distance_below, half_widths, measure_over
from contracting.regions.sets import Ball, Region
from contracting.regions.tracing import Inclusion

Times = tuple[float, float]


class FieldOnBoxes:
    """f and ∂f/∂s over boxes (rows, n), or (rows, n + 1) with the time last.

    Args:
        flow: any vector field made of torch operations.
        size: n.
        times: the interval of time; None for a field that does not depend on time.

    Raises:
        InputError: if the field cannot be traced, has no inclusion, does not fit the size, or its rows see each other.
    """

    def __init__(self, flow: VectorField, size: int, times: Times | None = None):
        if not isinstance(flow, VectorField):
            raise InputError(f"flow must be a vector field, such as NeuralFlow(module), got {type(flow).__name__}")
        if times is not None and not (math.isfinite(times[0]) and math.isfinite(times[1]) and times[0] < times[1]):
            raise InputError(f"times must be two finite numbers (first, last) with first < last, got {times!r}")
        self.flow, self.size, self.times = flow, size, times
        self.like = state_like(flow)
        some = torch.linspace(0.1, 0.9, 4 * size, dtype=torch.float64).reshape(4, size)
        value = self._at_some(some)
        refuse_crowds(self._at_some, some, value)
        self.inclusion = Inclusion(flow, self.like, size)
        if times is None and not torch.equal(*(torch.nan_to_num(self._at_some(some, t)) for t in (0.0, 0.731))):
            raise InputError("f(t, s) changes with t: give the interval of time that is meant, times=(first, last)")

    def _at_some(self, some: Tensor, t: float = 0.0) -> Tensor:
        try:
            with torch.no_grad():
                return self.flow(torch.full((len(some), 1), t).to(self.like), some.to(self.like))
        except RuntimeError as error:
            raise InputError(
                f"the region has {self.size} entries, and f(t, s) cannot take states of that size: "
                f"{str(error).splitlines()[0]}"
            ) from error

    @property
    def name(self) -> str:
        """The field in words."""
        module = getattr(self.flow, "module", None)
        return type(module).__name__ if isinstance(module, nn.Module) else getattr(module, "__name__", "field")

    def over(self, boxes: Interval) -> tuple[Interval, Interval]:
        """f and its Jacobian: (rows, n) and (rows, n, n)."""
        n = self.size
        times = None if self.times is None else boxes.map(lambda x: x[:, n:])
        found = self.inclusion(boxes.map(lambda x: x[:, :n]), times)
        return found.value, found.slopes(n).map(lambda x: x.permute(1, 2, 0))

    def jacobian(self, points: Tensor) -> Tensor:
        """The Jacobian at points (rows, n) or (rows, n + 1), as the field itself rounds it: (rows, n, n)."""
        n, like = self.size, self.like
        t = points[:, n:].to(like) if self.times is not None else 0.0
        with torch.no_grad():
            return self.flow.jacobian(points[:, :n].to(like), t).detach().to("cpu", torch.float64)

    def value(self, points: Tensor, t: float = 0.0) -> Tensor:
        """f at points, as the field itself rounds it: (rows, n)."""
        with torch.no_grad():
            return self.flow(t, points.to(self.like)).detach().to("cpu", torch.float64)

    def cover(self, region: Region) -> Interval:
        """A box that holds the region, (1, n) or (1, n + 1)."""
        if isinstance(region, Ball):
            widths = half_widths(region.metric, region.radius)
            lo, hi = region.centre - widths, region.centre + widths
            lo, hi = lo - 1e-15 * lo.abs(), hi + 1e-15 * hi.abs()
        else:
            lo, hi = region.lower, region.upper
        if self.times is not None:
            ends = torch.tensor(self.times, dtype=torch.float64)
            lo, hi = torch.cat([lo, ends[:1]]), torch.cat([hi, ends[1:]])
        return Interval(lo[None], hi[None])

    def away(self, region: Ball) -> Callable[[Interval], Tensor]:
        """A lower bound of the distance of boxes from the centre of the ball."""
        n = self.size
        return lambda boxes: distance_below(region.metric, region.centre, boxes.map(lambda x: x[:, :n]))

    def measures(self, region: Region, metric: Metric) -> Search:
        """The search for the largest matrix measure over the region."""

        def value(points: Tensor) -> Tensor:
            jacobians = self.jacobian(points)
            good = torch.isfinite(jacobians).all(-1).all(-1)
            found = metric.matrix_measure(torch.where(good[:, None, None], jacobians, 0.0))
            return torch.where(good, found, math.nan)

        return Search(
            bound=lambda boxes: measure_over(metric, self.over(boxes)[1]),
            value=value,
            away=self.away(region) if isinstance(region, Ball) else None,
            radius=region.radius if isinstance(region, Ball) else math.inf,
            influence=influence_of(lambda boxes: self._spread(boxes, metric), self.cover(region)),
        )

    def _spread(self, boxes: Interval, metric: Metric) -> Tensor:
        """The width of the Jacobian over boxes, in the units of the metric."""
        weights = metric.matrix.diagonal().sqrt() if hasattr(metric, "matrix") else metric.tensors()[0]
        _, jacobians = self.over(boxes)
        return ((jacobians.hi - jacobians.lo) * weights[:, None] / weights).square().sum((-1, -2)).sqrt()

    def at(self, point: Tensor) -> Interval:
        """An interval that holds f at a point, at every time: (n,) -> (n,)."""
        row = point[None]
        if self.times is not None:
            ends = torch.tensor([self.times], dtype=torch.float64)
            boxes = Interval(torch.cat([row, ends[:, :1]], 1), torch.cat([row, ends[:, 1:]], 1))
        else:
            boxes = exactly(row)
        return self.over(boxes)[0].map(lambda x: x[0])


def state_like(flow: VectorField) -> Tensor:
    """An empty tensor of the dtype and device that states of the flow have; float64 on the CPU if nothing is known."""
    module = getattr(flow, "module", None)
    own: Tensor | None = next(iter(module.parameters()), None) if isinstance(module, nn.Module) else None
    if own is None:
        own = next((x for x in vars(flow).values() if isinstance(x, Tensor) and x.is_floating_point()), None)
    return torch.empty(0, dtype=torch.float64) if own is None else torch.empty(0, dtype=own.dtype, device=own.device)

