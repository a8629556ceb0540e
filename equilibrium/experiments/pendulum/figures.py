"""The figure of the pendulum: how exact a model is against what its integrator costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D

from contracting.plots.style import BLUE, VERMILION, letters, new_axes
from equilibrium.experiments.pendulum.study import INTEGRATORS, MODELS, Fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = dict(zip(MODELS, (BLUE, VERMILION), strict=True))
_MARKS = dict(zip(INTEGRATORS, "so^", strict=True))
_LINES: dict[str, Any] = dict(zip(INTEGRATORS, (":", "--", "-"), strict=True))
_TOP = 3.0  # rad and rad/s: errors above are of models that have left the swing, and are drawn there


def plot_fits(fits: Sequence[Fit], *, window: float, axes: Axes | None = None) -> Axes:
    """Error over the whole test against evaluations, for finer and finer integrators; a large mark is the trained one.

    Args:
        fits: what the study found.
        window: seconds that were seen in training; the test is twice as long.
        axes: where to draw; new ones if None.
    """
    axes = new_axes() if axes is None else axes
    for fit in fits:
        count, error = zip(*((n, min(e, _TOP)) for n, e in fit.curve), strict=True)
        look: dict[str, Any] = {"color": _COLOURS[fit.model], "marker": _MARKS[fit.integrator]}
        axes.plot(count, error, linestyle=_LINES[fit.integrator], markersize=3, linewidth=1.1, **look)
        own = next(min(e, _TOP) for n, e in fit.curve if n == fit.evaluations)
        axes.plot([fit.evaluations], [own], linestyle="none", markersize=8, markeredgecolor="black", **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"evaluations of the field for {2 * window:g} s")
    axes.set_ylabel(f"error on new swings, 0 to {2 * window:g} s (rad, rad/s)")
    axes.set_title("What a learned pendulum costs, and how exact it is")
    handles = [Line2D([], [], color=_COLOURS[model], linewidth=3, label=model) for model in MODELS]
    handles += [
        Line2D([], [], color="0.3", marker=_MARKS[name], linestyle=_LINES[name], markersize=5, label=name)
        for name in INTEGRATORS
    ]
    handles.append(Line2D([], [], color="0.3", marker="o", linestyle="none", markeredgecolor="black", markersize=8,
                          label="as in training"))  # fmt: skip
    axes.legend(handles=handles, fontsize=letters(axes) - 1, ncols=2)
    return axes
