"""The gradient of a trajectory of torchdiffeq: by its adjoint equation or by backpropagation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracting.errors import InputError
from contracting.gradients.implicit import Asked, Backward
from contracting.integrators.step_control import row_rms
from contracting.integrators.torchdiffeq_adapter import KINDS, Segments, TorchDiffEq
from contracting.loop.method import Family, Iteration, Method
from contracting.loop.records import Stop
from contracting.problem import EquilibriumProblem, Problem


@dataclass(frozen=True, kw_only=True)
class TorchDiffEqAdjoint(Backward):
    """Differentiate the trajectory instead of the equilibrium equation, for comparison with ``Implicit()``.

    The problem is solved from zero, whatever z0 is, without gradient, which tells how long the trajectory has to be; a
    second pass over that time is differentiable. The value is that of the solve; the gradient agrees with the implicit
    one up to the tolerances. Every row is integrated as long as the slowest, and for at least log(1/rtol)/rate time
    constants (with the proved rate of the flow, as far as it is in [1/4, 1]), as the gradient may converge more slowly
    than the residual, and a row that starts at its equilibrium has a gradient too. A contracting flow expands backwards
    in time, therefore the adjoint pass starts anew from states that are stored about as densely as the forward
    integrator steps.

    Args:
        backprop: backpropagate through the operations of the integrator, in memory that grows with the time steps,
            instead of integrating torchdiffeq's adjoint equation.

    Raises:
        InputError: if the solver is not a TorchDiffEq, or one of scipy; in backward, if the gradient is to have a graph
            (the adjoint equation has no second derivative).
    """

    backprop: bool = False

    def differentiable(self, asked: Asked) -> Tensor:
        problem, method = asked.problem, asked.method
        if not isinstance(method, TorchDiffEq) or KINDS[method.method].scipy:
            raise InputError(
                "TorchDiffEqAdjoint() differentiates the trajectory of a method of torchdiffeq itself, such as "
                f"TorchDiffEq('dopri5'), got {method!r}; use Implicit(), which takes any solver"
            )
        recorder = _Recorder(replace(method, per_row=False))
        z = replace(asked.detached(), method=recorder, z0=None).solved()
        sources = [tensor for tensor in problem.tensors() if tensor.requires_grad]
        if not sources or not torch.is_grad_enabled():
            return z
        path = self._path(problem, recorder.iteration, sources)
        return z + (path - path.detach())

    def _path(self, problem: EquilibriumProblem, iteration: Segments, sources: list[Tensor]) -> Tensor:
        """The end of the trajectory from zero, on the graph of the problem."""
        flow = iteration.settings.flow_on(problem)
        control = _AdjointControl(max(iteration.stop.rtol or 0.0, torch.finfo(problem.q.dtype).eps))
        accuracy = problem.q.new_full((problem.batch,), iteration.kind.accuracy)
        adjoint = {
            "adjoint_params": sources,
            "adjoint_rtol": 0.0,
            "adjoint_atol": 1.0,  # the norm measures errors in units of what is allowed
            "adjoint_options": {**iteration.grid_options(), "norm": control.norm},
        }
        segments = list(iteration.segments)
        total = sum(span for span, _ in segments)
        missing = -math.log(control.tolerance) / min(1.0, max(0.25, iteration.rate)) - total
        if missing > 0:
            density = sum(steps for _, steps in segments) / max(total, 1.0)
            segments.append((missing, math.ceil(missing * max(1.0, density))))
        s = flow.init(problem.zeros())
        for span, steps in segments:
            if self.backprop:
                s, _ = iteration.integrate(flow, s, span, accuracy)
            else:
                points = steps if iteration.step_size is None else round(span / iteration.step_size)
                s, _ = iteration.integrate(flow, s, span, accuracy, adjoint=adjoint, points=max(1, points))
        z = flow.read(s)
        if not self.backprop:
            z.register_hook(control.start)  # type: ignore[no-untyped-call]
        return z


class _Recorder(Method):
    """A method that keeps the iteration it was bound to."""

    def __init__(self, method: TorchDiffEq):
        self.method = method

    @property
    def family(self) -> Family:
        return self.method.family

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        self.iteration = Segments(problem, stop, self.method)
        return self.iteration

    def __repr__(self) -> str:
        return repr(self.method)


class _AdjointControl:
    """Error control of the adjoint equation: of the worst row, relative to that row's cotangent."""

    def __init__(self, tolerance: float):
        self.tolerance = tolerance
        self.scale = torch.ones(())

    def start(self, cotangent: Tensor) -> None:
        """Called in backward, when the cotangent of z arrives."""
        if torch.is_grad_enabled():
            raise InputError(
                "torchdiffeq's adjoint has no second derivative: use Implicit(), or TorchDiffEqAdjoint(backprop=True)"
            )
        self.scale = (self.tolerance * row_rms(cotangent)).clamp_min(torch.finfo(cotangent.dtype).tiny)

    def norm(self, state: tuple[Tensor, ...]) -> Tensor:
        """Of (time, s, adjoint, gradients): the gradients are integrals of the adjoint, and follow it."""
        return (row_rms(state[2]) / self.scale).max()
