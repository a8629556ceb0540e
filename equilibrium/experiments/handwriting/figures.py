"""Figures of learnt motions: what they reproduce, where they end, and how a push dies out inside its certified tube."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.figure
import numpy as np
from matplotlib.lines import Line2D

from contracting.plots.style import BLUE, CERTIFIED, FULL_WIDTH, NARROW, SEEN, SLACK, VERMILION, finish
from equilibrium.experiments.handwriting.models import Kind
from equilibrium.experiments.handwriting.study import PUSHED, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 6  # of the figure of all motions
_RINGS = 12  # The tube is drawn as so many ellipses.
_DEMONSTRATED = "0.7"
_TITLES = {"pushed": "after a push", "starts": "from random starts"}
_PAIR = (Kind.CONTRACTING, Kind.UNCONSTRAINED)
_COLOURS = {Kind.CONTRACTING: BLUE, Kind.UNCONSTRAINED: VERMILION}


def draw_motions(results: Results, width: float = FULL_WIDTH) -> Figure:
    """All motions: the demonstrations, and how the models write from the starts of the held-out ones."""
    names = list(results[Kind.CONTRACTING])
    rows = math.ceil(len(names) / _COLUMNS)
    columns = min(_COLUMNS, len(names))
    figure = matplotlib.figure.Figure(figsize=(width, (rows * 1.1 / columns + 0.1) * width), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat[len(names) :]:
        axes.remove()
    for axes, name in zip(figure.axes, names, strict=True):
        paths = {kind: _paths(results, kind, name) for kind in _PAIR}
        for path in _points(paths[Kind.CONTRACTING]["demonstrated"]):
            axes.plot(*path.T, color=_DEMONSTRATED, linewidth=0.7)
        for kind, line in ((Kind.UNCONSTRAINED, (0, (3, 1.5))), (Kind.CONTRACTING, "-")):
            for path in _points(paths[kind]["reproduced"]):
                axes.plot(*path.T, color=_COLOURS[kind], linewidth=1.0, linestyle=line)
        axes.plot(0, 0, "k*", markersize=5)
        _bare(axes, name)
    handles = [
        Line2D([], [], color=_DEMONSTRATED, label="demonstrated"),
        Line2D([], [], color=BLUE, label=Kind.CONTRACTING.value),
        Line2D([], [], color=VERMILION, linestyle="--", label=Kind.UNCONSTRAINED.value),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def draw_paths(results: Results, name: str, what: str, width: float = FULL_WIDTH) -> Figure:
    """One motion by the contracting and by the unconstrained model: after pushes, or from random starts.

    Args:
        results: of the study.
        name: of the motion.
        what: "pushed" or "starts".
        width: of the figure, in inches.
    """
    narrow = width < NARROW
    figure = matplotlib.figure.Figure(figsize=(width, (1.9 if narrow else 0.58) * width), layout="constrained")
    panels = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
    for axes, kind in zip(panels, _PAIR, strict=True):
        title, found, paths = kind.value, results[kind][name], _paths(results, kind, name)
        for k, path in enumerate(_points(paths["demonstrated"])):
            axes.plot(*path.T, color=_DEMONSTRATED, linewidth=0.8, label="_" * k + "demonstrated")
        for k, path in enumerate(_points(paths[what])):
            axes.plot(*path.T, color=_COLOURS[kind], linewidth=0.9, label="_" * k + _named(what))
            axes.plot(*path[0], ".", color=_COLOURS[kind], markersize=4)
        if what == "pushed":
            axes.plot(*_points(paths["unpushed"]).T, color="black", linewidth=1.2, label="not pushed")
            if "tube" in found:
                title += ", inside the certified tube"
                _draw_tube(axes, found)
        axes.plot(0, 0, "k*", markersize=8, label="goal")
        reach = 1.6
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        if what == "starts":
            title += f": {found['arrived']} of {found['settings']['starts']} end at the goal"
        finish(axes, x="x (sizes of the motion)", y="y (sizes of the motion)", title=title, legend=False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7 if narrow else 8.5, frameon=False)
    figure.suptitle(f"{name}, {_TITLES[what]}", fontsize=9 if narrow else 11)
    return figure


def plot_pushes(results: Results, axes: Axes) -> Axes:
    """How far a pushed motion is from the one that was not, for every motion, beside what is certified."""
    rate = math.nan
    for kind in reversed(_PAIR):
        for k, found in enumerate(results[kind].values()):
            paths = found["paths"]
            certified = "tube" in found
            share = _points(found["tube"]["share"] if certified else paths["apart"])
            label = f"{kind.value}, {'in P' if certified else 'of positions'}"
            axes.plot(
                _points(paths["elapsed"]), share, color=SEEN if certified else _COLOURS[kind], linewidth=0.6,
                label="_" * k + label,
            )  # fmt: skip
            elapsed = _points(paths["elapsed"])
            rate = found["rate"]["certified"] if certified else rate
    axes.plot(elapsed, np.exp(-rate * elapsed) * (1 + SLACK), **CERTIFIED, label=f"certified, c = {rate:g}")
    axes.axvline(1 - PUSHED, color="black", linewidth=0.8, linestyle=":", label="end of the motion")
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1e2)
    finish(
        axes, x="time since the push (durations of the motion)", y="distance (shares of the push)",
        title="What is left of a push, the worst direction of each motion",
    )  # fmt: skip
    return axes


def _draw_tube(axes: Axes, found: Mapping[str, Any]) -> None:
    """Ellipses around the path that was not pushed: no push of this length is outside of them."""
    paths, tube, rate = found["paths"], found["tube"], found["rate"]["certified"]
    middle, elapsed = _points(paths["unpushed"]), _points(paths["elapsed"])
    values, vectors = np.linalg.eigh(np.asarray(tube["shape"]))
    angles = np.linspace(0, 2 * np.pi, 121)
    ring = (vectors / np.sqrt(values)) @ np.stack([np.cos(angles), np.sin(angles)])
    way = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(middle, axis=0), axis=1))])
    moments = np.unique([int(np.abs(way - at).argmin()) for at in np.linspace(0, way[-1], _RINGS)])
    for k, at in enumerate(moments):
        x, y = middle[at][:, None] + tube["radius"] * np.exp(-rate * elapsed[at]) * ring
        axes.fill(x, y, color=BLUE, alpha=0.05, linewidth=0)
        axes.plot(x, y, **{**CERTIFIED, "linewidth": 0.8}, label="_" * k + f"certified tube, c = {rate:g}")


def _named(what: str) -> str:
    return f"pushed at {PUSHED:g} of the duration" if what == "pushed" else "from a random start"


def _paths(results: Results, kind: Kind, name: str) -> Mapping[str, Any]:
    paths: Mapping[str, Any] = results[kind][name]["paths"]
    return paths


def _points(values: Sequence[Any]) -> np.ndarray:
    """An array of what JSON made of a tensor; null was no number."""
    return np.array(values, dtype=float)


def _bare(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=7, pad=2)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
