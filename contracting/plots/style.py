"""The look of every figure of the project: widths, colours, axes with labels, a legend that covers nothing.

Drawn on matplotlib's objects: nothing global, nothing shown, no display needed. Colours are those of Okabe and Ito,
told apart by the colour-blind; what is proved, seen and bounded from above has the same colour and dashes everywhere.
"""

from __future__ import annotations

import importlib
import itertools
import math
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from contracting.errors import InputError
from contracting.simulation.evidence import Evidence, standing

FULL_WIDTH, HALF_WIDTH = 6.8, 3.4  # The widths of figures for the page and for half of it, in inches.
NARROW = 5.0  # In figures narrower than so many inches letters are smaller, and the legend stands below the axes.
BLUE, SKY, GREEN, ORANGE, VERMILION, PURPLE = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7"
SEEN = "0.45"
"""Grey, for what was measured or simulated."""
CERTIFIED: dict[str, Any] = {"color": BLUE, "linestyle": (0, (5.0, 2.0)), "linewidth": 1.6, "zorder": 3}
"""The line of a certificate."""
UNPROVED: dict[str, Any] = {"color": PURPLE, "linestyle": (0, (5.0, 1.5, 1.2, 1.5)), "linewidth": 1.6, "zorder": 3}
"""The line of a rate that was sampled or claimed."""
BOUND: dict[str, Any] = {"color": VERMILION, "linestyle": (0, (1.2, 1.2)), "linewidth": 1.6, "zorder": 3}
"""The line of a bound that no certificate may exceed."""

_GAP = 1.15  # Direct labels are so many heights of their letters apart.
SLACK = 1e-6  # A simulated distance that attains its bound may exceed it by this share, an error of the integrator.
LEAST = 1e-14  # What has fallen to this share of its start is rounding, and is drawn there.


def look(evidence: Evidence | None) -> dict[str, Any]:
    """The line of a rate, by the type of what it rests on; None for what the library itself has proved."""
    return CERTIFIED if evidence is None or standing(evidence) == "certified" else UNPROVED


def new_axes(width: float = FULL_WIDTH, height: float | None = None) -> Axes:
    """The axes of a new figure, sizes in inches; where somebody is looking it is pyplot's, which shows it.

    That is in a notebook, in IPython, and wherever pyplot is in interactive mode (``plt.ion()``). A script gets a
    figure that belongs to nobody, needs no display and goes when nobody holds it.
    """
    return (_shown_figure if _watched() else Figure)(**_layout(width, height)).subplots()


def axes_for_a_file(width: float = FULL_WIDTH, height: float | None = None) -> Axes:
    """The axes of a new figure that is written to a file and shown nowhere, sizes in inches."""
    return Figure(**_layout(width, height)).subplots()


def _layout(width: float, height: float | None) -> dict[str, Any]:
    return {"figsize": (width, height or 0.6 * width), "layout": "constrained"}


def _watched() -> bool:
    """Whether somebody looks at figures as they are made."""
    shell = sys.modules.get("IPython")  # it is there already if it runs this
    return (shell is not None and shell.get_ipython() is not None) or (
        "matplotlib.pyplot" in sys.modules and matplotlib.is_interactive()
    )


def _shown_figure(**options: Any) -> Figure:
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure: Figure = pyplot.figure(**options)
    return figure


def figure_of(axes: Axes) -> Figure:
    """The figure that axes belong to.

    Raises:
        InputError: if they were removed from theirs.
    """
    figure = axes.get_figure(root=True)
    if figure is None:
        raise InputError("axes must belong to a figure, these were removed from theirs")
    return figure


def letters(axes: Axes) -> float:
    """Size of the letters in a figure of this width, in points."""
    return 8.0 if figure_of(axes).get_figwidth() < NARROW else 10.0


def finish(axes: Axes, *, x: str, y: str, title: str, legend: bool = True) -> None:
    """Labels, a light grid, and a legend outside the axes."""
    narrow = figure_of(axes).get_figwidth() < NARROW
    size = letters(axes)
    axes.set_xlabel(x, fontsize=size)
    axes.set_ylabel(y, fontsize=size)
    axes.set_title(textwrap.fill(title, 44 if narrow else 76), fontsize=size, loc="left")
    axes.tick_params(labelsize=size - 1)
    for axis in (axes.xaxis, axes.yaxis):  # labels between the powers of ten only cost time to place
        axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        if narrow and isinstance(axis.get_major_locator(), matplotlib.ticker.AutoLocator):
            axis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    axes.grid(True, color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if not legend:
        return
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    if narrow:
        place = {"loc": "upper center", "bbox_to_anchor": (0.42, -0.2), "ncols": 2}
    axes.legend(fontsize=size - 1.5, frameon=False, handlelength=1.8, labelspacing=0.3, columnspacing=0.8, **place)


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> list[Annotation]:
    """Names right of the axes at the heights where lines end, moved apart where they would overlap.

    Args:
        axes: with their final limits; linear in y.
        ends: height in data units, text and colour of each label.

    Returns:
        The texts, from the lowest to the highest.
    """
    size = letters(axes) - 1.5
    low, high = axes.get_ylim()
    figure = figure_of(axes)
    # room for the axes is not known before drawing; three quarters of the height is what layouts leave at least
    spacing = _GAP * size / 72 / (0.75 * figure.get_figheight())
    order = sorted(ends)
    places = [min(max((value - low) / (high - low), 0.0), 1.0) for value, _, _ in order]
    places = _apart(places, spacing)
    return [
        axes.annotate(
            text, (1.0, place), xycoords="axes fraction", xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=size, color=colour, annotation_clip=False,
        )
        for place, (_, text, colour) in zip(places, order, strict=True)
    ]  # fmt: skip


def _apart(places: Sequence[float], spacing: float) -> list[float]:
    """Increasing numbers moved as little as blocks allow so that neighbours are ``spacing`` apart."""
    blocks: list[list[float]] = []  # [middle, count]
    for place in places:
        blocks.append([place, 1.0])
        while len(blocks) > 1 and blocks[-1][0] - blocks[-2][0] < spacing * (blocks[-1][1] + blocks[-2][1]) / 2:
            (b, m), (a, k) = blocks.pop(), blocks.pop()
            blocks.append([(a * k + b * m) / (k + m), k + m])
    spread = [[middle + spacing * (i - (count - 1) / 2) for i in range(int(count))] for middle, count in blocks]
    return list(itertools.chain.from_iterable(spread))


def pair_of_names(names: Sequence[str] | None, usual: tuple[str, str]) -> tuple[str, str]:
    """The names of two coordinates that somebody gave, or the usual ones.

    Raises:
        InputError: if they are not two texts.
    """
    if names is None:
        return usual
    if isinstance(names, str) or len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise InputError(f"names must be two texts, one for each coordinate, got {names!r}")
    return names[0], names[1]


def power_of_ten(value: float) -> str:
    """A tolerance such as 1e-6 in words of mathematics."""
    exponent = round(math.log10(value))
    return f"$10^{{{exponent}}}$" if math.isclose(value, 10.0**exponent) else f"{value:g}"


def shown(value: float) -> str:
    """A rate in a title or a label: three digits and a true minus sign."""
    return f"{value:.3g}".replace("-", "−")
