"""Figures of trajectories: their distance beside a rate, and how they follow a moving equilibrium."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from torch import Tensor

from contracting import checks
from contracting.errors import InputError
from contracting.plots.style import BOUND, LEAST, SEEN, SLACK, finish, look, new_axes, shown
from contracting.simulation.evidence import Evidence, standing
from contracting.simulation.tracking import Tracking


def plot_distance(
    times: Tensor,
    distances: Tensor,
    axes: Axes | None = None,
    *,
    evidence: Evidence,
    bound: float | None = None,
    flow: str = "",
    title: str | None = None,
) -> Axes:
    """Distance between pairs of trajectories, relative to its start, with the lines e^{−ct} of two rates.

    No pair may lie above the line of a certified rate. No certificate, in any norm, may have a steeper line than the
    bound, which is about the worst slopes of the activation; these pairs need not meet them.

    Args:
        times: (T,), increasing.
        distances: ‖s₁(t) − s₂(t)‖ in the norm of the evidence, (T,) or (T, pairs), positive at the first time.
        axes: where to draw; None makes a figure of full width.
        evidence: whose rate c is drawn, and called what it is: a ``Certificate``, a ``SampledRate``, or a ``Claim``;
            negative where it bounds how fast trajectories separate.
        bound: what no certificate may exceed, or None.
        flow: name of the flow, for the legend of several on the same axes.
        title: None says whether every pair kept to the rate.

    Raises:
        InputError: on shapes that do not fit, or a pair that starts at distance zero.
    """
    if times.ndim != 1 or distances.ndim not in (1, 2) or len(times) != len(distances):
        raise InputError(
            f"times must have shape (T,) and distances (T,) or (T, pairs), got {tuple(times.shape)} and "
            f"{tuple(distances.shape)}"
        )
    d = checks.floating_tensor("distances", distances).detach().reshape(len(times), -1)
    checks.positive_tensor("the first distances", d[0])
    axes = new_axes() if axes is None else axes
    shared, limits = bool(axes.lines), axes.get_ylim()  # another flow may be there already
    elapsed = (times - times[0]).detach()
    relative = (d / d[0]).clamp_min(LEAST)
    of = f" ({flow})" if flow else ""
    for index, curve in enumerate(relative.mT):
        label = f"{relative.shape[1]} pairs{of}" if relative.shape[1] > 1 else f"a pair{of}"
        axes.semilogy(
            times.tolist(), curve.tolist(), label=None if index else label,
            **({"color": "black", "linewidth": 1.4} if relative.shape[1] == 1 else {"color": SEEN, "linewidth": 0.8}),
        )  # fmt: skip
    ends = [float(times[0]), float(times[-1])]
    word, rate = standing(evidence), evidence.rate
    proved = torch.exp(-rate * elapsed.to(torch.float64))
    axes.semilogy(ends, [1.0, float(proved[-1])], label=f"{word} {shown(rate)}{of}", **look(evidence))
    if bound is not None:
        steepest = torch.exp(-bound * elapsed[-1:].to(torch.float64))
        axes.semilogy(ends, [1.0, float(steepest)], label=f"bound {shown(bound)}{of}", **BOUND)
    # not the bound, which would press everything else against the top where it is steep
    heights = torch.cat([relative.flatten().to(proved), proved])
    low, high = max(LEAST, float(heights.min())) / 1.5, 1.5 * float(heights.max())
    if shared:
        low, high = min(low, limits[0]), max(high, limits[1])
    axes.set_ylim(low, high)
    kept = bool((relative <= proved[:, None].to(relative) * (1 + SLACK) + 2 * LEAST).all())
    said = f"Every pair keeps to the {word} rate {shown(rate)}"
    finish(
        axes,
        x="time (time constants of the flow)",
        y="distance of two trajectories\nrelative to its start",
        title=title or (said if kept else f"Some pairs are slower than the {word} rate"),
    )
    return axes


def plot_tracking(tracking: Tracking, axes: Axes | None = None) -> Axes:
    """Distance of every row from its moving equilibrium, below the bound (an estimate where no rate is proved)."""
    axes = new_axes() if axes is None else axes
    times, error, bound = tracking.times.tolist(), tracking.error.detach(), tracking.bound.detach()
    for index, curve in enumerate(error.mT):
        label = None if index else ("measured" if error.shape[1] == 1 else f"measured, {error.shape[1]} starts")
        axes.plot(times, curve.tolist(), color=SEEN, linewidth=0.9, label=label)
    word = "certified" if tracking.evidence is None else standing(tracking.evidence)
    name = "bound" if word == "certified" else "estimate"
    doubts = (", speed sampled" if tracking.speed_is_sampled else "") + ("" if name == "bound" else f", {word} rate")
    for index, curve in enumerate(bound.mT):
        label = None if index else f"{name}{doubts} (rate {shown(tracking.rate)})"
        axes.plot(times, curve.tolist(), label=label, **(look(tracking.evidence) | {"linewidth": 1.3}))
    axes.set_ylim(bottom=0)
    kept = bool((error <= bound * (1 + 1e-3)).all())
    share = float((error[-1] / bound[-1]).amax())
    finish(
        axes,
        x="time (time constants of the flow)",
        y="distance to moving equilibrium",
        title=f"In the end the error is {share:.0%} of its {name}" if kept else f"The error exceeds the {name}",
    )
    return axes
