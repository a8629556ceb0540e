r"""Convergence for constant input: what Condition 1 alone gives to the firing-rate and Hopfield flows.

Hopfield, in the coordinates where Λ = I, with e = v − v*, s = σ(v) − σ(v*), e' = −e + Ws, slopes in [0, 1]: the
Lur'e–Postnikov function V = ½k‖e‖² + Σ∫₀^{eᵢ} sᵢ with k = m/w² falls at rate min(1, m). Indeed
V' ≤ −½k‖e‖² + (1 − m/2)‖s‖² − s·e, the integral is at most s·e − ½‖s‖², and s·e ≥ ‖s‖². As ½k‖e‖² ≤ V ≤ ½(k + 1)‖e‖²,

    ‖v(t) − v*‖ ≤ √(1 + w²/m) e^{−½min(1, m)t} ‖v(0) − v*‖.

Firing rate: with v = Wz + q, the same bound drives z' = −z + σ(v), which costs a factor. Slopes in [0, β]: W is βW.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from contracting.certificates.checker import in_units, inclusion_margin
from contracting.certificates.definite import SMALLEST, UNIT, definite_margin, sizes
from contracting.certificates.records import CertificateError, Convergence
from contracting.certificates.systems import FiringRateSystem, SlopeSystem, System, system_of
from contracting.certificates.wellposedness import find_metric
from contracting.errors import PreconditionError
from contracting.flows.base import BoundFlow
from contracting.metrics import WeightedL2
from contracting.types import Slopes

_SAFETY = 1e-9  # Rates and overshoots are given away by this share, so that rounding of the formulas cannot matter.
_UNITS = 20  # So many units of rounding times n² are left of an inequality; see ``_slack``.


def fixed_input_convergence(flow: BoundFlow | System, *, metric: WeightedL2 | None = None) -> Convergence:
    """Certified rate and overshoot with which a flow reaches its steady state for constant input.

    Args:
        flow: a firing-rate, Hopfield or forward–backward flow, or its explicit matrices.
        metric: Λ with Condition 1 for the flow's weight; None takes the metric of the problem, or searches one.

    Raises:
        PreconditionError: for flows with negative slopes (Peaceman–Rachford contracts; use ``certify``), and where no
            metric is given or found.
        CertificateError: if Condition 1 fails in the metric that was given.
    """
    system = system_of(flow)
    if not isinstance(system, SlopeSystem) or system.slopes[0] < 0:
        raise PreconditionError(f"this bound is about slopes in [0, 1]; certify() covers the {system.name} flow")
    W = system.slopes[1] * system.W
    if system.speed != 1:
        unit = fixed_input_convergence(system.at_speed(1.0), metric=metric)
        scaled = replace(unit, rate=system.speed * unit.rate * (1 - _SAFETY), flow=system.name)
        return replace(scaled, margin=check_convergence(scaled, system))
    if metric is None and system.hint is not None:
        metric = WeightedL2(system.hint)
    if metric is None:
        metric = find_metric(W).metric
        if metric is None:
            raise PreconditionError("no metric with Condition 1 was found for this weight: convergence is open")
    metric = WeightedL2(metric.weights.detach().to("cpu", torch.float64))
    w = _norm_bound(W, metric)
    m = 1 - float(metric.matrix_measure(W))
    m -= _slack(system.size) * (1 + abs(m) + w)
    if m <= 0:
        raise CertificateError(f"Condition 1 fails in this metric: λmin(sym Ã) = {m:.3g}")
    overshoot = math.sqrt(1 + w**2 / m) * (1 + _SAFETY)
    rate = 0.5 * min(1.0, m)
    if isinstance(system, FiringRateSystem):
        overshoot = math.nextafter(1 + overshoot * w / (1 - rate), math.inf)  # a tiny W must not vanish beside 1
    certificate = Convergence(
        rate=rate,
        overshoot=overshoot,
        metric=metric,
        slopes=Slopes(0.0, system.slopes.high),
        method="Lur'e–Postnikov function",
        flow=system.name,
        margin=0.0,
    )
    return replace(certificate, margin=check_convergence(certificate, system))


def check_convergence(certificate: Convergence, system: System) -> float:
    """Prove a convergence certificate again from explicit matrices.

    Returns:
        The margin of the matrix inequalities it rests on, at unit diagonal and after rounding, > 0.

    Raises:
        CertificateError: if it does not follow.
    """
    if not isinstance(system, SlopeSystem) or system.slopes[0] < 0:
        raise CertificateError(f"nothing is proved for the {system.name} flow")
    if system.speed != 1:
        unit_rate = math.nextafter(certificate.rate / system.speed, math.inf)
        return check_convergence(replace(certificate, rate=unit_rate), system.at_speed(1.0))
    if system.slopes[1] > certificate.slopes[1] or certificate.metric.size != system.size:
        raise CertificateError("the certificate is about other slopes or another size")
    if not isinstance(certificate.metric, WeightedL2) or not 0 < certificate.rate <= 0.5:
        raise CertificateError("the bound holds in WeightedL2, at rates in (0, ½]")
    balanced, metric, _ = in_units(system, certificate.metric, None)
    assert isinstance(metric, WeightedL2)
    W, lam = certificate.slopes[1] * balanced.W, metric.weights
    w = _norm_bound(W, metric)
    excess = certificate.overshoot
    if isinstance(system, FiringRateSystem):
        excess = (excess - 1) * (1 - certificate.rate) / w
    if not excess > 1:
        raise CertificateError(f"an overshoot of {certificate.overshoot:.4g} is too small")
    # rate ≤ ½m and 1 + w²/m ≤ C² hold for every m that the weight is proved to have
    needed = max(2 * certificate.rate, w**2 / (excess**2 - 1))
    margins = {
        f"λmin(sym Ã) > {needed:.4g} (Condition 1)": inclusion_margin(W, lam, needed),
        f"‖W̃‖ < {w:.4g}": _norm_margin(W, lam, w),
    }
    failing = min(margins, key=lambda inequality: margins[inequality])
    if not margins[failing] > 0:
        raise CertificateError(f"not certified: {failing} is lost in rounding")
    return margins[failing]


def _slack(size: int) -> float:
    """What must be left of an inequality, relative to its matrix, for a Cholesky factorisation to prove it.

    The proof gives away γ·trace (``checker``). For the 2n×2n matrix of the norm that is at most 16n² units of rounding
    beside the smallest diagonal entry, and half as many for Condition 1; the rest is room for lower orders of n.
    """
    return max(_SAFETY, _UNITS * size**2 * UNIT)


def _norm_bound(W: Tensor, metric: WeightedL2) -> float:
    """The bound on ‖W̃‖ that enters the formulas, > 0 and far enough above the norm to be proved."""
    return max(float(metric.operator_norm(W)) * (1 + _slack(W.shape[0])), math.sqrt(SMALLEST))


def _norm_margin(W: Tensor, lam: Tensor, bound: float) -> float:
    """Margin of [[b Λ, WᵀΛ], [ΛW, b Λ]] ≻ 0, which says that ‖W̃‖ < b."""
    off, corner = lam[:, None] * W, torch.diag(bound * lam)
    matrix = torch.cat([torch.cat([corner, off.mT], 1), torch.cat([off, corner], 1)])
    return definite_margin(matrix, 8 * UNIT * sizes(matrix))
