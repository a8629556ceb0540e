"""Figures of a comparison of solvers, drawn on matplotlib's objects: nothing global, nothing shown, no display needed.

A family of solvers has its colours (Okabe–Ito, told apart by the colour-blind) and its kind of marker: splittings and
Newton are filled, integrators open, those of torchdiffeq strokes, so that a figure can be read in grey. The same
functions draw for the full width of a page and for half of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import matplotlib.ticker

from contracting.loop.method import Family
from contracting.plots.style import BLUE, CERTIFIED, GREEN, ORANGE, SKY, VERMILION, finish, new_axes, power_of_ten
from equilibrium.experiments.compare_solvers.study import Comparison, Curve, Measurement
from equilibrium.experiments.publishing import SQUARE, Draw, on_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = (
    "SemismoothNewton",
    "PeacemanRachford",
    "ForwardBackward",
    "PseudoTransient",
    "DormandPrince",
    "ExplicitEuler",
    "torchdiffeq-dopri5",
)
"""The solvers that are drawn where more than these were compared; a figure with forty curves cannot be read."""

_NEAR = 300.0  # Over more than so large a ratio, labels at 1, 2 and 5 times the powers of ten overlap at half width.
_FLOOR = 1e-16  # Smaller relative distances are drawn as this one: they are rounding, and zero has no logarithm.
_FAMILIES = [str(family) for family in Family]  # in the order in which they are drawn
_COLOURS = {
    "splitting": (BLUE, SKY),
    "Newton": ("#000000", "#000000"),
    "ODE integrator": (VERMILION, ORANGE),
    "torchdiffeq": (GREEN, GREEN),
}
_DASHES = (4.0, 4.0)  # The line of a prediction has dashes and gaps of so many points.
_MARKERS = {
    "splitting": "osD^v<>pPXhd8",
    "Newton": "*PdX",
    "ODE integrator": "osD^v<>pPXhd8",
    "torchdiffeq": "x+1234",
}
_OTHERS: dict[str, Any] = {"color": "0.8", "linewidth": 0.6, "marker": ".", "markersize": 2.5, "zorder": 1}


def draws(comparison: Comparison) -> dict[str, Draw | None]:
    """What draws each figure, by its file name; None where there is nothing to show."""
    by_iteration = on_axes(plot_residual_against_iteration, comparison)
    by_time = on_axes(plot_residual_against_time, comparison)
    by_maps = on_axes(plot_work_precision, comparison, heights=SQUARE, count_maps=True)
    reached = bool(_reached(comparison))
    return {
        "residual-against-iteration": by_iteration if _by_iteration(comparison) else None,
        "residual-against-time": by_time if _by_time(comparison) else None,
        "work-precision": on_axes(plot_work_precision, comparison, heights=SQUARE) if reached else None,
        "work-precision-in-maps": by_maps if reached else None,
        "predicted-iterations": (
            on_axes(plot_predicted_iterations, comparison, heights=SQUARE) if predicted(comparison) else None
        ),
    }


def plot_residual_against_iteration(comparison: Comparison, axes: Axes | None = None) -> Axes:
    """Relative residual of the worst row against the iteration, with the predicted decay as a thin dashed line.

    Methods of torchdiffeq are left out, because their steps are whole time intervals.
    """
    axes = new_axes() if axes is None else axes
    curves = _by_iteration(comparison)
    styles = _styles(comparison, [curve.solver for curve in curves])
    records = [comparison.solver(curve.solver) for curve in curves]
    for i, (curve, record) in enumerate(zip(curves, records, strict=True)):
        residual = _plottable(curve.worst)
        axes.semilogy(curve.steps, residual, label=curve.solver, **_line(styles[curve.solver], curve, i))
        if record.factor is not None and record.factor < 1 and residual[0] > comparison.tightest:
            fall = math.log(comparison.tightest / residual[0]) / math.log(record.factor)
            shifted = (4.0 * i, _DASHES)  # so that of two equal lines both show
            line = [0, fall], [residual[0], comparison.tightest]
            axes.semilogy(*line, color=styles[curve.solver]["color"], linestyle=shifted, linewidth=0.8)
    # the slowest curve would press all others against the axis
    lengths = sorted(curve.steps[-1] for curve in curves)
    axes.set_xlim(0, 1.1 * max(1, lengths[-2]) if len(lengths) > 1 else None)
    axes.set_ylim(bottom=comparison.tightest / 3)
    axes.plot([], [], color="0.4", linestyle=(0, _DASHES), linewidth=0.8, label="predicted factor")
    pairs = [(r.measured_factor, r.factor) for r in records if r.measured_factor is not None and r.factor is not None]
    kept = bool(pairs) and all(measured <= predicted for measured, predicted in pairs)
    finish(
        axes,
        x="iteration or time step",
        y="relative residual, worst input",
        title="Each step contracts at least as predicted" if kept else "Residual after each iteration",
    )
    return axes


def plot_residual_against_time(comparison: Comparison, axes: Axes | None = None) -> Axes:
    """Relative residual of the worst row against the wall time of the batch, where a solver was given all of it."""
    axes = new_axes() if axes is None else axes
    curves = _by_time(comparison)
    styles = _styles(comparison, [curve.solver for curve in curves])
    for i, curve in enumerate(curves):
        points = [(1e3 * t, r) for t, r in zip(curve.seconds, _plottable(curve.worst), strict=True) if t > 0]
        x, y = zip(*points, strict=True)
        axes.loglog(x, y, label=curve.solver, **_line(styles[curve.solver], curve, i))
    axes.set_ylim(bottom=comparison.tightest / 3)
    ends = {curve.solver: curve.seconds[-1] for curve in curves if comparison.of(curve.solver)[-1].converged}
    title = "Residual against wall time"
    if ends:
        first = min(ends, key=lambda name: ends[name])
        title = f"{first} is the first of these to reach {power_of_ten(comparison.tightest)}"
    finish(axes, x=f"wall time for {comparison.rows} inputs (ms)", y="relative residual, worst input", title=title)
    return axes


def plot_work_precision(comparison: Comparison, axes: Axes | None = None, *, count_maps: bool = False) -> Axes:
    """Relative distance to the reference equilibrium against the cost, every solver and every tolerance it reaches.

    A dashed line for each tolerance is the largest certified bound on the distance that a solver returned there.
    Solvers that are not ``SHOWN`` and that the title does not name are grey.

    Args:
        comparison: what ``compare`` returned.
        axes: where to draw; None makes a figure of full width.
        count_maps: the cost is the number of applications of W or its resolvent, which does not depend on the machine
            but leaves out the factorisations of the implicit methods; otherwise it is the wall time per input.
    """
    axes = new_axes() if axes is None else axes
    cost = partial(_cost, count_maps=count_maps)
    reached = _reached(comparison)
    title, named = _work_title(comparison, count_maps)
    solvers = tuple(reached) if len(reached) <= len(SHOWN) else (*SHOWN, *named)
    styles = _styles(comparison, [name for name in reached if name in solvers])
    for name, points in reached.items():
        x = [cost(m) for m in points]
        y = [max(m.distance or 0.0, _FLOOR) for m in points]
        if name in styles:
            axes.loglog(x, y, label=name, linewidth=0.8, **styles[name])
        else:
            axes.loglog(x, y, **_OTHERS)
    if len(styles) < len(reached):
        axes.plot([], [], label=f"{len(reached) - len(styles)} others", **_OTHERS)
    label: str | None = "certified distance"
    for tolerance in comparison.tolerances:
        here = [m for points in reached.values() for m in points if m.tolerance == tolerance]
        bounds = [m.error_bound for m in here if m.error_bound is not None]
        if bounds:
            # wider than its points, so that a single one still has a line
            ends = [min(map(cost, here)) / 1.3, 1.3 * max(map(cost, here))]
            axes.loglog(ends, [max(bounds)] * 2, label=label, **(CERTIFIED | {"linewidth": 0.9}))
            label = None
    finish(
        axes,
        x="applications of W or its resolvent" if count_maps else "wall time per input (ms)",
        y="relative distance to equilibrium",
        title=title,
    )
    return axes


def plot_predicted_iterations(comparison: Comparison, axes: Axes | None = None) -> Axes:
    """Iterations to the tightest tolerance: measured against what the predicted factor allows, on a diagonal.

    Points below the diagonal are faster than predicted.
    """
    axes = new_axes() if axes is None else axes
    points = predicted(comparison)
    styles = _styles(comparison, list(points))
    for name, (allowed, measured) in points.items():
        axes.loglog([allowed], [measured], label=name, linestyle="none", **styles[name])
    ends = [min(map(min, points.values())) / 1.5, 1.5 * max(map(max, points.values()))]
    axes.loglog(ends, ends, label="as predicted", **(CERTIFIED | {"zorder": 1}))
    below = sum(measured <= allowed for allowed, measured in points.values())
    finish(
        axes,
        x="iterations or time steps, predicted",
        y="measured",
        title=f"{below} of {len(points)} solvers need no more iterations than predicted",
    )
    for axis in (axes.xaxis, axes.yaxis) if ends[1] / ends[0] < _NEAR else ():
        # the points may all lie between two powers of ten
        axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
    return axes


def predicted(comparison: Comparison) -> dict[str, tuple[float, float]]:
    """Iterations to the tightest tolerance, predicted from the first residual of the worst row and measured, by solver.

    Solvers without a predicted factor (adaptive steps, Newton) and those that did not converge are left out.
    """
    found = {}
    first = {curve.solver: curve.worst[0] for curve in comparison.curves}
    for name in _by_family(comparison):
        factor, start, last = comparison.solver(name).factor, first.get(name), comparison.of(name)[-1:]
        if factor is None or start is None or not 0 < factor < 1 or not comparison.tightest < start:
            continue
        if last and last[0].converged and last[0].tolerance == comparison.tightest:
            found[name] = (math.log(comparison.tightest / start) / math.log(factor), float(last[0].steps_max))
    return found


def _drawn(comparison: Comparison) -> list[Curve]:
    """The curves of all solvers if these are few, else of ``SHOWN``."""
    known = {curve.solver: curve for curve in comparison.curves}
    return [known[name] for name in (SHOWN if len(known) > len(SHOWN) else known) if name in known]


def _by_iteration(comparison: Comparison) -> list[Curve]:
    return [curve for curve in _drawn(comparison) if comparison.solver(curve.solver).family != "torchdiffeq"]


def _by_time(comparison: Comparison) -> list[Curve]:
    return [curve for curve in _drawn(comparison) if comparison.of(curve.solver)[-1].rows == comparison.rows]


def _reached(comparison: Comparison) -> dict[str, list[Measurement]]:
    """What every solver achieved, family by family; solvers that achieved nothing are left out."""
    names = _by_family(comparison)
    achieved = {n: [m for m in comparison.of(n) if m.converged and m.distance is not None] for n in names}
    return {name: points for name, points in achieved.items() if points}


def _by_family(comparison: Comparison) -> list[str]:
    names = [record.name for record in comparison.solvers]
    return sorted(names, key=lambda name: _FAMILIES.index(comparison.solver(name).family))


def _styles(comparison: Comparison, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colours of the family, in turn; a marker of its own for every solver of a family."""
    looks = {f: zip(itertools.cycle(_COLOURS[f]), itertools.cycle(_MARKERS[f]), strict=False) for f in _FAMILIES}
    styles = {}
    for name in names:
        family = comparison.solver(name).family
        colour, marker = next(looks[family])
        face = "white" if family == "ODE integrator" else colour
        size = 6.5 if marker in "*x+1234" else 4.5
        styles[name] = {"color": colour, "marker": marker, "markersize": size, "markerfacecolor": face}
    return styles


def _line(style: dict[str, Any], curve: Curve, place: int) -> dict[str, Any]:
    """The style as a line with about eight markers, not at the same places as those of its neighbours."""
    every = max(1, len(curve.steps) // 8)
    return style | {"linewidth": 1.3, "markevery": (place % 3 * every // 3, every)}


def _plottable(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else max(value, _FLOOR) for value in values]


def _cost(m: Measurement, count_maps: bool) -> float:
    """Applications of W or its resolvent, or milliseconds per input."""
    return m.map_evals if count_maps else 1e3 * m.seconds / m.rows


def _work_title(comparison: Comparison, count_maps: bool) -> tuple[str, tuple[str, ...]]:
    """The message of the figure, and the solvers that it names: the cheapest integrator and the cheapest other."""
    cost = partial(_cost, count_maps=count_maps)

    def cheapest(families: Iterable[str]) -> list[Measurement]:
        able = [
            m
            for m in comparison.measurements
            if m.converged and m.tolerance == comparison.tightest
            and comparison.solver(m.solver).family in families
            and not (count_maps and comparison.solver(m.solver).linear_solves)
        ]  # fmt: skip
        return sorted(able, key=cost)[:1]

    best = sorted(cheapest(("ODE integrator", "torchdiffeq")) + cheapest(("splitting", "Newton")), key=cost)
    if len(best) < 2:
        return "Accuracy and cost", ()
    first, second = best
    ratio = f"{cost(second) / cost(first):.1f}"
    named = first.solver, second.solver
    if count_maps:
        return f"Without linear solves: {named[0]} needs {ratio} times fewer maps than {named[1]}", named
    return f"{named[0]} is {ratio} times as fast as {named[1]}", named
