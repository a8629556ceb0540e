"""Figures of rates over families of flows: certified beside true beside bound."""

from __future__ import annotations

import itertools

from matplotlib.axes import Axes

from contracting.certificates.records import Certificate
from contracting.certificates.sweeps import SkewnessSweep, StepSweep
from contracting.metrics import WeightedL1
from contracting.plots.style import (
    BLUE,
    BOUND,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    finish,
    label_ends,
    new_axes,
    shown,
)

_LOOKS = {
    "norm of degree 4": ("black", "--"),
    "vertices, full P": ("black", "-"),
    "parabola, best Q": (BLUE, "-"),
    "parabola, given Q": (SKY, "-"),
    "explicit metric": (GREEN, "--"),
    "diagonal metric": (ORANGE, "-."),
    "ℓ∞, Perron": (PURPLE, "-"),
    "ℓ1, Perron": (PURPLE, ":"),
}
_SHORT = {
    "norm of degree 4, with relations": "norm of degree 4",
    "vertex inequalities, full P": "vertices, full P",
    "parabola test, optimised multiplier": "parabola, best Q",
    "parabola test": "parabola, given Q",
}


def plot_rates_against_skewness(sweep: SkewnessSweep, axes: Axes | None = None) -> Axes:
    """Every certified rate and the upper bound against the size of the skew part; the true rate is in the grey."""
    axes = new_axes() if axes is None else axes
    order = sweep.skewness.argsort().tolist()
    skewness, reports = sweep.skewness[order].tolist(), [sweep.reports[index] for index in order]
    best = [r.best.rate for r in reports]
    bound = [r.bound.rate for r in reports]
    axes.fill_between(skewness, best, bound, color="0.85", linewidth=0, label="true rate")
    (line,) = axes.plot(skewness, bound, label="upper bound", **BOUND)
    ends = [(bound[-1], "upper bound", VERMILION)]
    for name, (colour, dashes) in _LOOKS.items():
        points = [(s, c.rate) for s, r in zip(skewness, reports, strict=True) for c in r.all if _short(c) == name]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, linewidth=1.4, label=name)
            ends.append((points[-1][1], name, colour))
    axes.axhline(0, color="0.3", linewidth=0.6)
    axes.set_xlim(skewness[0], skewness[-1])
    ends.append(((best[-1] + bound[-1]) / 2, "true rate: grey", "0.4"))
    # up to the first size where it is not: beyond, a certificate may hold again
    each = ((s, report.best) for s, report in zip(skewness, reports, strict=True))
    proved = list(itertools.takewhile(lambda at: at[1].contracting, each))
    title = "No certificate proves contraction at the smallest of these skew parts"
    if proved:
        title = f"Contraction is proved up to a skew part of {shown(proved[-1][0])}, by {_short(proved[-1][1])}"
    finish(axes, x="size of the skew part of the weight", y="contraction rate", title=title, legend=False)
    label_ends(axes, ends)
    return axes


def plot_rate_against_step(sweep: StepSweep, axes: Axes | None = None) -> Axes:
    """Rates from the firing-rate flow (α = 1) to the inclusion (α → 0), with the rate of the limit."""
    axes = new_axes() if axes is None else axes
    order = sweep.steps.argsort()
    steps = sweep.steps[order].tolist()
    certified, diagonal, bound = (x[order].tolist() for x in (sweep.certified, sweep.diagonal, sweep.bound))
    axes.fill_between(steps, certified, bound, color="0.85", linewidth=0, label="true rate")
    axes.semilogx(steps, bound, label="upper bound", **BOUND)
    marks = {"markersize": 3.5, "linewidth": 1.5}
    axes.semilogx(steps, certified, color=BLUE, marker="o", label="certified, best metric", **marks)
    axes.semilogx(steps, diagonal, color=GREEN, marker="s", label="certified in Λ", **marks)
    limit = sweep.inclusion.rate
    axes.axhline(limit, color=BLUE, linewidth=0.9, linestyle="--", label=f"inclusion, best Λ: {shown(limit)}")
    m = sweep.monotonicity
    axes.axhline(m, color=GREEN, linewidth=0.9, linestyle="--", label=f"inclusion in Λ: m = {shown(m)}")
    axes.axhline(0, color="0.3", linewidth=0.6)
    # from the firing-rate flow on the left to the inclusion on the right
    axes.set_xlim(1.15 * steps[-1], steps[0] / 1.15)
    finish(
        axes,
        x="step α: firing rate at 1, inclusion → 0",
        y="contraction rate in time t/α",
        title="Condition 1 alone gives contraction towards the inclusion, not at the firing-rate flow"
        if diagonal[-1] <= 0
        else "The certified rate rises towards that of the inclusion",
    )
    return axes


def _short(certificate: Certificate) -> str:
    if certificate.method == "Perron weights":
        return "ℓ1, Perron" if isinstance(certificate.metric, WeightedL1) else "ℓ∞, Perron"
    return _SHORT.get(certificate.method, certificate.method)
