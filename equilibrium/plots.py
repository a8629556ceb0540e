"""Figures of a comparison of solvers, drawn on matplotlib's objects: nothing global, nothing shown, no display needed.

A family of solvers has its colours (Okabe–Ito, told apart by the colour-blind) and its kind of marker: splittings and
Newton are filled, integrators open, those of torchdiffeq strokes, so that a figure can be read in grey. The same
functions draw for the full width of a page and for half of it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Any

import matplotlib.figure
import matplotlib.ticker

from contracting.errors import InputError
from contracting.plots.style import (
    BLUE,
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
from equilibrium.comparison import Comparison, Curve, Measurement
from equilibrium.contraction_cost import TrainedLayer, by_rate
from equilibrium.solvers import FAMILIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = ("residual-against-iteration", "residual-against-time", "work-precision", "work-precision-in-maps")
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
_COLOURS = {
    "splitting": (BLUE, SKY),
    "Newton": ("#000000", "#000000"),
    "ODE integrator": (VERMILION, ORANGE),
    "torchdiffeq": (GREEN, GREEN),
}
_DASHES = (4.0, 4.0)
_MARKERS = {"splitting": "osD^", "Newton": "*", "ODE integrator": "osD^v<>pPXhd8", "torchdiffeq": "x+1234"}


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


def plot_work_precision(comparison: Comparison, axes: Axes | None = None, *, count_maps: bool = False) -> Axes:
    """Relative distance to the reference equilibrium against the cost, every solver and every tolerance it reaches.

    Args:
        comparison: what ``compare`` returned.
        axes: where to draw; None makes a figure of full width.
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
    styles = _styles(comparison, list(reached))
    for name, points in reached.items():
        x = [m.map_evals if count_maps else 1e3 * m.seconds / m.rows for m in points]
        y = [max(m.distance or 0.0, _FLOOR) for m in points]
        axes.loglog(x, y, label=name, linewidth=0.5, **styles[name])
    finish(
        axes,
        x="applications of W or its resolvent" if count_maps else "wall time per input (ms)",
        y="relative distance to equilibrium",
        title=_work_title(comparison, count_maps),
    )
    return axes


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
        axes.set_title(curve.solver.replace("/", "\non "), fontsize=7.5, loc="left")
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
    curves, scatter = (0.6 * width, 0.6 * width) if width >= NARROW else (0.9 * width, 1.25 * width)
    by_iteration, by_time, work, maps = FIGURES
    chosen = _chosen(comparison, None)
    drawn: dict[str, Axes] = {}
    if _by_iteration(comparison, chosen):
        drawn[by_iteration] = plot_residual_against_iteration(comparison, new_axes(width, curves))
    if _by_time(comparison, chosen):
        drawn[by_time] = plot_residual_against_time(comparison, new_axes(width, curves))
    if _reached(comparison):
        drawn[work] = plot_work_precision(comparison, new_axes(width, scatter))
        drawn[maps] = plot_work_precision(comparison, new_axes(width, scatter), count_maps=True)
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
    names = [record.name for record in comparison.solvers]
    names.sort(key=lambda name: FAMILIES.index(comparison.solver(name).family))
    achieved = {n: [m for m in comparison.of(n) if m.converged and m.distance is not None] for n in names}
    return {name: points for name, points in achieved.items() if points}


def _require(something: Sized) -> None:
    if not len(something):
        raise InputError("this comparison has nothing to draw here: no such solver solved the problem")


def _styles(comparison: Comparison, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colours of the family, in turn; a marker of its own for every solver of a family."""
    looks = {f: zip(itertools.cycle(_COLOURS[f]), itertools.cycle(_MARKERS[f]), strict=False) for f in FAMILIES}
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


def _work_title(comparison: Comparison, count_maps: bool) -> str:
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
        return "Accuracy and cost"
    first, second = sorted(cheapest.values(), key=cost)
    ratio = f"{cost(second) / cost(first):.1f}"
    if count_maps:
        return f"Without linear solves: {first.solver} needs {ratio} times fewer maps than {second.solver}"
    return f"{first.solver} is {ratio} times as fast as {second.solver}"


def draw_contraction_cost(layers: Sequence[TrainedLayer], *, width: float = FULL_WIDTH) -> Figure:
    """Test error against the rate that training asked for, and beside it the rates: certified, bounded, measured.

    Args:
        layers: what ``contraction_cost`` returned; every point is a mean over seeds, every bar a standard deviation.
        width: of the figure, in inches.
    """
    groups = by_rate(layers)
    places, names = range(len(groups)), ["none" if rate is None else f"{rate:g}" for rate in groups]
    figure = matplotlib.figure.Figure(figsize=(width, 0.55 * width), layout="constrained")
    left, right = figure.subplots(1, 2)

    def draw(axes: Axes, attribute: str, colour: str, marker: str, label: str | None = None, shift: float = 0) -> None:
        values = [[getattr(layer, attribute) for layer in group] for group in groups.values()]
        means = [statistics.fmean(v) for v in values]
        spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
        at = [place + shift for place in places]
        axes.errorbar(at, means, spread, color=colour, marker=marker, capsize=3, linewidth=1.3, label=label)

    draw(left, "test_error", "#000000", "o")
    draw(right, "bound", "#E69F00", "v", "upper bound, any metric", 0.06)
    draw(right, "slowest", "#009E73", "D", "slowest pair of trajectories", 0.02)
    draw(right, "certified", "#0072B2", "s", "certified, best found", -0.02)
    draw(right, "explicit", "#56B4E9", "^", "certified, explicit metric", -0.06)
    for place, rate in enumerate(groups):
        if rate is not None:
            label = "asked for" if rate == max(r for r in groups if r is not None) else None
            right.plot([place - 0.3, place + 0.3], [rate, rate], color="0.4", linestyle="--", linewidth=1, label=label)
    for axes, y in ((left, "test error (%)"), (right, "rate (per unit of time)")):
        finish(axes, x="contraction rate c asked for", y=y, title="", legend=False)
        axes.set_xticks(list(places), names)
        axes.margins(x=0.2)
    left.set_ylim(bottom=0)
    size = 8 if width < NARROW else 9
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=size - 1, frameon=False)
    figure.suptitle("What a certified contraction rate costs", fontsize=size + 1)
    return figure
