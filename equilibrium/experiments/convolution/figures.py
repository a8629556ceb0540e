"""Pictures of equilibrium networks on images: filters, equilibria, the state relaxing, residuals of solvers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.animation
import matplotlib.figure
import torch
from torch import Tensor

from contracting.errors import InputError
from contracting.loop.method import Method
from contracting.loop.records import Stop, Trace
from contracting.loop.run import solve
from contracting.plots.style import BLUE, FULL_WIDTH, GREEN, ORANGE, PURPLE, SKY, VERMILION, finish
from equilibrium.convolution.layer import ConvolutionalLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, "#000000")
_STYLES = ("-", "--", "-.", ":")


def plot_filters(layer: ConvolutionalLayer) -> Figure:
    """The input kernel of every channel, first channel of the image, all on one scale that is symmetric about zero."""
    kernels = layer.parameterization.U.detach()[:, 0].numpy()
    figure, panels = _panels(len(kernels), "Input filters, one per channel of the state")
    top = float(abs(kernels).max())
    for channel, (axes, kernel) in enumerate(zip(panels, kernels, strict=True)):
        picture = axes.imshow(kernel, cmap="RdBu_r", vmin=-top, vmax=top)
        axes.set_title(f"{channel}", fontsize=7)
    figure.colorbar(picture, ax=panels, shrink=0.8, label="weight")
    return figure


@torch.no_grad()
def plot_equilibrium(layer: ConvolutionalLayer, image: Tensor) -> Figure:
    """An image, (channels, height, width), and its equilibrium, every channel on one scale, zero border included."""
    states = layer.as_image(layer.solve(image).z).numpy()
    figure, panels = _panels(len(states) + 1, "An image and its equilibrium")
    panels[0].imshow(image[0].numpy(), cmap="gray")
    panels[0].set_title("image", fontsize=7)
    top = float(abs(states).max())
    for channel, (axes, state) in enumerate(zip(panels[1:], states, strict=True)):
        picture = axes.imshow(state, cmap="viridis", vmin=0, vmax=top)
        axes.set_title(f"{channel}", fontsize=7)
    figure.colorbar(picture, ax=panels, shrink=0.8, label="state z")
    return figure


@torch.no_grad()
def plot_convergence(
    layer: ConvolutionalLayer, x: Tensor, methods: Mapping[str, Method], axes: Axes, *, stop: Stop
) -> Axes:
    """Relative residual of the worst image against the applications of W, one curve per method.

    Args:
        layer: the network; all methods solve its equilibrium.
        x: images.
        methods: by the name in the legend.
        axes: where to draw.
        stop: when a curve ends.
    """
    problem = layer.problem(x)
    for index, (name, method) in enumerate(methods.items()):
        trace = Trace()
        solution = solve(problem, method, stop=stop, trace=trace, throw=False)
        final = max(1, int(solution.steps.max()))
        scale = layer.activation(problem.preactivation(solution.z)).norm(dim=-1)
        worst = (trace.residual.nan_to_num(0.0) / scale).amax(-1)
        work = [step * solution.map_evals / final for step in trace.steps.tolist()]
        colour = _COLOURS[index % len(_COLOURS)]
        axes.loglog(
            work[1:], worst[1:], _STYLES[index % len(_STYLES)], color=colour, label=name, linewidth=1.5
        )
    axes.axhline(stop.rtol or 0.0, color="0.6", linewidth=0.8)
    finish(
        axes,
        x="applications of W or of its resolvent",
        y="relative residual, worst image",
        title="Splittings and integrators reach the same equilibrium",
    )
    return axes


@torch.no_grad()
def animate_relaxation(
    layer: ConvolutionalLayer,
    image: Tensor,
    method: Method,
    path: str | os.PathLike[str],
    *,
    channels: int = 6,
    stop: Stop | None = None,
) -> None:
    """A GIF of the state relaxing from zero to its equilibrium under an integrator, its strongest channels.

    Args:
        layer: the network.
        image: (channels, height, width).
        method: an integrator with a fixed step.
        path: file to write, ``*.gif``; replaced only when complete.
        channels: how many to show.
        stop: when the last frame is reached.

    Raises:
        InputError: if the path does not end in .gif.
    """
    path = Path(path)
    if path.suffix != ".gif":
        raise InputError(f"path must end in .gif, got {path}")
    trace = Trace(keep_z=True)
    solution = layer.solve(image[None], method, stop=stop, trace=trace)
    final = layer.as_image(solution.z)[0]
    strongest = final.flatten(1).norm(dim=1).topk(min(channels, len(final))).indices
    figure, panels = _panels(len(strongest), "")
    states = [layer.as_image(z)[0].numpy() for z in trace.z]
    top = float(final.abs().max())
    pictures = []
    for axes, channel in zip(panels, strongest.tolist(), strict=True):
        pictures.append(axes.imshow(states[0][channel], cmap="viridis", vmin=0, vmax=top))
        axes.set_title(f"channel {channel}", fontsize=7)
    size, reached = max(float(final.norm()), 1e-30), final.numpy()

    def draw(frame: int) -> list[Any]:
        for picture, channel in zip(pictures, strongest.tolist(), strict=True):
            picture.set_data(states[frame][channel])
        away = float((((states[frame] - reached) ** 2).sum()) ** 0.5) / size
        figure.suptitle(f"step {int(trace.steps[frame])}: relative distance to the equilibrium {away:.1e}", fontsize=9)
        return pictures

    film = matplotlib.animation.FuncAnimation(figure, draw, frames=len(states), blit=False)
    temporary = path.with_name(path.name + ".part.gif")
    try:
        film.save(temporary, writer=matplotlib.animation.PillowWriter(fps=6), dpi=110)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _panels(count: int, title: str) -> tuple[Figure, list[Axes]]:
    few = min(6, count)
    columns = min(range(few, min(9, count) + 1), key=lambda k: (-count % k, -k))  # the fewest empty places
    rows = math.ceil(count / columns)
    figure = matplotlib.figure.Figure(figsize=(FULL_WIDTH, 0.5 + rows * FULL_WIDTH / columns), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    panels: list[Axes] = list(grid.flatten())
    for axes in panels:
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in panels[count:]:
        axes.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure, panels[:count]
