"""Options: those that commands share, and those that hold several values, separated by commas, all different."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from contracting import checks
from contracting.errors import InputError

Threads = Annotated[int, "Threads; for matrices this small more than one rarely helps."]
Seed = Annotated[int, "Of the weights and of the order of the images."]
Out = Annotated[Path, "Folder for the figures, results.json and the table."]
Small = Annotated[bool, "A few seconds' version of everything."]
LastingOut = Annotated[Path, "Folder for everything; continues what was begun there."]
SmallDigits = Annotated[bool, "Small networks and attacks, on small digits."]
Jobs = Annotated[int, "Models at work at once, each in a process with one thread."]

_NONE = "none"
_Value = TypeVar("_Value")


def words(option: str, text: str, *, example: str) -> tuple[str, ...]:
    """The words of an option.

    Raises:
        InputError: if there are none, ``example`` saying what there could be, or one comes twice.
    """
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise InputError(f"{option} must have at least one value, such as {example}")
    return _different(option, found)


def numbers(option: str, text: str, *, example: str, high: float, high_open: bool = False) -> tuple[float, ...]:
    """The positive numbers of an option, none above ``high``.

    Raises:
        InputError: if there are none, or one comes twice, is out of range or no number.
    """
    found = words(option, text, example=example)
    return _different(option, tuple(_number(option, part, high, high_open) for part in found))


def numbers_or_none(
    option: str, text: str, *, example: str, high: float, high_open: bool = False, zero: bool = False
) -> tuple[float | None, ...]:
    """The same, where a value may also be the word none, and with ``zero`` be zero."""
    found = words(option, text, example=example)
    known = f" or {_NONE}"
    values = (None if part == _NONE else _number(option, part, high, high_open, zero, known) for part in found)
    return _different(option, tuple(values))


def _different(option: str, values: tuple[_Value, ...]) -> tuple[_Value, ...]:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise InputError(f"{option} has {value} twice; give each value once")
    return values


def _number(
    option: str, text: str, high: float, high_open: bool, zero: bool = False, alternative: str = ""
) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{option} must be numbers{alternative}, separated by commas, got {text!r}") from None
    return checks.number(option, value, low=0, low_open=not zero, high=high, high_open=high_open)
