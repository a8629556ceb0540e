"""Reflections of a curved activation along points that move little: by tangents, which are renewed now and then."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from contracting.activations.base import Curved

# Entries from which on a tanh made of one exponential takes less time than torch's, which takes fewer operations.
_MANY = 4_000


class Tangent(NamedTuple):
    """What is known of a prox near some points: its pre-image and its reflection as affine functions of the point x.

    Each is (batch, n), so that rows can be taken out.
    """

    preimage: Tensor  # s, at the point g(s) = σ(s) + α(s − σ(s))
    origin: Tensor  # s − g(s)/g'(s), the pre-image of x less x/g'(s)
    rate: Tensor  # 1/g'(s)
    constant: Tensor  # of the reflection
    factor: Tensor  # the slope of the reflection, in [−1, 1]


class WarmReflection:
    r"""x ↦ 2prox_{αf}(x) − x for the points of one iteration, which move less and less.

    prox_{αf}(x) is σ(s) where g(s) = σ(s) + α(s − σ(s)) = x. From a known s a Newton step, which is what the tangent of
    the pre-image says, leads to that of another x, up to the square of what x has moved; and so is the tangent of the
    reflection at g(s), which costs one multiplication for each entry, as accurate at x. It is the exact reflection of
    some slopes in [0, 1]: iterations with tangents contract as the others do. Where x comes to rest and the tangent is
    renewed now and then, at the price of one evaluation of σ, it rests where it would with exact reflections.

    Newton's method is not held back by a bracket here. Where α is small it may jump from one flat part of σ to the
    other for ever, so its steps are limited to the ``stride`` of σ; whoever uses this looks at ``error`` now and then.

    Args:
        activation: σ.
        step: α, not 1, where the prox is σ itself.
        like: a tensor of the dtype and the device of the points.
    """

    def __init__(self, activation: Curved, step: float, like: Tensor):
        self.activation, self.step = activation, step
        share = 1 / (1 - step)
        self._shift = step * share  # of σ', so that g' = (σ' + shift)/share
        self._share, self._lead = number(share, like), number(2 * share - 1, like)
        self.stride = activation.stride if step < 0.5 else math.inf  # Newton's method cannot cycle for larger α

    def tangent(self, preimage: Tensor) -> Tangent:
        """The tangents at g(s), by one evaluation of σ: s, (batch, n)."""
        value, slope = self.activation.value_and_slope(preimage, self._shift)
        point, reflected = torch.lerp(value, preimage, self.step), torch.lerp(value, preimage, -self.step)
        rate = torch.div(self._share, slope, out=slope)
        factor = torch.add(self._lead, rate, alpha=-2 * self._shift)  # 2σ'/g' − 1
        return Tangent(
            preimage=preimage,
            origin=torch.addcmul(preimage, rate, point, value=-1),
            rate=rate,
            constant=torch.addcmul(reflected, factor, point, value=-1),
            factor=factor,
        )

    def preimage(self, known: Tangent, x: Tensor) -> Tensor:
        """The pre-image of x as the tangent has it, at most one stride from the known one."""
        found = torch.addcmul(known.origin, known.rate, x)
        if self.stride == math.inf:
            return found
        return found.sub_(known.preimage).clamp_(-self.stride, self.stride).add_(known.preimage)


def number(value: float, like: Tensor) -> Tensor:
    """The same as a tensor, with which an operation on a few rows takes a third of the time: of shape ()."""
    return _number(value, like.dtype, like.device)


@functools.lru_cache(maxsize=64)
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device=device)


def fast_tanh(v: Tensor) -> Tensor:
    """tanh v to relative rounding, as t/(t + 2) with t = e^{2v} − 1 where there are many entries."""
    if v.numel() < _MANY:
        return torch.tanh(v)
    power = torch.mul(v, 2).clamp_(max=40).expm1_()  # beyond v = 20 it is one in every precision, and t might overflow
    return power.div_(power + 2)


def error(activation: Curved, step: float, preimage: Tensor, x: Tensor) -> Tensor:
    """g(s) − x, which vanishes where s is the pre-image of x: (batch, n)."""
    return torch.lerp(activation.value(preimage), preimage, step).sub_(x)
