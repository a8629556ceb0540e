"""The inputs around an anchor that a local statement is about: a ball, cut by the range that inputs have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError
from equilibrium.lipschitz.certificate import Norm

Rows = Tensor | slice


@dataclass(frozen=True, kw_only=True, eq=False)
class Surroundings:
    """All x + Δ with ‖Δ‖₂ ≤ radius and low ≤ Δ ≤ high, for each row x.

    A ball of ℓ∞ is the box low ≤ Δ ≤ high in the smallest ball of ℓ2 that holds it.

    Attributes:
        radius: (batch,), ≥ 0.
        low: (batch, in), ≤ 0, or None for a whole ball.
        high: (batch, in), ≥ 0; None where ``low`` is.
    """

    radius: Tensor
    low: Tensor | None = None
    high: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, radius: Tensor | float, bounds: tuple[float, float] | None, norm: Norm = Norm.L2) -> Self:
        """The surroundings of inputs that lie in ``bounds`` entry by entry, or anywhere for None.

        Args:
            x: (batch, in).
            radius: in ``norm``, a number or (batch,).
            bounds: smallest and largest value of an input.
            norm: ℓ2 or ℓ∞.

        Raises:
            InputError: if a radius is not positive, or an input lies outside the bounds.
        """
        sizes = torch.as_tensor(radius, dtype=x.dtype, device=x.device).expand(len(x))
        checks.positive_tensor("radius", sizes)
        if norm not in (Norm.L2, Norm.LINF):
            raise InputError(f"norm must be Norm.L2 or Norm.LINF, got {norm!r}")
        if bounds is None:
            if norm is Norm.L2:
                return cls(radius=sizes)
            return cls._box(-sizes[:, None].expand_as(x), sizes[:, None].expand_as(x))
        if not isinstance(bounds, tuple | list) or len(bounds) != 2:
            raise InputError(f"bounds must be the smallest and the largest value of an input, got {bounds!r}")
        low, high = (checks.number("bounds", end, low=-math.inf, high=math.inf) for end in bounds)
        if len(x) and not (low < high and low <= float(x.min()) and float(x.max()) <= high):
            raise InputError(
                f"bounds must enclose the inputs, which reach from {float(x.min()):g} to {float(x.max()):g}, got "
                f"({low:g}, {high:g})"
            )
        if norm is Norm.L2:
            return cls(radius=sizes, low=low - x, high=high - x)
        return cls._box(torch.maximum(low - x, -sizes[:, None]), torch.minimum(high - x, sizes[:, None]))

    @classmethod
    def _box(cls, low: Tensor, high: Tensor) -> Self:
        corner = torch.linalg.vector_norm(torch.maximum(-low, high), dim=-1)
        return cls(radius=corner * (1 + 1e-12), low=low, high=high)  # rounded up

    @property
    def whole(self) -> bool:
        """Whether the ball is not cut."""
        return self.low is None

    def rows(self, index: Rows) -> Self:
        """Those of some rows."""
        cut = (None if end is None else end[index] for end in (self.low, self.high))
        low, high = cut
        return type(self)(radius=self.radius[index], low=low, high=high)

    def to(self, dtype: torch.dtype) -> Self:
        """The same in another precision, for a search."""
        cut = (None if end is None else end.to(dtype) for end in (self.low, self.high))
        low, high = cut
        return type(self)(radius=self.radius.to(dtype), low=low, high=high)
