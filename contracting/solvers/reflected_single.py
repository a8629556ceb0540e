r"""Peaceman–Rachford of a float64 problem with float32 steps: iterative refinement, as for linear systems.

The iterate is u = ū + s·d with a float64 point ū, a float32 change d and a size s for each row. With M = 2K − I,

    d ← M (R_f(ū + s·d) − R_f(ū))/s + r,    r = (R_A R_f ū − ū)/s = (M + I) α(Wz̄ + q − v̄)/s,

where z̄ = prox(ū) and v̄ = z̄ + (ū − z̄)/α. Rounding is relative to the change, no longer to the iterate. Wz̄ + q, the one
product in float64, is what a check of the residual computes anyway, so ū moves to the iterate at every check; and where
none comes before float32 has given what it can. So what is reached is as accurate as with float64 steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from contracting.activations.base import Activation, Reflection
from contracting.flows.splitting import BoundPeacemanRachford, driven, reflected_steps
from contracting.loop.method import State
from contracting.loop.records import Stop
from contracting.maps.base import LinearMap
from contracting.solvers.forecast import Forecast
from contracting.solvers.reflected import MOST, FoldedIteration, blocks_of, together
from contracting.solvers.relaxed import Relaxed
from contracting.types import Step

_FLOOR = 0.7 * torch.finfo(torch.float32).eps  # times 1 + ‖W‖: the residual that all rows reach in float32
_EXACT = 0.4 / 0.7  # of that where the offset 2αKq is computed in float64: q can be much larger than u, and cancels
_USUAL = 0.8  # of the floor is what nine rows in ten have, and the slowest row hardly is the one that rounds most
_MOST_ROUNDING = 0.9  # of the tolerance is expected to be rounding, whose square leaves that much less for the error
_SHARE = 0.85  # of the steps predicted down to that, before ū moves: the last of them would only round
_SLOWEST = 1 - 1e-6  # proved factor above which the rounding of M to float32 might undo the contraction
_SLOWEST_USUAL = 1 - 1e-4  # the same for the usual decay
_EXPONENT = 60  # only rows with entries beyond 2^±60 are scaled


def refinable(flow: BoundPeacemanRachford, forecast: Forecast | None) -> bool:
    """Whether float32 steps pay: the problem is float64, and its steps contract more than float32 rounds."""
    if flow.problem.q.dtype != torch.float64 or (flow.prediction.factor or 0.0) > _SLOWEST:
        return False
    return forecast is not None and forecast.decay <= _SLOWEST_USUAL


class Phase(NamedTuple):
    """The state u = ū + s·d between two moves of ū."""

    base: Tensor  # ū, float64
    size: Tensor | None  # s, (rows, 1); None where every row has one, as nearly always
    change: Tensor  # d, float32
    drive: Tensor  # r, float32, times θ
    moved: int  # the step at which ū moved last
    at_zero: bool  # whether ū is zero, where the first phase of a cold start begins
    cold: bool


class RefinedIteration(FoldedIteration):
    """The iteration of ``FoldedIteration`` in float32; its state is that of ``RelaxedIteration`` or a ``Phase``."""

    def __init__(self, flow: BoundPeacemanRachford, relaxation: float, stop: Stop, forecast: Forecast | None):
        super().__init__(flow, relaxation, stop, forecast)
        floor, wanted = _FLOOR * (1 + flow.problem.linear.rough_norm), stop.rtol or 0.0
        self._exact_start = _EXACT * floor <= wanted < floor  # one float64 product instead of a move
        floor *= _EXACT if self._exact_start else 1.0
        self._phase = MOST  # steps for which ū may stay
        self._suffices = floor <= wanted  # float32 steps from ū = 0, wherever u is
        if self._suffices:
            share = 1.0 if self._exact_start else _USUAL
            rounding = min(_MOST_ROUNDING, share * floor / wanted)
            steps = self._steps_to(wanted * math.sqrt(1 - rounding**2))
            self._first_check = min(MOST, math.ceil(steps or 0.0))
        else:
            planned = 1.0 if self.forecast is None else self.forecast.steps(floor)
            self._phase = max(1, min(MOST, math.ceil(_SHARE * planned)))
        self._single = _single(flow.reflection)
        self._relaxed = self._single if relaxation == 1 else self._single.combined(relaxation, 0.0)
        self._zero = flow.problem.q.new_zeros((1, 1), dtype=torch.float32)

    def read(self, state: State) -> Tensor:
        if isinstance(state, Phase) and state.at_zero and state.size is None and self._activation.homogeneous:
            # converted after the prox, which costs less
            small = self._single_activation(slice(None)).prox(state.change, self._single_step)
            return small.to(self.flow.problem.q.dtype)
        return self.flow.read(self._whole(state))

    def _whole(self, state: State) -> Tensor:
        if not isinstance(state, Phase):
            u: Tensor = state[0]
            return u
        u = state.change.to(state.base.dtype)
        if state.size is not None:
            u = u * state.size
        return u if state.at_zero else u.add_(state.base)

    def step(self, state: State) -> State:
        return super().step(Relaxed(self._whole(state), state[-1]))

    def resume(self, state: State, preactivation: Tensor, taken: int) -> State:
        given = self._suffices and taken == 0 and not isinstance(state, Phase)
        return state if given or self._in_graph(state[0]) else self._moved_to(state, preactivation, taken)

    def advance(self, state: State, taken: int, steps: int) -> State:
        if self._in_graph(state[0]):
            return super().advance(state, taken, steps)
        with torch.no_grad():
            if isinstance(state, Phase):
                phase = state
            else:
                start = taken == 0 and (state[-1] or self._suffices)
                phase = self._start(state) if start else self._moved_to(state, None, taken)
            while steps:
                if taken - phase.moved >= self._phase:
                    phase = self._moved_to(phase, None, taken)
                few = min(steps, self._phase - (taken - phase.moved))
                phase = self._changed(phase, few, first=taken == phase.moved)
                taken, steps = taken + few, steps - few
        return phase

    def _start(self, state: State) -> Phase:
        """ū = 0: with d = u and r the offset, so that no difference of reflections is needed."""
        u, cold = state
        zero = u if cold else u.new_zeros(()).expand_as(u)
        phase = self._exactly_from(zero, cold) if self._exact_start else None
        if phase is None:
            phase = self._phase_from(zero, self.flow.problem.q, 0, at_zero=True, cold=cold)
            if phase.size is not None and not self._activation.homogeneous:
                return self._moved_to(state, None, 0)
        if not cold:  # d is known already, as if ū had moved a step before
            phase = phase._replace(change=(u if phase.size is None else u / phase.size).to(torch.float32), moved=-1)
        return phase

    def _exactly_from(self, zero: Tensor, cold: bool) -> Phase | None:
        """The state at ū = 0 with r from float64; None where rows would have to be scaled."""
        offset = self.flow.offset if self.relaxation == 1 else self.relaxation * self.flow.offset
        drive = offset.to(torch.float32)
        scaled = _sizes(drive, self.flow.problem.q) is not None
        return None if scaled else Phase(zero, None, self._unchanged(drive), drive, 0, True, cold)

    @torch.no_grad()
    def _moved_to(self, state: State, preactivation: Tensor | None, taken: int) -> Phase:
        """The same iterate with ū moved there."""
        u = self._whole(state)
        z = self.flow.read(u)
        if preactivation is None:
            preactivation = self.flow.problem.preactivation(z)
        if z.data_ptr() == u.data_ptr():  # as where σ is the identity
            error = preactivation - z
        else:
            error = torch.sub(preactivation, z.lerp_(u, 1 / self.flow.step), out=z)  # z is nobody else's
        return self._phase_from(u, error, taken, at_zero=False, cold=state[-1])

    def _phase_from(self, base: Tensor, error: Tensor, taken: int, *, at_zero: bool, cold: bool) -> Phase:
        """The state at ū, from Wz̄ + q − v̄."""
        single = error.to(torch.float32)
        size = _sizes(single, error)
        if size is not None:
            single = (error / size).to(torch.float32)
        kick = single.mul_(self._single_step)
        drive = driven(self._single, kick)
        drive = drive if self.relaxation == 1 else drive.mul_(self.relaxation)
        return Phase(base, size, self._unchanged(drive), drive, taken, at_zero, cold)

    def _unchanged(self, drive: Tensor) -> Tensor:
        """d = 0."""
        return self._zero.expand_as(drive)

    def _changed(self, phase: Phase, steps: int, *, first: bool) -> Phase:
        change = phase.change
        if first:  # from d = 0, where the reflection has not changed
            change, steps = phase.drive, steps - 1
        if steps:
            blocks = []
            for rows in blocks_of(phase.base):
                kernel = self._relaxed, phase.drive[rows], self._change_of(phase, rows)
                blocks.append(reflected_steps(*kernel, change[rows], steps, self.relaxation))
            change = together(blocks)
        return phase._replace(change=change)

    def _change_of(self, phase: Phase, rows: slice) -> Reflection:
        if phase.at_zero:  # either no row is scaled, or σ is homogeneous
            return self._single_activation(rows).reflection(self._single_step)
        sizes = None if phase.size is None else phase.size[rows]
        return self._activation.rows(rows).reflection_from(phase.base[rows], sizes, self.flow.step, torch.float32)

    @property
    def _activation(self) -> Activation:
        return self.flow.problem.activation

    def _single_activation(self, rows: slice) -> Activation:
        activation = self._activation.rows(rows)
        tensors = activation.tensors()
        return activation.with_tensors([t.to(torch.float32) for t in tensors]) if tensors else activation

    @property
    def _single_step(self) -> Step:
        step = self.flow.step
        return step.to(torch.float32) if isinstance(step, Tensor) else step


def _single(reflection: LinearMap) -> LinearMap:
    return reflection.remember("single precision", None, lambda: reflection.to(torch.float32))


def _sizes(single: Tensor, values: Tensor) -> Tensor | None:
    """A power of two for each row, (rows, 1); None where all are one: only rows near the limits of float32 are not."""
    norms = torch.linalg.vector_norm(single, dim=-1, keepdim=True)
    low, high = norms.aminmax()
    if 2.0**-_EXPONENT < float(low) and float(high) < 2.0**_EXPONENT:
        return None
    largest = values.abs().amax(-1, keepdim=True)
    exponent = torch.frexp(largest).exponent
    far = torch.isfinite(largest) & (largest > 0) & (exponent.abs() > _EXPONENT)
    size = torch.ones_like(norms, dtype=values.dtype)
    return torch.where(far, torch.ldexp(size, exponent), size) if bool(far.any()) else None
