r"""Peaceman–Rachford near the hardware: a reflection and a product per step, in place, in blocks that stay in cache.

u ← (2K − I)h + 2αKq with h = R_f u and K = (I + α(I − W))⁻¹. For ReLU, R_f u = |u|, so that a step is one ``abs`` and
one ``addmm``. In float64 the first steps, whose accuracy will be forgotten, are taken in float32; the residuals that
decide, and the steps to the end of a solve, are float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from contracting.estimates import sampled_decay
from contracting.flows import BoundPeacemanRachford
from contracting.linear import LinearMap
from contracting.proximal import Reflection
from contracting.solve import Iteration, State, Stop

_BLOCK_BYTES = 640_000  # of the state of a block of rows; three such arrays are at work
_CHECKS = 5  # in the number of steps that are predicted: a check costs as much as two steps, of a few rows as ten
_FEWEST = 3  # steps between two checks
_MOST = 100  # steps before the first check, however many are predicted
_OVERSHOOT = 12  # where a solve takes long, one step in so many may be in vain
_UNKNOWN = 5  # steps between two checks where nothing is predicted
_FIRST_SHARE = 1.2  # of the steps that the sampled decay predicts, before the first check
_SINGLE_SHARE = 1.3  # of the steps predicted down to the accuracy of float32: its steps cost a third
_SINGLE_FLOOR = torch.finfo(torch.float32).eps  # times 1 + ‖W‖: the residual that float32 reaches, and a little more

Kernel = tuple[LinearMap, Tensor, Reflection]  # what a step of a block of rows needs


def relaxed(factor: float | None, relaxation: float) -> float | None:
    """|1 − θ| + θρ, the factor of s ← s + θ(T(s) − s) where T contracts with ρ; None where that is not below one."""
    if factor is None:
        return None
    value = abs(1 - relaxation) + relaxation * factor
    return value if value < 1 else None


def planned_steps(expected: float | None, reduction: float) -> float | None:
    """How many steps reduce the error to ``reduction`` at the expected factor; None where nothing is expected."""
    if expected is None or not 0 < reduction < 1:
        return None
    return math.log(reduction) / math.log(min(max(expected, 1e-3), 1 - 1e-9))


def planned_interval(expected: float | None, stop: Stop) -> int:
    """Steps between two checks of the residual; a function of the weights and the tolerance alone."""
    steps = planned_steps(expected, max(stop.rtol or 0.0, 1e-15))
    return _UNKNOWN if steps is None else min(50, max(_FEWEST, round(steps / _CHECKS)))


class FoldedIteration(Iteration):
    """u ← u + θ(R_A R_f u − u), contracting with factor |1 − θ| + θρ where R_A R_f contracts with factor ρ."""

    def __init__(self, flow: BoundPeacemanRachford, relaxation: float, stop: Stop, *, mixed_precision: bool):
        super().__init__()
        self.flow, self.relaxation = flow, relaxation
        prediction = flow.prediction
        self.step_size = None if isinstance(flow.step, Tensor) else flow.step
        self.factor = relaxed(prediction.factor, relaxation)
        expected = relaxed(_usual_decay(flow), relaxation)
        self.check_every = planned_interval(expected, stop)
        self._single_steps = self._planned_single_steps(expected, stop) if mixed_precision else 0
        planned = planned_steps(expected, max(stop.rtol or 0.0, 1e-15)) or 0.0
        self._first_check = min(_MOST, round(_FIRST_SHARE * planned))
        self._single_offset: Tensor | None = None
        self._kernels: dict[tuple[torch.dtype, int], Kernel] = {}
        self.map_evals += 1  # of the offset

    def _planned_single_steps(self, expected: float | None, stop: Stop) -> int:
        problem = self.flow.problem
        if problem.q.dtype != torch.float64 or expected is None:
            return 0
        reachable = max(stop.rtol or 0.0, _SINGLE_FLOOR * (1 + problem.linear.rough_norm))
        return min(_MOST, round(_SINGLE_SHARE * (planned_steps(expected, reachable) or 0.0)))

    @property
    def check_start(self) -> bool:  # type: ignore[override]
        """A given starting point may be the solution; zeros hardly are."""
        return not self.cold_start

    def init(self, z0: Tensor) -> State:
        self.map_evals += not self.cold_start
        if not self.cold_start:
            return (self.flow.init(z0),)
        start = self.flow.init_at_zero()
        if self._in_graph(start):
            return (start,)
        # one step from u = 0, where R_f u = 0 too: it costs nothing, and took no more steps on any checkpoint
        dtype = torch.float32 if self._single_steps else start.dtype
        with torch.no_grad():
            stepped = self._offset(dtype, self._linear(dtype))
            if dtype == start.dtype:
                return (stepped,)
            stepped = stepped.to(start.dtype)
            return (torch.where(torch.isfinite(stepped).all(-1, keepdim=True), stepped, start),)

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

    def advance(self, state: State, taken: int, steps: int) -> State:
        (u,) = state
        if self._in_graph(u):
            return super().advance(state, taken, steps)
        self.map_evals += steps
        single = min(max(self._single_steps - taken, 0), steps) if self.cold_start else 0
        with torch.no_grad():
            blocks = [self._in_both(rows, u[rows], single, steps - single) for rows in _blocks(u)]
            return (blocks[0] if len(blocks) == 1 else self.flow.reflection.laid_out(torch.cat(blocks)),)

    def _in_graph(self, state: Tensor) -> bool:
        return torch.is_grad_enabled() and any(t.requires_grad for t in (state, *self.flow.problem.tensors()))

    def _in_both(self, rows: slice, u: Tensor, single: int, double: int) -> Tensor:
        """The steps of a block in float32, then those in the precision of the problem."""
        if single:
            reached = self._run(torch.float32, rows, u.to(torch.float32), single).to(u.dtype)
            # a row too large for float32 waits for its float64 steps
            u = torch.where(torch.isfinite(reached).all(-1, keepdim=True), reached, u)
        return self._run(u.dtype, rows, u, double) if double else u

    def _run(self, dtype: torch.dtype, rows: slice, u: Tensor, steps: int) -> Tensor:
        """``steps`` steps of a block of rows in a precision."""
        key = dtype, rows.start
        if key not in self._kernels:
            self._kernels[key] = self._kernel(dtype, rows)
        linear, offset, reflect = self._kernels[key]
        u = linear.laid_out(u)
        reflected = torch.empty_like(u)
        for step in range(steps):
            reflect(u, out=reflected)
            if self.relaxation == 1:
                u = linear.affine(reflected, offset, out=u if step else None)
            else:
                u = linear.affine(reflected, torch.add(offset, u, alpha=1 - self.relaxation))
        return u

    def _offset(self, dtype: torch.dtype, linear: LinearMap) -> Tensor:
        """The constant part of a step; in float64 only once a float64 step is taken."""
        if dtype == self.flow.problem.q.dtype:
            return self.flow.offset
        if self._single_offset is None:
            scaled = (self.flow.step * self.flow.problem.q).to(dtype)
            self._single_offset = linear.affine(scaled, scaled)
        return self._single_offset

    def _linear(self, dtype: torch.dtype) -> LinearMap:
        owner = self.flow.reflection
        return owner if dtype == owner.dtype else owner.remember("other precision", None, lambda: owner.to(dtype))

    def _kernel(self, dtype: torch.dtype, rows: slice) -> Kernel:
        flow, linear = self.flow, self._linear(dtype)
        offset = self._offset(dtype, linear)[rows]
        step = flow.step.to(dtype) if isinstance(flow.step, Tensor) else flow.step
        if self.relaxation != 1:
            linear, offset = linear.combined(self.relaxation, 0.0), self.relaxation * offset
        activation = flow.problem.activation.rows(rows)
        offset = linear.laid_out(offset)
        return linear, offset, activation.with_tensors([t.to(dtype) for t in activation.tensors()]).reflection(step)


def _usual_decay(flow: BoundPeacemanRachford) -> float:
    """What a step usually leaves of an error: sampled, and no more than the proved factor where there is one."""
    # a matrix and its transpose decay alike, so that the forward and the adjoint solve share one sample
    owner, factor = flow.problem.linear.untransposed, flow.prediction.factor
    sampled = owner.remember("usual decay", flow.step, lambda: sampled_decay(flow.reflection))
    return sampled if factor is None else min(sampled, factor)


def _blocks(state: Tensor) -> Iterator[slice]:
    rows = max(64, _BLOCK_BYTES // (state.shape[-1] * state.element_size()))
    return (slice(start, start + rows) for start in range(0, state.shape[0], rows))
