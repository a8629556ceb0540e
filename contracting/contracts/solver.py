"""The contract of a solver: whatever a ``Method`` promises, tested on problems whose equilibria are known."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.activations.catalogue import Identity, ReLU, Tanh
from contracting.errors import Status
from contracting.loop.method import Family, Iteration, Method
from contracting.loop.records import Stop, Trace
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem

_DOUBLE = torch.float64


class SolverContract:
    r"""Tests that every solver passes: subclass it, bring two factories, inherit the tests.

    * ``method()``: the solver, with the settings to be tested.
    * ``weight(n, seed)``: W and the weights of a metric Λ in which I − W is strongly monotone, both float64, of the
      kind that the solver is made for. Mostly that of this class will do, whose skew part is as large as its symmetric.

    A solver itself brings ``family`` and ``bind(problem, stop)``, which gives an ``Iteration``; that brings ``init``,
    ``step`` and ``read``. ``looseness`` (1) multiplies the rounding by which two solves of a row may differ.

    >>> class TestMine(SolverContract):
    ...     def method(self):
    ...         return Mine()
    """

    stop = Stop(rtol=1e-8, max_steps=400_000, patience=50_000)
    looseness: float = 1.0

    def method(self) -> Method:
        """The solver to be tested."""
        raise NotImplementedError("a contract of a solver brings method()")

    def weight(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """W, (n, n), and λ, (n,), with λmin of the symmetric part of Λ^½(I − W)Λ^−½ equal to one."""
        generator = torch.Generator().manual_seed(seed)
        V, S = (torch.randn(n, n, generator=generator, dtype=_DOUBLE) / n**0.5 for _ in range(2))
        root = torch.exp(0.5 * torch.rand(n, generator=generator, dtype=_DOUBLE))
        A = torch.eye(n, dtype=_DOUBLE) + V @ V.mT - torch.linalg.eigvalsh(V @ V.mT)[0] * torch.eye(n, dtype=_DOUBLE)
        return torch.eye(n, dtype=_DOUBLE) - (A + S - S.mT) / root[:, None] * root, root.square()

    def planted(
        self, activation: Activation, *, n: int, rows: int, seed: int, dtype: torch.dtype = _DOUBLE
    ) -> tuple[EquilibriumProblem, Tensor]:
        """A problem and its equilibrium: z = σ(v) with q = v − Wz for some v."""
        W, weights = (tensor.to(dtype) for tensor in self.weight(n, seed))
        v = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed + 1), dtype=_DOUBLE).to(dtype)
        z = activation(v)
        return EquilibriumProblem(
            linear=Dense(W), q=v - z @ W.mT, activation=activation, metric=WeightedL2(weights)
        ), z

    def bound(self, problem: EquilibriumProblem) -> Iteration:
        """The iteration on a problem, as the loop binds it."""
        stop = self.stop.resolved(problem)
        return self.method().chosen(problem, stop).bind(problem, stop)

    # ---- settings

    def test_it_declares_its_family(self) -> None:
        """So that comparisons and figures know what kind of method it is."""
        method = self.method()
        _require(isinstance(method, Method), f"{method!r} does not derive from Method")
        _require(method.family in set(Family), f"family must be one of {[*Family]}, got {method.family!r}")

    def test_settings_do_not_change(self) -> None:
        """A solve may not leave anything on the method."""
        problem, _ = self.planted(ReLU(), n=5, rows=2, seed=1)
        method = self.method()
        before = dict(vars(method))
        solve(problem, method, stop=self.stop)
        _require(vars(method) == before, "a solve has changed the settings of the method")
        if dataclasses.is_dataclass(method):
            frozen = type(method).__dataclass_params__.frozen
            _require(frozen, f"{type(method).__name__} must be a frozen dataclass")

    # ---- what it finds

    def test_it_finds_known_equilibria(self) -> None:
        """For piecewise linear, smooth and linear σ."""
        for activation in (ReLU(), Tanh(), Identity()):
            problem, exact = self.planted(activation, n=6, rows=3, seed=2)
            solution = solve(problem, self.method(), stop=self.stop)
            wrong = _norm(solution.z - exact) > 1e-6 * _norm(exact) + 1e-10
            _require(not bool(wrong.any()), f"the equilibria of {activation} were not found: {solution.summary()}")

    def test_single_precision_stays_single(self) -> None:
        """A float32 problem is solved to 1e-5 in float32."""
        problem, exact = self.planted(ReLU(), n=20, rows=3, seed=3, dtype=torch.float32)
        z = solve(problem, self.method(), stop=Stop(rtol=1e-5)).z
        _require(z.dtype == torch.float32, f"a float32 problem was answered in {z.dtype}")
        _require(bool((_norm(z - exact) <= 1e-3 * _norm(exact)).all()), "the float32 equilibrium was not found")

    def test_a_start_at_the_solution_needs_no_step(self) -> None:
        """``init`` maps an equilibrium to its state, and ``read`` gives it back."""
        problem, exact = self.planted(ReLU(), n=5, rows=2, seed=4)
        steps = solve(problem, self.method(), z0=exact).steps
        _require(bool((steps == 0).all()), f"from the solution itself it takes {steps.tolist()} steps")

    def test_an_empty_batch_is_solved(self) -> None:
        """No rows are no problem."""
        problem, _ = self.planted(ReLU(), n=4, rows=0, seed=5)
        _require(solve(problem, self.method()).z.shape == (0, 4), "an empty batch must give an empty answer")

    def test_running_out_of_steps_is_said(self) -> None:
        """With no step allowed, a row that is not solved at the start is MAX_STEPS, at its true residual."""
        problem, _ = self.planted(ReLU(), n=5, rows=2, seed=6)
        solution = solve(problem, self.method(), stop=Stop(rtol=1e-14, max_steps=0), throw=False)
        _require(bool((solution.status == Status.MAX_STEPS).all()), f"not MAX_STEPS: {solution.summary()}")
        _require(_close(solution.residual, _norm(problem.residual(solution.z))), "the residual is not that of z")

    # ---- rows are strangers

    def test_rows_do_not_see_each_other(self) -> None:
        """Rows of very different size, in another order and alone, get the answers that they get together."""
        problem, _ = self.planted(ReLU(), n=8, rows=6, seed=7)
        problem = dataclasses.replace(problem, q=problem.q * torch.logspace(-4, 4, 6, dtype=_DOUBLE)[:, None])
        together = solve(problem, self.method(), stop=self.stop)
        allowed = 1e-12 * self.looseness * _norm(together.z)[:, None]
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        permuted = solve(problem.rows(order), self.method(), stop=self.stop)
        _require(torch.equal(permuted.steps, together.steps[order]), "the order of rows changes their steps")
        _require(bool(((permuted.z - together.z[order]).abs() <= allowed[order]).all()), "the order changes answers")
        for row in range(6):
            alone = solve(problem.rows(torch.tensor([row])), self.method(), stop=self.stop)
            apart = (alone.z[0] - together.z[row]).abs()
            _require(bool((apart <= allowed[row]).all()), f"row {row} alone gets another answer: {apart.max():.1e}")

    def test_a_lost_row_leaves_the_others_as_they_were(self) -> None:
        """A NaN or an infinity in one row is NONFINITE there, and changes no bit of the others."""
        problem, _ = self.planted(ReLU(), n=8, rows=5, seed=8)
        healthy = solve(problem, self.method(), stop=self.stop)
        others = [0, 1, 3, 4]
        for bad in (float("nan"), float("inf")):
            q = problem.q.clone()
            q[2, 3] = bad
            mixed = solve(dataclasses.replace(problem, q=q), self.method(), stop=self.stop, throw=False)
            _require(int(mixed.status[2]) == Status.NONFINITE, f"a row with {bad} ends as {mixed.summary()}")
            same = torch.equal(mixed.z[others], healthy.z[others])
            _require(same and torch.equal(mixed.steps[others], healthy.steps[others]), f"{bad} in a row moves others")

    # ---- iterations are pure

    def test_a_step_from_the_same_state_is_the_same_step(self) -> None:
        """Twice, after a check whose result was thrown away, after other work, and in an iteration bound anew."""
        problem, _ = self.planted(ReLU(), n=6, rows=3, seed=9)
        iteration = self.bound(problem)
        cold = iteration.cold()
        for taken, start in ((0, iteration.init(problem.zeros())), (0, cold)):
            if start is None:
                continue
            state = iteration.advance(start, taken, 2)
            before = _copied(state)
            first = iteration.read(iteration.advance(state, 2, 3)).clone()
            preactivation = problem.preactivation(iteration.read(state))
            iteration.resume(state, preactivation, 2)
            iteration.advance(iteration.init(problem.q), 0, 4)
            for other in (iteration, self.bound(problem)):
                again = other.read(other.advance(state, 2, 3))
                _require(torch.equal(first, again), "advance gives another result from the same state")
            _require(_same(state, before), "advance, read or resume has changed a state that it was given")

    def test_watching_changes_no_bit(self) -> None:
        """A trace looks at the steps between two checks one by one."""
        problem, _ = self.planted(ReLU(), n=8, rows=3, seed=10)
        plain = solve(problem, self.method(), stop=self.stop)
        trace = Trace(every=3, keep_z=True)
        watched = solve(problem, self.method(), stop=self.stop, trace=trace)
        same = torch.equal(plain.z, watched.z) and torch.equal(plain.steps, watched.steps)
        _require(same and plain.map_evals == watched.map_evals, "a trace changes the answer, the steps or their count")
        for record, z in enumerate(trace.z):
            _require(_close(trace.residual[record], _norm(problem.residual(z))), "a trace shows wrong residuals")


def _require(true: bool, sentence: str) -> None:
    if not true:
        raise AssertionError(sentence)


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1)


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-6, atol=1e-13)


def _copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_copied(entry) for entry in value]
    return value.clone() if isinstance(value, Tensor) else value


def _same(value: Any, copy: Any) -> bool:
    if isinstance(value, tuple):
        return all(_same(entry, other) for entry, other in zip(value, copy, strict=True))
    return torch.equal(value, copy) if isinstance(value, Tensor) else value == copy
