r"""A ball of initial states carried by a flow, inside the ball that a rate promises.

A flow that contracts at rate c takes the ball of radius r around s(0) into the ball of radius re^{−ct} around s(t). In
the plane the image of the sphere is the boundary of the image of the ball, so a picture of it shows the whole claim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.display import Displayed
from contracting.errors import InputError
from contracting.flows.driven import Input
from contracting.flows.fields import VectorField
from contracting.metrics import Metric
from contracting.regions.records import RegionCertificate
from contracting.simulation.evidence import Evidence, standing
from contracting.simulation.time_steps import Integrator
from contracting.simulation.times import elapsed_times, time_grid
from contracting.simulation.trajectories import simulate


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CarriedBall(Displayed):
    """A ball and what a flow made of it.

    Attributes:
        times: (T,).
        centre: trajectory of the centre, (T, n).
        sphere: trajectories of points that start on the sphere, (T, points, n).
        radius: the radius re^{−ct} that the evidence promises at each time, (T,).
        evidence: the rate c with its norm, and what it rests on.
    """

    times: Tensor
    centre: Tensor
    sphere: Tensor
    radius: Tensor
    evidence: Evidence

    @property
    def reached(self) -> Tensor:
        """Distance of the farthest point from the centre, (T,); at most ``radius`` where the rate is right."""
        return self.evidence.metric.norm(self.sphere - self.centre[:, None]).amax(1)


def unit_sphere(metric: Metric, points: int = 120, *, seed: int = 0) -> Tensor:
    """Points with ‖x‖ = 1, in order around the centre in the plane and in random directions elsewhere: (points, n).

    Raises:
        InputError: if there are no points.
    """
    checks.whole_number("points", points)
    n = metric.size
    if n == 2:
        angle = torch.linspace(0, 2 * math.pi, points + 1, dtype=torch.float64)[:-1]
        directions = torch.stack([angle.cos(), angle.sin()], -1)
    else:
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(points, n, generator=generator, dtype=torch.float64)
    return directions / metric.to(directions).norm(directions)[:, None]


def carry_ball(
    flow: VectorField,
    centre: Tensor,
    radius: float,
    times: Tensor,
    *,
    evidence: Evidence,
    points: int = 120,
    signal: Input | None = None,
    integrator: Integrator | None = None,
) -> CarriedBall:
    """Follow a ball of initial states.

    Args:
        flow: any vector field; a flow of a problem with a single row of input.
        centre: (n,), state at the first time.
        radius: r > 0, in the metric.
        times: (T,), rising.
        evidence: a contraction rate c in a norm: a ``Certificate``, a ``RegionCertificate`` whose invariant part holds
            the ball, a ``SampledRate``, or a ``Claim``.
        points: how many states on the sphere are followed.
        signal: a moving input.
        integrator: for the simulation.

    Raises:
        InputError: on shapes that do not fit, numbers that are not finite, or a ball that leaves the invariant part of
            the region that the rate is about.
    """
    checks.positive_number("radius", radius)
    standing(evidence)
    checks.whole_number("points", points, low=3)
    if checks.floating_tensor("centre", centre).ndim != 1:
        raise InputError(f"centre must have shape (n,), got {tuple(centre.shape)}")
    checks.last_size("centre", centre, evidence.metric.size)
    if isinstance(evidence, RegionCertificate) and not evidence.holds(centre.detach().to("cpu", torch.float64), radius):
        raise InputError(
            f"the ball of radius {radius:.4g} leaves the part of the region that is proved to be invariant: take a "
            "smaller radius, or a centre farther inside"
        )
    sphere = centre + radius * unit_sphere(evidence.metric, points).to(centre)
    start = torch.cat([centre[None], sphere])
    elapsed = elapsed_times(time_grid(times, forwards=True).to(centre.device), centre)[:, 0]
    states = simulate(flow, start, times, signal=signal, integrator=integrator)
    return CarriedBall(
        times=states.times,
        centre=states.states[:, 0],
        sphere=states.states[:, 1:],
        radius=radius * torch.exp(-evidence.rate * elapsed),
        evidence=evidence,
    )
