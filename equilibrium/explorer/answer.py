"""What the page shows, as numbers: first what a slider is answered with at once, then what takes about a second."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

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

AT_ONCE = ("Anderson/PeacemanRachford", "DormandPrince")
"""Solvers that are run at once: one that splits and one that integrates an ODE, of either family one that is quick."""

NAMED = (
    "PeacemanRachford", "Anderson/PeacemanRachford", "ForwardBackward", "SemismoothNewton",
    "ExplicitEuler", "RK4", "DormandPrince",
)  # fmt: skip
"""Solvers whose curves have a colour of their own; one cannot tell thirty apart."""

_TAKES_A_PROGRAM = (VertexInequalities, SectorInequality)  # Semidefinite programs take up to a second for five units.
_PROGRAMS = 5  # Semidefinite programs are solved for so many units: ten take minutes.
_PARABOLA = (ParabolaTest(optimise=0).name, ParabolaTest().name)
_STOP = Stop(rtol=1e-8, atol=1e-14, max_steps=200, patience=200)
_POINTS = 48  # So many states on the sphere of the ball are followed.
_MOMENTS = 61  # The flow is simulated at so many times.
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
        seconds: until the first answer.
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
    """What is known soon: no search over multipliers, no semidefinite program, and two of the solvers."""
    started = time.perf_counter()
    problem = setting.problem()
    flow = setting.bound(problem)
    system = system_of(flow)
    proved, refusals = _certificates(system, _finders(system)[0])
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
def growing(first: Answer) -> Iterator[Answer]:
    """The answer with one more solver, semidefinite program or bound each time, so that one can stop in between.

    The solvers with a colour of their own come first, then the certificates that take a search or a semidefinite
    program, then the bound for switching slopes, then every other solver.
    """
    system, found = system_of(first.flow), first
    known = {run.name for run in first.runs}
    names = sorted((name for name in default_solvers() if name not in known), key=lambda name: name not in NAMED)
    runs = {name: partial(_and_solver, name=name) for name in names}
    pieces: list[Callable[[Answer], Answer]] = [runs.pop(name) for name in names if name in NAMED]
    pieces += [partial(_and_finder, system=system, finder=finder) for finder in _finders(system)[1]]
    pieces += [partial(_and_bound, system=system), *runs.values()]
    for piece in pieces:
        yield (found := piece(found))


def completed(first: Answer) -> Answer:
    """The last that it grows to: every certificate, the bound for switching slopes, every solver."""
    *_, last = growing(first)
    return last


def _and_solver(found: Answer, *, name: str) -> Answer:
    order = [*default_solvers()]
    runs = (*found.runs, run(found.problem, name, found.equilibrium))
    return replace(found, runs=tuple(sorted(runs, key=lambda run: order.index(run.name))))


def _and_bound(found: Answer, *, system: System) -> Answer:
    metric = next((c.metric for c in found.certificates if isinstance(c.metric, FullP)), None)
    return replace(found, bound=upper_bound(system, metric))


def _and_finder(found: Answer, *, system: System, finder: RateFinder) -> Answer:
    more, refusals = _certificates(system, [finder])
    proved, motion = _largest_first((*found.certificates, *more)), found.motion
    if proved[:1] != found.certificates[:1]:  # what is proved of the motion is the best certificate
        motion = _simulated(found.flow, found.equilibrium, proved)
    ranges, parabola = _ranges(system, proved)
    return replace(
        found, certificates=proved, refusals={**found.refusals, **refusals}, motion=motion, ranges=ranges,
        parabola=parabola,
    )  # fmt: skip


def _finders(system: System) -> tuple[list[RateFinder], list[RateFinder]]:
    """Those that take milliseconds, and those that search: over multipliers, or by a semidefinite program."""
    soon: list[RateFinder] = []
    late: list[RateFinder] = []
    for finder in applicable(system):
        if isinstance(finder, _TAKES_A_PROGRAM):
            late += [finder] if system.size <= _PROGRAMS else []
        elif (able := finder.affordable(system)) is not None:
            (late if isinstance(able, ParabolaTest) and able.optimises else soon).append(able)
    return soon, late


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
    """Numerical ranges of the weight that the parabola test sees, for Q = 1 and for its best Q, with its rate."""
    assert isinstance(system, WeightSystem)  # as of every flow of an equilibrium problem
    view, seen = slopes_view(system)
    M = seen.slopes.largest * seen.W
    if seen.slopes.low < 0:
        return {"weight": boundary(M)}, None
    for certificate in proved:
        if certificate.method in _PARABOLA and certificate.multiplier is not None:  # the largest rate comes first
            Q = view.seen(certificate.multiplier)
            return {"Q = 1": boundary(M), "best Q": boundary(scaled(M, Q))}, certificate.rate / system.speed
    return {"Q = 1": boundary(M)}, None
