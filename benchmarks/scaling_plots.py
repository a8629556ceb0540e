"""The figure of scaling.py, drawn on matplotlib's objects; colours of Okabe and Ito, told apart by the colour-blind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.figure
from scaling_point import Point
from solve_time_plots import CLOCKS

from contracting.plots.style import BLUE, FULL_WIDTH, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(sizes: Sequence[Point], rows: Sequence[Point], clock: str) -> Figure:
    """Time against n, set-up apart, and against rows, with the slopes of the work to be done as dashed lines."""
    figure = matplotlib.figure.Figure(figsize=(FULL_WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    n = [p.size for p in sizes]
    solve = [getattr(p, f"solve_{clock}") for p in sizes]
    setup = [getattr(p, f"setup_{clock}") for p in sizes]
    left.plot(n, setup, color=VERMILION, marker="s", label="set-up, once per weight")
    left.plot(n, solve, color=BLUE, marker="o", label="solve")
    _slope(left, n, solve, 2)
    _finish(left, "neurons n", f"{CLOCKS[clock]} (s)", f"{sizes[0].rows} rows, residual 1e-6")
    count = [p.rows for p in rows]
    solve = [getattr(p, f"solve_{clock}") for p in rows]
    right.plot(count, solve, color=BLUE, marker="o", label="solve")
    _slope(right, count, solve, 1)
    _finish(right, "rows solved at once", f"{CLOCKS[clock]} (s)", f"n = {rows[0].size}, residual 1e-6")
    return figure


def _slope(axes: Any, x: Sequence[int], y: Sequence[float], power: int) -> None:
    line = [y[-1] * (value / x[-1]) ** power for value in x]
    name = "rows" if power == 1 else f"$n^{power}$"
    shown = [(a, b) for a, b in zip(x, line, strict=True) if b >= 0.3 * min(y)]
    style = {"color": "0.4", "linewidth": 1, "linestyle": (0, (4, 4))}
    axes.plot(*zip(*shown, strict=True), **style, label=f"proportional to {name}")


def _finish(axes: Any, x: str, y: str, title: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.set_title(title, fontsize=10, loc="left")
    axes.tick_params(labelsize=9)
    axes.grid(True, color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8.5, frameon=False)
