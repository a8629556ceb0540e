r"""Certificates by semidefinite programming, of which nothing is believed. Only this file imports cvxpy.

Each inequality is bilinear in the rate and the metric, so the rate is bisected; every metric that comes back, whatever
the solver's status, is rated exactly, which often moves the bisection on by more than half.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.candidates import Candidate, best_rate
from contracting.certificates.finders import RateFinder, has_rate, slopes_of
from contracting.certificates.lure.questions import RateQuestion
from contracting.certificates.lure.search import well_posed
from contracting.certificates.lure.views import lure_view
from contracting.certificates.records import CertificateError
from contracting.certificates.spectra import eigenvalues
from contracting.certificates.systems import FiringRateSystem, System, vertex_jacobians
from contracting.certificates.views import slopes_view
from contracting.errors import InputError, PreconditionError
from contracting.lure.system import LureSystem
from contracting.metrics import FullP, WeightedL2

T = TypeVar("T")

_LIBRARIES = ("cvxpy", "clarabel")
MOST_VERTICES = 10  # The largest n for which 2ⁿ inequalities are written down.
_VERTICES = 7  # The largest n for which ``certify`` and ``report`` solve them in passing: in about half a second.
_ADDED = 16  # So many matrices enter a program at a time: more make each program slower, fewer need more programs.
_FLOOR = 1e-6  # P has no smaller eigenvalue and Q no smaller entry, where their traces are n.


def available() -> bool:
    """Whether the libraries for matrix inequalities are installed."""
    return all(importlib.util.find_spec(name) is not None for name in _LIBRARIES)


def programming() -> Any:
    """The library cvxpy.

    Raises:
        MissingExtraError: without it or without Clarabel, the extra ``certificates``.
    """
    cvxpy, *_ = (checks.extra(name, "certificates", "a certificate by matrix inequalities") for name in _LIBRARIES)
    return cvxpy


def solves(problem: Any) -> bool:
    """Solve a program, and say whether its variables may have values; they are checked anyway."""
    cp = programming()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "solution may be inaccurate": it is checked anyway
        try:
            problem.solve(solver=cp.CLARABEL)
        except cp.error.SolverError:
            return False
    return problem.status not in ("infeasible", "unbounded")


def _unknown_metric(size: int, *, diagonal: bool) -> tuple[Any, Any, Callable[[], FullP | WeightedL2 | None]]:
    """P of a program, the constraint that it is positive definite, and what a solver found, None if it is no metric."""
    cp = programming()
    p, full = cp.Variable(size), cp.Variable((size, size), symmetric=True)

    def found() -> FullP | WeightedL2 | None:
        value = (p if diagonal else full).value
        if value is None:
            return None
        value = torch.as_tensor(value, dtype=torch.float64)
        try:
            return WeightedL2(value) if diagonal else FullP((value + value.mT) / 2)
        except InputError:
            return None

    if diagonal:
        return cp.diag(p), p >= _FLOOR, found
    return full, full - _FLOOR * torch.eye(size).double().numpy() >> 0, found


def bisected(
    propose: Callable[[float], T | None], rate_of: Callable[[T], float], *, bottom: float, top: float, gap: float
) -> T | None:
    """The proposal with the best rate, found by bisection up to ``gap``; None where nothing was proposed.

    Args:
        propose: what a program finds for a rate; whatever it is, only what it is rated counts.
        rate_of: the rate that a proposal really has.
        bottom: a rate that is known to be reached.
        top: a rate that is known not to be exceeded.
        gap: where the bisection stops.
    """
    best: T | None = None
    rate = bottom
    while top - bottom > gap:
        proposal = propose(rate)
        reached = -math.inf if proposal is None else rate_of(proposal)
        if best is None or reached > bottom:
            best, bottom = proposal, max(bottom, reached)
        if reached < rate and rate > bottom:
            top = rate
        rate = (top + bottom) / 2
    return best


@dataclass(frozen=True, kw_only=True, eq=False)
class SectorInequality(RateFinder):
    r"""The sector inequality with full or diagonal P, and Q free or given (arXiv 2604.15238 Thm 12).

    Args:
        diagonal: restrict P to be diagonal.
        multiplier: fix the direction of Q > 0, (n,); None leaves it free.
        tolerance: of the bisection on the rate, relative to max(1, ‖W‖).
    """

    diagonal: bool = False
    multiplier: Tensor | None = None
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        checks.number("tolerance", self.tolerance, low=0, high=1, low_open=True)

    @property
    def name(self) -> str:
        """The method in words."""
        return "sector inequality, " + ("diagonal P" if self.diagonal else "full P")

    def applies(self, system: System) -> bool:
        return super().applies(system) or has_rate(system)

    def affordable(self, system: System) -> None:
        return None

    def find(self, system: System) -> Candidate:
        if isinstance(system, LureSystem):
            return self._of_loop(system)
        view, seen = slopes_view(system)
        # in these coordinates the multiplier is about 1, and exactly 1 if it is given
        start = (view.guess if self.multiplier is None else view.weights("multiplier", self.multiplier)).sqrt()
        seen = seen.rescaled(start)
        size = max(1e-3, float(torch.linalg.matrix_norm(seen.W, 2)))
        low, high = seen.slopes
        best = bisected(
            self._program(seen),
            lambda candidate: best_rate(seen, candidate),
            # P = I proves 1 − max|slope|·‖W‖; slopes that include 0 leave an undriven neuron, else |α(DW)| ≤ β‖W‖
            bottom=1 - seen.slopes.largest * size - 1e-3,
            top=1.0 if low <= 0 else 1 + high * size,
            gap=self.tolerance * max(1.0, size),
        )
        if best is None:
            raise CertificateError(f"{self.name}: the solver proposed no metric")
        return view.candidate(best.rescaled(1 / start))

    def _of_loop(self, system: LureSystem) -> Candidate:
        """The same with A, B, C and D, in coordinates in which the multiplier is about 1."""
        view = lure_view(system)
        question = RateQuestion(system=view.system)
        start = view.multiplier(self.multiplier)
        if self.multiplier is None:
            start = well_posed(question, start)
        gap = self.tolerance * max(question.scale, 1.0)
        bottom, root = question.best(start, gap), start.sqrt()
        seen = view.system.rescaled(torch.ones(system.size, dtype=torch.float64), root)
        best = None
        if bottom > -math.inf:
            rated = partial(best_rate, seen)
            best = bisected(self._loop_program(seen), rated, bottom=bottom, top=question.most, gap=gap)
        if best is None or best.multiplier is None:
            raise CertificateError(f"{self.name}: the solver proposed no metric")
        return view.candidate(replace(best, multiplier=best.multiplier * start))

    def _program(self, seen: FiringRateSystem) -> Callable[[float], Candidate | None]:
        """A function from a rate to the candidate that satisfies the inequality best there, or None."""
        identity, low, width = torch.eye(seen.size, dtype=torch.float64), seen.slopes.low, seen.slopes.width
        # the multiplier of slopes in [0, 1] is width times the one of the record
        loop = LureSystem(A=low * seen.W - identity, B=width * identity, C=seen.W, D=0 * seen.W)
        propose = self._loop_program(loop)

        def own(rate: float) -> Candidate | None:
            found = propose(rate)
            if found is None or found.multiplier is None:
                return None
            return replace(found, multiplier=found.multiplier / width)

        return own

    def _loop_program(self, seen: LureSystem) -> Callable[[float], Candidate | None]:
        """The same of a loop with slopes in [0, 1]."""
        cp, n, m = programming(), seen.size, seen.neurons
        A, B, C, D = (matrix.numpy() for matrix in (seen.A, seen.B, seen.C, seen.D))
        P, positive, found = _unknown_metric(n, diagonal=self.diagonal)
        q = cp.Variable(m) if self.multiplier is None else cp.Variable() * torch.ones(m).numpy()
        Q, c, slack = cp.diag(q), cp.Parameter(), cp.Variable()
        corner = -(P @ A + A.T @ P) - 2 * c * P
        off = -(P @ B + C.T @ Q)
        lmi = cp.bmat([[corner, off], [off.T, 2 * Q - Q @ D - D.T @ Q]])
        lmi = (lmi + lmi.T) / 2
        bounds = [positive, q >= _FLOOR, cp.trace(P) + cp.sum(q) == n + m]
        problem = cp.Problem(cp.Maximize(slack), [lmi - slack * torch.eye(n + m).numpy() >> 0, *bounds])

        def propose(rate: float) -> Candidate | None:
            c.value = rate
            if not solves(problem) or q.value is None:
                return None
            metric, multiplier = found(), torch.as_tensor(q.value, dtype=torch.float64)
            if metric is None or bool((multiplier <= 0).any()):
                return None
            return Candidate(metric=metric, multiplier=multiplier)

        return propose


@dataclass(frozen=True, kw_only=True, eq=False)
class VertexInequalities(RateFinder):
    """One inequality for each vertex of the slopes: the best constant quadratic metric there is, for up to 10 slopes.

    Args:
        tolerance: of the rate, relative to the largest norm of a Jacobian, or to 1 if that is larger.
    """

    tolerance: float = 1e-5
    name = "vertex inequalities, full P"

    def __post_init__(self) -> None:
        checks.number("tolerance", self.tolerance, low=0, high=1, low_open=True)

    def applies(self, system: System) -> bool:
        return (super().applies(system) or has_rate(system)) and slopes_of(system) <= MOST_VERTICES

    def affordable(self, system: System) -> Self | None:
        return self if slopes_of(system) <= _VERTICES and available() else None

    def find(self, system: System) -> Candidate:
        if isinstance(system, LureSystem) and system.neurons <= MOST_VERTICES:
            loop = lure_view(system)
            balanced = system.rescaled(loop.states, loop.neurons)
            metric = common_metric(vertex_jacobians(balanced), tolerance=self.tolerance)
            return loop.candidate(Candidate(metric=metric))
        view, seen = slopes_view(system)
        if seen.size > MOST_VERTICES:
            limit = f"n ≤ {MOST_VERTICES}, got {seen.size}"
            raise PreconditionError(f"2ⁿ inequalities need {limit}; use SectorInequality()")
        start = view.guess.sqrt()
        seen = seen.rescaled(start)
        metric = common_metric(vertex_jacobians(seen), tolerance=self.tolerance)
        return view.candidate(Candidate(metric=metric).rescaled(1 / start))


def common_metric(jacobians: Tensor, *, diagonal: bool = False, tolerance: float = 1e-4) -> FullP | WeightedL2:
    r"""The P in which all of the given matrices contract fastest: FᵀP + PF ⪯ −2cP with the largest c.

    Only the matrices that decide enter the programs: the worst ones, and those that turn out worst in the metric found.

    Args:
        jacobians: (count, n, n), float64.
        diagonal: restrict P to be diagonal, which makes it a WeightedL2.
        tolerance: of c, relative to the largest norm of a matrix, or to 1 if that is larger.

    Raises:
        CertificateError: if the solver fails at every rate.
    """
    gap = tolerance * max(1.0, float(torch.linalg.matrix_norm(jacobians, 2).max()))
    ones = torch.ones(jacobians.shape[-1], dtype=torch.float64)
    euclidean: FullP | WeightedL2 = WeightedL2(ones) if diagonal else FullP(torch.diag(ones))
    best, measures = euclidean, euclidean.matrix_measure(jacobians)
    active = torch.zeros(len(jacobians), dtype=torch.bool)
    while not bool(active.all()):
        active[measures.topk(min(_ADDED, len(measures))).indices] = True
        deciding = jacobians[active]
        bottom, top = _rate(euclidean, deciding), -float(eigenvalues(deciding).real.max())
        program, rate_of = _lyapunov_program(deciding, diagonal=diagonal), partial(_rate, jacobians=deciding)
        found: FullP | WeightedL2 | None = bisected(program, rate_of, bottom=bottom, top=top, gap=gap)
        if found is None and top - bottom > gap:
            raise CertificateError("the semidefinite programs for a common metric were not solved")
        metric = found or euclidean
        measures = metric.matrix_measure(jacobians)
        if -float(measures.max()) > _rate(best, jacobians):
            best = metric
        # done where the others do not matter, or where the worst is one that the program knew
        if -float(measures.max()) >= _rate(metric, deciding) - gap or bool(active[int(measures.argmax())]):
            break
    return best


def _rate(metric: FullP | WeightedL2, jacobians: Tensor) -> float:
    return -float(metric.matrix_measure(jacobians).max())


def _lyapunov_program(jacobians: Tensor, *, diagonal: bool) -> Callable[[float], FullP | WeightedL2 | None]:
    """A function from a rate c to the P with the most room in FᵀP + PF ⪯ −2cP for all given F, or None."""
    cp, n = programming(), jacobians.shape[-1]
    P, positive, found = _unknown_metric(n, diagonal=diagonal)
    slack, rate_parameter, eye = cp.Variable(), cp.Parameter(), torch.eye(n, dtype=torch.float64).numpy()
    constraints = [positive, cp.trace(P) == n]
    for F in jacobians.numpy():
        constraints.append(-(P @ F + F.T @ P) - 2 * rate_parameter * P - slack * eye >> 0)
    problem = cp.Problem(cp.Maximize(slack), constraints)

    def propose(rate: float) -> FullP | WeightedL2 | None:
        rate_parameter.value = rate
        return found() if solves(problem) else None

    return propose


def monotone_weights(W: Tensor) -> tuple[Tensor, Tensor]:
    r"""Λ that maximises λmin(ΛA + AᵀΛ) with Σλ = 1, A = I − W, and the dual X ⪰ 0: (n,), (n, n).

    If the optimum is not positive, X proves that no Λ satisfies Condition 1: X ≠ 0 and (AX)ᵢᵢ ≤ 0 for every i.
    """
    cp, n = programming(), W.shape[0]
    lam, slack = cp.Variable(n), cp.Variable()
    eye = torch.eye(n, dtype=torch.float64).numpy()
    half = cp.diag(lam) @ (eye - W.numpy())
    inequality = half + half.T - slack * eye >> 0
    problem = cp.Problem(cp.Maximize(slack), [inequality, lam >= _FLOOR / n, cp.sum(lam) == 1])
    if not solves(problem) or lam.value is None or inequality.dual_value is None:
        raise CertificateError("the solver returned no metric")
    return torch.as_tensor(lam.value, dtype=torch.float64), torch.as_tensor(inequality.dual_value, dtype=torch.float64)
