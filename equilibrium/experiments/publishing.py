"""What every study does with what it found: a folder that appears complete or not at all, a table, numbers, figures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from contracting import checks
from contracting.plots import FULL_WIDTH, HALF_WIDTH
from contracting.plots.style import NARROW, axes_for_a_file, figure_of
from equilibrium.files import (
    environment,
    output_directory,
    write_animation,
    write_figure,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from matplotlib.animation import Animation
    from matplotlib.figure import Figure

HALF = "-half-width"
"""Ends the file names of figures for half the width of a page."""
SQUARE = (0.7, 1.3)
"""The heights of figures whose axes are about square, in widths: at the full width of a page and at half of it."""

_DPI = 200  # dots per inch of every figure: a letter of 8 points is then 22 dots high
_HEIGHTS = (0.6, 1.0)

Draw = Callable[[float], "Figure"]
"""Draws a figure of a width in inches."""


@contextlib.contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Work with this number of threads, and restore the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(checks.whole_number("--threads", threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def working_in(out: Path, *, threads: int = 1) -> Iterator[Path]:
    """The output folder, checked before any work; folders made for it disappear again if nothing is written."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        with on_threads(threads):
            yield output_directory(out)
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def on_axes(
    plot: Callable[..., Any], *arguments: Any, heights: tuple[float, float] = _HEIGHTS, **options: Any
) -> Draw:
    """The figure of one pair of axes, on which ``plot(*arguments, axes=axes, **options)`` draws.

    Args:
        plot: returns the axes.
        arguments: of ``plot``.
        heights: of the figure, in widths: at the full width of a page and at half of it.
        options: of ``plot``.
    """

    def draw(width: float) -> Figure:
        axes = axes_for_a_file(width, heights[width < NARROW] * width)
        return figure_of(plot(*arguments, axes=axes, **options))

    return draw


def publish(
    folder: Path,
    text: str,
    results: Mapping[str, Any],
    *,
    draws: Mapping[str, Draw | None] | None = None,
    wide: Mapping[str, Draw] | None = None,
    films: Mapping[str, Callable[[], Animation]] | None = None,
    small: bool = False,
    table: str = "table.txt",
    timings: Mapping[str, Any] | None = None,
) -> None:
    """Print what a study found, write it down with the numbers and the figures, and say what was written where.

    Args:
        folder: for all of it.
        text: for the reader, most of it a table.
        results: for ``results.json``, beside what they were computed on.
        draws: figures by name, for the full width of a page and for half of it; None where there is nothing to draw,
            so that the figure of an earlier run goes.
        wide: figures by name that are legible at the full width only.
        films: by file name.
        small: leave out the figures of half width; those of an earlier run go, for they show other numbers.
        table: name of the file for ``text``.
        timings: what differs from run to run, for ``timings.json``.
    """
    print(text, flush=True)
    written = [
        write_json(folder / "results.json", {"environment": environment(), **results}),
        write_text(folder / table, text + "\n"),
    ]
    if timings is not None:
        written.append(write_json(folder / "timings.json", timings))
    figures = write_figures(folder, draws or {}, small=small)
    figures += [
        write_figure(folder / "figures" / f"{name}.png", draw(FULL_WIDTH), dpi=_DPI)
        for name, draw in (wide or {}).items()
    ]
    figures += [write_animation(folder / "figures" / name, film()) for name, film in (films or {}).items()]
    print()
    for path in written:
        print(f"wrote {path}")
    if figures:
        print(f"wrote {len(figures)} figures into {folder / 'figures'}")


def write_figures(folder: Path, draws: Mapping[str, Draw | None], *, small: bool) -> list[Path]:
    """Draw into ``folder/figures``; arguments as in ``publish``."""
    below = output_directory(folder / "figures")
    written = []
    for name, draw in draws.items():
        for width, suffix in ((FULL_WIDTH, ""), (HALF_WIDTH, HALF)):
            path = below / f"{name}{suffix}.png"
            if draw is None or (small and suffix):
                path.unlink(missing_ok=True)
            else:
                written.append(write_figure(path, draw(width), dpi=_DPI))
    return written
