"""How a simulation advances from one requested time to the next: steps of one length, or each row at its own pace.

Time is float64 whatever the dtype of the states, and steps are counted from the start of each segment between two
requested times: how late it is costs no accuracy and stops no row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError
from contracting.flows.fields import VectorField
from contracting.integrators.explicit import DORMAND_PRINCE, RK4_CLASSIC, Tableau, combine, runge_kutta_step
from contracting.integrators.step_control import first_step, judge, row_rms
from contracting.types import Time

_FULL = 1 / 1.01  # A step that covers this share of what is left is stretched to the end, so that no sliver remains.


class Integrator(Protocol):
    """How ``simulate`` advances a flow from one requested time to the next."""

    def advance(self, flow: VectorField, state: Tensor, start: Tensor, end: Tensor, progress: Progress) -> Tensor:
        """The state at ``end`` from the one at ``start``, float64 times of every row, (batch,).

        A row goes backwards where ``end`` is before ``start``, and rests where they are equal.
        """
        ...


class Progress:
    """What an integrator carries from one segment to the next: per-row step length, error and counts.

    A row that is no longer ``alive`` keeps its last good state inside the loop, so that no NaN enters a gradient. An
    integrator that is asked for ``marks`` appends the times, (batch,), and states after every time step.
    """

    marks: list[tuple[Tensor, Tensor]] | None = None

    def __init__(self, state: Tensor):
        self.alive = torch.ones(state.shape[0], dtype=torch.bool, device=state.device)
        self.step: Tensor | None = None
        self.last_error = state.new_ones(state.shape[0])
        self.taken = torch.zeros(state.shape[0], dtype=torch.int64, device=state.device)
        self.tried = torch.zeros_like(self.taken)


class Segment:
    """The way of every row from one requested time to the next, and the clock inside it.

    Args:
        start: (batch,), float64.
        end: (batch,), float64.

    Attributes:
        length: ≥ 0, (batch,).
        direction: −1, 0 or 1, (batch,).
    """

    def __init__(self, start: Tensor, end: Tensor):
        self.start, self.length, self.direction = start, (end - start).abs(), (end - start).sign()
        low = torch.minimum(start, end)
        self._low, self._last = low[:, None], torch.nextafter(torch.maximum(start, end), low - 1)[:, None]

    def clock(self, elapsed: Tensor, step: Tensor) -> Callable[[float], Time]:
        """Times inside a step that starts so long after the start, by the fraction of the step: each (batch, 1)."""
        return self.times((self.start + self.direction * elapsed)[:, None], (self.direction * step)[:, None])

    def times(self, begin: Tensor, way: Tensor) -> Callable[[float], Time]:
        """Times on the way of each row from where it begins a step, (batch, 1), by the fraction of the way.

        A segment is half open: the latest of its times is kept below its upper end by one rounding unit. So an input
        that jumps at a requested time, continuous from the right, is seen by no stage of the segment before the jump.
        """
        return lambda fraction: torch.add(begin, way, alpha=fraction).clamp_(self._low, self._last)

    def signed(self, step: Tensor, state: Tensor) -> Tensor:
        """A step in the direction of its row, in the dtype of the states: (batch,) -> (batch, 1)."""
        return (self.direction * step).to(state.dtype)[:, None]


@dataclass(frozen=True, kw_only=True)
class FixedStep:
    """Steps of equal length within each segment between two requested times.

    Args:
        step: the longest step allowed, in units of time.
        tableau: the Runge–Kutta method; the classical one of order 4 by default.

    Raises:
        InputError: if the step is not positive.
    """

    step: float
    tableau: Tableau = RK4_CLASSIC

    def __post_init__(self) -> None:
        checks.positive_number("step", self.step)

    def advance(self, flow: VectorField, state: Tensor, start: Tensor, end: Tensor, progress: Progress) -> Tensor:
        """The state at ``end``."""
        segment = Segment(start, end)
        # a length that rounding has pushed just above a whole number of steps needs no extra one
        count = (segment.length / self.step * (1 - 1e-9)).ceil().clamp_min(1) * (segment.length > 0)
        least, most = (int(number) for number in count.aminmax()) if len(count) else (0, 0)
        begin, step = start[:, None], (segment.direction * segment.length / count.clamp_min(1))[:, None]
        way = step
        signed = way.to(state.dtype)
        for k in range(most):
            if k >= least:  # some rows have arrived, and rest
                way = torch.where((k < count)[:, None], step, 0.0)
                signed = way.to(state.dtype)
            clock = segment.times(torch.add(begin, step, alpha=k), way)
            new = runge_kutta_step(self.tableau, flow, state, signed, clock=clock)[0]
            state = new if k < least else torch.where((k < count)[:, None], new, state)
            if progress.marks is not None:
                progress.marks.append((start + step[:, 0] * count.clamp_max(k + 1), state))
        progress.taken += count.to(torch.int64)
        return state


@dataclass(frozen=True, kw_only=True)
class AdaptiveStep:
    """Each row with its own step, sized so that the estimated error of a step stays within rtol·|s| + atol.

    An answer does not depend on the other rows. Where gradients are wanted, a step is first tried without a graph, and
    only accepted steps enter the graph; the step sizes themselves count as constants.

    Args:
        rtol: relative tolerance; None means 1e-9 in float64 and 1e-5 in float32.
        atol: absolute tolerance; None means rtol/1000.
        max_steps: attempted steps after which a row is given up.
        tableau: an embedded Runge–Kutta pair; Dormand–Prince 5(4) by default.

    Raises:
        InputError: if a setting is out of range or the tableau has no error estimate.
    """

    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 100_000
    tableau: Tableau = DORMAND_PRINCE

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            if getattr(self, name) is not None:
                checks.number(name, getattr(self, name), low=0, low_open=True, high=1)
        checks.whole_number("max_steps", self.max_steps)
        if self.tableau.error is None:
            raise InputError("tableau needs an error estimate; use DORMAND_PRINCE or BOGACKI_SHAMPINE, or FixedStep")

    def advance(self, flow: VectorField, state: Tensor, start: Tensor, end: Tensor, progress: Progress) -> Tensor:
        """The state at ``end``."""
        segment = Segment(start, end)
        elapsed = torch.zeros_like(segment.length)
        moving = progress.alive & (segment.length > 0)
        if not bool(moving.any()):
            return state
        slope = flow(segment.clock(elapsed, elapsed)(0.0), state)
        graph = torch.is_grad_enabled() and (slope.requires_grad or state.requires_grad)
        if progress.step is None:
            progress.step = first_step(state.detach(), slope.detach(), longest=0.1).to(elapsed)
        moving = moving & torch.isfinite(slope.detach()).all(-1)
        progress.alive = progress.alive & (moving | (segment.length == 0))
        limits = torch.finfo(elapsed.dtype)
        while bool(moving.any()):
            room = segment.length - elapsed
            wanted = torch.where(progress.step >= _FULL * room, room, torch.minimum(progress.step, room / 2))
            h = torch.where(moving, wanted, 0.0)
            with torch.no_grad():
                new, slopes, ratio = self._try(flow, state, slope, segment, elapsed, h)
            accept, growth, last = judge(ratio, progress.last_error, self.tableau.order)
            accept = accept & moving
            taken = torch.where(accept, h, 0.0)
            if graph:  # a step of length 0 leaves a row alone, so no rejected value enters the graph
                clock = segment.clock(elapsed, taken)
                new, slopes = runge_kutta_step(self.tableau, flow, state, segment.signed(taken, state), slope, clock)
            chosen = accept[:, None]
            state = torch.where(chosen, new, state)
            elapsed = torch.where(accept & (h >= room), segment.length, elapsed + taken)
            if self.tableau.last_stage_is_first:
                slope = torch.where(chosen, slopes[-1], slope)
            else:
                slope = flow(segment.clock(elapsed, elapsed)(0.0), state)
            # a step cut short by a requested time says nothing against the longer one that was planned
            proposed = torch.where(accept & (h < progress.step), torch.maximum(progress.step, h * growth), h * growth)
            progress.step = torch.where(moving, proposed, progress.step)
            progress.last_error = torch.where(accept, last, progress.last_error)
            progress.taken += accept
            progress.tried += moving
            # such a step changes neither the time since the start of the segment nor, soon, the state
            lost = (progress.tried >= self.max_steps) | (h <= (4 * limits.eps * elapsed).clamp_min(limits.tiny))
            progress.alive = progress.alive & ~(moving & lost & (elapsed < segment.length))
            moving = moving & progress.alive & (elapsed < segment.length)
            if progress.marks is not None:
                progress.marks.append((segment.start + segment.direction * elapsed, state))
        return state

    def _try(
        self, flow: VectorField, state: Tensor, slope: Tensor, segment: Segment, elapsed: Tensor, h: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """The step, its stages, and the error over what is allowed, (batch,); infinite where it is not a number."""
        assert self.tableau.error is not None
        step = segment.signed(h, state)
        new, slopes = runge_kutta_step(self.tableau, flow, state, step, slope, segment.clock(elapsed, h))
        rtol = self.rtol or (1e-9 if torch.finfo(state.dtype).eps < 1e-12 else 1e-5)
        atol = self.atol or 1e-3 * rtol
        error = step * combine(self.tableau.error, slopes)
        ratio = row_rms(error / (atol + rtol * torch.maximum(state.abs(), new.abs())))
        return new, slopes, torch.where(torch.isfinite(ratio), ratio, float("inf"))
