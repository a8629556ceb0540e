"""What the command lines of the benchmarks have in common: numbers that can be measured, and one sentence otherwise."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from contracting.errors import ContractingError


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
