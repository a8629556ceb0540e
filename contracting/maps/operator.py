r"""The operator A = I − W seen in a metric: exact bounds, contraction factors, and the steps that minimise them.

With Ã = Λ^½AΛ^−½ = H + K (symmetric + skew part), every worst-case factor below is the largest eigenvalue of a matrix
that depends on the step in a convex way, so the best step is found from tangents, with a proved optimality gap —
computed, not tried. A strongly monotone A (H ≻ 0, "Condition 1") is what makes the factors smaller than one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from contracting.maps.eigenvalues import largest_eigenvalue
from contracting.types import Step

# The usual step is this share of the geometric mean of two steps: the one with the best worst case, and one over the
# mean of the spectrum. With it each reference checkpoint took at most a tenth more steps than with the best step of a
# sweep.
_USUAL_SHARE = 0.94
# A usual step that is proved to gain less than this share of the digits per step which the best one gains is not taken.
_LEAST_SHARE = 0.25
# A step counts as the best when its 1 − factor² is within this relative gap of what any step can reach.
_GAP = 1e-4


@dataclass(frozen=True, kw_only=True)
class Bounds:
    r"""What is known of A = I − W in a metric.

    Attributes:
        monotonicity: m = λmin(H); I − W is strongly monotone iff m > 0.
        symmetric: λmax(H).
        skew: ‖K‖₂.
        lipschitz: L = ‖Ã‖₂.
        gain: w = ‖W̃‖₂.
    """

    monotonicity: float
    symmetric: float
    skew: float
    lipschitz: float
    gain: float

    @property
    def strongly_monotone(self) -> bool:
        """Whether m > 0 beyond the rounding of its computation."""
        return self.monotonicity > 1e-12 * max(1.0, self.lipschitz)

    @property
    def condition(self) -> float:
        """κ = L/m, infinite where the map is not strongly monotone."""
        return self.lipschitz / self.monotonicity if self.strongly_monotone else math.inf


@dataclass(frozen=True, kw_only=True)
class StepChoice:
    """A step and its contraction factor per iteration, in the sense of the function that the choice minimises.

    Attributes:
        step: the step; for a splitting it may be one per neuron, (n,), where the operator knows that to be best.
        factor: its factor, or None where nothing was computed.
        expected: the reduction per iteration to plan with; no bound. The factor where there is one.
    """

    step: Step
    factor: float | None
    expected: float | None = None

    def __post_init__(self) -> None:
        if self.expected is None:
            object.__setattr__(self, "expected", self.factor)


@dataclass(frozen=True, eq=False)
class MonotoneOperator:
    """A = I − W in coordinates where the metric is Euclidean, as diagonal blocks in a unitary basis.

    Args:
        blocks: (blocks, k, k), float64 or complex128, on the CPU. The operator is their direct sum.
    """

    blocks: Tensor

    @property
    def matrix(self) -> Tensor | None:
        """Ã itself, (k, k), where it is a single real block; else None."""
        return None if len(self.blocks) > 1 or self.blocks.is_complex() else self.blocks[0]

    @cached_property
    def mean(self) -> float:
        """The mean of the diagonals of the blocks: the trace of Ã over n, or nearly that where blocks count twice."""
        return float(torch.real(self.blocks.diagonal(dim1=-2, dim2=-1)).mean())

    @cached_property
    def _symmetric_part(self) -> Tensor:
        return (self.blocks + self.blocks.mH) / 2

    @cached_property
    def _gram(self) -> Tensor:
        return self.blocks.mH @ self.blocks

    @cached_property
    def _identity(self) -> Tensor:
        return torch.eye(self.blocks.shape[-1], dtype=self.blocks.dtype)

    @cached_property
    def bounds(self) -> Bounds:
        """m, λmax(H), ‖K‖, L and w, exact up to float64 rounding."""
        skew = 1j * (self.blocks - self.blocks.mH) / 2
        return Bounds(
            monotonicity=-largest_eigenvalue(-self._symmetric_part)[0],
            symmetric=largest_eigenvalue(self._symmetric_part)[0],
            skew=max(largest_eigenvalue(skew)[0], largest_eigenvalue(-skew)[0]),
            lipschitz=_largest_singular_value(self.blocks),
            gain=_largest_singular_value(self._identity - self.blocks),
        )

    def self_adjoint(self, tolerance: float) -> bool:
        """Whether Ã is self-adjoint up to rounding, so that I − W is the gradient of a convex function.

        Args:
            tolerance: of an entry of Ã − Ãᴴ, relative to the largest entries of its row and of its column (their
                geometric mean): a small skew block beside large entries is not taken for rounding.
        """
        return self_adjoint(self.blocks, tolerance)

    def forward_factor(self, step: float) -> float:
        """‖I − αÃ‖₂, the contraction factor of forward–backward with step α."""
        return _largest_singular_value(self._identity - step * self.blocks)

    def reflected_factor(self, step: float) -> float:
        """‖(I − αÃ)(I + αÃ)⁻¹‖₂, the contraction factor of Peaceman–Rachford with step α."""
        if step not in self._reflected:
            reflected = torch.linalg.solve(self._identity + step * self.blocks, self._identity - step * self.blocks)
            self._reflected[step] = _largest_singular_value(reflected)
        return self._reflected[step]

    @cached_property
    def _reflected(self) -> dict[float, float]:
        return {}

    def euler_factor(self, step: float) -> float:
        r"""Local contraction factor of explicit Euler with step h on z' = −z + σ(Wz + q), over all slopes in [0, 1].

        Linearised with slopes J, and in the metric ΛJ⁻¹, the Euler map (1−h)I + hJ^½W̃J^½ has squared norm at most
        (1−h)² + max(0, λmax(2h(1−h)·sym(W̃) + h²W̃ᵀW̃)). The metric depends on J, so this bounds the rate near the
        equilibrium (the spectral radius of every linearisation), and is no global contraction factor.
        """
        return math.sqrt((1 - step) ** 2 + max(0.0, largest_eigenvalue(self._euler_excess(step))[0]))

    def _euler_excess(self, step: float) -> Tensor:
        W = self._identity - self.blocks
        return step * (1 - step) * (W + W.mH) + step**2 * (W.mH @ W)

    @cached_property
    def best_forward(self) -> StepChoice:
        """The step that minimises ``forward_factor``: ‖x − αÃx‖² is convex in α for every x, so its maximum is."""
        m, L = self.bounds.monotonicity, self.bounds.lipschitz

        def square(step: float) -> tuple[float, float]:
            return _top_eigenvalue(
                self._identity - 2 * step * self._symmetric_part + step**2 * self._gram,
                2 * step * self._gram - 2 * self._symmetric_part,
            )

        # every x has its own optimum ⟨x, Ãx⟩/‖Ãx‖² ≥ m/L², and a factor below one needs αL < 2
        step = _minimise_convex(square, m / L**2, 2 / L, lambda value: 1 - value)
        return StepChoice(step=step, factor=self.forward_factor(step))

    @cached_property
    def best_reflected(self) -> StepChoice:
        r"""The step that minimises ``reflected_factor``.

        factor² = (g − 1)/(g + 1) with g(α) = max_x (‖x‖²/α + α‖Ãx‖²)/(2⟨x, Hx⟩), which is convex in log α.
        """
        m, L = self.bounds.monotonicity, self.bounds.lipschitz
        inverse = torch.linalg.solve_triangular(
            torch.linalg.cholesky(self._symmetric_part), self._identity, upper=False
        )
        X, Y = inverse @ inverse.mH / 2, inverse @ self._gram @ inverse.mH / 2

        def g(log_step: float) -> tuple[float, float]:
            near, far = math.exp(-log_step) * X, math.exp(log_step) * Y
            return _top_eigenvalue(near + far, far - near)

        # 1 − factor² = 2/(g + 1)
        step = math.exp(_minimise_convex(g, -math.log(L), -math.log(m), lambda value: value))
        return StepChoice(step=step, factor=self.reflected_factor(step))

    @cached_property
    def usual_reflected(self) -> StepChoice:
        """The step of Peaceman–Rachford for usual inputs, between the best one and one over the mean of the spectrum.

        The best worst case is that of single directions, while most of an error lies in the bulk of the spectrum, which
        1/mean suits. The factor of the step between them is proved like any other; where it promises less than a
        quarter of the best step's digits, the best is taken.
        """
        step = _USUAL_SHARE * math.sqrt(self._best_step / self.mean)
        if self.reflected_factor(step) > self.reflected_factor(self._best_step) ** _LEAST_SHARE:
            step = self._best_step
        return StepChoice(step=step, factor=self.reflected_factor(step))

    @property
    def _best_step(self) -> float:
        return float(self.best_reflected.step)

    @cached_property
    def best_euler(self) -> StepChoice:
        """The step h in (0, 1] that minimises ``euler_factor``, whose square is convex in h."""
        W = self._identity - self.blocks
        sym, gram = W + W.mH, W.mH @ W

        def square(h: float) -> tuple[float, float]:
            value, slope = _top_eigenvalue(self._euler_excess(h), (1 - 2 * h) * sym + 2 * h * gram)
            if value <= 0:
                value = slope = 0.0
            return (1 - h) ** 2 + value, slope - 2 * (1 - h)

        lowest = min(1.0, self.bounds.monotonicity) / (1 + self.bounds.gain) ** 2
        step = _minimise_convex(square, lowest, 1.0, lambda value: 1 - value)
        return StepChoice(step=step, factor=self.euler_factor(step))

    def tseng_factor(self, step: float) -> float:
        r"""A proved bound on the contraction of Tseng's splitting with step α < 1/L towards the solution, 1 beyond.

        factor² = 1 − 1/λmax((I − α²ÃᵀÃ)⁻¹ + (2αH)⁻¹). With d = z − z̄ and e = z̄ − z*, monotonicity of ∂f gives
        ‖z⁺ − z*‖² ≤ ‖d + e‖² − ⟨d, (I − α²ÃᵀÃ)d⟩ − 2α⟨e, He⟩, and the least that two such terms subtract for a given
        d + e is their parallel sum. The larger of the values for Ã and Ãᵀ, so that it holds for the adjoint as well.
        """
        if step * self.bounds.lipschitz >= 1 - 1e-14:  # (1/L)·L may be rounded down, and I − α²ÃᵀÃ is singular there
            return 1.0
        return math.sqrt(1 - 1 / self._tseng_excess(step)[0])

    @cached_property
    def _tseng_parts(self) -> tuple[Tensor, Tensor]:
        """Gram matrices of Ã and of Ãᵀ, and (2H)⁻¹ to go with each."""
        grams = torch.cat([self._gram, self.blocks @ self.blocks.mH])
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(2 * self._symmetric_part))
        return grams, torch.cat([inverse, inverse])

    def _tseng_excess(self, step: float) -> tuple[float, float]:
        """λmax((I − α²ÃᵀÃ)⁻¹ + (2αH)⁻¹) for α < 1/L, or an upper bound, convex in α; and its derivative."""
        grams, inverse = self._tseng_parts
        near = torch.linalg.inv(self._identity - step**2 * grams)
        total, slope = near + inverse / step, 2 * step * near @ grams @ near - inverse / step**2
        return _top_eigenvalue((total + total.mH) / 2, (slope + slope.mH) / 2)

    @cached_property
    def best_tseng(self) -> StepChoice:
        """The step that minimises ``tseng_factor``: both terms of its matrix are convex in α."""
        L = self.bounds.lipschitz
        step = _minimise_convex(self._tseng_excess, 1e-3 / L, (1 - 1e-6) / L, lambda value: value)
        return StepChoice(step=step, factor=self.tseng_factor(step))


def self_adjoint(blocks: Tensor, tolerance: float) -> bool:
    """``MonotoneOperator.self_adjoint`` of diagonal blocks, (blocks, k, k), which need not be monotone."""
    sizes = blocks.abs().amax(0)
    root = torch.maximum(sizes.amax(0), sizes.amax(1)).sqrt()
    return bool(((blocks - blocks.mH).abs() <= tolerance * root[:, None] * root).all())


def _top_eigenvalue(matrices: Tensor, derivatives: Tensor) -> tuple[float, float]:
    """The largest eigenvalue of a batch of Hermitian matrices, and its derivative along ``derivatives``."""
    block = largest_eigenvalue(matrices)[1] if len(matrices) > 1 else 0
    values, vectors = torch.linalg.eigh(matrices[block])
    top = vectors[:, -1]
    return float(values[-1]), float(torch.real(torch.vdot(top, derivatives[block] @ top)))


def _largest_singular_value(matrices: Tensor) -> float:
    if len(matrices) == 1:
        return float(torch.linalg.svdvals(matrices).max())
    return math.sqrt(max(0.0, largest_eigenvalue(matrices.mH @ matrices)[0]))


def _minimise_convex(
    function: Callable[[float], tuple[float, float]],
    low: float,
    high: float,
    scale: Callable[[float], float],
    max_steps: int = 60,
) -> float:
    """The minimiser of a convex function on [low, high], from its values and slopes.

    The tangents at the two ends bound the function from below; their crossing is the next point, and the search ends
    when the best value is within ``_GAP``·``scale(value)`` of that bound. Works at kinks, where the crossing is exact.
    """
    at_low, at_high = function(low), function(high)
    if at_low[1] >= 0 or at_high[1] <= 0:
        return low if at_low[1] >= 0 else high
    best, point = min((at_low[0], low), (at_high[0], high))
    for _ in range(max_steps):
        (f0, d0), (f1, d1) = at_low, at_high
        crossing = (f1 - f0 + d0 * low - d1 * high) / (d0 - d1)
        bound = f0 + d0 * (crossing - low)
        if best - bound <= _GAP * abs(scale(best)):
            break
        width = high - low
        middle = min(max(crossing, low + 0.05 * width), high - 0.05 * width)
        value = function(middle)
        if value[0] < best:
            best, point = value[0], middle
        if value[1] < 0:
            low, at_low = middle, value
        else:
            high, at_high = middle, value
    return point


def slope_rate(monotonicity: float, gain: float) -> float:
    r"""Contraction rate in Λ of −I + JM for slopes J in [0, 1], given m = λmin(sym(I − M̃)) and ‖M̃‖ = ``gain``.

    ⟨x, JM̃x⟩ ≤ Σ max(0, xᵢ(M̃x)ᵢ) ≤ ½(‖x‖‖M̃x‖ + ⟨x, M̃x⟩), and the same for M̃J through its transpose.
    """
    return 1 - 0.5 * (gain + 1 - monotonicity)
