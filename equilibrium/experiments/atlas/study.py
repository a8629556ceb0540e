"""What is proved and what is seen of every system of the atlas."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import (
    Ball,
    CarriedBall,
    LargestBall,
    Metric,
    RateProfile,
    carry_ball,
    certify_region,
    largest_contracting_ball,
    rate_against_radius,
)
from equilibrium.experiments.atlas.systems import KnownSystem
from equilibrium.experiments.tables import Column

_RAYS, _STEPS = 720, 500  # The dense sample: so many rays from the equilibrium, so many points on each.
_BEYOND = 1.1  # It reaches so many times as far as the smallest radius that the search saw to fail.
_SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95, 1.0)  # Radii at which rates are proved, in largest proved ones.
_START, _TUBE = 0.55, 0.35  # A tube starts so far from the equilibrium, and so wide, in radii of the ball.
_TIMES, _SPAN = 121, 3.0  # It is followed for so many time constants of the rate in the smallest ball of the profile.


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One page of the atlas.

    Attributes:
        system: what it is about.
        found: the largest ball that was proved.
        sampled: the smallest radius at which the dense sample has a point that does not contract.
        seconds: of looking for the ball and its metric.
        profile: rates against the radius, up to the ball.
        tube: a ball of initial states inside, carried by the flow.
    """

    system: KnownSystem
    found: LargestBall
    sampled: float
    seconds: float
    profile: RateProfile
    tube: CarriedBall

    @property
    def share(self) -> float:
        """The radius proved, in radii at which a dense sample still contracts."""
        return self.found.radius / self.sampled


def explore(system: KnownSystem, *, small: bool = False) -> Entry:
    """Prove the largest ball of a system, and look at it from all sides."""
    started = time.perf_counter()
    found = largest_contracting_ball(system.flow, torch.tensor(system.guess, dtype=torch.float64))
    seconds = time.perf_counter() - started
    ball = found.ball
    shares = torch.tensor(_SHARES[1::3] if small else _SHARES, dtype=torch.float64)
    profile = rate_against_radius(system.flow, ball.centre, found.radius * shares, ball.metric)
    return Entry(
        system=system,
        found=found,
        sampled=densely_sampled(system, found, rays=90 if small else _RAYS),
        seconds=seconds,
        profile=profile,
        tube=_tube(system, found, float(profile.certified[0]), small),
    )


def densely_sampled(system: KnownSystem, found: LargestBall, *, rays: int = _RAYS) -> float:
    """The smallest radius at which a point of a dense sample does not contract in the metric of the ball."""
    ball, metric = found.ball, found.ball.metric
    angles = torch.linspace(0, 2 * math.pi, rays + 1, dtype=torch.float64)[:-1]
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    directions = directions / metric.norm(directions)[:, None]
    radii = torch.linspace(0, _BEYOND * found.broken, _STEPS + 1, dtype=torch.float64)[1:]
    points = ball.centre + radii[:, None, None] * directions
    fails = _measures(system, points.flatten(0, 1), metric).reshape(points.shape[:2]) >= 0
    lengths = radii[fails.any(1)]
    return min(found.broken, float(lengths[0])) if len(lengths) else float(radii[-1])


def _measures(system: KnownSystem, points: Tensor, metric: Metric) -> Tensor:
    with torch.no_grad():
        return metric.matrix_measure(system.flow.jacobian(points).detach())


def _tube(system: KnownSystem, found: LargestBall, rate: float, small: bool) -> CarriedBall:
    ball = found.ball
    direction = torch.tensor([0.8, 0.6], dtype=torch.float64)
    centre = ball.centre + _START * found.radius * direction / ball.metric.norm(direction)
    # the rate near the tube, which stays in a smaller ball, is larger than that of the whole ball
    inner = certify_region(system.flow, Ball(ball.centre, (_START + _TUBE) * found.radius, ball.metric))
    times = torch.linspace(0, _SPAN / rate, 21 if small else _TIMES, dtype=torch.float64)
    return carry_ball(system.flow, centre, _TUBE * found.radius, times, evidence=inner, points=24 if small else 90)


COLUMNS = (
    Column("system", lambda entry: entry.system.title),
    Column("proved radius", lambda entry: entry.found.radius),
    Column("sampled radius", lambda entry: entry.sampled),
    Column("ratio", lambda entry: entry.share, ".3f"),
    Column("rate at 90 %", lambda entry: entry.tube.evidence.rate),
    Column("boxes", lambda entry: float(entry.found.certificate.boxes), ".0f"),
    Column("seconds, one run", lambda entry: entry.seconds, ".1f"),
)
