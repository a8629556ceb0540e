"""The integrators of torchdiffeq along trajectories: its discretisation by backpropagation, or its adjoint equation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError, PreconditionError
from contracting.flows.fields import VectorField
from contracting.integrators.step_control import row_rms
from contracting.integrators.torchdiffeq_adapter import KINDS
from contracting.simulation.time_steps import Progress, Segment


@dataclass(frozen=True, kw_only=True)
class TorchDiffEqStep:
    """torchdiffeq's ``odeint`` from each requested time to the next, for comparison with other people's results.

    Rows of one batch share the time steps, relative to their own segments, and so a row moves with its batch mates,
    below the tolerance; ``AdaptiveStep()`` steps every row at its own pace.

    Args:
        method: "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", or of fixed step "euler", "midpoint",
            "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams".
        rtol: relative tolerance of a time step of an adaptive method; None means 1e-9 in float64 and 1e-5 in float32.
        atol: absolute tolerance; None means rtol/1000.
        step: the longest step of a method of fixed step, in units of time, which needs one.
        adjoint: whether gradients come from torchdiffeq's adjoint equation, which starts anew at each requested time:
            memory does not grow with the steps, and there is no second derivative.

    Raises:
        InputError: on an unknown method, or a setting that is out of range or not one of this method.
        PreconditionError: when followed with ``adjoint``, if the field depends on tensors that its ``tensors()`` does
            not name, whose gradients would be missing, or if one of these is computed from another, whose gradient
            would be counted twice.
    """

    method: str = "dopri5"
    rtol: float | None = None
    atol: float | None = None
    step: float | None = None
    adjoint: bool = False

    def __post_init__(self) -> None:
        own = [name for name, kind in KINDS.items() if not kind.scipy]
        if self.method not in own:
            raise InputError(f"method must be one of {', '.join(map(repr, own))}, got {self.method!r}")
        fixed = KINDS[self.method].fixed
        for name in ("rtol", "atol", "step"):
            value = getattr(self, name)
            if value is not None:
                checks.number(name, value, low=0, low_open=True, high=math.inf, high_open=True)
                if fixed != (name == "step"):
                    raise InputError(f"{name} has no use in {self.method!r}; leave it out")
        if fixed and self.step is None:
            raise InputError(f"step is needed by {self.method!r}, which has a fixed one, such as step=0.05")

    def advance(self, flow: VectorField, state: Tensor, start: Tensor, end: Tensor, progress: Progress) -> Tensor:
        """The state at ``end``; each row runs through a unit of time in which its own segment is stretched."""
        import torchdiffeq

        field = _UnitTime(flow, state, start, end)
        length = float(field.length.max()) if len(state) else 0.0
        if length == 0:
            return state
        rtol = self.rtol or (1e-9 if torch.finfo(state.dtype).eps < 1e-12 else 1e-5)
        kind = KINDS[self.method]
        options: dict[str, Any] = {**kind.options}
        if self.step is None:
            options["norm"] = _worst_row
        else:
            field.steps = math.ceil(length / self.step * (1 - 1e-9))
            options["grid_constructor"] = partial(_grid, field.steps)
        solve = torchdiffeq.odeint
        if self.adjoint and torch.is_grad_enabled():
            solve = partial(torchdiffeq.odeint_adjoint, adjoint_params=field.sources(state), adjoint_options=options)
            if self.step is None:
                solve = partial(solve, adjoint_options={"norm": "seminorm"})
        times = torch.tensor([0.0, 1.0], dtype=torch.float64, device=state.device)
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of callbacks it does not call
                path = solve(
                    field, state, times, rtol=rtol, atol=self.atol or 1e-3 * rtol, method=kind.solver, options=options
                )
        except AssertionError:  # torchdiffeq asserts that step size and state are sound, of all rows together
            progress.alive = torch.zeros_like(progress.alive)
            return state
        progress.taken += field.steps * (field.length[:, 0] > 0)
        progress.alive = progress.alive & torch.isfinite(path[1].detach()).all(-1)
        return path[1]


class _UnitTime:
    """s' = (b − a)f(a + τ(b − a), s), and how many steps were taken."""

    def __init__(self, flow: VectorField, state: Tensor, start: Tensor, end: Tensor):
        self.flow, self.way, self.steps = flow, (end - start)[:, None], 0
        self.length = self.way.abs()
        self._times, self._dtype = Segment(start, end).times(start[:, None], self.way), state.dtype

    def __call__(self, tau: Tensor, state: Tensor) -> Tensor:
        return self.way.to(self._dtype) * self.flow(self._times(float(tau.detach())), state)

    def callback_accept_step(self, *_: Any) -> None:
        """Called by torchdiffeq's adaptive methods."""
        self.steps += 1

    def sources(self, state: Tensor) -> tuple[Tensor, ...]:
        """The tensors that need gradients, all that there are.

        Raises:
            PreconditionError: if the field depends on others, or one of them depends on another.
        """
        named = tuple(tensor for tensor in self.flow.tensors() if tensor.requires_grad)
        value = self(torch.zeros(()), state.detach())
        known = {tensor.grad_fn for tensor in named if tensor.grad_fn is not None}
        leaves = {id(tensor) for tensor in named if tensor.is_leaf}
        for node in _ancestors([value.grad_fn], known):
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) not in leaves:
                raise PreconditionError(
                    f"adjoint=True needs to know all tensors that the field depends on, and one of shape "
                    f"{tuple(leaf.shape)} is not among its tensors(): bring them, or take adjoint=False"
                )
        before = [source for node in known for source, _ in node.next_functions]
        for node in _ancestors(before, set()):
            if node in known or id(getattr(node, "variable", None)) in leaves:
                raise PreconditionError(
                    "adjoint=True needs the tensors() of a field to be independent, and one is computed from another: "
                    "let the field use a view of that, tensor.view_as(tensor), or take adjoint=False"
                )
        return named


def _ancestors(nodes: list[Any], stop: set[Any]) -> Iterator[Any]:
    """These nodes of the graph and all before them, as far as the ones to stop at, which are left out."""
    todo, seen = list(nodes), set(stop)
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            todo += [source for source, _ in node.next_functions]


def _worst_row(rows: Tensor) -> Tensor:
    return row_rms(rows.detach()).max()


def _grid(steps: int, field: Any, state: Tensor, times: Tensor) -> Tensor:
    """From the first to the last time, which may run backwards."""
    return torch.linspace(float(times[0]), float(times[-1]), steps + 1, dtype=times.dtype, device=times.device)
