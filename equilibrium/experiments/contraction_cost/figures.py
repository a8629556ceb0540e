"""The figure of what a certified contraction rate costs in accuracy, in the look of all others."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.figure

from contracting.plots.style import BLUE, FULL_WIDTH, GREEN, NARROW, ORANGE, SKY, finish
from equilibrium.experiments.contraction_cost.study import TrainedLayer, by_rate, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_contraction_cost(layers: Sequence[TrainedLayer], width: float = FULL_WIDTH) -> Figure:
    """Test error against the rate that training asked for, and beside it the rates: certified, bounded, measured.

    Args:
        layers: what ``contraction_cost`` returned; every point is a mean over seeds, every bar a standard deviation.
        width: of the figure, in inches.
    """
    groups = by_rate(layers)
    places, names = range(len(groups)), [named(asked) for asked in groups]
    narrow = width < NARROW
    figure = matplotlib.figure.Figure(figsize=(width, (1.75 if narrow else 0.55) * width), layout="constrained")
    left, right = figure.subplots(2, 1, height_ratios=(1, 1.4)) if narrow else figure.subplots(1, 2)

    def draw(axes: Axes, attribute: str, colour: str, marker: str, label: str | None = None, shift: float = 0) -> None:
        values = [[getattr(layer, attribute) for layer in group] for group in groups.values()]
        means = [statistics.fmean(v) for v in values]
        spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
        at = [place + shift for place in places]
        axes.errorbar(at, means, spread, color=colour, marker=marker, capsize=3, linewidth=1.3, label=label)

    draw(left, "test_error", "#000000", "o")
    draw(right, "bound", ORANGE, "v", "upper bound, any metric", 0.06)
    draw(right, "slowest", GREEN, "D", "slowest pair of trajectories", 0.02)
    draw(right, "certified", BLUE, "s", "certified, best found", -0.02)
    draw(right, "explicit", SKY, "^", "certified, explicit metric", -0.06)
    rates = [rate for rate, _ in groups]
    for place, rate in enumerate(rates):
        if rate is not None:
            last = rate == max(r for r in rates if r is not None) and rate not in rates[:place]
            label = "asked for" if last else None
            right.plot([place - 0.3, place + 0.3], [rate, rate], color="0.4", linestyle="--", linewidth=1, label=label)
    for axes, y in ((left, "test error (%)"), (right, "rate (per unit of time)")):
        finish(axes, x="contraction rate c asked for", y=y, title="", legend=False)
        axes.set_xticks(list(places), names)
        axes.margins(x=0.2)
    left.set_ylim(bottom=0)
    if narrow:
        left.set_xlabel("")
    size = 8 if narrow else 9
    handles, labels = right.get_legend_handles_labels()
    columns = 1 if narrow else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=size - 1, frameon=False)
    figure.suptitle("What a certified contraction rate costs", fontsize=size + 1)
    return figure
