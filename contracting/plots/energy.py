"""Figures of the convex view, for W self-adjoint in the metric: flows and iterations go down an energy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from contracting import checks
from contracting.errors import InputError
from contracting.plots.style import (
    BLUE,
    CERTIFIED,
    GREEN,
    LEAST,
    ORANGE,
    PURPLE,
    VERMILION,
    finish,
    new_axes,
    pair_of_names,
)
from contracting.simulation.energy import Energy

_COLOURS = (VERMILION, GREEN, PURPLE, ORANGE)


def plot_energy_descent(
    gaps: Mapping[str, tuple[Tensor, Tensor]],
    axes: Axes | None = None,
    *,
    energy: Energy | None = None,
    iterations: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> Axes:
    """E(z) − E(z*) relative to its start, along flows (lines) and iterations (dots at multiples of their step).

    Args:
        gaps: times (T,) and E(z(t)) − E(z*) (T,) by name of the flow.
        axes: where to draw; None makes a figure of full width.
        energy: whose m gives the line e^{−mt} that ``Energy.guaranteed_factor`` proves; None leaves it out.
        iterations: the same for iterations, at times αk.

    Raises:
        InputError: without a curve, or if one does not start above the minimum.
    """
    iterations = iterations or {}
    everything = {**gaps, **iterations}
    if not everything:
        raise InputError("gaps must hold at least one curve")
    axes = new_axes() if axes is None else axes
    falling, latest = True, 0.0
    for (name, (times, gap)), colour in zip(everything.items(), _COLOURS * len(everything), strict=False):
        checks.positive_tensor(f"the first gap of {name}", gap[:1])
        relative = (gap / gap[0]).clamp_min(LEAST)
        falling &= bool((relative.diff() <= 1e-9).all())
        latest = max(latest, float(times[-1]))
        look = {"marker": "o", "markersize": 3.5, "linestyle": "none"} if name in iterations else {"linewidth": 1.5}
        axes.semilogy(times.tolist(), relative.tolist(), color=colour, label=name, **look)
    if energy is not None:
        end = float(np.exp(-energy.strong_convexity * latest))
        axes.semilogy([0.0, latest], [1.0, end], label="certified $e^{-mt}$", **CERTIFIED)
    finish(
        axes,
        x="time, or step times iteration",
        y="energy above its minimum\nrelative to the start",
        title="The energy falls all the way, in every flow" if falling else "The energy rises somewhere",
    )
    return axes


def plot_energy_contours(
    energy: Energy,
    axes: Axes | None = None,
    *,
    x: tuple[float, float],
    y: tuple[float, float],
    equilibrium: Tensor,
    flow: Tensor | None = None,
    iterates: Tensor | None = None,
    step: float | None = None,
    names: tuple[str, str] | None = None,
) -> Axes:
    """Level lines of the energy in the plane, with a flow and the two halves of proximal-gradient steps.

    A forward–backward step follows the gradient of the smooth part (thin arrow) and then takes the proximal map of the
    rest (thick line), for ReLU the projection onto the quadrant where the energy is finite.

    Args:
        energy: of a problem with two units and a single row of input.
        axes: where to draw; None makes a figure of full width.
        x: first and last value of z₁.
        y: the same of z₂.
        equilibrium: z*, (2,).
        flow: a trajectory z(t), (T, 2).
        iterates: iterates of forward–backward splitting, (K, 2), with their ``step``.
        step: α of the iterates.
        names: of the two coordinates, for the axes; None numbers the units.

    Raises:
        InputError: for iterates without a step.
    """
    if (iterates is None) != (step is None):
        raise InputError("give both iterates and step, which belong together, or neither")
    first, second = pair_of_names(names, ("activation of unit 1", "activation of unit 2"))
    axes = new_axes(height=4.4) if axes is None else axes
    grid_x, grid_y = (torch.linspace(*side, 201, dtype=torch.float64) for side in (x, y))
    points = torch.cartesian_prod(grid_y, grid_x).flip(-1)
    q = energy.problem.q
    lowest = float(energy(equilibrium[None].to(q))[0])
    gap = energy(points.to(q)).to("cpu", torch.float64).sub(lowest).reshape(201, 201).numpy()
    finite = np.isfinite(gap)
    levels = float(gap[finite].max()) * np.linspace(0.08, 1.0, 9) ** 2
    axes.contour(grid_x, grid_y, np.where(finite, gap, np.nan), levels=levels, colors="0.6", linewidths=0.6)
    if not finite.all():
        axes.contourf(grid_x, grid_y, ~finite, levels=[0.5, 1.5], colors=["0.92"])
        axes.plot([], [], "s", color="0.88", markersize=8, label="energy infinite")
    axes.plot([], [], color="0.6", linewidth=0.6, label="level lines")
    if flow is not None:
        axes.plot(*flow.detach().mT.tolist(), color=VERMILION, linewidth=1.6, label="flow")
    if iterates is not None and step is not None:
        _draw_steps(axes, energy, iterates.detach().to(q), step)
    axes.plot(*equilibrium.tolist(), "*", color="black", markersize=9, linestyle="none", label="equilibrium")
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    axes.set_aspect("equal")
    finish(
        axes,
        x=first,
        y=second,
        title="Forward–backward splitting is the proximal-gradient method on the energy",
    )
    return axes


def _draw_steps(axes: Axes, energy: Energy, iterates: Tensor, step: float) -> None:
    half = iterates - step * energy.smooth_gradient(iterates)
    for index in range(len(iterates) - 1):
        before, middle, after = iterates[index], half[index], iterates[index + 1]
        tip, tail = ((float(point[0]), float(point[1])) for point in (middle, before))
        axes.annotate("", tip, tail, arrowprops={"arrowstyle": "->", "color": BLUE, "linewidth": 0.9})
        axes.plot(*torch.stack([middle, after]).mT.tolist(), color=BLUE, linewidth=2.2, alpha=0.5)
    axes.plot(*iterates.mT.tolist(), "o", color=BLUE, markersize=3.5, linestyle="none", label="iterates")
    axes.plot([], [], color=BLUE, linewidth=0.9, label="gradient step")
    axes.plot([], [], color=BLUE, linewidth=2.2, alpha=0.5, label="proximal map")
