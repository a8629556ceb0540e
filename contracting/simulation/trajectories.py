r"""Simulate flows accurately, many trajectories at once, and measure how fast they approach each other.

A steady-state solver may take any path; here the path itself is the result. Every row has its own step size, the states
at the requested times are hit exactly (no interpolation), and everything is differentiable through the steps taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from contracting import checks
from contracting.display import Displayed
from contracting.errors import InputError
from contracting.flows.base import BoundFlow
from contracting.flows.driven import DrivenFlow, Input
from contracting.flows.fields import VectorField, refuse_crowds, tracked
from contracting.loop.method import YOUR_OWN
from contracting.loop.records import SolveError
from contracting.metrics import Metric
from contracting.simulation.events import Event, first_crossing
from contracting.simulation.time_steps import AdaptiveStep, Integrator, Progress
from contracting.simulation.times import time_grid
from contracting.types import Time


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Trajectory(Displayed):
    """States at given times.

    Attributes:
        times: (T,), or (T, batch) where each row has a grid of its own; float64.
        states: (T, batch, n); NaN from where a row could not be continued.
        steps: (batch,), time steps that were accepted.
        stopped: (batch,), when an event ended the row, which then rests; infinite where none did, None if none was
            asked for.
    """

    times: Tensor
    states: Tensor
    steps: Tensor
    stopped: Tensor | None = None
    way: Way | None = field(default=None, repr=False)

    @property
    def complete(self) -> Tensor:
        """(batch,), which rows are finite at all times."""
        return torch.isfinite(self.states).all(-1).all(0)

    def at(self, times: Tensor) -> Tensor:
        """The states at other times between the first and the last, integrated from the last one before.

        Args:
            times: (), (S,), or (S, batch) with times for each row, in any order.

        Returns:
            (batch, n) for a single time, otherwise (S, batch, n).

        Raises:
            InputError: on another shape, or times outside.
        """
        if self.way is None:
            raise InputError("this trajectory was not made by simulate(...), and knows its states at its times only")
        rows = self.states.shape[1]
        if isinstance(times, Tensor) and times.ndim == 0:
            return self.at(times[None])[0]
        wanted = torch.stack([time_grid(moment[None], rows)[0] for moment in times]).expand(-1, rows)
        grid = self.times.reshape(len(self.times), -1).expand(-1, rows).detach()
        first, last = torch.minimum(grid[0], grid[-1]), torch.maximum(grid[0], grid[-1])
        if bool(((wanted < first) | (wanted > last)).any()):
            raise InputError("times must lie between the first and the last time of the trajectory")
        return torch.stack([self._reached(grid, moment) for moment in self.until_stopped(wanted)])

    def until_stopped(self, times: Tensor) -> Tensor:
        """Times, (S, batch), those after the end of a row being that end."""
        if self.stopped is None:
            return times
        return torch.where((times - self.stopped) * self._direction > 0, self.stopped, times)

    @property
    def _direction(self) -> Tensor:
        """1 for rows whose times rise, −1 for others, (batch,)."""
        grid = self.times.reshape(len(self.times), -1).expand(-1, self.states.shape[1])
        return torch.where(grid[-1] < grid[0], -1.0, 1.0).to(grid)

    def _reached(self, grid: Tensor, moment: Tensor) -> Tensor:
        assert self.way is not None
        before = ((moment - grid) * self._direction >= 0).sum(0).sub(1).clamp_min(0)[None]
        state = self.states.gather(0, before[:, :, None].expand(-1, -1, self.states.shape[2]))[0]
        return self.way.reach(state, grid.gather(0, before)[0], moment)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TrajectoryPair(Displayed):
    """Two trajectories per row under the same input, integrated with the same time steps.

    Attributes:
        times: (T,) or (T, batch), as of a ``Trajectory``.
        first: (T, batch, n).
        second: (T, batch, n).
    """

    times: Tensor
    first: Tensor
    second: Tensor


class _Twin(VectorField):
    """Two copies of a flow side by side in one row, so that they share their steps."""

    def __init__(self, flow: VectorField):
        self.flow = flow

    def tensors(self) -> tuple[Tensor, ...]:
        return self.flow.tensors()

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        # one look at the input for both
        flow = self.flow.at(t, len(state)) if isinstance(self.flow, DrivenFlow) else self.flow
        return torch.cat([flow(t, half) for half in state.chunk(2, dim=-1)], dim=-1)


class _Stretched(VectorField):
    """A field along times that equal the given ones and depend on others, which may require gradients.

    Between two given times a, b the true time is T(t) = A + (t − a)(B − A)/(b − a), where A, B have the values of a, b:
    s' = T'(t)f(T(t), s).
    """

    def __init__(self, flow: VectorField, given: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]):
        self.flow, self.origin, self.begin = flow, given[0][:, None], exact[0][:, None]
        length = (given[1] - given[0])[:, None]
        moves = length != 0
        self.speed = torch.where(moves, (exact[1] - exact[0])[:, None] / torch.where(moves, length, 1.0), 1.0)

    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.flow.tensors(), self.begin, self.speed)

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        return self.speed.to(state.dtype) * self.flow(self.begin + (t - self.origin) * self.speed, state)


@dataclass(frozen=True)
class Way:
    """A field, and how it is followed."""

    flow: VectorField
    integrator: Integrator

    def reach(self, state: Tensor, begin: Tensor, end: Tensor, progress: Progress | None = None) -> Tensor:
        """The state at ``end`` from the one at ``begin``, (batch,) each, differentiable in both."""
        given, flow = (begin.detach(), end.detach()), self.flow
        if begin.requires_grad or end.requires_grad:
            flow = _Stretched(flow, given, (begin, end))
        if progress is None:
            progress = Progress(state)
            progress.step = (given[1] - given[0]).abs()  # mostly less than a step
        return self.integrator.advance(flow, state, *given, progress)


class _Followed(VectorField):
    """A field as it is followed: its value in the dtype of the states, and a graph around it where it needs one.

    A field that differentiates inside, as that of an energy −∂E/∂s, finds a state that autograd tracks, also under
    ``no_grad``; its value is cut off again where no graph is wanted.
    """

    def __init__(self, flow: VectorField, t: Tensor, state: Tensor):
        self.flow, self.differentiates = flow, False
        try:
            with torch.no_grad():
                value = self(t, state.detach())
        except RuntimeError:  # as autograd says that there is no graph; anything else is said again by the next line
            self.differentiates = True
            with torch.no_grad():
                value = self(t, state.detach())
        refuse_crowds(lambda states: self(t, states), state.detach(), value)

    def tensors(self) -> tuple[Tensor, ...]:
        return self.flow.tensors()

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        if not self.differentiates:
            value = self.flow(t, state)
            if value.shape != state.shape:  # asked first, as this is the work of every stage
                checks.shape("f(t, s)", value, tuple(state.shape))
            return value if value.dtype == state.dtype else value.to(state.dtype)
        graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            value = checks.shape("f(t, s)", self.flow(t, tracked(state)), tuple(state.shape)).to(state.dtype)
        return value if graph else value.detach()


def simulate(
    flow: VectorField,
    start: Tensor,
    times: Tensor,
    *,
    signal: Input | None = None,
    integrator: Integrator | None = None,
    event: Event | None = None,
    throw: bool = True,
) -> Trajectory:
    """Follow a flow from each row of ``start`` through ``times``.

    Differentiable in ``start``, in whatever tensors the flow depends on, and in ``times``. An input that jumps is
    integrated at full order if the jumps are among ``times`` and q is continuous from the right. Time is float64,
    whatever the dtype of the states.

    Args:
        flow: any vector field: a flow of a problem, ``LinearFlow``, ``NeuralFlow``.
        start: state at the first time, (batch, n). Use ``flow.init(z)`` to start from z.
        times: (T,), or (T, batch) with a grid for each row; rising, or falling to integrate backwards. A time may be
            repeated: a row that ends before the others is padded with its last time.
        signal: a moving input q(t) for a flow of a problem; None keeps the input of the problem.
        integrator: ``AdaptiveStep()`` if None.
        event: g(t, s), (batch, 1), (batch, n) -> (batch,): a row ends, and rests, where g first changes its sign. It is
            looked at after every time step, so that two changes within one are not seen.
        throw: raise if a row could not be followed to the end; otherwise its states are NaN from there on.

    Raises:
        InputError: on a wrong shape, times that go back and forth, a signal of a wrong kind or shape, or a field in
            which the rows of a batch see each other.
        SolveError: if a row failed and ``throw`` is set.
    """
    driven = flow if signal is None else DrivenFlow(flow, signal)  # type: ignore[arg-type]
    start, grid = checked_states("start", driven, start), time_grid(times, len(start)).to(start.device)
    integrator = AdaptiveStep() if integrator is None else integrator
    if not callable(getattr(integrator, "advance", None)):
        raise InputError(f"integrator must be AdaptiveStep() or FixedStep(step=...), got {integrator!r}; {YOUR_OWN}")
    moments = grid.expand(-1, len(start))
    if times.requires_grad:
        moments = times.reshape(len(times), -1).to(grid).expand(-1, len(start))
    way = Way(_Followed(driven, moments[0].detach()[:, None], start), integrator)
    state, progress, states = start, Progress(start), [start]
    stopped = torch.full_like(grid[0].expand(len(start)), torch.inf)
    for begin, end in zip(moments[:-1], moments[1:], strict=True):
        end = torch.where(torch.isinf(stopped), end, begin)
        progress.marks = None if event is None else [(begin.detach(), state)]
        state = way.reach(state, begin, end, progress)
        if event is not None and progress.marks is not None:
            progress.marks.append((end.detach(), state))
            found, moment, last = first_crossing(event, progress.marks, way.reach)
            state, stopped = torch.where(found[:, None], last, state), torch.where(found, moment, stopped)
        states.append(torch.where(progress.alive[:, None], state, float("nan")))
    trajectory = Trajectory(
        times=grid if times.ndim == 2 else grid[:, 0],
        states=torch.stack(states),
        steps=progress.taken,
        stopped=None if event is None else stopped,
        way=way,
    )
    if throw and not bool(trajectory.complete.all()):
        count = int((~trajectory.complete).sum())
        raise SolveError(
            f"{count} of {len(start)} trajectories could not be followed to their last time: the states grow without "
            "bound, or the field is not finite or too stiff for an explicit method; shorten the time, raise "
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
    checks.shape("second", second, tuple(checked_states("first", field, first).shape))
    both = simulate(_Twin(field), torch.cat([first, second], -1), times, integrator=integrator, throw=throw)
    halves = both.states.chunk(2, dim=-1)
    return TrajectoryPair(times=both.times, first=halves[0], second=halves[1])


def distance(pair: TrajectoryPair, metric: Metric) -> Tensor:
    """‖s₁(t) − s₂(t)‖ in a metric: (T, batch).

    Raises:
        InputError: if the metric is of another size than the states.
    """
    return metric.norm(pair.first - pair.second)


def checked_states(name: str, flow: VectorField, states: Tensor) -> Tensor:
    """States that a flow can be asked about, (batch, n).

    Raises:
        InputError: if the flow is no vector field, or the states are not finite or do not fit it.
    """
    if not isinstance(flow, VectorField):
        raise InputError(
            f"flow must be a vector field such as FiringRate().bind(problem) or NeuralFlow(module), got {flow!r}"
        )
    if checks.floating_tensor(name, states).ndim != 2:
        raise InputError(f"{name} must have shape (batch, n), got {tuple(states.shape)}")
    bound = flow.flow if isinstance(flow, DrivenFlow) else flow
    if isinstance(bound, BoundFlow):
        problem = bound.problem
        checks.last_size(name, checks.same_kind(name, states, "the problem's q", problem.q), problem.size)
        if bound is flow and problem.batch not in (1, len(states)):
            raise InputError(
                f"{name} must have as many rows as the problem has inputs, {problem.batch}, got {len(states)}; a "
                "problem of one row serves any number of states"
            )
    return checks.finite(name, states)
