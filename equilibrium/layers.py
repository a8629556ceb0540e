"""Equilibrium layers: a parameterisation, an activation and any solver, as one nn.Module."""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any, Self, TypedDict, TypeVar, Unpack, cast

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from contracting import checks
from contracting.activations.base import Activation
from contracting.activations.catalogue import ReLU
from contracting.activations.names import as_activation
from contracting.errors import InputError, PreconditionError
from contracting.flows.base import BoundFlow, Flow, as_flow
from contracting.gradients.implicit import Backward, Implicit
from contracting.loop.method import Method, checked_method
from contracting.loop.records import LastSolves, Solution, SolveError, Stop, Trace
from contracting.loop.run import solve
from contracting.memory import Lineage, in_no_graph
from contracting.modules.diverged import diverged, lost_parameters
from contracting.modules.settings import WithSettings
from contracting.precision import as_computed, full_precision
from contracting.problem import EquilibriumProblem
from contracting.solvers.automatic import Automatic
from equilibrium.parameterizations import Contractive, Monotone, MonotoneOptions, Parameterization
from equilibrium.weights import KnownWeights, NetworkWeights, Weights

F = TypeVar("F", bound=Callable[..., Any])

_NO_GRAPH = (
    "a solve takes as many steps as its data need, which no graph can hold; FixedIterations(layer, tolerance=1e-4) "
    "takes a number of steps set in advance"
)


def _run_as_it_is(function: F) -> F:
    """Mark what solves: ``torch.compile`` breaks its graph once before it, and compiles what comes before and after."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():  # the usual case, which need not wait seconds for torch._dynamo
            return function(*args, **kwargs)
        torch._dynamo.graph_break(msg=_NO_GRAPH)
        return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-untyped-call]

    return cast(F, run)


class FailedRows(Enum):
    """What a layer does with rows that could not be solved.

    RAISE ends in a SolveError. MASK makes y NaN in these rows; the others are as without them, and if the loss leaves
    them out (``layer.last_solves.forward.converged`` says which), so are all gradients. WARN does that too, with a
    warning the first time. A failure of the backward pass, which is of no single row of x, is always an error.
    """

    RAISE = "raise"
    WARN = "warn"
    MASK = "mask"


class LayerOptions(TypedDict, total=False):
    """The keyword arguments of ``EquilibriumLayer``, which every layer takes."""

    activation: Activation | nn.Module | None
    solver: Method | None
    stop: Stop | None
    backward: Backward | None
    failed_rows: FailedRows


class LBENOptions(MonotoneOptions, LayerOptions, total=False):
    """The keyword arguments of ``LBEN``."""


def of_the_layer(options: Mapping[str, Any]) -> tuple[dict[str, Any], LayerOptions]:
    """The options of a parameterisation and those of its layer."""
    names = LayerOptions.__annotations__
    free = {name: value for name, value in options.items() if name not in names}
    return free, cast(LayerOptions, {name: value for name, value in options.items() if name in names})


class EquilibriumLayer(WithSettings):
    r"""z = σ(Wz + Ux + b), y = W_o z + Dx + b_o, for any parameterisation of the weights.

    Args:
        parameterization: free parameters with ``explicit() -> Weights``.
        activation: σ; an activation of this library, or its torch counterpart (``nn.Tanh()``).
        solver: method that finds z: a splitting, Newton, or an ODE integrator. None takes ``Automatic()``, which is
            PeacemanRachford for nearly every trained network and Newton's method where nothing is certified.
        stop: tolerances and limits of the solve.
        backward: how z is differentiated; ``Implicit()`` is independent of the solver.
        failed_rows: what ``layer(x)`` does with rows that have no equilibrium within the limits, as where x is NaN.

    Attributes:
        last_solves: what the last solve forward and the last one backward measured, for a training to log:
            ``layer.last_solves.forward.numbers()``.

    Raises:
        InputError: on an inadmissible activation or something that is not a solver.
    """

    def __init__(
        self,
        parameterization: Parameterization,
        *,
        activation: Activation | nn.Module | None = None,
        solver: Method | None = None,
        stop: Stop | None = None,
        backward: Backward | None = None,
        failed_rows: FailedRows = FailedRows.RAISE,
    ):
        super().__init__()
        self.failed_rows = _checked("failed_rows", failed_rows, FailedRows, "FailedRows.MASK")
        self.last_solves, self._warned = LastSolves(), False
        self._known: KnownWeights | None = None  # the weights of the last evaluation
        self._lineage = Lineage()  # what guides the solves of a few training steps
        if not isinstance(parameterization, Parameterization):
            raise InputError(f"parameterization must be a Parameterization, got {type(parameterization).__name__}")
        self.parameterization = parameterization
        self.activation = ReLU() if activation is None else as_activation(activation)
        self.solver = checked_method("solver", Automatic() if solver is None else solver)
        self.stop = _checked("stop", Stop() if stop is None else stop, Stop, "Stop(rtol=1e-6)")
        self.backward: Backward = Implicit() if backward is None else backward
        if not callable(getattr(self.backward, "equilibrium", None)):
            raise InputError(f"backward must be Implicit(), or Unrolled() and the like to compare, got {backward!r}")

    @property
    def settings(self) -> dict[str, Any]:
        """The activation; those of the parameterisation are its own."""
        return {"activation": re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self.activation))}

    @property
    def in_features(self) -> int:
        """Size of x."""
        return self.parameterization.in_features

    @property
    def hidden_features(self) -> int:
        """Size of z."""
        return self.parameterization.hidden_features

    @property
    def out_features(self) -> int:
        """Size of y."""
        return self.parameterization.out_features

    @_run_as_it_is
    def forward(self, x: Tensor, *, z0: Tensor | None = None) -> Tensor:
        """y: (..., in) -> (..., out), differentiable in x and in every parameter.

        Args:
            x: (..., in).
            z0: where the solve starts, (..., hidden), such as at the equilibrium of a similar input.

        Raises:
            InputError: on wrong size, dtype or device of x or z0, or parameters that make no weights.
            SolveError: if a row does not converge, unless ``failed_rows`` says otherwise.
        """
        if has_torch_function_unary(x):  # a field is read: see register_reader
            return handle_torch_function(EquilibriumLayer.forward, (x,), self, x, z0=z0)
        return self._over_rows(x, z0, lambda weights, z, rows: weights.readout(z, rows))

    @_run_as_it_is
    def equilibrium(self, x: Tensor, *, z0: Tensor | None = None) -> Tensor:
        """z: (..., in) -> (..., hidden), differentiable in x and in every parameter; otherwise as ``forward``."""
        return self._over_rows(x, z0, lambda weights, z, rows: z)

    def _over_rows(
        self, x: Tensor, z0: Tensor | None, read: Callable[[NetworkWeights, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """What is read from the equilibrium of each row; NaN from rows that failed, where that is tolerated."""
        rows, lead = self._rows(x)
        start, seen = self._starts(z0, lead), self.last_solves

        def solved(rows: Tensor, start: Tensor | None) -> Tensor:
            problem = self._bound(weights, rows)
            return read(weights, self.backward.equilibrium(problem, self.solver, self.stop, start, seen), rows)

        with full_precision(x):
            weights = self.weights()
            try:
                values = solved(rows, start)
            except SolveError as error:
                sound, record = self._tolerated(error), seen.forward
                while True:  # mostly once: whether a row at its rounding errors is solved may depend on its company
                    try:
                        # by themselves: a gradient through NaN would not be zero, and so spoil those of all parameters
                        values = solved(rows[sound], None if start is None else start[sound])
                        break
                    except SolveError as again:
                        left = self._tolerated(again)
                        if record is not None and seen.forward is not None:
                            status = record.status.index_copy(0, sound, seen.forward.status)
                            record = replace(record, status=status)
                        sound = sound[left]
                values = values.new_full((len(rows), values.shape[-1]), math.nan).index_copy(0, sound, values)
                seen.forward = record
            return values.reshape(*lead, values.shape[-1])

    def _tolerated(self, error: SolveError) -> Tensor:
        """The rows that are solved, where the others may be NaN; otherwise the error."""
        if lost_parameters(self.parameterization):
            raise diverged(self.parameterization, error) from error
        if error.solution is None or self.failed_rows is FailedRows.RAISE:
            raise error
        if self.failed_rows is FailedRows.WARN and not self._warned:
            warnings.warn(f"rows that fail are NaN from now on: {error}", RuntimeWarning, stacklevel=4)
            self._warned = True
        return torch.nonzero(error.solution.converged).flatten()

    def _starts(self, z0: Tensor | None, lead: tuple[int, ...]) -> Tensor | None:
        if z0 is None:
            return None
        return checks.shape("z0", z0, (*lead, self.hidden_features)).detach().reshape(-1, self.hidden_features)

    @_run_as_it_is
    def solve(
        self,
        x: Tensor,
        solver: Method | None = None,
        *,
        stop: Stop | None = None,
        z0: Tensor | None = None,
        trace: Trace | None = None,
        throw: bool = True,
    ) -> Solution:
        """The equilibrium of each input with everything the solve measured; no gradient.

        Args:
            x: (..., in).
            solver: another method than the layer's.
            stop: other tolerances than the layer's.
            z0: starting point, (..., hidden).
            trace: records the residual of every step.
            throw: raise if a row fails; otherwise look at ``solution.status``.

        Returns:
            The solution; its tensors have the leading shape of x.

        Raises:
            InputError, PreconditionError, SolveError: as ``contracting.loop.run``.
        """
        rows, lead = self._rows(x)
        z0 = self._starts(z0, lead)
        with in_no_graph():
            problem = self._bound(self.weights(), rows)
            try:
                solution = solve(
                    problem, solver or self.solver, z0=z0, stop=stop or self.stop, trace=trace, throw=throw
                )
            except SolveError as error:
                lost = lost_parameters(self.parameterization)
                raise diverged(self.parameterization, error) if lost else error from None
            return solution.reshape(*lead)

    def weights(self) -> NetworkWeights:
        """The explicit weights of the present parameters.

        Where none of them takes part in gradients (``no_grad``, or parameters that are frozen), the weights of equal
        parameters are the same object again, with all that is remembered of them, at the price of a copy of the
        parameters: what is compared are the values, so that nothing an optimiser or ``load_state_dict`` does can make
        it stale. In training, the step of the solver and the number
        of steps that is expected may be those of a few updates ago, which can cost steps; ``train()`` and ``eval()``
        start anew.
        """
        example, known = checks.with_values("the layer", self.parameterization.example), self._known
        if known is not None and known.still_of(self.parameterization):
            return known.weights
        try:
            with full_precision(example):
                weights = self.parameterization.explicit()
        except (InputError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            raise diverged(self.parameterization, error) from error
        if any(t.requires_grad for t in weights.state.tensors()):
            if self.training:
                weights.state.descend_from(self._lineage)
            return weights
        weights = weights.recalled_from(None if known is None else known.weights)
        self._known = KnownWeights.of(self.parameterization, weights)
        return weights

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode, as of every module."""
        self._lineage = Lineage()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None}  # copies and pickles find out again

    def problem(self, x: Tensor) -> EquilibriumProblem:
        """The equilibrium problem of inputs x, (..., in), its rows flattened."""
        return self._bound(self.weights(), self._rows(x)[0])

    def _bound(self, weights: NetworkWeights, rows: Tensor) -> EquilibriumProblem:
        try:
            return weights.problem(rows, self.activation)
        except InputError as error:
            raise error if weights.state.finite else diverged(self.parameterization, error) from error

    def flow(self, flow: Flow | type[Flow], x: Tensor | None = None) -> BoundFlow:
        """A flow of this layer as a callable f(t, s), for torchdiffeq.odeint or a certificate.

        Args:
            flow: FiringRate, Hopfield, ForwardBackwardFlow(step=…), PeacemanRachfordFlow(step=…).
            x: inputs (..., in), rows flattened; None means one row of zeros.
        """
        if x is None:
            x = self.parameterization.example.new_zeros(1, self.in_features)
        return as_flow(flow).bind(self.problem(x))

    def _checked_input(self, x: Tensor) -> Tensor:
        """x, of any shape, as the layer computes with it.

        Raises:
            InputError: on another dtype or device than the layer's, or a layer without values.
            PreconditionError: where a graph is traced, which cannot hold the steps of a solve.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise PreconditionError(f"the layer cannot be exported or traced: {_NO_GRAPH}")
        return as_computed("x", x, "the layer", self.parameterization.example)

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes that one input may have."""
        return ((self.in_features,),)

    def _rows(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        return rows_of(self._checked_input(x), self.input_shapes)

    def extra_repr(self) -> str:
        """Activation, solver, and what else is not as by default."""
        usual = {"stop": Stop(), "backward": Implicit(), "failed_rows": FailedRows.RAISE}
        others = [f", {name}={getattr(self, name)}" for name, value in usual.items() if getattr(self, name) != value]
        return f"activation={self.activation}, solver={self.solver}{''.join(others)}"


class LBEN(EquilibriumLayer):
    r"""Lipschitz-bounded equilibrium network: z = σ(Wz + Ux + b), y = W_o z + Dx + b_o (arXiv 2010.01732).

    For every value of the parameters the equilibrium exists and is unique; with ``lipschitz`` the map x ↦ y has that ℓ2
    Lipschitz constant; with ``contraction_rate`` the firing-rate and Hopfield flows of the layer contract at that rate.

    Args:
        in_features: size of x.
        hidden_features: n, size of z.
        out_features: size of y.
        lipschitz: γ > 0, or None for no bound.
        learn_lipschitz: train log γ, starting at ``lipschitz``.
        contraction_rate: c in [0, 1), or None; with it the parameters are those of ``Contractive``.
        epsilon: ε > 0, strong monotonicity of the parameterisation ``Monotone``; only without ``contraction_rate``.
        learn_metric: False fixes Ψ = I, which gives a monDEQ.
        feedthrough: add a term Dx to the output.
        activation: σ, monotone with slopes in [0, 1].
        solver: any splitting method or ODE integrator; changes neither weights nor gradient.
        stop: tolerances and limits of the solve.
        backward: ``Implicit()`` or, for comparison, ``Unrolled()``, ``TorchDiffEqAdjoint()``,
            ``NeumannSeries(terms=k)`` and ``JacobianFree()``.
        failed_rows: what ``layer(x)`` does with rows that fail: FailedRows.RAISE, WARN or MASK.
        device: device of the parameters.
        dtype: floating-point type of the parameters.

    Raises:
        InputError: on any argument out of range.

    Example:
        >>> layer = LBEN(784, 80, 10, lipschitz=1.0)
        >>> y = layer(torch.randn(32, 784))
    """

    def __init__(
        self, in_features: int, hidden_features: int, out_features: int, **options: Unpack[LBENOptions]
    ):
        free, own = of_the_layer(options)
        made = Monotone if free.get("contraction_rate") is None else Contractive
        if made is Contractive and "epsilon" in free:
            raise InputError(
                "epsilon goes without contraction_rate, which makes I − W strongly monotone by itself: leave one of "
                "them out, or take EquilibriumLayer(Monotone(…)) for both"
            )
        super().__init__(made(in_features, hidden_features, out_features, **free), **own)

    def weights(self) -> Weights:
        """The explicit weights of the present parameters, as matrices; otherwise as in ``EquilibriumLayer``."""
        weights = super().weights()
        assert isinstance(weights, Weights)
        return weights


def rows_of(x: Tensor, shapes: tuple[tuple[int, ...], ...]) -> tuple[Tensor, tuple[int, ...]]:
    """The rows of inputs of one of these shapes, and their leading shape: (..., *shape) -> (batch, in), (...)."""
    for shape in shapes:
        if x.ndim == 2 and tuple(x.shape[1:]) == shape:
            return x, tuple(x.shape[:1])  # len() would set the number of rows in an export
        if tuple(x.shape[-len(shape) :]) == shape:
            return x.reshape(-1, math.prod(shape)), tuple(x.shape[: -len(shape)])
    *images, row = shapes
    others = "".join(f" or be images (..., {', '.join(map(str, shape))})" for shape in images)
    raise InputError(f"x must have {row[0]} entries in its last dimension{others}, got shape {tuple(x.shape)}")


def _checked(name: str, value: Any, kind: type, example: str) -> Any:
    if not isinstance(value, kind):
        raise InputError(f"{name} must be a {kind.__name__} such as {example}, got {value!r}")
    return value
