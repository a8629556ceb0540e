r"""Matrix measures over boxes of matrices, norms and distances over boxes of vectors: upper and lower bounds, rounded.

In ‖x‖ = (xᵀPx)^½ the measure of J is half the largest λ with PJ + JᵀP = λP on some direction. With a matrix Y so that
YᵀPY = I + E, and intervals for J, every largest eigenvalue of Yᵀ(PJ + JᵀP)Y is bounded by that of its middle and the
norm of its radius; it rises with every diagonal entry, so of these the upper ends are taken. In ℓ1 and ℓ∞ the
measure is a sum of entries and its bound over a box of matrices is exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contracting.certificates.definite import UNIT
from contracting.metrics import FullP, Metric, WeightedL1, WeightedL2
from contracting.regions import intervals as iv
from contracting.regions.intervals import Interval

_POWER_STEPS = 8  # Of the power iteration for the norm of a radius; any number gives a bound, more a tighter one.
_SWEEPS = 12  # Of coordinate descent to the nearest point of a box; any number gives a bound, more a tighter one.


def measure_over(metric: Metric, jacobians: Interval) -> Tensor:
    """An upper bound of the matrix measure of every matrix of each box, ∞ where an entry is unbounded.

    Args:
        metric: one of the four.
        jacobians: (..., n, n).

    Returns:
        (...).
    """
    if not isinstance(metric, (FullP, WeightedL2)):
        return _sums_over(metric, jacobians)
    P, Y = quadratic(metric)
    half = iv.matmul(iv.matmul(_turned(iv.matmul(P, Y)), jacobians), Y)
    return pencil_over(half, iv.matmul(_turned(Y), iv.matmul(P, Y)))


def quadratic(metric: Metric) -> tuple[Interval, Interval]:
    """P, and a matrix next to its root's inverse: (n, n) each, exact."""
    P = metric.matrix  # type: ignore[attr-defined]
    upper = torch.linalg.cholesky(P).mT
    Y = torch.linalg.solve_triangular(upper, torch.eye(len(P), dtype=P.dtype), upper=True)
    return iv.exactly(P), iv.exactly(Y)


def pencil_over(half: Interval, unit: Interval) -> Tensor:
    """max xᵀHx/xᵀUx over x, of every H of a box and U next to the identity: (..., n, n) -> (...)."""
    identity = iv.exactly(torch.eye(unit.shape[-1], dtype=torch.float64))
    defect = norm_over(_symmetric(iv.subtract(unit, identity)))
    top = largest_eigenvalue_over(_symmetric(half))
    divisor = torch.where(top > 0, 1 - defect, 1 + defect)
    found = _up(top / divisor + 4 * UNIT * (top / divisor).abs())
    return torch.where((defect < 0.5) & ~torch.isnan(found), found, math.inf)


def largest_eigenvalue_over(matrices: Interval) -> Tensor:
    """An upper bound of the largest eigenvalue of every symmetric matrix of each box: (..., n, n) -> (...)."""
    n = matrices.shape[-1]
    bounded = matrices.bounded.all(-1).all(-1)
    matrices = iv.chosen(bounded[..., None, None], matrices, iv.exactly(0.0))
    diagonal = matrices.hi.diagonal(dim1=-2, dim2=-1)
    if n == 1:
        found = diagonal[..., 0]
    elif n == 2:
        a, d, b = diagonal[..., 0], diagonal[..., 1], matrices.size[..., 0, 1]
        middle, radius = a / 2 + d / 2, torch.hypot(a / 2 - d / 2, b)
        found = middle + radius + 16 * UNIT * (a.abs() + d.abs() + radius)
    else:
        middle, spread = iv.middle_and_radius(matrices)
        eye = torch.eye(n, dtype=torch.bool)
        middle = torch.where(eye, diagonal[..., None, :], middle)
        found = _by_discs((middle + middle.mT) / 2) + norm_of_radius(torch.where(eye, 0.0, spread))
        found = found + 4 * UNIT * (found.abs() + matrices.size.amax((-1, -2)))
    return torch.where(bounded, _up(found), math.inf)


def _by_discs(middle: Tensor) -> Tensor:
    """An upper bound of the largest eigenvalue, from Gershgorin's discs in the basis of computed eigenvectors."""
    V = torch.linalg.eigh(middle).eigenvectors
    thin = Interval(V, V)
    turned = iv.matmul(_turned(thin), iv.matmul(Interval(middle, middle), thin))
    size, diagonal = turned.size, turned.hi.diagonal(dim1=-2, dim2=-1)
    top = _up((diagonal + (size.sum(-1) - size.diagonal(dim1=-2, dim2=-1)) * (1 + 1e-12)).amax(-1))
    identity = iv.exactly(torch.eye(middle.shape[-1], dtype=torch.float64))
    defect = norm_over(iv.subtract(iv.matmul(_turned(thin), thin), identity))
    return _up(torch.where(top > 0, top / (1 - defect), top / (1 + defect)))


def norm_over(matrices: Interval) -> Tensor:
    """An upper bound of the spectral norm of every symmetric matrix of each box, by its largest row sum."""
    n = matrices.shape[-1]
    return _up(matrices.size.sum(-1).amax(-1) * (1 + (n + 2) * UNIT))


def norm_of_radius(radius: Tensor) -> Tensor:
    """An upper bound of ‖R‖₂ for symmetric R ≥ 0: max (Rx)ᵢ/xᵢ of a positive x, whatever it is (Collatz–Wielandt)."""
    radius = torch.maximum(radius, radius.mT)
    n = radius.shape[-1]
    x = torch.ones(radius.shape[:-1], dtype=torch.float64)
    for _ in range(_POWER_STEPS):
        x = torch.einsum("...ij,...j->...i", radius, x)
        x = x / x.amax(-1, keepdim=True).clamp_min(1e-300) + 1e-3
    product = torch.einsum("...ij,...j->...i", radius, x)
    return _up((product / x).amax(-1) * (1 + 2 * (n + 4) * UNIT))


def _sums_over(metric: Metric, jacobians: Interval) -> Tensor:
    """The measure in ℓ1 or ℓ∞: diagonal entries with their sign, sizes of the others, added in columns or rows."""
    weights = iv.exactly(metric.weights)  # type: ignore[attr-defined]
    ratio = iv.divide(weights.map(lambda w: w[:, None]), weights.map(lambda w: w[None, :]))
    n = metric.size
    scaled = iv.multiply(jacobians, ratio)
    eye = torch.eye(n, dtype=torch.bool)
    terms = torch.where(eye, jacobians.hi, scaled.size)
    summed = metric.summed  # type: ignore[attr-defined]
    found = terms.sum(summed) + 1.01 * (n + 2) * UNIT * terms.abs().sum(summed)
    bounded = jacobians.bounded.all(-1).all(-1)
    return torch.where(bounded, _up(found.amax(-1)), math.inf)


def norm_above(metric: Metric, vectors: Interval) -> Tensor:
    """An upper bound of the norm of every vector of each box: (..., n) -> (...)."""
    if isinstance(metric, (FullP, WeightedL2)):
        P, _ = quadratic(metric)
        column = vectors.map(lambda x: x[..., None])
        inside = iv.matmul(_turned(column), iv.matmul(P, column)).hi[..., 0, 0]
        return _up(_up(torch.sqrt(inside.clamp_min(0.0))))
    terms = iv.multiply(vectors, iv.exactly(metric.weights)).size  # type: ignore[attr-defined]
    if isinstance(metric, WeightedL1):
        return _up(terms.sum(-1) * (1 + (metric.size + 2) * UNIT))
    return terms.amax(-1)


def distance_below(metric: Metric, centre: Tensor, boxes: Interval) -> Tensor:
    """A lower bound of ‖s − centre‖ over each box: (rows, n) -> (rows,).

    For ‖x‖ = (xᵀPx)^½ and any d, ‖x‖ ≥ dᵀPx/‖d‖, which is smallest at a corner; d leads to the nearest point.
    """
    apart = iv.subtract(boxes, iv.exactly(centre))
    if not isinstance(metric, (FullP, WeightedL2)):
        gap = torch.maximum(apart.lo, -apart.hi).clamp_min(0.0)
        terms = iv.multiply(iv.exactly(gap), iv.exactly(metric.weights)).lo.clamp_min(0.0)  # type: ignore[attr-defined]
        summed = terms.sum(-1) if isinstance(metric, WeightedL1) else terms.amax(-1)
        return _down(summed * (1 - 2 * (metric.size + 2) * UNIT)).clamp_min(0.0)
    P, _ = quadratic(metric)
    nearest = nearest_point(metric, centre, boxes) - centre
    d = iv.exactly(nearest)
    column = d.map(lambda x: x[..., None])
    Pd = iv.matmul(P, column).map(lambda x: x[..., 0])
    least = iv.total(iv.multiply(Pd, apart), (1,)).lo
    length = norm_above(metric, d)
    return torch.where(length > 0, _down(_down(least / length)), 0.0).clamp_min(0.0)


def nearest_point(metric: Metric, centre: Tensor, boxes: Interval) -> Tensor:
    """About the point of each box that is nearest to the centre, (rows, n); not a bound."""
    x = torch.minimum(torch.maximum(centre, boxes.lo), boxes.hi)
    if not isinstance(metric, FullP):
        return x
    P = metric.matrix
    for _ in range(_SWEEPS):
        for i in range(metric.size):
            pull = (x - centre) @ P[i]
            x[:, i] = torch.clamp(x[:, i] - pull / P[i, i], boxes.lo[:, i], boxes.hi[:, i])
    return x


def half_widths(metric: Metric, radius: float) -> Tensor:
    """Half widths of a box that holds the ball of this radius, (n,), rounded up."""
    if not isinstance(metric, (FullP, WeightedL2)):
        return _up(_up(radius / metric.weights))  # type: ignore[attr-defined]
    P, Y = quadratic(metric)
    identity = iv.exactly(torch.eye(metric.size, dtype=torch.float64))
    defect = norm_over(iv.subtract(iv.matmul(_turned(Y), iv.matmul(P, Y)), identity))
    lengths = Y.lo.square().sum(-1).sqrt() * radius / (1 - defect).sqrt()
    return lengths * (1 + 4 * (metric.size + 4) * UNIT)


def _symmetric(matrices: Interval) -> Interval:
    """(M + Mᵀ)/2."""
    return iv.multiply(iv.exactly(0.5), iv.add(matrices, _turned(matrices)))


def _turned(matrices: Interval) -> Interval:
    return matrices.map(lambda x: x.mT)


def _up(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.tensor(math.inf, dtype=torch.float64))


def _down(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.tensor(-math.inf, dtype=torch.float64))
