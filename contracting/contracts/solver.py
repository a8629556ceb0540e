"""The contract of a solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import is_dataclass, replace

import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.activations.catalogue import Identity, ReLU, Tanh
from contracting.contracts.base import DOUBLE, close, draw, monotone, require
from contracting.errors import Status
from contracting.loop.method import Family, Iteration, Method
from contracting.loop.records import Solution, Stop, Trace
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem


class SolverContract(ABC):
    """What every solver promises, on problems whose equilibria are known.

    Bring ``method``; and ``weight``, if the solver is made for special weights. ``stop`` is when a problem counts as
    solved, ``looseness`` multiplies the rounding, 1e-12, by which two solves of a row may differ, and ``device`` is
    where all problems are.
    """

    stop = Stop(rtol=1e-8, max_steps=400_000, patience=50_000)
    looseness: float = 1.0
    device: str | torch.device = "cpu"

    @abstractmethod
    def method(self) -> Method:
        """The solver to be tested."""

    def weight(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """W, (n, n), and the weights λ, (n,), of a metric in which I − W is strongly monotone, both float64."""
        return monotone(n, seed)

    def _planted(
        self, rows: int, n: int, activation: Activation | None = None, dtype: torch.dtype = DOUBLE
    ) -> tuple[EquilibriumProblem, Tensor]:
        """A problem and its equilibrium: z = σ(v) with q = v − Wz for some v; σ is ReLU unless given."""
        activation = activation or ReLU()
        drawn = (*self.weight(n, n), draw(rows, n, seed=rows))
        W, weights, v = (tensor.to(self.device, dtype) for tensor in drawn)
        z, metric = activation(v), WeightedL2(weights)
        return EquilibriumProblem(linear=Dense(W), q=v - z @ W.mT, activation=activation, metric=metric), z

    def _solved(self, problem: EquilibriumProblem, trace: Trace | None = None) -> Solution:
        return solve(problem, self.method(), stop=self.stop, trace=trace, throw=False)

    def test_it_declares_its_family_and_keeps_its_settings(self) -> None:
        method, before = self.method(), dict(vars(self.method()))
        require(isinstance(method, Method) and method.family in set(Family), f"family must be one of {[*Family]}")
        solve(self._planted(2, 5)[0], method, stop=self.stop)
        require(vars(method) == before, "a solve has changed the settings of the method")
        frozen = not is_dataclass(method) or type(method).__dataclass_params__.frozen
        require(frozen, f"{type(method).__name__} must be a frozen dataclass")

    def test_it_finds_known_equilibria(self) -> None:
        for activation in (ReLU(), Tanh(), Identity()):
            problem, exact = self._planted(3, 6, activation)
            close(self._solved(problem).z, exact, f"the equilibrium of {activation} must be found", 1e-6)
        problem, exact = self._planted(3, 20, dtype=torch.float32)
        z = solve(problem, self.method(), stop=Stop(rtol=1e-5)).z
        require(z.dtype == torch.float32, f"a float32 problem was answered in {z.dtype}")
        close(z, exact, "the float32 equilibrium must be found", 2e-3)

    def test_a_start_at_the_solution_needs_no_step(self) -> None:
        problem, exact = self._planted(2, 5)
        steps = solve(problem, self.method(), z0=exact).steps
        require(steps == 0, f"from the solution itself it takes {steps.tolist()} steps")
        read = self._iteration(problem).read(self._iteration(problem).init(exact))
        close(read, exact, "read(init(z)) must be z at an equilibrium", 1e-6)
        require(self._solved(self._planted(0, 4)[0]).z.shape == (0, 4), "an empty batch must give an empty answer")

    def test_running_out_of_steps_is_said(self) -> None:
        problem, _ = self._planted(2, 5)
        solution = solve(problem, self.method(), stop=Stop(rtol=1e-14, max_steps=0), throw=False)
        require(solution.status == Status.MAX_STEPS, f"not MAX_STEPS: {solution.summary()}")
        close(solution.residual, problem.residual(solution.z).norm(dim=-1), "the residual must be that of z")

    def test_rows_do_not_see_each_other(self) -> None:
        problem, _ = self._planted(6, 8)
        problem = replace(problem, q=problem.q * torch.logspace(-4, 4, 6, dtype=DOUBLE, device=self.device)[:, None])
        together, order = self._solved(problem), torch.tensor([3, 0, 5, 1, 4, 2])
        permuted, size = self._solved(problem.rows(order)), together.z.norm(dim=-1, keepdim=True)
        require(torch.equal(permuted.steps, together.steps[order]), "the order of rows changes their steps")
        alone = torch.cat([self._solved(problem.rows(torch.tensor([row]))).z for row in range(6)])
        for found, index in ((permuted.z, order), (alone, torch.arange(6))):
            expected, promise = (together.z / size)[index], "a row in another order, or alone, gets another answer"
            close(found / size[index], expected, promise, 1e-12 * self.looseness)

    def test_a_lost_row_leaves_the_others_as_they_were(self) -> None:
        problem, _ = self._planted(5, 8)
        healthy, others = self._solved(problem), [0, 1, 3, 4]
        for bad in (torch.nan, torch.inf):
            q = problem.q.clone()
            q[2, 3] = bad
            mixed = self._solved(replace(problem, q=q))
            require(mixed.status[2] == Status.NONFINITE, f"a row with {bad} ends as {mixed.summary()}")
            same = torch.equal(mixed.z[others], healthy.z[others])
            require(same and torch.equal(mixed.steps[others], healthy.steps[others]), f"{bad} in a row moves others")

    def _iteration(self, problem: EquilibriumProblem) -> Iteration:
        """The iteration on a problem, as the loop binds it."""
        stop = self.stop.resolved(problem)
        return self.method().chosen(problem, stop).bind(problem, stop)

    def test_a_step_from_the_same_state_is_the_same_step(self) -> None:
        problem, _ = self._planted(3, 6)
        iteration = self._iteration(problem)
        for start in (iteration.init(problem.zeros()), iteration.cold() or iteration.init(problem.zeros())):
            state = iteration.advance(start, 0, 2)
            first = iteration.read(iteration.advance(state, 2, 3)).clone()
            iteration.resume(state, problem.preactivation(iteration.read(state)), 2)
            iteration.advance(iteration.init(problem.q), 0, 4)
            for other in (iteration, self._iteration(problem)):
                close(other.read(other.advance(state, 2, 3)), first, "advance must be a function of the state", 0.0)

    def test_watching_changes_no_bit(self) -> None:
        problem, _ = self._planted(3, 8)
        plain, trace = self._solved(problem), Trace(every=3, keep_z=True)
        watched = self._solved(problem, trace)
        same = torch.equal(plain.z, watched.z) and torch.equal(plain.steps, watched.steps)
        require(same and plain.map_evals == watched.map_evals, "a trace changes the answer, the steps or their count")
        for residual, z in zip(trace.residual, trace.z, strict=True):
            close(residual, problem.residual(z).norm(dim=-1), "a trace must show true residuals")
