r"""Peaceman–Rachford near the hardware: a reflection and a product per step, in place, in blocks that stay in cache.

u ← (2K − I)h + 2αKq with h = R_f u and K = (I + α(I − W))⁻¹. For ReLU, R_f u = |u|, so that a step is one ``abs`` and
one ``addmm``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from contracting.activations.base import Reflection
from contracting.flows.splitting import BoundPeacemanRachford
from contracting.loop.method import Iteration, State
from contracting.loop.records import Stop
from contracting.maps.base import LinearMap
from contracting.problem import EquilibriumProblem
from contracting.solvers.forecast import Forecast, sampled_forecast

_BLOCK_BYTES = 640_000  # of the state of a block of rows; three such arrays are at work
_CHECKS = 5  # in the number of steps that are predicted: a check costs as much as two steps, of a few rows as ten
_FEWEST = 3  # steps between two checks
MOST = 100  # steps before the first check, however many are predicted
_OVERSHOOT = 12  # where a solve takes long, one step in so many may be in vain
_UNKNOWN = 5  # steps between two checks where nothing is predicted

Kernel = tuple[LinearMap, Tensor, Reflection]  # M, c and h of a block of rows


def relaxed(factor: float | None, relaxation: float) -> float | None:
    """|1 − θ| + θρ, the factor of s ← s + θ(T(s) − s) where T contracts with ρ; None where that is not below one."""
    if factor is None:
        return None
    value = abs(1 - relaxation) + relaxation * factor
    return value if value < 1 else None


def planned_steps(expected: float | None, reduction: float) -> float | None:
    """How many steps reduce the error to ``reduction`` at the expected factor; None where nothing is expected."""
    if expected is None or not reduction > 0:
        return None
    return math.log(min(reduction, 1.0)) / math.log(min(max(expected, 1e-3), 1 - 1e-9))


def planned_interval(expected: float | None, stop: Stop) -> int:
    """Steps between two checks of the residual; a function of the weights and the tolerance alone."""
    return interval(planned_steps(expected, max(stop.rtol or 0.0, 1e-15)))


def interval(steps: float | None) -> int:
    """Steps between two checks in a solve of so many steps."""
    return _UNKNOWN if steps is None else min(50, max(_FEWEST, round(steps / _CHECKS)))


class FoldedIteration(Iteration):
    """u ← u + θ(R_A R_f u − u), contracting with factor |1 − θ| + θρ where R_A R_f contracts with factor ρ."""

    def __init__(self, flow: BoundPeacemanRachford, relaxation: float, stop: Stop):
        super().__init__()
        self.flow, self.relaxation = flow, relaxation
        prediction = flow.prediction
        self.step_size = None if isinstance(flow.step, Tensor) else flow.step
        self.factor = relaxed(prediction.factor, relaxation)
        self.forecast = usual_forecast(flow, relaxation)
        self._first_check = self._planned(stop.rtol or 0.0)
        self.check_every = interval(self._steps_to(stop.rtol or 0.0))
        self._kernels: dict[int, Kernel] = {}

    def _steps_to(self, residual: float) -> float | None:
        return None if self.forecast is None else self.forecast.steps(max(residual, 1e-15))

    def _planned(self, residual: float) -> int:
        """Steps before the first look where a relative residual is wanted."""
        return min(MOST, math.ceil(self._steps_to(residual) or 0.0))

    @property
    def check_start(self) -> bool:  # type: ignore[override]
        """A given starting point may be the solution; zeros hardly are."""
        return not self.cold_start

    def init(self, z0: Tensor) -> State:
        self.map_evals += not self.cold_start
        # u = 0 stands for z = 0 as well as anything, and costs least
        return (z0 if self.cold_start else self.flow.init(z0),)

    def step(self, state: State) -> State:
        self.map_evals += 1
        (u,) = state
        mapped = self.flow.map(u)
        return (mapped if self.relaxation == 1 else u + self.relaxation * (mapped - u),)

    def read(self, state: State) -> Tensor:
        return self.flow.read(state[0])

    def check_after(self, taken: int) -> int:
        first = self._first_check - taken if self.cold_start else 0
        return max(first, self.check_every, taken // _OVERSHOOT)

    def on(self, problem: EquilibriumProblem) -> FoldedIteration:
        iteration = copy.copy(self)
        iteration.flow, iteration._kernels = self.flow.on(problem), {}
        return iteration

    def advance(self, state: State, taken: int, steps: int) -> State:
        (u,) = state
        if self._in_graph(u):
            return super().advance(state, taken, steps)
        self.map_evals += steps
        with torch.no_grad():
            if self.cold_start and taken == 0:
                # as if R_f were zero at u = 0, as it mostly is: the offset is all there is to compute
                u, steps = self.flow.offset, steps - 1
                u = u if self.relaxation == 1 else self.relaxation * u
            if steps == 0:
                return (u,)
            blocks = [self._run(rows, u[rows], steps) for rows in blocks_of(u)]
            return (blocks[0] if len(blocks) == 1 else self.flow.reflection.laid_out(torch.cat(blocks)),)

    def _in_graph(self, state: Tensor) -> bool:
        return torch.is_grad_enabled() and any(t.requires_grad for t in (state, *self.flow.problem.tensors()))

    def _run(self, rows: slice, u: Tensor, steps: int) -> Tensor:
        """``steps`` steps of a block of rows."""
        if rows.start not in self._kernels:
            self._kernels[rows.start] = self._kernel(rows)
        return run(self._kernels[rows.start], u, steps, self.relaxation)

    def _kernel(self, rows: slice) -> Kernel:
        linear, offset = self.flow.reflection, self.flow.offset[rows]
        if self.relaxation != 1:
            linear, offset = linear.combined(self.relaxation, 0.0), self.relaxation * offset
        return linear, linear.laid_out(offset), self.flow.problem.activation.rows(rows).reflection(self.flow.step)


def run(kernel: Kernel, u: Tensor, steps: int, relaxation: float) -> Tensor:
    """u ← (1 − θ)u + M h(u) + c, ``steps`` times; the kernel is M, c and h, θ already a factor of M and c."""
    linear, offset, reflect = kernel
    u = linear.laid_out(u)
    reflected, out = torch.empty_like(u), None
    if relaxation != 1:
        for _ in range(steps):
            u = linear.affine(reflect(u, out=reflected), torch.add(offset, u, alpha=1 - relaxation))
        return u
    mapped = linear.steps_with(offset)
    for _ in range(steps):
        reflect(u, out=reflected)
        u = out = mapped(reflected, out)  # not into the given u, which is somebody's state
    return u


def usual_forecast(flow: BoundPeacemanRachford, relaxation: float) -> Forecast | None:
    """How the residual usually falls: sampled, and no slower than the proved factor where there is one."""
    # a matrix and its transpose decay alike, so that the forward and the adjoint solve share one sample
    linear = flow.problem.linear

    def compute() -> Forecast | None:
        return sampled_forecast(linear, flow.reflection, flow.step)

    owner, step = linear.untransposed, flow.step
    if isinstance(step, Tensor):
        sampled = owner.remember("forecast", step, compute)
    else:
        sampled = owner.guide("forecast", step, compute, key=step)
    if sampled is None:
        return None
    usual = sampled.at_most(flow.prediction.factor)
    decay = relaxed(usual.decay, relaxation)
    return None if decay is None else replace(usual, decay=decay)


def blocks_of(state: Tensor) -> Iterator[slice]:
    """The rows of a state in blocks that stay in cache."""
    rows = max(64, _BLOCK_BYTES // (state.shape[-1] * state.element_size()))
    return (slice(start, start + rows) for start in range(0, state.shape[0], rows))
