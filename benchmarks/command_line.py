"""What the command lines of the benchmarks have in common: numbers that can be measured, and one sentence otherwise."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contracting.errors import ContractingError
from equilibrium.files import environment, write_json, write_text


def whole(text: str) -> int:
    """A number of rows, rounds or threads."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least one")
    return int(text)


def positive(text: str) -> float:
    """A number of seconds."""
    return _number(text, math.inf, "positive number")


def residual(text: str) -> float:
    """A relative residual to reach."""
    return _number(text, 1.0, "number between 0 and 1")


def path(text: str) -> Path:
    """A file or a folder; the empty text would silently be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("it is the empty text")
    return Path(text)


def on_networks(about: str | None, out: str, *, rows: int) -> argparse.ArgumentParser:
    """The options of a benchmark that solves for images with trained networks, and ``rows`` of them by default."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=path, help="folder with checkpoints of the reference code")
    parser.add_argument("--data-dir", type=path, help="folder with the MNIST files, for the checkpoints")
    parser.add_argument("--rows", type=whole, help=f"images (default {rows})")
    parser.add_argument("--target", type=residual, help="relative residual (default 1e-6)")
    parser.add_argument("--out", type=path, default=Path("out") / out)
    parser.add_argument("--small", action="store_true", help="a few seconds' version")
    return parser


def finish(folder: Path, text: str, **results: Any) -> None:
    """Write results.json, with the environment, and table.md; and print the table."""
    write_json(folder / "results.json", {"environment": environment(), **results})
    write_text(folder / "table.md", text)
    print(text)


def _number(text: str, below: float, wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < below:
        raise argparse.ArgumentTypeError(f"{text} is no {wanted}")
    return value


def run(main: Callable[[], None]) -> None:
    """``main``; whatever goes wrong on purpose is one sentence on standard error and exit code 2."""
    try:
        main()
    except ContractingError as error:
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
