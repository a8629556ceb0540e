r"""Slopes around an anchor, made narrower pass by pass: bounds of Δv → slopes → smaller bounds of Δv.

Each pass bounds how far every neuron's pre-activation can move over the surroundings and takes the secant slopes over
that stretch. Every pass is sound by itself, whatever the one before has left, because its bounds come from the checker.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from equilibrium.local import checker
from equilibrium.local.coupled import Enclosure
from equilibrium.local.finder import Effort, Search
from equilibrium.local.linear import LinearBounds
from equilibrium.local.network import Anchors, LocalNetwork
from equilibrium.local.relaxation import Forms, middles
from equilibrium.local.slopes import one_sided, secant_slopes
from equilibrium.local.surroundings import Rows, Surroundings

_SEARCHED = torch.float32  # The precision of searches; what they find is proved in float64.
_ENTRIES = 2**23  # Numbers in the largest tensor of a search, 32 MB: more rows at a time save no time.
_SOLVED = 1000  # rows at a time at most
_NEAR = 0.05  # A neuron nearer to its kink than this share of the radius counts as if it were so far away.


@dataclass(frozen=True, kw_only=True, eq=False)
class Slopes:
    """What is proved of the secant slopes of every neuron over the surroundings of each row.

    Attributes:
        low: (batch, n).
        high: (batch, n).
        multiplier: per unit of the squared width of the interval, to begin a search with, (batch, n).
        shift: k of Δz = sΔv + k, (batch, n): not zero for a neuron that has left the piece of its anchor.
    """

    low: Tensor
    high: Tensor
    multiplier: Tensor
    shift: Tensor

    @property
    def undecided(self) -> Tensor:
        """How many neurons are not known to be linear, (batch,)."""
        return self.live.sum(-1)

    @property
    def live(self) -> Tensor:
        """Those neurons, (batch, n); one that has left its piece is known up to rounding."""
        return (self.high > self.low) & (self.shift == 0)

    def rows(self, index: Rows) -> Self:
        """Those of some rows."""
        return type(self)(**{name: part[index] for name, part in vars(self).items()})


class Narrowing:
    """The slopes of some rows, and what their searches have found so far.

    Args:
        network: the network.
        anchors: of the rows.
        around: the surroundings of the rows.
        effort: of each search.
        enclosure: boxes that are proved to hold the equilibria all over the surroundings, or None.
    """

    cuts: Forms | None = None  # at least zero at every move that the slopes are about; None where they are about all

    def __init__(
        self,
        network: LocalNetwork,
        anchors: Anchors,
        around: Surroundings,
        effort: Effort,
        enclosure: Enclosure | None = None,
    ):
        self.network, self.anchors, self.around, self.effort = network, anchors, around, effort
        n, v = network.size, anchors.inner
        low, high = (end.expand(len(v), -1) for end in network.activation.slope_intervals(n))
        start = network.metric.expand(len(v), -1)
        self.slopes = Slopes(low=low, high=high, multiplier=start, shift=torch.zeros_like(v))
        self.enclosure, self.linear = enclosure, LinearBounds.of(network, anchors, around)
        if self.linear is not None:
            self._narrow(torch.full_like(v, torch.inf), start)
        if enclosure is not None:
            down, up = v - enclosure.inner_low, enclosure.inner_high - v
            sided = torch.where(v > 0, down, up) if one_sided(network.activation) else torch.maximum(down, up)
            # v is the computed anchor, the moves are those from the exact one
            self._narrow(sided.clamp_min(0) + anchors.inner_error, start)
        self._omega: Tensor | None = None
        self._moved: Tensor | None = None  # the neurons of ω

    def against(self, index: Tensor, rows: Tensor, lead: Tensor) -> Self:
        """A narrowing for each of some claims row·Δy < lead, about the moves that refute it only.

        What bounds a form at these moves may take any multiple of row·Δy − lead ≥ 0 into account. Where nothing is left
        of the slopes, or where row·Δy is proved to be smaller than the lead, there is no such move.

        Args:
            index: which anchor, (m,).
            rows: functionals of the output, (m, out).
            lead: (m,).
        """
        claimed = copy.copy(self)
        claimed.keep(index)
        forms = self._outputs(rows[:, None])
        claimed.cuts = replace(forms, constant=-lead[:, None])
        return claimed

    def split(self, neuron: Tensor) -> Self:
        """Two narrowings for each row: of moves at which a neuron, (batch,), stays on its side, then of all the others.

        For a σ of two pieces only. A neuron on its side has the slope of its anchor. One that has left it has the other
        slope and a constant, Δz = oΔv + (o − w)v₀; what v₀ may be wrong is put into the slope, because |Δv| ≥ |v₀|.
        """
        count, at = len(neuron), torch.arange(len(neuron))
        both = copy.copy(self)
        both.keep(at.repeat(2))
        v, error = self.anchors.inner[at, neuron], self.anchors.inner_error[at, neuron]
        flat, steep = (
            end.expand(self.network.size)[neuron] for end in self.network.activation.slope_intervals(self.network.size)
        )
        own, other = torch.where(v > 0, steep, flat), torch.where(v > 0, flat, steep)
        wrong = (steep - flat) * error / (v.abs() - error) * (1 + 1e-9)
        low, high, shift = (part.clone() for part in (both.slopes.low, both.slopes.high, both.slopes.shift))
        low[at, neuron], high[at, neuron] = own, own
        low[count + at, neuron], high[count + at, neuron] = other - wrong, other + wrong
        shift[count + at, neuron] = (other - own) * v
        both.slopes = replace(both.slopes, low=low, high=high, shift=shift)
        inner = torch.zeros(2 * count, 1, self.network.size, dtype=v.dtype)
        inner[at, 0, neuron], inner[count + at, 0, neuron] = v.sign(), -v.sign()
        side = Forms(inner=inner, constant=torch.cat([v.abs() + error, error - v.abs()])[:, None])
        both.cuts = side if both.cuts is None else both.cuts.joined(side)
        return both

    def sided(self, rows: Tensor) -> Self:
        """Some rows, with the sides of all neurons that have one as cuts: each alone follows, not all at once."""
        found = copy.copy(self)
        found.keep(rows)
        v, error, slopes = found.anchors.inner, found.anchors.inner_error, found.slopes
        stays = torch.where(slopes.shift == 0, 1.0, -1.0).to(v)
        inner = torch.diag_embed(torch.where(slopes.live, 0.0, stays * v.sign()))
        sides = Forms(inner=inner, constant=torch.where(slopes.live, 0.0, stays * v.abs() + error))
        found.cuts = sides if found.cuts is None else found.cuts.joined(sides)
        return found

    def step(self) -> None:
        """One pass."""
        slopes, v = self.slopes, self.anchors.inner
        live = slopes.live
        if not bool(live.any()):
            return
        if self.linear is not None and self.cuts is None:
            live = live & ~self.linear.first  # of these the lines know all
        index = torch.argsort(live, dim=-1, descending=True, stable=True)[:, : int(live.sum(-1).max())]
        # of a ReLU only the way to its kink matters
        signs = torch.where(v > 0, -1.0, 1.0).to(v)
        sides = 1 if one_sided(self.network.activation) or (self.around.whole and self.cuts is None) else 2
        inner = torch.zeros(*index.shape, v.shape[-1], dtype=v.dtype).scatter(
            -1, index[..., None], signs.gather(-1, index)[..., None]
        )
        forms = Forms(inner=torch.cat([inner, -inner][:sides], 1))
        weights = (live / (v.abs() + _NEAR * self.around.radius[:, None])).gather(-1, index).repeat(1, sides)
        omega = self._known(index, sides)
        search, bound = bounded(self.network, slopes, forms, weights, self.around, self.effort, omega, self.cuts)
        self._omega = search.omega
        reach = torch.full_like(v, torch.inf).scatter(-1, index, bound.reshape(len(v), sides, -1).amax(1))
        self._moved = index
        self._narrow(reach, search.multiplier)

    def _known(self, index: Tensor, sides: int) -> Tensor | None:
        """The pulls of the last pass for some neurons of each row, zero for those that had none."""
        if self._omega is None or self._moved is None:
            return None
        same = self._moved[:, None, :] == index[..., None]
        places = same.to(torch.int8).argmax(-1)[..., None].expand(-1, -1, self._omega.shape[-1])
        parts = self._omega.chunk(sides, 1)
        return torch.cat([part.gather(1, places) * same.any(-1)[..., None] for part in parts], 1)

    def _narrow(self, reach: Tensor, multiplier: Tensor) -> None:
        """Take what moves of v up to ``reach``, (batch, n), leave of the slopes."""
        # at moves that refute a claim a neuron may be bound to move the other way
        reach = reach.clamp_min(0)
        reach = reach if self.linear is None else self.linear.tightened(reach)
        low, high = secant_slopes(self.network.activation, self.anchors.inner, self.anchors.inner_error, reach)
        moved = self.slopes.shift != 0
        low = torch.where(moved, self.slopes.low, torch.maximum(self.slopes.low, low))
        high = torch.where(moved, self.slopes.high, torch.minimum(self.slopes.high, high))
        self.slopes = replace(self.slopes, low=low, high=high, multiplier=multiplier)

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows only."""
        self.anchors, self.around = self.anchors.rows(rows), self.around.rows(rows)
        self.slopes = self.slopes.rows(rows)
        if self._omega is not None and self._moved is not None:
            self._omega, self._moved = self._omega[rows], self._moved[rows]
        self.cuts = None if self.cuts is None else self.cuts.rows(rows)
        self.enclosure = None if self.enclosure is None else self.enclosure.rows(rows)
        self.linear = None if self.linear is None else self.linear.rows(rows)

    def drop(self, index: Tensor, rows: Tensor) -> Tensor:
        """An upper bound of row·Δy over the surroundings of the anchor, each by a search of its own.

        Args:
            index: which anchor, (m,).
            rows: functionals of the output, (m, out).

        Returns:
            (m,).
        """
        return self.examined(index, rows[:, None], torch.ones_like(rows[:, :1]))[0][:, 0]

    def examined(self, index: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bounds of k forms by one search for each anchor, what neurons add to them, and moves that seem the worst.

        Args:
            index: which anchor, (m,).
            rows: functionals of the output, (m, k, out).
            weights: of the forms in what is made small, (m, k).

        Returns:
            (m, k), (m, n) and (m, k, in).
        """
        network, k = self.network, rows.shape[1]
        found, added, worst = [rows.new_zeros(0, k)], [self.anchors.inner[:0]], []
        for part in pieces(network, len(index), k):
            slopes, around = self.slopes.rows(index[part]), self.around.rows(index[part])
            forms = self._outputs(rows[part])
            cuts = None if self.cuts is None else self.cuts.rows(index[part])
            search, bound = bounded(network, slopes, forms, weights[part], around, self.effort, None, cuts)
            bound = torch.minimum(bound, self._by_boxes(index[part], forms))
            if self.linear is not None:
                bound = torch.minimum(bound, self.linear.rows(index[part]).bounds(forms))
            found.append(bound)
            added.append(search.influence)
            worst.append(search.moves)
        return torch.cat(found), torch.cat(added), torch.cat(worst or [rows.new_zeros(0, k, network.system.U.shape[1])])

    def _outputs(self, rows: Tensor) -> Forms:
        """The forms row·Δy of some rows, (m, k, out)."""
        feedthrough = self.network.feedthrough
        return Forms(state=rows @ self.network.system.C, direct=None if feedthrough is None else rows @ feedthrough)

    def _by_boxes(self, index: Tensor, forms: Forms) -> Tensor:
        """What the enclosure says of the forms, (m, k) or (m, 1)."""
        if self.enclosure is None or forms.state is None:
            return self.around.radius.new_full((len(index), 1), torch.inf)
        box, z, around = self.enclosure.rows(index), self.anchors.state[index], self.around.rows(index)
        found = _highest(forms.state, box.low - z, box.high - z)
        # z is computed; the move is that from the exact equilibrium
        wrong = torch.linalg.vector_norm(forms.state / self.network.metric.sqrt(), dim=-1)
        found = found + wrong * self.anchors.output_error[index, None]
        if forms.direct is not None:
            assert around.low is not None and around.high is not None
            found = found + _highest(forms.direct, around.low, around.high)
        return found.nan_to_num(nan=torch.inf)


def _highest(rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The largest values of linear functions over a box, with room for rounding: (m, k, n), (m, n) twice -> (m, k)."""
    ends = torch.where(rows > 0, rows * high[:, None], rows * low[:, None])
    return ends.sum(-1) + 1e-12 * ends.abs().sum(-1)


def pieces(network: LocalNetwork, rows: int, forms: int) -> Iterator[slice]:
    """Slices of a batch whose searches, for so many forms a row, fit into memory."""
    n, inputs = network.system.U.shape
    size = max(1, min(_SOLVED, _ENTRIES // max(forms * inputs, (2 * n) ** 2)))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _full(slopes: Slopes, multiplier: Tensor) -> Tensor:
    return multiplier * middles(slopes.low, slopes.high)[1].square()


class Found(NamedTuple):
    """What a search has found.

    Attributes:
        multiplier: per unit of the squared half width, (batch, n).
        omega: pulls, (batch, k, in), or None.
        influence: what each neuron adds to the bounds, (batch, n).
        moves: of the input, that seem to be the worst, (batch, k, in).
    """

    multiplier: Tensor
    omega: Tensor | None
    influence: Tensor
    moves: Tensor


def bounded(
    network: LocalNetwork,
    slopes: Slopes,
    forms: Forms,
    weights: Tensor,
    around: Surroundings,
    effort: Effort,
    omega: Tensor | None = None,
    cuts: Forms | None = None,
) -> tuple[Found, Tensor]:
    """A search for multipliers, pulls and multiples of cuts, and the bounds that they prove, (batch, k).

    The bounds hold where the cuts are at least zero; the weighted ones are made small.
    """
    middle, half = middles(slopes.low, slopes.high)  # in float64, where narrow intervals are no points
    starts = [slopes.multiplier]
    if not torch.equal(slopes.multiplier, first := network.metric.expand_as(half)):
        starts.append(first)
    search = Search(
        network.matrices.to(_SEARCHED),
        middle.to(_SEARCHED),
        half.to(_SEARCHED),
        forms.to(_SEARCHED),
        weights.to(_SEARCHED),
        around.to(_SEARCHED),
        [_full(slopes, start).to(_SEARCHED) for start in starts],
        omega,
        None if cuts is None else cuts.to(_SEARCHED),
        slopes.shift.to(_SEARCHED),
    )
    search.run(effort)
    squared = half.square()
    found = search.multiplier.to(squared) / squared
    influence, moves = (part.to(squared) for part in search.worst())
    multiplier = torch.where(squared > 0, found, slopes.multiplier)
    if cuts is not None and search.lean is not None:
        forms = forms.plus(search.lean.to(weights).clamp_min(0), cuts)
    full, ends, omega = _full(slopes, multiplier), (slopes.low, slopes.high), search.pull.omega
    bound = checker.bounds(network.matrices, *ends, full, forms, omega, around, shift=slopes.shift)
    return Found(multiplier, omega, influence, moves), bound
