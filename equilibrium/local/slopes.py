r"""Secant slopes of an activation from an anchor: (σ(v) − σ(v₀))/(v − v₀) for v₀ − down ≤ v ≤ v₀ + up."""

from __future__ import annotations

import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.activations.blockwise import Blockwise
from contracting.activations.catalogue import LeakyReLU, ReLU
from contracting.activations.clamped import Clamped
from contracting.regions.intervals import Interval
from contracting.regions.tracing import Inclusion


def secant_slopes(activation: Activation, anchor: Tensor, error: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """An interval of the secant slopes of each neuron, as (lowest, highest).

    A ReLU is convex, so that its secant is steepest at the upper end and flattest at the lower one. That of another
    activation is a mean of derivatives between the two points, of which the range is taken. Where neurons differ, each
    has the slopes of its own activation.

    Args:
        activation: σ.
        anchor: v₀, (batch, n).
        error: by how much each may be wrong, (batch, n).
        reach: how far v may be from v₀, (batch, n) each way: for a ReLU downwards where v₀ > 0, upwards elsewhere.
    """
    if isinstance(activation, Blockwise):
        pieces = (torch.split(each, list(activation.sizes), -1) for each in (anchor, error, reach))
        lows, highs = zip(*map(secant_slopes, activation.parts, *pieces), strict=True)
        return torch.cat(lows, -1), torch.cat(highs, -1)
    if isinstance(activation, Clamped):
        inner, free = secant_slopes(activation.inner, anchor, error, reach), activation.free.to(anchor)
        return inner[0] * free, inner[1] * free
    low, high = (end.expand_as(anchor) for end in activation.slope_intervals(anchor.shape[-1]))
    if isinstance(activation, ReLU | LeakyReLU):
        share = ((anchor.abs() - error).clamp_min(0) / reach).clamp(0, 1).nan_to_num(1.0)
        positive = anchor > 0
        return torch.where(positive, low + share * (high - low), low), torch.where(
            positive, high, high - share * (high - low)
        )
    between = derivative_range(activation, anchor - reach - error, anchor + reach + error)
    return torch.maximum(low, between.lo), torch.minimum(high, between.hi)


def derivative_range(activation: Activation, low: Tensor, high: Tensor) -> Interval:
    """What holds all derivatives of an activation between two points, outward rounded: (batch, n) -> (batch, n).

    Raises:
        InputError: if it does something that has no inclusion; it names that.
    """
    inclusion = Inclusion(lambda t, v: activation.value(v), low, 1)
    found = inclusion(Interval(low.reshape(-1, 1), high.reshape(-1, 1))).slopes(1)
    return Interval(found.lo.reshape(low.shape), found.hi.reshape(low.shape))


def one_sided(activation: Activation) -> bool:
    """Whether only the way to the other side of zero matters, for every neuron."""
    if isinstance(activation, Blockwise):
        return all(one_sided(part) for part in activation.parts)
    return isinstance(activation.inner if isinstance(activation, Clamped) else activation, ReLU | LeakyReLU)
