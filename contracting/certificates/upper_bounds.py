r"""Bounds from above on the contraction rate in *any* metric: what no certificate may exceed.

A flow that contracts at rate c in some norm contracts at rate c for slopes held constant, and for slopes that switch in
time. So every slope vector D gives c ≤ −α(DW − I), and every periodic word D₁…D_k with dwell times t gives
c ≤ −(1/T) log ρ(Π e^{(D_kW − I)t_k}), T = Σt. The searches are heuristics; each number they return is a bound, up to
the rounding of an eigenvalue.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracting.certificates.candidates import firing_rate_view
from contracting.certificates.systems import FiringRateSystem, InclusionSystem, LinearSystem, System, vertices
from contracting.metrics import FullP, Metric, WeightedL2
from contracting.types import UNIT_SLOPES, Slopes

_MOST_VERTICES = 10
_MOST_PAIRS = 3
_LARGE = 200
_MOST_TRIALS = 300


@dataclass(frozen=True, kw_only=True, eq=False)
class UpperBound:
    """No norm exists in which the flow contracts faster than ``rate``.

    Attributes:
        rate: the bound.
        method: where it comes from.
        slopes: the slopes that show it, one row per piece of the word, (pieces, n), in the order of time.
        dwell: time spent on each piece, (pieces,); infinite for constant slopes.
    """

    rate: float
    method: str
    slopes: Tensor
    dwell: Tensor

    def __str__(self) -> str:
        return f"no norm contracts faster than {self.rate:.6g} ({self.method})"


def upper_bound(system: System, metric: Metric | None = None) -> UpperBound:
    """The smaller of the two bounds, switching for n ≤ 200; its search looks for words in ``metric`` if given."""
    constant = abscissa_bound(system)
    if isinstance(system, InclusionSystem | LinearSystem) or not 1 < system.size <= _LARGE:
        return constant
    switching = switching_bound(system, metric)
    return min(constant, switching, key=lambda bound: bound.rate)


def abscissa_bound(system: System) -> UpperBound:
    """1 − max α(DW) over slopes: all vertices for n ≤ 10, a local search from several starts beyond.

    For the inclusion, 1 − max α(W_SS) over principal submatrices; for a linear flow −α(A). Times the speed.
    """
    if system.speed != 1:
        return _at_speed(abscissa_bound(system.at_speed(1.0)), system.speed)
    if isinstance(system, LinearSystem):
        return UpperBound(
            rate=-float(torch.linalg.eigvals(system.W).real.max()),
            method="spectral abscissa",
            slopes=torch.ones(1, system.size, dtype=torch.float64),
            dwell=torch.tensor([math.inf], dtype=torch.float64),
        )
    W, n = system.W, system.size
    low, high = UNIT_SLOPES if isinstance(system, InclusionSystem) else system.slopes
    if n <= _MOST_VERTICES:
        value, slopes = -math.inf, torch.full((n,), high, dtype=torch.float64)
        for block in vertices(Slopes(low, high), n):
            values = _abscissae(system, block)
            best = int(values.argmax())
            if float(values[best]) > value:
                value, slopes = float(values[best]), block[best]
        method = "spectral abscissa, all vertices"
    else:
        generator = torch.Generator().manual_seed(0)
        starts = [torch.full((n,), high, dtype=torch.float64), torch.where(W.diagonal() > 0, high, low)]
        starts += [torch.where(torch.rand(n, generator=generator) < 0.5, high, low) for _ in range(3 if n <= 60 else 0)]
        found = [_climb(system, start, low, high) for start in starts[: 5 if n <= _LARGE else 1]]
        value, slopes = _flipped(system, *max(found, key=lambda pair: pair[0]), low + high)
        method = "spectral abscissa, local search"
    return UpperBound(
        rate=1 - value, method=method, slopes=slopes[None], dwell=torch.tensor([math.inf], dtype=torch.float64)
    )


def _at_speed(bound: UpperBound, speed: float) -> UpperBound:
    return replace(bound, rate=speed * bound.rate, dwell=bound.dwell / speed)


def _abscissae(system: System, slopes: Tensor) -> Tensor:
    """α(DW), or α(W_SS) with S where the slopes are 1 for the inclusion: (batch, n) -> (batch,)."""
    matrices = slopes[:, :, None] * system.W
    if isinstance(system, InclusionSystem):
        far = -2 * float(torch.linalg.matrix_norm(system.W)) - 1
        matrices = matrices * slopes[:, None, :] + torch.diag_embed(far * (1 - slopes))  # S = ∅ comes out far below
    values: Tensor = torch.linalg.eigvals(matrices)
    return values.real.amax(-1)


def _climb(system: System, slopes: Tensor, low: float, high: float) -> tuple[float, Tensor]:
    """Jump to the vertex that the derivative of the leading eigenvalue points to, while that helps."""
    value = float(_abscissae(system, slopes[None])[0])
    for _ in range(20 if system.size <= _LARGE else 2):
        values, right = torch.linalg.eig(slopes[:, None] * system.W)
        at = int(values.real.argmax())
        left_values, left = torch.linalg.eig((slopes[:, None] * system.W).mT)
        x, y = right[:, at], left[:, int((left_values - values[at]).abs().argmin())]
        gradient = (y * (system.W.to(x.dtype) @ x) / (y @ x)).real
        moved = torch.where(gradient > 0, high, low).to(torch.float64)
        trial = float(_abscissae(system, moved[None])[0]) if bool((moved > 0).any()) else -math.inf
        if not trial > value:
            break
        value, slopes = trial, moved
    return value, slopes


def _flipped(system: System, value: float, slopes: Tensor, ends: float) -> tuple[float, Tensor]:
    """The best single flips of a slope to its other end, while they help."""
    improved = system.size <= 40
    while improved:
        flips = slopes.repeat(system.size, 1)
        index = torch.arange(system.size)
        flips[index, index] = ends - slopes
        values_at = _abscissae(system, flips)
        best = int(values_at.argmax())
        improved = float(values_at[best]) > value + 1e-12
        if improved:
            value, slopes = float(values_at[best]), flips[best]
    return value, slopes


def switching_bound(system: System, metric: Metric | None = None) -> UpperBound:
    """The best bound from short periodic words of vertices.

    For n ≤ 3 the words are all pairs of vertices; in every case also what the worst-case switching rule does in
    ``metric`` and in the Euclidean norm: each slope is high where that drives the norm up. Dwell times are refined.

    Raises:
        PreconditionError: for the inclusion and for linear flows.
    """
    if system.speed != 1:
        return _at_speed(switching_bound(system.at_speed(1.0), metric), system.speed)
    view, transposed = firing_rate_view(system)
    words: list[tuple[Tensor, Tensor]] = []
    if view.size <= _MOST_PAIRS:
        corners = torch.cat(list(vertices(view.slopes, view.size)))
        speed = 1 / (1 + float(torch.linalg.matrix_norm(view.W, 2)))
        for i, j in itertools.combinations(range(len(corners)), 2):
            words.append((corners[[i, j]], torch.full((2,), 3 * speed, dtype=torch.float64)))
    identity = torch.eye(view.size, dtype=torch.float64)
    metrics = [identity]
    if metric is not None and isinstance(metric, FullP | WeightedL2):
        own = metric.dual() if transposed else metric
        metrics.append(own.matrix if isinstance(own, FullP) else torch.diag(own.weights))  # type: ignore[attr-defined]
    for P in metrics:
        words += _greedy_words(view, P)
    scored = sorted(words, key=lambda word: -_exponent(view, *word))[:3]
    slopes, dwell = max((_refined(view, *word) for word in scored), key=lambda word: _exponent(view, *word))
    rate = -_exponent(view, slopes, dwell)
    if transposed:  # and so is the product over the word: in the flow itself the pieces come in the other order
        slopes, dwell = slopes.flip(0), dwell.flip(0)
    return UpperBound(rate=rate, method="slope switching", slopes=slopes, dwell=dwell)


def _exponent(view: FiringRateSystem, slopes: Tensor, dwell: Tensor) -> float:
    """Growth exponent of the periodic word: log of the spectral radius of the monodromy matrix over the period."""
    factors = torch.linalg.matrix_exp(view.jacobians(slopes) * dwell[:, None, None])
    product, logarithm = torch.eye(view.size, dtype=torch.float64), 0.0
    for factor in factors:
        product = factor @ product
        size = float(torch.linalg.matrix_norm(product))
        if not 0 < size < math.inf:
            return -math.inf  # a word too long to be represented shows nothing
        product, logarithm = product / size, logarithm + math.log(size)
    radius = float(torch.linalg.eigvals(product).abs().max())
    return (math.log(max(radius, 1e-300)) + logarithm) / float(dwell.sum())


def _refined(view: FiringRateSystem, slopes: Tensor, dwell: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply single dwell times, then all, by growing and shrinking factors while that raises the exponent."""
    value, factor, left = _exponent(view, slopes, dwell), 2.0, _MOST_TRIALS
    groups = [*torch.eye(len(dwell), dtype=torch.float64), torch.ones(len(dwell), dtype=torch.float64)]
    while factor > 1.001 and left > 0:
        before, left = value, left - 2 * len(groups)
        for group, power in itertools.product(groups, (1, -1)):
            trial = dwell * factor ** (power * group)
            reached = _exponent(view, slopes, trial)
            if reached > value and float(trial.sum()) < 1e3:
                value, dwell = reached, trial
        if value - before < 1e-4 * (1 + abs(value)):
            factor = factor**0.5
    return slopes, dwell


def _greedy_words(view: FiringRateSystem, P: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Words that the worst-case switching rule of xᵀPx settles into: runs of up to six consecutive slope vectors."""
    (low, high), W = view.slopes, view.W
    step = 0.05 / (1 + float(torch.linalg.matrix_norm(W, 2)))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(view.size, generator=generator, dtype=torch.float64)
    pieces: list[tuple[Tensor, float]] = []
    for index in range(1500):
        driven = W @ x
        slopes = torch.where((P @ x) * driven > 0, high, low).to(torch.float64)
        x = x + step * (slopes * driven - x)
        x = x / torch.linalg.vector_norm(x).clamp_min(1e-300)
        if index < 500:
            continue
        if pieces and bool((pieces[-1][0] == slopes).all()):
            pieces[-1] = (slopes, pieces[-1][1] + step)
        else:
            pieces.append((slopes, step))
    words = [(pieces[-1][0][None], torch.ones(1, dtype=torch.float64))]
    for length in range(2, 7):
        for start in range(1, min(len(pieces) - length, 12)):
            run = pieces[start : start + length]
            slopes = torch.stack([piece[0] for piece in run])
            words.append((slopes, torch.tensor([piece[1] for piece in run], dtype=torch.float64)))
    return words
