"""The study: the same equilibria with every solver and tolerance, measured and kept as plain numbers."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from contracting import (
    Automatic,
    DouglasRachford,
    EquilibriumProblem,
    InputError,
    Method,
    Metric,
    MissingExtraError,
    PeacemanRachford,
    PreconditionError,
    SemismoothNewton,
    Solution,
    Status,
    Stop,
    Trace,
    WeightedL2,
    checks,
    solve,
)
from contracting.display import Row, Tabular
from contracting.solvers.catalogue import ROW_LIMITS
from equilibrium import EquilibriumLayer
from equilibrium.experiments.timing import Times, in_turn, timer
from equilibrium.training.progress import progress_bar

TOLERANCES = (1e-2, 1e-4, 1e-6, 1e-8, 1e-10)

_CURVE_POINTS = 200  # A curve keeps so many points of a solve, more than one can tell apart in a figure.
_SHORTEST = 0.01  # A solver is timed for so many seconds in a round: a solve of a millisecond ten times.
_PATIENCE = 500  # A row is given up after so many steps without progress.
_REFERENCE_TOLERANCE = 1e-12  # The reference has at most this relative residual, a hundredth of the tightest tolerance.
_POLISHING_STEPS = 100  # The reference is improved by at most so many steps of a second method.


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The equilibria that every answer is compared with, found by Newton's method and certified.

    Attributes:
        relative_residual: of the worst row.
        error_bound: certified relative distance of the worst row to the true equilibrium; None without a metric.
    """

    relative_residual: float
    error_bound: float | None


@dataclass(frozen=True, kw_only=True)
class SolverRecord:
    """One solver on the problem, whatever the tolerance.

    Attributes:
        name: its key in the table.
        family: a ``Family``.
        settings: the method as Python writes it.
        linear_solves: whether every step solves a linear system per row, which ``map_evals`` does not count.
        refused: why the method cannot solve this problem, or None.
        step_size: the α or h that it chose, or None where it varies.
        factor: predicted contraction factor per step, or None. For integrators on the firing-rate and Hopfield flows it
            holds near the equilibrium, for the other methods everywhere.
        measured_factor: geometric mean of the reduction of the slowest row's residual over the last half of its steps.
    """

    name: str
    family: str
    settings: str
    linear_solves: bool
    refused: str | None
    step_size: float | None
    factor: float | None
    measured_factor: float | None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One solver at one tolerance.

    Attributes:
        solver: name of the solver.
        tolerance: relative residual asked for.
        rows: inputs solved at once.
        status: number of rows that ended in each status.
        steps_max: steps of the slowest row.
        map_evals: applications of W or of its resolvent to the whole batch.
        seconds: median wall time of a solve, without what depends on the weight alone, and without trace.
        seconds_range: of the fastest and of the slowest round.
        relative_residual: ‖z − σ(Wz + q)‖₂/‖σ(Wz + q)‖₂ of the worst row.
        distance: relative distance of the worst row to the reference equilibrium, in the metric.
        error_bound: certified bound on that distance, or None without a metric.
    """

    solver: str
    tolerance: float
    rows: int
    status: dict[str, int]
    steps_max: int
    map_evals: int
    seconds: float
    seconds_range: tuple[float, float]
    relative_residual: float | None
    distance: float | None
    error_bound: float | None

    @property
    def converged(self) -> bool:
        """Whether every row did."""
        return self.status == {Status.CONVERGED.name: self.rows}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Relative residual of the worst row along one solve, thinned to a few hundred points."""

    solver: str
    steps: tuple[int, ...]
    seconds: tuple[float, ...]
    worst: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison(Tabular):
    """Everything that ``compare`` measured, in types that JSON can say."""

    rows: int
    hidden_features: int
    activation: str
    bounds: dict[str, float] | None
    tolerances: tuple[float, ...]
    max_steps: int
    reference: Reference
    solvers: tuple[SolverRecord, ...]
    measurements: tuple[Measurement, ...]
    curves: tuple[Curve, ...]

    def shown(self) -> Sequence[Row]:
        return [
            Row("rows", self.rows, f"equilibria of {self.hidden_features} neurons, {self.activation}"),
            Row("solvers", len(self.solvers), f"{sum(s.refused is not None for s in self.solvers)} of them refused"),
            Row("tolerances", self.tolerances),
            Row("reference", self.reference.error_bound, "certified relative distance to the true equilibria"),
        ]

    def _each(self) -> Iterator[dict[str, Any]]:
        """Tightest tolerance first, and there the fastest solver that converged."""
        for m in sorted(self.measurements, key=lambda m: (m.tolerance, not m.converged, m.seconds / m.rows)):
            yield {
                "solver": m.solver,
                "family": self.solver(m.solver).family,
                "tolerance": m.tolerance,
                "converged": m.converged,
                "steps": m.steps_max,
                "maps": m.map_evals,
                "ms_per_input": 1e3 * m.seconds / m.rows,
                "fastest": 1e3 * m.seconds_range[0] / m.rows,
                "slowest": 1e3 * m.seconds_range[1] / m.rows,
                "residual": m.relative_residual,
                "distance": m.distance,
            }

    @property
    def tightest(self) -> float:
        """The smallest tolerance."""
        return min(self.tolerances)

    def solver(self, name: str) -> SolverRecord:
        """The record of one solver."""
        return next(record for record in self.solvers if record.name == name)

    def of(self, name: str) -> tuple[Measurement, ...]:
        """The measurements of one solver, from the loosest to the tightest tolerance."""
        mine = [m for m in self.measurements if m.solver == name]
        return tuple(sorted(mine, key=lambda m: -m.tolerance))


def compare(
    layer: EquilibriumLayer,
    inputs: Tensor,
    solvers: Mapping[str, Method],
    tolerances: Sequence[float] = TOLERANCES,
    *,
    row_limits: Mapping[str, int] = ROW_LIMITS,
    repeats: int = 5,
    seconds_per_cell: float = 0.2,
    max_steps: int = 5_000,
    progress: bool = False,
) -> Comparison:
    """Solve the same rows with every solver at every tolerance, from z = 0.

    Times are medians of several rounds in which all solvers are timed in turn, each after a warm-up, on the threads
    that torch is set to, with what depends on the weight alone (bounds, steps, resolvent) computed before. They are
    taken without a trace, and told with the fastest and the slowest round.

    Args:
        layer: in float64.
        inputs: (rows, in), float64.
        solvers: methods by name.
        tolerances: relative residuals to ask for.
        row_limits: how many of the rows a solver gets, by name, where it gets fewer than all.
        repeats: rounds, in each of which every solver is timed.
        seconds_per_cell: a solver that has taken so long at a tolerance leaves after the third round; one that needs
            longer for a single solve is timed once.
        max_steps: steps after which a row is given up.
        progress: show a bar where standard error is a terminal.

    Returns:
        The measurements; a solver that refuses the problem appears with its reason.

    Raises:
        InputError: on wrong settings or another dtype than float64.
        SolveError: if the reference equilibrium is not found.
    """
    if not solvers:
        raise InputError("solvers must name at least one method")
    if not tolerances:
        raise InputError("tolerances must have at least one entry")
    for tolerance in tolerances:
        checks.number("tolerance", tolerance, low=0, high=1, low_open=True, high_open=True)
    checks.whole_number("repeats", repeats)
    checks.whole_number("max_steps", max_steps)
    checks.number("seconds_per_cell", seconds_per_cell, low=0)
    if checks.floating_tensor("inputs", inputs).dtype != torch.float64:
        raise InputError(f"inputs and layer must be float64, got {inputs.dtype}; call .double() on both")
    checks.whole_number("the number of rows", len(inputs))
    timing = _Timing(repeats, seconds_per_cell, max_steps)
    with torch.no_grad():
        everything = _Case(layer, inputs, timing)
        records, measurements, curves = [], [], []
        cases = {name: everything.first(row_limits.get(name, len(inputs))) for name in solvers}
        bound = {name: cases[name].bind(name, method) for name, method in solvers.items()}
        able = {name: method for name, method in solvers.items() if bound[name].refused is None}
        with progress_bar(len(able) * (len(tolerances) + 1), "solving", show=progress) as bar:
            for tolerance in sorted(tolerances, reverse=True):
                bar.set_postfix_str(f"to {tolerance:g}")
                measurements += _measured(cases, able, tolerance, timing)
                bar.update(len(able))
            for name, record in bound.items():
                if name in able:
                    curve, measured = cases[name].watch(name, able[name], min(tolerances))
                    curves.append(curve)
                    # a step of torchdiffeq is a time interval of any length
                    if record.family != "torchdiffeq":
                        record = replace(record, measured_factor=measured)
                    bar.update()
                records.append(record)
    operator, reference = everything.problem.operator, everything.reference
    return Comparison(
        rows=len(inputs),
        hidden_features=layer.hidden_features,
        activation=repr(layer.activation),
        bounds=None if operator is None else asdict(operator.bounds) | {"condition": operator.bounds.condition},
        tolerances=tuple(sorted(map(float, tolerances), reverse=True)),
        max_steps=max_steps,
        reference=Reference(
            relative_residual=float(reference.relative_residual.max()),
            error_bound=everything.worst(reference.error_bound),
        ),
        solvers=tuple(records),
        measurements=tuple(measurements),
        curves=tuple(curves),
    )


@dataclass(frozen=True)
class _Timing:
    repeats: int
    seconds: float
    max_steps: int

    def stop(self, tolerance: float) -> Stop:
        return Stop(rtol=tolerance, max_steps=self.max_steps, patience=min(_PATIENCE, max(1, self.max_steps)))


class _Case:
    """One layer, some inputs and their reference equilibria."""

    def __init__(self, layer: EquilibriumLayer, inputs: Tensor, timing: _Timing):
        self.layer, self.inputs, self.timing = layer, inputs, timing
        self.problem = layer.problem(inputs).detach()
        certified = None if self.problem.operator is None else self.problem.metric
        self.metric: Metric = certified or WeightedL2.identity(self.problem.size, dtype=inputs.dtype)
        self.reference = _reference_equilibria(self.problem)
        self.z = self.reference.z

    def first(self, rows: int) -> _Case:
        """The case of the first rows, on the same problem as far as the weight is concerned."""
        part = copy.copy(self)
        part.inputs, part.z = self.inputs[:rows], self.z[:rows]
        part.problem = self.problem.rows(torch.arange(len(part.inputs)))
        return part

    def worst(self, rows: Tensor | None) -> float | None:
        """The largest of some lengths in the metric, relative to the length of the equilibrium."""
        if rows is None:
            return None
        return _finite(float((rows / self.metric.norm(self.z).clamp_min(torch.finfo(rows.dtype).tiny)).max()))

    def bind(self, name: str, method: Method) -> SolverRecord:
        """What the method says of the problem before it starts, or why it refuses."""
        step_size = factor = refused = None
        try:
            iteration = method.bind(self.problem, self.timing.stop(1e-6).resolved(self.problem))
            step_size, factor = iteration.step_size, iteration.factor
        except (PreconditionError, MissingExtraError) as error:
            refused = str(error)
        return SolverRecord(
            name=name,
            family=method.family,
            settings=repr(method),
            linear_solves=method.solves_systems,
            refused=refused,
            step_size=step_size,
            factor=factor,
            measured_factor=None,
        )

    def solved(self, method: Method, tolerance: float) -> Solution:
        """What is timed."""
        return solve(self.problem, method, stop=self.timing.stop(tolerance), throw=False)

    def measurement(self, name: str, tolerance: float, solution: Solution, times: Times) -> Measurement:
        """One solver at one tolerance."""
        status = Counter(Status(int(code)).name for code in solution.status)
        return Measurement(
            solver=name,
            tolerance=float(tolerance),
            rows=len(solution.status),
            status=dict(sorted(status.items())),
            steps_max=int(solution.steps.max()),
            map_evals=solution.map_evals,
            seconds=times.wall,
            seconds_range=(min(times.walls), max(times.walls)),
            relative_residual=_finite(float(solution.relative_residual.max())),
            distance=self.worst(self.metric.norm(solution.z - self.z)),
            error_bound=self.worst(solution.error_bound),
        )

    def watch(self, name: str, method: Method, tolerance: float) -> tuple[Curve, float | None]:
        """The residual along a solve, and the factor by which a step reduces it towards the end."""
        trace = Trace()
        solution = solve(self.problem, method, stop=self.timing.stop(tolerance), trace=trace, throw=False)
        scale = torch.linalg.vector_norm(self.z, dim=-1).clamp_min(torch.finfo(self.z.dtype).tiny)
        relative = trace.residual / scale
        worst = relative.amax(1)
        kept = torch.linspace(0, len(trace) - 1, min(len(trace), _CURVE_POINTS)).round().long()
        curve = Curve(
            solver=name,
            steps=tuple(trace.steps[kept].tolist()),
            seconds=tuple(trace.seconds[kept].tolist()),
            worst=tuple(_finite(value) for value in worst[kept].tolist()),
        )
        exact = _in_one_precision(method, self.problem)
        if exact != method:  # float32 steps end in rounding, and say nothing of the factor
            trace = Trace()
            solution = solve(self.problem, exact, stop=self.timing.stop(tolerance), trace=trace, throw=False)
            relative = trace.residual / scale
        # of the rows that were at work to the last check, the one that is farthest from done
        slowest = torch.where(solution.steps == solution.steps.max(), solution.relative_residual, -1.0).argmax()
        return curve, _late_factor(trace.steps, relative[:, slowest])


def _measured(
    cases: Mapping[str, _Case], solvers: Mapping[str, Method], tolerance: float, timing: _Timing
) -> list[Measurement]:
    """Every solver at one tolerance, timed in turn."""
    solutions = {name: cases[name].solved(method, tolerance) for name, method in solvers.items()}
    runs = {name: timer(partial(cases[name].solved, method, tolerance)) for name, method in solvers.items()}
    times = in_turn(runs, rounds=timing.repeats, shortest=_SHORTEST, budget=timing.seconds) if runs else {}
    return [cases[name].measurement(name, tolerance, solutions[name], times[name]) for name in solvers]


def _in_one_precision(method: Method, problem: EquilibriumProblem) -> Method:
    if isinstance(method, Automatic):
        method = method.choose(problem).method
    if isinstance(method, PeacemanRachford | DouglasRachford):
        return replace(method, mixed_precision=False)
    return method


def _reference_equilibria(problem: EquilibriumProblem) -> Solution:
    """Equilibria to rounding error: Newton's method, then Peaceman–Rachford steps until rounding is all that is left.

    The second method matters: a reference must not be the very answer of one of the solvers that it judges.
    """
    found = solve(problem, SemismoothNewton(), stop=Stop(rtol=_REFERENCE_TOLERANCE))
    if problem.operator is not None:
        further = Stop(rtol=0.0, atol=0.0, max_steps=_POLISHING_STEPS)
        polished = solve(problem, PeacemanRachford(), z0=found.z, stop=further, throw=False)
        if float(polished.relative_residual.max()) <= _REFERENCE_TOLERANCE:
            found = polished
    return found


def _late_factor(steps: Tensor, residual: Tensor) -> float | None:
    half = len(steps) // 2
    if len(steps) < 4 or not float(residual[half]) > 0 or not float(residual[-1]) > 0:
        return None
    return _finite(float(residual[-1] / residual[half]) ** (1 / int(steps[-1] - steps[half])))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
