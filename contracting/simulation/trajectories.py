r"""Simulate flows accurately, many trajectories at once, and measure how fast they approach each other.

A steady-state solver may take any path; here the path itself is the result. Every row has its own step size, the states
at the requested times are hit exactly (no interpolation), and everything is differentiable through the steps taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError
from contracting.flows.base import BoundFlow
from contracting.flows.fields import VectorField
from contracting.integrators.explicit import DORMAND_PRINCE, RK4_CLASSIC, Tableau, combine, runge_kutta_step
from contracting.loop.records import SolveError
from contracting.metrics import Metric
from contracting.types import Time

Input = Callable[[Tensor], Tensor]
"""q(t): a time of shape () or (batch, 1) to an input of shape (n,), (1, n) or (batch, n)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """States at given times.

    Attributes:
        times: (T,).
        states: (T, batch, n); NaN from where a row could not be continued.
        steps: (batch,), time steps that were accepted.
    """

    times: Tensor
    states: Tensor
    steps: Tensor

    @property
    def complete(self) -> Tensor:
        """(batch,), which rows are finite at all times."""
        return torch.isfinite(self.states).all(-1).all(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrajectoryPair:
    """Two trajectories per row under the same input, integrated with the same time steps.

    Attributes:
        times: (T,).
        first: (T, batch, n).
        second: (T, batch, n).
    """

    times: Tensor
    first: Tensor
    second: Tensor


class Integrator(Protocol):
    """How ``simulate`` advances a flow from one requested time to the next."""

    def advance(self, flow: VectorField, state: Tensor, start: Tensor, end: Tensor, memory: Memory) -> Tensor:
        """The state at ``end`` from the one at ``start``, both times of shape ()."""
        ...


class Memory:
    """What an integrator carries from one segment to the next: per-row step size, error and counts.

    A row that is no longer ``alive`` keeps its last good state inside the loop, so that no NaN enters a gradient.
    """

    def __init__(self, state: Tensor):
        self.alive = torch.ones(state.shape[0], dtype=torch.bool, device=state.device)
        self.step: Tensor | None = None
        self.last_error = state.new_ones(state.shape[0])
        self.taken = torch.zeros(state.shape[0], dtype=torch.int64, device=state.device)
        self.tried = torch.zeros_like(self.taken)


@dataclass(frozen=True, kw_only=True)
class FixedStep:
    """Steps of equal length within each segment between two requested times, the same for all rows.

    Args:
        step: the longest step allowed, in units of time.
        tableau: the Runge–Kutta method; the classical one of order 4 by default.

    Raises:
        InputError: if the step is not positive.
    """

    step: float
    tableau: Tableau = RK4_CLASSIC

    def __post_init__(self) -> None:
        checks.number("step", self.step, low=0, low_open=True, high=float("inf"), high_open=True)

    def advance(self, flow: VectorField, state: Tensor, start: Tensor, end: Tensor, memory: Memory) -> Tensor:
        """The state at ``end``."""
        # a length that rounding has pushed just above a whole number of steps needs no extra one
        count = max(1, -int(-(float(end - start) / self.step * (1 - 1e-9)) // 1))
        step = (end - start) / count
        for k in range(count):
            clock = _clock(start + k * step, step, end)
            state = runge_kutta_step(self.tableau, flow, state, step, clock=clock)[0]
        memory.taken += count
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

    def _tolerances(self, state: Tensor) -> tuple[float, float]:
        rtol = self.rtol or (1e-9 if torch.finfo(state.dtype).eps < 1e-12 else 1e-5)
        return rtol, self.atol or 1e-3 * rtol

    def advance(self, flow: VectorField, state: Tensor, start: Tensor, end: Tensor, memory: Memory) -> Tensor:
        """The state at ``end``."""
        time = start.expand(state.shape[0]).clone()
        slope = flow(time[:, None], state)
        graph = torch.is_grad_enabled() and (slope.requires_grad or state.requires_grad)
        if memory.step is None:
            memory.step = _first_step(state.detach(), slope.detach())
        memory.alive = memory.alive & torch.isfinite(slope.detach()).all(-1)
        moving = memory.alive
        while bool(moving.any()):
            room = end - time
            # do not leave a last sliver of a step
            wanted = torch.minimum(memory.step, room / 2)
            wanted = torch.where(memory.step >= room / 1.01, room, wanted)
            with torch.no_grad():
                h = torch.where(moving, wanted, 0.0)
                new, slopes, ratio = self._try(flow, state, slope, h, time, end)
            accept = moving & (ratio <= 1)
            taken = torch.where(accept, h, 0.0)
            if graph:  # a step of length 0 leaves a row alone, so no rejected value enters the graph
                new, slopes = runge_kutta_step(
                    self.tableau, flow, state, taken[:, None], slope, _clock(time[:, None], taken[:, None], end)
                )
            chosen = accept[:, None]
            state = torch.where(chosen, new, state)
            time = torch.where(accept & (h >= room), end, time + taken)
            if self.tableau.last_stage_is_first:
                slope = torch.where(chosen, slopes[-1], slope)
            else:
                slope = flow(_clock(time[:, None], 0 * time[:, None], end)(0.0), state)
            self._resize(memory, h, ratio, accept, moving)
            lost = moving & ((memory.tried >= self.max_steps) | (h <= 4 * torch.finfo(h.dtype).eps * end.abs()))
            memory.alive = memory.alive & ~(lost & (time < end))
            moving = memory.alive & (time < end)
        return state

    def _try(
        self, flow: VectorField, state: Tensor, slope: Tensor, h: Tensor, time: Tensor, end: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """The step, its stages, and the error over what is allowed, (batch,); infinite where it is not a number."""
        assert self.tableau.error is not None
        new, slopes = runge_kutta_step(
            self.tableau, flow, state, h[:, None], slope, _clock(time[:, None], h[:, None], end)
        )
        rtol, atol = self._tolerances(state)
        error = h[:, None] * combine(self.tableau.error, slopes)
        ratio = _rms(error / (atol + rtol * torch.maximum(state.abs(), new.abs())))
        return new, slopes, torch.where(torch.isfinite(ratio), ratio, float("inf"))

    def _resize(self, memory: Memory, h: Tensor, ratio: Tensor, accept: Tensor, moving: Tensor) -> None:
        """PI control of each row's step."""
        assert memory.step is not None
        order = self.tableau.order
        usable = ratio.clamp_min(1e-10)
        growth = 0.9 * usable ** (-0.7 / order) * torch.where(accept, memory.last_error ** (0.4 / order), 1.0)
        growth = growth.clamp(0.2, 5.0)
        # a step cut short by a requested time says nothing against the longer one that was planned
        proposed = torch.where(accept & (h < memory.step), torch.maximum(memory.step, h * growth), h * growth)
        memory.step = torch.where(moving, proposed, memory.step)
        memory.last_error = torch.where(accept, usable, memory.last_error)
        memory.taken += accept
        memory.tried += moving


def _clock(time: Tensor, step: Tensor, end: Tensor) -> Callable[[float], Time]:
    """Times inside a step, kept below ``end`` by one rounding unit.

    A segment is half open, so an input that jumps at a requested time, continuous from the right, is seen by no stage
    of the segment before the jump.
    """
    last = torch.nextafter(end, end - 1)
    return lambda fraction: torch.minimum(time + fraction * step, last)


def _first_step(state: Tensor, slope: Tensor) -> Tensor:
    """Moves the state by about a hundredth of its scale; (batch,)."""
    size, speed = _rms(state), _rms(slope)
    return torch.where(size > 1e-5, 0.01 * size / speed.clamp_min(1e-30), 1e-3).clamp(1e-6, 0.1).nan_to_num(1e-3)


def _rms(rows: Tensor) -> Tensor:
    return rows.square().mean(-1).sqrt()


class DrivenFlow(VectorField):
    """A flow of a problem whose input moves: s' = f(s; q(t)).

    Args:
        flow: the flow; the q of its problem is replaced.
        signal: q(t), of shape (n,), (1, n) or (batch, n) for a time of shape () or (batch, 1).
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

    def at(self, t: Time, rows: int | None = None) -> BoundFlow:
        """The flow with the input of one moment, for states of so many rows.

        Raises:
            InputError: if the signal is of another kind, shape or number of rows than the problem and the states need.
        """
        problem = self.flow.problem
        moment = torch.as_tensor(t, dtype=problem.q.dtype, device=problem.q.device)
        value = checks.floating_tensor("signal(t)", self.signal(moment))
        checks.same_kind("signal(t)", checks.last_size("signal(t)", value, problem.size), "the problem's q", problem.q)
        signal = value[None] if value.ndim == 1 else value
        if signal.ndim != 2 or (rows is not None and len(signal) not in (1, rows)):
            raise InputError(
                f"signal(t) must have shape ({problem.size},), (1, {problem.size}) or (batch, {problem.size})"
                f"{'' if rows is None else f' with batch = {rows}, the rows of the state'}, got {tuple(value.shape)}"
            )
        return self.flow.with_input(signal)

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        return self.at(t, len(state))(t, state)

    def init(self, z: Tensor) -> Tensor:
        return self.flow.init(z)

    def read(self, state: Tensor) -> Tensor:
        return self.flow.read(state)

    def jacobian(self, state: Tensor, t: Time = 0.0) -> Tensor:
        return self.at(t, len(state)).jacobian(state, t)

    def jvp(self, state: Tensor, direction: Tensor, t: Time = 0.0) -> Tensor:
        return self.at(t, len(state)).jvp(state, direction, t)


class _Twin(VectorField):
    """Two copies of a flow side by side in one row, so that they share their steps."""

    def __init__(self, flow: VectorField):
        self.flow = flow

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        # one look at the input for both
        flow = self.flow.at(t, len(state)) if isinstance(self.flow, DrivenFlow) else self.flow
        return torch.cat([flow(t, half) for half in state.chunk(2, dim=-1)], dim=-1)


def simulate(
    flow: VectorField,
    start: Tensor,
    times: Tensor,
    *,
    signal: Input | None = None,
    integrator: Integrator | None = None,
    throw: bool = True,
) -> Trajectory:
    """Follow a flow from each row of ``start`` through ``times``.

    Differentiable in ``start`` and in whatever tensors the flow depends on, not in ``times``. An input that jumps is
    integrated at full order if the jumps are among ``times`` and q is continuous from the right.

    Args:
        flow: any vector field: a flow of a problem, ``LinearFlow``, ``NeuralFlow``.
        start: state at the first time, (batch, n). Use ``flow.init(z)`` to start from z.
        times: (T,), increasing.
        signal: a moving input q(t) for a flow of a problem; None keeps the input of the problem.
        integrator: ``AdaptiveStep()`` if None.
        throw: raise if a row could not be followed to the end; otherwise its states are NaN from there on.

    Raises:
        InputError: on a wrong shape, times that do not increase, or a signal of a wrong kind or shape.
        SolveError: if a row failed and ``throw`` is set.
    """
    field = flow if signal is None else DrivenFlow(flow, signal)  # type: ignore[arg-type]
    start, times = _check_start(field, start), _check_times(times, start)
    integrator = AdaptiveStep() if integrator is None else integrator
    if not callable(getattr(integrator, "advance", None)):
        raise InputError(f"integrator must be AdaptiveStep() or FixedStep(step=...), got {integrator!r}")
    state, memory, states = start, Memory(start), [start]
    for begin, end in zip(times[:-1], times[1:], strict=True):
        state = integrator.advance(field, state, begin, end, memory)
        states.append(torch.where(memory.alive[:, None], state, float("nan")))
    trajectory = Trajectory(times=times, states=torch.stack(states), steps=memory.taken)
    if throw and not bool(trajectory.complete.all()):
        count = int((~trajectory.complete).sum())
        raise SolveError(
            f"{count} of {len(start)} trajectories could not be followed to t = {float(times[-1]):g}: the states grow "
            "without bound, or the field is not finite or too stiff for an explicit method; shorten the time, raise "
            "max_steps, or pass throw=False to see how far they get"
        )
    return trajectory


def simulate_pairs(
    flow: VectorField,
    first: Tensor,
    second: Tensor,
    times: Tensor,
    *,
    signal: Input | None = None,
    integrator: Integrator | None = None,
    throw: bool = True,
) -> TrajectoryPair:
    """Follow a flow from two starting points per row, with the same steps for both.

    Sharing the steps makes their distance accurate down to rounding: the errors of the two trajectories differ by
    something proportional to that distance, instead of by the tolerance. Arguments as for ``simulate``.
    """
    field = flow if signal is None else DrivenFlow(flow, signal)  # type: ignore[arg-type]
    checks.shape("second", second, tuple(_check_start(field, first).shape))
    both = simulate(_Twin(field), torch.cat([first, second], -1), times, integrator=integrator, throw=throw)
    halves = both.states.chunk(2, dim=-1)
    return TrajectoryPair(times=both.times, first=halves[0], second=halves[1])


def distance(pair: TrajectoryPair, metric: Metric) -> Tensor:
    """‖s₁(t) − s₂(t)‖ in a metric: (T, batch).

    Raises:
        InputError: if the metric is of another size than the states.
    """
    return metric.to(pair.first).norm(pair.first - pair.second)


def _check_start(flow: VectorField, start: Tensor) -> Tensor:
    if not isinstance(flow, VectorField):
        raise InputError(
            f"flow must be a vector field such as FiringRate().bind(problem) or NeuralFlow(module), got {flow!r}"
        )
    if checks.floating_tensor("start", start).ndim != 2:
        raise InputError(f"start must have shape (batch, n), got {tuple(start.shape)}")
    if isinstance(flow, BoundFlow):
        q = flow.problem.q
        checks.same_kind("start", start, "the problem's q", q)
        checks.last_size("start", start, flow.problem.size)
        if len(q) not in (1, len(start)):
            raise InputError(f"start must have as many rows as the problem has inputs, {len(q)}, got {len(start)}")
    return checks.finite("start", start)


def _check_times(times: Tensor, start: Tensor) -> Tensor:
    times = checks.finite("times", checks.floating_tensor("times", times)).detach().to(start)
    if times.ndim != 1 or len(times) < 2 or bool((times.diff() <= 0).any()):
        raise InputError("times must have shape (T,) with T ≥ 2 and increase strictly")
    return times
