r"""The operator A = I − W seen in a metric: exact bounds, contraction factors, and the steps that minimise them.

With Ã = Λ^½AΛ^−½ = H + K (symmetric + skew part), every worst-case factor below is the largest eigenvalue of a matrix
that depends on the step in a convex way, so the best step is found by bisection on the sign of a derivative — computed,
not tried. A strongly monotone A (H ≻ 0, "Condition 1") is what makes the factors smaller than one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_STEP_PRECISION = 2e-3  # relative; the factors are flat around their minimum


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
    """A step and the contraction factor it is proved to have in the metric, per iteration."""

    step: float
    factor: float


@dataclass(frozen=True, eq=False)
class MonotoneOperator:
    """A = I − W in coordinates where the metric is Euclidean, as diagonal blocks in a unitary basis.

    Args:
        blocks: (blocks, k, k), float64 or complex128, on the CPU. The operator is their direct sum.
    """

    blocks: Tensor

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
        symmetric = torch.linalg.eigvalsh(self._symmetric_part)
        skew = (self.blocks - self.blocks.mH) / 2
        return Bounds(
            monotonicity=float(symmetric.min()),
            symmetric=float(symmetric.max()),
            skew=float(torch.linalg.eigvalsh(1j * skew).abs().max()),
            lipschitz=float(torch.linalg.svdvals(self.blocks).max()),
            gain=float(torch.linalg.svdvals(self._identity - self.blocks).max()),
        )

    def forward_factor(self, step: float) -> float:
        """‖I − αÃ‖₂, the contraction factor of forward–backward with step α."""
        return float(torch.linalg.svdvals(self._identity - step * self.blocks).max())

    def reflected_factor(self, step: float) -> float:
        """‖(I − αÃ)(I + αÃ)⁻¹‖₂, the contraction factor of Peaceman–Rachford with step α."""
        reflected = torch.linalg.solve(self._identity + step * self.blocks, self._identity - step * self.blocks)
        return float(torch.linalg.svdvals(reflected).max())

    def euler_factor(self, step: float) -> float:
        r"""Local contraction factor of explicit Euler with step h on z' = −z + σ(Wz + q), over all slopes in [0, 1].

        Linearised with slopes J, and in the metric ΛJ⁻¹, the Euler map (1−h)I + hJ^½W̃J^½ has squared norm at most
        (1−h)² + max(0, λmax(2h(1−h)·sym(W̃) + h²W̃ᵀW̃)). The metric depends on J, so this bounds the rate near the
        equilibrium (the spectral radius of every linearisation), and is no global contraction factor.
        """
        return math.sqrt((1 - step) ** 2 + max(0.0, float(torch.linalg.eigvalsh(self._euler_excess(step)).max())))

    def _euler_excess(self, step: float) -> Tensor:
        W = self._identity - self.blocks
        return step * (1 - step) * (W + W.mH) + step**2 * (W.mH @ W)

    @cached_property
    def best_forward(self) -> StepChoice:
        """The step that minimises ``forward_factor``: a convex problem, since ‖x − αÃx‖² is convex in α."""
        m, L = self.bounds.monotonicity, self.bounds.lipschitz

        def slope(log_step: float) -> float:
            step = math.exp(log_step)
            return _top_derivative(
                self._identity - 2 * step * self._symmetric_part + step**2 * self._gram,
                step * self._gram - self._symmetric_part,
            )

        # every vector's own optimum ⟨x, Ãx⟩/‖Ãx‖² lies between these ends
        step = math.exp(_bisect(slope, math.log(m / L**2), -math.log(m)))
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
        X, Y = inverse @ inverse.mH, inverse @ self._gram @ inverse.mH

        def slope(log_step: float) -> float:
            near, far = math.exp(-log_step), math.exp(log_step)
            return _top_derivative(near * X + far * Y, far * Y - near * X)

        step = math.exp(_bisect(slope, -math.log(L), -math.log(m)))
        return StepChoice(step=step, factor=self.reflected_factor(step))

    @cached_property
    def best_euler(self) -> StepChoice:
        """The step h in (0, 1] that minimises ``euler_factor``, convex in h."""
        W = self._identity - self.blocks
        sym, gram = (W + W.mH) / 2, W.mH @ W

        def slope(log_step: float) -> float:
            h = math.exp(log_step)
            values, vectors = torch.linalg.eigh(self._euler_excess(h))
            excess = 0.0
            if float(values.max()) > 0:
                excess = _quadratic_form(2 * (1 - 2 * h) * sym + 2 * h * gram, values, vectors)
            return -2 * (1 - h) + excess

        lowest = min(1.0, self.bounds.monotonicity) / (1 + self.bounds.gain) ** 2
        step = math.exp(_bisect(slope, math.log(lowest), 0.0))
        return StepChoice(step=step, factor=self.euler_factor(step))


def _top_derivative(matrices: Tensor, derivatives: Tensor) -> float:
    """Derivative of the largest eigenvalue of a batch of Hermitian matrices along ``derivatives``."""
    values, vectors = torch.linalg.eigh(matrices)
    return _quadratic_form(derivatives, values, vectors)


def _quadratic_form(matrices: Tensor, values: Tensor, vectors: Tensor) -> float:
    block = int(values[:, -1].argmax())
    top = vectors[block, :, -1]
    return float(torch.real(torch.vdot(top, matrices[block] @ top)))


def _bisect(slope: Callable[[float], float], low: float, high: float) -> float:
    """The zero of an increasing function on [low, high], to an absolute precision of ``_STEP_PRECISION``."""
    while high - low > _STEP_PRECISION:
        middle = (low + high) / 2
        if slope(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
