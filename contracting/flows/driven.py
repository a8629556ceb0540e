r"""Flows whose input moves: s' = f(s; q(t))."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from contracting import checks
from contracting.display import Row
from contracting.errors import InputError
from contracting.flows.base import BoundFlow
from contracting.flows.fields import VectorField
from contracting.types import Time

Input = Callable[[Tensor], Tensor]
"""q(t): a float64 time of shape () or (batch, 1) to an input of shape (n,), (1, n) or (batch, n)."""


def input_at(signal: Input, t: Time, *, size: int, like: Tensor, name: str, rows: int | None = None) -> Tensor:
    """The input of one moment, (1, size) or (batch, size), in the dtype of ``like``.

    Raises:
        InputError: if it is of another kind, shape or number of rows; the message calls the signal ``name``.
    """
    value = checks.floating_tensor(f"{name}(t)", signal(torch.as_tensor(t, dtype=torch.float64, device=like.device)))
    if value.dtype == torch.float64:
        value = value.to(like.dtype)
    checks.same_kind(f"{name}(t)", checks.last_size(f"{name}(t)", value, size), "the flow", like)
    value = value[None] if value.ndim == 1 else value
    if value.ndim != 2 or (rows is not None and len(value) not in (1, rows)):
        raise InputError(
            f"{name}(t) must have shape ({size},), (1, {size}) or (batch, {size})"
            f"{'' if rows is None else f' with batch = {rows}, the rows of the state'}, got {tuple(value.shape)}"
        )
    return value


def tensors_of(signal: Input) -> tuple[Tensor, ...]:
    """What an input depends on and gradients may flow to: what its ``tensors()`` says."""
    say: Callable[[], tuple[Tensor, ...]] | None = getattr(signal, "tensors", None)
    return () if say is None else tuple(say())


class DrivenFlow(VectorField):
    """A flow of a problem whose input moves: s' = f(s; q(t)).

    Args:
        flow: the flow; the q of its problem is replaced.
        signal: q(t), of shape (n,), (1, n) or (batch, n) for a time of shape () or (batch, 1). The time is float64
            whatever the dtype of the flow, so that a late time is not rounded; a float64 input is rounded to the flow.
    """

    def __init__(self, flow: BoundFlow, signal: Input):
        if not isinstance(flow, BoundFlow):
            raise InputError(
                f"an input q(t) needs a flow of a problem, such as FiringRate().bind(problem), got {flow!r}; "
                "a NeuralFlow takes its time as f(t, s)"
            )
        if not callable(signal):
            raise InputError(
                f"signal must be a function q(t) from a time to an input, got {type(signal).__name__}; leave it out "
                "for a constant input, the q of the problem"
            )
        self.flow, self.signal = flow, signal

    def shown(self) -> Sequence[Row]:
        return [Row("flow", self.flow), Row("signal", self.signal)]

    def at(self, t: Time, rows: int | None = None) -> BoundFlow:
        """The flow with the input of one moment, for states of so many rows.

        Raises:
            InputError: if the signal is of another kind, shape or number of rows than the problem and the states need.
        """
        problem = self.flow.problem
        signal = input_at(self.signal, t, size=problem.size, like=problem.q, name="signal", rows=rows)
        return self.flow.with_input(signal)

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        return self.at(t, len(state))(t, state)

    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.flow.tensors(), *tensors_of(self.signal))

    def init(self, z: Tensor) -> Tensor:
        return self.flow.init(z)

    def read(self, state: Tensor) -> Tensor:
        return self.flow.read(state)

    def jacobian(self, state: Tensor, t: Time = 0.0) -> Tensor:
        return self.at(t, len(state)).jacobian(state, t)

    def jvp(self, state: Tensor, direction: Tensor, t: Time = 0.0) -> Tensor:
        return self.at(t, len(state)).jvp(state, direction, t)
