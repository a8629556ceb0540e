"""Integrators of torchdiffeq and scipy: they reach known equilibria, row by row, and say so when they cannot."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor

from contracting.activations.catalogue import Identity, ReLU, Tanh
from contracting.errors import InputError, MissingExtraError, PreconditionError, Status
from contracting.flows.network import FiringRate, Hopfield
from contracting.flows.splitting import ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.gradients.implicit import Backward, Implicit, Unrolled
from contracting.gradients.torchdiffeq_adjoint import TorchDiffEqAdjoint
from contracting.integrators import DormandPrince, TorchDiffEq, torchdiffeq_adapter
from contracting.integrators.torchdiffeq_adapter import KINDS, Segments
from contracting.loop.records import SolveError, Stop
from contracting.loop.run import solve
from contracting.maps.counting import Count, counting
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers.splitting import PeacemanRachford
from equilibrium.layers import LBEN
from tests.problems import monotone_weight, planted

METHODS = tuple(KINDS)
SCIPY = tuple(name for name in METHODS if KINDS[name].scipy)
FIXED = tuple(name for name in METHODS if KINDS[name].fixed)
ADAPTIVE = tuple(name for name in METHODS if name not in (*SCIPY, *FIXED))
FLOWS = (FiringRate(), Hopfield(), ForwardBackwardFlow(), PeacemanRachfordFlow())
TIGHT = Stop(rtol=1e-8, atol=0.0, max_steps=200)


def linear_problem(batch: int = 2, dtype: torch.dtype = torch.float64) -> tuple[EquilibriumProblem, Tensor]:
    """σ = identity: z = (I − W)⁻¹q."""
    W, lam = monotone_weight(5, seed=3, skew=2.0)
    q = torch.randn(batch, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    z = torch.linalg.solve(torch.eye(5, dtype=torch.float64) - W, q.mT).mT
    problem = EquilibriumProblem(
        linear=Dense(W.to(dtype)), q=q.to(dtype), activation=Identity(), metric=WeightedL2(lam.to(dtype))
    )
    return problem, z


def relu_problem(n: int = 5, batch: int = 4, **shape: float) -> tuple[EquilibriumProblem, Tensor]:
    W, lam = monotone_weight(n, seed=1, **shape)
    return planted(ReLU(), W, lam, batch=batch, seed=2)


def stacked(problem: EquilibriumProblem, *rows: Tensor) -> EquilibriumProblem:
    """The same weight with more rows of q."""
    return EquilibriumProblem(
        linear=problem.linear, q=torch.cat([problem.q, *rows]), activation=problem.activation, metric=problem.metric
    )


class SpiedField:
    """The firing-rate flow, counting evaluations, and not finite where an entry of a state exceeds a limit."""

    def __init__(self, problem: EquilibriumProblem, spy: Spy):
        self.inner, self.spy = FiringRate().bind(problem), spy

    def __call__(self, t: Tensor | float, state: Tensor) -> Tensor:
        self.spy.calls.append(len(state))
        lost = state.amax(-1, keepdim=True) > self.spy.limit
        return torch.where(lost, torch.full_like(state, float("nan")), self.inner(t, state))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@dataclass(frozen=True)
class Spy:
    limit: float = math.inf
    calls: list[int] = field(default_factory=list, repr=False)

    def bind(self, problem: EquilibriumProblem) -> Any:
        return SpiedField(problem, self)


# ---- the answer


@pytest.mark.parametrize("method", METHODS)
def test_every_method_reaches_the_known_equilibrium(method: str) -> None:
    problem, exact = linear_problem()
    solution = solve(problem, TorchDiffEq(method), stop=TIGHT)
    image = solution.z @ problem.linear.to_dense().mT + problem.q
    assert ((solution.z - image).norm(dim=-1) <= 1.01e-8 * image.norm(dim=-1)).all()
    assert (solution.z - exact).norm(dim=-1).max() < 1e-7
    assert 0 < solution.steps.max() < 40  # segments


@pytest.mark.parametrize("flow", FLOWS[1:], ids=lambda flow: type(flow).__name__)
@pytest.mark.parametrize("method", ["dopri5", "midpoint", "LSODA"])
def test_every_flow_reaches_the_known_equilibrium(method: str, flow: Any) -> None:
    problem, exact = relu_problem(batch=2, scale=3.0)
    solution = solve(problem, TorchDiffEq(method, flow=flow), stop=TIGHT)
    assert (solution.z - exact).norm(dim=-1).max() < 1e-6


@pytest.mark.parametrize("method", ["dopri5", "bosh3", "fehlberg2", "rk4", "explicit_adams", "BDF"])
def test_single_precision_reaches_its_tolerance_on_a_stiff_flow(method: str) -> None:
    problem, _ = stiff_problem(torch.float32)
    solution = solve(problem, TorchDiffEq(method), stop=Stop(rtol=1e-5, atol=0.0, max_steps=60))
    assert solution.z.dtype == torch.float32
    z, W, q = solution.z.double(), problem.linear.to_dense().double(), problem.q.double()
    image = torch.relu(z @ W.mT + q)
    assert ((z - image).norm(dim=-1) <= 1.5e-5 * image.norm(dim=-1)).all()


def test_a_certificate_is_not_needed_by_methods_that_choose_their_own_steps() -> None:
    problem, exact = linear_problem()
    bare = EquilibriumProblem(linear=problem.linear, q=problem.q, activation=problem.activation)
    for method in (TorchDiffEq(), TorchDiffEq("BDF"), TorchDiffEq("rk4", step=0.3)):
        assert (solve(bare, method, stop=TIGHT).z - exact).norm(dim=-1).max() < 1e-7
    with pytest.raises(PreconditionError, match=r"\bSemismoothNewton\(\)"):
        solve(bare, TorchDiffEq("rk4"))


def test_a_given_step_is_used() -> None:
    problem, _ = linear_problem()
    iteration = bound(problem, TorchDiffEq("rk4", step=0.3))
    iteration.step(iteration.init(problem.zeros()))
    assert iteration.step_size == 0.3
    assert [span for span, _ in iteration.segments] == [pytest.approx(1.2)]  # one time constant, in whole steps


def bound(problem: EquilibriumProblem, method: TorchDiffEq, stop: Stop = TIGHT) -> Segments:
    iteration = method.bind(problem, stop)
    assert isinstance(iteration, Segments)
    return iteration


# ---- rows are strangers


@pytest.mark.parametrize("method", [TorchDiffEq("dopri5", per_row=True), TorchDiffEq("LSODA")], ids=lambda m: m.method)
def test_per_row_answers_do_not_depend_on_batch_mates(method: TorchDiffEq) -> None:
    problem, _ = relu_problem(batch=2)
    alone = solve(problem, method, stop=TIGHT).z
    crowded = solve(stacked(problem, 1e4 * problem.q[:1]), method, stop=TIGHT).z
    assert (crowded[: len(alone)] - alone).abs().max() < 1e-12


def test_batched_answers_move_with_batch_mates_but_below_the_tolerance() -> None:
    problem, _ = relu_problem()
    alone = solve(problem, TorchDiffEq(), stop=TIGHT).z
    crowded = solve(stacked(problem, -30 * problem.q[:1]), TorchDiffEq(), stop=TIGHT).z
    assert 0 < (crowded[: len(alone)] - alone).norm(dim=-1).max() < 1e-7


@pytest.mark.parametrize("method", ["dopri5", "implicit_adams", "LSODA"])
def test_a_row_that_is_not_a_number_fails_alone(method: str) -> None:
    problem, _ = relu_problem()
    clean = solve(problem, TorchDiffEq(method), stop=TIGHT)
    lost = torch.full_like(problem.q[:1], float("nan"))
    solution = solve(stacked(problem, lost), TorchDiffEq(method), stop=TIGHT, throw=False)
    assert solution.status[-1] == Status.NONFINITE
    assert (solution.status[:-1] == Status.CONVERGED).all()
    assert (solution.z[:-1] - clean.z).abs().max() < 1e-12


def test_the_error_norm_is_that_of_the_worst_row() -> None:
    errors = torch.tensor([[3.0, 4.0], [0.0, 1e-3], [0.0, 0.0]])
    assert float(torchdiffeq_adapter._worst_row(errors)) == pytest.approx(math.sqrt(12.5))


def test_solved_rows_are_left_out_of_the_integration() -> None:
    problem, exact = relu_problem()
    spy = Spy()
    solution = solve(problem, TorchDiffEq(flow=spy), z0=exact * torch.tensor([[1.0], [1.0], [0.0], [1.0]]), stop=TIGHT)
    assert set(spy.calls) == {1}
    assert torch.equal(solution.z[[0, 1, 3]], exact[[0, 1, 3]])
    assert solution.steps.tolist()[2] > 0 and solution.steps[[0, 1, 3]].sum() == 0


# ---- counting


@pytest.mark.parametrize("method", ["dopri5", "adaptive_heun", "rk4", "implicit_adams"])
def test_evaluations_of_a_batch_are_counted(method: str) -> None:
    problem, _ = relu_problem()
    spy = Spy()
    iteration = bound(problem, TorchDiffEq(method, flow=spy))
    count = Count()
    with counting(count):
        state = iteration.init(problem.zeros())
        for _ in range(3):
            state = iteration.step(state)
    residuals = 1 + 3  # the start, and one at every segment
    assert count.rows == sum(spy.calls) + residuals * problem.batch


@pytest.mark.parametrize("method", [TorchDiffEq("LSODA"), TorchDiffEq("dopri5", per_row=True)])
def test_evaluations_row_by_row_are_counted(method: TorchDiffEq) -> None:
    problem, _ = relu_problem()
    spy = Spy()
    iteration = bound(problem, TorchDiffEq(method.method, per_row=method.per_row, flow=spy))
    count = Count()
    with counting(count):
        iteration.step(iteration.init(problem.zeros()))
    assert set(spy.calls) == {1}
    assert count.rows == len(spy.calls) + 2 * problem.batch


# ---- breakdown is found, isolated and explained


@pytest.mark.parametrize("method", ["dopri5", "BDF", "LSODA", "RK45"])
def test_underflow_of_the_step_size_gives_up_one_row_and_says_what_to_do(method: str) -> None:
    problem, exact = relu_problem()
    worst = 2
    problem.q[worst] *= 100  # ReLU is homogeneous, and so is the equilibrium
    exact[worst] *= 100
    spy = Spy(limit=0.5 * float(exact[worst].max()))
    assert (exact.amax(-1) > 0.4 * spy.limit).sum() == 1
    with pytest.raises(SolveError, match=rf"\bSTALLED\b.*\b{method}\b.*\bPeacemanRachfordFlow\b") as error:
        solve(problem, TorchDiffEq(method, flow=spy), stop=TIGHT)
    solution = error.value.solution
    assert solution is not None
    assert solution.status[worst] == Status.STALLED and solution.steps[worst] < 10
    assert torch.isfinite(solution.z).all()
    others = [row for row in range(problem.batch) if row != worst]
    assert (solution.status[others] == Status.CONVERGED).all()
    assert (solution.z - exact)[others].norm(dim=-1).max() < 1e-6


@pytest.mark.parametrize("method", ["dopri5", "RK45", "LSODA", "rk4"])
def test_endless_integrations_are_cut(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchdiffeq_adapter, "_CALLS", -1e4)
    problem, _ = linear_problem(batch=2)
    with pytest.raises(SolveError, match=r"\b2 STALLED\b"):
        solve(problem, TorchDiffEq(method), stop=TIGHT)


def stiff_problem(dtype: torch.dtype = torch.float64) -> tuple[EquilibriumProblem, Tensor]:
    W, lam = monotone_weight(8, seed=5, skew=3.0, scale=30.0)
    return planted(ReLU(), W.to(dtype), lam.to(dtype), batch=2, seed=6)


def test_loose_tolerances_that_were_asked_for_stall_honestly() -> None:
    problem, _ = stiff_problem()
    with pytest.raises(SolveError, match=r"\bSTALLED\b.*\brtol and atol\b"):
        solve(problem, TorchDiffEq("dopri5", rtol=1e-2, atol=1e-2), stop=TIGHT)


def test_tight_tolerances_that_were_asked_for_are_used() -> None:
    problem, exact = linear_problem()
    solution = solve(problem, TorchDiffEq("dopri8", rtol=1e-10, atol=1e-12), stop=TIGHT)
    assert (solution.z - exact).norm(dim=-1).max() < 1e-7


# ---- stability


@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE])
def test_the_disc_of_stability_is_that_of_the_method_as_it_runs(method: str) -> None:
    """z' = λz is bounded for λ on the circle |λ + d| = d; and not on a larger one, where d is the largest."""
    kind = KINDS[method]

    def growth(disc: float) -> float:
        angle = torch.linspace(0.05, math.pi, 24, dtype=torch.float64)
        lam = disc * (torch.polar(torch.ones_like(angle), angle) - 1)
        rotation = torch.view_as_real(lam)

        def rate(t: Tensor, s: Tensor) -> Tensor:
            return torch.view_as_real(torch.view_as_complex(s) * lam)

        steps = {"step_size": 1.0} if kind.fixed else {"min_step": 1.0, "max_step": 1.0, "first_step": 1.0}
        times = torch.tensor([0.0, 120.0], dtype=torch.float64)
        path = torchdiffeq.odeint(
            rate, torch.ones_like(rotation), times, rtol=1e-3, atol=0.0, method=kind.solver,
            options={**kind.options, **steps},
        )
        return float(path[-1].norm(dim=-1).max())

    with pytest.warns(UserWarning, match="did not converge") if method == "implicit_adams" else nullcontext():
        assert growth(0.99 * kind.disc) < 30
        if method not in ("heun3", "rk4", "implicit_adams"):
            assert growth(1.15 * kind.disc) > 100


# ---- gradients


def tanh_problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    W, lam = monotone_weight(4, seed=11, skew=2.0, scale=3.0)
    q = torch.randn(3, 4, generator=torch.Generator().manual_seed(12), dtype=torch.float64)
    q[1] = 0.0  # its equilibrium is where the trajectory starts
    return W.to(dtype), lam.to(dtype), q.to(dtype)


def gradients(backward: Backward, method: TorchDiffEq, stop: Stop) -> tuple[Tensor, Tensor, Tensor]:
    W, lam, q = tanh_problem()
    W.requires_grad_()
    q.requires_grad_()
    problem = EquilibriumProblem(linear=Dense(W), q=q, activation=Tanh(), metric=WeightedL2(lam))
    z = backward.equilibrium(problem, method, stop)
    cotangent = torch.tensor([[1.0, -2.0, 0.5, 1.0], [0.3, 0.1, -1.0, 2.0], [1e-3, 0.0, 2e-3, -1e-3]]).double()
    gq, gW = torch.autograd.grad(z, (q, W), cotangent)
    return z.detach(), gq, gW


def exact_gradients(z: Tensor) -> tuple[Tensor, Tensor]:
    """w = J(I − WᵀJ)⁻¹g by a dense solve for each row."""
    W, _, q = tanh_problem()
    cotangent = torch.tensor([[1.0, -2.0, 0.5, 1.0], [0.3, 0.1, -1.0, 2.0], [1e-3, 0.0, 2e-3, -1e-3]]).double()
    rows = []
    for row in range(3):
        J = torch.diag(1 - torch.tanh(W @ z[row] + q[row]) ** 2)
        rows.append(J @ torch.linalg.solve(torch.eye(4).double() - W.mT @ J, cotangent[row]))
    gq = torch.stack(rows)
    return gq, gq.mT @ z


@pytest.mark.parametrize("backward", [Implicit(), TorchDiffEqAdjoint(), TorchDiffEqAdjoint(backprop=True)], ids=repr)
@pytest.mark.parametrize(
    "method",
    [
        TorchDiffEq("dopri5"),
        TorchDiffEq("rk4", flow=PeacemanRachfordFlow()),
        TorchDiffEq("euler", flow=ForwardBackwardFlow()),
        TorchDiffEq("midpoint", flow=Hopfield()),
    ],
    ids=lambda method: f"{method.method}-{type(method.flow).__name__}",
)
def test_implicit_adjoint_and_backprop_gradients_agree_with_the_exact_one(
    backward: Backward, method: TorchDiffEq
) -> None:
    z, gq, gW = gradients(backward, method, Stop(rtol=1e-6, atol=1e-12))
    exact_q, exact_W = exact_gradients(z)
    error = (gq - exact_q).norm(dim=-1) / exact_q.norm(dim=-1)
    assert error.max() < 2e-5, error
    assert (gW - exact_W).norm() / exact_W.norm() < 2e-5


def test_unrolled_gradient_is_right_for_rows_that_travel() -> None:
    z, gq, _ = gradients(Unrolled(), TorchDiffEq("dopri5"), Stop(rtol=1e-11, atol=0.0))
    exact_q, _ = exact_gradients(z)
    assert ((gq - exact_q).norm(dim=-1) / exact_q.norm(dim=-1))[[0, 2]].max() < 1e-6


def test_backpropagation_takes_stable_steps_where_the_state_no_longer_moves() -> None:
    """At the equilibrium no error is seen, whatever the step; an unstable one multiplies the gradient."""
    W = torch.diag(torch.tensor([0.0, -9.0], dtype=torch.float64))
    q = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    metric = WeightedL2(torch.ones(2, dtype=torch.float64))
    problem = EquilibriumProblem(linear=Dense(W), q=q, activation=Tanh(), metric=metric)
    z = TorchDiffEqAdjoint(backprop=True).equilibrium(problem, TorchDiffEq("dopri5"), Stop(rtol=1e-6))
    (gradient,) = torch.autograd.grad(z.sum(), q)
    assert (gradient - torch.tensor([[1.0, 0.1]])).abs().max() < 1e-5


def test_the_adjoint_may_be_repeated_but_has_no_second_derivative() -> None:
    W, lam, q = tanh_problem()
    q.requires_grad_()
    problem = EquilibriumProblem(linear=Dense(W), q=q, activation=Tanh(), metric=WeightedL2(lam))
    z = TorchDiffEqAdjoint().equilibrium(problem, TorchDiffEq("rk4"), Stop(rtol=1e-6))
    (first,) = torch.autograd.grad(z.sum(), q, retain_graph=True)
    (again,) = torch.autograd.grad(z.sum(), q, retain_graph=True)
    assert torch.equal(first, again)
    with pytest.raises(InputError, match=r"\bImplicit\(\)"):
        torch.autograd.grad(z.sum(), q, create_graph=True)


def test_without_gradient_the_adjoint_is_a_plain_solve() -> None:
    problem, exact = linear_problem()
    z = TorchDiffEqAdjoint().equilibrium(problem, TorchDiffEq(), TIGHT)
    assert not z.requires_grad
    assert (z - exact).norm(dim=-1).max() < 1e-7


def test_a_layer_keeps_its_weights_and_its_gradient_when_the_solver_is_an_integrator() -> None:
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.manual_seed(1)
    plain = LBEN(6, 8, 3, lipschitz=1.0, dtype=torch.float64)
    torch.manual_seed(1)
    ode = LBEN(6, 8, 3, lipschitz=1.0, dtype=torch.float64, solver=TorchDiffEq("dopri5"))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), ode.parameters(), strict=True))
    assert list(plain.state_dict()) == list(ode.state_dict())
    for layer in (plain, ode):
        layer(x).square().sum().backward()
    for a, b in zip(plain.parameters(), ode.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad - b.grad).norm() <= 1e-6 * (1 + a.grad.norm())


# ---- what is refused


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'dopri5'.*'implicit_adams'.*'BDF'.*'dopri6'"):
        TorchDiffEq("dopri6")


def test_only_the_method_is_positional_and_options_cannot_be_misspelt() -> None:
    with pytest.raises(TypeError):
        TorchDiffEq("dopri5", FiringRate())  # type: ignore[misc]
    with pytest.raises(TypeError):
        TorchDiffEq("dopri5", rtoll=1e-3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": None}, "method"),
        ({"flow": "firing rate"}, "flow"),
        ({"atol": 1e-3}, "atol"),
        ({"rtol": 0.0}, "rtol"),
        ({"rtol": "1e-3"}, "rtol"),
        ({"step": 0.1}, "step"),
        ({"method": "BDF", "step": 0.1}, "step"),
        ({"method": "rk4", "rtol": 1e-3}, "rtol"),
        ({"method": "rk4", "step": 0.0}, "step"),
        ({"per_row": 1}, "per_row"),
    ],
    ids=lambda value: str(value),
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"\b{message}\b"):
        TorchDiffEq(**settings)


def test_a_flow_class_is_as_good_as_a_flow_and_settings_are_plain_values() -> None:
    method = TorchDiffEq("bosh3", flow=Hopfield)
    assert method == TorchDiffEq("bosh3", flow=Hopfield()) == pickle.loads(pickle.dumps(copy.deepcopy(method)))
    assert hash(method) == hash(TorchDiffEq("bosh3", flow=Hopfield()))


@pytest.mark.parametrize("solver", [DormandPrince(), PeacemanRachford(), TorchDiffEq("BDF")], ids=repr)
def test_the_adjoint_needs_an_integrator_of_torchdiffeq(solver: Any) -> None:
    problem, _ = linear_problem()
    with pytest.raises(InputError, match=r"\bImplicit\(\)"):
        TorchDiffEqAdjoint().equilibrium(problem, solver, TIGHT)


def test_scipy_is_refused_where_gradients_would_have_to_flow_through_it() -> None:
    W, lam, q = tanh_problem()
    problem = EquilibriumProblem(
        linear=Dense(W), q=q.requires_grad_(), activation=Tanh(), metric=WeightedL2(lam)
    )
    with pytest.raises(PreconditionError, match=r"\bImplicit\(\)"):
        Unrolled().equilibrium(problem, TorchDiffEq("BDF"), TIGHT)
    assert Implicit().equilibrium(problem, TorchDiffEq("BDF"), TIGHT).requires_grad


def test_a_missing_scipy_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.integrate", None)
    problem, _ = linear_problem()
    with pytest.raises(MissingExtraError, match=r"contracting-equilibria\[scipy\]"):
        solve(problem, TorchDiffEq("BDF"))
