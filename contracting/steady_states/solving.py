"""``steady_state``: where a field of one's own is at rest, row by row, with everything that is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from contracting.errors import Status
from contracting.flows.fields import VectorField
from contracting.flows.steady import FieldProblem, Rated, as_field, field_problem
from contracting.loop.method import Family, Method
from contracting.loop.records import Solution, SolveError, Stop, Trace
from contracting.loop.run import failure, solve
from contracting.precision import full_precision
from contracting.solvers.anderson import Anderson
from contracting.solvers.automatic import Automatic
from contracting.steady_states.gradient import attached


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SteadyState(Solution):
    """Where a field is at rest, one entry per row; ``z``, (batch, n), is the state, on the graph of the field.

    ``error_bound`` is ‖f(s)‖/c where a certificate was given, else None.
    """

    problem: FieldProblem

    @property
    def abscissa(self) -> Tensor:
        """The largest real part of an eigenvalue of ∂f/∂s at z, (batch,), not a number where a row has none.

        Negative: nearby states come to z. Positive: z repels nearly all of them. It costs one Jacobian and its
        eigenvalues per row.
        """
        return self._spectrum[0]

    @property
    def repelling(self) -> Tensor:
        """(batch,), where the abscissa is positive beyond what rounding can make of a zero, √eps·‖∂f/∂s‖."""
        abscissa, size = self._spectrum
        return abscissa > torch.finfo(size.dtype).eps ** 0.5 * size

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            matrices = self.problem.jacobian(self.z.detach())
            usable = matrices.isfinite().flatten(1).all(1)
            values = torch.linalg.eigvals(torch.where(usable[:, None, None], matrices, 0.0)).real.amax(-1)
            return torch.where(usable, values, torch.nan), torch.linalg.matrix_norm(matrices)


def steady_state(
    f: VectorField | nn.Module | Callable[..., Tensor],
    s0: Tensor,
    *,
    method: Method | None = None,
    stop: Stop | None = None,
    time: float = 0.0,
    smallest: float | None = None,
    each_entry: bool = False,
    certificate: Rated | None = None,
    stable: bool | None = None,
    trace: Trace | None = None,
    throw: bool = True,
) -> SteadyState:
    r"""Find s with f(t, s) = 0, from s0, for any field: each row has its own answer and its own status.

    A row is solved when ‖f(s)‖ ≤ atol + rtol·‖t‖, tᵢ² = Σⱼ (Jᵢⱼ(|sⱼ| + a))²: when f is no larger than what a change of
    each entry sⱼ by rtol(|sⱼ| + a) makes of it. That depends neither on the unit of time nor on large entries of s that
    f does not feel. The residual f is the true one at the state that is returned, whatever method found it.

    ``z`` of the result can be differentiated, once and twice, in whatever f depends on and requires a gradient:
    parameters of a module, tensors that a function closes over, inputs. No list of them is needed. The gradient is that
    of the equation f = 0, not of the iterations. It is zero in s0, and in a row that failed.

    Args:
        f: a ``VectorField``, or an nn.Module or function f(s) or f(t, s) of states (batch, n), whose rows do not see
            each other.
        s0: where to begin, (batch, n), float32 or float64.
        method: an integrator, a method of Newton or ``Anderson`` around one of these, with its steps in the time of
            f; None takes ``Automatic()``, which follows the flow and ends with Newton's method. Splittings need a
            weight W and refuse a field.
        stop: tolerances and limits; rtol None means 1e-8 in float64 and 1e-5 in float32, atol None means 0.
        time: t, at which a field that changes in time is held.
        smallest: a, the size of an entry of s that counts as zero; None means 1e-4 in float64 and 1e-2 in float32.
        each_entry: ask |fᵢ| ≤ rtol·tᵢ of every entry, instead of f as a whole: for entries of very different sizes.
        certificate: of a rate c in a metric, for ``error_bound``; one that holds in a region only has ``contains``.
        stable: whether a state that repels its neighbours counts as a failure, REPELLING. Newton's methods do not mind
            such states, and implicit integrators with long steps are drawn to them, as is ``Anderson``; explicit ones
            leave them. None means True for implicit integrators and ``Anderson``, and False for all others.
        trace: watches the residual of every step.
        throw: raise if any row fails; otherwise look at ``status``.

    Returns:
        The record of the solve, whose ``z`` are the states.

    Raises:
        InputError: if an argument is of a wrong kind or shape, or rows of f depend on other rows.
        PreconditionError: if the method needs what a field does not have; in backward, if the Jacobian at z is
            singular, or a third derivative is asked for.
        SolveError: if a row failed and ``throw`` is set; carries advice and the partial solution.

    Source: Kelley and Keyes, Convergence analysis of pseudo-transient continuation, SIAM J. Numer. Anal. 35 (1998), for
    the default method.
    """
    problem = field_problem(
        as_field(f), s0, time=time, smallest=smallest, each_entry=each_entry, certificate=certificate
    )
    method = method or Automatic()
    with torch.no_grad(), full_precision(problem.start):
        try:
            solution = _record(solve(problem, method, z0=problem.start, stop=stop, trace=trace, throw=throw))
        except SolveError as error:
            error.solution = error.solution and _record(error.solution)
            raise
        if stable or (stable is None and _may_be_drawn(method.chosen(problem, (stop or Stop()).resolved(problem)))):
            status = torch.where(solution.converged & solution.repelling, Status.REPELLING, solution.status)
            solution = replace(solution, status=status.to(solution.status.dtype))
            if throw and not bool(solution.converged.all()):
                raise SolveError(failure(method, solution), solution)
    if not torch.is_grad_enabled():
        return solution
    return replace(solution, z=attached(problem, solution.z, solution.converged))


def _may_be_drawn(method: Method) -> bool:
    """Whether a method that is to follow the flow may end at a state from which the flow leaves."""
    return isinstance(method, Anderson) or (method.solves_systems and method.family is not Family.NEWTON)


def _record(found: Solution) -> SteadyState:
    return SteadyState(**{entry.name: getattr(found, entry.name) for entry in fields(Solution)})
