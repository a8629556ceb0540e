r"""Vector fields s' = f(t, s) on batches of rows: what a simulation or a sampled rate may ask of any neural ODE.

A vector field brings its value; its Jacobian and the action of that come from autograd unless it knows them better.
Flows of an equilibrium problem (``contracting.flows.base``) are vector fields with more to say.
"""

from __future__ import annotations

import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.display import Displayed, Row
from contracting.errors import InputError
from contracting.types import Time

# A row that changes by more than this share when other rows change is no stranger to them. Rounding changes it by less
# than 1e-6, and an equilibrium model inside the field by the tolerance of its solver.
_STRANGERS = 1e-3


class VectorField(Displayed, ABC):
    """A right-hand side f(t, s) on states (batch, n), in which every row moves on its own.

    A field of one's own brings ``__call__``; the rest has defaults.
    """

    @abstractmethod
    def __call__(self, t: Time, state: Tensor) -> Tensor:
        """f(t, s): (batch, n) -> (batch, n); t is a number, or a float64 tensor of shape () or (batch, 1)."""

    def tensors(self) -> tuple[Tensor, ...]:
        """What f depends on and gradients may flow to, beside the state; an adjoint equation asks for it."""
        return ()

    def init(self, z: Tensor) -> Tensor:
        """The state that corresponds to an output z; here z itself."""
        return z

    def read(self, state: Tensor) -> Tensor:
        """The output of a state; here the state itself."""
        return state

    def jacobian(self, state: Tensor, t: Time = 0.0) -> Tensor:
        """∂f/∂s, shape (batch, n, n), itself differentiable; by one backward pass per component.

        Raises:
            InputError: if f depends on s in a way that autograd cannot see, its value has another shape than s, or a
                row of it depends on another row of s, so that it has no Jacobian of its own.
        """
        graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            s = tracked(state)
            value = _checked(self(t, s), s)
            refuse_crowds(lambda states: self(t, tracked(states)), s, value)
            rows = [_pull(value[:, i].sum(), s, graph) for i in range(s.shape[-1])]
            if all(row is None for row in rows):
                self._check_constant(value, s, t)
            return torch.stack([torch.zeros_like(s) if row is None else row for row in rows], dim=-2)

    def jvp(self, state: Tensor, direction: Tensor, t: Time = 0.0) -> Tensor:
        """(∂f/∂s) d, the Jacobian action, without the matrix: (batch, n) -> (batch, n); otherwise as ``jacobian``."""
        checks.shape("direction", direction, tuple(state.shape))
        graph = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            s = tracked(state)
            value = _checked(self(t, s), s)
            # u ↦ (∂f/∂s)ᵀu is linear, so the derivative of ⟨(∂f/∂s)ᵀu, d⟩ in u is the action sought
            weight = torch.zeros_like(value, requires_grad=True)
            pulled = _pull((_recordable(value) * weight).sum(), s, True)
            if pulled is None:
                self._check_constant(value, s, t)
                return torch.zeros_like(s)
            action = _pull((pulled * _recordable(direction)).sum(), weight, graph)
            return torch.zeros_like(s) if action is None else action

    def _check_constant(self, value: Tensor, state: Tensor, t: Time) -> None:
        """Refuse a field whose value changes with the state although its graph says that it does not."""
        with torch.no_grad():
            other = self(t, state + 0.1 * (1 + state.abs()))
            if not torch.equal(torch.nan_to_num(value), torch.nan_to_num(other)):
                raise InputError(
                    "f(t, s) depends on s, but autograd sees no dependence: remove what cuts the graph "
                    "(detach, .data, no_grad, inference_mode, numpy), or override jacobian and jvp"
                )


def tracked(state: Tensor) -> Tensor:
    """The state as a tensor that autograd tracks, whatever it is a view of and in which mode that was made."""
    return state.clone() if state.requires_grad else _recordable(state.detach()).requires_grad_()


def refuse_crowds(field: Callable[[Tensor], Tensor], state: Tensor, value: Tensor) -> None:
    """Refuse a field f(s) = ``value`` in which a row moves otherwise when other rows of the batch are changed.

    Raises:
        InputError: as where a module normalises over the batch, or draws at random.
    """
    state = state.detach()
    even = torch.arange(len(state), device=state.device)[:, None] % 2 == 0
    shifted = state + 0.1 * (1 + state.abs())
    # Of two rows, batch normalisation tells which is larger, and nothing else: they must change places.
    mirrored = 2.1 * state.flip(0) - 1.1 * state
    for kept, moved in itertools.product((even, ~even) if len(state) > 1 else (even,), (shifted, mirrored)):
        other = field(torch.where(kept, state, moved))
        was, now = (torch.nan_to_num(found.detach()) for found in (value, other))
        change = (now - was).abs() / torch.maximum(now.abs(), was.abs()).amax(-1, keepdim=True)
        if bool(((change > _STRANGERS) & kept).any()):
            raise InputError(
                "f(t, s) moves a row otherwise when other rows of the batch change, or at every call: rows must not "
                "see each other. Put batch normalisation and dropout in evaluation mode, module.eval()"
            )


def _recordable(value: Tensor) -> Tensor:
    return value.clone() if value.is_inference() else value


def _checked(value: Any, state: Tensor) -> Tensor:
    return checks.shape("f(t, s)", checks.floating_tensor("f(t, s)", value), tuple(state.shape))


def _pull(scalar: Tensor, wrt: Tensor, graph: bool) -> Tensor | None:
    """d scalar / d wrt, None where nothing depends on it."""
    if not scalar.requires_grad:
        return None
    found = torch.autograd.grad(scalar, wrt, create_graph=graph, retain_graph=True, allow_unused=True)
    gradient: Tensor | None = found[0]
    return gradient


class NeuralFlow(VectorField):
    """s' = module(t, s), or module(s), for any nn.Module or function; autograd supplies the Jacobian.

    The rows of a batch must not see each other (no batch normalisation in training mode), otherwise the Jacobian of a
    row is not defined; it is refused where that shows. What is made of affine operations and activations of bounded
    slope can be certified, as ``lure_of`` reads it; of other fields rates are *sampled*, see
    ``contracting.simulation.sampled``. For a module f(z, x) with an input take ``InputFlow``.

    Args:
        module: f(t, s) with s of shape (batch, n), or f(s), such as an nn.Sequential, where time plays no part. The
            time t is a tensor of shape () or (batch, 1), so that ``t * s``, ``torch.sin(t)`` and
            ``t.expand(len(s), 1)`` work in both cases.
        time_dtype: of t; None means that of s, as networks need. Late times of a float32 flow are then rounded (at
            t = 1e4 to 1e-3); a function that computes with t itself may ask for float64.

    Raises:
        InputError: if it cannot be called, or with neither one nor two arguments.
    """

    def __init__(self, module: nn.Module | Callable[..., Tensor], *, time_dtype: torch.dtype | None = None):
        if not callable(module):
            raise InputError(f"module must be an nn.Module or a function f(t, s), got {type(module).__name__}")
        if not (takes(module, 2) or takes(module, 1)):
            raise InputError("module must take two arguments, f(t, s), or one, f(s), and this one takes neither")
        self.module, self.time_dtype, self.timeless = module, time_dtype, not takes(module, 2)

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        if self.timeless:
            return _checked(self.module(state), state)
        moment = rounded_down(t, self.time_dtype or state.dtype, state.device)
        return _checked(self.module(moment, state), state)

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(self.module.parameters()) if isinstance(self.module, nn.Module) else ()

    def shown(self) -> Sequence[Row]:
        return [Row("module", self.module)]


def takes(module: Callable[..., Any], arguments: int) -> bool:
    """Whether a module or a function can be called with so many arguments, for all that its signature says."""
    module = getattr(module, "_orig_mod", module)  # a compiled module says nothing of its arguments
    try:
        signature = inspect.signature(module.forward if isinstance(module, nn.Module) else module)
    except (TypeError, ValueError):  # as of functions compiled in C, which say nothing
        return True
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return False
    return True


def rounded_down(t: Time, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A time in another dtype, not later than it was: what jumps at t is not seen before t."""
    if not isinstance(t, Tensor):
        return torch.tensor(t, dtype=dtype, device=device)
    rounded = t.to(dtype)
    if rounded.dtype == t.dtype:
        return rounded
    return torch.where(rounded.to(t.dtype) > t, torch.nextafter(rounded, torch.full_like(rounded, -torch.inf)), rounded)


class InputFlow(NeuralFlow):
    """s' = f(s, x) − s: the flow of an equilibrium model z = f(z, x) of one's own, under a given input x.

    Args:
        module: f(s, x) with s of shape (batch, n), an nn.Module or a function; as for ``NeuralFlow``.
        x: the input, (m,) or (1, m) for all states, or (batch, m) with a row for each.
        leak: what the state itself counts; 0 makes it s' = f(s, x), a neural ODE with an input.
    """

    def __init__(self, module: nn.Module | Callable[[Tensor, Tensor], Tensor], x: Tensor, *, leak: float = 1.0):
        super().__init__(module)
        if self.timeless:
            raise InputError("module must take two arguments, f(s, x), and this one does not: take NeuralFlow")
        if checks.floating_tensor("x", x).ndim not in (1, 2):
            raise InputError(f"x must have shape (m,), (1, m) or (batch, m), got {tuple(x.shape)}")
        self.x, self.leak = x[None] if x.ndim == 1 else x, checks.number("leak", leak)

    def shown(self) -> Sequence[Row]:
        return [*super().shown(), Row("x", self.x), Row("leak", self.leak)]

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        if len(self.x) not in (1, len(state)):
            raise InputError(f"x has {len(self.x)} rows for {len(state)} states; give one row, or one for each state")
        value = _checked(self.module(state, self.x.expand(len(state), -1)), state)
        return value - self.leak * state if self.leak else value

    def tensors(self) -> tuple[Tensor, ...]:
        return (*super().tensors(), self.x)


class LinearFlow(VectorField):
    r"""s' = As + b, whose contraction rate in a metric is exactly −μ(A).

    Args:
        matrix: A, shape (n, n).
        offset: b, shape (n,) or (batch, n); zero if None.

    Raises:
        InputError: if A is not a finite square matrix or b does not fit it.
    """

    def __init__(self, matrix: Tensor, offset: Tensor | None = None):
        A = checks.finite("matrix", checks.floating_tensor("matrix", matrix))
        if A.ndim != 2 or A.shape[0] != A.shape[1]:
            raise InputError(f"matrix must have shape (n, n), got {tuple(A.shape)}")
        if offset is None:
            offset = A.new_zeros(A.shape[0])
        checks.same_kind("offset", checks.last_size("offset", offset, A.shape[0]), "matrix", A)
        if offset.ndim > 2:
            raise InputError(f"offset must have shape (n,) or (batch, n), got {tuple(offset.shape)}")
        self.matrix, self.offset = A, offset

    def shown(self) -> Sequence[Row]:
        return [Row("matrix", self.matrix), Row("offset", self.offset)]

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        return state @ self.matrix.mT + self.offset

    def tensors(self) -> tuple[Tensor, ...]:
        return self.matrix, self.offset

    def jacobian(self, state: Tensor, t: Time = 0.0) -> Tensor:
        return self.matrix.expand(state.shape[0], -1, -1)

    def jvp(self, state: Tensor, direction: Tensor, t: Time = 0.0) -> Tensor:
        return direction @ self.matrix.mT
