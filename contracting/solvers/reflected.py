r"""Peaceman–Rachford near the hardware: a reflection and a product per step, in place, in blocks that stay in cache.

u ← (2K − I)h + 2αKq with h = R_f u and K = (I + α(I − W))⁻¹. For ReLU, R_f u = |u|, so that a step is one ``abs`` and
one ``addmm``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracting.activations.base import Curved, Reflection
from contracting.flows.splitting import BoundPeacemanRachford, driven, forward, reflected_steps
from contracting.loop.method import State
from contracting.loop.records import Stop
from contracting.maps.base import LinearMap
from contracting.maps.operator import StepChoice
from contracting.memory import in_no_graph
from contracting.problem import EquilibriumProblem
from contracting.solvers.forecast import Forecast, sampled_forecast
from contracting.solvers.relaxed import Relaxed, RelaxedIteration, interval, relaxed

_BLOCK_BYTES = 640_000  # of the state of a block of rows; three such arrays are at work
MOST = 100  # steps before the first check, however many are predicted
# Of the steps that a solve from zero takes for as many digits, nine rows in ten that begin near their solution take
# less than this share (measured on four trained networks, from starts perturbed by 1e-5 to 0.1).
_GIVEN = 0.85
# Steps by which rows of a given start must differ to be judged apart: a look at 1,000 rows costs as much as six steps.
_TOGETHER = 4
# Of the step per neuron that estimates suggest, these shares are compared, by what they leave of a sample.
_SHARES = 0.75, 1.0, 1.35
_COMPARED = 1e-4  # the relative residual to which they are
# n beyond which one inverse for each share takes longer than the steps that are saved with ten weights in a row.
_LARGEST_COMPARED = 500
_OVERSHOOT = 12  # where a solve takes long, one step in so many may be in vain


class FoldedIteration(RelaxedIteration):
    """u ← u + θ(R_A R_f u − u), many steps at once where no graph is recorded."""

    flow: BoundPeacemanRachford

    def __init__(self, flow: BoundPeacemanRachford, relaxation: float, stop: Stop, forecast: Forecast | None):
        self.forecast = forecast
        steps = self._steps_to(stop.rtol or 0.0)
        super().__init__(flow, relaxation, interval(steps))
        self._origin = flow.problem.q.new_zeros((1, 1))
        # a product with a number takes three times as long as one with a tensor
        self._scale = torch.as_tensor(flow.step, dtype=self._origin.dtype, device=self._origin.device)
        self._first_check = min(MOST, math.ceil(steps or 0.0))  # of a cold start
        self._per_digit = 0.0 if forecast is None else forecast.steps_per_digit

    def on(self, problem: EquilibriumProblem) -> Self:
        """This iteration on other rows with the same weights."""
        iteration = object.__new__(type(self))
        iteration.__dict__.update(self.__dict__, flow=self.flow.on(problem))
        iteration.__dict__.pop("_shared", None)
        return iteration

    def _steps_to(self, residual: float) -> float | None:
        return None if self.forecast is None else self.forecast.steps(max(residual, 1e-15))

    def cold(self) -> State:
        # u = 0 stands for z = 0 as well as anything, and costs least
        return Relaxed(self._origin.expand_as(self.flow.problem.q), True)

    def warm(self, z0: Tensor, preactivation: Tensor) -> State:
        return Relaxed(forward(self.flow.problem, z0, self.flow.step, preactivation))

    def check_after(self, state: State, taken: int) -> int:
        cold: bool = state[-1]
        return max(self._first_check - taken if cold else 0, self.check_every, taken // _OVERSHOOT)

    def planned(self, reduction: NDArray[Any]) -> NDArray[Any] | None:
        if self.forecast is None:
            return None
        groups = np.ceil(np.log(reduction) * (_GIVEN * self._per_digit / _TOGETHER))
        return _TOGETHER * np.fmin(np.fmax(groups, 1.0), MOST // _TOGETHER)

    def advance(self, state: State, taken: int, steps: int) -> State:
        u, cold = state
        if self._in_graph(u):
            return super().advance(state, taken, steps)
        with in_no_graph():
            if cold and taken == 0:
                u, steps = self._kicked(), steps - 1
            parts = blocks_of(u)
            if steps and len(parts) == 1:
                reflect = self.flow.problem.activation.reflection(self.flow.step)
                u = reflected_steps(*self._shared, reflect, u, steps, self.relaxation)
            elif steps:
                blocks = [self._steps(rows, self._reflection(rows), u[rows], steps) for rows in parts]
                u = together(blocks)
        return Relaxed(u, cold)

    def _in_graph(self, state: Tensor) -> bool:
        return torch.is_grad_enabled() and any(t.requires_grad for t in (state, *self.flow.problem.tensors()))

    def _kicked(self) -> Tensor:
        """The state a step after u = 0, as if R_f were zero there, as it mostly is: the offset is all there is."""
        return self._shared[1]

    @cached_property
    def _shared(self) -> tuple[LinearMap, Tensor]:
        """θM and the offset θ·2Kαq, in no graph: what the steps of one solve have in common."""
        linear = self.flow.reflection
        offset = driven(linear, self._scale * self.flow.problem.q)
        if self.relaxation == 1:
            return linear, offset
        return linear.combined(self.relaxation, 0.0), self.relaxation * offset

    def _steps(self, rows: slice | Tensor, reflect: Reflection, u: Tensor, steps: int) -> Tensor:
        """The state of some rows after so many steps from u."""
        linear, offset = self._shared
        return reflected_steps(linear, offset[rows], reflect, u, steps, self.relaxation)

    def _reflection(self, rows: slice | Tensor) -> Reflection:
        return self.flow.problem.activation.rows(rows).reflection(self.flow.step)


def usual_forecast(flow: BoundPeacemanRachford, relaxation: float) -> Forecast | None:
    """How the residual usually falls: sampled, and no slower than the proved factor where there is one."""
    # a matrix and its transpose decay alike, so that the forward and the adjoint solve share one sample
    linear = flow.problem.linear

    def compute() -> Forecast | None:
        return sampled_forecast(linear, flow.reflection, flow.step)

    sampled = linear.untransposed.guide("forecast", flow.step, compute, key=flow.step)
    if sampled is None:
        return None
    usual = sampled.at_most(flow.prediction.factor)
    decay = relaxed(usual.decay, relaxation)
    return None if decay is None else replace(usual, decay=decay)


def usual_step(problem: EquilibriumProblem, method: str) -> StepChoice:
    """The step for usual inputs; in a training the best of one for all neurons and multiples of one per neuron.

    Raises:
        PreconditionError: if Condition 1 is not certified.
    """
    linear = problem.linear.untransposed
    if not (linear.guided and linear.has_matrix and linear.size <= _LARGEST_COMPARED):
        return problem.reflected_step(method, usual=True)

    def compare() -> StepChoice:
        choice = problem.reflected_step(method, usual=True)
        step = choice.step
        if not isinstance(step, Tensor):
            return choice
        choices = [problem.reflected_step(method), *(replace(choice, step=share * step) for share in _SHARES)]
        steps = [each.step for each in choices]
        forecasts = [sampled_forecast(linear, linear.make_reflection(tried), tried) for tried in steps]
        costs = [math.inf if found is None else found.steps(_COMPARED) for found in forecasts]
        best = costs.index(min(costs))
        linear.guide("forecast", steps[best], lambda: forecasts[best], key=steps[best])  # which is asked for next
        return choices[best]

    curved = isinstance(problem.activation, Curved)
    return linear.guide("usual step of a curved σ" if curved else "usual step", problem.metric, compare)


def blocks_of(state: Tensor, share: float = 1.0) -> Sequence[slice]:
    """The rows of a state in blocks that stay in cache, or that share of them where more arrays are at work."""
    rows = max(64, int(share * _BLOCK_BYTES) // (state.shape[-1] * state.element_size()))
    return [slice(start, start + rows) for start in range(0, state.shape[0], rows)]


def together(blocks: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The rows of all blocks, laid out in memory as those of each are."""
    if len(blocks) == 1:
        return blocks[0]
    return torch.cat([rows.mT for rows in blocks], 1).mT if blocks[0].mT.is_contiguous() else torch.cat(blocks)
