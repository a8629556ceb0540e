"""What was proved of a region, as a record that says it in words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.certificates.records import PER_TIME
from contracting.display import Displayed
from contracting.metrics import Metric
from contracting.regions.rest import inscribed_radius
from contracting.regions.sets import Ball, Region


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RegionCertificate(Displayed):
    r"""Contraction inside a region: ‖s₁(t) − s₂(t)‖ ≤ e^{−ct}‖s₁(0) − s₂(0)‖ as long as both trajectories stay inside.

    Inside ``invariant``, if there is one, they stay for ever and come to the one equilibrium.

    Attributes:
        rate: c, proved. A negative rate bounds how fast trajectories can separate; −∞ says nothing.
        metric: the norm, float64 on the CPU.
        region: over which the rate is proved. It is convex.
        invariant: a part of the region that no trajectory leaves, or all of it; None where nothing is proved.
        equilibrium: a ball that holds exactly one steady state of the flow, and every trajectory from ``invariant``
            comes to it; None where nothing is proved, and for a field that depends on time, whose trajectories from
            ``invariant`` stay there and come together.
        sampled: the rate at the worst point that was looked at: no larger rate is true.
        method: how it was proved.
        flow: the field in words.
        boxes: how many boxes were bounded.
        complete: whether ``rate`` is as close to ``sampled`` as was asked; if not, the budget was spent before.
        times: the interval of time for which it is proved; None for all times, of a field without time.
    """

    _units = {"rate": PER_TIME, "sampled": PER_TIME}

    rate: float
    metric: Metric
    region: Region
    invariant: Region | None
    equilibrium: Ball | None
    sampled: float
    method: str
    flow: str
    boxes: int
    complete: bool
    times: tuple[float, float] | None = None

    @property
    def contracting(self) -> bool:
        """Whether the rate is positive."""
        return self.rate > 0

    def holds(self, centre: Tensor, radius: float) -> bool:
        """Whether a ball of the metric lies in ``invariant``, so that the rate carries it for ever: (n,) -> bool."""
        inside = 0.0 if self.invariant is None else inscribed_radius(self.invariant, self.metric, centre)
        return radius <= inside * (1 + 1e-9)

    def contains(self, states: Tensor) -> Tensor:
        """Where ‖f(s)‖/c bounds the distance to the equilibrium: inside a region that is known to hold it.

        Args:
            states: (batch, n).

        Returns:
            (batch,).
        """
        inside = self.region.contains(states)
        return inside if self.equilibrium is not None else torch.zeros_like(inside)

    @property
    def gap(self) -> float:
        """sampled − rate: how much of the rate is unknown."""
        return self.sampled - self.rate

    @property
    def claim(self) -> str:
        """What was proved of trajectories, in words."""
        during = "" if self.times is None else f" during t = {self.times[0]:g} … {self.times[1]:g}"
        if self.invariant is None:
            return f"as long as both trajectories stay inside{during}"
        where = "the region" if self.invariant is self.region else str(self.invariant)
        if self.equilibrium is None:
            return f"no trajectory leaves {where}{during}, and all from it come together"
        return f"every trajectory from {where} converges to the equilibrium in it"

    def __str__(self) -> str:
        kept = "" if self.complete else f"; budget of {self.boxes} boxes spent, sampled rate {self.sampled:.6g}"
        return (
            f"{self.flow}: contracts at rate ≥ {self.rate:.6g} in {type(self.metric).__name__} over {self.region}, "
            f"{self.claim} ({self.method}{kept})"
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LargestBall(Displayed):
    """The largest ball that could be proved, and how much larger it might be.

    Attributes:
        certificate: of the ball.
        radius: of the ball, in its metric.
        broken: the smallest radius at which a point was seen where the field does not contract at the rate asked for in
            this metric; no ball that large can be proved. It is the radius searched where none was seen.
        at: that point, (n,); None where none was seen.
    """

    certificate: RegionCertificate
    radius: float
    broken: float
    at: Tensor | None

    @property
    def ball(self) -> Ball:
        """The ball."""
        region = self.certificate.region
        assert isinstance(region, Ball)
        return region

    @property
    def share(self) -> float:
        """radius/broken: 1 where nothing is unknown."""
        return self.radius / self.broken

    def __str__(self) -> str:
        seen = "no point that does not contract was seen" if self.at is None else "a point does not contract"
        return f"{self.certificate}; {seen} up to radius {self.broken:.6g} ({self.share:.1%})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RateProfile(Displayed):
    """Rates over balls of one centre and metric: what is proved, and what no proof may exceed.

    Attributes:
        radii: (k,).
        certified: the rate proved over each ball, (k,).
        sampled: the rate at the worst point seen in each, (k,).
        metric: of the balls and of the rates.
        flow: the field in words.
    """

    _units = {"certified": PER_TIME, "sampled": PER_TIME}

    radii: Tensor
    certified: Tensor
    sampled: Tensor
    metric: Metric
    flow: str
