"""Figures of the robustness experiment: what a bound costs, how tight it is, and what it buys under attack.

What is certified is dashed, what was measured solid; what the authors of arXiv 2010.01732 report is grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from contracting import InputError
from contracting.plots.style import BLUE, CERTIFIED, GREEN, ORANGE, PURPLE, SEEN, SKY, VERMILION, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# model: name in a figure, with its γ and c, colour, marker
_LOOKS = {
    "lipschitz-0.1": ("γ = 0.1", "#08306B", "o"),
    "lipschitz-0.2": ("γ = 0.2", "#08306B", "o"),
    "lipschitz-0.3": ("γ = 0.3", "#08519C", "o"),
    "lipschitz-0.4": ("γ = 0.4", "#08519C", "o"),
    "lipschitz-0.5": ("γ = 0.5", BLUE, "o"),
    "lipschitz-0.8": ("γ = 0.8", BLUE, "o"),
    "lipschitz-1": ("γ = 1", BLUE, "o"),
    "lipschitz-5": ("γ = 5", SKY, "o"),
    "contracting": ("γ = {lipschitz:g}, c = {contraction_rate:g}", GREEN, "D"),
    "lben-full": ("LBEN, full metric", SKY, "s"),
    "lben": ("LBEN, no γ", ORANGE, "s"),
    "mondeq": ("monDEQ", VERMILION, "^"),
    "perceptron": ("perceptron", PURPLE, "v"),
    "unconstrained": ("unconstrained", "#000000", "x"),
}
_GROUPS = {"lipschitz": ("with γ", BLUE, "o"), "margin": ("margin, no γ", SKY, "v")}
_COMPARED = ("lipschitz-0.3", "lipschitz-1", "lipschitz-5", "lben", "mondeq", "perceptron", "unconstrained")
_SIZE = "size of the attack, ℓ2 in normalised pixels"


def plot_error_against_bound(
    models: Mapping[str, Any], axes: Axes, *, paper: Mapping[float, float] | None = None
) -> Axes:
    """Test error against the certified Lipschitz constant γ that was asked for.

    Args:
        models: results by name.
        axes: where to draw.
        paper: reported test errors by γ; None leaves them out.

    Raises:
        InputError: without any model that has a γ.
    """
    ours = sorted(
        (m["lipschitz"]["built_in"], m["test_error"])
        for name, m in models.items()
        if name.startswith("lipschitz-") and name in _LOOKS
    )
    if not ours:
        raise InputError("there is no model with a γ to draw; run the experiment with one")
    _errors(axes, ours, paper)
    gammas = [gamma for gamma, _ in ours]
    axes.set_ylim(bottom=0)
    finish(axes, x="certified Lipschitz constant γ", y="test error (%)", title="What a smaller γ costs")
    axes.set_xticks(gammas, [f"{gamma:g}" for gamma in gammas], rotation=60 if len(gammas) > 4 else 0)
    return axes


def plot_error_against_width(
    models: Mapping[str, Any], axes: Axes, *, paper: Mapping[int, float] | None = None
) -> Axes:
    """Test error against the number n of neurons, all with the same certified constant γ = 1.

    Args:
        models: results by name; other constants are left out.
        axes: where to draw.
        paper: reported test errors by n; None leaves them out.

    Raises:
        InputError: without any model with γ = 1.
    """
    ours = sorted((m["settings"]["hidden"], m["test_error"]) for m in models.values() if has_unit_bound(m))
    if not ours:
        raise InputError("there is no model with γ = 1 to draw; run the experiment with one")
    _errors(axes, ours, paper)
    widths = sorted({n for n, _ in ours} | set(paper or {}))
    axes.set_ylim(bottom=0)
    finish(axes, x="number of neurons n", y="test error (%)", title="What neurons buy at γ = 1")
    axes.set_xticks(widths, [str(n) for n in widths])
    axes.minorticks_off()
    return axes


def _errors(axes: Axes, ours: Sequence[tuple[float, float]], paper: Mapping[Any, float] | None) -> None:
    """Our test errors, and the reported ones where there are any, against a quantity on a logarithmic axis."""
    if paper is not None:
        axes.semilogx(*zip(*sorted(paper.items()), strict=True), "s-", color=SEEN, markerfacecolor="white",
                      markersize=4.5, linewidth=1.0, label="reported")  # fmt: skip
    axes.semilogx(*zip(*ours, strict=True), "o-", color=BLUE, markersize=4.5, linewidth=1.5, label="trained here")


def has_unit_bound(model: Mapping[str, Any]) -> bool:
    """Whether a result is that of a network with γ = 1 and no other wish."""
    return bool(model["lipschitz"]["built_in"] == 1 and model["settings"]["contraction_rate"] is None)


def plot_tightness(
    models: Mapping[str, Any], axes: Axes, *, reported: Mapping[str, tuple[float | None, float]] | None = None
) -> Axes:
    """Attained against certified Lipschitz constant; on the diagonal both are exact.

    Args:
        models: results by name.
        axes: where to draw.
        reported: γ and the lower bound that the authors report, for their models that have a γ.

    Raises:
        InputError: without a certified model.
    """
    points = {name: m["lipschitz"] for name, m in models.items() if "certified" in m["lipschitz"]}
    if not points:
        raise InputError("there is no certified model to draw; run the experiment with one")
    seen = set()
    for name, lipschitz in points.items():
        group = name.partition("-")[0]
        label, colour, marker = _GROUPS[group] if group in _GROUPS else _LOOKS[name]
        label = label.format(**models[name]["settings"])
        axes.loglog(lipschitz["certified"], lipschitz["attained"], marker, color=colour, markersize=6,
                    linestyle="none", label=None if label in seen else label)  # fmt: skip
        seen.add(label)
    pairs = [(gamma, lower) for gamma, lower in (reported or {}).values() if gamma is not None]
    if pairs:
        axes.loglog(*zip(*pairs, strict=True), "s", color=SEEN, markerfacecolor="white", markersize=5,
                    linestyle="none", label="reported, with γ")  # fmt: skip
    values = [v for entry in points.values() for v in (entry["certified"], entry["attained"])]
    ends = [min(values) / 1.5, max(values) * 1.5]
    axes.loglog(ends, ends, **CERTIFIED, label="attained = certified")
    axes.set_aspect("equal")
    ratios = [entry["attained"] / entry["certified"] for entry in points.values()]
    shares = dict.fromkeys(f"{100 * share:.0f}" for share in (min(ratios), max(ratios)))
    finish(
        axes,
        x="certified Lipschitz constant",
        y="attained by a pair of inputs",
        title=f"Attained constants are {' to '.join(shares)} % of the certified ones",
    )
    return axes


def plot_error_under_attack(models: Mapping[str, Any], axes: Axes) -> Axes:
    """Test error against the size of the fast-gradient attack; dashed, the error that no attack can exceed.

    Raises:
        InputError: without any of the models that are compared.
    """
    chosen = [name for name in _COMPARED if name in models]
    if not chosen:
        raise InputError(f"there is none of the models {', '.join(_COMPARED)} to draw")
    for name in chosen:
        label, colour, _ = _LOOKS[name]
        sizes = models[name]["settings"]["allowed"]
        axes.plot(sizes, models[name]["fast_gradient"]["error_percent"], color=colour, linewidth=1.5, label=label)
        if name.startswith("lipschitz-"):
            limit = [100 - share for share in models[name]["robustness"]["certified_accuracy"]]
            axes.plot(sizes, limit, **CERTIFIED | {"color": colour, "linewidth": 0.9})
    axes.plot([], [], **CERTIFIED | {"color": SEEN, "linewidth": 0.9}, label="certified limit")
    axes.set_xlim(0, None)
    axes.set_ylim(0, 100)
    finish(axes, x=_SIZE, y="test error (%)", title="Error under the fast-gradient attack, and what is certified")
    return axes
