"""The rows of a solve: the state of those at work, the answers of those that are done.

Rows are strangers: each has its own status, and when the residual is looked at depends on the step count alone, never
on the other rows. A row that is done keeps the answer it had at that check; once most are done, the others move into a
smaller batch. The books are kept on the host, in numpy: two numbers per row come over at every check.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracting.errors import Status
from contracting.loop.method import Iteration, Method, State, rows_of
from contracting.loop.records import Books, Solution, Stop, Trace
from contracting.maps.counting import Count, counting
from contracting.memory import in_no_graph
from contracting.metrics import euclidean
from contracting.problem import Problem

_SMALL = 20_000  # entries of a state below which a smaller batch saves nothing
_SHARE = 0.5  # of the rows at work may be running when the others leave
_GROWN = 1e3  # times its smallest value so far, a residual is not one that rounding keeps from falling
_CONVERGED = int(Status.CONVERGED)  # an enumerator takes numpy ten times as long

_EVERY = np.logical_and.reduce  # a third of the time of the method ``all``
_NONE: NDArray[Any] = np.zeros(0, dtype=np.int64)

Flags = NDArray[np.bool_]
Numbers = NDArray[Any]


@dataclass
class _Answers:
    """One entry per row of the whole batch, written when the row finishes; only z is on the device."""

    z: Tensor
    residual: Numbers
    scale: Numbers
    status: Numbers | int  # one number where it is that of every row, and nothing is written any more
    steps: Numbers | int

    def write(self, there: Numbers, here: Numbers, new: _Answers) -> None:
        """Rows ``here`` of ``new`` become the rows ``there`` of the whole batch."""
        to, of = (torch.from_numpy(rows).to(self.z.device) for rows in (there, here))
        self.z = self.z.index_copy(0, to, new.z[of])  # not in place: it may be somebody's state, or in a graph
        for name in ("residual", "scale", "status", "steps"):
            getattr(self, name)[there] = getattr(new, name)[here]


class Rows:
    """The state of every row at work, and the only place where a row's status changes."""

    def __init__(self, problem: Problem, stop: Stop, method: Method, z0: Tensor | None):
        self.whole, self.problem, self.stop = problem, problem, stop
        self._take(method.chosen(problem, stop))  # once: for fewer rows it might choose one with other states
        cold = self.iteration.cold() if z0 is None else None
        self.state: State = cold or (_expanded(problem, 0.0) if z0 is None else z0,)
        self.place: Numbers | None = None  # of each row at work in the whole batch; None: all are there, in order
        self.answers: _Answers | None = None
        self.checks, template = 0, problem.template
        self.device, self.least = template.device, _least(template.dtype)
        self.any_running = template.shape[0] > 0
        self.best: Numbers | None = None  # smallest residual so far, and when that was; from the first look that fails
        self.best_step = _NONE
        self.z: Tensor | None = None  # no answer yet
        self.due: Numbers | None = None  # the step before which a row of a given start is not judged
        if cold is None:
            self.check(self.state, 0, start=True)
        elif stop.max_steps == 0:
            self.check(self.state, 0)

    # What most solves never ask for, as all their rows are solved at the first look, is made when it is asked for.
    @cached_property
    def running(self) -> Flags:
        """Which rows at work are; all or none, until some end before the others."""
        return np.full(self.problem.batch, self.any_running)

    @cached_property
    def residual(self) -> Numbers:
        """At the last check, (rows,); not a number where a row never had an answer."""
        return np.full(self.problem.batch, np.nan)

    @cached_property
    def scale(self) -> Numbers:
        """What the residual is compared with, (rows,)."""
        return np.full(self.problem.batch, np.nan)

    def _take(self, method: Method) -> None:
        """Go on with a method, bound to the problem of the rows at work."""
        self.method, self.switch = method, method.switch
        with counting(None):  # what depends on the weights alone is no part of the iteration
            self.iteration: Iteration = method.bind(self.problem, self.stop)

    def steps_to_next_check(self, taken: int) -> int:
        """How many steps follow those taken before the residual is looked at again."""
        steps = self.stop.check_every or self.iteration.check_after(self.state, taken)
        if self.due is not None:
            steps = int(self.due[self.running].min()) - taken
        return min(steps, self.stop.max_steps - taken, self.switch[0] - taken if self.switch else steps)

    def assess(self, z: Tensor) -> tuple[Numbers, Tensor, bool]:
        """Residual norm and its scale of the rows at work, (2, rows), what was computed, such as Wz + q, and finite."""
        with in_no_graph():
            found, error, computed = self.problem.look(z, self.stop.size_of)
            sizes: Numbers = found.cpu().numpy()
            finite = bool(np.maximum.reduce(sizes, None, initial=0.0) < np.inf)
            # a metric takes care of the range by itself
            if self.stop.norm is None and not (finite and np.minimum.reduce(sizes, None, initial=np.inf) > self.least):
                self._with_care(sizes, error, computed)
                finite = False
        return sizes, computed, finite

    def _with_care(self, sizes: Numbers, error: Tensor, computed: Tensor) -> None:
        """Residual norm and scale once more, in place, of rows where squares may have left the range of the dtype."""
        outside = (sizes <= self.least) | (sizes == np.inf)
        index = np.flatnonzero(outside.any(0))
        if len(index):
            rows = self._on_device(index)
            compared = self.problem.compared(computed, rows)
            careful = torch.stack((euclidean(error[rows]), euclidean(compared))).cpu().numpy()
            sizes[:, index] = np.where(outside[:, index], careful, sizes[:, index])

    def check(self, state: State, taken: int, *, start: bool = False) -> None:
        """Take over the new state of the rows at work, judge the running ones, and let the finished ones leave.

        At the start, z0 itself stands for the state: what the solution already is needs none.
        """
        z = state[0] if start else self.iteration.read(state)
        (residual, scale), computed, all_finite = self.assess(z)
        self.checks += 1
        tolerance = self.stop.tolerance(scale)
        converged = residual <= tolerance
        if not all_finite:
            # of an iteration that blows up either may overflow first, and an infinite scale tolerates every residual
            finite = (residual < np.inf) & (scale < np.inf)
            converged &= finite
        if self.due is not None and taken < self.stop.max_steps:
            converged &= self.due <= taken
        if self.answers is None and _EVERY(converged):  # as mostly at the first look: nothing else is to be found out
            self._finish(z, residual, scale, taken)
            self.state, self.z, self.residual, self.scale = state, z, residual, scale
            return
        lost = np.zeros_like(converged) if all_finite else ~finite
        ended = converged | lost
        stalled = self._stalled(None if start else self.iteration.given_up(state), residual, taken)
        if stalled is not None:
            ended |= stalled
        last = taken >= self.stop.max_steps
        leaving = self.running if last else self.running & ended
        if leaving.any():
            code = np.where(lost, Status.NONFINITE, Status.MAX_STEPS if last else Status.STALLED)
            if self.best is not None:
                code = np.where(~lost & (residual > _GROWN * self.best), Status.DIVERGED, code)
            status = np.where(converged, Status.CONVERGED, code).astype(np.int8)
            self._record(leaving, lost, status, (z, residual, scale), taken)
            self.running = self.running & ~leaving
            self.any_running = bool(self.running.any())
        self.state, self.z, self.residual, self.scale = state, z, residual, scale
        if self.any_running:
            if self.due is not None:  # who was judged in vain is judged again after the usual number of steps
                later = taken + self.iteration.check_after(self.state, taken)
                self.due = np.where(self.due <= taken, later, self.due)
            elif start and not self.stop.check_every:
                with np.errstate(all="ignore"):  # of rows that are lost
                    self.due = self.iteration.planned(tolerance / residual)
            staying = self._compact()
            if staying is not None:
                computed = computed[staying]
            if self.switch and taken >= self.switch[0]:
                self._take(self.switch[1])
                self.state, self.due = self.iteration.warm(self._last_z(), computed), None
            elif start:
                self.state = self.iteration.warm(self.state[0], computed)
            else:
                self.state = self.iteration.resume(self.state, computed, taken)

    def _finish(self, z: Tensor, residual: Numbers, scale: Numbers, taken: int) -> None:
        """All rows have converged, and none had before."""
        self.answers = _Answers(z=z, residual=residual, scale=scale, status=_CONVERGED, steps=taken)
        self.any_running, self.solved = False, True
        self.__dict__.pop("running", None)

    def _stalled(self, given_up: Tensor | None, residual: Numbers, taken: int) -> Flags | None:
        if self.best is None:
            self.best = np.fmin(residual, np.inf, dtype=np.float64)
            self.best_step = np.full(len(residual), taken)
        else:
            better = residual < self.best
            self.best = np.where(better, residual, self.best)
            self.best_step[better] = taken
        rows: Flags | None = None if given_up is None else given_up.cpu().numpy()
        if taken < self.stop.patience:  # no row can have waited so long
            return rows
        waiting: Flags = taken - self.best_step >= self.stop.patience
        return waiting if rows is None else waiting | rows

    def _record(
        self, leaving: Flags, lost: Flags, status: Numbers, now: tuple[Tensor, Numbers, Numbers], taken: int
    ) -> None:
        """Write down the answers of the rows that leave."""
        z, residual, scale = now
        if lost.any():  # a row whose new state is not finite keeps its last finite answer
            if taken and self.checks == 1:  # the start, which was not worth a look before
                self._look_back()
            z = torch.where(self._on_device(lost)[:, None], self._last_z(), z)
            residual, scale = np.where(lost, self.residual, residual), np.where(lost, self.scale, scale)
        new = _Answers(z=z, residual=residual, scale=scale, status=status, steps=np.full(len(status), taken))
        if self.answers is None:  # the others will be overwritten
            new.residual, new.scale = residual.copy(), scale.copy()
            self.answers = new
            return
        here = np.flatnonzero(leaving)
        self.answers.write(here if self.place is None else self.place[here], here, new)

    def _last_z(self) -> Tensor:
        return _expanded(self.problem, math.nan) if self.z is None else self.z

    def _look_back(self) -> None:
        """Take the start, at which the state still is, for the last answer of the rows that are finite there."""
        z = self.iteration.read(self.state)
        residual, scale = self.assess(z)[0]
        finite = np.isfinite(residual) & np.isfinite(scale)
        self.z = torch.where(self._on_device(finite)[:, None], z, self._last_z())
        self.residual, self.scale = np.where(finite, residual, np.nan), np.where(finite, scale, np.nan)

    def _compact(self) -> Tensor | None:
        """Let the finished rows leave the batch where that pays; the rows that stay, or None for all."""
        rows = len(self.running)
        if not (self.problem.separable and self.iteration.separable and rows * self.problem.size >= _SMALL):
            return None
        index = np.flatnonzero(self.running)
        if len(index) > _SHARE * rows:
            return None
        self.place = index if self.place is None else self.place[index]
        on_device = self._on_device(index)
        self.problem = self.problem.rows(on_device)
        self._take(self.method)
        self.state, self.z = rows_of(self.state, on_device), self._last_z()[on_device]
        for name in ("residual", "scale", "best", "best_step", "running", "due"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[index])
        return on_device

    def _on_device(self, entries: Numbers) -> Tensor:
        return torch.from_numpy(entries).to(self.device)

    def view(self, step: int, state: State | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Residual, which rows were running, and z of the whole batch: at the check, or of a state after it."""
        if state is None:
            z, residual = self._last_z(), self.residual
        else:
            with counting(None):
                z = self.iteration.read(state)
                residual = self.assess(z)[0][0]
        here = np.flatnonzero(self.running)
        there = here if self.place is None else self.place[here]
        active = np.zeros(self.whole.batch, dtype=np.bool_)
        active[there] = True
        if self.answers is None:
            return self._on_device(residual), self._on_device(active), z
        if state is None:
            active |= self.answers.steps == step
        whole = self.answers.residual.copy()
        whole[there] = residual[here]
        whole_z = self.answers.z.detach().index_copy(0, self._on_device(there), z.detach()[self._on_device(here)])
        return self._on_device(whole), self._on_device(active), whole_z

    @cached_property
    def solved(self) -> bool:
        """Whether every row of the whole batch has converged, once all have ended."""
        return self.answers is None or bool(np.all(self.answers.status == _CONVERGED))

    def solution(self, count: Count, seconds: float, trace: Trace | None) -> Solution:
        """The record of the whole batch."""
        answers = self.answers
        if answers is None:  # a batch without rows
            none, z = np.zeros(0), self._last_z()
            answers = _Answers(z=z, residual=none, scale=none, status=_CONVERGED, steps=0)
        return Solution.of_books(
            Books(answers.status, answers.residual, answers.scale, answers.steps, answers.z.dtype, self.device),
            z=answers.z,
            map_evals=math.ceil(count.rows / max(1, self.whole.batch)),
            seconds=seconds,
            problem=self.whole.detach(),
            trace=trace,
        )


@functools.lru_cache
def _least(dtype: torch.dtype) -> float:
    """A norm below may be that of entries whose squares are too small for the dtype."""
    kind = torch.finfo(dtype)
    return math.sqrt(kind.tiny / kind.eps)


def _expanded(problem: Problem, value: float) -> Tensor:
    """A constant z for every row, without the memory."""
    return problem.template.new_full((1, 1), value).expand(problem.template.shape)
