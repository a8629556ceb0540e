"""A = I − W of which only bounds are known: what they prove of factors and steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from contracting.maps.operator import MonotoneOperator, StepChoice


@dataclass(frozen=True, eq=False)
class BoundedOperator(MonotoneOperator):
    """Ã known through ``bounds`` alone: m from below, the others from above, and every factor an upper bound.

    An implementation brings ``bounds``; its ``blocks`` are those of a part of Ã, and not those of Ã.
    """

    def self_adjoint(self, tolerance: float) -> bool:
        """From the bounds alone: whether the skew part is small beside the whole."""
        return self.bounds.skew <= tolerance * self.bounds.lipschitz

    @property
    def matrix(self) -> None:
        """None: the blocks are not those of Ã."""
        return None

    def forward_factor(self, step: float) -> float:
        """An upper bound of ‖I − αÃ‖₂ for one number α."""
        m, L = self.bounds.monotonicity, self.bounds.lipschitz
        return math.sqrt(max(0.0, 1 - 2 * step * m + (step * L) ** 2))

    def reflected_factor(self, step: float) -> float:
        """An upper bound of ‖(I − αÃ)(I + αÃ)⁻¹‖₂ for one number α."""
        m, square = step * self.bounds.monotonicity, 1 + (step * self.bounds.lipschitz) ** 2
        return math.sqrt(max(0.0, (square - 2 * m) / (square + 2 * m)))

    def euler_factor(self, step: float) -> float:
        """An upper bound of that of the exact operator, from 1 − λmax(H) ⪯ sym(W̃) ⪯ 1 − m and ‖W̃‖."""
        # beyond h = 1 the symmetric part counts with the other sign
        end = self.bounds.monotonicity if step <= 1 else self.bounds.symmetric
        excess = 2 * step * (1 - step) * (1 - end) + (step * self.bounds.gain) ** 2
        return math.sqrt((1 - step) ** 2 + max(0.0, excess))

    def _tseng_excess(self, step: float) -> tuple[float, float]:
        # ÃᵀÃ ⪯ L² and H ⪰ m
        m, L = self.bounds.monotonicity, self.bounds.lipschitz
        near, far = 1 / (1 - (step * L) ** 2), 1 / (2 * step * m)
        return near + far, 2 * step * (L * near) ** 2 - far / step

    @cached_property
    def best_forward(self) -> StepChoice:
        """The step m/L², which minimises the bound in ``forward_factor``."""
        step = self.bounds.monotonicity / self.bounds.lipschitz**2
        return StepChoice(step=step, factor=self.forward_factor(step))

    @cached_property
    def best_reflected(self) -> StepChoice:
        """The step 1/L, which minimises the bound from m and L in ``reflected_factor``."""
        step = 1 / self.bounds.lipschitz
        return StepChoice(step=step, factor=self.reflected_factor(step))

    @cached_property
    def best_euler(self) -> StepChoice:
        """The step that minimises the bound in ``euler_factor``, a piecewise quadratic function of h."""
        m, w = self.bounds.monotonicity, self.bounds.gain
        # (1−h)² + 2h(1−h)(1−m) + h²w², without the maximum: a parabola whose minimum has the excess at or above zero,
        # or else the excess vanishes first
        curvature = 1 - 2 * (1 - m) + w**2
        candidates = [1.0]
        if curvature > 0:
            candidates.append(m / curvature)
        if m > 1:
            candidates.append(2 * (m - 1) / (2 * (m - 1) + w**2))
        step = min((h for h in candidates if 0 < h <= 1), key=self.euler_factor)
        return StepChoice(step=step, factor=self.euler_factor(step))


def gain_bound(monotonicity: float, lipschitz: float) -> float:
    """What m and L prove of ‖W̃‖: ‖W̃x‖² = ‖x‖² − 2⟨x, Ãx⟩ + ‖Ãx‖², and ‖W̃‖ ≤ 1 + ‖Ã‖."""
    return min(1 + lipschitz, math.sqrt(max(0.0, 1 - 2 * monotonicity + lipschitz**2)))
