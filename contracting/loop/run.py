"""The one loop: every method, splitting or ODE integrator, iterates here, row by row, until the problem is solved."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError, Status
from contracting.loop.method import Method, State, checked_method
from contracting.loop.records import Solution, SolveError, Stop, Trace
from contracting.loop.rows import Rows
from contracting.maps.counting import Count, counting, report
from contracting.precision import full_precision, under_autocast
from contracting.problem import Problem


def solve(
    problem: Problem,
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
        problem: z = σ(Wz + q), or any other problem, rows (batch, n).
        method: a splitting method, which needs W, a Newton method or an ODE integrator.
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
    checked_method("solver", method)
    if not isinstance(problem, Problem):
        raise InputError(
            f"problem must be an EquilibriumProblem, such as layer.problem(x), got {type(problem).__name__}; "
            "for a field f(s) of your own use steady_state(f, s0)"
        )
    if not (stop is None or isinstance(stop, Stop)):
        raise InputError(f"stop must be a Stop such as Stop(rtol=1e-6), or None, got {stop!r}")
    if not (trace is None or isinstance(trace, Trace)):
        raise InputError(f"trace must be a Trace, which is read after the solve: trace=Trace(), got {trace!r}")
    if under_autocast(problem.template.device.type):
        with full_precision(problem.template):
            return solve(problem, method, z0=z0, stop=stop, trace=trace, throw=throw)
    watch = _Watch(trace)
    stop = (stop or Stop()).resolved(problem)
    count = Count()
    with counting(count):
        rows = _iterated(problem, method, z0, stop, watch)
    report(count.rows)  # to the solve that this one may be part of
    solution = rows.solution(count, watch.elapsed(), trace)
    if rows.solved:
        return solution
    if problem.start_anew():
        solution = _solved_anew(solution, problem, method, z0, stop)
    if throw and not bool(solution.converged.all()):
        raise SolveError(failure(method, solution, rows.iteration.advice()), solution)
    return solution


def _iterated(
    problem: Problem, method: Method, z0: Tensor | None, stop: Stop, watch: _Watch
) -> Rows:
    rows = Rows(problem, stop, method, None if z0 is None else _starting_point(z0, problem))
    watch.see(0, rows, None if rows.checks else rows.state)
    taken = 0
    while rows.any_running and taken < stop.max_steps:
        state = rows.state
        block = rows.steps_to_next_check(taken)
        if watch.trace is None:
            state = rows.iteration.advance(state, taken, block)
        else:
            for step in range(taken, taken + block):
                state = rows.iteration.advance(state, step, 1)
                if step + 1 < taken + block:
                    watch.see(step + 1, rows, state)
        taken += block
        rows.check(state, taken)
        watch.see(taken, rows)
    return rows


def _solved_anew(
    first: Solution, problem: Problem, method: Method, z0: Tensor | None, stop: Stop
) -> Solution:
    """The solution with another attempt at the rows that failed by a guess from earlier weights; not traced again."""
    failed = torch.nonzero(~first.converged & torch.isfinite(problem.template.detach()).all(-1)).flatten()
    if not len(failed):
        return first
    second = solve(
        problem.rows(failed), method, z0=None if z0 is None else z0[failed], stop=stop, throw=False
    )
    names = ("z", "status", "residual", "relative_residual")
    rows = {name: getattr(first, name).index_copy(0, failed, getattr(second, name)) for name in names}
    return replace(
        first,
        **rows,
        steps=first.steps.index_add(0, failed, second.steps),
        map_evals=first.map_evals + math.ceil(second.map_evals * len(failed) / problem.batch),
        seconds=first.seconds + second.seconds,
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


def _starting_point(z0: Tensor, problem: Problem) -> Tensor:
    checks.shape("z0", checks.floating_tensor("z0", z0), (problem.batch, problem.size))
    return checks.finite("z0", checks.same_kind("z0", z0, "the problem", problem.template))


def failure(method: Method, solution: Solution, advice: str | None = None) -> str:
    """What a ``SolveError`` says: which rows failed how, and what to try."""
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
        "solve(…, throw=False) returns it instead, and a layer does with such rows what its failed_rows says"
    )
