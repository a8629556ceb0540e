"""The one loop: every method, splitting or ODE integrator, iterates here, row by row, until the problem is solved."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError, SolveError, Status
from contracting.problem import EquilibriumProblem
from contracting.solution import Solution as Solution
from contracting.solution import Stop as Stop
from contracting.solution import Trace as Trace

State = tuple[Tensor, ...]  # every tensor has one leading entry per row


class Iteration(ABC):
    """A method bound to one problem: pure functions over a tuple of tensors with one leading entry per row.

    Attributes:
        factor: predicted contraction factor per step, or None. For splittings, and for Euler and Heun on the
            forward–backward and Peaceman–Rachford flows, it is proved in the metric of the problem, from any start. For
            RK4, and for every integrator on the firing-rate and Hopfield flows, it bounds the linearised iteration: the
            rate close to the equilibrium.
        step_size: what the method chose or was given (α of a splitting, h of an integrator), or None where it varies.
        map_evals: applications of W (or of a resolvent of W) to the whole batch so far.
        check_every: steps between two checks that this method suggests.
        advice: why the method gave rows up, and what to do; part of the error that the loop raises.
    """

    factor: float | None = None
    step_size: float | None = None
    check_every: int = 1
    advice: str | None = None

    def __init__(self) -> None:
        self.map_evals = 0

    @abstractmethod
    def init(self, z0: Tensor) -> State:
        """The state that corresponds to z0."""

    @abstractmethod
    def step(self, state: State) -> State:
        """One iteration, or one time step."""

    @abstractmethod
    def read(self, state: State) -> Tensor:
        """The current z, shape (batch, n)."""

    def given_up(self, state: State) -> Tensor | None:
        """Rows this method cannot advance any further, (batch,), which the loop reports as STALLED; None for no row."""
        return None


class Method(ABC):
    """Settings of a solver: a frozen dataclass without tensors or counters, bound to a problem for each solve."""

    @abstractmethod
    def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        """The iteration on one problem; everything expensive is remembered on the weight of the problem.

        Args:
            problem: what to solve.
            stop: when it counts as solved, resolved for this problem.

        Raises:
            PreconditionError: if this method cannot solve this problem, before any work is done.
        """

    def solve(self, problem: EquilibriumProblem, **options: Any) -> Solution:
        """``solve(problem, self, **options)``."""
        return solve(problem, self, **options)


def solve(
    problem: EquilibriumProblem,
    method: Method,
    *,
    z0: Tensor | None = None,
    stop: Stop | None = None,
    trace: Trace | None = None,
    throw: bool = True,
) -> Solution:
    """Iterate ``method`` on ``problem`` until every row is solved or given up.

    Rows are independent: each has its own status, and a finished or failed row is frozen. The residual that decides is
    the problem's own, at the z that is returned.

    Args:
        problem: z = σ(Wz + q), rows (batch, n).
        method: a splitting method, a Newton method or an ODE integrator.
        z0: starting point, (batch, n); zeros if None.
        stop: tolerances and limits.
        trace: watches the residual of every step; changes no bit of the answer.
        throw: raise if any row fails; otherwise look at ``status``.

    Returns:
        The solution record.

    Raises:
        InputError: if z0 does not fit the problem.
        PreconditionError: if the method cannot solve this problem.
        SolveError: if a row failed and ``throw`` is set; carries advice and the partial solution.
    """
    if not isinstance(method, Method):
        raise InputError(f"solver must be a method such as PeacemanRachford(), got {method!r}")
    stop = (stop or Stop()).resolved(problem)
    watch = _Watch(trace)
    z0 = problem.zeros() if z0 is None else _starting_point(z0, problem)
    iteration = method.bind(problem, stop)
    rows = _Rows(problem, stop, iteration.init(z0), iteration)
    watch.see(0, rows)
    interval = stop.check_every or iteration.check_every
    taken = 0
    while rows.any_active and taken < stop.max_steps:
        block = min(interval, stop.max_steps - taken)
        state = rows.state
        for offset in range(1, block + 1):
            state = iteration.step(state)
            if offset < block:
                watch.peek(taken + offset, rows, state)
        taken += block
        rows.update(state, taken)
        watch.see(taken, rows)
    solution = rows.solution(watch)
    if throw and not bool(solution.converged.all()):
        raise SolveError(_failure(method, solution, iteration.advice), solution)
    return solution


class _Rows:
    """The state of every row, and the only place where a row's status changes."""

    def __init__(self, problem: EquilibriumProblem, stop: Stop, state: State, iteration: Iteration):
        self.problem, self.stop, self.iteration = problem, stop, iteration
        self.checks = 0
        self.state = state
        self.z = iteration.read(state)
        self.residual, self.scale = self.assess(self.z)
        self.best = torch.full_like(self.residual, float("inf"))
        self.best_step = torch.zeros_like(self.residual, dtype=torch.int64)
        self.steps = torch.zeros_like(self.best_step)
        self.status = torch.full_like(self.residual, Status.RUNNING, dtype=torch.int8)
        self._judge(self.residual, self.scale, 0)
        # a row that is not finite before the first step never had an answer
        lost = self.status == Status.NONFINITE
        if bool(lost.any()):
            self.z = torch.where(lost[:, None], torch.full_like(self.z, float("nan")), self.z)
        self.any_active = bool((self.status == Status.RUNNING).any())

    def assess(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Residual norm and its scale ‖σ(Wz + q)‖, each (batch,)."""
        with torch.no_grad():
            image = self.problem.map(z)
            return torch.linalg.vector_norm(z - image, dim=-1), torch.linalg.vector_norm(image, dim=-1)

    def update(self, state: State, taken: int) -> None:
        """Take over the new state of the active rows and judge them."""
        active = self.status == Status.RUNNING
        z = self.iteration.read(state)
        residual, scale = self.assess(z)
        self.checks += 1
        # a row whose new state is not finite keeps its last finite one
        keep = active & torch.isfinite(residual) & torch.isfinite(z).all(-1)
        self.steps = torch.where(active, taken, self.steps)
        if bool(keep.all()):
            self.state, self.z, self.residual, self.scale = state, z, residual, scale
        else:
            self.state = tuple(_select(keep, new, old) for new, old in zip(state, self.state, strict=True))
            self.z = _select(keep, z, self.z)
            self.residual = torch.where(keep, residual, self.residual)
            self.scale = torch.where(keep, scale, self.scale)
        self._judge(torch.where(active & ~keep, float("nan"), self.residual), self.scale, taken)
        self.any_active = bool((self.status == Status.RUNNING).any())

    def _judge(self, residual: Tensor, scale: Tensor, taken: int) -> None:
        active = self.status == Status.RUNNING
        better = residual < self.best
        self.best_step = torch.where(better, taken, self.best_step)
        self.best = torch.where(better, residual, self.best)
        code = self.status.clone()
        given_up = self.iteration.given_up(self.state)
        if given_up is not None:
            code[active & given_up] = Status.STALLED
        code[active & (taken - self.best_step >= self.stop.patience)] = Status.STALLED
        if taken >= self.stop.max_steps:
            code[active] = Status.MAX_STEPS
        code[active & (residual <= self.stop.tolerance(scale))] = Status.CONVERGED
        code[active & ~torch.isfinite(residual)] = Status.NONFINITE
        self.status = code

    def solution(self, watch: _Watch) -> Solution:
        return Solution(
            z=self.z,
            status=self.status,
            residual=self.residual,
            relative_residual=self.residual / self.scale.clamp_min(torch.finfo(self.scale.dtype).tiny),
            steps=self.steps,
            map_evals=self.iteration.map_evals + self.checks + 1,
            seconds=watch.elapsed(),
            problem=self.problem.detach(),
            trace=watch.trace,
        )


class _Watch:
    """The clock of a solve, stopped while the trace looks."""

    def __init__(self, trace: Trace | None):
        self.trace = trace
        self.started = time.perf_counter()
        if trace is not None:
            trace.start()

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def see(self, step: int, rows: _Rows) -> None:
        """Record a checked step."""
        if self.trace is not None and step % self.trace.every == 0:
            now = time.perf_counter()
            self.trace.record(step, now - self.started, rows.residual, rows.steps == step, rows.z)
            self.started += time.perf_counter() - now

    def peek(self, step: int, rows: _Rows, state: State) -> None:
        """Record a step between two checks."""
        if self.trace is not None and step % self.trace.every == 0:
            now = time.perf_counter()
            evals = rows.iteration.map_evals
            active = rows.status == Status.RUNNING
            z = _select(active, rows.iteration.read(state), rows.z)
            self.trace.record(step, now - self.started, rows.assess(z)[0], active, z)
            rows.iteration.map_evals = evals
            self.started += time.perf_counter() - now


def _select(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _starting_point(z0: Tensor, problem: EquilibriumProblem) -> Tensor:
    checks.shape("z0", checks.floating_tensor("z0", z0), (problem.batch, problem.size))
    return checks.finite("z0", checks.same_kind("z0", z0, "q", problem.q))


def _failure(method: Method, solution: Solution, advice: str | None) -> str:
    failed = torch.nonzero(~solution.converged).flatten()
    codes = Counter(Status(int(code)) for code in solution.status[failed])
    reasons = "; ".join(f"{count} {status.name} ({status.advice})" for status, count in codes.items())
    if advice is not None:
        reasons += f". {advice}"
    shown = ", ".join(str(int(row)) for row in failed[:5]) + (", …" if len(failed) > 5 else "")
    worst = float(solution.relative_residual[failed].max())
    return (
        f"{len(failed)} of {len(solution.status)} rows (rows {shown}) did not converge with {method}: {reasons}. "
        f"Worst relative residual {worst:.2e}. The partial solution is in error.solution; "
        "pass throw=False to receive it instead of this error"
    )
