r"""Functions of one variable over an interval: the range of the value and the range of the derivative, rounded outward.

A field is a composition of such functions, sums and products. The range of a derivative is taken as a whole, such as
that of tanh' = 1 − tanh², so that nothing is lost by its being a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.errors import InputError
from contracting.regions.intervals import (
    LIBRARY_ULPS,
    Interval,
    add,
    chosen,
    divide,
    everything,
    exactly,
    hull,
    multiply,
    negative,
    outward,
    square,
    subtract,
    widened,
)

Range = Callable[[Interval], Interval]


@dataclass(frozen=True, kw_only=True)
class ScalarFunction:
    """σ and σ′ over intervals.

    Attributes:
        value: x ↦ an interval that holds σ(x) for every x of the given one.
        derivative: (x, y) ↦ the same of σ′, where y is what ``value`` gave. At kinks it holds the slopes of both sides.
        everywhere: whether σ is defined for all numbers. Where it is not and its value is unbounded, nothing is known
            of the derivative.
    """

    value: Range
    derivative: Callable[[Interval, Interval], Interval]
    everywhere: bool = True


def rising(function: Callable[[Tensor], Tensor], low: float = -math.inf, high: float = math.inf) -> Range:
    """The range of a function of the mathematical library that never falls and stays in [low, high]."""

    def value(x: Interval) -> Interval:
        found = widened(function(x.lo), function(x.hi))
        return Interval(found.lo.clamp_min(low), found.hi.clamp_max(high))

    return value


def _exact(function: Callable[[Tensor], Tensor]) -> Range:
    return lambda x: Interval(function(x.lo), function(x.hi))


_exp = rising(torch.exp, 0.0)
_sqrt = rising(torch.sqrt, 0.0)
_sigmoid = rising(torch.sigmoid, 0.0, 1.0)
_ONE, _HALF = exactly(1.0), exactly(0.5)
_TWO_PI = 2 * math.pi


def _reciprocal(x: Interval) -> Interval:
    return divide(_ONE, x)


def _periodic(function: Callable[[Tensor], Tensor], top: float) -> Range:
    """sin or cos, whose maxima are at (top + k)·2π and whose minima lie halfway between."""

    def value(x: Interval) -> Interval:
        at_ends = widened(*torch.aminmax(torch.stack([function(x.lo), function(x.hi)]), dim=0))
        slack = 1e-15 * (1 + x.size)  # far more than x/2π may be rounded
        low, high = (x.lo - slack) / _TWO_PI, (x.hi + slack) / _TWO_PI
        peak = torch.ceil(low - top) <= torch.floor(high - top)
        valley = torch.ceil(low - top - 0.5) <= torch.floor(high - top - 0.5)
        known = x.bounded
        return Interval(
            torch.where(valley | ~known, -1.0, at_ends.lo.clamp_min(-1.0)),
            torch.where(peak | ~known, 1.0, at_ends.hi.clamp_max(1.0)),
        )

    return value


_sin, _cos = _periodic(torch.sin, 0.25), _periodic(torch.cos, 0.0)


def _tan(x: Interval) -> Interval:
    found = widened(torch.tan(x.lo), torch.tan(x.hi))
    slack = 1e-15 * (1 + x.size)
    low, high = (x.lo - slack) / math.pi - 0.5, (x.hi + slack) / math.pi - 0.5
    return chosen(torch.ceil(low) <= torch.floor(high), everything(found.lo), found)


def _softplus(beta: float, threshold: float) -> ScalarFunction:
    """log(1 + e^{βx})/β; beyond the threshold torch returns x, which is held as well."""

    def value(x: Interval) -> Interval:
        def smooth(end: Tensor) -> Tensor:
            return torch.logaddexp(beta * end, torch.zeros_like(end)) / beta

        found = widened(smooth(x.lo), smooth(x.hi), ulps=12)
        least = x.lo.clamp_min(threshold / beta * (1 - 1e-12))
        low = torch.where(beta * x.hi > threshold, torch.minimum(found.lo, least), found.lo)
        return Interval(low.clamp_min(0.0), found.hi)

    def derivative(x: Interval, y: Interval) -> Interval:
        found = _sigmoid(multiply(exactly(beta), x))
        return Interval(found.lo, torch.where(beta * x.hi > threshold, 1.0, found.hi))

    return ScalarFunction(value=value, derivative=derivative)


def _bend(low: float, high: float) -> Callable[[Interval, Interval], Interval]:
    """The derivative of a function with the slope ``low`` left of zero and ``high`` right of it."""

    def derivative(x: Interval, y: Interval) -> Interval:
        left, right = torch.full_like(x.lo, low), torch.full_like(x.lo, high)
        ends = torch.where(x.hi < 0, left, right), torch.where(x.lo > 0, right, left)
        return Interval(torch.minimum(*ends), torch.maximum(*ends))

    return derivative


def clamp(low: float | None, high: float | None) -> ScalarFunction:
    """x kept within [low, high]."""
    bottom, top = -math.inf if low is None else low, math.inf if high is None else high

    def derivative(x: Interval, y: Interval) -> Interval:
        inside = (x.lo > bottom) & (x.hi < top)
        outside = (x.hi < bottom) | (x.lo > top)
        return Interval(inside.to(x.lo), (~outside).to(x.lo))

    return ScalarFunction(value=_exact(lambda x: x.clamp(bottom, top)), derivative=derivative)


def leaky_relu(slope: float) -> ScalarFunction:
    """max(x, 0) + slope·min(x, 0).

    Raises:
        InputError: if the slope is negative.
    """
    if slope < 0:
        raise InputError(f"the slope of leaky_relu must not be negative, got {slope}; write it with abs and a sum")

    def value(x: Interval) -> Interval:
        found = outward(x.lo * slope, x.hi * slope)
        return Interval(torch.where(x.lo > 0, x.lo, found.lo), torch.where(x.hi > 0, x.hi, found.hi))

    return ScalarFunction(value=value, derivative=_bend(slope, 1.0))


def elu(alpha: float, scale: float = 1.0, input_scale: float = 1.0) -> ScalarFunction:
    """scale·(x for x > 0, else α(e^{input_scale·x} − 1)), for positive constants.

    Raises:
        InputError: if a constant is not positive.
    """
    if min(alpha, scale, input_scale) <= 0:
        raise InputError(f"the constants of elu must be positive, got {alpha}, {scale}, {input_scale}")

    def value(x: Interval) -> Interval:
        ends = [scale * torch.where(e > 0, e, alpha * torch.expm1(input_scale * e)) for e in (x.lo, x.hi)]
        return widened(ends[0], ends[1], ulps=12)

    def derivative(x: Interval, y: Interval) -> Interval:
        steep = alpha * input_scale * scale
        ends = [steep * torch.exp(input_scale * end.clamp_max(0.0)) for end in (x.lo, x.hi)]
        left = widened(ends[0], ends[1], ulps=12)
        right = exactly(scale)
        return chosen(x.lo > 0, right, chosen(x.hi < 0, left, hull(left, right)))

    return ScalarFunction(value=value, derivative=derivative)


def _absolute(x: Interval) -> Interval:
    smallest = torch.where((x.lo > 0) | (x.hi < 0), torch.minimum(x.lo.abs(), x.hi.abs()), 0.0)
    return Interval(smallest, x.size)


def whole_power(exponent: int) -> ScalarFunction:
    """xᵏ for a whole number k."""

    def value(x: Interval) -> Interval:
        return _whole(x, exponent)

    def derivative(x: Interval, y: Interval) -> Interval:
        return multiply(exactly(float(exponent)), _whole(x, exponent - 1))

    return ScalarFunction(value=value, derivative=derivative, everywhere=exponent >= 0)


def _whole(x: Interval, exponent: int) -> Interval:
    if exponent < 0:
        return _reciprocal(_whole(x, -exponent))
    if exponent == 0:
        return exactly(torch.ones_like(x.lo))
    if exponent == 1:
        return x
    if exponent == 2:
        return square(x)
    base = _absolute(x) if exponent % 2 == 0 else x
    found = widened(base.lo**exponent, base.hi**exponent)
    return Interval(found.lo.clamp_min(0.0), found.hi) if exponent % 2 == 0 else found


def real_power(exponent: float) -> ScalarFunction:
    """x^p for x ≥ 0; where x may be negative nothing is known."""

    def power(x: Interval, p: float) -> Interval:
        ends = [end**p for end in (x.lo, x.hi)]
        found = widened(*(ends if p > 0 else reversed(ends)))
        known = (x.lo >= 0) if p > 0 else (x.lo > 0)
        return chosen(known, Interval(found.lo.clamp_min(0.0), found.hi), everything(found.lo))

    return ScalarFunction(
        value=lambda x: power(x, exponent),
        derivative=lambda x, y: multiply(exactly(exponent), power(x, exponent - 1)),
        everywhere=False,
    )


def _one_less_square(y: Interval) -> Interval:
    """1 − y², for |y| ≤ 1."""
    found = subtract(_ONE, square(y))
    return Interval(found.lo.clamp_min(0.0), found.hi)


def _logistic_slope(x: Interval, y: Interval) -> Interval:
    """σ(x)σ(−x), which rises up to x = 0 and falls from there; a product of two functions rounds twice as much."""
    at_ends = torch.stack([torch.sigmoid(end) * torch.sigmoid(-end) for end in (x.lo, x.hi)])
    found = widened(*torch.aminmax(at_ends, dim=0), ulps=3 * LIBRARY_ULPS)
    high = torch.where((x.lo <= 0) & (x.hi >= 0), 0.25, found.hi)
    return Interval(found.lo.clamp_min(0.0), high.clamp_max(0.25))


_ERF_SLOPE = widened(exactly(2 / math.sqrt(math.pi)).lo, exactly(2 / math.sqrt(math.pi)).hi)


def _bell(x: Interval) -> Interval:
    return multiply(_ERF_SLOPE, _exp(negative(square(x))))


def _hyperbolic_cosine(x: Interval) -> Interval:
    return rising(torch.cosh, 1.0)(_absolute(x))


FUNCTIONS: dict[str, ScalarFunction] = {
    "abs": ScalarFunction(value=_absolute, derivative=_bend(-1.0, 1.0)),
    "asinh": ScalarFunction(
        value=rising(torch.asinh), derivative=lambda x, y: _reciprocal(_sqrt(add(_ONE, square(x))))
    ),
    "atan": ScalarFunction(value=rising(torch.atan), derivative=lambda x, y: _reciprocal(add(_ONE, square(x)))),
    "cos": ScalarFunction(value=_cos, derivative=lambda x, y: negative(_sin(x))),
    "cosh": ScalarFunction(value=_hyperbolic_cosine, derivative=lambda x, y: rising(torch.sinh)(x)),
    "erf": ScalarFunction(value=rising(torch.erf, -1.0, 1.0), derivative=lambda x, y: _bell(x)),
    "exp": ScalarFunction(value=_exp, derivative=lambda x, y: y),
    "expm1": ScalarFunction(value=rising(torch.expm1, -1.0), derivative=lambda x, y: _exp(x)),
    "log": ScalarFunction(value=rising(torch.log), derivative=lambda x, y: _reciprocal(x), everywhere=False),
    "log1p": ScalarFunction(
        value=rising(torch.log1p), derivative=lambda x, y: _reciprocal(add(_ONE, x)), everywhere=False
    ),
    "neg": ScalarFunction(value=negative, derivative=lambda x, y: exactly(-1.0)),
    "reciprocal": ScalarFunction(
        value=_reciprocal, derivative=lambda x, y: negative(square(y)), everywhere=False
    ),
    "relu": ScalarFunction(value=_exact(lambda x: x.clamp_min(0.0)), derivative=_bend(0.0, 1.0)),
    "rsqrt": ScalarFunction(
        value=lambda x: _reciprocal(_sqrt(x)),
        derivative=lambda x, y: negative(multiply(_HALF, _whole(y, 3))),
        everywhere=False,
    ),
    "sigmoid": ScalarFunction(value=_sigmoid, derivative=_logistic_slope),
    "sin": ScalarFunction(value=_sin, derivative=lambda x, y: _cos(x)),
    "sinh": ScalarFunction(value=rising(torch.sinh), derivative=lambda x, y: _hyperbolic_cosine(x)),
    "sqrt": ScalarFunction(
        value=lambda x: chosen(x.lo >= 0, _sqrt(x), everything(x.lo)),
        derivative=lambda x, y: divide(_HALF, y),
        everywhere=False,
    ),
    "square": whole_power(2),
    "tan": ScalarFunction(value=_tan, derivative=lambda x, y: add(_ONE, square(y)), everywhere=False),
    "tanh": ScalarFunction(value=rising(torch.tanh, -1.0, 1.0), derivative=lambda x, y: _one_less_square(y)),
}
"""By the name of the operation in torch."""


def softplus(beta: float = 1.0, threshold: float = 20.0) -> ScalarFunction:
    """log(1 + e^{βx})/β for β > 0.

    Raises:
        InputError: if β is not positive.
    """
    if beta <= 0:
        raise InputError(f"beta of softplus must be positive, got {beta}")
    return _softplus(beta, threshold)
