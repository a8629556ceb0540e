"""Figures in the complex plane: numerical ranges inside their parabola, and spectra left of the line of a rate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from torch import Tensor

from contracting import checks
from contracting.errors import InputError
from contracting.plots.style import BOUND, CERTIFIED, GREEN, ORANGE, PURPLE, SKY, finish, look, new_axes, shown
from contracting.simulation.evidence import Evidence, standing

_FILLS = (SKY, ORANGE, PURPLE, GREEN)
_MARKERS = "os^D"


def plot_numerical_range(
    ranges: Mapping[str, Tensor], axes: Axes | None = None, *, rate: float = 0.0, title: str | None = None
) -> Axes:
    r"""Numerical ranges with the parabola of a contraction rate and the half-plane of Condition 1.

    The firing-rate flow of W contracts at rate c with multiplier Q iff the range of Q^½WQ^−½ lies inside
    Re ω ≤ s − (Im ω)²/(4s), s = 1 − c; Condition 1 in Λ = Q only says Re ω < 1.

    Args:
        ranges: boundary points of the ranges by name, complex (points,), as ``numerical_range.boundary`` gives them.
        axes: where to draw; None makes a figure of full width.
        rate: c < 1 of the parabola.
        title: None says which ranges fit.

    Raises:
        InputError: without a range.
    """
    if not ranges:
        raise InputError("ranges must hold at least one numerical range")
    checks.number("rate", rate, high=1, high_open=True)
    axes = new_axes() if axes is None else axes
    s = 1 - rate
    for (name, points), colour in zip(ranges.items(), _FILLS * len(ranges), strict=False):
        real, imaginary = points.real.tolist(), points.imag.tolist()
        flat = float(points.real.max() - points.real.min()) < 0.02 * float(points.abs().max())
        axes.fill(
            real, imaginary, facecolor=colour, edgecolor=colour, alpha=1.0 if flat else 0.4,
            linewidth=5 if flat else 1.5, label=name,
            zorder=1 + 1 / (1 + float(points.abs().max())),  # a small one is not hidden by a large one
        )  # fmt: skip
    tallest = max(float(points.imag.abs().max()) for points in ranges.values())
    height = 1.15 * max(tallest, 2 * s)
    im = torch.linspace(-height, height, 241, dtype=torch.float64)
    axes.plot((s - im**2 / (4 * s)).tolist(), im.tolist(), label=f"parabola of rate {shown(rate)}", **CERTIFIED)
    axes.axvline(1.0, color="black", linewidth=1.0, linestyle="-.", label="half-plane (Condition 1)")
    left = min(float(points.real.min()) for points in ranges.values())
    axes.set_xlim(min(left, -0.5 * s) - 0.2 * s, max(1.0, s) + 0.3)
    axes.set_ylim(-height, height)
    if title is None:
        g = {name: float(((points.abs() + points.real) / 2).max()) for name, points in ranges.items()}
        fits = [name for name, reach in g.items() if reach <= s * (1 + 1e-6)]
        left_of_one = all(float(points.real.max()) < 1 for points in ranges.values())
        title = f"Inside the parabola: {', '.join(fits) if fits else 'none'}"
        if left_of_one and len(fits) < len(ranges):
            title += f"; within the half-plane: {'both' if len(ranges) == 2 else 'all'}"
    finish(axes, x="real part", y="imaginary part", title=title)
    return axes


def plot_spectra(
    spectra: Mapping[str, Tensor],
    axes: Axes | None = None,
    *,
    evidence: Evidence,
    bound: float | None = None,
    title: str | None = None,
) -> Axes:
    """Eigenvalues of the Jacobian over patterns of slopes, left of the abscissa −c of a contraction rate.

    Args:
        spectra: eigenvalues by name of the group of patterns, complex, any shape.
        axes: where to draw; None makes a figure of full width.
        evidence: whose rate is c, and called what it is: a ``Certificate``, a ``SampledRate``, or a ``Claim``.
        bound: what no certificate may exceed: the worst abscissa found is −bound.
        title: None says whether all of the spectra shown keep to the rate; others it knows nothing of.

    Raises:
        InputError: without a spectrum.
    """
    if not spectra:
        raise InputError("spectra must hold at least one group of eigenvalues")
    axes = new_axes() if axes is None else axes
    groups = {name: values.detach().flatten() for name, values in spectra.items()}
    colours = ("0.6", GREEN, PURPLE, ORANGE) * len(groups)
    for (name, values), colour, marker in zip(groups.items(), colours, _MARKERS * len(groups), strict=False):
        size = 4 if len(values) > 200 else 14
        axes.scatter(
            values.real.tolist(), values.imag.tolist(), s=size, color=colour, marker=marker, linewidths=0,
            alpha=0.5 if size == 4 else 0.9, label=name,
        )  # fmt: skip
    word, rate = standing(evidence), evidence.rate
    axes.axvline(-rate, label=f"{word}: Re λ ≤ {shown(-rate)}", **look(evidence))
    if bound is not None:
        axes.axvline(-bound, label=f"worst found: {shown(-bound)}", **BOUND)
    axes.margins(x=0.08)
    worst = max(float(values.real.max()) for values in groups.values())
    kept = worst <= -rate + 1e-9 * (1 + abs(rate))
    said = f"None of the spectra shown goes beyond the {word} line"
    finish(
        axes,
        x="real part of the eigenvalue (per time constant)",
        y="imaginary part",
        title=title or (said if kept else f"Eigenvalues lie beyond the {word} line"),
    )
    return axes
