"""Certified rates beside the truth over families of flows: growing skew part, and firing rate to inclusion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.certification import Report, certify, report
from contracting.certificates.finders import DiagonalMetric, InclusionMetric
from contracting.certificates.records import Certificate
from contracting.certificates.systems import FiringRateSystem, InclusionSystem, forward_backward_system
from contracting.certificates.upper_bounds import upper_bound
from contracting.display import Tabular
from contracting.errors import InputError
from contracting.maps.operator import self_adjoint
from contracting.metrics import WeightedL2

_ROUNDING = 100  # Entries that would be equal in exact arithmetic may differ by so many units of rounding.


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SkewnessSweep(Tabular):
    """The firing-rate flow of I − Λ^−½(H + sK)Λ^½ with ‖K‖ = 1, over sizes s of its skew part.

    Attributes:
        skewness: s, (k,).
        reports: every certificate and the upper bound at each s.
    """

    skewness: Tensor
    reports: tuple[Report, ...]

    def _each(self) -> Iterator[dict[str, Any]]:
        for size, found in zip(self.skewness.tolist(), self.reports, strict=True):
            best = found.best
            yield {"skewness": size, "certified": best.rate, "upper_bound": found.bound.rate, "method": best.method}


def sweep_skewness(W: Tensor, metric: WeightedL2, skewness: Tensor) -> SkewnessSweep:
    """Scale the skew part of Ã = Λ^½(I − W)Λ^−½ to each of the given sizes, and report.

    Args:
        W: (n, n), with a skew part in the metric.
        metric: Λ.
        skewness: ‖K‖, (k,), not negative.

    Raises:
        InputError: if W is self-adjoint in the metric, so that there is nothing to scale, a size is negative, or an
            argument is of a wrong kind or shape.
    """
    if not isinstance(metric, WeightedL2):
        raise InputError(f"metric must be a WeightedL2, got {type(metric).__name__}")
    if checks.floating_tensor("skewness", skewness).ndim != 1:
        raise InputError(f"skewness must have shape (k,), got {tuple(skewness.shape)}")
    if bool((checks.finite("skewness", skewness) < 0).any()):
        raise InputError(f"skewness must not be negative, its smallest entry is {float(skewness.min()):.3g}")
    lam = WeightedL2(metric.weights.detach().to("cpu", torch.float64))
    M = lam.whiten(FiringRateSystem(W=W).W)
    symmetric, skew = (M + M.mT) / 2, (M - M.mT) / 2
    size = float(torch.linalg.matrix_norm(skew, 2))
    rounding = _ROUNDING * torch.finfo(W.dtype).eps
    if self_adjoint((torch.eye(len(M), dtype=torch.float64) - M)[None], rounding):
        raise InputError("W is self-adjoint in this metric: it has no skew part to scale")
    reports = []
    for s in skewness.tolist():
        scaled = lam.dual()
        assert isinstance(scaled, WeightedL2)
        weight = scaled.whiten(symmetric + s / size * skew)  # Λ^−½ · Λ^½
        reports.append(report(FiringRateSystem(W=weight, hint=lam.weights)))
    return SkewnessSweep(skewness=skewness, reports=tuple(reports))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StepSweep(Tabular):
    r"""Rates of z' = (prox_{αf}(z − α(Az − q)) − z)/α from the firing-rate flow, α = 1, to the inclusion, α → 0.

    Attributes:
        steps: α, (k,).
        certified: the best certified rate in any metric that is tried, (k,).
        diagonal: the rate proved in Λ by Condition 1 alone, (k,).
        bound: the upper bound in any norm, (k,).
        inclusion: the certificate of the limit in the best diagonal metric.
        monotonicity: m in Λ, the limit of ``diagonal``.
    """

    steps: Tensor
    certified: Tensor
    diagonal: Tensor
    bound: Tensor
    inclusion: Certificate
    monotonicity: float

    def _each(self) -> Iterator[dict[str, Any]]:
        columns = (self.steps, self.certified, self.diagonal, self.bound)
        for values in zip(*(column.tolist() for column in columns), strict=True):
            yield dict(zip(("step", "certified", "in_the_metric", "upper_bound"), values, strict=True))


def sweep_steps(W: Tensor, metric: WeightedL2, steps: Tensor | Sequence[float]) -> StepSweep:
    """Certify the forward–backward flow at every step, in time t/α.

    Args:
        W: (n, n).
        metric: Λ with Condition 1.
        steps: α > 0, (k,).
    """
    steps = checks.positive_tensor("steps", torch.as_tensor(steps, dtype=torch.float64))
    lam = metric.weights.detach().to("cpu", torch.float64)
    certified, diagonal, bounds = [], [], []
    for step in steps.tolist():
        system = forward_backward_system(W, step=step, hint=lam).at_speed(1 / step)
        certified.append(certify(system).rate)
        diagonal.append(DiagonalMetric(weights=lam).certify(system).rate)
        bounds.append(upper_bound(system).rate)
    limit = InclusionSystem(W=W, hint=lam)
    return StepSweep(
        steps=steps,
        certified=torch.tensor(certified, dtype=torch.float64),
        diagonal=torch.tensor(diagonal, dtype=torch.float64),
        bound=torch.tensor(bounds, dtype=torch.float64),
        inclusion=certify(limit),
        monotonicity=InclusionMetric(optimise=0).certify(limit).rate,
    )
