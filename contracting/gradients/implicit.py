r"""Gradients of an equilibrium. This is the only place that knows the implicit function theorem.

At z = σ(Wz + q) with slopes J = σ'(Wz + q) taken at the pre-activation, dz = (I − JW)⁻¹J(dW z + dq). For a cotangent g
the gradient with respect to q is w = J(Wᵀw + g): an equilibrium problem again (``EquilibriumProblem.adjoint``), solved
by the same loop with its own tolerance and its own checked status. And because it is one, *its* gradient is given by
the same function, so that derivatives of every order are right. Under Condition 1, I − JW is nonsingular for all slopes
in [0, 1]; at a kink of σ the activation says which element of the Clarke set it takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

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


@dataclass(frozen=True)
class Asked:
    """A problem and how it is to be solved; ``seen`` is told what was measured."""

    problem: EquilibriumProblem
    method: Method
    stop: Stop
    z0: Tensor | None = None
    seen: LastSolves | None = None

    def solved(self) -> Tensor:
        """z; what was measured is told to ``seen`` also where the solve fails."""
        solution: Solution | None = None
        try:
            solution = solve(self.problem, self.method, z0=self.z0, stop=self.stop)
        except SolveError as error:
            solution = error.solution
            raise
        finally:
            if self.seen is not None and solution is not None:
                self.seen.forward = solution.record
        return solution.z

    def detached(self) -> Asked:
        """The same without a graph."""
        return replace(self, problem=self.problem.detach())


class Backward(ABC):
    """How the equilibrium is differentiated; one of your own brings ``differentiable``."""

    def equilibrium(
        self,
        problem: EquilibriumProblem,
        method: Method,
        stop: Stop,
        z0: Tensor | None = None,
        seen: LastSolves | None = None,
    ) -> Tensor:
        """z with z = σ(Wz + q), differentiable in the tensors of the problem; ``seen`` is told what was measured."""
        return self.differentiable(Asked(problem, method, stop, z0, seen))

    @abstractmethod
    def differentiable(self, asked: Asked) -> Tensor:
        """z of what is asked, (batch, n), on the graph of its problem."""


class ByAdjoint(Backward):
    """Differentiate by the adjoint problem w = J(Wᵀw + g); one of your own brings ``cotangent``."""

    def differentiable(self, asked: Asked) -> Tensor:
        if not torch.is_grad_enabled():
            return asked.detached().solved()
        try:
            z: Tensor = _Equilibrium.apply(self, asked, *asked.problem.tensors())  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # NotImplementedError is one
            if "setup_context" in str(error) or "jvp function" in str(error):
                raise PreconditionError(_NO_TRANSFORMS) from error
            raise
        return z

    @abstractmethod
    def cotangent(self, adjoint: EquilibriumProblem, seen: LastSolves) -> Tensor:
        """w of an adjoint problem whose largest entry of g is one in every row: (batch, n)."""


@dataclass(eq=False)
class WarmAdjoint:
    """Starts each backward pass at the adjoint solution of the last one: for a stream, whose gradients change slowly.

    Where the last one was of other rows, dtype or device, the pass starts from zero. It changes how many steps are
    taken, and the gradient by no more than the tolerance.

    Attributes:
        w: the last adjoint solution, (batch, n), for a cotangent whose largest entry in each row is one; or None.
    """

    w: Tensor | None = field(default=None, repr=False)

    def beside(self, q: Tensor) -> Tensor | None:
        """w where it fits an adjoint problem with this right side."""
        w = self.w
        fits = w is not None and (w.shape, w.dtype, w.device) == (q.shape, q.dtype, q.device)
        return w if fits else None


@dataclass(frozen=True, kw_only=True)
class Implicit(ByAdjoint):
    """Differentiate through the equilibrium equation, whatever solver found the equilibrium; in reverse mode.

    Memory does not depend on the number of iterations, backward may be repeated, derivatives of any order are right.

    Args:
        solver: method for the adjoint problem; None takes ``Automatic()``: PeacemanRachford where that is fast (the
            step and the factorisation of the forward solve serve again) with Newton's method for rows that it does not
            bring to the tolerance, otherwise Newton's method, which takes one linear solve per row.
        stop: tolerance of the adjoint solve, for cotangents scaled to a largest entry of one. An ``atol`` below the
            rounding error of that is raised to it.
        start: where the adjoint solves start; None starts each at zero. Of one stream, and of no other.

    Raises:
        SolveError: in backward, if the adjoint solve of a row fails.
        PreconditionError: under ``torch.func`` or forward-mode differentiation.
    """

    solver: Method | None = None
    stop: Stop = field(default_factory=Stop)
    start: WarmAdjoint | None = None

    def cotangent(self, adjoint: EquilibriumProblem, seen: LastSolves) -> Tensor:
        solver, stop = self.adjoint_solver(adjoint), self.adjoint_stop(adjoint)
        start = None if self.start is None else self.start.beside(adjoint.q)
        try:
            # the adjoint of this problem, for second derivatives, is another
            w = replace(self, start=None).equilibrium(adjoint, solver, stop, start, seen)
        except SolveError as error:
            raise SolveError(f"the adjoint solve of the backward pass failed: {error}", error.solution) from None
        if self.start is not None:
            self.start.w = w.detach()
        return w

    def adjoint_stop(self, problem: EquilibriumProblem) -> Stop:
        """The tolerance of an adjoint problem; where the gradient vanishes, only rounding is left to compare with."""
        stop = self.stop.resolved(problem)
        return replace(stop, atol=max(stop.atol or 0.0, 8 * torch.finfo(problem.q.dtype).eps))

    def adjoint_solver(self, problem: EquilibriumProblem) -> Method:
        """The method that solves an adjoint problem."""
        return Automatic() if self.solver is None else self.solver


@dataclass(frozen=True, kw_only=True)
class Unrolled(Backward):
    """Differentiate through every iteration of the solver: memory grows with the iterations. For comparison.

    The gradient is that of the iterate that is returned, so it is as accurate as the solve is.
    """

    def differentiable(self, asked: Asked) -> Tensor:
        return asked.solved()


class _Equilibrium(torch.autograd.Function):
    """(problem tensors) ↦ z; its backward is a differentiable expression in z, the tensors and the cotangent."""

    @staticmethod
    def forward(ctx: Any, backward: ByAdjoint, asked: Asked, *tensors: Tensor) -> Tensor:
        z = asked.detached().solved()
        ctx.settings, ctx.asked = backward, asked
        ctx.save_for_backward(z, *tensors)
        return z

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        z = ctx.saved_tensors[0]  # carries this node as its history, so that higher derivatives see z move
        with full_precision(z):
            return None, None, *_gradients(ctx.settings, ctx.asked, z, cotangent)


def _gradients(settings: ByAdjoint, asked: Asked, z: Tensor, cotangent: Tensor) -> list[Tensor]:
    """With respect to the tensors of the problem."""
    problem = asked.problem
    if not torch.is_grad_enabled():
        problem = problem.detach()
    # of unit size, so that tolerances mean the same however small a gradient is
    size = cotangent.detach().abs().amax(-1, keepdim=True)
    size = torch.where(size == 0, 1.0, size)
    adjoint = problem.adjoint(problem.slopes(z), cotangent / size)
    seen = LastSolves()
    try:
        w = settings.cotangent(adjoint, seen)
    finally:
        if asked.seen is not None:
            asked.seen.backward = seen.forward
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
