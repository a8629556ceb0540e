r"""Inputs u(t) that are known at given times: held until the next one, or on a straight line to it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError
from contracting.simulation.times import time_grid


class SampledInput(ABC):
    """u(t) from values at given times, one grid for all rows or one for each; before and after, the nearest value.

    Args:
        values: (T, k), (T, 1, k) or (T, batch, k); gradients flow to them.
        times: (T,) or (T, batch), rising or falling; None for the times that the trajectory is asked for. Gradients
            flow to them too, as far as u depends on them without a jump.

    Raises:
        InputError: on a wrong shape, or times that go back and forth.
    """

    def __init__(self, values: Tensor, times: Tensor | None = None):
        if checks.floating_tensor("values", values).ndim not in (2, 3) or not len(values):
            raise InputError(f"values must have shape (T, k), (T, 1, k) or (T, batch, k), got {tuple(values.shape)}")
        self.values = values if values.ndim == 3 else values[:, None]
        self.times: Tensor | None = None
        if times is not None:
            rows = times.shape[1] if isinstance(times, Tensor) and times.ndim == 2 else None
            falls = (time_grid(times, rows).diff(dim=0) < 0).any(0)
            knots = times.reshape(len(times), -1).to(torch.float64)
            if len(knots) != len(values):
                raise InputError(f"values must have an entry for each of {len(knots)} times, got {len(values)}")
            if bool(falls.any()):  # a row whose times fall is turned round
                self.values = torch.where(falls[:, None], self.values.flip(0), self.values)
                knots = torch.where(falls, knots.flip(0), knots)
            self.times = knots

    @property
    def rows(self) -> int:
        """How many rows it has, 1 where it serves all."""
        return _common(self.values.shape[1], 1 if self.times is None else self.times.shape[1])

    def on(self, times: Tensor) -> SampledInput:
        """The same input, at these times where it has none of its own."""
        return self if self.times is not None else type(self)(self.values, times)

    def __call__(self, t: Tensor) -> Tensor:
        """u(t): a float64 time of shape () or (batch, 1) -> (batch, k) or (1, k)."""
        assert self.times is not None
        moment, knots = t.reshape(-1, 1).mT, self.times  # (1, rows)
        rows = _common(moment.shape[1], knots.shape[1], self.values.shape[1])
        moment, knots = moment.expand(1, rows), knots.expand(-1, rows)
        found = torch.searchsorted(knots.detach().mT.contiguous(), moment.detach().mT.contiguous(), right=True)
        last = (found.mT - 1).clamp(0, len(knots) - 1)  # (1, rows)
        return self.between(last, moment, knots)[0]

    def tensors(self) -> tuple[Tensor, ...]:
        """What gradients may flow to."""
        return (self.values,) if self.times is None else (self.values, self.times)

    def taken(self, index: Tensor) -> Tensor:
        """The values at an index for each row: (1, rows) -> (1, rows, k)."""
        rows = index.shape[1]
        values = self.values.expand(-1, rows, -1)
        return values.gather(0, index[:, :, None].expand(-1, -1, values.shape[-1]))

    @abstractmethod
    def between(self, last: Tensor, moment: Tensor, knots: Tensor) -> Tensor:
        """The input after the knots ``last``, (1, rows), at times (1, rows): (1, rows, k)."""


class ZeroOrderHold(SampledInput):
    """u(t) is the value at the last time that is not after t."""

    def between(self, last: Tensor, moment: Tensor, knots: Tensor) -> Tensor:
        """The last value."""
        return self.taken(last)


class LinearInterpolation(SampledInput):
    """u(t) on straight lines between the values."""

    def between(self, last: Tensor, moment: Tensor, knots: Tensor) -> Tensor:
        """The value on the line to the next."""
        following = (last + 1).clamp_max(len(knots) - 1)
        begin, end = knots.gather(0, last), knots.gather(0, following)
        length = end - begin
        share = torch.where(length > 0, (moment - begin) / torch.where(length > 0, length, 1.0), 0.0)
        share = share.clamp(0, 1).to(self.values.dtype)[:, :, None]
        return torch.lerp(self.taken(last), self.taken(following), share)


def _common(*rows: int) -> int:
    """As many rows as all broadcast to."""
    return 0 if 0 in rows else max(rows)


def merged_times(grid: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
    """The times together with the knots of an input between them, and which of these are the times.

    Args:
        grid: (T, 1) or (T, batch), in one direction.
        knots: (K, 1) or (K, batch).

    Returns:
        Times (T + K, 1 or batch) in the direction of the grid, and indices (T, 1 or batch).
    """
    width = max(grid.shape[1], knots.shape[1])
    grid, knots = grid.expand(-1, width), knots.to(grid).expand(-1, width)
    inside = knots.clamp(torch.minimum(grid[0], grid[-1]), torch.maximum(grid[0], grid[-1]))
    direction = torch.where(grid[-1] < grid[0], -1.0, 1.0).to(grid)
    times, order = (direction * torch.cat([grid, inside])).sort(dim=0, stable=True)
    places = torch.arange(len(order), device=order.device)[:, None].expand_as(order)
    return direction * times, torch.empty_like(order).scatter_(0, order, places)[: len(grid)]
