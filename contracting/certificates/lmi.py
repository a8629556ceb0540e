r"""Certificates by semidefinite programming: the only file that knows cvxpy. Nothing a solver says is believed.

Each inequality is bilinear in the rate and the metric, so the rate is bisected; every metric that comes back, whatever
the solver's status, is rated exactly, which often moves the bisection on by more than half.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.candidates import Candidate, best_rate
from contracting.certificates.finders import RateFinder
from contracting.certificates.records import CertificateError
from contracting.certificates.spectra import eigenvalues
from contracting.certificates.systems import FiringRateSystem, System, vertices
from contracting.certificates.views import slopes_view
from contracting.errors import InputError, PreconditionError
from contracting.metrics import FullP, WeightedL2

_LIBRARIES = ("cvxpy", "clarabel")
MOST_VERTICES = 10  # largest n for 2ⁿ inequalities
_VERTICES = 5  # largest n at which they are solved in passing
_ADDED = 16  # matrices that enter a program at a time
_FLOOR = 1e-6  # smallest eigenvalue of P and entry of Q, where their traces are n


def available() -> bool:
    """Whether the libraries for matrix inequalities are installed."""
    return all(importlib.util.find_spec(name) is not None for name in _LIBRARIES)


def _cvxpy() -> Any:
    cvxpy, *_ = (checks.extra(name, "certificates", "a certificate by matrix inequalities") for name in _LIBRARIES)
    return cvxpy


def _solve(problem: Any) -> bool:
    cp = _cvxpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "solution may be inaccurate": it is checked anyway
        try:
            problem.solve(solver=cp.CLARABEL)
        except cp.error.SolverError:
            return False
    return problem.status not in ("infeasible", "unbounded")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Inequality(RateFinder):
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        checks.number("tolerance", self.tolerance, low=0, high=1, low_open=True)

    def find(self, system: System) -> Candidate:
        view, seen = slopes_view(system)
        # in these coordinates the multiplier is about 1
        start = (view.guess if self.fixed is None else view.weights("multiplier", self.fixed)).sqrt()
        seen = seen.rescaled(start)
        size = max(1e-3, float(torch.linalg.matrix_norm(seen.W, 2)))
        low, high = seen.slopes
        propose = self._program(seen)
        best: Candidate | None = None
        # P = I proves 1 − max|slope|·‖W‖; slopes that include 0 leave an undriven neuron, else |α(DW)| ≤ β‖W‖
        bottom, top = 1 - seen.slopes.largest * size - 1e-3, 1.0 if low <= 0 else 1 + high * size
        rate = bottom
        while top - bottom > self.tolerance * max(1.0, size):
            proposal = propose(rate)
            achieved = -float("inf") if proposal is None else best_rate(seen, proposal)
            if best is None or achieved > bottom:
                best, bottom = proposal, max(bottom, achieved)
            if achieved < rate and rate > bottom:
                top = rate
            rate = (top + bottom) / 2
        if best is None:
            raise CertificateError(f"{self.name}: the solver proposed no metric")
        return view.candidate(best.rescaled(1 / start))

    @property
    def fixed(self) -> Tensor | None:
        """The direction of the multiplier in the caller's coordinates, if it is fixed."""
        return None

    @abstractmethod
    def _program(self, view: FiringRateSystem) -> Any:
        """A function from a rate to the candidate that satisfies the inequality best there, or None.

        Its coordinates are those in which a fixed multiplier is 1.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class SectorInequality(_Inequality):
    r"""The sector inequality with full or diagonal P, and Q free or given (arXiv 2604.15238 Thm 12).

    Args:
        diagonal: restrict P to be diagonal.
        multiplier: fix the direction of Q > 0, (n,); None leaves it free.
        tolerance: of the bisection on the rate, relative to max(1, ‖W‖).
    """

    diagonal: bool = False
    multiplier: Tensor | None = None

    @property
    def name(self) -> str:
        """The method in words."""
        return "sector inequality, " + ("diagonal P" if self.diagonal else "full P")

    @property
    def fixed(self) -> Tensor | None:
        """The multiplier, if one is given."""
        return self.multiplier

    def affordable(self, system: System) -> None:
        return None

    def _program(self, view: FiringRateSystem) -> Any:
        cp, n, W = _cvxpy(), view.size, view.W.numpy()
        low, high = view.slopes
        width, eye = high - low, torch.eye(view.size, dtype=torch.float64).numpy()
        p, full = cp.Variable(n), cp.Variable((n, n), symmetric=True)
        P = cp.diag(p) if self.diagonal else full
        q = cp.Variable(n) if self.multiplier is None else cp.Variable() * torch.ones(n).numpy()
        Q, s, slack = cp.diag(q), cp.Parameter(), cp.Variable()
        corner = 2 * s * P - low * (P @ W + W.T @ P)
        off = -width * (P + W.T @ Q)
        lmi = cp.bmat([[corner, off], [off.T, 2 * width * Q]])
        lmi = (lmi + lmi.T) / 2
        positive = p >= _FLOOR if self.diagonal else P - _FLOOR * eye >> 0
        bounds = [positive, q >= _FLOOR, cp.trace(P) + cp.sum(q) == 2 * n]
        problem = cp.Problem(cp.Maximize(slack), [lmi - slack * torch.eye(2 * n).numpy() >> 0, *bounds])

        def propose(rate: float) -> Candidate | None:
            s.value = 1 - rate
            if not _solve(problem) or P.value is None or q.value is None:
                return None
            metric = _metric(P.value)
            multiplier = torch.as_tensor(q.value, dtype=torch.float64)
            if metric is None or bool((multiplier <= 0).any()):
                return None
            return Candidate(metric=metric, multiplier=multiplier)

        return propose


@dataclass(frozen=True, kw_only=True, eq=False)
class VertexInequalities(_Inequality):
    """One inequality for each of the 2ⁿ vertices of the slopes: the best constant quadratic metric there is, n ≤ 10.

    Args:
        tolerance: of the bisection on the rate, relative to max(1, ‖W‖).
    """

    @property
    def name(self) -> str:
        """The method in words."""
        return "vertex inequalities, full P"

    def applies(self, system: System) -> bool:
        return super().applies(system) and system.size <= MOST_VERTICES

    def affordable(self, system: System) -> Self | None:
        return self if system.size <= _VERTICES and available() else None

    def _program(self, view: FiringRateSystem) -> Any:
        if view.size > MOST_VERTICES:
            limit = f"n ≤ {MOST_VERTICES}, got {view.size}"
            raise PreconditionError(f"2ⁿ inequalities need {limit}; use SectorInequality()")
        program = _lyapunov_program(torch.cat([view.jacobians(block) for block in vertices(view.slopes, view.size)]))

        def propose(rate: float) -> Candidate | None:
            metric = program(rate)
            return None if metric is None else Candidate(metric=metric)

        return propose


def common_metric(jacobians: Tensor, *, diagonal: bool = False, tolerance: float = 1e-4) -> FullP | WeightedL2:
    r"""The P in which all of the given matrices contract fastest: FᵀP + PF ⪯ −2cP with the largest c.

    Only the matrices that decide enter the programs: the worst ones, and those that turn out worst in the metric found.

    Args:
        jacobians: (count, n, n), float64.
        diagonal: restrict P to be diagonal.
        tolerance: of c, relative to the largest norm of a matrix, or to 1 if that is larger.
    """
    gap = tolerance * max(1.0, float(torch.linalg.matrix_norm(jacobians, 2).max()))
    best: FullP | WeightedL2 = WeightedL2(torch.ones(jacobians.shape[-1], dtype=torch.float64))
    measures, active = best.matrix_measure(jacobians), torch.zeros(len(jacobians), dtype=torch.bool)
    rate = -float(measures.max())
    while not bool(active.all()):
        active[measures.topk(min(_ADDED, len(measures))).indices] = True
        metric, reached = _bisected(jacobians[active], diagonal=diagonal, gap=gap)
        measures = metric.matrix_measure(jacobians)
        worst = -float(measures.max())
        if worst > rate:
            best, rate = metric, worst
        if worst >= reached - gap:  # the others do not matter
            break
        if bool(active[int(measures.argmax())]):
            break
    return best


def _bisected(jacobians: Tensor, *, diagonal: bool, gap: float) -> tuple[FullP | WeightedL2, float]:
    """The best metric for a few matrices, and its rate for them."""
    program = _lyapunov_program(jacobians, diagonal=diagonal)
    best: FullP | WeightedL2 = WeightedL2(torch.ones(jacobians.shape[-1], dtype=torch.float64))
    bottom = -float(best.matrix_measure(jacobians).max())
    top = max(bottom, -float(eigenvalues(jacobians).real.max()))
    while top - bottom > gap:
        rate = (top + bottom) / 2
        metric = program(rate)
        reached = -math.inf if metric is None else -float(metric.matrix_measure(jacobians).max())
        if metric is not None and reached > bottom:
            best, bottom = metric, reached
        if reached < rate:
            top = rate
    return best, bottom


def _lyapunov_program(jacobians: Tensor, *, diagonal: bool = False) -> Callable[[float], FullP | WeightedL2 | None]:
    """A function from a rate c to the P with the most room in FᵀP + PF ⪯ −2cP for all given F, or None."""
    cp, n = _cvxpy(), jacobians.shape[-1]
    p, full = cp.Variable(n), cp.Variable((n, n), symmetric=True)
    P, slack, rate_parameter = cp.diag(p) if diagonal else full, cp.Variable(), cp.Parameter()
    eye = torch.eye(n, dtype=torch.float64).numpy()
    constraints = [p >= _FLOOR if diagonal else P - _FLOOR * eye >> 0, cp.trace(P) == n]
    for F in jacobians.numpy():
        constraints.append(-(P @ F + F.T @ P) - 2 * rate_parameter * P - slack * eye >> 0)
    problem = cp.Problem(cp.Maximize(slack), constraints)

    def propose(rate: float) -> FullP | WeightedL2 | None:
        rate_parameter.value = rate
        if not _solve(problem) or P.value is None:
            return None
        if not diagonal:
            return _metric(P.value)
        weights = torch.as_tensor(p.value, dtype=torch.float64)
        return WeightedL2(weights) if bool((weights > 0).all()) else None

    return propose


def _metric(value: Any) -> FullP | None:
    matrix = torch.as_tensor(value.todense() if hasattr(value, "todense") else value, dtype=torch.float64)
    try:
        return FullP((matrix + matrix.mT) / 2)
    except InputError:
        return None


def monotone_weights(W: Tensor) -> tuple[Tensor, Tensor]:
    r"""Λ that maximises λmin(ΛA + AᵀΛ) with Σλ = 1, A = I − W, and the dual X ⪰ 0: (n,), (n, n).

    If the optimum is not positive, X proves that no Λ satisfies Condition 1: X ≠ 0 and (AX)ᵢᵢ ≤ 0 for every i.
    """
    cp, n = _cvxpy(), W.shape[0]
    lam, slack = cp.Variable(n), cp.Variable()
    eye = torch.eye(n, dtype=torch.float64).numpy()
    half = cp.diag(lam) @ (eye - W.numpy())
    inequality = half + half.T - slack * eye >> 0
    problem = cp.Problem(cp.Maximize(slack), [inequality, lam >= _FLOOR / n, cp.sum(lam) == 1])
    if not _solve(problem) or lam.value is None or inequality.dual_value is None:
        raise CertificateError("the solver returned no metric")
    return torch.as_tensor(lam.value, dtype=torch.float64), torch.as_tensor(inequality.dual_value, dtype=torch.float64)
