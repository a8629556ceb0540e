"""The one loop: every method, splitting or ODE integrator, iterates here, row by row, until the problem is solved."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError, PreconditionError, SolveError, Status
from contracting.memory import Key, plain
from contracting.problem import EquilibriumProblem, checked_problem
from contracting.rows import Rows
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
        method: what to bind to the problem of some rows, where that is not the method that was bound.
        separable: whether the iteration on some rows is this method bound to the problem of those rows.
        check_start: whether the residual is worth a look before the first step.
        cold_start: whether z0 = 0 because nobody knew better; set by the loop.
    """

    factor: float | None = None
    step_size: float | None = None
    check_every: int = 1
    advice: str | None = None
    method: Method | None = None
    separable: bool = True
    check_start: bool = True
    cold_start: bool = False

    def __init__(self) -> None:
        self.map_evals = 0

    @abstractmethod
    def init(self, z0: Tensor) -> State:
        """The state that corresponds to z0."""

    @abstractmethod
    def step(self, state: State) -> State:
        """One iteration, or one time step."""

    def advance(self, state: State, taken: int, steps: int) -> State:
        """``steps`` iterations after the first ``taken``; a method may fuse them."""
        for _ in range(steps):
            state = self.step(state)
        return state

    def check_after(self, taken: int) -> int:
        """How many steps after ``taken`` the residual is looked at again; may depend on nothing else of the run."""
        return self.check_every

    def resume(self, state: State, preactivation: Tensor, taken: int) -> State:
        """The state after a check, which has computed Wz + q at the z of this state; a method may make use of it."""
        return state

    def on(self, problem: EquilibriumProblem) -> Iteration | None:
        """This iteration as it is on other rows of the same weights, or None where it has to be bound anew."""
        return None

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

    def bound(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        """``bind``, or what it made earlier for as many rows of weights that stay, where ``Iteration.on`` moves that.

        Only settings that are numbers, words and frozen dataclasses of such are recognised; others are bound each time.
        """
        linear, activation = problem.linear, problem.activation
        if linear.changing or not (plain(self) and plain(activation)):
            return self.bind(problem, stop)

        def without_rows() -> Iteration | None:  # so that what is remembered keeps no batch alive
            return self.bind(problem, stop).on(replace(problem, q=problem.q.new_empty(0, problem.size)))

        made = linear.remember("bound", Key((self, stop, activation, problem.batch), problem.metric), without_rows)
        return (None if made is None else made.on(problem)) or self.bind(problem, stop)

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

    Rows are independent: each has its own status, and a finished or failed row keeps the answer it had. The residual
    that decides is the problem's own, at the z that is returned.

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
        InputError: if an argument is of a wrong kind, or z0 does not fit the problem.
        PreconditionError: if the method cannot solve this problem.
        SolveError: if a row failed and ``throw`` is set; carries advice and the partial solution.
    """
    if not isinstance(method, Method):
        raise InputError(f"solver must be a method such as PeacemanRachford(), got {method!r}")
    checked_problem(problem)
    if not (stop is None or isinstance(stop, Stop)):
        raise InputError(f"stop must be a Stop such as Stop(rtol=1e-6), or None, got {stop!r}")
    if not (trace is None or isinstance(trace, Trace)):
        raise InputError(f"trace must be a Trace, which is read after the solve: trace=Trace(), got {trace!r}")
    stop = (stop or Stop()).resolved(problem)
    watch = _Watch(trace)
    rows = Rows(problem, stop, method, None if z0 is None else _starting_point(z0, problem))
    watch.see(0, rows, None if rows.checks else rows.state)
    taken = 0
    while rows.any_running and taken < stop.max_steps:
        block = min(stop.check_every or rows.iteration.check_after(taken), stop.max_steps - taken)
        state = rows.state
        if trace is None:
            state = rows.iteration.advance(state, taken, block)
        else:
            for step in range(taken, taken + block):
                state = rows.iteration.advance(state, step, 1)
                if step + 1 < taken + block:
                    watch.see(step + 1, rows, state)
        taken += block
        rows.check(state, taken)
        watch.see(taken, rows)
    solution = rows.solution(watch.elapsed(), trace)
    if throw and not rows.solved:
        raise SolveError(_failure(method, solution, rows.iteration.advice), solution)
    return solution


def refuse_graph(problem: EquilibriumProblem, method: str) -> None:
    """Refuse a problem whose graph would have to lead through the steps of a method that cannot be in one.

    Raises:
        PreconditionError: if a graph is being recorded and the problem is part of it.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in problem.tensors()):
        raise PreconditionError(
            f"{method} cannot be differentiated through: use the implicit gradient, backward=Implicit(), or solve "
            "under torch.no_grad()"
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

    def see(self, step: int, rows: Rows, state: State | None = None) -> None:
        """Record a checked step, or the state between two checks."""
        if self.trace is not None and step % self.trace.every == 0:
            now = time.perf_counter()
            residual, active, z = rows.view(step, state)
            self.trace.record(step, now - self.started, residual, active, z)
            self.started += time.perf_counter() - now


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
