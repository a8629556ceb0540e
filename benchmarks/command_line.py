"""What the command lines of the benchmarks have in common: options, results on disk, and one sentence otherwise."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from contracting.errors import ContractingError
from equilibrium.experiments.timing import Spread
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


def parser(about: str | None, out: str) -> argparse.ArgumentParser:
    """The options of every benchmark that writes results."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=path, default=Path("out") / out, help=f"folder for results (default out/{out})")
    made.add_argument("--small", action="store_true", help="a few seconds' version")
    return made


def on_networks(about: str | None, out: str, *, rows: int) -> argparse.ArgumentParser:
    """The options of a benchmark that solves for images with trained networks, and ``rows`` of them by default."""
    made = with_networks(parser(about, out))
    made.add_argument("--rows", type=whole, help=f"images (default {rows})")
    made.add_argument("--target", type=residual, help="relative residual (default 1e-6)")
    return made


def with_networks(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options that say where trained networks and their images are."""
    parser.add_argument("--checkpoints", type=path, help="folder with checkpoints of the reference code")
    parser.add_argument("--data-dir", type=path, help="folder with the MNIST files, for the checkpoints")
    return parser


def timed(parser: argparse.ArgumentParser, *, rounds: int, clock: str = "wall") -> argparse.ArgumentParser:
    """The options of a benchmark that takes times side by side, and so prints ratios."""
    parser.add_argument("--threads", type=whole, default=1, help="default 1")
    parser.add_argument("--rounds", type=whole, help=f"default {rounds}, in each of which everybody is timed")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default=clock, help=f"cpu where the machine is not quiet (default {clock})"
    )
    return parser


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """The options as results.json has them."""
    return {key: value if isinstance(value, bool | None) else str(value) for key, value in vars(given).items()}


def finish(folder: Path, text: str, *, ratios: Mapping[str, Spread] | None = None, **results: Any) -> None:
    """Write results.json, with the environment, and table.md; and print the table.

    Args:
        folder: for both.
        text: the table.
        ratios: times of ours over those of something else, less being better, by a name that a later run repeats: what
            ``ratios.py`` lists and compares.
        results: all other numbers.
    """
    write_results(folder, ratios=ratios, **results)
    write_text(folder / "table.md", text)
    print(text)


def write_results(folder: Path, *, ratios: Mapping[str, Spread] | None = None, **results: Any) -> None:
    """results.json alone, as of ``finish``: after each case of a long run, so that a broken one has shown something."""
    write_json(folder / "results.json", {"environment": environment(), "ratios": ratios or {}, **results})


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
