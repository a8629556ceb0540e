"""What a method and its iteration promise the loop, and a method around another passes on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from contracting.activations.catalogue import ReLU
from contracting.errors import Status
from contracting.integrators import BackwardEuler, TorchDiffEq
from contracting.loop.method import Family, Iteration, Method, State, rows_of
from contracting.loop.records import SolveError, Stop
from contracting.loop.run import solve
from contracting.maps.counting import Count, counting
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2, WeightedLinf
from contracting.problem import EquilibriumProblem
from contracting.solvers.anderson import Anderson
from contracting.solvers.automatic import Automatic
from contracting.solvers.catalogue import default_solvers
from contracting.solvers.splitting import ForwardBackward, PeacemanRachford
from tests.problems import monotone_weight, planted

F64 = torch.float64
ONE = torch.ones(1, 1, dtype=F64)


def a_problem(n: int = 20, rows: int = 10, **shape: float) -> EquilibriumProblem:
    W, lam = monotone_weight(n, seed=3, **shape)  # type: ignore[arg-type]
    return planted(ReLU(), W, lam, batch=rows, seed=4)[0]


@pytest.mark.parametrize("cold", [True, False])
def test_a_refined_iteration_is_pure(cold: bool) -> None:
    """The same step from the same state, also after a move of its point that was thrown away."""
    problem = a_problem(skew=2.0)
    iteration = PeacemanRachford().bind(problem, Stop(rtol=1e-12).resolved(problem))
    start = (iteration.cold() if cold else None) or iteration.init(problem.zeros())
    state = iteration.advance(start, 0, 3)
    first = iteration.read(iteration.advance(state, 3, 2))
    preactivation = problem.preactivation(iteration.read(state))
    kept = preactivation.clone()
    iteration.resume(state, preactivation, 3)
    iteration.advance(iteration.init(problem.q), 0, 7)
    assert torch.equal(iteration.read(iteration.advance(state, 3, 2)), first)
    assert torch.equal(preactivation, kept)


@dataclass(frozen=True, kw_only=True)
class Halving(Method):
    """z_k = rate^k towards the zero solution of z = 0·z, by an iteration without a constructor of its own."""

    rate: float = 0.5
    family = Family.SPLITTING

    def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        iteration = HalvingIteration()
        iteration.rate = self.rate
        return iteration


class HalvingIteration(Iteration):
    rate: float

    def init(self, z0: Tensor) -> State:
        return (z0,)

    def step(self, state: State) -> State:
        return (self.rate * state[0],)

    def read(self, state: State) -> Tensor:
        z: Tensor = state[0]
        return z


def zero_problem(size: int = 1) -> EquilibriumProblem:
    zero = torch.zeros(size, size, dtype=F64)
    return EquilibriumProblem(linear=Dense(zero), q=zero[:1], activation=ReLU())


def test_an_iteration_needs_no_constructor_of_the_base_class() -> None:
    solution = solve(zero_problem(), Halving(), z0=ONE, stop=Stop(rtol=0.0, atol=2.0**-10))
    assert solution.converged.all() and int(solution.steps) == 10 and solution.map_evals == 11  # those of the checks


def test_a_method_without_a_family_is_refused() -> None:
    class Stray(Method):
        def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
            return HalvingIteration()

    with pytest.raises(TypeError, match=r"\bfamily\b"):
        Stray()  # type: ignore[abstract]
    assert {m.family for m in (Anderson(TorchDiffEq("bosh3")), TorchDiffEq("bosh3"))} == {Family.TORCHDIFFEQ}
    assert Automatic().family == Anderson().family == Family.SPLITTING


def test_anderson_goes_on_with_the_method_that_was_chosen() -> None:
    """Of 600 neurons and 40 rows Automatic takes Peaceman–Rachford, of the few rows that stay it would take another."""
    problem = a_problem(600, 40)
    problem = replace(problem, q=problem.q * torch.logspace(-9, 2, 40, dtype=F64)[:, None])
    stop = Stop(rtol=0.0, atol=1e-9, check_every=1)
    assert isinstance(Automatic().choose(problem, stop).method, PeacemanRachford)
    assert not isinstance(Automatic().choose(problem.rows(slice(0, 10)), stop).method, PeacemanRachford)
    chosen, named = (solve(problem, Anderson(m), stop=stop) for m in (Automatic(), PeacemanRachford()))
    # products may round differently in memory that is aligned differently, which moves a row by a step
    assert (chosen.steps - named.steps).abs().max() <= 1 and (chosen.z - named.z).abs().max() <= 1e-8


def test_anderson_passes_on_what_the_method_inside_advises() -> None:
    problem, method = a_problem(5, 3), TorchDiffEq("dopri5", rtol=1e-3)
    for tried in (method, Anderson(method)):
        with pytest.raises(SolveError) as caught:
            solve(problem, tried, stop=Stop(rtol=1e-13, atol=0.0, max_steps=2_000))
        assert "leave rtol and atol out" in str(caught.value)


def test_states_of_some_rows_keep_their_form() -> None:
    problem = a_problem(skew=2.0)
    iteration = PeacemanRachford().bind(problem, Stop(rtol=1e-12).resolved(problem))
    state = iteration.advance(iteration.cold() or (), 0, 3)
    index = torch.tensor([4, 1])
    some = rows_of((state, torch.arange(10), "word"), index)
    assert type(some[0]) is type(state) and some[1].tolist() == [4, 1] and some[2] == "word"
    assert torch.equal(iteration.read(some[0]), iteration.read(state)[index])


# ---- counting


def test_products_are_counted_by_rows_whoever_makes_them() -> None:
    problem = a_problem(6, 4)
    linear, count = problem.linear, Count()
    with counting(count):
        linear.apply(problem.q)
        linear.adjoint.affine(problem.q[:2], problem.q[:2])
        linear.reflection(0.5).apply(problem.q[0])
        with counting(None):
            linear.apply(problem.q)
    linear.apply(problem.q)
    assert count.rows == 4 + 2 + 1


def test_a_solve_within_a_solve_is_counted_in_both() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Whole(Halving):
        def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
            return WholeIteration(problem)

    class WholeIteration(HalvingIteration):
        def __init__(self, problem: EquilibriumProblem):
            self.problem = problem

        def init(self, z0: Tensor) -> State:
            return (z0,)

        def step(self, state: State) -> State:
            return (solve(self.problem, ForwardBackward(), z0=state[0]).z,)

    problem = a_problem(6, 4)
    inner = solve(problem, ForwardBackward(), z0=problem.zeros()).map_evals
    assert solve(problem, Whole()).map_evals == inner + 2  # and two checks


# ---- when a row is solved, and how it failed


def test_a_tolerance_for_each_entry() -> None:
    """An entry of size 0.1 beside one of 1e6 that the Euclidean norm does not see."""
    W = torch.tensor([[0.0, 0.0], [0.0, 0.9]], dtype=F64)
    exact = torch.tensor([[1e6, 0.1]], dtype=F64)
    problem = EquilibriumProblem(
        linear=Dense(W), q=exact - exact @ W.mT, activation=ReLU(), metric=WeightedL2(torch.ones(2, dtype=F64))
    )
    method = ForwardBackward(step=1.0)
    unseen = solve(problem, method, stop=Stop(rtol=1e-6))
    assert unseen.converged.all() and (unseen.z - exact).abs()[0, 1] > 1e-3
    for norm in (WeightedL2(1 / exact[0].square()), WeightedLinf(1 / exact[0])):
        for tried in (method, PeacemanRachford(), Anderson(method), TorchDiffEq("bosh3", step=None)):
            solution = solve(problem, tried, stop=Stop(rtol=1e-6, norm=norm))
            assert ((solution.z - exact).abs() <= 2e-5 * exact).all()
            assert torch.equal(solution.residual, norm.norm(problem.residual(solution.z)))


def test_a_norm_that_is_none_or_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\bnorm\b"):
        Stop(norm="largest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\bnorm\b"):
        solve(zero_problem(2), Halving(), stop=Stop(norm=WeightedL2(torch.ones(3, dtype=F64))))


@pytest.mark.parametrize(
    ("rate", "status"), [(1.01, Status.DIVERGED), (1.0, Status.STALLED), (1e100, Status.NONFINITE), (0.99, None)]
)
def test_a_diverging_method_is_said_to_diverge(rate: float, status: Status | None) -> None:
    solution = solve(zero_problem(), Halving(rate=rate), z0=ONE, throw=False)
    assert int(solution.status) == (status or Status.CONVERGED)
    if status is Status.DIVERGED:
        assert "precision" not in Status.DIVERGED.advice
        with pytest.raises(SolveError, match=r"\bDIVERGED\b"):
            solve(zero_problem(), Halving(rate=rate), z0=ONE)


def test_seconds_count_the_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    import contracting.loop.run as run

    now = [0.0]
    monkeypatch.setattr(run.time, "perf_counter", lambda: now[0])

    @dataclass(frozen=True, kw_only=True)
    class Slow(Halving):
        def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
            now[0] += 3.0
            return super().bind(problem, stop)

    assert solve(zero_problem(), Slow()).seconds == 3.0


def test_methods_that_solve_a_system_in_every_step_say_so() -> None:
    """Products alone would make them look cheap: the comparison leaves them out where products are counted."""
    solving = {name for name, method in default_solvers().items() if method.solves_systems}
    assert solving == {"SemismoothNewton", "BackwardEuler", "PseudoTransient", "torchdiffeq-BDF"}
    assert Anderson(BackwardEuler()).solves_systems and not Anderson(PeacemanRachford()).solves_systems
