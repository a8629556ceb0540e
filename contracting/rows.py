"""The rows of a solve: the state of those at work, the answers of those that are done.

Rows are strangers: each has its own status, and when the residual is looked at depends on the step count alone, never
on the other rows. A row that is done keeps the answer it had at that check; once most are done, the others move into a
smaller batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from contracting.errors import Status
from contracting.problem import EquilibriumProblem
from contracting.solution import Solution, Stop, Trace

if TYPE_CHECKING:
    from contracting.solve import Iteration, Method, State

_SMALL = 256  # rows below which a smaller batch saves nothing
_SHARE = 0.5  # of the rows at work may be running when the others leave


@dataclass
class _Answers:
    """One entry per row of the whole batch, filled in as rows finish."""

    z: Tensor
    residual: Tensor
    scale: Tensor
    status: Tensor
    steps: Tensor

    def map(self, merge: Callable[[Tensor, Tensor], Tensor], new: _Answers) -> _Answers:
        return _Answers(**{field.name: merge(getattr(self, field.name), getattr(new, field.name)) for field in _FIELDS})


_FIELDS = fields(_Answers)


def _select(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows[:, None] if new.ndim == 2 else rows, new, old)


class Rows:
    """The state of every row at work, and the only place where a row's status changes."""

    def __init__(self, problem: EquilibriumProblem, stop: Stop, method: Method, z0: Tensor | None):
        self.whole, self.problem, self.stop, self.method = problem, problem, stop, method
        self.iteration: Iteration = method.bind(problem, stop)
        self.iteration.cold_start = z0 is None
        self.state: State = self.iteration.init(problem.zeros() if z0 is None else z0)
        self.place: Tensor | None = None  # of each row at work in the whole batch; None: all are there, in order
        self.answers: _Answers | None = None
        self.checks = 0
        self.running = torch.ones(problem.batch, dtype=torch.bool, device=problem.q.device)
        self.any_running = problem.batch > 0
        self.best = problem.q.new_full((problem.batch,), float("inf"))
        self.best_step = torch.zeros_like(self.best, dtype=torch.int64)
        self.residual = self.scale = self.best * float("nan")  # never had an answer
        self.z = self.residual[:, None].expand(problem.q.shape)
        if self.iteration.check_start or stop.max_steps == 0:
            self.check(self.state, 0)

    def assess(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Residual norm and its scale ‖σ(Wz + q)‖ of the rows at work, each (rows,)."""
        with torch.no_grad():
            image = self.problem.map(z)
            scale = torch.linalg.vector_norm(image, dim=-1)
            return torch.linalg.vector_norm(z - image, dim=-1), scale

    def check(self, state: State, taken: int) -> None:
        """Take over the new state of the rows at work, judge the running ones, and let the finished ones leave."""
        z = self.iteration.read(state)
        residual, scale = self.assess(z)
        self.checks += 1
        # an iteration that blew up has an infinite residual and an infinite scale
        converged = (residual <= self.stop.tolerance(scale)) & torch.isfinite(residual)
        if self.answers is None and self.place is None and bool(converged.all()):  # all at once, as small batches do
            status = torch.full_like(residual, Status.CONVERGED, dtype=torch.int8)
            steps = torch.full_like(self.best_step, taken)
            self.state, self.any_running = state, False
            self.running = torch.zeros_like(self.running)
            self.answers = _Answers(z=z, residual=residual, scale=scale, status=status, steps=steps)
            return
        lost = ~(residual < float("inf"))
        ended = converged | lost
        stalled = self._stalled(state, residual, taken)
        if stalled is not None:
            ended |= stalled
        last = taken >= self.stop.max_steps
        running = torch.zeros_like(ended) if last else self.running & ~ended
        if last or bool((running != self.running).any()):
            code = torch.where(lost, int(Status.NONFINITE), int(Status.MAX_STEPS if last else Status.STALLED))
            self._record(lost, torch.where(converged, int(Status.CONVERGED), code), (z, residual, scale), taken)
            self.running, self.any_running = running, bool(running.any())
        self.state, self.z, self.residual, self.scale = state, z, residual, scale
        self._compact()

    def _stalled(self, state: State, residual: Tensor, taken: int) -> Tensor | None:
        better = residual < self.best
        self.best = torch.where(better, residual, self.best)
        self.best_step.masked_fill_(better, taken)
        given_up = self.iteration.given_up(state)
        if taken < self.stop.patience:  # no row can have waited so long
            return given_up
        waiting = taken - self.best_step >= self.stop.patience
        return waiting if given_up is None else waiting | given_up

    def _record(self, lost: Tensor, code: Tensor, now: tuple[Tensor, Tensor, Tensor], taken: int) -> None:
        """Overwrite the answers of the rows that were running; those that go on will be overwritten again."""
        z, residual, scale = now
        if bool(lost.any()):  # a row whose new state is not finite keeps its last finite answer
            if taken and self.checks == 1:  # the start, which was not worth a look before
                self._look_back()
            z = torch.where(lost[:, None], self.z, z)
            residual, scale = torch.where(lost, self.residual, residual), torch.where(lost, self.scale, scale)
        status, steps = code.to(torch.int8), torch.full_like(self.best_step, taken)
        new = _Answers(z=z, residual=residual, scale=scale, status=status, steps=steps)
        if self.answers is None:
            self.answers = new
        elif self.place is None:
            self.answers = self.answers.map(lambda old, entry: _select(self.running, entry, old), new)
        else:
            here = torch.nonzero(self.running).flatten()
            there = self.place[here]
            self.answers = self.answers.map(lambda old, entry: old.index_copy(0, there, entry[here]), new)

    def _look_back(self) -> None:
        """Take the start, at which the state still is, for the last answer of the rows that are finite there."""
        z = self.iteration.read(self.state)
        residual, scale = self.assess(z)
        finite = torch.isfinite(residual)
        self.z = _select(finite, z, self.z)
        self.residual, self.scale = _select(finite, residual, self.residual), _select(finite, scale, self.scale)

    def _compact(self) -> None:
        """Let the finished rows leave the batch where that pays."""
        rows = len(self.running)
        if not (self.any_running and self.iteration.separable and rows >= _SMALL):
            return
        index = torch.nonzero(self.running).flatten()
        if len(index) > _SHARE * rows:
            return
        self.place = index if self.place is None else self.place[index]
        before, self.problem = self.iteration, self.problem.rows(index)
        self.method = before.method or self.method
        self.iteration = self.method.bind(self.problem, self.stop)
        self.iteration.map_evals, self.iteration.cold_start = before.map_evals, before.cold_start
        self.state = tuple(entry[index] for entry in self.state)
        for name in ("z", "residual", "scale", "best", "best_step", "running"):
            setattr(self, name, getattr(self, name)[index])

    def view(self, step: int, state: State | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Residual, which rows were running, and z of the whole batch: at the check, or of a state after it."""
        if state is None:
            z, residual = self.z, self.residual
        else:
            evals = self.iteration.map_evals
            z = self.iteration.read(state)
            residual = self.assess(z)[0]
            self.iteration.map_evals = evals
        index = torch.nonzero(self.running).flatten()
        there = index if self.place is None else self.place[index]
        active = torch.zeros(self.whole.batch, dtype=torch.bool, device=index.device)
        active[there] = True
        if self.answers is None:
            return residual, active, z
        if state is None:
            active |= self.answers.steps == step
        whole_residual, whole_z = self.answers.residual.clone(), self.answers.z.detach().clone()
        whole_residual[there], whole_z[there] = residual[index], z.detach()[index]
        return whole_residual, active, whole_z

    def solution(self, seconds: float, trace: Trace | None) -> Solution:
        """The record of the whole batch."""
        answers = self.answers
        if answers is None:  # a batch without rows
            none = torch.zeros_like(self.best)
            answers = _Answers(z=self.z, residual=none, scale=none, status=none.to(torch.int8), steps=self.best_step)
        return Solution(
            z=answers.z,
            status=answers.status,
            residual=answers.residual,
            relative_residual=answers.residual / answers.scale.clamp_min(torch.finfo(answers.scale.dtype).tiny),
            steps=answers.steps,
            map_evals=self.iteration.map_evals + self.checks,
            seconds=seconds,
            problem=self.whole.detach(),
            trace=trace,
        )

