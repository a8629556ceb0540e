"""The types that flows, maps, activations and certificates share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError

Step = float | Tensor  # α > 0: a number, or a tensor broadcastable to x, such as (n,): one per neuron
Time = Tensor | float  # a number, a tensor of shape (), or (batch, 1): one time per row


class Slopes(NamedTuple):
    """An interval [low, high] that holds every slope of an activation; a plain pair is as good where one is asked for.

    Attributes:
        low: the smallest slope.
        high: the largest slope.
    """

    low: float
    high: float

    @classmethod
    def checked(cls, value: Any) -> Slopes:
        """The interval that a pair of numbers in [−1, 1] means.

        Raises:
            InputError: if it is no such pair, or the first is larger than the second.
        """
        if not isinstance(value, Sequence) or len(value) != 2:
            raise InputError(f"slopes must be an interval (lowest, highest), got {value!r}")
        low, high = (checks.number("slopes", slope, low=-1.0, high=1.0) for slope in value)
        if low > high:
            raise InputError(f"slopes must be an interval (lowest, highest), got {value}")
        return cls(low, high)

    @property
    def width(self) -> float:
        """high − low."""
        return self.high - self.low

    @property
    def largest(self) -> float:
        """The largest absolute value of a slope."""
        return max(abs(self.low), abs(self.high))

    def contains(self, other: Slopes) -> bool:
        """Whether the other interval lies in this one."""
        return self.low <= other.low <= other.high <= self.high

    def vertex(self, high: Tensor) -> Tensor:
        """Exactly the high end where ``high`` is true and exactly the low end elsewhere, in float64."""
        ends = torch.tensor(self, dtype=torch.float64)
        return torch.where(high, ends[1], ends[0])


UNIT_SLOPES = Slopes(0.0, 1.0)  # of every monotone nonexpansive activation
