"""Implicit integrators: backward Euler with Newton inside, and pseudo-transient continuation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from contracting.flows.base import SteadyFlow
from contracting.integrators.base import FlowIteration, TimeStepping
from contracting.linear_systems import solve_rows
from contracting.loop.method import Iteration, State
from contracting.loop.records import Stop
from contracting.problem import Problem

_REDUCTION = 0.1  # The automatic step of backward Euler is to contract by this factor.
_NEWTON_STEPS = 12  # A step of backward Euler that Newton's method has not solved by then is repeated, shorter.
_DEFAULT_STEP = 1.0  # Where no rate is proved, a step begins with one time constant of the flow.
# Pseudo-transient steps: half of what is tolerated leaves room for the next step to differ. A step is at most repeated
# with a tenth of h, and grows at most twentyfold.
_AIM, _SHRINK, _GROW = 0.5, 0.1, 20.0
_LONGEST = 1e12  # A step lasts at most so many time constants, at which 1/h is far below the rounding of f'.


@dataclass(frozen=True, kw_only=True)
class BackwardEuler(TimeStepping):
    r"""s⁺ = s + h f(s⁺), order 1, contractive for every h where the flow contracts (the proximal-point method).

    Each step is solved by Newton's method; a row whose Newton iteration does not converge repeats the step with a
    quarter of h, which then grows back twofold per step.

    Args:
        flow: which flow to integrate.
        step: h in units of the flow's time constant; None takes the step with factor 1/(1 + ch) = 0.1 from the proved
            rate c of the flow, or h = 1 where no rate is proved.
    """

    solves_systems: ClassVar[bool] = True

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        flow = self.flow_on(problem)
        step = self.step
        if step is None:
            step = _DEFAULT_STEP if flow.rate is None else (1 / _REDUCTION - 1) / flow.rate
        return _BackwardEulerIteration(flow, step)


class _BackwardEulerIteration(FlowIteration):
    # state: s, per-row step h
    def __init__(self, flow: SteadyFlow, step: float):
        super().__init__(flow)
        self.step_size = step

    def init(self, z0: Tensor) -> State:
        return self.flow.init(z0), z0.new_full((z0.shape[0],), float(self.step_size or 1.0))

    def step(self, state: State) -> State:
        start, h = state
        s = start
        tolerance = 1e3 * torch.finfo(s.dtype).eps
        best = torch.full_like(h, float("inf"))
        done = torch.zeros_like(h, dtype=torch.bool)
        for _ in range(_NEWTON_STEPS):
            # g(s) = (s − start)/h − f(s)
            defect = (s - start) / h[:, None] - self.flow(0.0, s)
            direction = solve_rows(_shifted(self.flow, s, h), defect)
            size = torch.linalg.vector_norm(defect, dim=-1)
            scale = torch.linalg.vector_norm(s, dim=-1) + torch.linalg.vector_norm(start, dim=-1)
            best = torch.minimum(best, size)
            s = torch.where(done[:, None], s, s - direction)
            done = done | (torch.linalg.vector_norm(direction, dim=-1) <= tolerance * scale)
            if bool(done.all()):
                break
        finite = torch.isfinite(s).all(-1)
        accept = done & finite
        # a row that never moves again (h below rounding) is left to the loop's patience
        assert self.step_size is not None
        return torch.where(accept[:, None], s, start), torch.where(accept, (2 * h).clamp_max(self.step_size), h / 4)


@dataclass(frozen=True, kw_only=True)
class PseudoTransient(TimeStepping):
    r"""s⁺ = s + (I/h − f'(s))⁻¹ f(s) with a step h that grows as the residual falls: from an ODE step to Newton's.

    Linearly implicit Euler, each row with its own h. A step is accepted where it nearly is one of implicit Euler,
    ‖f(s⁺) − (s⁺ − s)/h‖ ≤ ‖s⁺ − s‖/h, or where it halves ‖f‖; both hold by a wider margin the smaller h is, or the
    nearer the steady state, and h follows that margin. So a row cannot get stuck where f is saturated or has kinks: it
    follows the flow, slowly at worst.

    Args:
        flow: which flow to integrate.
        step: first h in units of the flow's time constant; None takes h = 1.
    """

    solves_systems: ClassVar[bool] = True

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        return _PseudoTransientIteration(self.flow_on(problem), self.step or _DEFAULT_STEP)


class _PseudoTransientIteration(FlowIteration):
    # state: s, f(s), per-row step h
    def __init__(self, flow: SteadyFlow, step: float):
        super().__init__(flow)
        self.first_step = step

    def init(self, z0: Tensor) -> State:
        state = self.flow.init(z0)
        return state, self.flow(0.0, state), z0.new_full((z0.shape[0],), self.first_step)

    def step(self, state: State) -> State:
        s, field_, h = state
        new = s + solve_rows(_shifted(self.flow, s, h), field_)
        new_field = self.flow(0.0, new)
        tiny = torch.finfo(h.dtype).tiny
        predicted = (new - s) / h[:, None]  # f(s) + f'(s)(s⁺ − s)
        missed = _norm(new_field - predicted) / _norm(predicted).clamp_min(tiny)
        left = _norm(new_field) / _norm(field_).clamp_min(tiny)
        size = torch.minimum(missed, 2 * left).nan_to_num(float("inf"))
        accept = (size <= 1)[:, None]
        h = h * (_AIM / size.clamp_min(tiny)).clamp(_SHRINK, _GROW)
        return torch.where(accept, new, s), torch.where(accept, new_field, field_), h.clamp_max(_LONGEST)


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1)


def _shifted(flow: SteadyFlow, state: Tensor, step: Tensor) -> Tensor:
    """I/h − f'(s), one matrix per row."""
    matrices = -flow.jacobian(state)
    matrices.diagonal(dim1=-2, dim2=-1).add_(1 / step[:, None])
    return matrices
