"""Implicit integrators: backward Euler with Newton inside, and pseudo-transient continuation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.flows.base import BoundFlow
from contracting.integrators.base import FlowIteration, TimeStepping
from contracting.linear_systems import solve_rows
from contracting.loop.method import Iteration, State
from contracting.loop.records import Stop
from contracting.problem import EquilibriumProblem

_REDUCTION = 0.1  # contraction per backward Euler step that the automatic step aims at
_NEWTON_STEPS = 12
_DEFAULT_STEP = 1.0  # one time constant of the flow, where no rate is proved


@dataclass(frozen=True, kw_only=True)
class BackwardEuler(TimeStepping):
    r"""s⁺ = s + h f(s⁺), order 1, contractive for every h where the flow contracts (the proximal-point method).

    Each step is solved by Newton's method; a row whose Newton iteration does not converge repeats the step with a
    quarter of h.

    Args:
        flow: which flow to integrate.
        step: h in units of the flow's time constant; None takes the step with factor 1/(1 + ch) = 0.1 from the proved
            rate c of the flow, or h = 1 where no rate is proved.
    """


    def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        """The integrator on one problem."""
        flow = self.flow_on(problem)
        step = self.step
        if step is None:
            step = _DEFAULT_STEP if flow.rate is None else (1 / _REDUCTION - 1) / flow.rate
        return _BackwardEulerIteration(flow, step)


class _BackwardEulerIteration(FlowIteration):
    # state: s, per-row step h
    def __init__(self, flow: BoundFlow, step: float):
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
        return torch.where(accept[:, None], s, start), torch.where(accept, h, h / 4)


@dataclass(frozen=True, kw_only=True)
class PseudoTransient(TimeStepping):
    r"""s⁺ = s + (I/h − f'(s))⁻¹ f(s) with a step h that grows as the residual falls: from an ODE step to Newton's.

    Linearly implicit Euler with switched evolution relaxation, h⁺ = h‖f(s)‖/‖f(s⁺)‖ per row; a step that more than
    doubles ‖f‖ is repeated with a quarter of h.

    Args:
        flow: which flow to integrate.
        step: first h in units of the flow's time constant; None takes h = 1.
    """


    def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        """The integrator on one problem."""
        return _PseudoTransientIteration(self.flow_on(problem), self.step or _DEFAULT_STEP)


class _PseudoTransientIteration(FlowIteration):
    # state: s, f(s), per-row step h
    def __init__(self, flow: BoundFlow, step: float):
        super().__init__(flow)
        self.first_step = step

    def init(self, z0: Tensor) -> State:
        state = self.flow.init(z0)
        return state, self.flow(0.0, state), z0.new_full((z0.shape[0],), self.first_step)

    def step(self, state: State) -> State:
        s, field_, h = state
        new = s + solve_rows(_shifted(self.flow, s, h), field_)
        new_field = self.flow(0.0, new)
        ratio = torch.linalg.vector_norm(field_, dim=-1) / torch.linalg.vector_norm(new_field, dim=-1).clamp_min(1e-300)
        accept = torch.isfinite(ratio) & (ratio >= 0.5)
        grown = (h * ratio.clamp(0.5, 20.0)).clamp_max(1e12)
        chosen = accept[:, None]
        return (
            torch.where(chosen, new, s),
            torch.where(chosen, new_field, field_),
            torch.where(accept, grown, h / 4),
        )


def _shifted(flow: BoundFlow, state: Tensor, step: Tensor) -> Tensor:
    """I/h − f'(s), one matrix per row."""
    matrices = -flow.jacobian(state)
    matrices.diagonal(dim1=-2, dim2=-1).add_(1 / step[:, None])
    return matrices
