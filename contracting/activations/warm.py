"""Reflections of a curved activation along points that move little: each pre-image starts from the last one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contracting.activations.base import Curved

# Newton steps of the first call where nothing is known of the pre-image. With fewer, rows of Tanh networks (γ = 0.3, 1
# and 5, 80 neurons, MNIST) miss the first look at the residual, which costs more.
_FROM_FAR = 4
# Entries from which on a tanh made of one exponential takes less time than torch's, which takes fewer operations.
_MANY = 4_000


class WarmReflection:
    r"""x ↦ 2prox_{αf}(x) − x for the points of one iteration, by one evaluation of σ for each.

    prox_{αf}(x) is σ(s) where g(s) = σ(s) + α(s − σ(s)) = x. Of each new x one Newton step is made from the s of the
    last one. What is returned, (1 + α)σ(s) − αs, is the exact reflection of g(s), which differs from x by the square of
    what x has moved. So a sequence that comes to rest comes to rest where it would with exact reflections.

    Newton's method is not held back by a bracket here. Where α is small it may jump from one flat part of σ to the
    other for ever, so its steps are limited to the ``stride`` of σ; whoever uses this looks at ``error`` now and then.

    Args:
        activation: σ.
        step: α, not 1, where the prox is σ itself.
        preimage: s to begin with, (batch, n).
        near: whether g(s) is the first x, but for rounding; None where nothing is known of s.
    """

    def __init__(self, activation: Curved, step: float, preimage: Tensor, *, near: bool | None = None):
        self.activation, self.step = activation, step
        self.preimage = preimage
        self._share = 1 / (1 - step)
        self._shift = step * self._share  # of σ', so that g' = (σ' + shift)/share
        self._stride = activation.stride if step < 0.5 else math.inf  # Newton's method cannot cycle for larger α
        self._moves = _FROM_FAR if near is None else 0 if near else 1
        self._evaluate()

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if self._moves:
            self.follow(x)
            self._evaluate()
        self._moves = 1
        return torch.lerp(self._value, self.preimage, -self.step, out=out)

    def follow(self, x: Tensor) -> Tensor:
        """Move s towards the pre-image of the next x, by one Newton step where it is near; s, (batch, n)."""
        for left in range(self._moves - 1, -1, -1):
            self._move(x, self._stride * 2**left)  # from afar the first moves may be longer
            if left:
                self._evaluate()
        return self.preimage

    def _move(self, x: Tensor, stride: float) -> None:
        excess = torch.lerp(self._value, self.preimage, self.step).sub_(x)
        if stride == math.inf:
            self.preimage = torch.addcdiv(self.preimage, excess, self._slope, value=-self._share)
        else:
            limit = stride / abs(self._share)
            move = excess.div_(self._slope).clamp_(-limit, limit)
            self.preimage = torch.sub(self.preimage, move, alpha=self._share)

    def _evaluate(self) -> None:
        self._value, self._slope = self.activation.value_and_slope(self.preimage, self._shift)


def fast_tanh(v: Tensor) -> Tensor:
    """tanh v to relative rounding, as t/(t + 2) with t = e^{2v} − 1 where there are many entries."""
    if v.numel() < _MANY:
        return torch.tanh(v)
    power = torch.mul(v, 2).clamp_(max=40).expm1_()  # beyond v = 20 it is one in every precision, and t might overflow
    return power.div_(power + 2)


def error(activation: Curved, step: float, preimage: Tensor, x: Tensor) -> Tensor:
    """g(s) − x, which vanishes where s is the pre-image of x: (batch, n)."""
    return torch.lerp(activation.value(preimage), preimage, step).sub_(x)
