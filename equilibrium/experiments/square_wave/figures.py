"""Figures of a square wave and the networks fitted to it: a Lipschitz bound is a slope one can see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from contracting.plots.style import BLUE, CERTIFIED, GREEN, ORANGE, PURPLE, SEEN, VERMILION, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_square_wave(fits: Mapping[str, Any], axes: Axes, *, jump: float | None = None) -> Axes:
    """A square wave and the networks fitted to it, with measured and certified slope in the legend.

    Args:
        fits: ``x`` and ``target`` to draw, and ``networks`` with ``name``, ``y``, ``measured`` and ``certified`` slope
            each, and the point ``at`` where it is steepest.
        axes: where to draw.
        jump: half the width of a window around the steepest points, in which the certified slope is a dashed line
            through each; None draws everything.
    """
    if jump is None:
        axes.plot(fits["x"], fits["target"], color=SEEN, linewidth=1.0, label="square wave")
    for network, colour in zip(fits["networks"], (BLUE, GREEN, ORANGE, VERMILION, PURPLE), strict=False):
        slopes = f"{network['measured']:.3g} ≤ {network['certified']:.3g}"
        x, y = fits["x"], network["y"]
        if jump is None:
            axes.plot(x, y, color=colour, linewidth=1.4, label=f"{network['name']}: {slopes}")
            continue
        x0, y0 = network["at"]
        near = [(a - x0, math.copysign(1.0, _rise(x, y, x0)) * (b - y0)) for a, b in zip(x, y, strict=True)]
        near = [point for point in near if abs(point[0]) <= jump]
        axes.plot(*zip(*near, strict=True), color=colour, linewidth=1.4, label=network["name"])
        reach = min(jump, 1.3 / network["certified"])
        height = reach * network["certified"]
        axes.plot([-reach, reach], [-height, height], **CERTIFIED | {"color": colour, "linewidth": 0.9})
    if jump is not None:
        axes.plot([], [], **CERTIFIED | {"color": SEEN, "linewidth": 0.9}, label="certified slope")
        axes.set_xlim(-jump, jump)
        axes.set_ylim(-1.5, 1.5)
    place = "" if jump is None else " − steepest point"
    title = "Steepest measured slope ≤ certified slope" if jump is None else "Where each fit is steepest"
    finish(axes, x=f"x{place}", y=f"y{place}", title=title)
    return axes


def _rise(x: list[float], y: list[float], at: float) -> float:
    """y right of a point less y left of it."""
    k = min(range(1, len(x) - 1), key=lambda i: abs(x[i] - at))
    return y[k + 1] - y[k - 1]
