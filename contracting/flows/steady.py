r"""The problem f(s) = 0 of any field: what "at rest" means where no weight and no map are known.

A residual needs something to be compared with, and f has units of its own, state over time. Here it is compared with
what f would become if the state were off by what nobody minds: ‖f(s)‖ ≤ rtol·‖t‖, where tᵢ² = Σⱼ (Jᵢⱼ(|sⱼ| + a))² with
the Jacobian J, and a is the size of an entry that counts as zero. So the test does not depend on the unit of time, nor
on an entry of s, however large, on which f does not depend.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.display import Displayed
from contracting.errors import InputError, PreconditionError
from contracting.flows.base import Flow, SteadyFlow
from contracting.flows.fields import NeuralFlow, VectorField, refuse_crowds, takes
from contracting.maps.counting import report
from contracting.maps.operator import StepChoice
from contracting.metrics import Metric
from contracting.problem import EquilibriumProblem, Problem
from contracting.types import Time

# The size of an entry of the state that counts as zero, for double precision and for single: with the relative
# tolerances of ``FieldProblem`` an entry near zero is then known to 1e-12 or 1e-7, as for equilibrium problems.
_ZERO = (1e-4, 1e-2)
# So many directions at most tell the sizes of the terms of f: exactly for n ≤ 8, for larger n to a factor of about two.
_PROBES = 8
# Of an inner product of n terms, 8√n·eps is about the rounding, in units of the size of its terms.
_ROUNDING = 8


class Rated(Protocol):
    """What is asked of a certificate: a rate c at which the field contracts in a metric.

    One that holds in a region only also has ``contains(states)``, (batch, n) -> (batch,), and is asked for nothing
    outside; the region must be convex and hold the steady state.
    """

    @property
    def rate(self) -> float:
        """c."""
        ...

    @property
    def metric(self) -> Metric:
        """The norm."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FieldProblem(Displayed, Problem):
    r"""Find s with f(t, s) = 0 at one time t, one problem per row.

    A row is solved when ‖f(s)‖ ≤ atol + rtol·‖t‖ with tᵢ² = Σⱼ (Jᵢⱼ(|sⱼ| + a))²: when f is no larger than what a change
    of each entry sⱼ by rtol(|sⱼ| + a) makes of it. The sizes of these terms are measured by up to eight differences of
    f at each look, to within a few percent for n ≤ 8 and a factor of about two for larger n; no Jacobian is needed.

    Args:
        field: f.
        start: states of the shape (batch, n), dtype and device that are asked for.
        time: t.
        smallest: a, the size of an entry of s that counts as zero; None means 1e-4 in float64 and 1e-2 in float32.
        each_entry: whether every entry of f is to be as small as its own terms, |fᵢ| ≤ rtol·tᵢ, and not f as a whole.
            ``residual`` is then the worst |fᵢ|/tᵢ.
        certificate: a certified rate of this field, for the error bound and for steps; it is taken at its word.
    """

    field: VectorField
    start: Tensor
    time: float = 0.0
    smallest: float | None = None
    each_entry: bool = False
    certificate: Rated | None = None
    index: Tensor | None = None  # of the rows of ``start`` that it is about; None stands for all
    dtype: torch.dtype | None = None  # in which f is evaluated, where that is not the dtype of ``start``

    # f keeps what belongs to a row, so that all rows are evaluated for the sake of some
    separable = False
    costly = True
    tolerances = ((1e-8, 0.0), (1e-5, 0.0))

    def __post_init__(self) -> None:
        checks.number("time", self.time)
        if self.smallest is not None:
            checks.positive_number("smallest", self.smallest)

    @functools.cached_property
    def template(self) -> Tensor:
        """The rows of the start."""
        return self.start if self.index is None else self.start[self.index]

    def residual(self, z: Tensor) -> Tensor:
        """f(t, s): (batch, n) -> (batch, n)."""
        report(len(z))
        return self._some(self.field(self.time, self._all(z)), z)

    def jacobian(self, z: Tensor) -> Tensor:
        """∂f/∂s: (batch, n) -> (batch, n, n)."""
        return self._some(self.field.jacobian(self._all(z), self.time), z)

    def jvp(self, z: Tensor, direction: Tensor) -> Tensor:
        """(∂f/∂s) d: (batch, n) -> (batch, n)."""
        report(len(z))
        still = torch.zeros_like(self.start)
        return self._some(self.field.jvp(self._all(z), self._all(direction, still), self.time), z)

    def _all(self, z: Tensor, others: Tensor | None = None) -> Tensor:
        """The rows z among all rows, which f may know one by one."""
        if self.index is not None:
            z = (self.start if others is None else others).to(z.dtype).index_copy(0, self.index, z)
        return z if self.dtype is None else z.to(self.dtype)

    def _some(self, values: Tensor, z: Tensor) -> Tensor:
        return (values if self.index is None else values[self.index]).to(z.dtype)

    @property
    def _eps(self) -> float:
        return torch.finfo(self.dtype or self.start.dtype).eps

    def units(self, z: Tensor) -> Tensor:
        """|s| + a, in whose units a change of the state is large or small: (batch, n) -> (batch, n)."""
        return z.abs() + (self.smallest or _ZERO[0 if self._eps < 1e-12 else 1])

    def terms(self, z: Tensor, value: Tensor | None = None) -> Tensor:
        """t, the size of the terms of f, entry by entry: (batch, n) -> (batch, n); ``value`` is f where it is known."""
        value = self.residual(z) if value is None else value
        step = self._eps**0.25  # rounding is far below what is to be seen, and curvature too
        signs = _signs(self.size).to(z)
        reach = step * self.units(z)
        total = torch.zeros_like(value)
        for pattern in signs:
            change = self.residual(torch.addcmul(z, reach, pattern)) - value
            total = torch.hypot(total, change.nan_to_num(0.0))  # not a number where that is outside of f's domain
        return total / (step * len(signs) ** 0.5)

    def look(self, z: Tensor, norm: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Norms of f and of the sizes of its terms, (2, batch), f and these sizes."""
        # f may not depend on an entry that is lost, and be finite all the same
        value = torch.where(z.isfinite().all(-1, keepdim=True), self.residual(z), torch.nan)
        terms = self.terms(z, value)
        if self.each_entry:
            limits = torch.finfo(value.dtype)
            ratio = torch.where(value == 0, 0.0, value / terms.clamp_min(limits.tiny)).clamp(-limits.max, limits.max)
            return torch.stack((ratio.abs().amax(-1), torch.ones_like(ratio[:, 0]))), ratio, torch.ones_like(terms)
        return torch.stack((norm(value), norm(terms))), value, terms

    def compared(self, computed: Tensor, rows: Tensor) -> Tensor:
        """The sizes of the terms of some rows."""
        return computed[rows]

    def rows(self, index: Tensor | slice) -> FieldProblem:
        """The problem of some rows only."""
        whole = torch.arange(len(self.start), device=self.start.device) if self.index is None else self.index
        return replace(self, index=whole[index])

    def double(self) -> FieldProblem:
        """The same problem in float64, with f evaluated as before."""
        return replace(self, start=self.start.double(), dtype=self.dtype or self.start.dtype)

    def error_bound(self, z: Tensor) -> Tensor | None:
        r"""‖f(s)‖/c ≥ ‖s − s*‖ in the metric of the certificate, (batch,), infinite outside of its region; else None.

        Along the segment from s* to s the field contracts at c, so that ‖f(s)‖ = ‖f(s) − f(s*)‖ ≥ c‖s − s*‖. An
        estimate of the rounding of f, 8√n·eps times the size of its terms, is added.
        """
        certificate = self.certificate
        if certificate is None or not certificate.rate > 0:
            return None
        with torch.no_grad():
            metric, value = certificate.metric.to(z), self.residual(z)
            rounding = _ROUNDING * self._eps * self.size**0.5 * self.terms(z, value)
            bound = (metric.norm(value) + metric.norm(rounding)) / certificate.rate
            contains: Callable[[Tensor], Tensor] | None = getattr(certificate, "contains", None)
            return bound if contains is None else torch.where(contains(z).to(bound.device), bound, torch.inf)


@functools.lru_cache(maxsize=64)
def _signs(n: int) -> Tensor:
    """Patterns of ±1, (k, n): their columns are orthogonal for n ≤ 8, and drawn at random, always the same, beyond."""
    if n > _PROBES:
        return torch.randint(0, 2, (_PROBES, n), generator=torch.Generator().manual_seed(n)).double() * 2 - 1
    patterns = torch.ones(1, 1, dtype=torch.float64)
    while len(patterns) < n:
        patterns = torch.cat([torch.cat([patterns, patterns], 1), torch.cat([patterns, -patterns], 1)])
    return patterns[:, :n]


class FieldFlow(SteadyFlow):
    """s' = f(t, s) at the one time of a problem."""

    problem: FieldProblem

    def __init__(self, problem: FieldProblem):
        self.problem = problem

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        return self.problem.residual(state)

    def jacobian(self, state: Tensor, t: Time = 0.0) -> Tensor:
        return self.problem.jacobian(state)

    def jvp(self, state: Tensor, direction: Tensor, t: Time = 0.0) -> Tensor:
        return self.problem.jvp(state, direction)

    def on(self, problem: FieldProblem) -> Self:
        """The same for another problem."""
        return type(self)(problem)

    @property
    def euler_step(self) -> StepChoice:
        raise PreconditionError(
            "no step of explicit Euler is known for a field: pass step=..., in the time of the field, or use "
            "DormandPrince(), which adapts its step"
        )

    @property
    def rate(self) -> float | None:
        certificate = self.problem.certificate
        everywhere = certificate is not None and not hasattr(certificate, "contains")
        return certificate.rate if certificate is not None and everywhere and certificate.rate > 0 else None


def followed(problem: Problem, flow: Flow, *, named: bool = True) -> SteadyFlow:
    """The flow that a method follows on a problem: one made from W, or the field itself where the problem is one.

    Args:
        problem: what is solved.
        flow: settings of a flow, for an equilibrium problem.
        named: whether somebody asked for this very flow.

    Raises:
        PreconditionError: if the problem is a field, and somebody asked for another flow.
    """
    if isinstance(problem, EquilibriumProblem):
        return flow.bind(problem)
    if not isinstance(problem, FieldProblem):
        raise InputError(f"problem must be an EquilibriumProblem or a FieldProblem, got {type(problem).__name__}")
    if named:
        raise PreconditionError(
            f"{flow} is a flow of z = σ(Wz + q), and a problem f(s) = 0 has only its own, f: leave flow out"
        )
    return FieldFlow(problem)


def as_field(field: VectorField | nn.Module | Callable[..., Tensor]) -> VectorField:
    """A vector field as it is; a module or function f(s) or f(t, s) as one.

    Raises:
        InputError: if it cannot be called, or takes one argument as well as two.
    """
    if isinstance(field, VectorField):
        return field
    if not callable(field):
        raise InputError(f"f must be a VectorField, an nn.Module or a function f(s) or f(t, s), got {field!r}")
    if takes(field, 1) and takes(field, 2):
        raise InputError(
            "f can be called with one argument and with two, and which is meant is not to be seen: pass "
            "lambda s: f(s), or lambda t, s: f(t, s)"
        )
    return NeuralFlow(field)


def field_problem(field: VectorField, start: Tensor, **settings: object) -> FieldProblem:
    """The problem of a field, once its rows have been seen to be strangers.

    Raises:
        InputError: if the start is no finite tensor (batch, n), or the value of f is of another shape, dtype or device,
            or a row of it depends on the other rows.
    """
    checks.finite("s0", checks.floating_tensor("s0", start))
    if start.ndim != 2:
        raise InputError(f"s0 must have shape (batch, n), got {tuple(start.shape)}; one state is s0[None]")
    if start.dtype not in (torch.float32, torch.float64):
        raise InputError(f"s0 must be float32 or float64, got {start.dtype}: solving needs full precision")
    problem = FieldProblem(field=field, start=start.detach(), **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        value = checks.floating_tensor("f(s0)", problem.field(problem.time, start))
        checks.same_kind("f(s0)", checks.shape("f(s0)", value, tuple(start.shape)), "s0", start)
        if len(start) and start.shape[1]:
            refuse_crowds(lambda states: problem.field(problem.time, states), start, value)
    return problem
