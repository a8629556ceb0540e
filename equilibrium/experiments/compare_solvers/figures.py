"""Figures of a comparison of solvers, drawn on matplotlib's objects: nothing global, nothing shown, no display needed.

A family of solvers has its colours (Okabe–Ito, told apart by the colour-blind) and its kind of marker: splittings and
Newton are filled, integrators open, those of torchdiffeq strokes, so that a figure can be read in grey. The same
functions draw for the full width of a page and for half of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Any

import matplotlib.figure
import matplotlib.ticker

from contracting.errors import InputError
from contracting.loop.method import Family
from contracting.plots.style import (
    BLUE,
    CERTIFIED,
    FULL_WIDTH,
    GREEN,
    NARROW,
    ORANGE,
    SKY,
    VERMILION,
    figure_of,
    finish,
    new_axes,
    power_of_ten,
)
from equilibrium.experiments.compare_solvers.study import Comparison, Curve, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = (
    "residual-against-iteration",
    "residual-against-time",
    "work-precision",
    "work-precision-in-maps",
    "predicted-iterations",
)
"""The names of what ``draw_all`` draws at any width."""
PANELS = ("every-solver-against-iteration", "every-solver-against-time")
"""The names of what it draws at full width only: one small panel for each solver."""
SHOWN = (
    "SemismoothNewton",
    "PeacemanRachford",
    "ForwardBackward",
    "PseudoTransient",
    "DormandPrince",
    "ExplicitEuler",
    "torchdiffeq-dopri5",
)
"""The solvers drawn as curves; a figure with the curves of all solvers cannot be read."""

_FLOOR = 1e-16  # smaller distances are rounding, and zero has no logarithm
_FAMILIES = [str(family) for family in Family]  # in the order in which they are drawn
_COLOURS = {
    "splitting": (BLUE, SKY),
    "Newton": ("#000000", "#000000"),
    "ODE integrator": (VERMILION, ORANGE),
    "torchdiffeq": (GREEN, GREEN),
}
_DASHES = (4.0, 4.0)
_LONG = 22  # letters that are too many for the title of a small panel
_MARKERS = {
    "splitting": "osD^v<>pPXhd8",
    "Newton": "*PdX",
    "ODE integrator": "osD^v<>pPXhd8",
    "torchdiffeq": "x+1234",
}
_OTHERS: dict[str, Any] = {"color": "0.8", "linewidth": 0.6, "marker": ".", "markersize": 2.5, "zorder": 1}


def plot_residual_against_iteration(
    comparison: Comparison, axes: Axes | None = None, *, solvers: Sequence[str] | None = None
) -> Axes:
    """Relative residual of the worst row against the iteration, with the predicted decay as a thin dashed line.

    Args:
        comparison: what ``compare`` returned.
        axes: where to draw; None makes a figure of full width.
        solvers: names of the curves; None takes all if these are few, else ``SHOWN``. Those of torchdiffeq are left
            out, because their steps are whole time intervals.

    Returns:
        The axes.

    Raises:
        InputError: if there is no such curve.
    """
    axes = new_axes() if axes is None else axes
    curves = _by_iteration(comparison, _chosen(comparison, solvers))
    _require(curves)
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


def plot_residual_against_time(
    comparison: Comparison, axes: Axes | None = None, *, solvers: Sequence[str] | None = None
) -> Axes:
    """Relative residual of the worst row against the wall time of the whole batch.

    Arguments as for ``plot_residual_against_iteration``; solvers that were given a part of the rows are left out.
    """
    axes = new_axes() if axes is None else axes
    curves = _by_time(comparison, _chosen(comparison, solvers))
    _require(curves)
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


def plot_work_precision(
    comparison: Comparison,
    axes: Axes | None = None,
    *,
    solvers: Sequence[str] | None = None,
    count_maps: bool = False,
) -> Axes:
    """Relative distance to the reference equilibrium against the cost, every solver and every tolerance it reaches.

    A dashed line for each tolerance is the largest certified bound on the distance that a solver returned there.

    Args:
        comparison: what ``compare`` returned.
        axes: where to draw; None makes a figure of full width.
        solvers: names of those with a colour and a place in the legend, the others are grey; None takes all if these
            are few, else ``SHOWN`` and those the title names.
        count_maps: the cost is the number of applications of W or its resolvent, which does not depend on the machine
            but leaves out the factorisations of the implicit methods; otherwise it is the wall time per input.

    Returns:
        The axes.

    Raises:
        InputError: if no solver reached any tolerance.
    """
    axes = new_axes() if axes is None else axes
    reached = _reached(comparison)
    _require(reached)
    title, named = _work_title(comparison, count_maps)
    if solvers is None:
        solvers = tuple(reached) if len(reached) <= len(SHOWN) else (*SHOWN, *named)
    styles = _styles(comparison, [name for name in reached if name in solvers])
    for name, points in reached.items():
        x = [m.map_evals if count_maps else 1e3 * m.seconds / m.rows for m in points]
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
            costs = [m.map_evals if count_maps else 1e3 * m.seconds / m.rows for m in here]
            # wider than its points, so that a single one still has a line
            ends = [min(costs) / 1.3, 1.3 * max(costs)]
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

    The prediction starts from the first residual of the worst row. Points below the diagonal are faster than predicted;
    solvers without a predicted factor (adaptive steps, Newton) and those that did not converge are left out.

    Args:
        comparison: what ``compare`` returned.
        axes: where to draw; None makes a figure of full width.

    Returns:
        The axes.

    Raises:
        InputError: if no solver has a prediction.
    """
    axes = new_axes() if axes is None else axes
    points = _predicted(comparison)
    _require(points)
    styles = _styles(comparison, list(points))
    for name, (predicted, measured) in points.items():
        axes.loglog([predicted], [measured], label=name, linestyle="none", **styles[name])
    ends = [min(map(min, points.values())) / 1.5, 1.5 * max(map(max, points.values()))]
    axes.loglog(ends, ends, label="as predicted", **(CERTIFIED | {"zorder": 1}))
    below = sum(measured <= predicted for predicted, measured in points.values())
    finish(
        axes,
        x="iterations or time steps, predicted",
        y="measured",
        title=f"{below} of {len(points)} solvers need no more iterations than predicted",
    )
    for axis in (axes.xaxis, axes.yaxis):  # the points may all lie between two powers of ten
        axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
    return axes


def _predicted(comparison: Comparison) -> dict[str, tuple[float, float]]:
    """Predicted and measured iterations by solver, family by family."""
    found = {}
    for name in _by_family(comparison):
        factor, last = comparison.solver(name).factor, comparison.of(name)[-1:]
        first = next((c.worst[0] for c in comparison.curves if c.solver == name), None)
        if factor is None or not 0 < factor < 1 or first is None or not all(m.converged for m in last) or not last:
            continue
        if last[0].tolerance == comparison.tightest and first > comparison.tightest:
            found[name] = (math.log(comparison.tightest / first) / math.log(factor), float(last[0].steps_max))
    return found


def plot_every_solver(
    comparison: Comparison, figure: Figure | None = None, *, against_time: bool = False
) -> list[Axes]:
    """One small panel for each solver: its residual in colour over those of all others in grey.

    Args:
        comparison: what ``compare`` returned.
        figure: where to draw; None makes one of full width.
        against_time: against the wall time of the batch instead of the iteration. Against the iteration, the predicted
            factor is drawn as a dashed line where one is proved.

    Returns:
        The axes, one for each solver.

    Raises:
        InputError: if there is no curve to draw.
    """
    curves = (_by_time if against_time else _by_iteration)(comparison, list(comparison.curves))
    _require(curves)
    columns = 4
    rows = math.ceil(len(curves) / columns)
    if figure is None:
        figure = matplotlib.figure.Figure(figsize=(FULL_WIDTH, 0.6 + 1.25 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    styles = _styles(comparison, [curve.solver for curve in curves])
    lines = {c.solver: ([1e3 * t for t in c.seconds] if against_time else c.steps, _plottable(c.worst)) for c in curves}
    panels = [axes for row in grid for axes in row]
    for axes, curve in zip(panels, curves, strict=False):
        for x, y in lines.values():
            axes.loglog(x, y, color="0.85", linewidth=0.6)
        x, y = lines[curve.solver]
        colour = styles[curve.solver]["color"]
        axes.loglog(x, y, color=colour, linewidth=1.6)
        factor = comparison.solver(curve.solver).factor
        if not against_time and factor is not None and factor < 1 and y[0] > comparison.tightest:
            fall = math.log(comparison.tightest / y[0]) / math.log(factor)
            steps = [fall * k / 100 for k in range(1, 101)]  # curved, because both axes are logarithmic
            axes.loglog(steps, [y[0] * factor**k for k in steps], color=colour, linestyle="--", linewidth=0.8)
        title = curve.solver.replace("/", "\non ")
        if max(map(len, title.split("\n"))) > _LONG:
            title = title.replace("-", "\n-")
        axes.set_title(title, fontsize=7.5, loc="left")
        axes.tick_params(labelsize=7)
        axes.set_ylim(comparison.tightest / 3, None)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.grid(True, color="0.93", linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(curves) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(curves) - columns) : len(curves)]:  # the lowest panel of each column
        axes.tick_params(labelbottom=True)
    predicted = "" if against_time else "; dashed: the predicted factor"
    figure.suptitle(f"Every solver among the others, worst input{predicted}", fontsize=9, x=0.01, ha="left")
    figure.supxlabel(f"wall time for {comparison.rows} inputs (ms)" if against_time else "iteration", fontsize=9)
    figure.supylabel("relative residual", fontsize=9)
    return panels[: len(curves)]


def draw_all(comparison: Comparison, *, width: float = FULL_WIDTH, panels: bool = True) -> dict[str, Figure]:
    """The figures that have something to show, ``width`` inches wide, by file name; ``PANELS`` where there is room."""
    curves, scatter = (0.6 * width, 0.7 * width) if width >= NARROW else (0.9 * width, 1.25 * width)
    by_iteration, by_time, work, maps, iterations = FIGURES
    chosen = _chosen(comparison, None)
    drawn: dict[str, Axes] = {}
    if _by_iteration(comparison, chosen):
        drawn[by_iteration] = plot_residual_against_iteration(comparison, new_axes(width, curves))
    if _by_time(comparison, chosen):
        drawn[by_time] = plot_residual_against_time(comparison, new_axes(width, curves))
    if _reached(comparison):
        drawn[work] = plot_work_precision(comparison, new_axes(width, scatter))
        drawn[maps] = plot_work_precision(comparison, new_axes(width, scatter), count_maps=True)
    if _predicted(comparison):
        drawn[iterations] = plot_predicted_iterations(comparison, new_axes(width, scatter))
    if panels and width >= NARROW:
        for name, against_time, select in zip(PANELS, (False, True), (_by_iteration, _by_time), strict=True):
            if select(comparison, list(comparison.curves)):
                drawn[name] = plot_every_solver(comparison, against_time=against_time)[0]
    return {name: figure_of(axes) for name, axes in drawn.items()}


def _chosen(comparison: Comparison, solvers: Sequence[str] | None) -> list[Curve]:
    known = {curve.solver: curve for curve in comparison.curves}
    if solvers is None:
        solvers = SHOWN if len(known) > len(SHOWN) else tuple(known)
    return [known[name] for name in solvers if name in known]


def _by_iteration(comparison: Comparison, curves: Sequence[Curve]) -> list[Curve]:
    return [curve for curve in curves if comparison.solver(curve.solver).family != "torchdiffeq"]


def _by_time(comparison: Comparison, curves: Sequence[Curve]) -> list[Curve]:
    return [curve for curve in curves if comparison.of(curve.solver)[-1].rows == comparison.rows]


def _reached(comparison: Comparison) -> dict[str, list[Measurement]]:
    """What every solver achieved, family by family; solvers that achieved nothing are left out."""
    names = _by_family(comparison)
    achieved = {n: [m for m in comparison.of(n) if m.converged and m.distance is not None] for n in names}
    return {name: points for name, points in achieved.items() if points}


def _by_family(comparison: Comparison) -> list[str]:
    names = [record.name for record in comparison.solvers]
    return sorted(names, key=lambda name: _FAMILIES.index(comparison.solver(name).family))


def _require(something: Sized) -> None:
    if not len(something):
        raise InputError("this comparison has nothing to draw here: no such solver solved the problem")


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


def _work_title(comparison: Comparison, count_maps: bool) -> tuple[str, tuple[str, ...]]:
    """The message of the figure, and the solvers that it names."""

    def cost(m: Measurement) -> float:
        return m.map_evals if count_maps else m.seconds / m.rows

    cheapest: dict[bool, Measurement] = {}
    for m in comparison.measurements:
        record = comparison.solver(m.solver)
        if m.tolerance == comparison.tightest and m.converged and not (count_maps and record.linear_solves):
            integrator = record.family in ("ODE integrator", "torchdiffeq")
            if integrator not in cheapest or cost(m) < cost(cheapest[integrator]):
                cheapest[integrator] = m
    if len(cheapest) < 2:
        return "Accuracy and cost", ()
    first, second = sorted(cheapest.values(), key=cost)
    ratio = f"{cost(second) / cost(first):.1f}"
    named = first.solver, second.solver
    if count_maps:
        return f"Without linear solves: {named[0]} needs {ratio} times fewer maps than {named[1]}", named
    return f"{named[0]} is {ratio} times as fast as {named[1]}", named
