"""An activation seen from the other side: −σ(−v)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.errors import InputError
from contracting.types import Slopes, Step


@dataclass(frozen=True, kw_only=True)
class Mirrored(Activation):
    """v ↦ −σ(−v) = prox_g(v) with g(z) = f(−z); the slopes are those of σ.

    Args:
        base: σ = prox_f.

    Raises:
        InputError: if ``base`` is no activation.
    """

    base: Activation
    piecewise_linear: ClassVar[bool] = True  # overridden per instance

    def __post_init__(self) -> None:
        if not isinstance(self.base, Activation):
            raise InputError(f"base must be an activation such as ReLU(), got {self.base!r}")
        for name in ("piecewise_linear", "homogeneous"):
            object.__setattr__(self, name, getattr(self.base, name))

    @property
    def slopes(self) -> Slopes:
        return self.base.slopes

    def slope_intervals(self, size: int) -> tuple[Tensor, Tensor]:
        return self.base.slope_intervals(size)

    def neurons(self, start: int, stop: int) -> Activation:
        return Mirrored(base=self.base.neurons(start, stop))

    def verify(self) -> None:
        """Nothing: σ is verified, and what holds of it holds of its mirror image."""

    def tensors(self) -> tuple[Tensor, ...]:
        return self.base.tensors()

    def with_tensors(self, tensors: Sequence[Tensor]) -> Mirrored:
        return Mirrored(base=self.base.with_tensors(tensors))

    def rows(self, index: Tensor | slice) -> Mirrored:
        return Mirrored(base=self.base.rows(index))

    def potential(self, z: Tensor) -> Tensor:
        return self.base.potential(torch.neg(z))

    def value(self, v: Tensor) -> Tensor:
        return -self.base.value(-v)

    def slope(self, v: Tensor) -> Tensor:
        return self.base.slope(-v)

    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        return -self.base.prox_value(-x, step)

    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        return self.base.prox_slope(-x, step)
