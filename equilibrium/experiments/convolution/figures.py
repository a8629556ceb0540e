"""Pictures of equilibrium networks on images: filters, equilibria, the state relaxing, residuals of solvers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.animation
import matplotlib.figure
import torch
from torch import Tensor

from contracting import Method, Stop, Trace, solve
from contracting.plots.style import BLUE, FULL_WIDTH, GREEN, NARROW, ORANGE, PURPLE, SKY, VERMILION, finish
from equilibrium.convolution.layer import ConvolutionalLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, "#000000")
_STYLES = ("-", "--", "-.", ":")


@torch.no_grad()
def plot_equilibrium(layer: ConvolutionalLayer, image: Tensor, width: float = FULL_WIDTH) -> Figure:
    """An image, (channels, height, width), and its equilibrium, every channel on one scale, zero border included."""
    states = layer.as_image(layer.solve(image).z)
    figure, panels = _panels(len(states) + 1, "An image and its equilibrium", width)
    panels[0].imshow(image[0].numpy(), cmap="gray")
    panels[0].set_title("image", fontsize=7)
    _show(panels[1:], states, vmin=0, vmax=float(states.abs().max()))
    figure.colorbar(panels[1].images[0], ax=panels, shrink=0.8, label="state z")
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
    layer: ConvolutionalLayer, image: Tensor, method: Method, *, channels: int = 6, stop: Stop | None = None
) -> matplotlib.animation.FuncAnimation:
    """The state relaxing from zero to its equilibrium under an integrator, its strongest channels.

    Args:
        layer: the network.
        image: (channels, height, width).
        method: an integrator with a fixed step.
        channels: how many to show.
        stop: when the last frame is reached.
    """
    trace = Trace(keep_z=True)
    solution = layer.solve(image[None], method, stop=stop, trace=trace)
    final = layer.as_image(solution.z)[0]
    strongest = final.flatten(1).norm(dim=1).topk(min(channels, len(final))).indices
    states = [layer.as_image(z)[0] for z in trace.z]
    figure, panels = _panels(len(strongest), "", FULL_WIDTH)
    _show(panels, states[0][strongest], vmin=0, vmax=float(final.abs().max()))
    for axes, channel in zip(panels, strongest.tolist(), strict=True):
        axes.set_title(f"channel {channel}", fontsize=7)

    def draw(frame: int) -> list[Any]:
        for axes, state in zip(panels, states[frame][strongest], strict=True):
            axes.images[0].set_data(state.numpy())
        away = float((states[frame] - final).norm() / final.norm().clamp_min(1e-30))
        figure.suptitle(f"step {int(trace.steps[frame])}: relative distance to the equilibrium {away:.1e}", fontsize=9)
        return [axes.images[0] for axes in panels]

    return matplotlib.animation.FuncAnimation(figure, draw, frames=len(states), blit=False)


def _show(panels: list[Axes], pictures: Tensor, **options: Any) -> None:
    """One picture in each panel, numbered."""
    for number, (axes, picture) in enumerate(zip(panels, pictures, strict=True)):
        axes.imshow(picture.numpy(), **options)
        axes.set_title(f"{number}", fontsize=7)


def _panels(count: int, title: str, width: float) -> tuple[Figure, list[Axes]]:
    narrow = width < NARROW  # where a picture of a channel needs a fifth of the width to be seen
    least, most = (min(bound, count) for bound in ((4, 5) if narrow else (6, 9)))
    columns = min(range(least, most + 1), key=lambda k: (-count % k, -k))  # the fewest empty places
    rows = math.ceil(count / columns)
    figure = matplotlib.figure.Figure(figsize=(width, 0.5 + rows * width / columns), layout="constrained")
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[:count]:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(title, fontsize=10)
    return figure, panels[:count]
