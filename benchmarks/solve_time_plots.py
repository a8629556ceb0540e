"""Figures of solve_time.py, drawn on matplotlib's objects; colours of Okabe and Ito, told apart by the colour-blind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.figure
import matplotlib.ticker
from solve_time_case import Case

from contracting.plots.style import BLUE, FULL_WIDTH, GREEN, ORANGE, PURPLE, VERMILION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLOCKS = {"wall": "wall time", "cpu": "CPU time"}
_ROWS = 1000  # of the batch that is drawn, or the largest there is
_MARKERS = "osD^vP"
_COLOURS = (BLUE, VERMILION, GREEN, "black", PURPLE, ORANGE)
_LABELS = {
    "bare": "bare matrix products",
    "default": "default, Automatic()",
    "PeacemanRachford": "PeacemanRachford()",
    "one-precision": "… without float32 steps",
    "DouglasRachford-1.8": "DouglasRachford(relaxation=1.8)",
    "SemismoothNewton": "SemismoothNewton()",
    "reference": "reference, trial halving",
    "reference-best-step": "reference, best step",
    "reference-oracle": "reference, oracle",
    "torchdeq-anderson": "torchdeq Anderson",
    "torchdeq-broyden": "torchdeq Broyden",
    "torchdiffeq-dopri5": "torchdiffeq dopri5",
    "torchdiffeq-bosh3": "torchdiffeq bosh3",
    "torchdiffeq-BDF": "torchdiffeq BDF (scipy)",
}


def draw(cases: Sequence[Case], clock: str) -> dict[str, Figure]:
    """The figures by name: everybody's time in float64 to 1e-6, and the cost beside products by rows."""
    chosen = [case for case in cases if case.dtype == "float64" and case.target == 1e-6]
    if not chosen:
        return {}
    rows = _ROWS if any(case.rows == _ROWS for case in chosen) else max(case.rows for case in chosen)
    figures = {"time-to-residual": _times([case for case in chosen if case.rows == rows], clock)}
    if len({case.rows for case in chosen}) > 1:  # its message is how the share falls with the rows
        figures["overhead"] = _overheads(chosen, clock)
    return figures


def _times(cases: Sequence[Case], clock: str) -> Figure:
    """One line for each contestant, one mark for each network; a cross at the right edge is a failure."""
    present = [name for name in _LABELS if any(name in case.contestants for case in cases)]
    figure, axes = _axes(0.35 * len(present) + 1.5)
    seconds = [value for case in cases for name in present if (value := case.seconds(name, clock))]
    edge = 3 * max(seconds)
    for number, case in enumerate(cases):
        style = _style(number)
        height = 0.5 * (number / max(1, len(cases) - 1) - 0.5) if len(cases) > 1 else 0.0
        for place, name in enumerate(present):
            value = case.seconds(name, clock)
            if value is not None:
                axes.plot(1e3 * value, place + height, **style, linestyle="none")
            elif name in case.contestants:
                axes.plot(1e3 * edge, place + height, marker="x", color=style["color"], markersize=5, linestyle="none")
        axes.plot([], [], **style, linestyle="none", label=case.network)
    axes.plot([], [], marker="x", color="0.3", markersize=5, linestyle="none", label="not reached")
    axes.set_xscale("log")
    axes.set_yticks(range(len(present)), [_LABELS[name] for name in present], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel(f"{CLOCKS[clock]} of a solve (ms)", fontsize=10)
    title = f"Time to a true relative residual of 1e-6: {cases[0].rows} rows, float64"
    return _finished(figure, axes, title)


def _overheads(cases: Sequence[Case], clock: str) -> Figure:
    figure, axes = _axes(3.6)
    for number, network in enumerate(dict.fromkeys(case.network for case in cases)):
        points = [
            (case.rows, ratio)
            for case in cases
            if case.network == network and (ratio := case.ratio("bare", clock)) is not None
        ]
        axes.plot(*zip(*sorted(points), strict=True), **_style(number), linewidth=1.2, label=network)
    axes.axhline(1.0, color="0.4", linewidth=1, linestyle=(0, (4, 4)), label="products alone")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(counts := sorted({case.rows for case in cases}), [f"{count:,}" for count in counts])
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0)))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.set_xlabel("rows solved at once", fontsize=10)
    axes.set_ylabel("time of a solve / time of its\nbare matrix products", fontsize=10)
    return _finished(figure, axes, "What a solve costs beyond its matrix products: float64, residual 1e-6")


def _style(number: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)], "markersize": 4.5
    }  # fmt: skip


def _axes(height: float) -> tuple[Figure, Any]:
    figure = matplotlib.figure.Figure(figsize=(FULL_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _finished(figure: Figure, axes: Any, title: str) -> Figure:
    axes.set_title(title, fontsize=10, loc="left", x=0.0)
    axes.grid(True, color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    columns = math.ceil(len(axes.get_legend_handles_labels()[0]) / (1 if len(axes.lines) < 4 else 2))
    figure.legend(loc="outside lower center", ncols=columns, fontsize=8.5, frameon=False)
    return figure
