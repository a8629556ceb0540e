r"""Bounds from above on the contraction rate in *any* metric: what no certificate may exceed.

A flow that contracts at rate c in some norm contracts at rate c for slopes held constant, and for slopes that switch in
time. So every slope vector D gives c ≤ −α(DW − I), and every periodic word D₁…D_k with dwell times t gives
c ≤ −(1/T) log ρ(Π e^{(D_kW − I)t_k}), T = Σt. The searches are heuristics, in balanced coordinates; from each number
they return, what rounding can have added is taken off.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from contracting.certificates.definite import UNIT
from contracting.certificates.lure.checker import jacobian_error
from contracting.certificates.lure.views import lure_view
from contracting.certificates.records import PER_TIME
from contracting.certificates.spectra import abscissa_from_below, eigenvalues, eigenvectors, radius_from_below
from contracting.certificates.systems import (
    InclusionSystem,
    LinearSystem,
    SlopeSystem,
    System,
    WeightSystem,
    vertices,
)
from contracting.certificates.views import slopes_view, view_of
from contracting.display import Displayed
from contracting.lure.system import LureSystem
from contracting.metrics import FullP, Metric, WeightedL2
from contracting.types import UNIT_SLOPES

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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Family:
    """Matrices that depend on the slopes of neurons, one interval each, in balanced coordinates.

    Attributes:
        matrices: F from slopes, (batch, m) -> (batch, n, n).
        error: by how much the norm of such a matrix may differ from what is meant, (m,) -> a number.
        factors: L and R with which slope i changes F by LeᵢeᵢᵀR, from slopes (m,) -> (n, m), (m, n).
        low: smallest slopes, (m,).
        high: largest slopes, (m,).
        size: n.
        leak: what is taken off from F on the diagonal to give the Jacobian.
    """

    matrices: Callable[[Tensor], Tensor]
    error: Callable[[Tensor], float]
    factors: Callable[[Tensor], tuple[Tensor, Tensor]]
    low: Tensor
    high: Tensor
    size: int
    leak: float = 1.0

    @property
    def neurons(self) -> int:
        return len(self.low)

    def vertex(self, high: Tensor) -> Tensor:
        """The high end of an interval where ``high`` is true and the low end elsewhere."""
        return torch.where(high, self.high, self.low)

    def jacobians(self, slopes: Tensor) -> Tensor:
        """(batch, m) -> (batch, n, n)."""
        return self.matrices(slopes) - self.leak * torch.eye(self.size, dtype=torch.float64)

    def abscissae(self, slopes: Tensor) -> Tensor:
        """α of each of these matrices as it is computed: (batch, m) -> (batch,)."""
        return eigenvalues(self.matrices(slopes)).real.amax(-1)


def _family(system: System) -> _Family:
    if isinstance(system, LureSystem):
        view = lure_view(system)
        seen = system.rescaled(view.states, view.neurons)
        return _Family(
            matrices=seen.jacobians,
            error=partial(jacobian_error, seen),
            factors=seen.slope_factors,
            low=seen.low,
            high=seen.high,
            size=seen.size,
            leak=0.0,
        )
    weighted = view_of(system).system  # the transpose has the same eigenvalues
    W, n = weighted.W, weighted.size
    inclusion = isinstance(weighted, InclusionSystem)

    def matrices(slopes: Tensor) -> Tensor:
        """DW, or W_SS with S where the slopes are 1 for the inclusion, among entries far below."""
        product = slopes[:, :, None] * W
        if inclusion:
            far = -2 * float(torch.linalg.matrix_norm(W)) - 1
            product = product * slopes[:, None, :] + torch.diag_embed(far * (1 - slopes))  # S = ∅ comes out far below
        return product

    low, high = UNIT_SLOPES if inclusion else weighted.slopes
    return _Family(
        matrices=matrices,
        error=lambda slopes: 0.0,
        factors=lambda slopes: (torch.eye(n, dtype=torch.float64), W),
        low=torch.full((n,), low, dtype=torch.float64),
        high=torch.full((n,), high, dtype=torch.float64),
        size=n,
    )


def upper_bound(system: System, metric: Metric | None = None) -> UpperBound:
    """The smaller of the two bounds, switching for n ≤ 200; its search looks for words in ``metric`` if given."""
    constant = abscissa_bound(system)
    switches = isinstance(system, SlopeSystem) or (isinstance(system, LureSystem) and system.neurons > 0)
    if not switches or not 1 < system.size <= _SWITCHING:
        return constant
    switching = switching_bound(system, metric)
    return min(constant, switching, key=lambda bound: bound.rate)


def abscissa_bound(system: System) -> UpperBound:
    """−max α of the Jacobians over slopes: all vertices for up to 10 neurons, else a local search from several starts.

    For the inclusion, 1 − max α(W_SS) over principal submatrices; for a linear flow −α(A). Times the speed.
    """
    if isinstance(system, WeightSystem) and system.speed != 1:
        return _at_speed(abscissa_bound(system.at_speed(1.0)), system.speed)
    if isinstance(system, LinearSystem):
        seen = view_of(system).system
        return _constant(-abscissa_from_below(seen.W), "spectral abscissa", torch.ones(seen.size, dtype=torch.float64))
    family = _family(system)
    m = family.neurons
    if m <= _MOST_VERTICES:
        trials = [(family.abscissae(block), block) for block in vertices((family.low, family.high), m)]
        values, patterns = torch.cat([values for values, _ in trials]), torch.cat([block for _, block in trials])
        method = "spectral abscissa, all vertices"
    else:
        generator = torch.Generator().manual_seed(0)
        ones = torch.ones(m, dtype=torch.bool)
        starts = [ones, _towards(family)]
        starts += [torch.rand(m, generator=generator) < 0.5 for _ in range(3 if m <= 60 else 0)]
        found = [_climb(family, family.vertex(start)) for start in starts[: 5 if m <= _SWITCHING else 1]]
        climbed, pattern = _flipped(family, *max(found, key=lambda pair: pair[0]))
        values = torch.tensor([climbed, -math.inf], dtype=torch.float64)
        patterns = torch.stack([pattern, family.vertex(~ones)])
        method = "spectral abscissa, local search"
    return _constant(*_proved(family, values, patterns, method))


def _towards(family: _Family) -> Tensor:
    """Whether a slope raises the trace."""
    left, right = family.factors(family.low)
    return (left.mT * right).sum(1) > 0


def _proved(family: _Family, values: Tensor, patterns: Tensor, method: str) -> tuple[float, str, Tensor]:
    """The rate of the pattern with the largest abscissa that is proved, among those with the largest computed ones."""
    best, shown = -math.inf, patterns[-1]
    order = values.nan_to_num(nan=-math.inf).argsort(descending=True, stable=True)
    for index in (*order[:_PROVED].tolist(), len(values) - 1):  # the last: lowest slopes
        if index == len(values) - 1 or float(values[index]) > best:
            slopes = patterns[index]
            value = abscissa_from_below(family.matrices(slopes[None])[0], family.error(slopes))
            if value > best:
                best, shown = value, patterns[index]
    return family.leak - best, method, shown


def _constant(rate: float, method: str, slopes: Tensor) -> UpperBound:
    forever = torch.tensor([math.inf], dtype=torch.float64)
    return UpperBound(rate=rate, method=method, slopes=slopes[None], dwell=forever)


def _at_speed(bound: UpperBound, speed: float) -> UpperBound:
    return replace(bound, rate=speed * bound.rate, dwell=bound.dwell / speed)


def _climb(family: _Family, pattern: Tensor) -> tuple[float, Tensor]:
    """Jump to the vertex that the derivative of the leading eigenvalue points to, while that helps."""
    value = float(family.abscissae(pattern[None])[0])
    for _ in range(20 if family.neurons <= _SWITCHING else 2):
        matrix = family.matrices(pattern[None])[0]
        try:
            (values, right), (left_values, left) = eigenvectors(matrix), eigenvectors(matrix.mT)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            break
        at = int(values.real.argmax())
        x, y = right[:, at], left[:, int((left_values - values[at]).abs().argmin())]
        into, out = (factor.to(x.dtype) for factor in family.factors(pattern))
        gradient = ((y @ into) * (out @ x) / (y @ x)).real
        moved = family.vertex(gradient > 0)
        trial = float(family.abscissae(moved[None])[0])
        if not trial > value:
            break
        value, pattern = trial, moved
    return value, pattern


def _flipped(family: _Family, value: float, slopes: Tensor) -> tuple[float, Tensor]:
    """The best single flips of a slope to its other end, while they help."""
    improved = family.neurons <= 40
    while improved:
        flips = slopes.repeat(family.neurons, 1)
        index = torch.arange(family.neurons)
        flips[index, index] = family.low + family.high - slopes
        values_at = family.abscissae(flips)
        best = int(values_at.argmax())
        improved = float(values_at[best]) > value + 1e-12
        if improved:
            value, slopes = float(values_at[best]), flips[best]
    return value, slopes


def switching_bound(system: System, metric: Metric | None = None) -> UpperBound:
    """The best bound from short periodic words of vertices.

    For up to 3 neurons the words are all pairs of vertices; in every case also what the worst-case switching rule does
    in ``metric`` and in the Euclidean norm: each slope is high where that drives the norm up. Dwell times are refined.

    Raises:
        PreconditionError: for the inclusion and for linear flows.
    """
    if isinstance(system, LureSystem):
        scale, transposed = lure_view(system).states, False
    else:
        if system.speed != 1:
            return _at_speed(switching_bound(system.at_speed(1.0), metric), system.speed)
        view, _ = slopes_view(system)
        scale, transposed = view.scale, view.transposed
    family = _family(system)
    words: list[tuple[Tensor, Tensor]] = []
    if family.neurons <= _MOST_PAIRS:
        corners = torch.cat(list(vertices((family.low, family.high), family.neurons)))
        dwell = 3 / _size(family)
        for i, j in itertools.combinations(range(len(corners)), 2):
            words.append((corners[[i, j]], torch.full((2,), dwell, dtype=torch.float64)))
    metrics = [torch.eye(family.size, dtype=torch.float64)]
    if isinstance(metric, FullP | WeightedL2):
        metric = metric.to(scale)
        metrics.append((metric.dual() if transposed else metric).rescaled(scale).matrix)  # type: ignore[attr-defined]
    for P in metrics:
        words += _greedy_words(family, P)
    scored = sorted(words, key=lambda word: -_exponent(family, *word))[:3]
    slopes, dwell_times = max((_refined(family, *word) for word in scored), key=lambda word: _exponent(family, *word))
    rate = -_exponent(family, slopes, dwell_times, proved=True)
    if transposed:  # and so is the product over the word: in the flow itself the pieces come in the other order
        slopes, dwell_times = slopes.flip(0), dwell_times.flip(0)
    return UpperBound(rate=rate, method="slope switching", slopes=slopes, dwell=dwell_times)


def _size(family: _Family) -> float:
    """Of the Jacobian at the highest slopes."""
    return family.leak + float(torch.linalg.matrix_norm(family.matrices(family.high[None])[0], 2)) or 1.0


def _exponent(family: _Family, slopes: Tensor, dwell: Tensor, *, proved: bool = False) -> float:
    """Growth exponent of the periodic word: log of the spectral radius of the monodromy matrix over the period.

    Args:
        family: the flow, in balanced coordinates.
        slopes: of the pieces, (pieces, m).
        dwell: their times, (pieces,).
        proved: whether to subtract what the rounding of all steps can have added.
    """
    factors = torch.linalg.matrix_exp(family.jacobians(slopes) * dwell[:, None, None])
    product, logarithm, error = torch.eye(family.size, dtype=torch.float64), 0.0, 0.0
    for factor in factors:
        product, growth = factor @ product, float(torch.linalg.matrix_norm(factor))
        size = float(torch.linalg.matrix_norm(product))
        if not 0 < size < math.inf:
            return -math.inf  # a word too long to be represented shows nothing
        error = growth * (error + _EXPONENTIAL * family.size * UNIT) / size  # of an exponential and of a product
        product, logarithm = product / size, logarithm + math.log(size)
    radius = radius_from_below(product, error) if proved else float(eigenvalues(product).abs().max())
    return (math.log(radius) + logarithm) / float(dwell.sum()) if radius > 0 else -math.inf


def _refined(family: _Family, slopes: Tensor, dwell: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply single dwell times, then all, by growing and shrinking factors while that raises the exponent."""
    value, factor, left = _exponent(family, slopes, dwell), 2.0, _MOST_TRIALS
    groups = [*torch.eye(len(dwell), dtype=torch.float64), torch.ones(len(dwell), dtype=torch.float64)]
    while factor > 1.001 and left > 0:
        before, left = value, left - 2 * len(groups)
        for group, power in itertools.product(groups, (1, -1)):
            trial = dwell * factor ** (power * group)
            reached = _exponent(family, slopes, trial)
            if reached > value and float(trial.sum()) < 1e3:
                value, dwell = reached, trial
        if value - before < 1e-4 * (1 + abs(value)):
            factor = factor**0.5
    return slopes, dwell


def _greedy_words(family: _Family, P: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Words that the worst-case switching rule of xᵀPx settles into: runs of up to six consecutive slope vectors."""
    step = 0.05 / _size(family)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(family.size, generator=generator, dtype=torch.float64)
    slopes, (into, out), flow = family.high, family.factors(family.high), family.jacobians(family.high[None])[0]
    pieces: list[tuple[Tensor, float]] = []
    for index in range(1500):
        better = family.vertex((P @ x @ into) * (out @ x) > 0)
        if not torch.equal(better, slopes):
            slopes, (into, out), flow = better, family.factors(better), family.jacobians(better[None])[0]
        x = x + step * (flow @ x)
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
