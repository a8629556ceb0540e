r"""A layer with a number of iterations set in advance, for compilers, exporters and ``torch.func``.

Nothing here depends on the data: Peaceman–Rachford takes the same k steps for every input, forward and in the adjoint.
How many are enough follows from the certified factor before any input is seen. With u₀ the state of z̄ = σ(0),

    ‖z_k − z*‖_Λ ≤ ρᵏ ‖I − αÃ‖ ‖q + Wz̄‖_Λ / m,

because u₀ − u* = (I − αÃ)(z̄ − z*) in the coordinates of Λ, each step contracts by ρ, reading z does not expand, and z̄
solves the inclusion for the input −Wz̄, which is m-strongly monotone. Each step is rounded as well, by about ε√n times
the size of u with ε the spacing of numbers at one, and all steps together by at most 1/(1 − ρ) times that.

For a curved σ the step α is 1, where the proximal operator is σ itself and no search; every step contracts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.activations.base import Activation
from contracting.errors import InputError, PreconditionError
from contracting.maps.convolution import CircularConvolution
from contracting.maps.dense import Dense
from contracting.maps.frequencies import Grid, in_rows, symbol_of
from contracting.maps.operator import MonotoneOperator
from contracting.maps.transform import Waves, analysed, product, real_form, shares, waves
from contracting.metrics import Metric, WeightedL2
from contracting.precision import as_computed, full_precision
from equilibrium.layers import EquilibriumLayer, rows_of
from equilibrium.weights import NetworkWeights

# What a step is charged for rounding, in ε√n times the size of u. On 360 float32 problems of 2 to 256 neurons, with m
# from 1e-4 to 1 and metrics graded up to 1e4, the errors reached 2.1 where the inverse is computed in float32, and 0.24
# in FrozenIterations.
_ROUNDING = 4.0
_NO_FORWARD_MODE = (
    "FixedIterations has no forward mode, which torch.func.jvp, jacfwd and hessian take: use jacrev, and "
    "jacrev(jacrev(f)) for a Hessian"
)


@dataclass(frozen=True, kw_only=True)
class _Promise:
    """‖z_k − z*‖_Λ ≤ ρᵏ · lead · ‖q + Wz̄‖_Λ + rounding · (‖q + Wz̄‖_Λ + ‖z̄‖_Λ)."""

    factor: float
    lead: float
    rounding: float

    def steps(self, tolerance: float) -> int:
        """The smallest k that keeps a tolerance."""
        if not tolerance > self.rounding:
            raise PreconditionError(
                f"tolerance={tolerance:g} is below the rounding for these weights in their precision, "
                f"{self.rounding:.1e}: ask for more, or use layer.double()"
            )
        return max(1, math.ceil(math.log((tolerance - self.rounding) / self.lead) / math.log(self.factor)))


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is set in advance. W is a matrix or, for images, a matrix per frequency in real numbers."""

    activation: Activation
    step: float
    iterations: int
    grid: Grid | None

    def product(self, W: Tensor, z: Tensor, basis: Waves | None) -> Tensor:
        """Rows of Wz."""
        return z @ W.mT if self.grid is None else in_rows(product(z, W, self.grid, basis), like=z)

    def pullback(self, W: Tensor, z: Tensor, w: Tensor, basis: Waves | None) -> Tensor:
        """Gradient of ⟨w, Wz⟩ in W."""
        if self.grid is None:
            return w.mT @ z
        left, right = (analysed(rows, W.shape[-1] // 2, self.grid, basis) for rows in (w, z))
        return shares(self.grid).to(z)[:, None, None] * left @ right.mT

    def reflection(self, W: Tensor) -> Tensor:
        """2(I + α(I − W))⁻¹ − I."""
        identity = torch.eye(W.shape[-1], dtype=W.dtype, device=W.device)
        return 2 * torch.linalg.inv(identity + self.step * (identity - W)) - identity

    def promise(self, weights: NetworkWeights) -> _Promise:
        """What the step promises for these weights."""
        operator = _operator(weights, self.activation)
        factor = operator.reflected_factor(self.step)
        lead = operator.forward_factor(self.step) / operator.bounds.monotonicity
        unit = torch.finfo(weights.state.dtype).eps * math.sqrt(weights.hidden_features)
        size = 1 + self.step + lead  # of u, where ‖q + Wz̄‖ + ‖z̄‖ is one
        rounding = _ROUNDING * unit * size / (1 - factor) if factor < 1 else math.inf
        return _Promise(factor=factor, lead=lead, rounding=rounding)


class _Given(NamedTuple):
    """What the steps take: the weights, W, its reflection and, for images, the matrices of the transform."""

    weights: NetworkWeights
    W: Tensor
    M: Tensor
    basis: Waves | None


class _Iterations(nn.Module):
    """k steps for any input, on what an implementation gives."""

    _plan: _Plan
    _shapes: tuple[tuple[int, ...], ...]  # of one input

    def _given(self) -> _Given:
        raise NotImplementedError

    def _certified(self) -> tuple[_Promise, Metric]:
        """Of the present weights."""
        raise NotImplementedError

    @property
    def step(self) -> float:
        """α."""
        return self._plan.step

    @property
    def iterations(self) -> int:
        """k."""
        return self._plan.iterations

    def forward(self, x: Tensor) -> Tensor:
        """y: (..., in) -> (..., out), or images as the layer takes them; differentiable in x and in every parameter."""
        weights, rows, lead, z = self._solved(x)
        with full_precision(x):
            return weights.readout(z, rows).reshape(*lead, weights.out_features)

    def equilibrium(self, x: Tensor) -> Tensor:
        """z_k: (..., in) -> (..., hidden)."""
        _, _, lead, z = self._solved(x)
        return z.reshape(*lead, z.shape[-1])

    def _solved(self, x: Tensor) -> tuple[NetworkWeights, Tensor, tuple[int, ...], Tensor]:
        """The weights, the rows of x, their leading shape, and z_k of each."""
        with full_precision(x):
            weights, W, M, basis = self._given()
        rows, lead = rows_of(as_computed("x", x, "the layer", W), self._shapes)
        with full_precision(x):
            q = weights.input_term(rows)
            try:
                z: Tensor = _Fixed.apply(W, M, q, *_four(basis), self._plan)  # type: ignore[no-untyped-call]
            except NotImplementedError as error:
                raise PreconditionError(_NO_FORWARD_MODE) from error
        return weights, rows, lead, z

    @torch.no_grad()
    def error_bound(self, x: Tensor) -> Tensor:
        """The bound on ‖z_k − z*‖_Λ of each input, for the present weights: (..., in) -> (...)."""
        (weights, W, _, basis), plan = self._given(), self._plan
        promise, metric = self._certified()
        rows, lead = rows_of(as_computed("x", x, "the layer", W), self._shapes)
        with full_precision(x):
            q = weights.input_term(rows)
            start = plan.activation(torch.zeros_like(q))
            size = metric.norm(plan.product(W, start, basis) + q)
            bound = promise.factor**plan.iterations * promise.lead * size
            return (bound + promise.rounding * (size + metric.norm(start))).reshape(lead)

    def extra_repr(self) -> str:
        """What was set in advance."""
        return f"iterations={self.iterations}, step={self.step:.4g}"


class FixedIterations(_Iterations):
    r"""An equilibrium layer solved by k Peaceman–Rachford steps, whatever the input; shares the layer's parameters.

    Works under ``torch.compile(fullgraph=True)``, ``torch.export`` and ``torch.func`` (``vmap``, over parameters too,
    ``grad``, ``jacrev``; not in forward mode, as the compiler refuses functions that know it). The gradient is the
    implicit one, from k steps on the adjoint equation. Step and number of iterations are those of the weights at
    construction: call ``refresh()`` after training. Nothing looks at the result: the bound is the promise.

    Args:
        layer: a layer with a certified metric. A convolution whose metric varies over the image is written as a matrix,
            which suits small images.
        tolerance: k is the smallest for which ‖z_k − z*‖_Λ ≤ tolerance·(‖q + Wz̄‖_Λ + ‖z̄‖_Λ) for every input, where
            z̄ = σ(0); for ReLU the right side is tolerance·‖Ux + b‖_Λ.
        iterations: k itself, in place of ``tolerance``.

    Raises:
        InputError: if both or neither of tolerance and iterations are given, or one is out of range.
        PreconditionError: if no metric is certified, σ has parameters, or rounding alone exceeds the tolerance.
    """

    def __init__(self, layer: EquilibriumLayer, *, tolerance: float | None = None, iterations: int | None = None):
        super().__init__()
        if (tolerance is None) == (iterations is None):
            raise InputError("give either tolerance, for example 1e-4, or iterations, for example 40")
        self.layer, self._shapes = layer, layer.input_shapes
        self.tolerance = None if tolerance is None else checks.number("tolerance", tolerance, low=0, low_open=True)
        self._count = 1 if iterations is None else checks.whole_number("iterations", iterations)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Choose step and number of iterations for the present weights."""
        weights, step = with_constant_step(self.layer.weights(), self.layer.activation, type(self).__name__)
        state = weights.state
        plan = _Plan(
            activation=self.layer.activation,
            step=step,
            iterations=self._count,
            grid=state.grid if isinstance(state, CircularConvolution) else None,
        )
        if self.tolerance is not None:
            plan = replace(plan, iterations=plan.promise(weights).steps(self.tolerance))
        self._plan = plan

    def frozen(self) -> FrozenIterations:
        """These iterations on constants, for deployment: refreshed, and all that weights alone decide done before."""
        self.refresh()
        return FrozenIterations(self)

    def _given(self) -> _Given:
        weights, grid = self.layer.parameterization.explicit(), self._plan.grid
        if grid is None:
            weights = weights.dense()
            W, basis = weights.state.to_dense(), None
        else:
            assert isinstance(weights.state, CircularConvolution)
            W = real_form(symbol_of(weights.state.kernel, grid))
            basis = waves(grid, W.dtype, W.device)
        return _Given(weights, W, self._plan.reflection(W.detach()), basis)

    def _certified(self) -> tuple[_Promise, Metric]:
        weights: NetworkWeights = self.layer.weights()
        weights = weights.dense() if self._plan.grid is None else weights
        assert weights.metric is not None  # else no step could be chosen
        return self._plan.promise(weights), weights.metric


class FrozenIterations(_Iterations):
    """``FixedIterations`` of weights that stay, from ``FixedIterations.frozen()``: constant buffers and plain products.

    For ``torch.export``, ONNX (``torch.onnx.export(frozen, (x,), dynamo=True)``) and serving. Nothing is shared with
    the layer: make another one when its weights change. The buffers are no part of a ``state_dict``, as those of other
    weights would need another step; keep the layer's.
    """

    W: Tensor
    M: Tensor
    metric: Tensor
    kernel: Tensor  # of a convolution

    def __init__(self, source: FixedIterations):
        super().__init__()
        self._plan, self._shapes = source._plan, source._shapes
        with torch.no_grad():
            weights, W, _, basis = source._given()
            self._promise, metric = source._certified()
            M = self._plan.reflection(W.double()).to(W.dtype)
        constants = {"W": W, "M": M, "metric": metric.tensors()[0]}
        if basis is not None:
            constants |= {"kernel": weights.state.tensors()[0], **basis._asdict()}
        self._kind: Callable[..., NetworkWeights] = type(weights)
        self._settings: dict[str, Any] = {}
        self._tensors: list[str] = []
        for field in fields(cast(Any, weights)):
            value = getattr(weights, field.name)
            if field.name in ("state", "metric", "lipschitz") or field.name.startswith("contraction"):
                continue  # claims, and W, which is there
            if isinstance(value, Tensor):
                constants[f"weights_{field.name}"] = value
                self._tensors.append(field.name)
            else:
                self._settings[field.name] = value
        for name, value in constants.items():
            self.register_buffer(name, value.detach().clone(), persistent=False)

    def _given(self) -> _Given:
        grid = self._plan.grid
        state = Dense(self.W) if grid is None else CircularConvolution(self.kernel, grid=grid)
        tensors = {name: getattr(self, f"weights_{name}") for name in self._tensors}
        weights = self._kind(state=state, **self._settings, **tensors)
        basis = None if grid is None else Waves(*[getattr(self, name) for name in Waves._fields])
        return _Given(weights, self.W, self.M, basis)

    def _certified(self) -> tuple[_Promise, Metric]:
        return self._promise, WeightedL2(self.metric)


def with_constant_step(weights: NetworkWeights, activation: Activation, method: str) -> tuple[NetworkWeights, float]:
    """The α of steps that a graph can hold, with the weights that it is for: matrices where others want one per neuron.

    Raises:
        PreconditionError: in the name of ``method``, if Condition 1 is not certified or σ has parameters.
    """
    if activation.tensors():
        raise PreconditionError(f"{method} takes no activation with parameters, such as {activation!r}")
    step = _operator(weights, activation, method).best_reflected.step
    if isinstance(step, Tensor):
        weights = weights.dense()
        step = _operator(weights, activation, method).best_reflected.step
    return weights, float(step) if activation.piecewise_linear else 1.0


def _operator(weights: NetworkWeights, activation: Activation, method: str = "FixedIterations") -> MonotoneOperator:
    zeros = weights.state.tensors()[0].new_zeros(1, weights.in_features)
    return weights.problem(zeros, activation).require_operator(method)


_Four = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def _four(basis: Waves | None) -> _Four:
    """The matrices of the transform one by one: a compiler follows only tensors that are arguments of their own."""
    return (None,) * 4 if basis is None else basis


def _waves(four: Any) -> Waves | None:
    return None if four[0] is None else Waves(*four)


class _Fixed(torch.autograd.Function):
    """(W, q) ↦ z after k steps; its gradient comes from k steps on the adjoint equation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        W: Tensor,
        M: Tensor,
        q: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        c: Tensor | None,
        d: Tensor | None,
        plan: _Plan,
    ) -> Tensor:
        basis = _waves((a, b, c, d))
        scaled = plan.step * q
        offset = plan.product(M, scaled, basis) + scaled
        start = plan.activation.value(torch.zeros_like(q))
        u = start + plan.step * (plan.product(W, start, basis) + q - start)
        for _ in range(plan.iterations):
            u = plan.product(M, 2 * plan.activation.prox_value(u, plan.step) - u, basis) + offset
        return plan.activation.prox_value(u, plan.step)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        W, M, q, a, b, c, d, ctx.plan = inputs
        ctx.save_for_backward(W, M, q, output, a, b, c, d)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        W, M, q, z, a, b, c, d = ctx.saved_tensors
        with full_precision(z):
            slopes = ctx.plan.activation.slope(ctx.plan.product(W, z, _waves((a, b, c, d))) + q)
            of_W, w = _pullback(W, M, slopes, z, cotangents[0], ctx.plan, (a, b, c, d))
        return of_W, None, w, None, None, None, None, None


class _FixedLinear(torch.autograd.Function):
    """(W, q, J) ↦ z after k steps for z = J(Wz + q), J diagonal; its adjoint is such a problem again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        W: Tensor,
        M: Tensor,
        q: Tensor,
        slopes: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        c: Tensor | None,
        d: Tensor | None,
        plan: _Plan,
    ) -> Tensor:
        basis = _waves((a, b, c, d))
        ratio = slopes / (plan.step + (1 - plan.step) * slopes)
        u = scaled = plan.step * q
        offset = plan.product(M, scaled, basis) + scaled
        for _ in range(plan.iterations):
            u = plan.product(M, (2 * ratio - 1) * u, basis) + offset
        return ratio * u

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        W, M, q, slopes, a, b, c, d, ctx.plan = inputs
        ctx.save_for_backward(W, M, q, slopes, output, a, b, c, d)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        W, M, q, slopes, z, a, b, c, d = ctx.saved_tensors
        plan, g, basis = ctx.plan, cotangents[0], _waves((a, b, c, d))
        with full_precision(z):
            of_W, w = _pullback(W, M, slopes, z, g, plan, (a, b, c, d))
            # the part dJ(Wz + q) of dz is weighed by Wᵀw + g
            of_slopes = (plan.product(W, z, basis) + q) * (plan.product(W.mT, w, basis) + g)
        return of_W, None, w, of_slopes, None, None, None, None, None


def _pullback(
    W: Tensor, M: Tensor, slopes: Tensor, z: Tensor, g: Tensor, plan: _Plan, four: _Four
) -> tuple[Tensor, Tensor]:
    """Gradients in W and q: that of ⟨w, Wz⟩, and w = J(Wᵀw + g)."""
    w: Tensor = _FixedLinear.apply(W.mT, M.mT, g, slopes, *four, plan)  # type: ignore[no-untyped-call]
    return plan.pullback(W, z, w, _waves(four)), w
