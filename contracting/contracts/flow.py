"""The contract of a flow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from contracting.activations.catalogue import Tanh
from contracting.contracts.base import DOUBLE, close, draw, monotone, require
from contracting.errors import PreconditionError
from contracting.flows.base import BoundFlow, Flow, as_flow
from contracting.flows.fields import VectorField
from contracting.integrators.implicit import PseudoTransient
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem

_ROWS, _SIZE = 4, 5
_DIFFERENCE = 1e-5  # in units of the state: central differences are then exact to about 1e-9 in float64


class FlowContract(ABC):
    """What every flow promises, on a problem that has a known equilibrium.

    Bring ``flow``; and ``known``, if the flow is for problems of a special kind.
    """

    @abstractmethod
    def flow(self) -> Flow | type[Flow]:
        """The flow to be tested, as it is handed to a solver."""

    def known(self) -> tuple[EquilibriumProblem, Tensor]:
        """A smooth float64 problem of several rows, with its equilibrium."""
        W, weights = monotone(_SIZE, seed=0)
        v = draw(_ROWS, _SIZE, seed=2)
        z, metric = torch.tanh(v), WeightedL2(weights)
        return EquilibriumProblem(linear=Dense(W), q=v - z @ W.mT, activation=Tanh(), metric=metric), z

    def _on(self, problem: EquilibriumProblem) -> BoundFlow:
        return as_flow(self.flow()).bind(problem)

    def _bound(self) -> tuple[BoundFlow, Tensor, EquilibriumProblem, Tensor]:
        """The flow, states away from equilibrium, the problem and its equilibrium."""
        problem, z = self.known()
        flow = self._on(problem)
        return flow, flow.init(z) + 0.3 * draw(*z.shape, seed=1), problem, z

    def test_steady_states_are_equilibria(self) -> None:
        flow, states, problem, z = self._bound()
        require(isinstance(flow, BoundFlow), "bind must return a BoundFlow")
        close(flow(0.0, flow.init(z)), 0 * z, "the state of an equilibrium must be at rest", 1e-8)
        close(flow.read(flow.init(z)), z, "read must give back the equilibrium that init was given", 1e-8)
        require(flow(0.0, states).abs().amax(-1) > 1e-6, "only equilibria may be at rest")
        found = solve(problem, PseudoTransient(flow=self.flow()), stop=Stop(max_steps=500), throw=False)
        close(found.z, z, "a solver must find its steady state", 1e-5)

    def test_the_field_is_the_map_less_the_state(self) -> None:
        flow, states, _, _ = self._bound()
        before, value = states.clone(), flow(0.0, states)
        close(flow.map(states) - states, value, "map(s) − s must be the field")
        close(flow.defect(states), value, "defect must be the field")
        for t in (torch.tensor(0.0), torch.zeros(len(states), 1, dtype=DOUBLE)):
            close(flow(t, states), value, "the time may be a number, of shape (), or of shape (batch, 1)", 0.0)
        close(states, before, "the field must not write to the state", 0.0)

    def test_jacobians_are_derivatives(self) -> None:
        flow, states, _, _ = self._bound()
        matrices = flow.jacobian(states)
        steps = _DIFFERENCE * torch.eye(states.shape[1], dtype=DOUBLE)
        columns = [(flow(0.0, states + step) - flow(0.0, states - step)) / (2 * _DIFFERENCE) for step in steps]
        close(matrices, torch.stack(columns, -1), "jacobian must be the derivative of the field", 1e-6)
        close(VectorField.jacobian(flow, states), matrices, "autograd must see what the field depends on", 1e-8)
        action = (matrices @ states[:, :, None])[:, :, 0]
        close(flow.jvp(states, states), action, "jvp must be the action of the Jacobian")

    def test_rows_are_strangers(self) -> None:
        flow, states, problem, _ = self._bound()
        value = flow(0.0, states)
        for row in range(len(states)):
            alone, own = problem.rows(torch.tensor([row])), states[row : row + 1]
            for one in (self._on(alone), flow.on(alone)):
                close(one(0.0, own)[0], value[row], "a row must not see the others")
            many = self._on(alone)(0.0, own.expand(3, -1))
            close(many, value[row].expand(3, -1), "a problem of one row must serve any number of states")

    def test_another_input_is_another_problem(self) -> None:
        flow, states, problem, z = self._bound()
        value, q = flow(0.0, states), problem.q.flip(0) + 0.5
        fresh, moved = self._on(replace(problem, q=q)), flow.with_input(q)
        close(moved(0.0, states), fresh(0.0, states), "with_input must forget all that came from the old q")
        close(moved.init(z), fresh.init(z), "init must be that of the new input")
        close(moved.jacobian(states), fresh.jacobian(states), "the Jacobian must be that of the new input")
        close(flow(0.0, states), value, "with_input must return another flow and leave this one alone", 0.0)

    def test_gradients_reach_the_problem(self) -> None:
        _, states, problem, _ = self._bound()
        tensors = [tensor.clone().requires_grad_() for tensor in problem.tensors()]
        total = self._on(problem.with_tensors(tensors))(0.0, states).sum()
        promise = "autograd must see how the field depends on every tensor of the problem"
        require(total.requires_grad, promise)
        for gradient in torch.autograd.grad(total, tensors, allow_unused=True):
            require(gradient is not None and bool(gradient.isfinite().all() and gradient.any()), promise)
        # an automatic step follows W and is another where W needs a gradient, hence q alone
        q = tensors[0]
        (slope,) = torch.autograd.grad(self._on(replace(problem, q=q))(0.0, states).sum(), q)
        shifted = [replace(problem, q=problem.q + shift) for shift in (_DIFFERENCE, -_DIFFERENCE)]
        ahead, behind = (self._on(moved)(0.0, states).sum() for moved in shifted)
        close(slope.sum(), (ahead - behind) / (2 * _DIFFERENCE), "the gradient in q must be the derivative", 1e-6)

    def test_the_dtype_is_that_of_the_problem(self) -> None:
        _, states, problem, z = self._bound()
        flow = self._on(problem.with_tensors([tensor.float() for tensor in problem.tensors()]))
        for value in (flow(0.0, states.float()), flow.init(z.float()), flow.read(states.float())):
            require(value.dtype == torch.float32 and value.isfinite().all(), "float32 must stay float32")

    def test_no_rate_is_claimed_that_is_not_there(self) -> None:
        flow, states, problem, z = self._bound()
        local = torch.linalg.eigvals(flow.jacobian(flow.init(z)).detach())
        if flow.contraction_rate is not None and problem.metric is not None:
            seen = -float(problem.metric.matrix_measure(flow.jacobian(3 * states).detach()).max())
            require(seen >= flow.contraction_rate - 1e-9, f"claims to contract at {flow.contraction_rate}, has {seen}")
        if flow.rate is not None:
            slowest = -float(local.real.max())
            require(slowest >= flow.rate - 1e-9, f"claims to converge at {flow.rate}, ends at {slowest}")
        try:
            choice = flow.euler_step
        except PreconditionError:
            return
        radius = float((1 + float(choice.step) * local).abs().max())
        require(radius <= (1.0 if choice.factor is None else choice.factor) + 1e-9, "Euler's step must shrink errors")
