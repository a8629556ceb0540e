r"""Forms of higher degree by semidefinite programming, in coordinates in which the best quadratic metric is Euclidean.

There P = I proves the rate of that metric, in every degree, so that no degree is worse; and each P is rated exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.balance import balancing
from contracting.certificates.candidates import Candidate
from contracting.certificates.finders import RateFinder, has_rate, slopes_of
from contracting.certificates.lifted.checker import lifted_rate, rescaled_relations
from contracting.certificates.lifted.form import LiftedForm
from contracting.certificates.lifted.monomials import Basis, Lift, lift
from contracting.certificates.lmi import MOST_VERTICES, available, bisected, common_metric, programming, solves
from contracting.certificates.lure.views import lure_view
from contracting.certificates.records import CertificateError
from contracting.certificates.spectra import eigenvalues
from contracting.certificates.systems import LinearSystem, System, vertex_jacobians
from contracting.errors import InputError, PreconditionError
from contracting.lure.system import LureSystem

# The most numbers that a program may look for: P, and where asked for the relations of every vertex. One with 4,000
# takes minutes.
_MOST_UNKNOWNS = 5000
_IN_PASSING = 100  # The most for which ``certify`` and ``report`` look in passing, in a second or two.
_FLOOR = 1e-4  # What must be positive has no smaller eigenvalue, where the trace of P is its size.


@dataclass(frozen=True, kw_only=True, eq=False)
class LiftedInequality(RateFinder):
    r"""A norm that is the 2d-th root of a form, which goes past the best quadratic metric: for small n.

    With s^{[d]} all monomials of degree d and F^{[d]} what moves them where s' = Fs, a form s^{[d]ᵀ}Ps^{[d]} contracts
    at rate c if F^{[d]ᵀ}P + PF^{[d]} + 2dcP ⪯ S_F at every vertex F of the slopes, where the form of S_F is zero
    (homogeneous polynomial Lyapunov functions: Chesi, Garulli, Tesi, Vicino, "Homogeneous Polynomial Forms for
    Robustness Analysis of Uncertain Systems", 2009).

    Args:
        degree: d ≥ 1; d = 1 is ``VertexInequalities``. Of C(n + d − 1, d) monomials at most 80 are affordable.
        relations: use that monomials are related, as (s₁²)(s₂²) = (s₁s₂)², by an S_F for each vertex; S_F = 0 without.
            It goes about as far as twice the degree does without, and needs many more unknowns for large n.
        norm: look among the convex forms only, which are norms; else the metric says whether its form is ``convex``.
        tolerance: of the rate, relative to the largest norm of a Jacobian, or to 1 if that is larger.
    """

    degree: int = 2
    relations: bool = True
    norm: bool = True
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        checks.whole_number("degree", self.degree)
        checks.number("tolerance", self.tolerance, low=0, high=1, low_open=True)

    @property
    def name(self) -> str:
        """The method in words."""
        kind = "norm" if self.norm else "form"
        return f"{kind} of degree {2 * self.degree}, {'with' if self.relations else 'without'} relations"

    def applies(self, system: System) -> bool:
        known = super().applies(system) or has_rate(system) or isinstance(system, LinearSystem)
        return known and slopes_of(system) <= MOST_VERTICES

    def affordable(self, system: System) -> Self | None:
        if isinstance(system, LinearSystem) or not available():
            return None  # in a linear flow nothing is better than a quadratic metric
        return self if system.size < 20 and self._unknowns(system) <= _IN_PASSING else None

    def _unknowns(self, system: System) -> int:
        n, d = system.size, self.degree
        count = math.comb(n + d - 1, d)
        each = count * (count + 1) // 2
        spare = each - math.comb(n + 2 * d - 1, 2 * d) if self.relations else 0
        return each + spare * 2 ** slopes_of(system)

    def find(self, system: System) -> Candidate:
        if not self.applies(system):
            limit = f"a state and at most {MOST_VERTICES} bounded slopes"
            raise PreconditionError(f"{self.name}: a proof at all vertices needs {limit}, got {system.name}")
        try:
            of = lift(system.size, self.degree)
        except InputError as error:
            raise PreconditionError(f"{self.name}: {error}") from error
        if self._unknowns(system) > _MOST_UNKNOWNS:
            raise PreconditionError(
                f"{self.name}: the program would look for {self._unknowns(system)} numbers, of which at most "
                f"{_MOST_UNKNOWNS} are affordable: take a smaller degree, or relations=False"
            )
        scale = (
            lure_view(system).states
            if isinstance(system, LureSystem)
            else balancing(system.W, leak=0.0 if isinstance(system, LinearSystem) else 1.0)
        )
        jacobians = vertex_jacobians(system.rescaled(scale))
        quadratic = common_metric(jacobians, tolerance=self.tolerance)
        R = torch.linalg.cholesky(quadratic.matrix).mT
        whitened = R @ jacobians @ torch.linalg.inv(R)
        found = _best_form(whitened, of, relations=self.relations, norm=self.norm, tolerance=self.tolerance)
        return _proved(found, scale, R)


def _best_form(jacobians: Tensor, of: Lift, *, relations: bool, norm: bool, tolerance: float) -> Candidate:
    """The form in which all of the given matrices contract fastest, not slower than in the Euclidean norm."""
    d = of.degree
    if not (relations or norm):  # which matrices decide is found out on the way
        return Candidate(metric=LiftedForm(common_metric(of.flow(jacobians) / d, tolerance=tolerance).matrix, d))
    start = Candidate(metric=LiftedForm(torch.eye(of.count, dtype=torch.float64), d))
    if d == 1:
        return start

    def rate_of(candidate: Candidate) -> float:
        assert isinstance(candidate.metric, LiftedForm)
        return lifted_rate(candidate.metric, candidate.multiplier, jacobians)

    gap = tolerance * max(1.0, float(torch.linalg.matrix_norm(jacobians, 2).max()))
    bottom, top = rate_of(start), -float(eigenvalues(jacobians).real.max())
    program = _program(jacobians, of, relations=relations, norm=norm)
    found = bisected(program, rate_of, bottom=bottom, top=top, gap=gap)
    return start if found is None or rate_of(found) <= bottom else found


def _program(jacobians: Tensor, of: Lift, *, relations: bool, norm: bool) -> Callable[[float], Candidate | None]:
    """A function from a rate to the form with the most room in the inequalities, or None."""
    cp, N = programming(), of.count
    P, slack, c, identity = cp.Variable((N, N), symmetric=True), cp.Variable(), cp.Parameter(), torch.eye(N).numpy()
    constraints = [P - _FLOOR * identity >> 0, cp.trace(P) == N]
    spare, curvature = [], None
    for F in of.flow(jacobians).numpy():
        left = -(P @ F + F.T @ P) - 2 * of.degree * c * P
        if relations and len(of.relations):
            spare.append(_spare(of))
            left = left + spare[-1]
        constraints.append(left - slack * identity >> 0)
    if norm:
        basis = of.directions
        entries = torch.eye(N * N, dtype=torch.float64).reshape(N * N, N, N)
        hessian = of.hessian(entries).flatten(-2).mT.numpy() @ cp.vec(P, order="C")
        form = cp.reshape(hessian, 2 * (basis.count,), order="C")
        if len(basis.relations):
            curvature = _spare(basis)
            form = form + curvature
        constraints.append((form + form.T) / 2 - _FLOOR * torch.eye(basis.count).numpy() >> 0)
    problem = cp.Problem(cp.Maximize(slack), constraints)

    def propose(rate: float) -> Candidate | None:
        c.value = rate
        if not solves(problem) or P.value is None:
            return None
        matrix = torch.as_tensor(P.value, dtype=torch.float64)
        multiplier = torch.stack([torch.as_tensor(S.value, dtype=torch.float64) for S in spare]) if spare else None
        proof = None if curvature is None else _value(curvature)
        try:
            metric = LiftedForm((matrix + matrix.mT) / 2, of.degree, proof)
        except InputError:
            return None
        return Candidate(metric=metric, multiplier=multiplier)

    return propose


def _spare(basis: Basis) -> Any:
    """An unknown matrix whose form is zero."""
    cp = programming()
    coefficients = cp.Variable(len(basis.relations))
    return cp.reshape(basis.relations.mT.numpy() @ coefficients, 2 * (basis.count,), order="C")


def _value(matrix: Any) -> Tensor | None:
    """What a solver found for it."""
    return None if matrix.value is None else torch.as_tensor(matrix.value, dtype=torch.float64)


def _most_definite(matrix: Tensor, basis: Basis) -> Tensor | None:
    """The matrix with no form that raises the smallest eigenvalue of a given one the most, or None."""
    if not len(basis.relations):
        return None
    cp = programming()
    spare, slack = _spare(basis), cp.Variable()
    size = float(torch.linalg.matrix_norm(matrix)) or 1.0
    problem = cp.Problem(
        cp.Maximize(slack), [(matrix / size).numpy() + spare - slack * torch.eye(basis.count).numpy() >> 0]
    )
    found = _value(spare) if solves(problem) else None
    return None if found is None else size * found


def _proved(candidate: Candidate, scale: Tensor, R: Tensor) -> Candidate:
    """What was found in the coordinates x' = R(scale∘x) in the caller's own, with what can be proved of its form.

    Raises:
        CertificateError: if it is no form in float64.
    """
    metric, relations = candidate.metric, candidate.multiplier
    assert isinstance(metric, LiftedForm)
    of, d = metric.lift, metric.degree
    curvature = _curvature(metric)
    if curvature is not None:
        moved = torch.kron(lift(of.size, d - 1).map(R), R)
        curvature = moved.mT @ curvature @ moved
    moved = of.map(R)
    matrix = moved.mT @ metric.matrix @ moved
    try:
        metric = LiftedForm((matrix + matrix.mT) / 2, d, curvature).rescaled(1 / scale)
        relations = None if relations is None else moved.mT @ relations @ moved
        found = Candidate(metric=metric, multiplier=rescaled_relations(metric, relations, 1 / scale))
    except InputError as error:
        raise CertificateError(f"the form found is not positive definite in float64: {error}") from error
    return replace(found, metric=replace(metric, spread=_spread(metric)))


def with_proofs(metric: LiftedForm) -> LiftedForm:
    """A form of your own with what can be proved of it: that it is convex, and how far from Euclidean it is."""
    return replace(metric, curvature=_curvature(metric), spread=_spread(metric))


def _curvature(metric: LiftedForm) -> Tensor | None:
    """What proves best that it is convex, if it is not there yet."""
    if metric.curvature is not None or metric.degree == 1:
        return metric.curvature
    return _most_definite(metric.lift.hessian(metric.matrix), metric.lift.directions)


def _spread(metric: LiftedForm) -> Tensor | None:
    """What proves best its smallest and its largest value on the sphere."""
    low, high = (_most_definite(sign * metric.matrix, metric.lift) for sign in (1.0, -1.0))
    return None if low is None or high is None else torch.stack([low, high])
