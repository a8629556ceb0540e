"""The integrators of torchdiffeq, and of scipy through it, as methods on the one loop.

A step of the loop is one *segment*: an integration of the flow over a few time constants, from where the last segment
ended. The loop judges the residual between segments, so that integration ends when the residual says so and not at a
time that someone had to guess. Segments are also where the tolerance of the integrator follows the residual: far from
the steady state accuracy buys nothing, and a fixed tolerance puts a floor under the residual.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import ContractingError, InputError, PreconditionError
from contracting.flows.base import SteadyFlow
from contracting.integrators.base import FlowMethod
from contracting.integrators.step_control import row_rms
from contracting.loop.method import YOUR_OWN, Family, Iteration, State, refuse_graph
from contracting.loop.records import Stop
from contracting.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What has to be known of an integrator."""

    solver: str  # its name in torchdiffeq
    # some d with |z + d| ≤ d inside its region of stability: d times a step at which explicit Euler is stable is stable
    disc: float = 0.0
    fixed: bool = False
    scipy: bool = False
    accuracy: float = 1e-4  # of an adaptive method: the tied tolerance as a fraction of the length of the field
    blind: bool = False  # its error estimate does not see an unstable step
    options: dict[str, Any] = field(default_factory=dict)


# Adams methods lose stability as the order grows, and a steady state needs no order
_ADAMS = {"max_order": 4}
KINDS = {
    "dopri5": Kind(solver="dopri5", disc=1.65),
    "dopri8": Kind(solver="dopri8", disc=2.58),
    "bosh3": Kind(solver="bosh3", disc=1.25),
    # its error estimate has weights 1/512 and vanishes where its stability ends
    "fehlberg2": Kind(solver="fehlberg2", disc=1.0, accuracy=1e-5, blind=True),
    # torchdiffeq starts a step with the slope that the last one predicted, not with the slope where it ended
    "adaptive_heun": Kind(solver="adaptive_heun", disc=0.49),
    **{name: Kind(solver=name, disc=1.0, fixed=True) for name in ("euler", "midpoint", "heun2", "heun3", "rk4")},
    "explicit_adams": Kind(solver="explicit_adams", disc=0.272, fixed=True, options=_ADAMS),
    "implicit_adams": Kind(solver="implicit_adams", disc=0.635, fixed=True, options=_ADAMS),
    **{
        name: Kind(solver="scipy_solver", scipy=True, options={"solver": name})
        for name in ("BDF", "Radau", "LSODA", "RK23", "RK45", "DOP853")
    },
}

# A segment is to reduce the residual by this factor, because the tied tolerance allows little more.
_REDUCTION = 100.0
_LONGEST = 32.0  # A segment lasts at most so many time constants, because its tolerance is that of its start.
# A segment that converges at less than this share of the proved rate was integrated too inaccurately.
_SLOWER = 0.25
_RATE = 0.25  # The rate per time constant that is planned with where none is proved.
_PATIENCE = 32.0  # A row is given up after so many times 1/rate without progress.
# The tied tolerance is at least this multiple of accuracy · eps · rms(s), below which steps are lost in rounding.
_ROUNDING = 1e4
_CALLS = 20_000  # An integrator counts as stuck after so many evaluations of the field per time constant.


@dataclass(frozen=True)
class TorchDiffEq(FlowMethod):
    """An integrator of torchdiffeq or, for stiff flows, of scipy, run until the residual is small enough.

    Use it to compare with other people's ODE solvers, or to run a trained equilibrium network with one. To find the
    equilibrium fast use PeacemanRachford or SemismoothNewton; ``DormandPrince`` and its kin step every row at its own
    pace.

    Steps are counted in segments: the first lasts one time constant of the flow, the others aim at a hundredth of the
    residual. Rows that are solved, given up or not finite are left out. A row on which the integrator breaks down
    (underflow of the step size, 20,000 evaluations per time constant) is found by halving the batch and is given up
    alone.

    The tolerance of a time step is set at the start of each segment, for each row, to 1e-4 of the length of the field
    (1e-5 for fehlberg2), and to a tenth of that after a segment that was too inaccurate to converge. The error norm is
    that of the worst row. In a batch the rows still share the step size, so that a row's answer moves with its batch
    mates, below the tolerance; ``per_row=True`` removes that.

    torchdiffeq passes scipy no Jacobian: BDF, Radau and LSODA difference the field, n evaluations per Jacobian. The
    methods of scipy run on the CPU and in float64 whatever the type of the problem, because differences need it.

    Args:
        method: adaptive "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"; of fixed step "euler", "midpoint",
            "heun2", "heun3", "rk4", and up to order 4 "explicit_adams", "implicit_adams"; of scipy "BDF", "Radau",
            "LSODA", "RK23", "RK45", "DOP853".
        flow: which flow to integrate.
        rtol: relative tolerance of a time step, used as it is given; the residual may then stall above the tolerance of
            the loop. None ties the tolerance to the residual.
        atol: absolute tolerance that goes with ``rtol``; None means rtol/1000.
        step: time step of a fixed-step method. None computes it from the best Euler step of the flow, which makes it
            stable at the equilibrium.
        per_row: integrate one row at a time. None means True for scipy (whose Jacobian would otherwise be that of the
            whole batch) and False for the others.

    Raises:
        InputError: on an unknown method, or a setting that is out of range or not one of this method.
        PreconditionError: on binding, if the step is automatic and Condition 1 is not certified, or if gradients are to
            flow through scipy.
        MissingExtraError: on binding, if scipy is needed and not installed.
    """

    method: str = "dopri5"
    _: KW_ONLY
    rtol: float | None = None
    atol: float | None = None
    step: float | None = None
    per_row: bool | None = None
    family: ClassVar[Family] = Family.TORCHDIFFEQ

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or self.method not in KINDS:
            raise InputError(
                f"method must be one of {', '.join(map(repr, KINDS))}, got {self.method!r}; {YOUR_OWN}"
            )
        super().__post_init__()
        fixed = KINDS[self.method].fixed
        for name, high in (("rtol", 1.0), ("atol", 1.0), ("step", math.inf)):
            value = getattr(self, name)
            if value is not None:
                checks.number(name, value, low=0, low_open=True, high=high, high_open=high == math.inf)
                if fixed != (name == "step"):
                    own = "has a fixed step" if fixed else "chooses its own steps"
                    raise InputError(f"{name} has no use in {self.method!r}, which {own}; leave it out")
        if self.rtol is None and self.atol is not None:
            raise InputError("atol needs rtol; leave both out to tie the tolerance to the residual")
        if self.per_row is not None and not isinstance(self.per_row, bool):
            raise InputError(f"per_row must be True, False or None, got {self.per_row!r}")

    @property
    def solves_systems(self) -> bool:
        """Whether it is one of scipy's implicit integrators."""
        return self.method in ("BDF", "Radau", "LSODA")

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        if KINDS[self.method].scipy:
            checks.extra("scipy.integrate", "scipy", f"TorchDiffEq({self.method!r})")
            refuse_graph(problem, f"scipy's {self.method}")
        return Segments(problem, stop, self)


class StuckError(ContractingError):
    """An integrator did not reach the end of a segment; the message says why."""


class _Rows(NamedTuple):
    """State of the iteration: s and z are (batch, n), what is known of each row is (batch,)."""

    s: Tensor  # state of the flow
    z: Tensor
    residual: Tensor
    tolerance: Tensor  # for the residual, that of the loop
    span: Tensor  # planned length of the next segment
    accuracy: Tensor  # tied tolerance over the length of the field
    first: Tensor  # first time step of the next segment, 0 where unknown
    best: Tensor  # lowest residual so far
    stale: Tensor  # time since then
    given_up: Tensor

    def take(self, rows: Tensor) -> _Rows:
        return _Rows(*(entry[rows] for entry in self))


class _Field:
    """f(t, origin + d), with its evaluations limited."""

    def __init__(self, flow: SteadyFlow, origin: Tensor | None, limit: float):
        self.flow, self.origin, self.left = flow, origin, limit
        self.steps, self.proposed = 0, 0.0

    def __call__(self, t: Tensor, d: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise StuckError("too many evaluations of the field")
        return self.flow(t, d if self.origin is None else self.origin + d)


class _AdaptiveField(_Field):
    # called by torchdiffeq before each time step; for methods that do not call it, torchdiffeq warns of it
    def callback_step(self, t: Tensor, state: Tensor, step: Tensor) -> None:
        self.steps, self.proposed = self.steps + 1, float(step)


class Segments(Iteration):
    """The iteration of ``TorchDiffEq``.

    Attributes:
        segments: time constants and (where torchdiffeq says so) time steps of each segment so far.
    """

    def __init__(self, problem: Problem, stop: Stop, settings: TorchDiffEq):
        self.settings, self.kind, self.stop = settings, KINDS[settings.method], stop.resolved(problem)
        self.problem = self.ode_problem = problem
        if self.kind.scipy:
            self.ode_problem = problem.double()
        self.flow = settings.flow_on(self.ode_problem)
        self.rate = self.flow.rate or _RATE
        if self.kind.fixed:
            self.step_size = settings.step or self.kind.disc * float(self.flow.euler_step.step)
        self.separable = False  # segments are planned with the residual as the loop sees it
        self.per_row = self.kind.scipy if settings.per_row is None else settings.per_row
        self.segments: list[tuple[float, int]] = []
        self._advice: str | None = None

    def advice(self) -> str | None:
        return self._advice

    def init(self, z0: Tensor) -> State:
        s = self.flow.init(z0.to(self.ode_problem.template.dtype))
        z = self.flow.read(s).to(z0.dtype)
        residual, tolerance = self._assess(z)
        zero = torch.zeros_like(residual)
        return _Rows(s, z, residual, tolerance, zero + 1.0, zero + self.kind.accuracy, zero, residual, zero, zero > 0)

    def read(self, state: State) -> Tensor:
        return state[1]

    def given_up(self, state: State) -> Tensor:
        return _Rows(*state).given_up

    @torch.no_grad()
    def _assess(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Residual norm and what the loop allows it to be, each (batch,)."""
        (residual, scale), *_ = self.problem.look(z, self.stop.size_of)
        return residual, self.stop.tolerance(scale)

    def step(self, state: State) -> State:
        now = _Rows(*state)
        ready = torch.isfinite(now.residual) & torch.isfinite(now.s).all(-1) & ~now.given_up
        rows = torch.nonzero(ready & (now.residual > now.tolerance)).flatten()
        if len(rows) == 0:
            return state
        old = now.take(rows)
        span = old.span if self.per_row else torch.full_like(old.span, float(old.span.max()))
        if self.step_size is not None:
            span = self.step_size * torch.ceil(span / self.step_size - 1e-3).clamp_min(1)
        old = old._replace(span=span)
        s, first, failed = self._in_parts(rows, old, len(rows) if self.per_row else 1)
        new = self._plan(rows, now.z, old, s)
        new = new._replace(first=first, given_up=new.given_up | failed)
        return _Rows(*(entry.index_put((rows,), value) for entry, value in zip(now, new, strict=True)))

    def _in_parts(self, rows: Tensor, old: _Rows, parts: int) -> tuple[Tensor, ...]:
        """s after the segment, the time step proposed for the next, and whether the integrator broke down, per row."""
        groups = torch.arange(len(rows), device=rows.device).tensor_split(parts)
        moved = [self._attempt(rows[group], old.take(group)) for group in groups]
        return tuple(torch.cat(column) for column in zip(*moved, strict=True))

    def _attempt(self, rows: Tensor, old: _Rows) -> tuple[Tensor, ...]:
        flow = self.settings.flow_on(self.ode_problem.rows(rows))
        try:
            s, proposed = self.integrate(flow, old.s, float(old.span[0]), old.accuracy, first=float(old.first.min()))
            return s, torch.full_like(old.first, proposed), torch.zeros_like(old.given_up)
        except StuckError as error:
            if len(rows) == 1:
                self._advice = _advice(self.settings, self.ode_problem.template.dtype, error)
                return old.s, old.first, torch.ones_like(old.given_up)
        return self._in_parts(rows, old, 2)

    def _plan(self, rows: Tensor, z: Tensor, old: _Rows, s: Tensor) -> _Rows:
        """What is known of the rows after a segment, and the plan for the next one."""
        reached = self.settings.flow_on(self.ode_problem.rows(rows)).read(s).to(z.dtype)
        # as the loop will see it: a product with fewer rows may round differently, and strand a row at its tolerance
        residual, tolerance = (value[rows] for value in self._assess(z.index_put((rows,), reached)))
        tiny = torch.finfo(residual.dtype).tiny
        gain = (old.residual / residual.clamp_min(tiny)).clamp(1e-3, 1e30).log()
        # as long as it takes to reduce the residual by the factor that is wanted, at the rate of this segment
        wanted = (1.5 * residual / tolerance.clamp_min(tiny)).clamp(1.5, _REDUCTION).log()
        enough = old.span * (wanted / gain.clamp_min(tiny)).clamp(0.25, 4.0)
        span = torch.where(gain > math.log(2), enough, 2 * old.span).clamp_max(_LONGEST)
        converging = gain >= (_SLOWER * self.rate * old.span).clamp_max(math.log(2))
        accuracy = torch.where(converging, (3 * old.accuracy).clamp_max(self.kind.accuracy), old.accuracy / 10)
        stale = torch.where(residual < (1 - 1e-3) * old.best, 0, old.stale + old.span)
        stuck = stale >= _PATIENCE / self.rate
        if bool(stuck.any()):
            self._advice = _advice(self.settings, z.dtype, None)
        best = torch.minimum(residual, old.best)
        return _Rows(s, reached, residual, tolerance, span, accuracy, old.first, best, stale, stuck)

    def integrate(
        self,
        flow: SteadyFlow,
        start: Tensor,
        span: float,
        accuracy: Tensor,
        *,
        first: float = 0.0,
        adjoint: Mapping[str, Any] | None = None,
        points: int = 1,
    ) -> tuple[Tensor, float]:
        """The state after a segment, and the time step proposed for the next one (0 where there is none).

        Args:
            flow: the flow on the rows that are integrated.
            start: their state, (rows, n).
            span: length of the segment in time constants.
            accuracy: the tied tolerance over the length of the field, (rows,).
            first: first time step, 0 where unknown.
            adjoint: arguments of torchdiffeq for the adjoint equation, which then gives the gradient.
            points: number of stored states from which the adjoint equation starts anew.

        Raises:
            StuckError: if the integrator breaks down before.
        """
        import torchdiffeq

        adaptive = not (self.kind.fixed or self.kind.scipy)
        rtol, atol = self._tolerances(flow, start, accuracy)
        # In d = s − start rounding is relative to what is left to travel: torchdiffeq interpolates at the end of a
        # segment, which in float32 would leave a residual of 1e-5.
        origin = start if self.settings.rtol is None and not self.kind.scipy and adjoint is None else None
        limit = (_CALLS + (50 * start.numel() if self.kind.scipy else 0)) * max(1.0, span)
        observed = (_AdaptiveField if adaptive else _Field)(flow, origin, limit)
        options = {**self.grid_options(), "norm": _worst_row}
        if adaptive:
            options["step_t"] = torch.tensor([span], dtype=torch.float64)
            if first > 0:
                options["first_step"] = min(first, span)
            # near the steady state an unstable step is an error too small to be seen, and yet multiplies a gradient
            unrolled = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in flow.problem.tensors())
            if self.kind.blind or (unrolled and adjoint is None):
                with suppress(PreconditionError):
                    options["max_step"] = self.kind.disc * flow.euler_step.step
        solver = torchdiffeq.odeint if adjoint is None else partial(torchdiffeq.odeint_adjoint, **adjoint)
        times = torch.linspace(0, span, points + 1, dtype=torch.float64, device=start.device)
        y0 = start if origin is None else torch.zeros_like(start)
        try:
            # the libraries warn of each other's settings and of inner iterations; the residual tells the truth
            with warnings.catch_warnings(action="ignore", category=UserWarning):
                path = solver(observed, y0, times, rtol=rtol, atol=atol, method=self.kind.solver, options=options)
        except (AssertionError, ValueError, RuntimeError) as error:
            # torchdiffeq asserts that step size and state are sound; scipy's linear algebra has words of its own
            if not isinstance(error, AssertionError) and not self.kind.scipy:
                raise
            raise StuckError(str(error).partition(":")[0]) from None
        if self.kind.scipy and (len(path) < 2 or not bool(torch.isfinite(path).all())):
            raise StuckError("underflow of the step size")
        self.segments.append((span, observed.steps))
        return (path[-1] if origin is None else start + path[-1]), observed.proposed

    @torch.no_grad()
    def _tolerances(self, flow: SteadyFlow, start: Tensor, accuracy: Tensor) -> tuple[float, Any]:
        """(rtol, atol) of the time steps of a segment; where it is tied to the residual, atol has one entry per row."""
        if self.settings.rtol is not None:
            return self.settings.rtol, 1e-3 * self.settings.rtol if self.settings.atol is None else self.settings.atol
        limits = torch.finfo(start.dtype)
        floor = (_ROUNDING * self.kind.accuracy * limits.eps * row_rms(start)).clamp_min(limits.tiny)
        atol = torch.maximum(accuracy * row_rms(flow(0.0, start)), floor)[:, None]
        if self.kind.scipy:  # which takes arrays, and no rtol below 100 eps
            return 3e-14, atol.expand_as(start).reshape(-1).cpu().numpy()
        return 0.0, atol

    def grid_options(self) -> dict[str, Any]:
        """The options of the integrator on any interval, forwards or backwards."""
        step = {} if self.step_size is None else {"grid_constructor": partial(_grid, self.step_size)}
        return {**self.kind.options, **step}


def _grid(step: float, field_: Any, state: Tensor, times: Tensor) -> Tensor:
    """From the first to the last time in steps of (nearly) the wanted size."""
    start, end = float(times[0]), float(times[-1])
    steps = max(1, round(abs(end - start) / step))
    return torch.linspace(start, end, steps + 1, dtype=times.dtype, device=times.device)


def _worst_row(rows: Tensor) -> Tensor:
    return row_rms(rows.detach()).max()


def _advice(settings: TorchDiffEq, dtype: torch.dtype, error: Exception | None) -> str:
    what = "the residual stopped falling" if error is None else f"{settings.method} broke down in a segment ({error})"
    if settings.rtol is not None:
        limit = f"they may be below what {dtype} resolves" if error else "they put a floor under the residual"
        return f"{what}: leave rtol and atol out, so that they follow the residual, because {limit}"
    if settings.step is not None:
        return f"{what}: leave step out, so that it is computed, or make it smaller"
    return (
        f"{what}: where the flow is stiff, use TorchDiffEq('BDF') or flow=PeacemanRachfordFlow(); where the residual "
        f"is at the rounding error of {dtype}, use float64, PeacemanRachford() or a larger Stop(rtol=...)"
    )
