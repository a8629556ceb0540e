r"""Multipliers and pulls that make bounds small: a search in float32, of which nothing is believed.

The weighted sum of the bounds is convex in λ where M ≻ 0. Its gradient says for every neuron whether the worst move
has |δᵢ| larger or smaller than |Δvᵢ|; λᵢ is multiplied by a power of their quotient, every row with a step of its own
that halves where the sum has not become smaller. The pulls ω follow between these steps by an accelerated proximal
gradient method, whose quadratic form is the identity but on the q rows of R.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equilibrium.local.relaxation import (
    Ellipsoid,
    Forms,
    Matrices,
    Moves,
    Pull,
    Values,
    Whitened,
    evaluated,
    moves,
    shifted,
    whitened,
)
from equilibrium.local.surroundings import Surroundings

_TINY = 1e-30
_GROWTH, _LARGEST = 1.4, 2.0  # A step of log λ that helped grows by so much, up to so many times the logarithm.
_FLOOR = (
    1e-6  # No multiplier is less than so much of the largest of its row: a later search may need what this does not.
)
_MARGIN = 1e-4  # of λmin(M̃), which a factorisation in float32 of a few hundred rows cannot tell from zero by itself
_FARTHEST = 100.0  # A multiple of a cut is no larger than so many sizes of the form: more drowns in rounding.
_SWEEPS = 20  # Several cuts get their multiples in turn so many times; it costs little beside a factorisation.
_SOFT = (
    1e-4  # of the square of a form's size is added to squares there: at a kink of the root no single cut would help.
)
_SCALES = 4  # So many multiples of a first λ are tried, each four times as large or small as the one before.


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long a search goes on.

    Attributes:
        steps: of λ.
        every: steps of λ between two updates of ω.
        pulls: steps of ω in each update.
    """

    steps: int = 16
    every: int = 4
    pulls: int = 4


class Search:
    """One search for the bounds of k forms in each row, all with one λ; or go on from what an earlier one found.

    Args:
        matrices: of the network, in the precision of the search.
        middle: m of the intervals of slopes, (batch, n).
        half: h, half their width, zero where a neuron is decided.
        forms: what is to be bounded.
        weights: of each form in the sum, (batch, k).
        around: the surroundings.
        starts: λ to begin with, each up to a factor, (batch, n); of all their multiples the best is taken.
        omega: ω to begin with, or None for zero.
        cuts: m forms that are at least zero at all the moves of interest, or None.
        shift: k of Δz = sΔv + k, (batch, n), or None for zero.
    """

    def __init__(
        self,
        matrices: Matrices,
        middle: Tensor,
        half: Tensor,
        forms: Forms,
        weights: Tensor,
        around: Surroundings,
        starts: Sequence[Tensor],
        omega: Tensor | None = None,
        cuts: Forms | None = None,
        shift: Tensor | None = None,
    ):
        self.matrices, self.around, self.weights, self.own, self.cuts = matrices, around, weights, forms, cuts
        self.move: Moves = moves(matrices, middle, half, shift)
        self.live = self.move.undecided
        self.size = half.shape[-1]
        self.lean = None if cuts is None else weights.new_zeros(*weights.shape, _count(cuts))
        self.planes = None if cuts is None else self.move.coefficients(cuts)
        self._combine(omega)
        self._take(*self._best([start.gather(-1, self.move.places) for start in starts]))

    def _combine(self, omega: Tensor | None) -> None:
        """The forms with their multiples of the cuts, and pulls of them."""
        self.forms = self.own if self.cuts is None or self.lean is None else self.own.plus(self.lean, self.cuts)
        self.form = self.move.coefficients(self.forms)
        self.pull = Pull.made(self.matrices, self.forms.direct, omega)

    def _tried(self, multiplier: Tensor) -> tuple[Whitened, Ellipsoid, Tensor]:
        """The move in the coordinates of a multiplier, its ellipsoid, and whether M̃ ≻ 0, (batch,)."""
        white = whitened(self.move, multiplier)
        M = white.quadratic
        M.diagonal(dim1=-2, dim2=-1).sub_(_MARGIN)
        factor, info = torch.linalg.cholesky_ex(M)
        found = Ellipsoid.of(factor, white, self.around)
        # what is not finite in a row of a factor makes its diagonal so
        proved = (info == 0) & torch.isfinite(factor.diagonal(dim1=-2, dim2=-1)).all(-1)
        proved &= torch.isfinite(found.centre).all(-1)
        return white, found, proved

    def _take(self, multiplier: Tensor, white: Whitened, ellipsoid: Ellipsoid) -> None:
        self.lam, self.white, self.ellipsoid = multiplier, white, ellipsoid

    def _value(self, white: Whitened, ellipsoid: Ellipsoid) -> tuple[Values, Tensor]:
        found = evaluated(ellipsoid, self.form * white.scale[:, None], self.pull, self.around)
        return found, (found.bound * self.weights).sum(-1)

    def _best(self, starts: Sequence[Tensor]) -> tuple[Tensor, Whitened, Ellipsoid]:
        """The best of a few multiples of each start with M ≻ 0, downhill from one fourth and one sixteenth.

        A multiple is one where Σ λᵢ‖Δvᵢ‖² is one for all inputs of length one; the sum of the bounds is convex in it.
        """
        n, own = self.live.shape[-1], self.move.own
        best = Whitened(torch.zeros_like(own), torch.zeros_like(self.move.T[:, 0]))
        multiplier, ellipsoid = torch.ones_like(self.move.half), Ellipsoid.of(best.quadratic, best, self.around)
        least = torch.full_like(self.move.middle[:, 0], math.inf)
        squares = own[..., n:-1].square().sum(-1)
        for start in starts:
            live = torch.where(self.live, start, 0.0)
            unit = live / (live * squares).sum(-1, keepdim=True).clamp_min(_TINY)
            multiple, before = torch.full_like(least, 0.25), torch.full_like(least, math.inf)
            downwards = torch.ones_like(least, dtype=torch.bool)
            for k in range(_SCALES):
                trial = torch.where(self.live, multiple[:, None] * unit, 1.0)
                white, found, proved = self._tried(trial)
                _, total = self._value(white, Ellipsoid(*_parts(proved, found, ellipsoid)))
                total = torch.where(proved, total, math.inf)
                better = total < least
                multiplier, ellipsoid = _where(better, trial, multiplier), Ellipsoid(*_parts(better, found, ellipsoid))
                best = Whitened(*_parts(better, white, best))
                least = torch.where(better, total, least)
                if k == 1:
                    downwards = ~(before < total)
                    multiple = torch.where(downwards, multiple, 0.25)
                multiple, before = torch.where(downwards, multiple / 4, multiple * 4), total
        return multiplier, best, ellipsoid

    def run(self, effort: Effort) -> None:
        """Make the weighted sum of the bounds smaller."""
        values, least = self._value(self.white, self.ellipsoid)
        pace = torch.full_like(least, 0.5)
        for k in range(effort.steps):
            if k % effort.every == 0 and not (self.around.whole and self.cuts is None):
                self._cut()
                self.follow(effort.pulls)
                values, least = self._value(self.white, self.ellipsoid)
            trial = self.lam * torch.exp(2 * pace[:, None] * self._direction(values))
            if trial.shape[-1]:
                trial = torch.maximum(trial, _FLOOR * trial.amax(-1, keepdim=True))
            white, ellipsoid, proved = self._tried(trial)
            found, total = self._value(white, Ellipsoid(*_parts(proved, ellipsoid, self.ellipsoid)))
            better = proved & (total < least)
            white = Whitened(*_parts(better, white, self.white))
            self._take(_where(better, trial, self.lam), white, Ellipsoid(*_parts(better, ellipsoid, self.ellipsoid)))
            values = Values(*_parts(better, found, values))
            least = torch.where(better, total, least)
            pace = torch.where(better, (_GROWTH * pace).clamp_max(_LARGEST), 0.5 * pace)
        self._cut()
        self.follow(2 * effort.pulls)

    def worst(self) -> tuple[Tensor, Tensor]:
        """What the width of each interval adds to the bounds, in rough numbers, (batch, n), and Δx at the worst moves.

        The derivative of a bound in the logarithm of a width is proportional to λδ² at the worst move.
        """
        point, _ = self._value(self.white, self.ellipsoid)
        u = self.live.shape[-1]
        influence = (self.weights[..., None] * point.reach[..., None] * point.point[..., :u].square()).sum(1)
        spread = torch.zeros_like(self.move.middle).scatter(-1, self.move.places, influence)
        return spread, point.point[..., u:] @ self.matrices.R

    @property
    def multiplier(self) -> Tensor:
        """λ of every neuron, (batch, n); one where a neuron is decided."""
        return torch.ones_like(self.move.middle).scatter(-1, self.move.places, self.lam)

    def _direction(self, values: Values) -> Tensor:
        """(δ² − Δv²)/(δ² + Δv²) of the worst moves, weighted: (batch, n), in [−1, 1]."""
        weight = (self.weights * values.reach)[..., None]
        inner = ((values.point @ self.white.T[..., :-1].mT + self.white.T[:, None, :, -1]).square() * weight).sum(1)
        delta = (values.point[..., : self.live.shape[-1]].square() * weight).sum(1)
        return (delta - inner) / (delta + inner + _TINY)

    def follow(self, steps: int) -> None:
        """Move the pulls towards their best for the present λ."""
        around, R, direct = self.around, self.matrices.R, self.forms.direct
        if around.low is None or around.high is None:
            return
        n, factor, radius = self.live.shape[-1], self.ellipsoid.factor, self.ellipsoid.radius[:, None, None]
        middle = (self.ellipsoid.centre[:, n:] @ R)[:, None]  # Δx at the centre of the ellipsoid
        least, most = middle - around.high[:, None], middle - around.low[:, None]
        # pulls change ℓ in the last q entries only, so that ℓᵀM⁻¹ℓ is fixed + bᵀBb with the last q × q block B of M⁻¹
        inverse = torch.cholesky_inverse(factor[:, n:, n:])
        rate = 1 / _largest_eigenvalue(inverse)[:, None, None]
        form = (self.form * self.white.scale[:, None])[..., :-1]
        above = torch.linalg.solve_triangular(factor[:, :n, :n], form[..., :n].mT, upper=False)
        fixed, below = above.square().sum(1), form[..., n:] - (factor[:, n:, :n] @ above).mT
        omega = self.pull.omega
        if omega is None:
            omega = self.form.new_zeros(*self.weights.shape, R.shape[-1])
        g = ahead = omega if direct is None else omega + direct
        inside = g @ R.mT
        change = slope = (below + inside) @ inverse - inside
        momentum = 1.0
        for k in range(steps + 1):
            reach = ((below + inside) * (change + inside)).sum(-1)
            outside = (g.square().sum(-1) - inside.square().sum(-1)).clamp_min(0)
            if k:
                self.pull = Pull(omega, inside, outside)
            if k == steps:
                break
            price = rate * (fixed + reach + outside).clamp_min(_TINY).sqrt()[..., None] / radius
            target = (1 - rate) * ahead - (rate * slope) @ R
            target = target if direct is None else target - direct
            omega = torch.addcmul(target, price, (target / price).clamp(least, most), value=-1)
            past, before, g = g, change, omega if direct is None else omega + direct
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            weight = 1 + (momentum - 1) / following
            inside = g @ R.mT
            change = (below + inside) @ inverse - inside
            ahead, slope = torch.lerp(past, g, weight), torch.lerp(before, change, weight)
            momentum = following

    def _cut(self) -> None:
        """Move the multiples of the cuts to their best, one after the other, for the present λ and pulls."""
        if self.cuts is None or self.lean is None or self.planes is None:
            return
        scale, radius, own = self.white.scale[:, None], self.ellipsoid.radius[:, None], self.cuts.direct
        across = Pull.made(self.matrices, own, None)
        rows = [shifted((part * scale)[..., :-1], p) for part, p in ((self.form, self.pull), (self.planes, across))]
        lower, planes = (torch.linalg.solve_triangular(self.ellipsoid.factor, part.mT, upper=False) for part in rows)
        slopes = (rows[1] @ self.ellipsoid.centre[..., None])[..., 0] + self.planes[..., -1]
        square = lower.square().sum(1) + self.pull.outside  # (batch, k)
        mixed, gram = lower.mT @ planes, planes.mT @ planes
        if own is not None and across.inside is not None and self.forms.direct is not None:
            g = self.forms.direct if self.pull.omega is None else self.forms.direct + self.pull.omega
            over = own - across.inside @ self.matrices.R
            mixed, gram = mixed + g @ over.mT, gram + over @ over.mT
        alone = (self.move.coefficients(self.own) * scale)[..., :-1]
        own_size = torch.linalg.solve_triangular(self.ellipsoid.factor, alone.mT, upper=False).square().sum(1)
        lean = self.lean.clone()
        count = lean.shape[-1]
        for j in itertools.chain.from_iterable(itertools.repeat(range(count), 1 if count == 1 else _SWEEPS)):
            c = gram[:, j, j][:, None].clamp_min(_TINY)
            slope, b = slopes[:, j, None], mixed[..., j]
            rest = (square - b.square() / c).clamp_min(0) + (0.0 if count == 1 else _SOFT * own_size)
            steep = c * radius.square() - slope**2
            best = -slope * (rest / (c * steep.clamp_min(_TINY))).sqrt() - b / c
            most = _FARTHEST * (own_size / c).sqrt() - lean[..., j]
            step = torch.where(steep > 0, best, torch.where(slope < 0, most, -lean[..., j]))
            step = torch.maximum(torch.minimum(step, most), -lean[..., j])
            lean[..., j] += step
            square = (square + 2 * b * step + c * step.square()).clamp_min(0)
            mixed = mixed + step[..., None] * gram[:, j][:, None]
        self.lean = lean
        self._combine(self.pull.omega)


def _count(forms: Forms) -> int:
    return next(part.shape[1] for part in vars(forms).values() if part is not None)


def _parts(rows: Tensor, new: Iterable[Tensor], old: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each part of two tuples: the new one in some rows, the old one in the others."""
    return (_where(rows, ours, theirs) for ours, theirs in zip(new, old, strict=True))


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    if bool(rows.all()):
        return new
    return torch.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _largest_eigenvalue(matrices: Tensor) -> Tensor:
    """An estimate from a few powers, a tenth larger, and at least one: (batch, q, q) -> (batch,)."""
    vector = torch.ones_like(matrices[..., :1])
    for _ in range(4):
        vector = matrices @ vector
        norm = torch.linalg.vector_norm(vector, dim=(-2, -1), keepdim=True)
        vector = vector / norm.clamp_min(_TINY)
    return 1.1 * norm[:, 0, 0].clamp_min(1.0)
