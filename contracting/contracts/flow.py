"""The contract of a flow: subclass ``FlowContract``, bring the flow, inherit the tests."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from contracting.activations.catalogue import Tanh
from contracting.errors import PreconditionError
from contracting.flows.base import BoundFlow, Flow
from contracting.flows.fields import VectorField
from contracting.integrators.implicit import PseudoTransient
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem

_ROWS, _SIZE = 4, 5
_DIFFERENCE = 1e-5  # in units of the state: central differences are then exact to about 1e-9 in float64


class FlowContract:
    """What every flow promises, on a problem that has a known equilibrium.

    Bring ``flow``; bring ``known`` as well if the flow is for problems of a special kind.
    """

    def flow(self) -> Flow:
        """The settings of the flow."""
        raise NotImplementedError("bring flow(), which returns the settings of your flow")

    def known(self) -> tuple[EquilibriumProblem, Tensor]:
        """A smooth float64 problem of several rows, with its equilibrium: a skewed weight with m = 1, a graded Λ."""
        generator = torch.Generator().manual_seed(0)
        G, S, v = (torch.randn(rows, _SIZE, generator=generator, dtype=torch.float64) for rows in (_SIZE, _SIZE, _ROWS))
        lam = torch.logspace(-0.3, 0.3, _SIZE, dtype=torch.float64)
        A = torch.eye(_SIZE, dtype=torch.float64) + 0.1 * G @ G.mT + 0.3 * (S - S.mT)
        W = torch.eye(_SIZE, dtype=torch.float64) - A / lam.sqrt()[:, None] * lam.sqrt()
        z = torch.tanh(v)
        return EquilibriumProblem(linear=Dense(W), q=v - z @ W.mT, activation=Tanh(), metric=WeightedL2(lam)), z

    def _bound(self) -> tuple[BoundFlow, Tensor, EquilibriumProblem, Tensor]:
        """The flow, states away from equilibrium, the problem and its equilibrium."""
        problem, z = self.known()
        flow = self.flow().bind(problem)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=z.dtype)
        return flow, flow.init(z) + 0.3 * noise, problem, z

    def test_steady_states_are_equilibria(self) -> None:
        """f(init(z)) = 0 and read(init(z)) = z at an equilibrium z, and nothing is at rest elsewhere."""
        flow, states, _, z = self._bound()
        assert isinstance(flow, BoundFlow), "bind must return a BoundFlow"
        _close(flow(0.0, flow.init(z)), torch.zeros_like(z), 1e-8, "the state of an equilibrium must be at rest")
        _close(flow.read(flow.init(z)), z, 1e-8, "read must give back the equilibrium that init was given")
        assert bool((flow(0.0, states).abs().amax(-1) > 1e-6).all()), "only equilibria may be at rest"

    def test_the_field_is_the_map_less_the_state(self) -> None:
        """F(t, s) = T(s) − s = defect(s), at every form of the time, with the state left as it was."""
        flow, states, _, _ = self._bound()
        before, value = states.clone(), flow(0.0, states)
        _close(flow.map(states) - states, value, 1e-10, "map(s) − s must be the field")
        _close(flow.defect(states), value, 1e-10, "defect must be the field")
        for t in (torch.tensor(0.0), torch.zeros(len(states), 1, dtype=torch.float64)):
            _close(flow(t, states), value, 0.0, "the time may be a number, of shape (), or of shape (batch, 1)")
        assert torch.equal(states, before), "the field must not write to the state"

    def test_jacobians_are_derivatives(self) -> None:
        """∂f/∂s by central differences; its action without the matrix, and what autograd makes of the field."""
        flow, states, _, _ = self._bound()
        matrices = flow.jacobian(states)
        steps = _DIFFERENCE * torch.eye(states.shape[1], dtype=states.dtype)
        columns = [(flow(0.0, states + step) - flow(0.0, states - step)) / (2 * _DIFFERENCE) for step in steps]
        _close(matrices, torch.stack(columns, -1), 1e-6, "jacobian must be the derivative of the field")
        _close(VectorField.jacobian(flow, states), matrices, 1e-8, "autograd must see what the field depends on")
        action = (matrices @ states[:, :, None])[:, :, 0]
        _close(flow.jvp(states, states), action, 1e-10, "jvp must be the action of the Jacobian")

    def test_rows_are_strangers(self) -> None:
        """A row alone moves as it does among others; a problem of one row serves any number of states."""
        flow, states, problem, _ = self._bound()
        value = flow(0.0, states)
        for row in range(len(states)):
            alone = problem.rows(torch.tensor([row]))
            for one in (self.flow().bind(alone), flow.on(alone)):
                _close(one(0.0, states[row : row + 1])[0], value[row], 1e-10, "a row must not see the others")
            many = self.flow().bind(alone)(0.0, states[row : row + 1].expand(3, -1))
            _close(many, value[row].expand(3, -1), 1e-10, "a problem of one row must serve any number of states")

    def test_another_input_is_another_problem(self) -> None:
        """``with_input`` is ``bind`` on the problem with that input, and leaves the flow itself as it was."""
        flow, states, problem, z = self._bound()
        value, q = flow(0.0, states), problem.q.flip(0) + 0.5
        fresh, moved = self.flow().bind(replace(problem, q=q)), flow.with_input(q)
        _close(moved(0.0, states), fresh(0.0, states), 1e-10, "with_input must forget all that came from the old q")
        _close(moved.init(z), fresh.init(z), 1e-10, "init must be that of the new input")
        _close(moved.jacobian(states), fresh.jacobian(states), 1e-10, "the Jacobian must be that of the new input")
        _close(flow(0.0, states), value, 0.0, "with_input must return another flow and leave this one alone")

    def test_gradients_reach_the_problem(self) -> None:
        """The field is differentiable in every tensor of the problem; in q by central differences."""
        _, states, problem, _ = self._bound()
        tensors = [tensor.clone().requires_grad_() for tensor in problem.tensors()]
        total = self.flow().bind(problem.with_tensors(tensors))(0.0, states).sum()
        assert total.requires_grad, "autograd must see that the field depends on the problem"
        for gradient in torch.autograd.grad(total, tensors, allow_unused=True):
            reached = gradient is not None and bool(gradient.isfinite().all() and gradient.any())
            assert reached, "autograd must see how the field depends on every tensor of the problem"
        # an automatic step follows W and is another where W needs a gradient, hence q alone
        q = tensors[0]
        (slope,) = torch.autograd.grad(self.flow().bind(replace(problem, q=q))(0.0, states).sum(), q)
        shifted = (replace(problem, q=problem.q + shift) for shift in (_DIFFERENCE, -_DIFFERENCE))
        ahead, behind = (self.flow().bind(moved)(0.0, states).sum() for moved in shifted)
        _close(slope.sum(), (ahead - behind) / (2 * _DIFFERENCE), 1e-6, "the gradient in q must be the derivative")

    def test_the_dtype_is_that_of_the_problem(self) -> None:
        """A float32 problem has a float32 flow."""
        _, states, problem, z = self._bound()
        assert isinstance(problem.metric, WeightedL2)
        single = problem.with_tensors([tensor.float() for tensor in problem.tensors()])
        flow = self.flow().bind(single)
        for value in (flow(0.0, states.float()), flow.init(z.float()), flow.read(states.float())):
            assert value.dtype == torch.float32 and bool(torch.isfinite(value).all()), "float32 must stay float32"

    def test_no_rate_is_claimed_that_is_not_there(self) -> None:
        """Contraction at every state looked at, convergence at the equilibrium, and Euler's factor there."""
        flow, states, problem, z = self._bound()
        if flow.contraction_rate is not None:
            assert problem.metric is not None, "a contraction rate is about the metric of the problem"
            worst = float(problem.metric.matrix_measure(flow.jacobian(3 * states).detach()).max())
            assert worst <= 1e-9 - flow.contraction_rate, f"claims to contract at {flow.contraction_rate}, has {-worst}"
        local = torch.linalg.eigvals(flow.jacobian(flow.init(z)).detach())
        if flow.rate is not None:
            slowest = -float(local.real.max())
            assert slowest >= flow.rate - 1e-9, f"claims to converge at {flow.rate}, ends at {slowest}"
        try:
            choice = flow.euler_step
        except PreconditionError:
            return
        radius = float((1 + float(choice.step) * local).abs().max())
        assert radius <= (1.0 if choice.factor is None else choice.factor) + 1e-9, "Euler's step must shrink errors"

    def test_a_solver_finds_the_equilibrium(self) -> None:
        """The flow is good for what flows are for."""
        problem, z = self.known()
        found = solve(problem, PseudoTransient(flow=self.flow()), stop=Stop(max_steps=500), throw=False)
        _close(found.z, z, 1e-5, "its steady state must be found")


def _close(found: Tensor, expected: Tensor, tolerance: float, promise: str) -> None:
    assert found.shape == expected.shape, f"{promise}: shape {tuple(found.shape)} in place of {tuple(expected.shape)}"
    error = float((found - expected).detach().abs().max())
    assert error <= tolerance * (1 + float(expected.detach().abs().max())), f"{promise}, but is off by {error:.2g}"
