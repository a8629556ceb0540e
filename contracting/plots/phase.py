"""Phase portraits in the plane: streamlines, nullclines, the equilibrium, and balls that shrink at a rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.animation
import torch
from matplotlib.axes import Axes
from torch import Tensor

from contracting.errors import InputError
from contracting.flows.base import BoundFlow
from contracting.flows.fields import LinearFlow, NeuralFlow, VectorField
from contracting.plots.regions import draw_region, draw_tube, verdict
from contracting.plots.style import (
    GREEN,
    SKY,
    SLACK,
    VERMILION,
    figure_of,
    finish,
    look,
    new_axes,
    pair_of_names,
    shown,
)
from contracting.regions.records import LargestBall, RegionCertificate
from contracting.simulation.balls import CarriedBall, unit_sphere
from contracting.simulation.evidence import standing

Limits = tuple[float, float]

_GRID = 161  # Nullclines and streamlines are drawn from so many points along each side.


def plot_phase_portrait(
    flow: VectorField,
    axes: Axes | None = None,
    *,
    x: Limits,
    y: Limits,
    equilibrium: Tensor | None = None,
    trajectories: Tensor | None = None,
    ball: CarriedBall | None = None,
    balls: int = 5,
    title: str | None = None,
    names: tuple[str, str] | None = None,
    region: LargestBall | RegionCertificate | None = None,
    tubes: Sequence[CarriedBall] = (),
    nullclines: bool = True,
) -> Axes:
    """Where a flow in the plane goes, and how it shrinks a ball of the metric.

    Each ball of a certificate (dashed) contains the image of the first one under the flow (filled); of a rate that was
    sampled or claimed it may.

    Args:
        flow: a vector field on states (batch, 2), with a single row of input.
        axes: where to draw; None makes a figure of full width.
        x: first and last value of the first coordinate.
        y: the same of the second.
        equilibrium: a steady state, (2,).
        trajectories: states in time, (T, 2) or (T, batch, 2).
        ball: what ``carry_ball`` returned.
        balls: at how many times it is drawn.
        title: None says whether the balls contain the images.
        names: of the two coordinates, for the axes; None numbers the units.
        region: what was proved of a region: its outline is drawn, and where the field does not contract in its metric.
        tubes: balls that ``carry_ball`` followed, each drawn as the tube that the radius of its rate sweeps.
        nullclines: whether to draw where a unit is at rest.

    Raises:
        InputError: if something is not in the plane.
    """
    units = pair_of_names(names, ("unit 1", "unit 2"))
    axes = new_axes(height=4.4) if axes is None else axes
    like = _like(flow, ball)
    _draw_field(axes, flow, x, y, like, units if nullclines else None)
    if region is not None:
        draw_region(axes, flow, region, x, y, like)
    for index, tube in enumerate(tubes):
        _require_plane("tubes", tube.centre)
        draw_tube(axes, tube, labelled=not index)
    if trajectories is not None:
        _require_plane("trajectories", trajectories)
        for index, path in enumerate(trajectories.detach().reshape(len(trajectories), -1, 2).unbind(1)):
            axes.plot(*path.mT.tolist(), color="black", linewidth=1.0, label=None if index else "trajectories")
    if ball is not None:
        _require_plane("ball", ball.centre)
        axes.plot(*ball.centre.mT.tolist(), color="black", linewidth=0.8, label="centre of the ball")
        for index, at in enumerate(_moments(ball, balls)):
            inside, outside = _rings(ball, at)
            name = (None, None) if index else ("image of the ball", _named(ball))
            axes.fill(*inside.mT.tolist(), facecolor=SKY, edgecolor=SKY, alpha=0.55, linewidth=0.5, label=name[0])
            axes.plot(*_closed(outside).mT.tolist(), label=name[1], **(look(ball.evidence) | {"linewidth": 1.1}))
    if equilibrium is not None:
        _require_plane("equilibrium", equilibrium)
        axes.plot(*equilibrium.tolist(), "o", color="black", markersize=5, linestyle="none", label="equilibrium")
    _frame(axes, x, y)
    if title is None:
        title = "Phase portrait" if region is None else verdict(region)
        title = title if ball is None else _verdict(ball)
    first, second = pair_of_names(names, ("state of unit 1", "state of unit 2"))
    finish(axes, x=first, y=second, title=title)
    return axes


def animate_phase_portrait(
    flow: VectorField,
    ball: CarriedBall,
    axes: Axes | None = None,
    *,
    x: Limits,
    y: Limits,
    frames: int = 40,
    seconds: float = 4.0,
    title: str | None = None,
    names: tuple[str, str] | None = None,
) -> matplotlib.animation.FuncAnimation:
    """The same as a film: the image of a ball, and the ball of its rate around it, moving with the flow.

    Args:
        flow: a vector field on states (batch, 2), with a single row of input.
        ball: what ``carry_ball`` returned.
        axes: where to draw; None makes a figure.
        x: first and last value of the first coordinate.
        y: the same of the second.
        frames: how many pictures; they are taken at times of the ball.
        seconds: length of the film.
        title: as for ``plot_phase_portrait``.
        names: the same.

    Returns:
        The animation; ``equilibrium.artifacts.write_animation`` writes it as GIF or MP4.

    Raises:
        InputError: if something is not in the plane.
    """
    _require_plane("ball", ball.centre)
    units = pair_of_names(names, ("unit 1", "unit 2"))
    axes = new_axes(4.2, 4.2) if axes is None else axes
    _draw_field(axes, flow, x, y, _like(flow, ball), units)
    (image,) = axes.fill([], [], facecolor=SKY, edgecolor=SKY, alpha=0.55, label="image of the ball")
    (ring,) = axes.plot([], [], label=_named(ball), **look(ball.evidence))
    (path,) = axes.plot([], [], color="black", linewidth=1.0, label="centre of the ball")
    _frame(axes, x, y)
    first, second = pair_of_names(names, ("state of unit 1", "state of unit 2"))
    finish(axes, x=first, y=second, title=title or _verdict(ball))
    moments = _moments(ball, frames, by_time=True)

    def draw(frame: int) -> tuple[Any, ...]:
        inside, outside = _rings(ball, moments[frame])
        image.set_xy(inside.cpu().numpy())
        ring.set_data(*_closed(outside).mT.tolist())
        path.set_data(*ball.centre[: moments[frame] + 1].mT.tolist())
        return image, ring, path

    draw(0)
    return matplotlib.animation.FuncAnimation(
        figure_of(axes), draw, frames=len(moments), interval=1000 * seconds / len(moments), blit=False
    )


def _like(flow: VectorField, ball: CarriedBall | None) -> Tensor:
    """A tensor of the dtype and device that the states of a flow have, float64 on the CPU where nothing is known."""
    own: Iterable[Tensor] = ()
    if isinstance(flow, BoundFlow):
        own = [flow.problem.q]
    elif isinstance(flow, LinearFlow):
        own = [flow.matrix]
    elif isinstance(flow, NeuralFlow) and isinstance(flow.module, torch.nn.Module):
        own = flow.module.parameters()
    known = torch.empty(0, dtype=torch.float64) if ball is None else ball.centre
    return next(iter(own), known)


def _draw_field(
    axes: Axes, flow: VectorField, x: Limits, y: Limits, like: Tensor, names: tuple[str, str] | None
) -> None:
    """Streamlines, and unless ``names`` is None the lines on which a coordinate is at rest."""
    grid_x = torch.linspace(*x, _GRID, dtype=torch.float64)
    grid_y = torch.linspace(*y, _GRID, dtype=torch.float64)
    points = torch.cartesian_prod(grid_y, grid_x).flip(-1)
    with torch.no_grad():
        field = flow(0.0, points.to(like)).to("cpu", torch.float64)
    u, v = (field[:, i].reshape(_GRID, _GRID).numpy() for i in (0, 1))
    axes.streamplot(
        grid_x.numpy(), grid_y.numpy(), u, v, color="0.8", linewidth=0.6, arrowsize=0.7, density=0.9, zorder=1
    )
    if names is None:
        return
    for component, colour, name in ((u, VERMILION, names[0]), (v, GREEN, names[1])):
        if component.min() < 0 < component.max():
            axes.contour(grid_x.numpy(), grid_y.numpy(), component, levels=[0.0], colors=[colour], linewidths=1.0)
        axes.plot([], [], color=colour, linewidth=1.0, label=f"{name} at rest")


def _frame(axes: Axes, x: Limits, y: Limits) -> None:
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.set_aspect("equal")


def _moments(ball: CarriedBall, count: int, *, by_time: bool = False) -> list[int]:
    """Indices of times at which to draw: equal steps in time, or along the path of the centre."""
    if by_time:
        wanted = torch.linspace(float(ball.times[0]), float(ball.times[-1]), count, dtype=ball.times.dtype)
        measure = ball.times
    else:  # equally far apart along the way, so that the balls do not pile up at the equilibrium
        lengths = torch.linalg.vector_norm(ball.centre.detach().diff(dim=0), dim=-1).cumsum(0)
        measure = torch.cat([lengths.new_zeros(1), lengths])
        wanted = torch.linspace(0, float(measure[-1]), count, dtype=measure.dtype)
    return sorted({int((measure - value).abs().argmin()) for value in wanted})


def _rings(ball: CarriedBall, at: int) -> tuple[Tensor, Tensor]:
    """The image of the sphere and the sphere of the rate at one time, each (points, 2)."""
    outside = ball.centre[at] + ball.radius[at] * unit_sphere(ball.evidence.metric, 180).to(ball.centre)
    return ball.sphere[at].detach(), outside.detach()


def _closed(ring: Tensor) -> Tensor:
    return torch.cat([ring, ring[:1]])


def _named(ball: CarriedBall) -> str:
    return f"{standing(ball.evidence)} ball, rate {shown(ball.evidence.rate)}"


def _verdict(ball: CarriedBall) -> str:
    if bool((ball.reached <= ball.radius * (1 + SLACK)).all()):
        shrunk = float(ball.radius[-1] / ball.radius[0])
        return f"Every image stays inside its {standing(ball.evidence)} ball, which shrinks to {shrunk:.0%}"
    return f"An image leaves its {standing(ball.evidence)} ball"


def _require_plane(name: str, states: Tensor) -> None:
    if states.shape[-1] != 2 or not bool(torch.isfinite(states).all()):
        raise InputError(f"{name} must be finite and in the plane, (..., 2), got shape {tuple(states.shape)}")


