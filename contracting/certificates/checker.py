r"""The one judge of every certificate: explicit matrices in, yes or no out, in float64 with an allowance for rounding.

It shares no formula with the finders beyond the Jacobian −I + DW, −I + WD or A itself, times the speed of the flow.
A matrix is proved positive definite by ``definite``, with every rounding of its assembly bounded entry by entry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.definite import UNIT, definite_margin, sizes
from contracting.certificates.enclosures import Enclosure, definite_form
from contracting.certificates.lifted.checker import lifted_margin, rescaled_relations
from contracting.certificates.lifted.form import LiftedForm
from contracting.certificates.lure.checker import (
    LARGEST_BY_VERTICES,
    covered,
    dissipation_margin,
    enclosed_vertices,
    lyapunov_margin,
    neuron_units,
    power_of_two,
    vertex_margin,
)
from contracting.certificates.lure.polyhedral import polyhedral_margin
from contracting.certificates.lure.records import Dissipation, check_dissipation
from contracting.certificates.records import Certificate, CertificateError
from contracting.certificates.systems import (
    FiringRateSystem,
    InclusionSystem,
    LinearSystem,
    SlopeSystem,
    System,
    WeightSystem,
    vertices,
)
from contracting.errors import InputError
from contracting.lure.system import LureSystem
from contracting.metrics import FullP, Metric, WeightedL1, WeightedL2, WeightedLinf
from contracting.types import Slopes

S = TypeVar("S", bound=WeightSystem)

_ASSEMBLY = 12  # An entry of an inequality is rounded so often at most, beside the roundings of its inner products.


def check(certificate: Certificate | Dissipation, system: System) -> float:
    """Prove again, from explicit matrices only, that a certificate holds for a system.

    Args:
        certificate: rate, metric and multiplier, and the gain or indices of passivity; nothing else in it is read,
            except which slopes it speaks of.
        system: the flow it is claimed to be about.

    Returns:
        The margin: how much of the inequality is left after the allowance for rounding, > 0.

    Raises:
        CertificateError: if the proof fails: wrong flow, wrong weight, rate too high, or rounding in the way.
    """
    if isinstance(certificate, Dissipation):
        if not isinstance(system, LureSystem):
            raise CertificateError(f"a {type(certificate).__name__} is about a Lur'e system, not {system.name}")
        return check_dissipation(certificate, system)
    if certificate.metric.size != system.size:
        raise CertificateError(f"the metric acts on {certificate.metric.size} entries, the flow on {system.size}")
    if isinstance(system, LureSystem):
        claimed = covered(certificate.slopes, system)
        try:
            return _accepted(_lure_margin(certificate, claimed), certificate, system)
        except InputError as error:
            raise CertificateError(f"not certified, or beyond the range of float64: {error}") from error
    if not isinstance(system, InclusionSystem | LinearSystem):
        low, high = certificate.slopes
        if not isinstance(low, float) or not isinstance(high, float):
            raise CertificateError("the certificate is about slopes of a Lur'e system, neuron by neuron")
        if not -1 <= low <= system.slopes[0] <= system.slopes[1] <= high <= 1:
            about = f"the {certificate.flow or 'given'} flow with {certificate.assumption}"
            raise CertificateError(f"the certificate is about {about}; the system, {system.name}, has {system.slopes}")
        system = system.with_slopes(Slopes(low, high))
    # a field a·f contracts in a norm at rate c iff f does at c/a; the quotient is rounded up, against the certificate
    rate = certificate.rate if system.speed == 1 else math.nextafter(certificate.rate / system.speed, math.inf)
    try:
        margin = _margin(*in_units(system.at_speed(1.0), certificate.metric, certificate.multiplier), rate)
    except InputError as error:
        raise CertificateError(f"not certified, or beyond the range of float64: {error}") from error
    return _accepted(margin, certificate, system)


def _accepted(margin: float, certificate: Certificate, system: System) -> float:
    if not margin > 0:
        raise CertificateError(
            f"not certified: rate {certificate.rate:.6g} for {system.name} in {type(certificate.metric).__name__}"
        )
    return margin


def _lure_margin(certificate: Certificate, system: LureSystem) -> float:
    metric, rate = certificate.metric.to(system.A), certificate.rate
    if isinstance(metric, WeightedL1 | WeightedLinf):
        return polyhedral_margin(system, metric, rate)
    if isinstance(metric, LiftedForm):
        states = power_of_two(metric.norm(torch.eye(system.size, dtype=torch.float64)))
        relations = rescaled_relations(metric, certificate.multiplier, states)
        jacobians = enclosed_vertices(system.rescaled(states, neuron_units(system)))
        return lifted_margin(metric.rescaled(states), relations, jacobians, rate)
    P = _matrix_of(metric)
    if certificate.multiplier is None:
        return vertex_margin(system, P, rate)
    return dissipation_margin(system, P, certificate.multiplier, rate)


def in_units(system: S, metric: Metric, multiplier: Tensor | None) -> tuple[S, Metric, Tensor | None]:
    """The same question in coordinates where every unit vector has a norm in [1, 2), by powers of two.

    All units of the coordinates then give the same answer, and little of what matters can leave the range of float64.

    Raises:
        InputError: if something does.
    """
    metric = metric.to(system.W)
    units = metric.norm(torch.eye(system.size, dtype=torch.float64))
    scale = torch.ldexp(torch.ones_like(units), torch.frexp(units)[1] - 1)
    if isinstance(metric, LiftedForm):
        multiplier = rescaled_relations(metric, multiplier, scale)
    elif multiplier is not None:
        given = checks.shape("multiplier", multiplier, (system.size,)).detach().to("cpu", torch.float64)
        multiplier = given / scale / scale
    return replace(system, hint=None).rescaled(scale), metric.rescaled(scale), multiplier


def _margin(system: WeightSystem, metric: Metric, multiplier: Tensor | None, rate: float) -> float:
    if isinstance(system, InclusionSystem):
        if not isinstance(metric, WeightedL2):
            raise CertificateError(f"the inclusion is certified in WeightedL2 only, got {type(metric).__name__}")
        return inclusion_margin(system.W, metric.weights, rate)
    if isinstance(system, LinearSystem):
        # a linear flow has no unit of time of its own: the larger of A and c is brought next to 1, by a power of two
        power = -math.frexp(max(float(system.W.abs().max()), abs(rate)))[1]
        first, second = math.ldexp(1.0, power // 2), math.ldexp(1.0, power - power // 2)
        if multiplier is not None:
            multiplier = multiplier * first * second
        return _linear_margin(system.W * first * second, metric, multiplier, rate * first * second)
    assert isinstance(system, SlopeSystem)
    if isinstance(metric, LiftedForm):
        return lifted_margin(metric, multiplier, _enclosed_vertices(system), rate)
    if isinstance(metric, WeightedL1 | WeightedLinf):
        return _polyhedral_margin(system, metric, rate)
    P = _matrix_of(metric)
    if multiplier is None:
        return _vertex_margin(system, P, rate)
    return _sector_margin(system, P, multiplier, rate)


def _matrix_of(metric: Metric) -> Tensor:
    if not isinstance(metric, FullP | WeightedL2):
        raise CertificateError(f"no check is known in {type(metric).__name__}")
    return (metric.matrix + metric.matrix.mT) / 2  # the same norm; a Cholesky factorisation reads one half


def _sector_margin(system: SlopeSystem, P: Tensor, multiplier: Tensor, rate: float) -> float:
    r"""Margin of −[[FᵀP + PF + 2cP, PB + CᵀQ], [·, −2Q/δ]] ≻ 0, P ≻ 0, Q > 0, Jacobians F + δBJC, J in [0, 1]ⁿ.

    With y = Cx and w = δJy it gives d/dt xᵀPx + 2c xᵀPx ≤ −2Σqᵢwᵢ(yᵢ − wᵢ/δ) ≤ 0. Here D = aI + δJ, δ = β − a.
    """
    if not bool((torch.isfinite(multiplier) & (multiplier > 0)).all()):
        return -math.inf
    low, high = system.slopes

    def form(kind: type[Enclosure]) -> Enclosure:
        metric, W = kind.exact(P), kind.exact(system.W)
        product = metric @ W
        half = product * low - metric  # PF
        corner = half + half.mT + metric * (2 * rate)
        if isinstance(system, FiringRateSystem):
            off = metric + W.mT * multiplier
        else:
            off = product + kind.exact(torch.diag(multiplier))
        end = torch.diag(-2 * multiplier / (high - low))
        rounding = 4 * UNIT * sizes(end)
        return kind(-_stacked(corner.value, off.value, end), _stacked(corner.radius, off.radius, rounding))

    return min(definite_form(form), _definite(P))


def _stacked(corner: Tensor, off: Tensor, end: Tensor) -> Tensor:
    return torch.cat([torch.cat([corner, off], 1), torch.cat([off.mT, end], 1)])


def _definite(P: Tensor) -> float:
    """Margin of P ≻ 0, whose entries may have lost digits below the range of float64 when they were rescaled."""
    return definite_margin(P, UNIT * sizes(P))


def _vertex_margin(system: SlopeSystem, P: Tensor, rate: float) -> float:
    """Margin of −(FᵀP + PF + 2cP) ≻ 0 at every vertex: F is affine in each slope, so the vertices decide."""
    worst = _definite(P)
    for F in _enclosed_vertices(system):
        worst = min(worst, lyapunov_margin(P, F, rate))
    return worst


def _enclosed_vertices(system: SlopeSystem) -> Iterator[Enclosure]:
    """DW − I or WD − I at all vertices in blocks.

    Raises:
        CertificateError: if there are too many vertices.
    """
    if system.size > LARGEST_BY_VERTICES:
        limit = f"n ≤ {LARGEST_BY_VERTICES}, got {system.size}"
        raise CertificateError(f"a proof by vertices needs {limit}; give a multiplier")
    absolute = replace(system, W=sizes(system.W))
    for block in vertices(system.slopes, system.size):
        # a product and a difference; of the diagonal little may be left after rounding
        yield Enclosure(system.jacobians(block), 2 * UNIT * absolute.jacobians(-block.abs()).abs())


def _linear_margin(A: Tensor, metric: Metric, relations: Tensor | None, rate: float) -> float:
    """Margin of μ(A) < −c: of −(AᵀP + PA + 2cP) ≻ 0, or of the row or column sums of a weighted ℓ∞ or ℓ1 norm."""
    if isinstance(metric, LiftedForm):
        return lifted_margin(metric, relations, [Enclosure.exact(A[None])], rate)
    if isinstance(metric, WeightedL1 | WeightedLinf):
        eta = metric.weights
        scaled = sizes(A) * eta[:, None] / eta[None, :]
        off = scaled.sum(1 if isinstance(metric, WeightedLinf) else 0) - scaled.diagonal()
        allowance = (A.shape[0] + _ASSEMBLY) * UNIT * (off + 2 * A.diagonal().abs() + abs(rate))
        return float((-A.diagonal() - off - rate - allowance).min())
    P = _matrix_of(metric)
    return min(_definite(P), lyapunov_margin(P, Enclosure.exact(A), rate))


def inclusion_margin(W: Tensor, weights: Tensor, rate: float) -> float:
    """Margin of ΛA + AᵀΛ − 2cΛ ≻ 0, A = I − W."""
    A = torch.eye(W.shape[0], dtype=torch.float64) - W
    half = weights[:, None] * A
    matrix = half + half.mT - torch.diag(2 * rate * weights)
    size = sizes(half) + sizes(half).mT + torch.diag(2 * (abs(rate) + 1) * sizes(weights))
    return definite_margin(matrix, _ASSEMBLY * UNIT * size)


def _polyhedral_margin(system: SlopeSystem, metric: WeightedL1 | WeightedLinf, rate: float) -> float:
    r"""1 − (worst measure of DW or WD) − rate − allowance; the worst measure over a box of slopes is exact.

    Rows of DW in ℓ∞ (columns of WD in ℓ1) carry one slope each, |d|·off + d·Wᵢᵢ is convex in it: an end of the interval
    is worst. In the other two cases the slopes of an entry's row or column are free of each other.
    """
    eta, (low, high) = metric.weights, system.slopes
    scaled = sizes(system.W) * eta[:, None] / eta[None, :]
    diagonal = system.W.diagonal()
    by_rows = isinstance(metric, WeightedLinf)
    off = scaled.sum(1 if by_rows else 0) - scaled.diagonal()
    if by_rows == isinstance(system, FiringRateSystem):
        worst = torch.maximum(low * diagonal + abs(low) * off, high * diagonal + abs(high) * off)
    else:
        worst = torch.maximum(low * diagonal, high * diagonal) + max(abs(low), abs(high)) * off
    allowance = (system.size + _ASSEMBLY) * UNIT * (off + 2 * diagonal.abs() + 1 + abs(rate))
    return float((1 - worst - rate - allowance).min())
