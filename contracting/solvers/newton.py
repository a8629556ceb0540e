"""Newton's method on the map of a flow, and its dense form: the few-step solver for small and medium n."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from contracting import checks
from contracting.flows.base import SteadyFlow
from contracting.flows.network import Hopfield
from contracting.flows.splitting import BoundPeacemanRachford, BoundSplitting, contracting_flow
from contracting.flows.steady import followed
from contracting.integrators.base import FlowIteration
from contracting.linear_systems import solve_rows
from contracting.loop.method import Family, Iteration, Method, State
from contracting.loop.records import Stop
from contracting.problem import Problem

# A step of length t must take away at least this share of t from what it is judged by. With 0.001 ReLU took up to a
# third fewer steps and the clipped and saturating activations up to twice as many (random LBEN of 10 to 80 neurons).
_SUFFICIENT = 0.1
_IDLE = 10  # Steps without progress after which a row is taken to have reached its rounding errors.


class NewtonIteration(FlowIteration):
    """s ← s + td with (I − T'(s))d = T(s) − s, where no length t helps a step of T itself.

    A row is judged by its residual ‖z − σ(Wz + q)‖ and by its defect ‖T(s) − s‖, each against the smallest so far (of
    the defects: since a step was last accepted for its residual alone). The Newton direction is one of descent for the
    defect in every norm. Where T contracts in the metric, the defect is taken in it, and a step of T makes it smaller.
    So such rows converge from any start: either the smallest residual falls geometrically, or from some step on the
    defect falls in every step.
    """

    # state: s, the smallest residual and the smallest defect so far, how many steps ago one of them fell, and what the
    # direction remembers
    def __init__(self, flow: SteadyFlow, halvings: int):
        super().__init__(flow)
        self.problem, self.halvings = flow.problem, halvings
        self.contracts = self._contracts()

    def _contracts(self) -> bool:
        """Whether T contracts in the metric of the problem: Peaceman–Rachford does with every number as its step."""
        flow = self.flow
        if not isinstance(flow, BoundSplitting) or isinstance(flow.step, Tensor) or not self.problem.well_posed:
            return False
        return isinstance(flow, BoundPeacemanRachford) or flow.choice is not None

    @abstractmethod
    def direction(self, s: Tensor, defect: Tensor, memory: State) -> tuple[Tensor, State]:
        """d with (I − T'(s))d = T(s) − s, and what to remember of it."""

    def memory(self, s: Tensor) -> State:
        """What the first direction remembers: tensors with one leading entry per row."""
        return ()

    def rescue(self, s: Tensor, defect: Tensor, direction: Tensor, good: Tensor, memory: State) -> tuple[Tensor, State]:
        """The state after this step of rows that no Newton step helps; of the ``good`` ones it is not looked at."""
        # without a metric nothing is known to be better than the undamped step
        return s + (defect if self.contracts else direction), memory

    def init(self, z0: Tensor) -> State:
        s = self.flow.init(z0)
        residual, defect = self._sizes(s)
        return s, residual, defect, torch.zeros_like(residual), self.memory(s)

    def _sizes(self, s: Tensor) -> tuple[Tensor, Tensor]:
        defect = self.flow.defect(s)
        assert not self.contracts or self.problem.metric is not None
        size = self.problem.metric.norm(defect) if self.contracts and self.problem.metric else _norm(defect)
        return _norm(self.problem.residual(self.flow.read(s))), size

    def step(self, state: State) -> State:
        s, least_residual, least_defect, idle, memory = state
        defect = self.flow.defect(s)
        direction, memory = self.direction(s, defect, memory)
        length = torch.ones_like(idle)
        for halving in range(self.halvings + 1):
            candidate = s + length[:, None] * direction
            residual, size = self._sizes(candidate)
            enough = 1 - _SUFFICIENT * length
            closer = size <= enough * least_defect
            good = closer | (residual <= enough * least_residual)
            if halving == self.halvings or bool(good.all()):
                break
            length = torch.where(good, length, length / 2)
        if not bool(good.all()):
            other, memory = self.rescue(s, defect, direction, good, memory)
            candidate = torch.where(good[:, None], candidate, other)
            residual, size = self._sizes(candidate)
        # a step that was accepted for its residual alone begins anew with the defects
        least_defect = torch.where(good & ~closer, size, least_defect)
        idle = torch.where((residual < least_residual) | (size < least_defect), 0.0, idle + 1)
        return candidate, torch.fmin(least_residual, residual), torch.fmin(least_defect, size), idle, memory

    def given_up(self, state: State) -> Tensor | None:
        """Rows whose steps change nothing but rounding errors."""
        s, least_residual, _, idle, _ = state
        waiting = idle >= _IDLE
        if self.contracts or not bool(waiting.any()):
            return waiting
        # a row that nothing is proved about may be on a detour, but not where it was nearly solved
        precise = torch.finfo(s.dtype).eps ** 0.5
        return waiting & (least_residual <= precise * self.problem.usual_scale(self.flow.read(s)))


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1)


@dataclass(frozen=True, kw_only=True)
class SemismoothNewton(Method):
    r"""s ← s + td with (I − T'(s))d = T(s) − s, T the Peaceman–Rachford map: finite for ReLU, quadratic for smooth σ.

    Each step solves one n×n system per row. The length t is halved, per row, until the residual of the problem or the
    distance ‖T(s) − s‖_Λ falls enough. The direction is one of descent for the latter, and where no length helps, as at
    a kink, the row takes the step s ← T(s), which makes it smaller too: under Condition 1 every row converges from any
    start. In the coordinates of T the slopes prox'_{αf} are far from zero where σ saturates, so that few steps are
    enough there. Where W has no resolvent, T is the map of forward–backward splitting. Without a metric, T is the
    Hopfield map s ↦ Wσ(s) + q, and of a field f it is s ↦ s + f(s): a row that no length helps takes the undamped step,
    and convergence is not guaranteed: the status tells.

    A row whose steps change nothing but rounding errors for ten steps is given up.

    Args:
        halvings: how often t may be halved.
        memory: bytes that the matrices of one chunk of rows may take.

    Source: Deuflhard, Newton Methods for Nonlinear Problems (2004), for the choice of coordinates and merit; Bauschke
    and Combettes, Convex Analysis and Monotone Operator Theory (2017), for the contraction of T.
    """

    halvings: int = 6
    memory: int = 256 * 2**20
    family: ClassVar[Family] = Family.NEWTON
    solves_systems: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.whole_number("halvings", self.halvings, low=0)
        checks.whole_number("memory", self.memory)

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        """The iteration on one problem."""
        flow = contracting_flow(problem) or followed(problem, Hopfield(), named=False)
        return _DenseNewtonIteration(flow, self)


class _DenseNewtonIteration(NewtonIteration):
    def __init__(self, flow: SteadyFlow, settings: SemismoothNewton):
        super().__init__(flow, settings.halvings)
        matrix = self.problem.size**2 * self.problem.template.element_size()
        self.rows = max(1, settings.memory // matrix)

    def direction(self, s: Tensor, defect: Tensor, memory: State) -> tuple[Tensor, State]:
        chunks = [slice(start, start + self.rows) for start in range(0, s.shape[0], self.rows)]
        found = []
        for chunk in chunks:
            flow = self.flow if len(chunks) == 1 else self.flow.on(self.problem.rows(chunk))
            found.append(solve_rows(-flow.jacobian(s[chunk]), defect[chunk]))
        return torch.cat(found) if found else s, memory
