"""What the commands share: threads, output folders that appear complete or not at all, data sets, reports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from equilibrium.artifacts import output_directory
from equilibrium.data import Dataset
from equilibrium.layers import LBEN

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


def new_layer(dataset: Dataset, hidden: int, seed: int, **options: Any) -> LBEN:
    """An LBEN that fits the data set, its weights drawn from ``seed`` without disturbing other random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LBEN(dataset.features, hidden, dataset.classes, **options)
