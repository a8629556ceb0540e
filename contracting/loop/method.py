"""A method and its iteration: what the one loop asks of every solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from contracting.errors import InputError, PreconditionError
from contracting.loop.records import Stop
from contracting.problem import Problem

State = tuple[Any, ...]
"""Tensors with one leading entry per row, tuples of such, and plain values, which hold for all rows."""


YOUR_OWN = (
    "a solver of your own subclasses contracting.loop.method.Method, and an integrator such as torchdiffeq.odeint "
    "follows layer.flow(FiringRate, x), a plain f(t, s)"
)


class Family(StrEnum):
    """What kind of method a solver is."""

    SPLITTING = "splitting"
    NEWTON = "Newton"
    INTEGRATOR = "ODE integrator"
    TORCHDIFFEQ = "torchdiffeq"


class Iteration(ABC):
    """A method bound to one problem: pure functions of a state, which is a tuple that nobody changes.

    To bring: ``init``, ``step`` and ``read``. Whatever changes in the course of a solve is in the state, so that a step
    from the same state gives the same result, whatever was computed before. Everything else has a default. Products
    with W are counted where they are made, not here.

    Attributes:
        factor: predicted contraction factor per step, or None. For splittings, and for Euler and Heun on the
            forward–backward and Peaceman–Rachford flows, it is proved in the metric of the problem, from any start. For
            RK4, and for every integrator on the firing-rate and Hopfield flows, it bounds the linearised iteration: the
            rate close to the equilibrium.
        step_size: what the method chose or was given (α of a splitting, h of an integrator), or None where it varies.
        check_every: steps between two checks that this method suggests.
        separable: whether the iteration on some rows is this method bound to the problem of those rows.
    """

    factor: float | None = None
    step_size: float | None = None
    check_every: int = 1
    separable: bool = True

    @abstractmethod
    def init(self, z0: Tensor) -> State:
        """The state that corresponds to z0."""

    @abstractmethod
    def step(self, state: State) -> State:
        """One iteration, or one time step."""

    @abstractmethod
    def read(self, state: State) -> Tensor:
        """The current z, shape (batch, n)."""

    def cold(self) -> State | None:
        """A state to begin with where nobody knows a z0, not worth a look itself; None stands for that of z0 = 0."""
        return None

    def warm(self, z0: Tensor, computed: Tensor) -> State:
        """``init``, where a look at z0 has computed something, such as Wz0 + q; a method may make use of it."""
        return self.init(z0)

    def advance(self, state: State, taken: int, steps: int) -> State:
        """``steps`` iterations after the first ``taken``; a method may fuse them."""
        for _ in range(steps):
            state = self.step(state)
        return state

    def check_after(self, state: State, taken: int) -> int:
        """How many steps after ``taken`` the residual is looked at again; may depend on no row of the state."""
        return self.check_every

    def planned(self, reduction: NDArray[Any]) -> NDArray[Any] | None:
        """After how many steps each row of a given start is to be judged, (batch,); None where nothing is predicted.

        Args:
            reduction: (batch,), the residual that is wanted over that of the start.
        """
        return None

    def resume(self, state: State, computed: Tensor, taken: int) -> State:
        """The state after a check, which has computed something, such as Wz + q; a method may make use of it."""
        return state

    def given_up(self, state: State) -> Tensor | None:
        """Rows this method cannot advance any further, (batch,), which the loop reports as STALLED; None for no row."""
        return None

    def advice(self) -> str | None:
        """Why rows were given up, and what to do: part of the error that the loop raises."""
        return None


class Method(ABC):
    """Settings of a solver: a frozen dataclass without tensors or counters, bound to a problem for each solve.

    To bring: ``family`` and ``bind``. ``contracting.contracts.SolverContract`` tests what is promised.
    """

    @property
    @abstractmethod
    def family(self) -> Family:
        """What kind of method it is, mostly a class attribute: ``family = Family.SPLITTING``."""

    @property
    def solves_systems(self) -> bool:
        """Whether a step solves a linear system per row, which no count of products shows."""
        return False

    @property
    def switch(self) -> tuple[int, Method] | None:
        """After how many steps the loop goes on with which other method, from the z it has; None for never."""
        return None

    @abstractmethod
    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        """The iteration on one problem; everything expensive is remembered on the weight of the problem.

        Args:
            problem: what to solve.
            stop: when it counts as solved, resolved for this problem.

        Raises:
            PreconditionError: if this method cannot solve this problem, before any work is done.
        """

    def chosen(self, problem: Problem, stop: Stop) -> Method:
        """The method that solves all rows of a problem, also after some have left: this one, or one it chooses.

        A method that chooses, or that has another inside, says here what is bound.
        """
        return self


def checked_method(name: str, value: Any) -> Method:
    """Return ``value`` if it is a method, else raise InputError."""
    if not isinstance(value, Method):
        raise InputError(f"{name} must be a method such as PeacemanRachford(), got {value!r}; {YOUR_OWN}")
    return value


def rows_of(state: State, index: Tensor) -> State:
    """The state of some rows."""
    entries = [
        entry[index] if isinstance(entry, Tensor) else rows_of(entry, index) if isinstance(entry, tuple) else entry
        for entry in state
    ]
    return type(state)(*entries) if hasattr(state, "_fields") else tuple(entries)


def in_graph(problem: Problem) -> bool:
    """Whether a graph is being recorded and the problem is part of it."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in problem.tensors())


def refuse_graph(problem: Problem, method: str) -> None:
    """Refuse a problem whose graph would have to lead through the steps of a method that cannot be in one.

    Raises:
        PreconditionError: if a graph is being recorded and the problem is part of it.
    """
    if in_graph(problem):
        raise PreconditionError(
            f"{method} cannot be differentiated through: use the implicit gradient, backward=Implicit(), or solve "
            "under torch.no_grad()"
        )
