"""Functions of torch that are no proximal operators but have bounded slopes, sheared into activations that are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from contracting.activations.base import Curved
from contracting.activations.names import INADMISSIBLE
from contracting.errors import InputError
from contracting.types import UNIT_SLOPES, Slopes

_ERF = 2 / math.sqrt(math.pi) * (1 + 1e-12)
_FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float]]] = {
    **{name: (getattr(F, name), INADMISSIBLE[name]) for name in ("gelu", "silu", "mish", "hardswish", "selu")},
    "gelu_tanh": (lambda v: F.gelu(v, approximate="tanh"), INADMISSIBLE["gelu"]),
    "sin": (torch.sin, (-1.0, 1.0)),
    "cos": (torch.cos, (-1.0, 1.0)),
    "erf": (torch.erf, (0.0, _ERF)),
}


@dataclass(frozen=True, kw_only=True)
class Sheared(Curved):
    r"""σ(v) = (f(v) − av)/(b − a) for a function f of torch with slopes in [a, b], so that those of σ are in [0, 1].

    So a network with f is one with σ beside a linear path: f(v) = av + (b − a)σ(v).

    Args:
        function: gelu, gelu_tanh, silu, mish, hardswish, selu, sin, cos or erf.

    Raises:
        InputError: if it is none of these.
    """

    function: str
    slopes = UNIT_SLOPES

    def __post_init__(self) -> None:
        if self.function not in _FUNCTIONS:
            raise InputError(f"function must be one of {', '.join(_FUNCTIONS)}, got {self.function!r}")

    @property
    def ends(self) -> Slopes:
        """a and b, between which the slopes of f are."""
        return Slopes(*_FUNCTIONS[self.function][1])

    def value(self, v: Tensor) -> Tensor:
        function, (low, high) = _FUNCTIONS[self.function]
        return (function(v) - low * v) / (high - low)

    def slope(self, v: Tensor) -> Tensor:
        pull: Callable[[Tensor], tuple[Tensor]] = torch.func.vjp(self.value, v)[1]
        return pull(torch.ones_like(v))[0].clamp(0, 1)
