r"""Convergence for constant input: what Condition 1 alone gives to the firing-rate and Hopfield flows, and more.

Around the steady state a flow with slopes in [0, 1] is e' = −e + Bs, s = σ̂(v), v = Ce, with CB = W: C = I and B = W for
Hopfield, C = W and B = I for the firing rate, βW in the place of W for slopes in [0, β]. The Lur'e–Postnikov function

    V = eᵀPe + 2Σ kᵢ∫₀^{vᵢ} sᵢ,   K = diag(k) ⪰ 0,

falls at rate c, V' ≤ −2cV, if for some diagonal T ⪰ 0, the multiplier of the sector inequality sᵀT(v − s) ≥ 0,

    [[−2(1 − c)P, PB + Cᵀ(T − (1 − 2c)K)], [·, KW + WᵀK − 2cK − 2T]] ≺ 0,

because 0 ≤ ∫₀^{v} s ≤ sv − ½s². As eᵀPe ≤ V ≤ eᵀ(P + CᵀKC)e, the overshoot in the norm of P is at most
√(1 + λmax(P⁻¹CᵀKC)). K = 0 is contraction. With T = (1 − 2c)K and K = Λ any c < min(½, m) has a small P, where Λ
satisfies Condition 1 with m.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracting.certificates.certification import certify
from contracting.certificates.checker import check, in_units
from contracting.certificates.definite import UNIT, definite_margin, sizes
from contracting.certificates.lure.questions import Inequality, RateQuestion
from contracting.certificates.records import Certificate, CertificateError, Convergence
from contracting.certificates.search import golden_section
from contracting.certificates.systems import FiringRateSystem, SlopeSystem, System, system_of
from contracting.certificates.views import slopes_view
from contracting.certificates.wellposedness import find_metric
from contracting.errors import PreconditionError
from contracting.flows.base import BoundFlow
from contracting.lure.system import LureSystem
from contracting.metrics import FullP, Metric, WeightedL2
from contracting.types import Slopes

_ASSEMBLY = 16  # An entry of an inequality is rounded so often at most, beside the roundings of its inner products.
_SEARCHED = 40  # The largest n for which the ratio of T to K is searched, at a dozen bisections.
_SHARE = 0.98  # Of the best rate; the rest bounds the overshoot, which is infinite at that rate itself.
_EXPLICIT = 0.9  # Of m in a metric that is given, for the same reason.
_ACCURACY = 1e-3  # Of a rate in the search, in units of the leak.
_RATIOS = (0.5, 50.0)  # Between these (T + 2cK)/K is looked for; below, no rate is positive, and above is contraction.


@dataclass(frozen=True, kw_only=True, eq=False)
class _Question(RateQuestion):
    """How fast does it converge to its steady state? The level is the rate c, K is given, T = ratio·K − 2cK."""

    ratio: float

    @property
    def most(self) -> float:
        return min(self.stability, self.ratio / 2)  # T ⪰ 0

    def inequality(self, level: float, multiplier: Tensor) -> Inequality:
        of = self.system
        loop = multiplier[:, None] * (of.C @ of.B)
        return Inequality(
            A=of.A + level * torch.eye(of.size, dtype=torch.float64),
            B=of.B,
            Q=torch.zeros_like(of.A),
            S=of.C.mT * ((self.ratio - 1) * multiplier),
            R=torch.diag(2 * (self.ratio - level) * multiplier) - loop - loop.mT,
        )


def fixed_input_convergence(flow: BoundFlow | System, *, metric: WeightedL2 | None = None) -> Convergence:
    """Certified rate and overshoot with which a flow reaches its steady state for constant input.

    Args:
        flow: a firing-rate, Hopfield or forward–backward flow, or its explicit matrices.
        metric: Λ with Condition 1 for the flow's weight, in which the bound is then stated; None looks for the best
            rate in any metric: at least what ``certify`` proves, as contraction is convergence without overshoot.

    Raises:
        PreconditionError: for flows with negative slopes (Peaceman–Rachford contracts; use ``certify``), and where no
            metric is given or found.
        CertificateError: if Condition 1 fails in the metric that was given.
    """
    system = system_of(flow)
    if not isinstance(system, SlopeSystem) or system.slopes.low < 0:
        raise PreconditionError(f"this bound is about slopes in [0, 1]; certify() covers the {system.name} flow")
    unit = system.at_speed(1.0)
    if metric is not None:
        metric = WeightedL2(metric.weights.detach().to("cpu", torch.float64))
        return _checked(_explicit(unit, metric), system)
    known = None if unit.hint is None else WeightedL2(unit.hint)
    if known is None or not float(known.matrix_measure(_weight(unit))) < 1:
        known = find_metric(_weight(unit), start=unit.hint).metric
    found = [] if known is None else [_explicit(unit, known)]
    if system.size <= _SEARCHED:
        view, _ = slopes_view(unit)
        found += _searched(unit, [view.own(view.guess)] if known is None else [known.weights, view.own(view.guess)])
    try:
        contraction = certify(unit)
    except CertificateError:
        contraction = None
    if contraction is not None and contraction.contracting:
        found.append(_contracting(contraction))
    proved = []
    for proposal in found:
        try:
            proved.append(_checked(proposal, system))
        except CertificateError:
            continue
    if not proved:
        raise PreconditionError("no metric with Condition 1 was found for this weight: convergence is open")
    return max(proved, key=lambda certificate: certificate.rate)


def _checked(proposal: Convergence, system: SlopeSystem) -> Convergence:
    """The proposal at the speed of the system, with the margin that the checker finds."""
    rate = proposal.rate if system.speed == 1 else system.speed * proposal.rate * (1 - 4 * UNIT)
    at_speed = replace(proposal, rate=rate, flow=system.name)
    return replace(at_speed, margin=check_convergence(at_speed, system))


def _weight(system: SlopeSystem) -> Tensor:
    return system.slopes.high * system.W


def _parts(system: SlopeSystem) -> tuple[Tensor, Tensor]:
    """B and C."""
    W, identity = _weight(system), torch.eye(system.size, dtype=torch.float64)
    return (identity, W) if isinstance(system, FiringRateSystem) else (W, identity)


def _proposal(system: SlopeSystem, rate: float, metric: FullP | WeightedL2, K: Tensor, T: Tensor) -> Convergence:
    """With the smallest overshoot, and a little room for rounding."""
    _, C = _parts(system)
    root = metric.matrix if isinstance(metric, FullP) else torch.diag(metric.weights)
    factor = torch.linalg.cholesky(root)
    half = torch.linalg.solve_triangular(factor, (K.sqrt()[:, None] * C).mT, upper=False)
    excess = float(torch.linalg.matrix_norm(half, 2)) ** 2
    return Convergence(
        rate=rate,
        overshoot=math.sqrt(1 + excess * (1 + 1e-9) + 1e-12),
        metric=metric,
        slopes=Slopes(0.0, system.slopes.high),
        method="Lur'e–Postnikov function",
        flow=system.name,
        margin=0.0,
        integrals=K,
        multiplier=T,
    )


def _explicit(system: SlopeSystem, metric: WeightedL2) -> Convergence:
    """K = Λ, T = (1 − 2c)Λ, and the largest P = pΛ, which is the smallest overshoot for it.

    Raises:
        CertificateError: if Condition 1 fails in the metric.
    """
    W, lam = _weight(system), metric.weights
    m, w = 1 - float(metric.matrix_measure(W)), float(metric.operator_norm(W))
    if not m > 1e-12 * (1 + w):
        raise CertificateError(f"Condition 1 fails in this metric: λmin(sym Ã) = {m:.3g}")
    rate = min(0.5, _EXPLICIT * m)
    # 2(1 − c)·2(m − c) ≥ p‖B‖² in the coordinates of Λ
    p = 4 * (1 - rate) * (m - rate) * (1 - 1e-6)
    p = p if isinstance(system, FiringRateSystem) else p / max(w * w, 1e-6 * p)
    return _proposal(system, rate, WeightedL2(p * lam), lam, (1 - 2 * rate) * lam)


def _searched(system: SlopeSystem, directions: Iterable[Tensor]) -> list[Convergence]:
    """The best rate over the ratio of T to K, for each direction of K."""
    found = []
    for lam in directions:
        root = lam.sqrt()
        ones = torch.ones(system.size, dtype=torch.float64)
        B, C = (root[:, None] * part / root for part in _parts(system))
        loop = LureSystem(A=-torch.diag(ones), B=B, C=C, D=0 * B)

        def rate(ratio: float, loop: LureSystem = loop, ones: Tensor = ones) -> float:
            return _Question(system=loop, ratio=ratio).best(ones, _ACCURACY)

        ratio = math.exp(golden_section(lambda log: -rate(math.exp(log)), *map(math.log, _RATIOS), steps=14))
        best = rate(ratio)
        if not best > 0:
            continue
        c = _SHARE * best
        P = _Question(system=loop, ratio=ratio).inequality(c, ones).metric(1e-2 * (best - c))
        if P is not None:
            metric = FullP((P + P.mT) / 2).rescaled(1 / root)
            found.append(_proposal(system, c, metric, lam, (ratio - 2 * c) * lam))
    return found


def _contracting(contraction: Certificate) -> Convergence:
    low, high = contraction.slopes
    assert isinstance(low, float) and isinstance(high, float)
    return Convergence(
        rate=contraction.rate,
        overshoot=1.0,
        metric=contraction.metric,
        slopes=Slopes(low, high),
        method=f"contraction, {contraction.method}",
        flow=contraction.flow,
        margin=0.0,
        multiplier=contraction.multiplier,
    )


def check_convergence(certificate: Convergence, system: System) -> float:
    """Prove a convergence certificate again from explicit matrices.

    Returns:
        The margin of the matrix inequalities it rests on, at unit diagonal and after rounding, > 0.

    Raises:
        CertificateError: if it does not follow.
    """
    if not isinstance(system, SlopeSystem) or system.slopes.low < 0:
        raise CertificateError(f"nothing is proved for the {system.name} flow")
    if system.speed != 1:
        unit_rate = math.nextafter(certificate.rate / system.speed, math.inf)
        return check_convergence(replace(certificate, rate=unit_rate), system.at_speed(1.0))
    if system.slopes[1] > certificate.slopes[1] or certificate.metric.size != system.size:
        raise CertificateError("the certificate is about other slopes or another size")
    if not certificate.overshoot >= 1:
        raise CertificateError(f"an overshoot of {certificate.overshoot:.4g} is too small")
    if certificate.integrals is None:
        shared = {name: getattr(certificate, name) for name in ("rate", "metric", "slopes", "multiplier", "method")}
        return check(Certificate(**shared, flow=certificate.flow, margin=0.0), system)
    if not isinstance(certificate.metric, WeightedL2 | FullP) or certificate.multiplier is None:
        raise CertificateError("the Lur'e–Postnikov function has a WeightedL2 or a FullP, and a multiplier")
    margins = _margins(certificate, system, certificate.integrals, certificate.multiplier)
    failing = min(margins, key=lambda inequality: margins[inequality])
    if not margins[failing] > 0:
        raise CertificateError(f"not certified: {failing} fails, or is lost in rounding")
    return margins[failing]


def _margins(certificate: Convergence, system: SlopeSystem, K: Tensor, T: Tensor) -> dict[str, float]:
    """Of the inequality of the decay, of that of the overshoot, and of P ≻ 0; their rounding errors are bounded."""
    c, high = certificate.rate, certificate.slopes[1]
    balanced, metric, K = _in_units(system, certificate.metric, K)
    _, _, T = _in_units(system, certificate.metric, T)
    if not 0 < c < math.inf or not bool((torch.isfinite(K + T) & (K >= 0) & (T >= 0)).all()):
        return {"rate > 0, K ⪰ 0, T ⪰ 0": -math.inf}
    P = (metric.matrix + metric.matrix.mT) / 2
    B, C = _parts(replace(balanced, slopes=Slopes(0.0, high)))
    n, W = system.size, high * balanced.W
    couple = T - (1 - 2 * c) * K
    loop, off = K[:, None] * W, P @ B + C.mT * couple
    decay = torch.cat(
        [torch.cat([2 * (1 - c) * P, -off], 1), torch.cat([-off.mT, torch.diag(2 * c * K + 2 * T) - loop - loop.mT], 1)]
    )
    size_loop = sizes(K)[:, None] * sizes(W)
    size_off = sizes(P) @ sizes(B) + sizes(C).mT * (sizes(T) + (1 + 2 * c) * sizes(K))
    size_end = torch.diag(2 * c * sizes(K) + 2 * sizes(T)) + size_loop + size_loop.mT
    size = torch.cat([torch.cat([2 * (1 + c) * sizes(P), size_off], 1), torch.cat([size_off.mT, size_end], 1)])
    excess = certificate.overshoot**2 - 1
    integral = (C.mT * K) @ C
    spread = sizes(C).mT * sizes(K) @ sizes(C)
    rounding = (n + _ASSEMBLY) * UNIT
    return {
        f"the decay at rate {c:.4g} (Condition 1, where K = Λ)": definite_margin(decay, rounding * size),
        f"an overshoot of {certificate.overshoot:.4g}": definite_margin(
            excess * P - integral, rounding * ((certificate.overshoot**2 + 1) * sizes(P) + spread)
        ),
        "P ≻ 0": definite_margin(P, UNIT * sizes(P)),
    }


def _in_units(system: SlopeSystem, metric: Metric, multiplier: Tensor) -> tuple[SlopeSystem, FullP, Tensor]:
    """``in_units`` of a quadratic metric with a multiplier that is there."""
    balanced, seen, scaled = in_units(system, metric, multiplier)
    assert scaled is not None and isinstance(seen, FullP | WeightedL2)
    return balanced, FullP(seen.matrix) if isinstance(seen, WeightedL2) else seen, scaled
