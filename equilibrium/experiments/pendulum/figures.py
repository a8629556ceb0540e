"""The figure of the pendulum: how exact a model is against what its integrator costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from contracting.plots.style import BLUE, VERMILION, finish, new_axes
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
    kinds: list[tuple[str, dict[str, Any]]] = [
        (model, {"color": _COLOURS[model], "linewidth": 3}) for model in MODELS
    ]
    kinds += [(name, {"color": "0.3", "marker": _MARKS[name], "linestyle": _LINES[name]}) for name in INTEGRATORS]
    kinds += [("as in training", {"color": "0.3", "marker": "o", "linestyle": "none", "markeredgecolor": "black"})]
    for label, look in kinds:  # in the legend only
        axes.plot([], [], label=label, **look)
    finish(
        axes,
        x=f"evaluations of the field for {2 * window:g} s",
        y="error on new swings (rad, rad/s)",
        title="Cost and error of a learned pendulum",
    )
    return axes
