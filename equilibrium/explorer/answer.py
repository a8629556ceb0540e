"""What the page shows, as numbers: first what a slider is answered with at once, then what takes about a second."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracting import (
    BoundFlow,
    Certificate,
    ContractingError,
    EquilibriumProblem,
    FixedStep,
    SemismoothNewton,
    SolveError,
    Status,
    Stop,
    Trace,
    UpperBound,
    default_solvers,
    simulate,
    solve,
)
from contracting.certificates import (
    ParabolaTest,
    RateFinder,
    SectorInequality,
    VertexInequalities,
    abscissa_bound,
    applicable,
    system_of,
    upper_bound,
)
from contracting.certificates.multipliers import scaled
from contracting.certificates.numerical_range import boundary
from contracting.certificates.systems import System, WeightSystem
from contracting.certificates.views import slopes_view
from contracting.display import Displayed
from contracting.metrics import FullP
from contracting.simulation.balls import unit_sphere
from equilibrium.explorer.setting import Setting

AT_ONCE = ("PeacemanRachford", "ExplicitEuler", "DormandPrince")
"""Solvers that are run at once: one that splits and two that integrate an ODE take 70 ms of the 130 of an answer."""

_TAKES_A_PROGRAM = (VertexInequalities, SectorInequality)  # Semidefinite programs take up to a second for five units.
_PROGRAMS = 5  # Semidefinite programs are solved for so many units: ten take minutes.
_STOP = Stop(rtol=1e-8, atol=1e-14, max_steps=200, patience=200)
_POINTS = 48  # So many states on the sphere of the ball are followed.
_MOMENTS = 81  # The flow is simulated at so many times.
_LONGEST = 0.25  # The longest step of the simulation, in time constants of a flow of speed one: RK4 errs by 1e-5.


@dataclass(frozen=True, kw_only=True, repr=False)
class Run(Displayed):
    """One solver on the problem.

    Attributes:
        name: as in ``default_solvers``.
        family: of the method.
        refused: why it does not solve such a problem, or None.
        status: how it ended.
        steps: of each point of the curve.
        residual: ‖z − σ(Wz + q)‖₂/‖z*‖₂ there.
        map_evals: applications of W or a map made from it.
        seconds: wall time, the binding included.
    """

    name: str
    family: str
    refused: str | None = None
    status: str = ""
    steps: tuple[int, ...] = ()
    residual: tuple[float, ...] = ()
    map_evals: int = 0
    seconds: float = math.nan


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Motion(Displayed):
    """What was simulated, and what is proved of it.

    Attributes:
        times: (T,).
        pair: two trajectories, (T, 2, n).
        apart: their distance in the norm of the certificate, (T,), or the Euclidean one without a certificate.
        centre: of the ball, (T, n).
        sphere: the image of its surface, (T, points, n).
        radius: the radius that the certificate proves, (T,); None without one.
        certificate: what is proved.
    """

    times: Tensor
    pair: Tensor
    apart: Tensor
    centre: Tensor
    sphere: Tensor
    radius: Tensor | None
    certificate: Certificate | None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Answer(Displayed):
    """Everything about one setting that is known at once.

    Attributes:
        setting: what was asked.
        problem: z = σ(Wz + q).
        flow: on the problem.
        equilibrium: z*, (n,); NaN where none was found.
        certificates: those that hold, the largest rate first.
        refusals: why the others do not, by the name of the method.
        bound: what no certificate may exceed: at once for constant slopes, later for slopes that switch as well.
        motion: two trajectories and a ball, beside the best certificate.
        ranges: numerical ranges by name, complex, of Q^½WQ^−½ for the Q that it names.
        parabola: the rate whose parabola holds the second range; None where no parabola is proved.
        runs: the solvers of ``AT_ONCE``.
        seconds: what all of it took.
    """

    setting: Setting
    problem: EquilibriumProblem
    flow: BoundFlow
    equilibrium: Tensor
    certificates: tuple[Certificate, ...]
    refusals: Mapping[str, str]
    bound: UpperBound
    motion: Motion
    ranges: Mapping[str, Tensor]
    parabola: float | None
    runs: tuple[Run, ...]
    seconds: float

@torch.no_grad()
def answer(setting: Setting) -> Answer:
    """Everything but semidefinite programs and the rest of the solvers."""
    started = time.perf_counter()
    problem = setting.problem()
    flow = setting.bound(problem)
    system, cheap = system_of(flow), []
    for finder in applicable(system):
        able = None if isinstance(finder, _TAKES_A_PROGRAM) else finder.affordable(system)
        if able is not None:
            cheap.append(able)
    proved, refusals = _certificates(system, cheap)
    equilibrium = _equilibrium(problem)
    ranges, parabola = _ranges(system, proved)
    return Answer(
        setting=setting,
        problem=problem,
        flow=flow,
        equilibrium=equilibrium,
        certificates=proved,
        refusals=refusals,
        bound=abscissa_bound(system),
        ranges=ranges,
        parabola=parabola,
        runs=tuple(run(problem, name, equilibrium) for name in AT_ONCE),
        motion=_simulated(flow, equilibrium, proved),
        seconds=time.perf_counter() - started,
    )


@torch.no_grad()
def completed(first: Answer) -> Answer:
    """The same with the certificates that take a semidefinite program, the bound for switching slopes, every solver."""
    started, system = time.perf_counter(), system_of(first.flow)
    late = [finder for finder in applicable(system) if isinstance(finder, _TAKES_A_PROGRAM)]
    late_ones, refusals = _certificates(system, late if system.size <= _PROGRAMS else [])
    proved = _largest_first((*first.certificates, *late_ones))
    bound = upper_bound(system, next((c.metric for c in first.certificates if isinstance(c.metric, FullP)), None))
    known = {run.name: run for run in first.runs}
    return replace(
        first,
        certificates=proved,
        refusals={**first.refusals, **refusals},
        bound=bound,
        runs=tuple(known.get(name) or run(first.problem, name, first.equilibrium) for name in default_solvers()),
        motion=_simulated(first.flow, first.equilibrium, proved),
        seconds=first.seconds + time.perf_counter() - started,
    )


def _certificates(system: System, finders: Iterable[RateFinder]) -> tuple[tuple[Certificate, ...], dict[str, str]]:
    proved, refusals = [], {}
    for finder in finders:
        try:
            proved.append(finder.certify(system))
        except ContractingError as error:
            refusals[finder.name] = str(error)
    return _largest_first(proved), refusals


def _largest_first(proved: Iterable[Certificate]) -> tuple[Certificate, ...]:
    return tuple(sorted(proved, key=lambda certificate: -certificate.rate))


def _equilibrium(problem: EquilibriumProblem) -> Tensor:
    try:
        return solve(problem, SemismoothNewton(), stop=Stop(rtol=1e-12)).z[0]
    except SolveError:
        return torch.full((problem.size,), math.nan, dtype=torch.float64)


def run(problem: EquilibriumProblem, name: str, equilibrium: Tensor) -> Run:
    """One solver from z = 0, to a relative residual of 1e-8 or for 200 steps."""
    method, trace = default_solvers()[name], Trace()
    try:
        solution = solve(problem, method, stop=_STOP, trace=trace, throw=False)
    except ContractingError as error:
        return Run(name=name, family=str(method.family), refused=str(error))
    size = float(torch.linalg.vector_norm(equilibrium))
    scale = size if size > 0 else 1.0  # also where there is no equilibrium, and its size NaN
    return Run(
        name=name,
        family=str(method.family),
        status=Status(int(solution.status[0])).name.lower().replace("_", " "),
        steps=tuple(trace.steps.tolist()),
        residual=tuple((trace.residual[:, 0] / scale).tolist()),
        map_evals=solution.map_evals,
        seconds=solution.seconds,
    )


def _simulated(flow: BoundFlow, equilibrium: Tensor, proved: tuple[Certificate, ...]) -> Motion:
    """Two trajectories and a ball, all of them rows of one simulation."""
    n, best = flow.problem.size, proved[0] if proved else None
    rest = equilibrium if bool(torch.isfinite(equilibrium).all()) else torch.zeros(n, dtype=torch.float64)
    rest = flow.init(rest[None])[0]
    reach = 1 + float(rest.abs().max())
    rate = 1.0 if best is None else best.rate
    times = torch.linspace(0, min(12.0, max(4.0, 4 / max(rate, 0.1))), _MOMENTS, dtype=torch.float64)
    unlike = torch.ones(n, dtype=torch.float64)
    unlike[1::2] = -1.0
    starts = [rest + 0.8 * reach * unlike, rest - 0.7 * reach, rest - 0.45 * reach * unlike]
    rows = torch.stack(starts)
    if best is not None:
        metric = best.metric.to(rest)
        radius = 0.25 * reach * float(metric.norm(unlike)) / n**0.5
        rows = torch.cat([rows, starts[-1] + radius * unit_sphere(metric, _POINTS).to(rest)])
    # one step per requested time at least; stiff flows take more
    longest = min(_LONGEST, 1.5 / (1 + float(torch.linalg.matrix_norm(flow.problem.linear.to_dense(), 2))))
    states = simulate(flow, rows, times, integrator=FixedStep(step=longest), throw=False).states
    pair, difference = states[:, :2], states[:, 0] - states[:, 1]
    return Motion(
        times=times,
        pair=pair,
        apart=torch.linalg.vector_norm(difference, dim=-1) if best is None else best.metric.norm(difference),
        centre=states[:, 2],
        sphere=states[:, 3:],
        radius=None if best is None else radius * torch.exp(-best.rate * times),
        certificate=best,
    )


def _ranges(system: System, proved: Iterable[Certificate]) -> tuple[dict[str, Tensor], float | None]:
    """Numerical ranges of the weight that the parabola test sees, for Q = 1 and for the best Q, with its rate."""
    assert isinstance(system, WeightSystem)  # as of every flow of an equilibrium problem
    view, seen = slopes_view(system)
    M = seen.slopes.largest * seen.W
    if seen.slopes.low < 0:
        return {"weight": boundary(M)}, None
    for certificate in proved:
        if certificate.method == ParabolaTest(optimise=1).name and certificate.multiplier is not None:
            Q = view.seen(certificate.multiplier)
            return {"Q = 1": boundary(M), "best Q": boundary(scaled(M, Q))}, certificate.rate / system.speed
    return {"Q = 1": boundary(M)}, None
