r"""Where a trajectory ends before its time: each row at the first sign change of a function g(t, s) of its own path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from contracting import checks

Event = Callable[[Tensor, Tensor], Tensor]
"""g(t, s): float64 times (batch, 1) and states (batch, n) to numbers (batch,), whose sign changes where a row ends."""

Reach = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(state, from when, until when) to the state there; differentiable in all three."""

_MOST = 60  # steps of the search; it brackets the root, and halves the bracket at least in every third step


def values_of(event: Event, t: Tensor, state: Tensor) -> Tensor:
    """g, (batch,).

    Raises:
        InputError: if it has another shape.
    """
    value: Any = event(t[:, None], state)
    return checks.shape("event(t, s)", checks.floating_tensor("event(t, s)", value), (len(state),))


def first_crossing(event: Event, marks: list[tuple[Tensor, Tensor]], reach: Reach) -> tuple[Tensor, Tensor, Tensor]:
    """Which rows end between two of the marks, when, and in which state: (batch,), (batch,), (batch, n).

    Args:
        event: g; a row that starts where it is zero does not end there.
        marks: times (batch,) and states (batch, n) on the way of every row.
        reach: how to get from a mark to a time before the next.
    """
    times, states = (torch.stack(column) for column in zip(*marks, strict=True))
    with torch.no_grad():
        signs = torch.stack([values_of(event, t, state).sign() for t, state in zip(times, states, strict=True)])
        crossing = (signs[:-1] != 0) & (signs[:-1] * signs[1:] <= 0)
        found = crossing.any(0)
        index = crossing.to(torch.int8).argmax(0) if len(crossing) else torch.zeros_like(found, dtype=torch.int64)
    begin = times.gather(0, index[None])[0]
    state = states.gather(0, index[None, :, None].expand(1, -1, states.shape[2]))[0]
    if not bool(found.any()):
        return found, begin, state
    end = torch.where(found, times.gather(0, (index + 1).clamp_max(len(times) - 1)[None])[0], begin)
    with torch.no_grad():
        moment = _root(lambda t: values_of(event, t, reach(state, begin, t)), begin, end)
    last = reach(state, begin, moment)
    if not (last.requires_grad or values_of(event, moment, last).requires_grad):
        return found, moment, last
    # Newton's steps from the root: their values change nothing, their derivatives are those of the implicit function,
    # the first of the first order and two together of the second
    moment = moment.requires_grad_()
    for _ in range(2):
        reached = reach(state, begin, moment)
        value = values_of(event, moment, reached)
        (slope,) = torch.autograd.grad(value.sum(), moment, create_graph=True, allow_unused=True)
        assert slope is not None, "the state depends on the time at which it is reached"
        moving = found & (slope != 0)
        moment = moment - torch.where(moving, value / torch.where(moving, slope, 1.0), 0.0)
    return found, moment, reach(state, begin, moment)


def _root(g: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """A zero of g between two times of each row, (batch,), whose signs differ; by the Illinois rule."""
    at_low, at_high = g(low), g(high)
    for step in range(_MOST):
        share = at_low / torch.where(at_low == at_high, 1.0, at_low - at_high)
        if step % 3 == 2:
            share = torch.full_like(share, 0.5)
        middle = low + share.clamp(0, 1) * (high - low)
        value = g(middle)
        left = value.sign() == at_low.sign()  # the zero is to the right
        # an end that stays has its value halved, so that the next step falls on its side
        at_low, at_high = torch.where(left, value, at_low / 2), torch.where(left, at_high / 2, value)
        low, high = torch.where(left, middle, low), torch.where(left, high, middle)
        if not bool((((high - low).abs() > 4 * torch.finfo(low.dtype).eps * high.abs()) & (at_high != 0)).any()):
            break
    return high
