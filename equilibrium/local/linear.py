r"""Bounds by linear functions of the input, for a network in which no neuron feeds back on itself.

Each neuron is held between two lines sΔv + t over the stretch that v can reach. Where W is strictly triangular, in some
order of the neurons, the lines can be put in for Δz layer by layer until a function of Δx is left, whose largest value
over the surroundings is known (arXiv 1811.00866). The ellipsoid of ``relaxation`` couples all neurons by
one inequality and knows nothing of offsets t, so that sometimes this proves more and sometimes that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.certificates.definite import UNIT
from equilibrium.local.network import Anchors, LocalNetwork
from equilibrium.local.relaxation import Forms
from equilibrium.local.slopes import one_sided, secant_slopes
from equilibrium.local.surroundings import Rows, Surroundings

# Newton steps for the multiplier of the ball where it is cut by a box. Any multiplier gives a bound; on 784 pixels of
# MNIST that of three steps is as small as that of sixty in all digits, elsewhere it takes up to five.
_NEWTON = 5


class Lines(NamedTuple):
    """sΔv + t below and above Δz over the stretch of each neuron, each (batch, n).

    Attributes:
        under: s of the lower line.
        depth: −t of the lower line, ≥ 0.
        over: s of the upper line.
        height: t of the upper line, ≥ 0.
    """

    under: Tensor
    depth: Tensor
    over: Tensor
    height: Tensor


def lines(activation: Activation, anchors: Anchors, down: Tensor, up: Tensor) -> Lines:
    """Lines around Δz for −down ≤ Δv ≤ up, each (batch, n), from the exact anchor."""
    v, error = anchors.inner, anchors.inner_error
    if one_sided(activation):
        # a convex σ with one kink at 0 lies under its chord, and over every line through the kink
        flat, steep = (end.expand_as(v) for end in activation.slope_intervals(v.shape[-1]))
        low, high, value = v - down - error, v + up + error, activation(v)
        bent = (low < 0) & (high > 0)
        chord = torch.where(bent, (steep * high - flat * low) / (high - low), torch.where(low < 0, flat, steep))
        under = torch.where(bent, torch.where(high > -low, steep, flat), chord)
        height = torch.where(bent, chord * (v - low) + flat * low - value + error, 0.0)
        depth = torch.where(bent, value - under * v + error, 0.0)
        return _known(Lines(under, depth.clamp_min(0), chord, height.clamp_min(0)))
    flat, steep = secant_slopes(activation, v, error, torch.maximum(down, up))
    width = (down + up).clamp_min(torch.finfo(v.dtype).tiny)
    over, under = (steep * up + flat * down) / width, (flat * up + steep * down) / width
    offset = (steep - flat) * (up / width) * down
    return _known(Lines(under, offset, over, offset))


def _known(found: Lines) -> Lines:
    """The lines; of a neuron whose stretch is not known, lines infinitely far away."""
    known = torch.isfinite(found.over) & torch.isfinite(found.under)
    slopes = (torch.where(known, part, 0.0) for part in (found.under, found.over))
    offsets = (torch.where(known, part, torch.inf).nan_to_num(torch.inf) for part in (found.depth, found.height))
    (under, over), (depth, height) = slopes, offsets
    return Lines(under, depth, over, height)


def layers_of(W: Tensor) -> list[Tensor] | None:
    """The neurons in layers, each of which sees only those before it; None where one feeds back on itself."""
    seen, left, found = W != 0, torch.ones(len(W), dtype=torch.bool), []
    while bool(left.any()):
        ready = left & ~(seen & left).any(-1)
        if not bool(ready.any()):
            return None
        found.append(torch.nonzero(ready).flatten())
        left = left & ~ready
    return found


@dataclass(kw_only=True, eq=False)
class LinearBounds:
    """How far every pre-activation can move, and bounds of forms from that.

    Attributes:
        network: one that has layers.
        layers: of ``layers_of``.
        anchors: x₀ of each row.
        around: the surroundings of the rows.
        down: how far each v can fall, (batch, n).
        up: how far it can rise, (batch, n).
    """

    network: LocalNetwork
    layers: list[Tensor]
    anchors: Anchors
    around: Surroundings
    down: Tensor
    up: Tensor

    @classmethod
    def of(cls, network: LocalNetwork, anchors: Anchors, around: Surroundings) -> Self | None:
        """Of moves of which nothing is known yet, or None for a network without layers."""
        layers = layers_of(network.system.W)
        if layers is None:
            return None
        down, up = torch.full_like(anchors.inner, torch.inf), torch.full_like(anchors.inner, torch.inf)
        # these see the input only, so that nothing that is known later can say more
        rows = network.system.U[layers[0]]
        room = 8 * sum(network.system.U.shape) * UNIT * torch.linalg.vector_norm(rows, dim=-1)
        ends = highest(torch.cat([-rows, rows])[None], around)
        for known, found in zip((down, up), ends.chunk(2, -1), strict=True):
            known[:, layers[0]] = found + around.radius[:, None] * room
        return cls(network=network, layers=layers, anchors=anchors, around=around, down=down, up=up)

    @property
    def first(self) -> Tensor:
        """Which neurons see the input only, (n,)."""
        return torch.isin(torch.arange(self.network.size), self.layers[0])

    def tightened(self, reach: Tensor) -> Tensor:
        """What follows from moves of v that are known from elsewhere, in the same form: (batch, n) -> (batch, n).

        Args:
            reach: of a ReLU how far v can go towards its kink, else how far both ways.
        """
        sided, falls = one_sided(self.network.activation), self.anchors.inner > 0
        self.down = torch.minimum(self.down, torch.where(falls, reach, torch.inf) if sided else reach)
        self.up = torch.minimum(self.up, torch.where(falls, torch.inf, reach) if sided else reach)
        for layer in self.layers[1:]:
            open_still = torch.ones_like(reach[:, layer], dtype=torch.bool)
            if sided:
                # beside its kink such a neuron is linear, however far it goes
                close = self.anchors.inner.abs() - self.anchors.inner_error
                open_still = (torch.where(falls, self.down, self.up) >= close)[:, layer]
            places = torch.argsort(open_still, dim=-1, descending=True, stable=True)
            places = layer[places[:, : int(open_still.sum(-1).max())]]
            rows = reach.new_zeros(*places.shape, reach.shape[-1]).scatter(-1, places[..., None], 1.0)
            if not rows.numel():
                continue
            ends = self.bounds(Forms(inner=torch.cat([-rows, rows], 1))).chunk(2, -1)
            self.down, self.up = (
                known.scatter(-1, places, torch.minimum(known.gather(-1, places), found))
                for known, found in zip((self.down, self.up), ends, strict=True)
            )
        return torch.where(falls, self.down, self.up) if sided else torch.maximum(self.down, self.up)

    def rows(self, index: Rows) -> Self:
        """Those of some rows."""
        cut = {name: getattr(self, name)[index] for name in ("down", "up")}
        return replace(self, anchors=self.anchors.rows(index), around=self.around.rows(index), **cut)

    def bounds(self, forms: Forms) -> Tensor:
        """An upper bound of every form over the surroundings, (batch, k); ∞ where nothing is proved."""
        held = lines(self.network.activation, self.anchors, self.down, self.up)
        batch, n = self.down.shape
        part = next(part for part in (forms.state, forms.inner, forms.direct) if part is not None)
        zero = part.new_zeros(batch, part.shape[1], n)
        state = zero if forms.state is None else forms.state
        inner = zero if forms.inner is None else forms.inner
        system = self.network.system
        slope, offset = self._replaced(state, inner, forms.direct, held, system.W, system.U)
        found = highest(slope, self.around) + offset
        # rounding is relative to what the same substitution makes of absolute values
        most = torch.maximum(held.under.abs(), held.over.abs())
        least = Lines(most, held.depth + held.height, most, held.depth + held.height)
        norms = torch.linalg.vector_norm(system.U, dim=-1, keepdim=True)
        direct = None if forms.direct is None else torch.linalg.vector_norm(forms.direct, dim=-1, keepdim=True)
        sizes = self._replaced(state.abs(), inner.abs(), direct, least, system.W.abs(), norms)
        room = self.around.radius[:, None] * sizes[0][..., 0] + sizes[1]
        return (found + 8 * (n + slope.shape[-1]) * UNIT * room).nan_to_num(nan=torch.inf)

    def _replaced(
        self, state: Tensor, inner: Tensor, slope: Tensor | None, held: Lines, W: Tensor, U: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The slopes in Δx and the offset of linear functions above the forms."""
        offset = torch.zeros_like(state[..., 0])
        slope = state.new_zeros(*state.shape[:-1], U.shape[-1]) if slope is None else slope
        for layer in reversed(self.layers):
            under, depth, over, height = (part[:, None, layer] for part in held)
            up, down = state[..., layer].clamp_min(0), (-state[..., layer]).clamp_min(0)
            moved = inner[..., layer] + up * over - down * under
            # a neuron that takes no part has no offset, be it infinite
            offset = offset + torch.where(up > 0, up * height, 0.0).sum(-1)
            offset = offset + torch.where(down > 0, down * depth, 0.0).sum(-1)
            state = state + moved @ W[layer]
            if bool(U[layer].any()):
                slope = slope + moved @ U[layer]
        return slope, offset


def highest(slope: Tensor, around: Surroundings) -> Tensor:
    """A bound of g·Δx over the surroundings, for g (batch, k, in): by what of g no end of the box takes away."""
    radius = around.radius[:, None]
    whole = radius * torch.linalg.vector_norm(slope, dim=-1)
    if around.low is None or around.high is None:
        return whole
    low, high = around.low[:, None], around.high[:, None]
    # Δ = clamp(g/μ) is the best for some μ ≥ 0; g − μΔ is left to the ends of the box, μΔ to the ball
    mu = _of_the_ball(slope.float(), around.to(torch.float32)).to(slope)[..., None]
    kept = torch.minimum(torch.maximum(slope, mu * low), mu * high)
    shared = radius * torch.linalg.vector_norm(kept, dim=-1) + _at_ends(slope - kept, low, high)
    return torch.minimum(torch.minimum(whole, _at_ends(slope, low, high)), shared)


def _of_the_ball(slope: Tensor, around: Surroundings) -> Tensor:
    """About the μ with ‖clamp(g/μ)‖ = r, from above, for g (batch, k, in); in float32, as any will do."""
    assert around.low is not None and around.high is not None
    low, high, radius = around.low[:, None], around.high[:, None], around.radius[:, None]
    mu = torch.linalg.vector_norm(slope, dim=-1) / radius
    for _ in range(_NEWTON):
        kept = slope.clamp(mu[..., None] * low, mu[..., None] * high)
        free = torch.where(kept == slope, kept, 0.0).square().sum(-1)
        # what is not at an end has the length that the rest leaves to it
        ends = (kept.square().sum(-1) - free) / mu.square().clamp_min(1e-30)
        mu = torch.minimum(mu, (free / (radius.square() - ends).clamp_min(1e-30)).sqrt())
    return mu.nan_to_num(0.0)


def _at_ends(slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The largest g·Δ over a box."""
    return torch.where(slope > 0, slope * high, slope * low).sum(-1)
