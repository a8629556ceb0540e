"""Figures of a square wave and the networks fitted to it: a Lipschitz bound is a slope one can see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from contracting.plots.style import BLUE, GREEN, ORANGE, PURPLE, SEEN, VERMILION, finish
from equilibrium.experiments.square_wave.study import Fit, square_wave

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, GREEN, ORANGE, VERMILION, PURPLE)
"""One for each fit; more could not be told apart."""


def plot_square_wave(fits: Sequence[Fit], axes: Axes) -> Axes:
    """A square wave and the networks fitted to it, with measured and certified slope in the legend."""
    x = fits[0].x
    axes.plot(x, square_wave(torch.tensor(x)).numpy(), color=SEEN, linewidth=1.0, label="square wave")
    for fit, colour in zip(fits, COLOURS, strict=False):
        label = f"{fit.name}: {fit.measured:.3g} ≤ {fit.certified:.3g}"
        axes.plot(x, fit.y, color=colour, linewidth=1.4, label=label)
    finish(axes, x="x", y="y", title="Steepest measured slope ≤ certified slope")
    return axes
