"""Relaxed fixed-point iterations of a splitting flow, and how often their residual is worth a look."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from contracting.flows.splitting import BoundSplitting
from contracting.integrators.base import FlowIteration
from contracting.loop.method import State

_CHECKS = 5  # in the number of steps that are predicted: a check costs as much as two steps, of a few rows as ten
FEWEST = 3  # steps between two checks
_UNKNOWN = 5  # steps between two checks where nothing is predicted


class Relaxed(NamedTuple):
    """The state of the flow, and whether the iteration began with nothing better than zero."""

    s: Tensor
    cold: bool = False


class RelaxedIteration(FlowIteration):
    """s ← s + θ(T(s) − s), contracting with factor |1 − θ| + θρ where T contracts with factor ρ."""

    flow: BoundSplitting

    def __init__(self, flow: BoundSplitting, relaxation: float, check_every: int):
        super().__init__(flow)
        self.relaxation, self.check_every = relaxation, check_every
        self.step_size = None if isinstance(flow.step, Tensor) else flow.step
        self.factor = relaxed(flow.prediction.factor, relaxation)

    def init(self, z0: Tensor) -> State:
        return Relaxed(self.flow.init(z0))

    def step(self, state: State) -> State:
        s, cold = state
        mapped = self.flow.map(s)
        return Relaxed(mapped if self.relaxation == 1 else s + self.relaxation * (mapped - s), cold)


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


def interval(steps: float | None) -> int:
    """Steps between two checks in a solve of so many steps."""
    return _UNKNOWN if steps is None else min(50, max(FEWEST, round(steps / _CHECKS)))
