"""The figures of the atlas: portraits with the proved balls, and rates against the radius."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.figure

from contracting.plots import plot_phase_portrait, plot_rate_against_radius
from contracting.plots.style import FULL_WIDTH, letters
from contracting.regions.measures import half_widths
from equilibrium.experiments.atlas.study import Entry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 2  # Panels side by side: three would be too small to read at half the width of a page.
_AROUND = 1.8  # A window reaches so many times as far as the smallest radius that does not contract.


def draw_portraits(entries: Sequence[Entry], width: float = FULL_WIDTH) -> Figure:
    """A phase portrait of every system, with its proved ball and a tube."""

    def draw(entry: Entry, axes: Axes) -> None:
        ball = entry.found.ball
        reach = (_AROUND * entry.found.broken * half_widths(ball.metric, 1.0)).tolist()
        x, y = ((c - r, c + r) for c, r in zip(ball.centre.tolist(), reach, strict=True))
        plot_phase_portrait(
            entry.system.flow, axes, x=x, y=y, equilibrium=ball.centre, region=entry.found, tubes=[entry.tube],
            nullclines=False, names=entry.system.names, title=f"{entry.system.title}: {entry.share:.0%}",
        )  # fmt: skip
        axes.set_aspect("auto")

    return _panels(entries, draw, width, "Balls over which contraction is proved (share of what a dense sample allows)")


def draw_rates(entries: Sequence[Entry], width: float = FULL_WIDTH) -> Figure:
    """The certified rate of every system against the radius of the ball."""

    def draw(entry: Entry, axes: Axes) -> None:
        plot_rate_against_radius(entry.profile, axes, broken=entry.sampled, title=entry.system.title)

    return _panels(entries, draw, width, "The rate falls as the ball grows, to zero where a point does not contract")


def _panels(entries: Sequence[Entry], draw: Callable[[Entry, Axes], None], width: float, title: str) -> Figure:
    rows = -(-len(entries) // _COLUMNS)
    figure = matplotlib.figure.Figure(figsize=(width, 0.42 * rows * width + 0.5), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    handles: dict[str, Any] = {}
    for entry, axes in zip(entries, panels, strict=False):
        draw(entry, axes)
        legend = axes.get_legend()
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(_general(text), handle)
        if legend is not None:
            legend.remove()
    for axes in panels[len(entries) :]:
        axes.remove()
    size = letters(panels[0])
    figure.suptitle(title, fontsize=size + 1)
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=size - 1, frameon=False
    )
    return figure


def _general(label: str) -> str:
    """A label without the number that is of one panel only."""
    for start, general in (("proved: contracts", "proved: contracts"), ("a point at", "a point does not contract")):
        if label.startswith(start):
            return general
    return label
