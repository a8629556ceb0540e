"""The contract of a solver: every method on every known problem, easy and hard, in one suite."""

from __future__ import annotations

import pytest
import torch

from contracting.activations.base import Activation
from contracting.activations.catalogue import ADMISSIBLE, Identity, ReLU, Sigmoid, Softplus, Softshrink, Tanh
from contracting.contracts import SolverContract
from contracting.errors import InputError, PreconditionError, Status
from contracting.integrators import BackwardEuler, DormandPrince, ExplicitEuler, PseudoTransient
from contracting.loop.method import Family, Iteration, Method, State
from contracting.loop.records import SolveError, Stop
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers import catalogue
from contracting.solvers.anderson import Anderson
from contracting.solvers.automatic import Automatic
from contracting.solvers.catalogue import default_solvers, register_solver
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from tests.methods import ALL_METHODS, ONE_OF_EACH, SELF_ADJOINT_ONLY, name
from tests.problems import KNOWN, KnownProblem, monotone_weight, planted

TIGHT = Stop(rtol=1e-8, max_steps=400_000, patience=50_000)


def _true_residual(problem: EquilibriumProblem, z: torch.Tensor) -> torch.Tensor:
    """Computed here from the dense matrix, not by the problem."""
    image = problem.activation(z @ problem.linear.to_dense().mT + problem.q)
    return (z - image).norm(dim=-1) / image.norm(dim=-1).clamp_min(1e-300)


@pytest.mark.parametrize("method", ALL_METHODS, ids=name)
@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_reaches_the_known_equilibrium(known: KnownProblem, method: Method) -> None:
    problem, exact = known.make()
    if isinstance(method, SELF_ADJOINT_ONLY) and not known.self_adjoint:
        with pytest.raises(PreconditionError, match=r"\bPeacemanRachford\(\)"):
            solve(problem, method)
        return
    if _proved_rate(problem, method) < 2e-4:
        _check_honest_failure(problem, exact, method)
        return
    solution = solve(problem, method, stop=TIGHT)
    assert (solution.status == Status.CONVERGED).all()
    residual = _true_residual(problem, solution.z)
    assert residual.max() <= 1.01e-8
    assert torch.allclose(residual, solution.relative_residual, rtol=1e-3, atol=1e-14)
    assert solution.error_bound is not None and problem.metric is not None
    error = problem.metric.norm(solution.z - exact)
    assert (error <= solution.error_bound).all()


def _weight(method: Method, n: int, *, skew: float = 1.0, **shape: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight of the asked shape that the method can solve."""
    return monotone_weight(n, skew=0.0 if isinstance(method, SELF_ADJOINT_ONLY) else skew, **shape)  # type: ignore[arg-type]


def _proved_rate(problem: EquilibriumProblem, method: Method) -> float:
    """Per step where a factor is proved, else per time constant of an integrator's flow; infinite where unknown."""
    factor = method.bind(problem, TIGHT).factor
    if factor is not None:
        return 1 - factor
    flow = getattr(method, "flow", None)
    rate = None if flow is None or name(method).startswith(("Backward", "Pseudo")) else flow.bind(problem).rate
    return float("inf") if rate is None else rate


def _check_honest_failure(problem: EquilibriumProblem, exact: torch.Tensor, method: Method) -> None:
    """The proved factor is so close to one that the answer is out of reach: that is said, and every bound holds."""
    solution = solve(problem, method, stop=Stop(rtol=1e-8, max_steps=300), throw=False)
    done = solution.converged
    assert (solution.status[~done] == Status.MAX_STEPS).all()
    assert torch.allclose(_true_residual(problem, solution.z), solution.relative_residual, rtol=1e-3, atol=1e-14)
    assert solution.error_bound is not None and problem.metric is not None
    error = problem.metric.norm(solution.z - exact)
    assert (error <= solution.error_bound).all()
    assert (error < problem.metric.norm(exact)).all()


# Piecewise linear, curved and saturating: what the known problems and the contract do not have.
KINDS = (Softshrink(), Softplus(), Sigmoid())
EVERY_KIND = [(activation, method) for activation in KINDS for method in ALL_METHODS]
EVERY_ACTIVATION = [
    (activation, method)
    for activation in ADMISSIBLE
    if activation not in KINDS
    for method in (PeacemanRachford(), SemismoothNewton(), DormandPrince())
]


@pytest.mark.parametrize(
    ("activation", "method"),
    [pytest.param(a, m, id=f"{type(a).__name__}-{name(m)}") for a, m in EVERY_KIND + EVERY_ACTIVATION],
)
def test_every_kind_of_activation_and_every_activation(activation: Activation, method: Method) -> None:
    W, lam = _weight(method, 5, seed=1, skew=1.5, spread=0.5)
    problem, exact = planted(activation, W, lam, batch=3, seed=2)
    solution = solve(problem, method, stop=TIGHT)
    assert ((solution.z - exact).norm(dim=-1) <= 1e-6 * exact.norm(dim=-1) + 1e-10).all()


class Contract(SolverContract):
    """The inherited suite, for one of our methods."""

    def __init__(self, method: Method):
        self._method = method
        self.looseness = 1e3 if isinstance(method, Anderson) else 1.0  # nearly parallel steps amplify rounding

    def method(self) -> Method:
        return self._method

    def weight(self, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return _weight(self._method, n, seed=seed, skew=2.0, spread=0.3)


@pytest.mark.parametrize("method", ONE_OF_EACH, ids=name)
@pytest.mark.parametrize("test", [test for test in vars(SolverContract) if test.startswith("test_")])
def test_every_class_of_method_keeps_the_contract(test: str, method: Method) -> None:
    getattr(Contract(method), test)()


class Picard(Iteration):
    """z ← ½(z + σ(Wz + q)), which the broken ones below derive from."""

    def __init__(self, problem: EquilibriumProblem):
        self.problem = problem

    def init(self, z0: torch.Tensor) -> State:
        return (z0,)

    def step(self, state: State) -> State:
        return ((state[0] + self.problem.map(state[0])) / 2,)

    def read(self, state: State) -> torch.Tensor:
        return state[0]


class Counts(Picard):
    taken = 0

    def step(self, state: State) -> State:
        self.taken += 1
        return (super().step(state)[0] * (1 + 1e-9 / self.taken),)


class Writes(Picard):
    def step(self, state: State) -> State:
        return (state[0].copy_(super().step(state)[0]),)


class Crowd(Picard):
    def step(self, state: State) -> State:
        z = super().step(state)[0]
        return (z + 1e-3 * (z - state[0]).mean(0),)


class Doubles(Picard):
    def init(self, z0: torch.Tensor) -> State:
        return (z0.double(),)

    def step(self, state: State) -> State:
        return (super().step((state[0].to(self.problem.q.dtype),))[0].double(),)


class Forgets(Picard):
    def init(self, z0: torch.Tensor) -> State:
        return (torch.zeros_like(z0),)


class Stuck(Picard):
    def step(self, state: State) -> State:
        return state


class Watched(Picard):
    """Fused steps that are not the steps."""

    check_every = 4

    def advance(self, state: State, taken: int, steps: int) -> State:
        return (super().advance(state, taken, steps)[0] * (1 + 1e-12 * (steps > 2)),)


class Own(Method):
    family = Family.SPLITTING

    def __init__(self, kind: type[Picard]):
        self.kind, self.solves = kind, 0

    def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        return self.kind(problem)


class Remembers(Own):
    def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        self.solves += 1
        return super().bind(problem, stop)


class Unnamed(Own):
    family = "an ODE integrator"  # type: ignore[assignment]


class Small(SolverContract):
    """The suite for such methods, on weights on which these steps contract."""

    stop = Stop(rtol=1e-9, max_steps=500)

    def __init__(self, method: Method):
        self._method = method

    def method(self) -> Method:
        return self._method

    def weight(self, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        W, lam = super().weight(n, seed)
        return 0.5 * W / torch.linalg.matrix_norm(W, 2), torch.ones_like(lam)


TESTS = [test for test in dir(SolverContract) if test.startswith("test_")]
BROKEN = {
    "test_it_declares_its_family_and_keeps_its_settings": (Remembers(Picard), Unnamed(Picard)),
    "test_it_finds_known_equilibria": (Own(Stuck), Own(Doubles)),
    "test_a_start_at_the_solution_needs_no_step": (Own(Forgets),),
    "test_rows_do_not_see_each_other": (Own(Crowd),),
    "test_a_lost_row_leaves_the_others_as_they_were": (Own(Crowd),),
    "test_a_step_from_the_same_state_is_the_same_step": (Own(Counts), Own(Writes)),
    "test_watching_changes_no_bit": (Own(Watched),),
}


@pytest.mark.parametrize("test", TESTS)
def test_an_own_solver_keeps_the_contract_and_a_broken_one_does_not(test: str) -> None:
    getattr(Small(Own(Picard)), test)()
    for broken in BROKEN.get(test, ()):
        with pytest.raises((AssertionError, RuntimeError)):
            getattr(Small(broken), test)()


def test_a_registered_solver_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_ADDED", {})
    own = register_solver("own", Own(Picard))
    assert default_solvers()["own"] is own
    for taken in ("own", "Tseng"):
        with pytest.raises(InputError, match=r"\bname\b"):
            register_solver(taken, own)
    with pytest.raises(InputError, match=r"\bmethod\b"):
        register_solver("class", Own)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [Automatic(), SemismoothNewton(), DormandPrince(), BackwardEuler()], ids=name)
def test_a_lost_row_is_named_in_the_error(method: Method) -> None:
    W, _ = _weight(method, 3, seed=6)
    problem, _ = planted(ReLU(), W, torch.ones(3, dtype=torch.float64), batch=2, seed=7)
    problem = problem.with_tensors([problem.q * torch.tensor([[1.0], [float("nan")]], dtype=torch.float64), W])
    with pytest.raises(SolveError, match=r"\brows 1\b.*\bNONFINITE\b"):
        solve(problem, method, stop=TIGHT)


@pytest.mark.parametrize("method", [ForwardBackward(), PeacemanRachford(), DouglasRachford()], ids=name)
def test_splittings_contract_with_the_predicted_factor(method: Method) -> None:
    """The iterates approach the solution at least as fast as predicted, and on a worst case hardly faster."""
    W, lam = monotone_weight(6, seed=14, skew=2.0, spread=0.7)
    problem, exact = planted(ReLU(), W, lam, batch=8, seed=15)
    iteration = method.bind(problem, Stop())
    assert iteration.factor is not None and problem.metric is not None
    state = iteration.init(problem.zeros())
    fixed = iteration.init(exact)
    for _ in range(30):
        before = problem.metric.norm(state[0] - fixed[0])
        state = iteration.step(state)
        after = problem.metric.norm(state[0] - fixed[0])
        assert (after <= iteration.factor * before + 1e-12).all()


@pytest.mark.parametrize("method", [ForwardBackward(), PeacemanRachford()], ids=name)
def test_the_predicted_factor_is_attained(method: Method) -> None:
    """W = w·rotation with a linear σ: every step contracts by exactly the factor in the long run."""
    problem = EquilibriumProblem(
        linear=Dense(torch.tensor([[0.0, 3.0], [-3.0, 0.0]], dtype=torch.float64)),
        q=torch.zeros(1, 2, dtype=torch.float64),
        activation=Identity(),
        metric=WeightedL2.identity(2, dtype=torch.float64),
    )
    iteration = method.bind(problem, Stop())
    state = iteration.init(torch.tensor([[1.0, 0.5]], dtype=torch.float64))
    sizes = []
    for _ in range(20):
        state = iteration.step(state)
        sizes.append(float(state[0].norm()))
    assert iteration.factor is not None
    assert sizes[-1] / sizes[-2] == pytest.approx(iteration.factor, rel=1e-6)


class _Stub(Iteration):
    """z_k = 2^-k towards the zero solution of z = 0·z: tests the loop alone."""

    def __init__(self, rate: float = 0.5):
        self.rate = rate

    def init(self, z0: torch.Tensor) -> State:
        return (z0,)

    def step(self, state: State) -> State:
        return (state[0] * self.rate,)

    def read(self, state: State) -> torch.Tensor:
        return state[0]


class _StubMethod(Method):
    family = Family.SPLITTING

    def __init__(self, rate: float = 0.5):
        self.rate = rate

    def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        return _Stub(self.rate)


_ONE = torch.ones(1, 1, dtype=torch.float64)


def _zero_problem() -> EquilibriumProblem:
    zero = torch.zeros(1, 1, dtype=torch.float64)
    return EquilibriumProblem(linear=Dense(zero), q=zero, activation=ReLU())


def test_ending_exactly_on_max_steps_is_success() -> None:
    stop = Stop(rtol=0.0, atol=2.0**-10, max_steps=10)
    solution = solve(_zero_problem(), _StubMethod(), z0=_ONE, stop=stop)
    assert solution.status[0] == Status.CONVERGED and solution.steps[0] == 10
    fewer = Stop(rtol=0.0, atol=2.0**-10, max_steps=9)
    one_less = solve(_zero_problem(), _StubMethod(), z0=_ONE, stop=fewer, throw=False)
    assert one_less.status[0] == Status.MAX_STEPS and one_less.steps[0] == 9


def test_a_stalled_row_is_reported() -> None:
    solution = solve(_zero_problem(), _StubMethod(rate=1.0), z0=_ONE, stop=Stop(patience=7), throw=False)
    assert solution.status[0] == Status.STALLED and solution.steps[0] == 7


def test_a_diverging_row_is_reported_with_its_last_finite_iterate() -> None:
    solution = solve(_zero_problem(), _StubMethod(rate=1e100), z0=_ONE, stop=Stop(patience=10**6), throw=False)
    assert solution.status[0] == Status.NONFINITE
    assert solution.z.isfinite().all() and solution.residual.isfinite().all()


def test_small_steps_cannot_lie_about_convergence() -> None:
    """A tiny step moves little per iteration; only the true residual may stop the loop."""
    W, lam = monotone_weight(6, seed=16)
    problem, _ = planted(ReLU(), W, lam, batch=2, seed=17)
    solution = solve(problem, ForwardBackward(step=0.003), stop=Stop(rtol=1e-4))
    assert _true_residual(problem, solution.z).max() <= 1.0001e-4
    damped = solve(problem, ExplicitEuler(step=0.01), stop=Stop(rtol=1e-3))
    assert _true_residual(problem, damped.z).max() <= 1.0001e-3


def test_sparse_checks_give_statuses_at_the_returned_z() -> None:
    W, lam = monotone_weight(6, seed=18, skew=3.0)
    problem, _ = planted(ReLU(), W, lam, batch=3, seed=19)
    every = solve(problem, PeacemanRachford(), stop=Stop(rtol=1e-8, check_every=1))
    sparse = solve(problem, PeacemanRachford(), stop=Stop(rtol=1e-8, check_every=7))
    assert (sparse.steps % 7 == 0).all()
    assert (sparse.steps >= every.steps).all() and (sparse.steps < every.steps + 7).all()
    assert _true_residual(problem, sparse.z).max() <= 1.0001e-8


@pytest.mark.parametrize("method", [ForwardBackward(), PeacemanRachford(), DouglasRachford()], ids=name)
def test_automatic_steps_refuse_what_condition_1_does_not_cover(method: Method) -> None:
    W = 2 * torch.eye(3, dtype=torch.float64)
    uncertified, _ = planted(ReLU(), W, None, batch=1, seed=0)
    with pytest.raises(PreconditionError, match=r"\bSemismoothNewton\(\)"):
        solve(uncertified, method)
    false_claim, _ = planted(ReLU(), W, torch.ones(3, dtype=torch.float64), batch=1, seed=0)
    with pytest.raises(PreconditionError, match=r"\bSemismoothNewton\(\)"):
        solve(false_claim, method)
    assert false_claim.operator is None


@pytest.mark.parametrize("method", [SemismoothNewton(), BackwardEuler(), PseudoTransient()], ids=name)
def test_methods_that_need_no_metric(method: Method) -> None:
    W = 0.3 * torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    problem, exact = planted(ReLU(), W, None, batch=4, seed=2)
    solution = solve(problem, method)
    assert torch.allclose(solution.z, exact, atol=1e-6)
    assert solution.error_bound is None


def test_newton_is_finite_for_relu_and_beats_its_own_fallback() -> None:
    W, lam = monotone_weight(40, seed=20, skew=20.0, scale=50.0)
    problem, _ = planted(ReLU(), W, lam, batch=10, seed=21)
    solution = solve(problem, SemismoothNewton(), stop=Stop(rtol=1e-12))
    assert solution.steps.max() <= 12


def test_newton_falls_back_and_returns() -> None:
    """Without halvings, a hard tanh problem needs the Peaceman–Rachford steps; it must still arrive."""
    W, lam = monotone_weight(30, seed=22, skew=60.0)
    problem, exact = planted(Tanh(), W, lam, batch=6, seed=23)
    problem = problem.with_tensors([problem.q * 50, W])
    solution = solve(problem, SemismoothNewton(halvings=0), stop=Stop(rtol=1e-10))
    assert solution.converged.all()
