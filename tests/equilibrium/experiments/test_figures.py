"""Figures say what they show, hide nothing, and touch no global state."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from contracting.plots import style
from contracting.plots.style import CERTIFIED, FULL_WIDTH, HALF_WIDTH
from contracting.solvers.catalogue import default_solvers
from equilibrium import LBEN, LBENConv2d
from equilibrium.experiments.compare_solvers import figures as comparison_plots
from equilibrium.experiments.compare_solvers.figures import (
    SHOWN,
    draws,
    plot_predicted_iterations,
    plot_residual_against_iteration,
    plot_residual_against_time,
    plot_work_precision,
)
from equilibrium.experiments.compare_solvers.study import compare
from equilibrium.experiments.contraction_cost import figures as contraction_cost_plots
from equilibrium.experiments.convolution.figures import plot_equilibrium
from tests.figures import assert_apart

NAMES = ("SemismoothNewton", "PeacemanRachford", "ForwardBackward", "ExplicitEuler", "DormandPrince/Hopfield")
PLOTS = (plot_residual_against_iteration, plot_residual_against_time, plot_work_precision)


@pytest.fixture(scope="module")
def comparison():
    torch.manual_seed(1)
    layer = LBEN(6, 10, 3, lipschitz=1.0, dtype=torch.float64)
    solvers = {name: default_solvers()[name] for name in NAMES}
    return compare(layer, 3 * torch.randn(8, 6, dtype=torch.float64), solvers, (1e-3, 1e-6), repeats=1)


@pytest.mark.parametrize("plot", PLOTS)
def test_axes_are_used_and_returned(comparison, plot):
    axes = Figure().subplots()
    assert plot(comparison, axes) is axes
    assert plot(comparison).figure is not axes.figure
    assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left")
    assert {text.get_text() for text in axes.get_legend().get_texts()} >= set(NAMES)


@pytest.mark.parametrize("width", [FULL_WIDTH, HALF_WIDTH])
def test_nothing_is_covered_or_cut_off(comparison, width):
    for name, draw in draws(comparison).items():
        figure = draw(width)
        assert figure.get_figwidth() == width
        figure.draw_without_rendering()
        (axes,) = figure.axes
        page, legend, title = figure.bbox, axes.get_legend().get_window_extent(), axes._left_title.get_window_extent()
        assert not legend.overlaps(axes.bbox), name
        for box in (legend, title, axes.xaxis.label.get_window_extent(), axes.yaxis.label.get_window_extent()):
            assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, (name, box)


@pytest.fixture(scope="module")
def crowded(comparison):
    """As many solvers as the command line compares, each with the numbers of one that was run."""
    solvers, measurements, curves = [], [], []
    for number, (name, method) in enumerate(default_solvers().items()):
        # as in a real comparison: adaptive steps, Newton's and Anderson's have no factor
        predicts = method.family in ("splitting", "ODE integrator") and "Anderson" not in name and "Prince" not in name
        model = comparison.solver("PeacemanRachford" if predicts else "SemismoothNewton")
        solvers.append(replace(model, name=name, family=method.family))
        measurements += [replace(m, solver=name, seconds=m.seconds * (1 + number)) for m in comparison.of(model.name)]
        curves += [replace(c, solver=name) for c in comparison.curves if c.solver == model.name]
    return replace(comparison, solvers=tuple(solvers), measurements=tuple(measurements), curves=tuple(curves))


@pytest.mark.parametrize("width", [FULL_WIDTH, HALF_WIDTH])
def test_many_solvers_cover_nothing_and_are_told_apart(crowded, width):
    for name, draw in draws(crowded).items():
        figure = draw(width)
        figure.draw_without_rendering()
        (axes,) = figure.axes
        legend, title = axes.get_legend().get_window_extent(), axes._left_title.get_window_extent()
        assert not legend.overlaps(axes.bbox) and not legend.overlaps(title), name
        assert legend.y1 <= figure.bbox.y1 and title.x1 <= figure.bbox.x1, name
        named = [line for line in axes.lines if line.get_label() in default_solvers()]
        looks = {(line.get_marker(), line.get_color(), line.get_markerfacecolor()) for line in named}
        assert len(looks) == len(named) > 0, name


def test_solvers_without_a_colour_are_grey_and_counted(crowded):
    axes = plot_work_precision(crowded)
    count = len(crowded.solvers)
    named = [line for line in axes.lines if line.get_label() in default_solvers()]
    grey = [line for line in axes.lines if line.get_color() == "0.8" and len(line.get_xdata())]
    assert len(SHOWN) <= len(named) <= len(SHOWN) + 2 and len(named) + len(grey) == count
    assert f"{len(grey)} others" in [text.get_text() for text in axes.get_legend().get_texts()]


def test_predicted_factor_is_the_slope_of_the_dashed_line(comparison):
    axes = plot_residual_against_iteration(comparison)
    record = comparison.solver("PeacemanRachford")
    (curve,) = [line for line in axes.lines if line.get_label() == record.name]
    dashed = [
        line
        for line in axes.lines
        if line.get_color() == curve.get_color() and line.get_linestyle() != "-" and len(line.get_xdata()) == 2
    ]
    steps, values = dashed[0].get_data()
    assert values[0] == curve.get_ydata()[0] and steps[0] == 0
    slope = np.log(values[1] / values[0]) / (steps[1] - steps[0])
    assert math.exp(slope) == pytest.approx(record.factor)


def test_solvers_are_told_apart_without_colour(comparison):
    axes = plot_work_precision(comparison)
    solvers = [line for line in axes.lines if line.get_label() in NAMES]
    looks = {(line.get_marker(), line.get_markerfacecolor() == "white") for line in solvers}
    assert len(looks) == len(NAMES)


def test_time_is_per_input_and_maps_are_counted(comparison):
    m = comparison.of("PeacemanRachford")[0]
    for count_maps, cost in ((False, 1e3 * m.seconds / m.rows), (True, m.map_evals)):
        axes = plot_work_precision(comparison, count_maps=count_maps)
        (line,) = [line for line in axes.lines if line.get_label() == "PeacemanRachford"]
        assert line.get_xdata()[0] == cost and line.get_ydata()[0] == m.distance


@pytest.mark.parametrize("count_maps", [False, True])
def test_every_point_lies_below_the_certified_line_of_its_tolerance(comparison, count_maps):
    axes = plot_work_precision(comparison, count_maps=count_maps)
    certified = [line for line in axes.lines if line.get_color() == CERTIFIED["color"] and line.is_dashed()]
    assert len(certified) == len(comparison.tolerances)
    for tolerance, line in zip(comparison.tolerances, certified, strict=True):
        here = [m for m in comparison.measurements if m.tolerance == tolerance]
        (left, right), (height, _) = line.get_data()
        assert height == max(m.error_bound for m in here)
        for m in here:
            cost = m.map_evals if count_maps else 1e3 * m.seconds / m.rows
            assert m.distance <= height and left < cost < right


def test_predicted_iterations_stand_on_the_diagonal_where_they_are_met(comparison):
    axes = plot_predicted_iterations(comparison)
    names = [name for name in NAMES if comparison.solver(name).factor is not None]
    points = {line.get_label(): line.get_data() for line in axes.lines if line.get_label() in NAMES}
    assert set(points) == set(names) and "SemismoothNewton" not in names
    for name, ((predicted,), (measured,)) in points.items():
        record, curve = comparison.solver(name), next(c for c in comparison.curves if c.solver == name)
        assert record.factor**predicted * curve.worst[0] == pytest.approx(comparison.tightest)
        assert measured == comparison.of(name)[-1].steps_max
    assert axes.get_title(loc="left").startswith(f"{len(names)} of {len(names)} solvers")
    # a factor that promises too much is seen
    liars = tuple(replace(r, factor=None if r.factor is None else r.factor**9) for r in comparison.solvers)
    title = plot_predicted_iterations(replace(comparison, solvers=liars)).get_title(loc="left")
    assert title.startswith(f"0 of {len(names)}")


def test_few_curves_are_drawn(crowded):
    assert len(SHOWN) <= 7 and set(SHOWN) <= set(default_solvers())
    axes = plot_residual_against_time(crowded)
    assert {line.get_label() for line in axes.lines} <= set(SHOWN)


def test_nothing_to_draw_is_no_figure(comparison):
    assert all(draw is not None for draw in draws(comparison).values())
    assert set(draws(replace(comparison, curves=(), measurements=())).values()) == {None}


def test_pyplot_is_not_used():
    for module in (comparison_plots, contraction_cost_plots):
        assert "pyplot" not in inspect.getsource(module)
    assert "pyplot" not in inspect.getsource(style.axes_for_a_file)  # where somebody looks, ``new_axes`` asks it


@pytest.mark.parametrize("slowest", [20.0, 80.0, 700.0, 1e5, 1e9])
@pytest.mark.parametrize("width", [FULL_WIDTH, HALF_WIDTH])
def test_numbers_along_the_axes_are_apart_over_any_number_of_decades(comparison, monkeypatch, slowest, width):
    counts = {"PeacemanRachford": (12.0, 10.0), "ExplicitEuler": (slowest, slowest / 2)}
    monkeypatch.setattr(comparison_plots, "predicted", lambda comparison: counts)
    figure = draws(comparison)["predicted-iterations"](width)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert_apart(axes)
    low, high = axes.get_xlim()
    assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 2


@pytest.mark.parametrize(("width", "least"), [(FULL_WIDTH, 0.5), (HALF_WIDTH, 0.42)])
def test_small_pictures_are_large_enough_to_be_seen(width, least):
    layer = LBENConv2d(1, 16, 10, image=(6, 6), pool=1)
    figure = plot_equilibrium(layer, torch.rand(1, 6, 6), width)
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 17 and min(axes.get_window_extent().width / figure.dpi for axes in panels) > least
