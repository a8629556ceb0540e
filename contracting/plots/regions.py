"""Regions in the plane, tubes around trajectories, and how the rate falls as the region grows."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from torch import Tensor

from contracting.errors import InputError
from contracting.flows.fields import VectorField
from contracting.plots.style import BLUE, BOUND, CERTIFIED, VERMILION, finish, new_axes, shown
from contracting.regions.records import LargestBall, RateProfile, RegionCertificate
from contracting.regions.sets import Ball, Box, Region
from contracting.simulation.balls import CarriedBall, unit_sphere

_GRID = 161  # Where a field contracts is looked at on a grid of so many points along each side.
_CORNERS = 180  # Points on the outline of a ball.
_PALE = "#BFE3F7"  # A tube is drawn in this lighter shade of blue, on which its trajectory is seen.


def draw_region(
    axes: Axes,
    flow: VectorField,
    found: LargestBall | RegionCertificate,
    x: tuple[float, float],
    y: tuple[float, float],
    like: Tensor,
) -> None:
    """The outline of a region, and where the field does not contract in its metric, seen on a grid.

    Args:
        axes: where to draw, the whole window of them.
        flow: a vector field on states (batch, 2).
        found: what was proved.
        x: first and last value of the first coordinate.
        y: the same of the second.
        like: a tensor of the dtype and device that the states of the flow have.

    Raises:
        InputError: if the region is not in the plane.
    """
    record = found.certificate if isinstance(found, LargestBall) else found
    if record.region.size != 2:
        raise InputError(f"region must be in the plane to be drawn, this one has {record.region.size} entries")
    across, up = (torch.linspace(*ends, _GRID, dtype=torch.float64) for ends in (x, y))
    points = torch.cartesian_prod(up, across).flip(-1)
    with torch.no_grad():
        jacobians = flow.jacobian(points.to(like)).detach().to("cpu", torch.float64)
    measures = record.metric.matrix_measure(jacobians.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
    grid = measures.reshape(_GRID, _GRID)
    if float(grid.max()) > 0:
        top = float(grid.max())
        axes.contourf(
            across.numpy(), up.numpy(), grid.numpy(), levels=[0.0, top], colors=[VERMILION], alpha=0.18, zorder=0
        )
    ring = outline(record.region)
    name = f"proved: contracts at rate {shown(record.rate)}"
    axes.plot(*ring.mT.tolist(), label=name, **CERTIFIED)
    if record.invariant is not None and record.invariant is not record.region:
        axes.plot(*outline(record.invariant).mT.tolist(), color=BLUE, linewidth=1.2, label="proved: never left")
    axes.fill([], [], facecolor=VERMILION, alpha=0.18, label="does not contract (sampled)")


def outline(region: Region) -> Tensor:
    """The boundary of a region of the plane as a closed line, (points, 2)."""
    if isinstance(region, Ball):
        ring = region.centre + region.radius * unit_sphere(region.metric, _CORNERS)
    else:
        assert isinstance(region, Box)
        (left, low), (right, high) = region.lower.tolist(), region.upper.tolist()
        ring = torch.tensor([[left, low], [right, low], [right, high], [left, high]], dtype=torch.float64)
    return torch.cat([ring, ring[:1]])


def draw_tube(axes: Axes, ball: CarriedBall, *, labelled: bool) -> None:
    """The tube that balls of radius re^{−ct} sweep along a trajectory, and the trajectory."""
    ring = unit_sphere(ball.evidence.metric, _CORNERS).to(ball.centre)
    for centre, radius in zip(ball.centre.detach(), ball.radius, strict=True):
        axes.fill(*(centre + radius * ring).mT.tolist(), facecolor=_PALE, linewidth=0, zorder=1.5)
    axes.fill([], [], facecolor=_PALE, label="tube of the certified rate" if labelled else None)
    axes.plot(*ball.centre.detach().mT.tolist(), color="black", linewidth=0.9, label="trajectory" if labelled else None)


def verdict(found: LargestBall | RegionCertificate) -> str:
    """What was proved, as a title."""
    record = found.certificate if isinstance(found, LargestBall) else found
    if not record.contracting:
        return "Contraction is not proved over this region"
    if record.invariant is None:
        return f"Contraction at rate {shown(record.rate)} is proved as long as trajectories stay inside"
    more = f", {found.share:.0%} of what is possible" if isinstance(found, LargestBall) and found.at is not None else ""
    return f"Every trajectory from the dashed region converges to its equilibrium{more}"


def plot_rate_against_radius(
    profile: RateProfile, axes: Axes | None = None, *, broken: float | None = None, title: str | None = None
) -> Axes:
    """The rate proved over balls of growing radius, below the rate at the worst point seen in each.

    Args:
        profile: what ``rate_against_radius`` returned.
        axes: where to draw; None makes a figure of full width.
        broken: the smallest radius at which a point was seen that does not contract, as a ``LargestBall`` has it.
        title: None says up to which radius contraction is proved.
    """
    axes = new_axes() if axes is None else axes
    radii, certified, sampled = (x.tolist() for x in (profile.radii, profile.certified, profile.sampled))
    axes.fill_between(radii, certified, sampled, color="0.85", linewidth=0, label="not known")
    axes.plot(radii, sampled, label="at the worst point seen", **BOUND)
    axes.plot(radii, certified, marker="o", markersize=3.5, label="certified", **CERTIFIED)
    axes.axhline(0, color="0.3", linewidth=0.6)
    if broken is not None:
        axes.axvline(broken, color=VERMILION, linewidth=1.0, label=f"a point at {shown(broken)} does not contract")
    proved = [radius for radius, rate in zip(radii, certified, strict=True) if rate > 0]
    said = f"Contraction is proved up to radius {shown(max(proved))}" if proved else "No ball is proved to contract"
    finish(axes, x="radius of the ball (in its metric)", y="contraction rate (per unit of time)", title=title or said)
    return axes
