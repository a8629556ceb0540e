"""Whether an activation is what it says: its slopes in its interval, and its prox the one that belongs to its σ.

Everything proved of a network rests on these two, so no activation is believed: each is tried on a fine grid when it is
made. A grid proves nothing between its points; it catches the wrong factor, the wrong interval and the wrong formula.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from contracting.errors import InputError
from contracting.types import Slopes

# A prox is tried with one step on each side of 1, where it is σ itself, and at every 40th point of the grid, because
# the search of a curved one takes some hundred times as long as σ. All of it takes 20 ms for Tanh, on a busy machine.
_STEPS = (0.1, 1.0, 7.0)
_PROX_STRIDE = 40
# The grid has this spacing in [−20, 20], where the activations of the catalogue bend, and is logarithmic beyond.
_SPACING = 0.01


def verify(activation: Any) -> None:
    """Refuse what is no activation; equal settings (frozen dataclasses compare by them) are tried once.

    Raises:
        InputError: if on a fine grid σ leaves its slopes or is not the prox that it says.
    """
    try:
        _verify_once(activation)
    except TypeError:  # settings without a hash; or an error of its own, which comes again
        _verify(activation)


@functools.lru_cache(maxsize=256)
def _verify_once(activation: Any) -> None:
    _verify(activation)


def _verify(activation: Any) -> None:
    low, high = interval = Slopes.checked(activation.slopes)
    if low < 0:
        raise InputError(
            f"slopes of {activation!r} must be an interval [lowest, highest] in [0, 1], got ({low:g}, {high:g}): "
            "outside it σ is no proximal operator; scale it down, and the weights up"
        )
    with torch.inference_mode(False), torch.no_grad():
        tensors = activation.tensors()
        v = _grid(tensors[0] if tensors else torch.empty(1, dtype=torch.float64, device="cpu"))
        rounding = math.sqrt(torch.finfo(v.dtype).eps)
        _check_slope(activation, v, rounding, interval)
        once, twice = activation.value(v), activation.value(2 * v)
        if activation.homogeneous and bool(((twice - 2 * once).abs() > rounding * (1 + twice.abs())).any()):
            raise InputError(f"homogeneous of {activation!r} says that σ(tv) = tσ(v) for t > 0, which t = 2 refutes")
        x = v[::_PROX_STRIDE]
        for step in _STEPS:
            _check_prox(activation, x, step, rounding)


def _grid(like: Tensor) -> Tensor:
    """Pre-activations that increase, (points, n), n that of the tensor."""
    dense = torch.arange(-20, 20, _SPACING, dtype=torch.float64, device="cpu") + _SPACING / 3  # no kink at a point
    far, near = (
        torch.logspace(low, high, count, dtype=torch.float64, device="cpu")
        for low, high, count in ((1.31, 5, 400), (-8, -2.5, 50))
    )
    points = torch.cat([-far.flip(0), dense, near, -near, far]).sort().values
    return points.to(like.device, like.dtype)[:, None].expand(-1, like.shape[-1] if like.ndim else 1).contiguous()


def _check_slope(activation: Any, v: Tensor, rounding: float, interval: Slopes) -> None:
    low, high = interval
    values = activation.value(v)
    distance = v.diff(dim=0)
    slack = rounding + 4 * torch.finfo(v.dtype).eps * values[1:].abs() / distance
    for slopes, at, beyond in ((values.diff(dim=0) / distance, v[1:], slack), (activation.slope(v), v, rounding)):
        outside = ~((slopes >= low - beyond) & (slopes <= high + beyond))
        if bool(outside.any()):
            raise InputError(
                f"slopes of {activation!r} are said to lie in ({low:g}, {high:g}), but that of σ is "
                f"{float(slopes[outside][0]):.6g} at v = {float(at[outside][0]):.6g}: state an interval in [0, 1] that "
                "contains every slope; a σ with steeper or falling pieces is no proximal operator"
            )
    _check_derivative(activation, "slope", activation.value, activation.slope, v)


def _check_prox(activation: Any, x: Tensor, step: float, rounding: float) -> None:
    p = activation.prox_value(x, step)
    # (x − p)/α is a subgradient of f at p, so that σ takes p + (x − p)/α back to p
    wrong = ~((activation.value(p + (x - p) / step) - p).abs() <= 10 * rounding * (1 + x.abs()))
    if bool(wrong.any()):
        raise InputError(
            f"prox_value of {activation!r} is not the prox whose σ is value: at x = {float(x[wrong][0]):.6g} with step "
            f"{step:g} it gives p = {float(p[wrong][0]):.6g}, which σ(p + (x − p)/step) does not equal; extend Curved, "
            "which finds the prox of value and slope"
        )
    prox, slope = (lambda x: activation.prox_value(x, step)), (lambda x: activation.prox_slope(x, step))
    _check_derivative(activation, "prox_slope", prox, slope, x)


def _check_derivative(
    activation: Any, name: str, function: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor], v: Tensor
) -> None:
    """The derivative lies between the difference quotients to both sides, or as near as these are to each other."""
    middle = function(v)
    share = torch.finfo(v.dtype).eps ** 0.4  # of v or σ(v): 5e-7 in float64, 2e-3 in float32, large beside rounding
    shift = share * torch.maximum(v.abs(), middle.abs()).clamp_min(1e-3)
    right, left = (function(v + shift) - middle) / shift, (middle - function(v - shift)) / shift
    slack = (right - left).abs() + 2e-3
    slopes = derivative(v)
    wrong = ~((slopes >= torch.minimum(left, right) - slack) & (slopes <= torch.maximum(left, right) + slack))
    if bool(wrong.any()):
        raise InputError(
            f"{name} of {activation!r} is not the derivative: it is {float(slopes[wrong][0]):.6g} at "
            f"{float(v[wrong][0]):.6g}, where difference quotients are {float(left[wrong][0]):.6g} and "
            f"{float(right[wrong][0]):.6g}"
        )
