"""What the commands share: threads, output folders that appear complete or not at all, tables, figures, reports."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from equilibrium.files import output_directory, write_figure
from equilibrium.layers import LBEN
from equilibrium.training.data import Dataset

DPI = 200
NARROW = "-half-width"
"""Ends the file names of figures for half the width of a page."""
THREADS_HELP = "Threads; for matrices this small more than one rarely helps."
SMALL_HELP = "A few seconds' version of everything."


@contextlib.contextmanager
def running_with(threads: int) -> Iterator[None]:
    """Work with this number of threads, and restore the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def clean_output(out: Path) -> Iterator[Path]:
    """The output folder, checked before any work; folders made for it disappear again if nothing is written."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        yield output_directory(out)
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def report(files: Sequence[Path], figures: Sequence[Path]) -> None:
    """Say what was written where."""
    print()
    for path in files:
        print(f"wrote {path}")
    if figures:
        print(f"wrote {len(figures)} figures into {figures[0].parent}")


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """A table as lines of text, the first ``left`` columns aligned to the left, the others to the right."""
    lines = [tuple(columns), *(tuple(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    made = [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return [made[0], "-" * len(made[0]), *made[1:]]


def number(value: float | None, form: str = ".4f") -> str:
    """A number in a table; a dash where there is none."""
    return "–" if value is None else f"{value:{form}}"


def draw_figures(
    folder: Path, draws: Mapping[str, Callable[[Any], Any]], *, small: bool, tall: Sequence[str] = ()
) -> list[Path]:
    """Draw each figure for the full width of a page and for half of it, into ``folder/figures``.

    Args:
        folder: of the results.
        draws: functions from axes to axes that draw on them, by name of the figure.
        small: leave out the figures of half width; those of an earlier run go, for they show other numbers.
        tall: names of figures whose axes are about square.
    """
    from contracting.plots import FULL_WIDTH, HALF_WIDTH, new_axes
    from contracting.plots.style import figure_of

    below = output_directory(folder / "figures")
    written = []
    for name, draw in draws.items():
        heights = (0.7, 1.3) if name in tall else (0.6, 1.0)
        for width, height, suffix in zip((FULL_WIDTH, HALF_WIDTH), heights, ("", NARROW), strict=True):
            path = below / f"{name}{suffix}.png"
            if small and suffix:
                path.unlink(missing_ok=True)
            else:
                figure = figure_of(draw(new_axes(width, height * width)))
                written.append(write_figure(path, figure, dpi=DPI))
    return written


def new_layer(dataset: Dataset, hidden: int, seed: int, **options: Any) -> LBEN:
    """An LBEN that fits the data set, its weights drawn from ``seed`` without disturbing other random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LBEN(dataset.features, hidden, dataset.classes, **options)
