r"""Gradients of a steady state f(s, θ) = 0, on the graph that f itself makes.

With A = −(∂f/∂s)⁻¹ at the solution, the chord iteration s ← s + A f(s, θ) is at rest there; and as a function of θ each
of its steps, begun at the solution, is right to one more order: if s differs from s*(θ) by O(δᵏ), then s + A f(s, θ)
differs from it by (I + A ∂f/∂s)·O(δᵏ) + O(δ²ᵏ) = O(δᵏ⁺¹), where δ is the change of θ. So two steps, in which A is a
constant, have the first and second derivatives of s*. Their values need no A, which is found when a gradient arrives.
Whatever tensor f works with is reached, because the graph is that of f.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from contracting.errors import PreconditionError
from contracting.flows.steady import FieldProblem

_ORDERS = 2
# A Jacobian, scaled so that its entries are of comparable size, whose condition number is above this share of 1/(n·eps)
# is singular as far as one can tell.
_SINGULAR = 0.1
# Within the Newton step that is left at the solution the Jacobian may change by this share of itself. By Kantorovich's
# theorem a half is where a root ends to be isolated; at a double root the change is a half, at a triple one more.
_CHANGE = 0.25


def attached(problem: FieldProblem, s: Tensor, good: Tensor) -> Tensor:
    """The steady state s on the graph of the field, (batch, n); rows that are not ``good`` have no gradient.

    Raises:
        PreconditionError: in backward, if the Jacobian at a row is singular, or a third derivative is asked for.
    """
    value = problem.residual(s)
    if not value.requires_grad:
        return s
    chord = _Chord(problem, s, good)
    once = s + _Step.apply(value, chord)  # type: ignore[no-untyped-call]
    twice = once + _Step.apply(problem.residual(once), chord)  # type: ignore[no-untyped-call]
    twice = _Limit.apply(twice, once, _ORDERS)  # type: ignore[no-untyped-call]
    return torch.where(good[:, None], twice, s)


class _Chord:
    """A = −(∂f/∂s)⁻¹ at the solution, a constant."""

    def __init__(self, problem: FieldProblem, s: Tensor, good: Tensor):
        self.problem, self.s, self.good = problem, s, good

    def transposed(self, cotangent: Tensor) -> Tensor:
        """Aᵀg: (batch, n) -> (batch, n)."""
        factors, pivots = self._factored
        return -torch.linalg.lu_solve(factors, pivots, cotangent[:, :, None], adjoint=True)[:, :, 0]

    @cached_property
    def _factored(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            jacobian = self._jacobian(self.s)
            self._refuse_singular(jacobian)
            factors, pivots, _ = torch.linalg.lu_factor_ex(jacobian)
            return factors, pivots

    def _jacobian(self, s: Tensor) -> Tensor:
        identity = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
        return torch.where(self.good[:, None, None], self.problem.jacobian(s), identity)

    def _refuse_singular(self, jacobian: Tensor) -> None:
        s, n = self.s, self.s.shape[1]
        if not jacobian.numel():
            return
        columns = self.problem.units(s)[:, None, :]
        rows = (jacobian * columns).abs().amax(-1, keepdim=True)
        rows = torch.where(rows > 0, rows, 1.0)
        scaled = jacobian * columns / rows
        inverse, failed = torch.linalg.inv_ex(scaled)
        limit = _SINGULAR / (n * torch.finfo(s.dtype).eps)
        singular = ~(_size(scaled) * _size(inverse) < limit) | (failed > 0)
        step = -(inverse @ (self.problem.residual(s)[:, :, None] / rows))[:, :, 0] * columns[:, 0]
        ahead = self._jacobian(torch.where(singular[:, None], s, s + step))
        multiple = ~(_size(inverse @ ((ahead - jacobian) * columns / rows)) <= _CHANGE)
        bad = torch.nonzero(self.good & (singular | multiple)).flatten().tolist()
        if bad:
            shown = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
            raise PreconditionError(
                f"the steady state has no gradient in rows {shown}: the Jacobian of f is singular there, or changes "
                "within the error of the answer, as where two steady states meet or along a line of them. Move the "
                "parameters away from there, take a conserved quantity out of f, or cut the graph with .detach()"
            )


def _size(matrices: Tensor) -> Tensor:
    """The largest sum of absolute entries of a row: (batch, n, n) -> (batch,)."""
    return matrices.abs().sum(-1).amax(-1)


class _Step(torch.autograd.Function):
    """f ↦ A f for f = 0: nothing, with the gradient Aᵀ; linear, so that autograd has all that follows."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, chord: _Chord) -> Tensor:
        ctx.chord = chord
        return torch.zeros_like(value)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.chord.transposed(cotangent), None


class _Limit(torch.autograd.Function):
    """A tensor as it is, of which as many derivatives may be taken as are left; the next one is refused.

    ``witness`` depends on the same parameters. A gradient of zero that depends on it is added to its own, so that every
    later pass comes by here.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, witness: Tensor, left: int) -> Tensor:
        ctx.left = left
        ctx.save_for_backward(witness)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.left == 0:
            raise PreconditionError(
                "a steady state of a field has first and second derivatives only; the equilibrium of an "
                "EquilibriumProblem has all of them, by Implicit()"
            )
        if not torch.is_grad_enabled():
            return cotangent, None, None
        (witness,) = ctx.saved_tensors
        return cotangent, _Limit.apply(torch.zeros_like(witness), witness, ctx.left - 1), None  # type: ignore[no-untyped-call]
