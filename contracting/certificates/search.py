"""The one search along a line: golden section."""

from __future__ import annotations

from collections.abc import Callable

_SHARE = (5**0.5 - 1) / 2  # Of the interval, kept in each step: then one of its two points serves the next step.


def golden_section(cost: Callable[[float], float], low: float, high: float, *, steps: int = 40) -> float:
    """The best point seen by golden section: for a cost with one valley, within 0.618^steps of the interval from it.

    Args:
        cost: what is minimised; it may be infinite outside a part of the interval.
        low: left end.
        high: right end.
        steps: evaluations beside the first two.
    """
    left, right = high - _SHARE * (high - low), low + _SHARE * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(steps):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _SHARE * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _SHARE * (high - low)
            at_right = cost(right)
    return left if at_left <= at_right else right
