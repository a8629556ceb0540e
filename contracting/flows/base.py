r"""Flows s' = f(t, s) whose steady state is the equilibrium.

Each flow here has the form s' = T(s) − s for a map T, so that explicit Euler with unit step *is* the fixed-point
iteration of T: the firing-rate flow gives z ↦ σ(Wz + q), the forward–backward flow gives forward–backward splitting,
the Peaceman–Rachford flow gives Peaceman–Rachford splitting. Settings (``FiringRate()``) are bound to a problem
(``FiringRate().bind(problem)``), which gives a plain callable f(t, s) for any ODE integrator.

Condition 1 makes every one of these flows converge for a constant input. It does *not* make the firing-rate and
Hopfield flows contract: that is a separate property with its own certificates.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from contracting.display import Row
from contracting.errors import InputError, PreconditionError
from contracting.flows.fields import VectorField
from contracting.maps.operator import StepChoice
from contracting.problem import EquilibriumProblem, Problem, checked_problem
from contracting.types import Time


class SteadyFlow(VectorField):
    """A field s' = f(t, s) whose steady states solve a problem: what integrators and Newton's methods follow.

    Attributes:
        problem: what is solved; its unknown is ``read`` from a state.
    """

    problem: Problem

    def map(self, state: Tensor) -> Tensor:
        """T(s) = s + f(0, s), whose fixed points are the steady states: (batch, n) -> (batch, n)."""
        return state + self(0.0, state)

    def defect(self, state: Tensor) -> Tensor:
        """T(s) − s, rounded relative to its own size where the flow knows how: (batch, n) -> (batch, n)."""
        return self(0.0, state)

    @abstractmethod
    def on(self, problem: Any) -> Self:
        """The same flow on another problem of its kind."""

    @property
    def euler_step(self) -> StepChoice:
        """The step of explicit Euler with the best proved factor.

        Raises:
            PreconditionError: if nothing is proved of this flow, or I − W is not strongly monotone in the metric of the
                problem.
        """
        raise PreconditionError(f"{type(self).__name__} proves no step of explicit Euler: pass step=...")

    @property
    def rate(self) -> float | None:
        """A proved rate of convergence to the steady state for constant input, None where nothing is proved."""
        return None


class BoundFlow(SteadyFlow):
    """A flow on a given problem: the callable f(t, s) and how states and equilibria correspond.

    States have the shape of z, (batch, n); a problem of one row serves any number of states. The class itself is the
    flow where there is nothing to set: ``DormandPrince(flow=Mine)``. One with settings brings a frozen dataclass with
    ``bind(problem)`` as well, as ``FiringRate`` is.

    A flow of one's own brings one of

    * ``map(state)``: T(s), where f(t, s) = T(s) − s; or
    * ``__call__(t, state)``: the field f(t, s) itself,

    both of ``self.problem``. Everything else has a default: a state is z itself (override ``init`` and ``read``, which
    must map equilibria to steady states and back), ``jacobian`` and ``jvp`` come from autograd, and nothing is proved
    (``euler_step``, ``rate``, ``contraction_rate``). A flow that keeps what it has computed from q overrides ``on``.
    ``contracting.contracts.FlowContract`` tests all of this.
    """

    problem: EquilibriumProblem

    def __init__(self, problem: EquilibriumProblem):
        kind = type(self)
        if kind.map is SteadyFlow.map and kind.__call__ is BoundFlow.__call__:
            raise InputError(f"{kind.__name__} must bring map(state) or __call__(t, state)")
        self.problem = checked_problem(problem)

    def shown(self) -> Sequence[Row]:
        return self.problem.shown()

    @classmethod
    def bind(cls, problem: EquilibriumProblem) -> Self:
        """The flow on a problem, from the class."""
        return cls(problem)

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        """The field f(t, s) = T(s) − s."""
        return self.map(state) - state

    def tensors(self) -> tuple[Tensor, ...]:
        return self.problem.tensors()

    def with_input(self, q: Tensor) -> Self:
        """The same flow, with the same step and what is known of it, under another input q, (batch, n)."""
        return self.on(replace(self.problem, q=q))

    def on(self, problem: EquilibriumProblem) -> Self:
        """The same flow on a problem with the same weight and metric."""
        flow = copy.copy(self)
        flow.problem = problem
        return flow

    @property
    def contraction_rate(self) -> float | None:
        r"""A proved rate of contraction in the metric of the problem, under any input q(t); None where there is none.

        Trajectories satisfy ‖s₁(t) − s₂(t)‖_Λ ≤ e^{−ct}‖s₁(0) − s₂(0)‖_Λ. Where c is negative they are not proved to
        contract in this metric, and separate at most that fast. Other metrics may certify more.
        """
        return None


def less_identity(matrices: Tensor) -> Tensor:
    """M − I, the Jacobian of T(s) − s from that of T: (batch, n, n) -> (batch, n, n)."""
    return matrices - torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)


class Flow(Protocol):
    """The settings of a flow; ``bind`` makes it a callable on one problem."""

    def bind(self, problem: EquilibriumProblem) -> BoundFlow:
        """The flow on a problem."""
        ...


def as_flow(flow: Flow | type[Flow]) -> Flow:
    """Accept ``FiringRate`` as well as ``FiringRate()``, and a ``BoundFlow`` class, which has no settings.

    Raises:
        InputError: if it is neither a flow nor a flow class, or a flow that is bound already.
    """
    made = flow() if isinstance(flow, type) and not issubclass(flow, BoundFlow) else flow
    if isinstance(made, BoundFlow):
        raise InputError(f"flow must be settings such as FiringRate(), got a {type(made).__name__} bound to a problem")
    if not callable(getattr(made, "bind", None)):
        raise InputError(f"flow must be a flow such as FiringRate() or Hopfield(), got {flow!r}")
    return made
