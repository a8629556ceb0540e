"""The contract of a field whose steady state is known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from contracting.contracts.base import close, refused, require
from contracting.errors import Status
from contracting.flows.fields import VectorField
from contracting.flows.steady import as_field
from contracting.integrators import (
    RK4,
    BackwardEuler,
    BogackiShampine,
    DormandPrince,
    ExplicitEuler,
    Heun,
    PseudoTransient,
    RungeKuttaChebyshev,
    TorchDiffEq,
)
from contracting.loop.method import Method
from contracting.loop.records import SolveError, Stop
from contracting.solvers.anderson import Anderson
from contracting.solvers.automatic import Automatic
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.newton_krylov import NewtonKrylov
from contracting.steady_states.solving import SteadyState, steady_state

_SPEED = 256.0  # a power of two, by which times may be multiplied without rounding
_TELLING = 1e-4  # share of 1/eps above which a condition number is that of a singular Jacobian, for all one knows


class SteadyStateContract(ABC):
    """What ``steady_state`` promises for a field, tested on one of yours whose attracting steady state you know.

    Bring ``field``, ``start`` and ``answer``; and ``methods``, or what the usual ones need: ``step``, with which
    explicit Euler is stable, in the time of the field, ``hull``, where the eigenvalues are (None leaves out the methods
    that need them), and ``long_step``, of backward Euler. ``accuracy`` is of the answer, relative to 1 + |answer|.
    """

    step: float | None = None
    long_step: float = 10.0
    hull: tuple[complex, ...] | None = None
    time: float = 0.0
    each_entry: bool = False
    stop: Stop = Stop(max_steps=20_000)
    accuracy: float = 1e-6

    @abstractmethod
    def field(self) -> VectorField | nn.Module | Callable[..., Tensor]:
        """The field to be tested."""

    @abstractmethod
    def start(self) -> Tensor:
        """States to begin with, (batch, n), from which every method comes to the answer."""

    @abstractmethod
    def answer(self) -> Tensor:
        """The steady state of each row, (batch, n)."""

    def implicit(self) -> dict[str, Method]:
        """Methods that solve linear systems."""
        return {
            "Automatic": Automatic(),
            "PseudoTransient": PseudoTransient(),
            "BackwardEuler": BackwardEuler(step=self.long_step),
            "SemismoothNewton": SemismoothNewton(),
            "NewtonKrylov": NewtonKrylov(),
        }

    def explicit(self) -> dict[str, Method]:
        """Methods that evaluate the field, and nothing else."""
        found: dict[str, Method] = {
            "BogackiShampine": BogackiShampine(),
            "DormandPrince": DormandPrince(),
            "torchdiffeq-bosh3": TorchDiffEq("bosh3"),
        }
        if self.step is not None:
            euler = ExplicitEuler(step=self.step)
            found |= {"ExplicitEuler": euler, "Heun": Heun(step=self.step), "RK4": RK4(step=self.step)}
            found |= {"Anderson/ExplicitEuler": Anderson(euler)}
        if self.hull is not None:
            found["RungeKuttaChebyshev"] = RungeKuttaChebyshev(hull=self.hull)
        return found

    def methods(self) -> dict[str, Method]:
        """The methods that are to find it, by name."""
        return self.implicit() | self.explicit()

    def _solved(self, start: Tensor, method: Method, *, throw: bool = True) -> SteadyState:
        return steady_state(
            self.field(), start, method=method, stop=self.stop, time=self.time, each_entry=self.each_entry, throw=throw
        )

    def _method(self) -> Method:
        return next(iter(self.methods().values()))

    def test_every_method_finds_it(self) -> None:
        exact, field = self.answer(), as_field(self.field())
        for name, method in self.methods().items():
            solution = self._solved(self.start(), method, throw=False)
            require(solution.converged, f"{name} must find the answer: {solution.summary()}")
            close(solution.z.detach(), exact, f"the answer of {name}", self.accuracy)
            if not self.each_entry:
                value = torch.linalg.vector_norm(field(self.time, solution.z.detach()), dim=-1)
                rounding = 1e-3 * self.accuracy * solution.problem.usual_scale(solution.z.detach())
                require((value - solution.residual).abs() <= rounding, f"the residual of {name} must be that of f")

    def test_rows_are_strangers(self) -> None:
        start, many = self.start(), self._solved(self.start(), self._method())
        for row in range(len(start)):
            again = start.clone()
            again[torch.arange(len(start)) != row] = start[(row + 1) % len(start)] if len(start) > 1 else start[row]
            close(self._solved(again, self._method(), throw=False).z[row].detach(), many.z[row].detach(),
                  "a row must not see the others", self.accuracy)  # fmt: skip

    def test_a_start_at_the_answer_needs_no_step(self) -> None:
        found = self._solved(self.start(), self._method()).z.detach()
        for name, method in self.methods().items():
            steps = self._solved(found, method).steps
            require(steps == 0, f"from the answer itself {name} takes {steps.tolist()} steps")

    def test_running_out_of_steps_is_said(self) -> None:
        start = self.start()
        stop = Stop(max_steps=0)
        solution = steady_state(self.field(), start, stop=stop, time=self.time, throw=False)
        require(solution.status == Status.MAX_STEPS, f"not MAX_STEPS: {solution.summary()}")
        call = lambda: steady_state(self.field(), start, stop=stop, time=self.time)  # noqa: E731
        refused(SolveError, call, "rows that fail must not be returned in silence")

    def test_the_unit_of_time_makes_no_difference(self) -> None:
        field, found = as_field(self.field()), self._solved(self.start(), self._method())
        faster = steady_state(
            lambda t, s: _SPEED * field(t, s), found.z.detach(), stop=self.stop, time=self.time,
            each_entry=self.each_entry, throw=False,
        )  # fmt: skip
        require(faster.steps == 0, "what is solved must be solved in every unit of time")

    def test_its_gradient_is_that_of_the_equation(self) -> None:
        field, found = as_field(self.field()), self._solved(self.start(), self._method())
        z = found.z.detach()
        jacobian = found.problem.jacobian(z).detach()
        if not bool((torch.linalg.cond(jacobian) < _TELLING / torch.finfo(z.dtype).eps).all()):
            return  # a line of steady states, of which the answer is one
        shift = torch.zeros_like(z, requires_grad=True)
        solution = steady_state(lambda t, s: field(t, s) + shift, z, stop=self.stop, time=self.time)
        weights = torch.arange(1.0, z.shape[1] + 1, dtype=z.dtype) / found.problem.units(z)
        (gradient,) = torch.autograd.grad((weights * solution.z).sum(), shift)
        expected = -torch.linalg.solve(jacobian.mT, weights[:, :, None])[:, :, 0]
        close(gradient / expected.abs().amax(-1, keepdim=True), expected / expected.abs().amax(-1, keepdim=True),
              "the gradient in a constant added to f must be that of f = 0", self.accuracy)  # fmt: skip
