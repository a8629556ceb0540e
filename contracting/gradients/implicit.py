r"""Gradients of an equilibrium. This is the only place that knows the implicit function theorem.

At z = σ(Wz + q) with slopes J = σ'(Wz + q) taken at the pre-activation, dz = (I − JW)⁻¹J(dW z + dq). For a cotangent g
the gradient with respect to q is w = J(Wᵀw + g): an equilibrium problem again (``EquilibriumProblem.adjoint``), solved
by the same loop with its own tolerance and its own checked status. And because it is one, *its* gradient is given by
the same function, so that derivatives of every order are right. Under Condition 1, I − JW is nonsingular for all slopes
in [0, 1]; at a kink of σ the activation says which element of the Clarke set it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from contracting.errors import PreconditionError
from contracting.loop.method import Method
from contracting.loop.records import LastSolves, Solution, SolveError, Stop
from contracting.loop.run import solve
from contracting.precision import full_precision
from contracting.problem import EquilibriumProblem
from contracting.solvers.automatic import Automatic

_NO_TRANSFORMS = (
    "torch.func and forward-mode differentiation cannot follow a solve, whose number of steps depends on the data: use "
    "torch.autograd (torch.autograd.functional.jacobian for a Jacobian), or the reverse mode of torch.func (grad, "
    "jacrev, vmap) on FixedIterations(layer, tolerance=…), which takes a number of steps set in advance"
)


class Backward(Protocol):
    """How the equilibrium is differentiated."""

    def equilibrium(
        self,
        problem: EquilibriumProblem,
        method: Method,
        stop: Stop,
        z0: Tensor | None = None,
        seen: LastSolves | None = None,
    ) -> Tensor:
        """z with z = σ(Wz + q), differentiable in the tensors of the problem; ``seen`` is told what was measured."""
        ...


@dataclass(frozen=True, kw_only=True)
class Implicit:
    """Differentiate through the equilibrium equation, whatever solver found the equilibrium; in reverse mode.

    Memory does not depend on the number of iterations, backward may be repeated, derivatives of any order are right.

    Args:
        solver: method for the adjoint problem; None takes ``Automatic()``: PeacemanRachford where that is fast (the
            step and the factorisation of the forward solve serve again) with Newton's method for rows that it does not
            bring to the tolerance, otherwise Newton's method, which takes one linear solve per row.
        stop: tolerance of the adjoint solve, for cotangents scaled to a largest entry of one. An ``atol`` below the
            rounding error of that is raised to it.

    Raises:
        SolveError: in backward, if the adjoint solve of a row fails.
        PreconditionError: under ``torch.func`` or forward-mode differentiation.
    """

    solver: Method | None = None
    stop: Stop = field(default_factory=Stop)

    def equilibrium(
        self,
        problem: EquilibriumProblem,
        method: Method,
        stop: Stop,
        z0: Tensor | None = None,
        seen: LastSolves | None = None,
    ) -> Tensor:
        """z with z = σ(Wz + q), (batch, n), differentiable in the tensors of the problem."""
        if not torch.is_grad_enabled():
            return seen_solve(problem.detach(), method, stop, z0, seen)
        call = _Call(problem, method, stop, z0, seen, self)
        try:
            z: Tensor = _Equilibrium.apply(call, *problem.tensors())  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # NotImplementedError is one
            if "setup_context" in str(error) or "jvp function" in str(error):
                raise PreconditionError(_NO_TRANSFORMS) from error
            raise
        return z

    def adjoint_stop(self, problem: EquilibriumProblem) -> Stop:
        """The tolerance of an adjoint problem; where the gradient vanishes, only rounding is left to compare with."""
        stop = self.stop.resolved(problem)
        return replace(stop, atol=max(stop.atol or 0.0, 8 * torch.finfo(problem.q.dtype).eps))

    def adjoint_solver(self, problem: EquilibriumProblem) -> Method:
        """The method that solves an adjoint problem."""
        return Automatic() if self.solver is None else self.solver


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """Differentiate through every iteration of the solver: memory grows with the iterations. For comparison.

    The gradient is that of the iterate that is returned, so it is as accurate as the solve is.
    """

    def equilibrium(
        self,
        problem: EquilibriumProblem,
        method: Method,
        stop: Stop,
        z0: Tensor | None = None,
        seen: LastSolves | None = None,
    ) -> Tensor:
        """z with z = σ(Wz + q), (batch, n), differentiable through the iterations."""
        return seen_solve(problem, method, stop, z0, seen)


def seen_solve(
    problem: EquilibriumProblem, method: Method, stop: Stop, z0: Tensor | None, seen: LastSolves | None
) -> Tensor:
    """z, and what was measured in ``seen``, also where the solve fails."""
    solution: Solution | None = None
    try:
        solution = solve(problem, method, z0=z0, stop=stop)
    except SolveError as error:
        solution = error.solution
        raise
    finally:
        if seen is not None and solution is not None:
            seen.forward = solution.record
    return solution.z


@dataclass(frozen=True)
class _Call:
    problem: EquilibriumProblem
    method: Method
    stop: Stop
    z0: Tensor | None
    seen: LastSolves | None
    backward: Implicit


class _Equilibrium(torch.autograd.Function):
    """(problem tensors) ↦ z; its backward is a differentiable expression in z, the tensors and the cotangent."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> Tensor:
        z = seen_solve(call.problem.detach(), call.method, call.stop, call.z0, call.seen)
        ctx.call = call
        ctx.save_for_backward(z, *tensors)
        return z

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        z = ctx.saved_tensors[0]  # carries this node as its history, so that higher derivatives see z move
        with full_precision(z):
            return None, *_gradients(ctx.call, z, cotangent)


def _gradients(call: _Call, z: Tensor, cotangent: Tensor) -> list[Tensor]:
    """With respect to the tensors of the problem."""
    problem = call.problem
    settings = call.backward
    if not torch.is_grad_enabled():
        problem = problem.detach()
    # of unit size, so that tolerances mean the same however small a gradient is
    size = cotangent.detach().abs().amax(-1, keepdim=True)
    size = torch.where(size == 0, 1.0, size)
    adjoint = problem.adjoint(problem.slopes(z), cotangent / size)
    seen = LastSolves()
    try:
        solver, stop = settings.adjoint_solver(adjoint), settings.adjoint_stop(adjoint)
        w = settings.equilibrium(adjoint, solver, stop, seen=seen)
    except SolveError as error:
        raise SolveError(f"the adjoint solve of the backward pass failed: {error}", error.solution) from None
    finally:
        if call.seen is not None:
            call.seen.backward = seen.forward
    gradients = _activation_gradients(problem, z, adjoint, w, size)
    w = size * w
    return [w, *problem.linear.pullback(z, w), *gradients]


def _activation_gradients(
    problem: EquilibriumProblem, z: Tensor, adjoint: EquilibriumProblem, w: Tensor, size: Tensor
) -> list[Tensor]:
    """Gradients of σ's own tensors: the cotangent of σ's output at fixed Wz + q is u = Wᵀw + g."""
    activation = problem.activation
    if not activation.tensors():
        return []
    v = problem.preactivation(z)
    vjp: Callable[[Tensor], tuple[Tensor, ...]]
    _, vjp = torch.func.vjp(lambda *tensors: activation.with_tensors(tensors)(v), *activation.tensors())  # type: ignore[misc]
    return list(vjp(size * adjoint.preactivation(w)))
