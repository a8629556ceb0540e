"""A method and its iteration: what the one loop asks of every solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from contracting.errors import PreconditionError
from contracting.loop.records import Stop
from contracting.memory import Key, plain
from contracting.problem import EquilibriumProblem

State = tuple[Tensor, ...]  # every tensor has one leading entry per row


class Iteration(ABC):
    """A method bound to one problem: pure functions over a tuple of tensors with one leading entry per row.

    Attributes:
        factor: predicted contraction factor per step, or None. For splittings, and for Euler and Heun on the
            forward–backward and Peaceman–Rachford flows, it is proved in the metric of the problem, from any start. For
            RK4, and for every integrator on the firing-rate and Hopfield flows, it bounds the linearised iteration: the
            rate close to the equilibrium.
        step_size: what the method chose or was given (α of a splitting, h of an integrator), or None where it varies.
        map_evals: applications of W (or of a resolvent of W) to the whole batch so far.
        check_every: steps between two checks that this method suggests.
        advice: why the method gave rows up, and what to do; part of the error that the loop raises.
        method: what to bind to the problem of some rows, where that is not the method that was bound.
        separable: whether the iteration on some rows is this method bound to the problem of those rows.
        check_start: whether the residual is worth a look before the first step.
        cold_start: whether z0 = 0 because nobody knew better; set by the loop.
    """

    factor: float | None = None
    step_size: float | None = None
    check_every: int = 1
    advice: str | None = None
    method: Method | None = None
    separable: bool = True
    check_start: bool = True
    cold_start: bool = False

    def __init__(self) -> None:
        self.map_evals = 0

    @abstractmethod
    def init(self, z0: Tensor) -> State:
        """The state that corresponds to z0."""

    @abstractmethod
    def step(self, state: State) -> State:
        """One iteration, or one time step."""

    def advance(self, state: State, taken: int, steps: int) -> State:
        """``steps`` iterations after the first ``taken``; a method may fuse them."""
        for _ in range(steps):
            state = self.step(state)
        return state

    def check_after(self, taken: int) -> int:
        """How many steps after ``taken`` the residual is looked at again; may depend on nothing else of the run."""
        return self.check_every

    def resume(self, state: State, preactivation: Tensor, taken: int) -> State:
        """The state after a check, which has computed Wz + q at the z of this state; a method may make use of it."""
        return state

    def on(self, problem: EquilibriumProblem) -> Iteration | None:
        """This iteration as it is on other rows of the same weights, or None where it has to be bound anew."""
        return None

    @abstractmethod
    def read(self, state: State) -> Tensor:
        """The current z, shape (batch, n)."""

    def given_up(self, state: State) -> Tensor | None:
        """Rows this method cannot advance any further, (batch,), which the loop reports as STALLED; None for no row."""
        return None


class Method(ABC):
    """Settings of a solver: a frozen dataclass without tensors or counters, bound to a problem for each solve."""

    @abstractmethod
    def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        """The iteration on one problem; everything expensive is remembered on the weight of the problem.

        Args:
            problem: what to solve.
            stop: when it counts as solved, resolved for this problem.

        Raises:
            PreconditionError: if this method cannot solve this problem, before any work is done.
        """

    def bound(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        """``bind``, or what it made earlier for as many rows of weights that stay, where ``Iteration.on`` moves that.

        Only settings that are numbers, words and frozen dataclasses of such are recognised; others are bound each time.
        """
        linear, activation = problem.linear, problem.activation
        if linear.changing or not (plain(self) and plain(activation)):
            return self.bind(problem, stop)

        def without_rows() -> Iteration | None:  # so that what is remembered keeps no batch alive
            return self.bind(problem, stop).on(replace(problem, q=problem.q.new_empty(0, problem.size)))

        made = linear.remember("bound", Key((self, stop, activation, problem.batch), problem.metric), without_rows)
        return (None if made is None else made.on(problem)) or self.bind(problem, stop)


def refuse_graph(problem: EquilibriumProblem, method: str) -> None:
    """Refuse a problem whose graph would have to lead through the steps of a method that cannot be in one.

    Raises:
        PreconditionError: if a graph is being recorded and the problem is part of it.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in problem.tensors()):
        raise PreconditionError(
            f"{method} cannot be differentiated through: use the implicit gradient, backward=Implicit(), or solve "
            "under torch.no_grad()"
        )

