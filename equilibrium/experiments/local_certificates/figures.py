"""The figure of certified accuracy: one global constant, local constants and an attack, against the radius."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.figure

from contracting.plots.style import BLUE, CERTIFIED, FULL_WIDTH, NARROW, SEEN, finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_local_certificates(results: Mapping[str, Any], width: float = FULL_WIDTH) -> Figure:
    """A panel for each network: the share of images whose class is proved to stay, and that no attack has fooled.

    Args:
        results: by network, of ``local_certificates_of``.
        width: of the figure, in inches.
    """
    narrow = width < NARROW
    columns = min(len(results), 2 if narrow or len(results) == 4 else 3)
    lines = math.ceil(len(results) / columns)
    height = 0.8 * width / columns * lines + (0.8 if narrow else 0.4)  # inches; the legend of a narrow one is higher
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for k, (axes, (name, found)) in enumerate(zip(panels.flat, results.items(), strict=False)):
        radii = [0.0, *found["settings"]["radii"]]
        attacked, local, plain = ([found["accuracy"], *found[key]] for key in ("attacked", "by_local", "by_global"))
        axes.plot(radii, attacked, color=SEEN, marker=".", linewidth=1.2, label="not fooled by the attack")
        axes.plot(radii, local, color=BLUE, marker="o", markersize=3, linewidth=1.6, label="certified, local constants")
        axes.plot(radii, plain, **CERTIFIED, label="certified, global constants")
        lowest = axes in panels[-1] or k + columns >= len(results)
        label = "radius (ℓ2, inputs)" if lowest else ""
        finish(axes, x=label, y="", title=name.removesuffix("_w80"), legend=False)
        axes.tick_params(labelbottom=lowest)
        axes.set_ylim(0, 102)
    for axes in panels.flat[len(results) :]:
        axes.set_visible(False)
    size = 8 if narrow else 10
    figure.supylabel("test images (%)", fontsize=size)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=1 if narrow else 3, fontsize=size - 1, frameon=False
    )
    return figure
