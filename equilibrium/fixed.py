r"""A layer with a number of iterations set in advance, for compilers, exporters and ``torch.func``.

Nothing here depends on the data: Peaceman–Rachford takes the same k steps for every input, forward and in the adjoint.
How many are enough follows from the certified factor before any input is seen. With u₀ the state of z̄ = σ(0),

    ‖z_k − z*‖_Λ ≤ ρᵏ ‖I − αÃ‖ ‖q + Wz̄‖_Λ / m,

because u₀ − u* = (I − αÃ)(z̄ − z*) in the coordinates of Λ, each step contracts by ρ, reading z does not expand, and z̄
solves the inclusion for the input −Wz̄, which is m-strongly monotone.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.activations.base import Activation, PiecewiseLinear
from contracting.errors import InputError, PreconditionError
from contracting.maps.dense import Dense
from contracting.precision import as_computed, full_precision
from equilibrium.layers import EquilibriumLayer
from equilibrium.weights import NetworkWeights


class FixedIterations(nn.Module):
    r"""An equilibrium layer solved by k Peaceman–Rachford steps, whatever the input; shares the layer's parameters.

    Works under ``torch.compile(fullgraph=True)``, ``torch.export`` and ``torch.func`` (``vmap``, ``grad``, ``jacrev``;
    not in forward mode, as the compiler refuses functions that know it). The gradient is the implicit one, from k steps
    on the adjoint equation. Step and number of iterations are those of the weights at construction: make a new one, or
    call ``refresh()``, after training. There are no checks and no statuses: the bound is the promise.

    Args:
        layer: a layer with dense weights, a certified metric and a piecewise-linear activation (ReLU, HardTanh, …).
        tolerance: k is the smallest for which ‖z_k − z*‖_Λ ≤ tolerance·‖q + Wσ(0)‖_Λ for every input; for ReLU the
            right side is tolerance·‖Ux + b‖_Λ.
        iterations: k itself, in place of ``tolerance``.

    Raises:
        InputError: if both or neither of tolerance and iterations are given, or one is out of range.
        PreconditionError: if the layer's weights or activation do not qualify, or the tolerance is below rounding.
    """

    step: float
    factor: float
    iterations: int

    def __init__(self, layer: EquilibriumLayer, *, tolerance: float | None = None, iterations: int | None = None):
        super().__init__()
        if (tolerance is None) == (iterations is None):
            raise InputError("give either tolerance, for example 1e-6, or iterations, for example 40")
        if not isinstance(layer.activation, PiecewiseLinear):
            raise PreconditionError(
                f"FixedIterations needs a piecewise-linear activation such as ReLU(), got {layer.activation!r}: the "
                "proximal operators of others are root searches, which take as long as the data wants"
            )
        self.layer = layer
        self.tolerance = None if tolerance is None else checks.number("tolerance", tolerance, low=0, low_open=True)
        self._given = None if iterations is None else checks.whole_number("iterations", iterations)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute step, factor and number of iterations from the present weights."""
        weights = self.layer.weights()
        if not isinstance(weights.state, Dense):
            raise PreconditionError(f"FixedIterations needs dense weights, got {type(weights.state).__name__}")
        problem = weights.problem(weights.state.weight.new_zeros(1, weights.in_features), self.layer.activation)
        operator = problem.require_operator("FixedIterations")
        choice = operator.best_reflected
        self.step = float(choice.step)
        self.factor = operator.reflected_factor(self.step)
        self._lead = operator.forward_factor(self.step) / operator.bounds.monotonicity
        self.iterations = self._given or self._enough(torch.finfo(problem.q.dtype))

    def _enough(self, precision: torch.finfo) -> int:
        assert self.tolerance is not None
        if self.tolerance < precision.eps:
            raise PreconditionError(
                f"tolerance={self.tolerance:g} is below the rounding of {precision.dtype}, {precision.eps:.1e}: the "
                "bound on the error would not be true; ask for more, or use layer.double()"
            )
        return max(1, math.ceil(math.log(self.tolerance / self._lead) / math.log(self.factor)))

    def forward(self, x: Tensor) -> Tensor:
        """y: (..., in) -> (..., out), differentiable in x and in every parameter."""
        weights, rows, z = self._solved(x)
        with full_precision(x):
            return weights.readout(z, rows).reshape(*x.shape[:-1], self.layer.out_features)

    def equilibrium(self, x: Tensor) -> Tensor:
        """z_k: (..., in) -> (..., hidden)."""
        return self._solved(x)[2].reshape(*x.shape[:-1], self.layer.hidden_features)

    def _solved(self, x: Tensor) -> tuple[NetworkWeights, Tensor, Tensor]:
        """The weights, the rows of x and z_k of each."""
        x = as_computed("x", x, "the layer", self.layer.parameterization.example)
        checks.last_size("x", x, self.layer.in_features)
        rows = x.reshape(-1, x.shape[-1])
        with full_precision(x):
            weights = self.layer.weights()
            W = weights.state.to_dense()
            z = _equilibrium(W, weights.input_term(rows), self.layer.activation, self.step, self.iterations)
        return weights, rows, z

    @torch.no_grad()
    def error_bound(self, x: Tensor) -> Tensor:
        """The a-priori bound on ‖z_k − z*‖_Λ of each input: (..., in) -> (...), in exact arithmetic."""
        problem = self.layer.problem(x)
        if problem.metric is None:
            raise PreconditionError("the bound needs a metric, and this layer certifies none")
        start = problem.activation(torch.zeros_like(problem.q))
        size = problem.metric.norm(problem.preactivation(start))
        return (self.factor**self.iterations * self._lead * size).reshape(x.shape[:-1])

    def extra_repr(self) -> str:
        """What was set in advance."""
        return f"iterations={self.iterations}, step={self.step:.4g}, factor={self.factor:.4g}"


def _equilibrium(W: Tensor, q: Tensor, activation: Activation, step: float, iterations: int) -> Tensor:
    with torch.no_grad():
        identity = torch.eye(W.shape[0], dtype=W.dtype, device=W.device)
        reflection = 2 * torch.linalg.inv(identity + step * (identity - W)) - identity
    z: Tensor = _Fixed.apply(W, q, reflection, activation, step, iterations)  # type: ignore[no-untyped-call]
    return z


class _Fixed(torch.autograd.Function):
    """(W, q) ↦ z after k steps; its gradient comes from k steps on the adjoint equation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(W: Tensor, q: Tensor, reflection: Tensor, activation: Activation, step: float, steps: int) -> Tensor:
        scaled = step * q
        offset = scaled @ reflection.mT + scaled
        start = activation.value(torch.zeros_like(q))
        u = start + step * (start @ W.mT + q - start)
        for _ in range(steps):
            u = (2 * activation.prox_value(u, step) - u) @ reflection.mT + offset
        return activation.prox_value(u, step)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        W, q, reflection, ctx.activation, ctx.step, ctx.steps = inputs
        ctx.save_for_backward(W, q, reflection, output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        W, q, reflection, z = ctx.saved_tensors
        with full_precision(z):
            # σ is piecewise linear: its slopes are locally constant
            slopes = ctx.activation.slope((z @ W.mT + q).detach())
            return *_pullback(W, reflection, slopes, z, cotangents[0], ctx), None, None, None, None


class _FixedLinear(torch.autograd.Function):
    """(W, q) ↦ z after k steps for z = J(Wz + q) with given slopes J; its adjoint is such a problem again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(W: Tensor, q: Tensor, reflection: Tensor, slopes: Tensor, step: float, steps: int) -> Tensor:
        ratio = slopes / (step + (1 - step) * slopes)
        u = scaled = step * q
        offset = scaled @ reflection.mT + scaled
        for _ in range(steps):
            u = ((2 * ratio - 1) * u) @ reflection.mT + offset
        return ratio * u

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        W, _, reflection, slopes, ctx.step, ctx.steps = inputs
        ctx.save_for_backward(W, reflection, slopes, output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        W, reflection, slopes, z = ctx.saved_tensors
        with full_precision(z):
            return *_pullback(W, reflection, slopes, z, cotangents[0], ctx), None, None, None, None


def _pullback(W: Tensor, reflection: Tensor, slopes: Tensor, z: Tensor, g: Tensor, ctx: Any) -> tuple[Tensor, Tensor]:
    """Gradients with respect to W and q: wᵀz and w = J(Wᵀw + g)."""
    w: Tensor = _FixedLinear.apply(W.mT, g, reflection.mT, slopes, ctx.step, ctx.steps)  # type: ignore[no-untyped-call]
    return w.mT @ z, w
