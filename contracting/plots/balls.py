"""Balls of a norm that need not be ellipses, as they shrink at its rate, with what stays inside them."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from torch import Tensor

from contracting.errors import InputError
from contracting.plots.style import GREEN, SLACK, finish, look, new_axes, shown
from contracting.simulation.balls import unit_sphere
from contracting.simulation.evidence import Evidence, standing

_POINTS = 360  # Balls are drawn through so many points.


def plot_shrinking_balls(
    times: Tensor,
    paths: Tensor,
    axes: Axes | None = None,
    *,
    evidence: Evidence,
    beside: Evidence | None = None,
    balls: int = 4,
    title: str | None = None,
) -> Axes:
    """Differences of trajectories in the plane, and the balls of a norm that shrink around zero at its rate.

    Each difference that begins in the first ball is in every later one at its time, where the rate is right.

    Args:
        times: (T,), rising.
        paths: s₁(t) − s₂(t), (T, 2) or (T, count, 2).
        axes: where to draw; None makes a figure of full width.
        evidence: a contraction rate with its norm: a ``Certificate``, a ``SampledRate``, or a ``Claim``.
        beside: another one, whose unit ball alone is drawn, as large as fits around that of ``evidence``.
        balls: at how many times balls and differences are marked.
        title: None says whether the differences stay inside.

    Raises:
        InputError: if something is not in the plane, or there are not as many times as points.
    """
    if times.ndim != 1 or paths.shape[-1] != 2 or len(paths) != len(times) or evidence.metric.size != 2:
        raise InputError(
            f"times must have shape (T,), paths (T, count, 2) and the metric act in the plane, got "
            f"{tuple(times.shape)}, {tuple(paths.shape)} and {evidence.metric.size}"
        )
    axes = new_axes() if axes is None else axes
    paths = paths.detach().reshape(len(times), -1, 2)
    radii = torch.exp(-evidence.rate * (times - times[0]).detach())
    sphere = unit_sphere(evidence.metric, _POINTS)
    sphere = torch.cat([sphere, sphere[:1]])
    moments = torch.linspace(0, len(times) - 1, balls).round().long().tolist()
    word, rate = standing(evidence), shown(evidence.rate)
    for index, at in enumerate(moments):
        ring = float(radii[at]) * sphere
        label = None if index else f"{word} balls, rate {rate}"
        axes.plot(*ring.mT.tolist(), label=label, **(look(evidence) | {"linewidth": 1.2}))
    if beside is not None:
        other = unit_sphere(beside.metric, _POINTS)
        other = torch.cat([other, other[:1]]) / evidence.metric.norm(other).min()
        label = f"best quadratic metric,\nrate {shown(beside.rate)}"
        axes.plot(*other.mT.tolist(), color=GREEN, linewidth=1.2, label=label)
    for index, path in enumerate(paths.unbind(1)):
        label = None if index else "differences, marked\nat the times of balls"
        axes.plot(*path.mT.tolist(), color="black", linewidth=0.8, label=label)
        axes.plot(*path[moments].mT.tolist(), "o", color="black", markersize=3)
    axes.set_aspect("equal")
    inside = bool((evidence.metric.norm(paths) <= radii[:, None] * (1 + SLACK)).all())
    said = f"The ball shrinks at rate {rate}, and no difference of trajectories leaves it"
    finish(
        axes,
        x="difference of unit 1",
        y="difference of unit 2",
        title=title or (said if inside else f"A difference leaves its {word} ball"),
    )
    return axes
