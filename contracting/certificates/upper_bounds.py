r"""Bounds from above on the contraction rate in *any* metric: what no certificate may exceed.

A flow that contracts at rate c in some norm contracts at rate c for slopes held constant, and for slopes that switch in
time. So every slope vector D gives c ≤ −α(DW − I), and every periodic word D₁…D_k with dwell times t gives
c ≤ −(1/T) log ρ(Π e^{(D_kW − I)t_k}), T = Σt. The searches are heuristics, in balanced coordinates; from each number
they return, what rounding can have added is taken off.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracting.certificates.definite import UNIT
from contracting.certificates.records import PER_TIME
from contracting.certificates.spectra import abscissa_from_below, eigenvalues, eigenvectors, radius_from_below
from contracting.certificates.systems import FiringRateSystem, InclusionSystem, LinearSystem, System, vertices
from contracting.certificates.views import slopes_view, view_of
from contracting.display import Displayed
from contracting.metrics import FullP, Metric, WeightedL2
from contracting.types import UNIT_SLOPES, Slopes

# Sizes n of the state up to which a search is affordable.
_MOST_VERTICES = 10  # All 2ⁿ vertices are tried.
_MOST_PAIRS = 3  # All pairs of vertices are tried as words.
_SWITCHING = 200  # Words are searched at all, and slopes climb from five starts for 20 steps instead of one for two.

_MOST_TRIALS = 300  # So many dwell times are tried for one word, at a monodromy matrix each.
_PROVED = 8  # So many patterns of slopes have their eigenvalues enclosed; the first is nearly always enough.
_EXPONENTIAL = 64  # A matrix exponential is charged so many roundings, each of the size of its norm times n.


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class UpperBound(Displayed):
    """No norm exists in which the flow contracts faster than ``rate``.

    Attributes:
        rate: the bound.
        method: where it comes from.
        slopes: the slopes that show it, one row per piece of the word, (pieces, n), in the order of time.
        dwell: time spent on each piece, (pieces,); infinite for constant slopes.
    """

    _units = {"rate": PER_TIME, "dwell": "units of the flow's time"}

    rate: float
    method: str
    slopes: Tensor
    dwell: Tensor

    def __str__(self) -> str:
        return f"no norm contracts faster than {self.rate:.6g} ({self.method})"


def upper_bound(system: System, metric: Metric | None = None) -> UpperBound:
    """The smaller of the two bounds, switching for n ≤ 200; its search looks for words in ``metric`` if given."""
    constant = abscissa_bound(system)
    if isinstance(system, InclusionSystem | LinearSystem) or not 1 < system.size <= _SWITCHING:
        return constant
    switching = switching_bound(system, metric)
    return min(constant, switching, key=lambda bound: bound.rate)


def abscissa_bound(system: System) -> UpperBound:
    """1 − max α(DW) over slopes: all vertices for n ≤ 10, a local search from several starts beyond.

    For the inclusion, 1 − max α(W_SS) over principal submatrices; for a linear flow −α(A). Times the speed.
    """
    if system.speed != 1:
        return _at_speed(abscissa_bound(system.at_speed(1.0)), system.speed)
    seen = view_of(system).system  # the transpose has the same eigenvalues
    n = seen.size
    if isinstance(seen, LinearSystem):
        return _constant(-abscissa_from_below(seen.W), "spectral abscissa", torch.ones(n, dtype=torch.float64))
    slopes = UNIT_SLOPES if isinstance(seen, InclusionSystem) else seen.slopes
    if n <= _MOST_VERTICES:
        trials = [(_abscissae(seen, block), block) for block in vertices(slopes, n)]
        values, patterns = torch.cat([values for values, _ in trials]), torch.cat([block for _, block in trials])
        method = "spectral abscissa, all vertices"
    else:
        generator = torch.Generator().manual_seed(0)
        ones = torch.ones(n, dtype=torch.bool)
        starts = [ones, seen.W.diagonal() > 0]
        starts += [torch.rand(n, generator=generator) < 0.5 for _ in range(3 if n <= 60 else 0)]
        found = [_climb(seen, slopes.vertex(start), slopes) for start in starts[: 5 if n <= _SWITCHING else 1]]
        ends = slopes.low + slopes.high
        climbed, pattern = _flipped(seen, *max(found, key=lambda pair: pair[0]), ends)
        values = torch.tensor([climbed, -math.inf], dtype=torch.float64)
        patterns = torch.stack([pattern, slopes.vertex(~ones)])
        method = "spectral abscissa, local search"
    return _constant(*_proved(seen, values, patterns, method))


def _proved(system: System, values: Tensor, patterns: Tensor, method: str) -> tuple[float, str, Tensor]:
    """The rate of the pattern with the largest abscissa that is proved, among those with the largest computed ones."""
    best, shown = -math.inf, patterns[-1]
    order = values.nan_to_num(nan=-math.inf).argsort(descending=True, stable=True)
    for index in (*order[:_PROVED].tolist(), len(values) - 1):  # the last: lowest slopes
        if index == len(values) - 1 or float(values[index]) > best:
            value = abscissa_from_below(_matrices(system, patterns[index][None])[0])
            if value > best:
                best, shown = value, patterns[index]
    return 1 - best, method, shown


def _constant(rate: float, method: str, slopes: Tensor) -> UpperBound:
    forever = torch.tensor([math.inf], dtype=torch.float64)
    return UpperBound(rate=rate, method=method, slopes=slopes[None], dwell=forever)


def _at_speed(bound: UpperBound, speed: float) -> UpperBound:
    return replace(bound, rate=speed * bound.rate, dwell=bound.dwell / speed)


def _matrices(system: System, slopes: Tensor) -> Tensor:
    """DW, or W_SS with S where the slopes are 1 for the inclusion, among entries far below: (batch, n, n)."""
    matrices = slopes[:, :, None] * system.W
    if isinstance(system, InclusionSystem):
        far = -2 * float(torch.linalg.matrix_norm(system.W)) - 1
        matrices = matrices * slopes[:, None, :] + torch.diag_embed(far * (1 - slopes))  # S = ∅ comes out far below
    return matrices


def _abscissae(system: System, slopes: Tensor) -> Tensor:
    """α of each of these matrices as it is computed: (batch, n) -> (batch,)."""
    return eigenvalues(_matrices(system, slopes)).real.amax(-1)


def _climb(system: System, pattern: Tensor, slopes: Slopes) -> tuple[float, Tensor]:
    """Jump to the vertex that the derivative of the leading eigenvalue points to, while that helps."""
    value = float(_abscissae(system, pattern[None])[0])
    for _ in range(20 if system.size <= _SWITCHING else 2):
        matrix = pattern[:, None] * system.W
        try:
            (values, right), (left_values, left) = eigenvectors(matrix), eigenvectors(matrix.mT)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            break
        at = int(values.real.argmax())
        x, y = right[:, at], left[:, int((left_values - values[at]).abs().argmin())]
        gradient = (y * (system.W.to(x.dtype) @ x) / (y @ x)).real
        moved = slopes.vertex(gradient > 0)
        trial = float(_abscissae(system, moved[None])[0]) if bool((moved > 0).any()) else -math.inf
        if not trial > value:
            break
        value, pattern = trial, moved
    return value, pattern


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
    view, seen = slopes_view(system)
    words: list[tuple[Tensor, Tensor]] = []
    if seen.size <= _MOST_PAIRS:
        corners = torch.cat(list(vertices(seen.slopes, seen.size)))
        speed = 1 / (1 + float(torch.linalg.matrix_norm(seen.W, 2)))
        for i, j in itertools.combinations(range(len(corners)), 2):
            words.append((corners[[i, j]], torch.full((2,), 3 * speed, dtype=torch.float64)))
    metrics = [torch.eye(seen.size, dtype=torch.float64)]
    if isinstance(metric, FullP | WeightedL2):
        metrics.append(view.metric(metric.to(seen.W)).matrix)  # type: ignore[attr-defined]
    for P in metrics:
        words += _greedy_words(seen, P)
    scored = sorted(words, key=lambda word: -_exponent(seen, *word))[:3]
    slopes, dwell = max((_refined(seen, *word) for word in scored), key=lambda word: _exponent(seen, *word))
    rate = -_exponent(seen, slopes, dwell, proved=True)
    if view.transposed:  # and so is the product over the word: in the flow itself the pieces come in the other order
        slopes, dwell = slopes.flip(0), dwell.flip(0)
    return UpperBound(rate=rate, method="slope switching", slopes=slopes, dwell=dwell)


def _exponent(system: FiringRateSystem, slopes: Tensor, dwell: Tensor, *, proved: bool = False) -> float:
    """Growth exponent of the periodic word: log of the spectral radius of the monodromy matrix over the period.

    Args:
        system: the flow, in balanced coordinates.
        slopes: of the pieces, (pieces, n).
        dwell: their times, (pieces,).
        proved: whether to subtract what the rounding of all steps can have added.
    """
    factors = torch.linalg.matrix_exp(system.jacobians(slopes) * dwell[:, None, None])
    product, logarithm, error = torch.eye(system.size, dtype=torch.float64), 0.0, 0.0
    for factor in factors:
        product, growth = factor @ product, float(torch.linalg.matrix_norm(factor))
        size = float(torch.linalg.matrix_norm(product))
        if not 0 < size < math.inf:
            return -math.inf  # a word too long to be represented shows nothing
        error = growth * (error + _EXPONENTIAL * system.size * UNIT) / size  # of an exponential and of a product
        product, logarithm = product / size, logarithm + math.log(size)
    radius = radius_from_below(product, error) if proved else float(eigenvalues(product).abs().max())
    return (math.log(radius) + logarithm) / float(dwell.sum()) if radius > 0 else -math.inf


def _refined(system: FiringRateSystem, slopes: Tensor, dwell: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply single dwell times, then all, by growing and shrinking factors while that raises the exponent."""
    value, factor, left = _exponent(system, slopes, dwell), 2.0, _MOST_TRIALS
    groups = [*torch.eye(len(dwell), dtype=torch.float64), torch.ones(len(dwell), dtype=torch.float64)]
    while factor > 1.001 and left > 0:
        before, left = value, left - 2 * len(groups)
        for group, power in itertools.product(groups, (1, -1)):
            trial = dwell * factor ** (power * group)
            reached = _exponent(system, slopes, trial)
            if reached > value and float(trial.sum()) < 1e3:
                value, dwell = reached, trial
        if value - before < 1e-4 * (1 + abs(value)):
            factor = factor**0.5
    return slopes, dwell


def _greedy_words(system: FiringRateSystem, P: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Words that the worst-case switching rule of xᵀPx settles into: runs of up to six consecutive slope vectors."""
    W = system.W
    step = 0.05 / (1 + float(torch.linalg.matrix_norm(W, 2)))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(system.size, generator=generator, dtype=torch.float64)
    pieces: list[tuple[Tensor, float]] = []
    for index in range(1500):
        driven = W @ x
        slopes = system.slopes.vertex((P @ x) * driven > 0)
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
