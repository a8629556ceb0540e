"""The figure of certified accuracy in boxes: what is proved beside what an attack leaves, for each training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.figure

from contracting.plots.style import BLUE, FULL_WIDTH, NARROW, ORANGE, SEEN, finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAR = 0.38  # height of a bar, of the distance of two lines


def draw_interval_training(results: Mapping[str, Any], width: float = FULL_WIDTH) -> Figure:
    """A panel for each radius and a line for each network: images that are certified, and that no attack has fooled.

    Args:
        results: by network, of ``interval_training_of``.
        width: of the figure, in inches.
    """
    narrow = width < NARROW
    radii = next(iter(results.values()))["settings"]["radii"]
    lines = len(radii) if narrow else 1
    height = (0.36 * len(results) + 0.6) * lines + 0.7  # inches
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(lines, len(radii) // lines, sharey=True, squeeze=False)
    places = range(len(results))
    for k, axes in enumerate(panels.flat):
        attacked, boxes, either = (
            [0.0 if found[key][k] is None else found[key][k] for found in results.values()]
            for key in ("attacked", "by_boxes", "proved")
        )
        lower = [place + _BAR / 2 for place in places]
        axes.barh([place - _BAR / 2 for place in places], attacked, _BAR, color=SEEN, label="not fooled by the attack")
        axes.barh(lower, boxes, _BAR, color=BLUE, label="certified by boxes of equilibria")
        axes.plot(either, lower, "D", color=ORANGE, markersize=4, label="certified by boxes or locally (few images)")
        last = not narrow or k == len(radii) - 1
        finish(axes, x="test images (%)" if last else "", y="", title=f"ε = {radii[k]:g} (pixels)", legend=False)
        axes.set_xlim(-3, 103)
        axes.set_yticks(list(places), [name.replace(" neurons,", ":") for name in results])
    panels.flat[0].invert_yaxis()
    size = 7 if narrow else 9
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1 if narrow else 2, fontsize=size, frameon=False)
    return figure
