"""Figures of a square wave and the networks fitted to it: a Lipschitz bound is a slope one can see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from contracting.plots.style import BLUE, CERTIFIED, GREEN, ORANGE, PURPLE, SEEN, VERMILION, finish
from equilibrium.experiments.square_wave.study import Fit, square_wave

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, GREEN, ORANGE, VERMILION, PURPLE)
"""One for each fit; more could not be told apart."""

_WINDOW = 0.5  # The figure of the steepest points shows so much of x on both sides of them.


def plot_square_wave(fits: Sequence[Fit], axes: Axes) -> Axes:
    """A square wave and the networks fitted to it, with measured and certified slope in the legend."""
    x = fits[0].x
    axes.plot(x, square_wave(torch.tensor(x)).numpy(), color=SEEN, linewidth=1.0, label="square wave")
    for fit, colour in zip(fits, COLOURS, strict=False):
        label = f"{fit.name}: {fit.measured:.3g} ≤ {fit.certified:.3g}"
        axes.plot(x, fit.y, color=colour, linewidth=1.4, label=label)
    finish(axes, x="x", y="y", title="Steepest measured slope ≤ certified slope")
    return axes


def plot_jumps(fits: Sequence[Fit], axes: Axes) -> Axes:
    """Every fit around its steepest point, drawn rising, with the certified slope as a dashed line through the point.

    Args:
        fits: at most as many as there are ``COLOURS``.
        axes: where to draw.
    """
    for fit, colour in zip(fits, COLOURS, strict=False):
        x0, y0 = fit.steepest
        x, y = np.asarray(fit.x) - x0, np.asarray(fit.y) - y0
        near = abs(x) <= _WINDOW
        rises = np.sign(np.gradient(y, x)[abs(x).argmin()])
        axes.plot(x[near], rises * y[near], color=colour, linewidth=1.4, label=fit.name)
        reach = min(_WINDOW, 1.3 / fit.certified)
        height = reach * fit.certified
        axes.plot([-reach, reach], [-height, height], **CERTIFIED | {"color": colour, "linewidth": 0.9})
    axes.plot([], [], **CERTIFIED | {"color": SEEN, "linewidth": 0.9}, label="certified slope")
    axes.set_xlim(-_WINDOW, _WINDOW)
    axes.set_ylim(-1.5, 1.5)
    finish(axes, x="x − steepest point", y="y − steepest point", title="Where each fit is steepest")
    return axes
