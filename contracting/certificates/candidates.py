r"""From a proposed norm to a certificate: the best rate in that norm, and the checker's word on it.

A finder proposes a metric and, for sector inequalities, a multiplier. The best rate for the proposal is a generalised
eigenvalue; it is then lowered until the checker accepts it, so nothing a finder says is ever believed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracting.certificates.checker import check, in_units
from contracting.certificates.lifted.checker import lifted_rate, rescaled_relations
from contracting.certificates.lifted.form import LiftedForm
from contracting.certificates.lure.checker import dissipated_rate, power_of_two
from contracting.certificates.lure.polyhedral import polyhedral_margin
from contracting.certificates.records import ANY_SLOPE, NO_SLOPE, Certificate, CertificateError
from contracting.certificates.systems import (
    FiringRateSystem,
    InclusionSystem,
    LinearSystem,
    SlopeSystem,
    System,
    vertex_jacobians,
    with_slopes,
)
from contracting.display import Displayed
from contracting.errors import InputError
from contracting.lure.system import LureSystem
from contracting.metrics import FullP, Metric, WeightedL1, WeightedL2, WeightedLinf
from contracting.types import Slopes

_LEAST = 1e-300  # A rate is lowered by at least this much, whose digits are not those of a subnormal number.
# The rate is lowered by the first of these, in units of what it is made of, that the checker accepts: each costs a
# factorisation, and what is given away is at most a hundred times what rounding needs.
_BACK_OFF = (1e-13, 1e-11, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Candidate(Displayed):
    """A norm in which a flow may contract.

    Attributes:
        metric: the norm; WeightedL2 or FullP with a multiplier or by vertices, ℓ1 or ℓ∞, or a form of higher degree.
        multiplier: diagonal Q of the sector inequality, (n,), of a LiftedForm the relations of its monomials at each
            vertex, (2ⁿ, N, N), or None.
        slopes: interval for which it was made, if wider than the system's own.
    """

    metric: Metric
    multiplier: Tensor | None = None
    slopes: Slopes | None = None

    def dual(self) -> Candidate:
        """The same for the transposed system: P⁻¹ with multiplier Q⁻¹, and ℓ1 for ℓ∞."""
        multiplier = None if self.multiplier is None else 1 / self.multiplier
        return replace(self, metric=self.metric.dual(), multiplier=multiplier)

    def rescaled(self, scale: Tensor) -> Candidate:
        """The same for the system in the coordinates x' = scale∘x."""
        if isinstance(self.metric, LiftedForm):
            multiplier = rescaled_relations(self.metric, self.multiplier, scale)
        else:
            multiplier = None if self.multiplier is None else self.multiplier / scale / scale
        return replace(self, metric=self.metric.rescaled(scale), multiplier=multiplier)


def certified(system: System, candidate: Candidate, *, method: str) -> Certificate:
    """The certificate with the best rate that the checker accepts for a candidate.

    Raises:
        CertificateError: if it accepts none.
    """
    slopes = candidate.slopes or system.slopes
    rate = best_rate(with_slopes(system, slopes), candidate)
    if isinstance(system, InclusionSystem | LinearSystem):
        slopes = ANY_SLOPE if isinstance(system, InclusionSystem) else NO_SLOPE
    scale = abs(rate) + _size(system, candidate.metric)
    for back_off in _BACK_OFF:
        certificate = Certificate(
            rate=rate - max(back_off * scale, _LEAST),
            metric=candidate.metric,
            slopes=slopes,
            method=method,
            flow=system.name,
            margin=0.0,
            multiplier=candidate.multiplier,
        )
        try:
            return replace(certificate, margin=check(certificate, system))
        except CertificateError as error:
            failure = error
    raise CertificateError(f"{method}: {failure}")


def _size(system: System, metric: Metric) -> float:
    """Of what rates are made of, in the metric."""
    if isinstance(system, LureSystem):
        F = torch.stack([system.A, system.jacobians((system.low + system.high) / 2)])
        return float(metric.operator_norm(F).max())
    leak = 0.0 if isinstance(system, LinearSystem) else 1.0
    return system.speed * (leak + float(metric.operator_norm(system.W)))


def best_rate(system: System, candidate: Candidate) -> float:
    """The largest rate that a candidate proves, up to rounding.

    Raises:
        InputError: for a system and metric that do not go together.
    """
    if isinstance(system, LureSystem):
        return _lure_rate(system, candidate)
    if system.speed != 1:
        return system.speed * best_rate(system.at_speed(1.0), candidate)
    system, metric, Q = in_units(system, candidate.metric, candidate.multiplier)
    W = system.W
    if isinstance(metric, LiftedForm) and not isinstance(system, InclusionSystem):
        return lifted_rate(metric, Q, vertex_jacobians(system))
    if isinstance(system, LinearSystem):
        return -float(metric.matrix_measure(W))
    if isinstance(system, InclusionSystem):
        if not isinstance(metric, WeightedL2):
            raise InputError(f"the inclusion is certified in WeightedL2 only, got {type(metric).__name__}")
        return 1 - float(metric.matrix_measure(W))
    if not isinstance(system, SlopeSystem):
        raise InputError(f"no rate is known for {type(system).__name__}")
    if isinstance(metric, WeightedL1 | WeightedLinf):
        return _polyhedral_rate(system, metric)
    if not isinstance(metric, WeightedL2 | FullP):
        raise InputError(f"no rate is known in {type(metric).__name__}")
    P = metric.matrix
    if Q is None:
        return -float(metric.matrix_measure(vertex_jacobians(system)).max())
    low, width = system.slopes.low, system.slopes.width
    coupled = P + W.mT * Q if isinstance(system, FiringRateSystem) else P @ W + torch.diag(Q)
    drift = P @ (low * W)
    gap = 2 * P - drift - drift.mT - width / 2 * (coupled / Q) @ coupled.mT
    root = torch.linalg.cholesky(P)
    half = torch.linalg.solve_triangular(root, gap, upper=False)
    whitened = torch.linalg.solve_triangular(root, half.mT, upper=False)
    return float(torch.linalg.eigvalsh((whitened + whitened.mT) / 2)[0]) / 2


def _lure_rate(system: LureSystem, candidate: Candidate) -> float:
    metric, multiplier = candidate.metric, candidate.multiplier
    if isinstance(metric, WeightedL1 | WeightedLinf):
        return polyhedral_margin(system, metric, 0.0)
    if isinstance(metric, WeightedL2 | FullP) and multiplier is not None:
        return dissipated_rate(system, metric.matrix, multiplier)
    if isinstance(metric, LiftedForm):
        states = power_of_two(metric.norm(torch.eye(system.size, dtype=torch.float64)))
        relations = rescaled_relations(metric, multiplier, states)
        return lifted_rate(metric.rescaled(states), relations, vertex_jacobians(system.rescaled(states)))
    if multiplier is None:
        return -float(metric.matrix_measure(vertex_jacobians(system)).max())
    raise InputError(f"no rate is known in {type(metric).__name__}")


def _polyhedral_rate(system: SlopeSystem, metric: WeightedL1 | WeightedLinf) -> float:
    """1 − the worst measure: that of a·W or β·W where slopes go by rows, else that of their worst mix."""
    (low, high), W = system.slopes, system.W
    if isinstance(metric, WeightedLinf) == isinstance(system, FiringRateSystem):
        return 1 - max(float(metric.matrix_measure(low * W)), float(metric.matrix_measure(high * W)))
    diagonal = W.diagonal()
    extreme = max(abs(low), abs(high)) * (W - torch.diag(diagonal))
    return 1 - float(metric.matrix_measure(extreme + torch.diag(torch.maximum(low * diagonal, high * diagonal))))
