"""Regions of the state space over which something is proved: boxes, and balls of a metric."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.display import Displayed
from contracting.errors import InputError
from contracting.metrics import FullP, Metric, WeightedL1, WeightedL2, WeightedLinf


@dataclass(frozen=True, eq=False, repr=False)
class Box(Displayed):
    """lowerᵢ ≤ sᵢ ≤ upperᵢ, float64 on the CPU after construction.

    Args:
        lower: (n,).
        upper: (n,), larger in every entry.

    Raises:
        InputError: if they are no finite vectors of one size, or a lower end is not below its upper end.
    """

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        lower, upper = _point("lower", self.lower), _point("upper", self.upper)
        checks.shape("upper", upper, tuple(lower.shape))
        if not bool((lower < upper).all()):
            raise InputError("lower must be smaller than upper in every entry; exchange the ends where it is not")
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)

    @property
    def size(self) -> int:
        """n, entries of the state."""
        return self.lower.shape[0]

    @property
    def centre(self) -> Tensor:
        """The point in the middle, (n,)."""
        return (self.lower + self.upper) / 2

    def contains(self, states: Tensor) -> Tensor:
        """Which states are inside: (batch, n) -> (batch,)."""
        states = states.to(self.lower)
        return ((self.lower <= states) & (states <= self.upper)).all(-1)

    def __str__(self) -> str:
        sides = (f"[{low:.4g}, {high:.4g}]" for low, high in zip(self.lower, self.upper, strict=True))
        return f"the box {' × '.join(sides)}" if self.size <= 4 else f"a box of {self.size} sides"


@dataclass(frozen=True, eq=False, repr=False)
class Ball(Displayed):
    """‖s − centre‖ ≤ radius in a metric, float64 on the CPU after construction.

    Args:
        centre: (n,).
        radius: r > 0.
        metric: a ``FullP``, ``WeightedL2``, ``WeightedL1`` or ``WeightedLinf`` of size n.

    Raises:
        InputError: if the centre is no finite vector, the radius is not positive, or the metric does not fit.
    """

    centre: Tensor
    radius: float
    metric: Metric

    def __post_init__(self) -> None:
        centre = _point("centre", self.centre)
        object.__setattr__(self, "centre", centre)
        object.__setattr__(self, "radius", checks.positive_number("radius", self.radius))
        object.__setattr__(self, "metric", fitting_metric(self.metric, self.size))

    @property
    def size(self) -> int:
        """n, entries of the state."""
        return self.centre.shape[0]

    def contains(self, states: Tensor) -> Tensor:
        """Which states are inside: (batch, n) -> (batch,)."""
        return self.metric.norm(states.to(self.centre) - self.centre) <= self.radius

    def __str__(self) -> str:
        around = f"({', '.join(f'{x:.4g}' for x in self.centre)})" if self.size <= 4 else "a point"
        return f"the ball of radius {self.radius:.4g} around {around} in {type(self.metric).__name__}"


Region = Box | Ball


def checked_region(region: object, size: int | None = None) -> Region:
    """The region, of the right kind and size.

    Raises:
        InputError: if it is neither a box nor a ball, or has another size than the state.
    """
    if not isinstance(region, (Box, Ball)):
        raise InputError(f"region must be a Box(lower, upper) or a Ball(centre, radius, metric), got {region!r}")
    if size is not None and region.size != size:
        raise InputError(f"region has {region.size} entries, but the state of the flow has {size}")
    return region


def fitting_metric(metric: object, size: int) -> Metric:
    """The metric in float64 on the CPU.

    Raises:
        InputError: if it is none of the four whose matrix measures are bounded here, or of another size.
    """
    if not isinstance(metric, (FullP, WeightedL2, WeightedL1, WeightedLinf)):
        raise InputError(f"metric must be a FullP, WeightedL2, WeightedL1 or WeightedLinf, got {metric!r}")
    if metric.size != size:
        raise InputError(f"metric acts on {metric.size} entries, but the region has {size}")
    return metric.to(torch.empty(0, dtype=torch.float64))


def same_metric(a: Metric, b: Metric) -> bool:
    """Whether two metrics are the same norm, bit by bit."""
    return type(a) is type(b) and all(map(torch.equal, a.tensors(), b.tensors()))


def _point(name: str, value: Tensor) -> Tensor:
    if checks.floating_tensor(name, value).ndim != 1 or not len(value):
        raise InputError(f"{name} must have shape (n,) with n ≥ 1, got {tuple(value.shape)}")
    return checks.finite(name, value).detach().to("cpu", torch.float64)
