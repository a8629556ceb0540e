"""What ``steady_state`` takes and refuses, what it says of its answers, and their derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from contracting import (
    FISTA,
    RK4,
    Anderson,
    Ball,
    Dense,
    DormandPrince,
    DouglasRachford,
    EquilibriumProblem,
    ExplicitEuler,
    FieldProblem,
    FiringRate,
    ForwardBackward,
    Hopfield,
    Implicit,
    InputError,
    InputFlow,
    LinearFlow,
    Method,
    Metric,
    NeuralFlow,
    NewtonKrylov,
    PeacemanRachford,
    PreconditionError,
    PseudoTransient,
    RungeKuttaChebyshev,
    SemismoothNewton,
    SolveError,
    Stop,
    Tanh,
    TorchDiffEq,
    Trace,
    Tseng,
    WeightedL2,
    certify_region,
    solve,
    steady_state,
)
from contracting.contracts.base import DOUBLE, draw, monotone
from contracting.flows.steady import as_field

ONE = torch.ones(1, 1, dtype=DOUBLE)
PRECISE = Stop(rtol=1e-13)


@pytest.mark.parametrize(
    "method",
    [
        PeacemanRachford(), ForwardBackward(), DouglasRachford(), FISTA(), Tseng(), Anderson(PeacemanRachford()),
        ExplicitEuler(), RungeKuttaChebyshev(), TorchDiffEq("rk4"), RK4(step=0.1, flow=Hopfield()),
        NewtonKrylov(flow=Hopfield()),
    ],
    ids=repr,
)  # fmt: skip
def test_a_method_that_needs_what_a_field_has_not_refuses_it(method: Method) -> None:
    with pytest.raises(PreconditionError):
        steady_state(lambda s: -s, ONE, method=method)


@pytest.mark.parametrize(
    ("f", "s0", "options", "name"),
    [
        (3.0, ONE, {}, "f "),
        (lambda s: -s, ONE[0], {}, "s0"),
        (lambda s: -s, [1.0], {}, "s0"),
        (lambda s: -s, ONE / 0, {}, "s0"),
        (lambda s: -s, ONE.half(), {}, "s0"),
        (lambda s: s[:, :0], ONE, {}, r"f\("),
        (lambda s: 3, ONE, {}, r"f\("),
        (lambda: 3, ONE, {}, "module"),
        (lambda s: -s.float(), ONE, {}, r"f\(s0\)"),
        (lambda s: -s, ONE, {"smallest": -1.0}, "smallest"),
        (lambda s: -s, ONE, {"time": "now"}, "time"),
        (lambda s: -s, ONE, {"method": "rk4"}, "solver"),
        (lambda s: -s, ONE, {"stop": 1e-6}, "stop"),
        (nn.BatchNorm1d(1).double(), draw(3, 1), {}, "rows"),
        (nn.Dropout(0.5), draw(40, 1), {}, "rows"),
    ],
)
def test_bad_arguments_are_refused_by_name(f: object, s0: object, options: dict[str, object], name: str) -> None:
    with pytest.raises(InputError, match=name):
        steady_state(f, s0, **options)


@pytest.mark.parametrize("hull", [(), 3.0, (float("nan"),), (1 - 1j,)])
def test_a_hull_is_corners(hull: object) -> None:
    with pytest.raises(InputError, match="hull"):
        RungeKuttaChebyshev(hull=hull)


def test_functions_of_the_state_and_of_time_and_state_are_told_apart() -> None:
    assert as_field(lambda s: -s)(3.0, ONE) == -1
    assert as_field(lambda t, s: -t * s)(3.0, ONE) == -3
    with pytest.raises(InputError, match="f can"):
        as_field(lambda s, gain=2.0: -gain * s)
    assert as_field(nn.Identity())(3.0, ONE) == 1
    field = LinearFlow(-torch.eye(1))
    assert as_field(field) is field
    found = steady_state(lambda t, s: t - s, ONE, time=0.25)
    assert torch.allclose(found.z, 0.25 * ONE)


def test_an_empty_batch_has_an_empty_answer_and_a_trace_sees_every_step() -> None:
    assert steady_state(lambda s: -s, torch.zeros(0, 2)).z.shape == (0, 2)
    trace = Trace()
    found = steady_state(lambda s: 1 - s, 3 * ONE, method=DormandPrince(), trace=trace)
    again = steady_state(lambda s: 1 - s, 3 * ONE, method=DormandPrince())
    assert len(trace) == int(found.steps) + 1 and torch.equal(found.z, again.z)


def test_a_problem_of_some_rows_is_about_these() -> None:
    rates, start = -1 - draw(5, 2).abs(), draw(5, 2, seed=1)
    problem = FieldProblem(field=as_field(lambda s: rates * s), start=start)
    some = problem.rows(torch.tensor([4, 1])).rows(slice(0, 1))
    assert torch.equal(some.template, start[4:5])
    assert torch.equal(some.residual(start[:1]), rates[4:5] * start[:1])
    assert torch.equal(some.jacobian(start[:1]), torch.diag(rates[4])[None])
    assert torch.allclose(some.jvp(start[:1], start[1:2]), rates[4:5] * start[1:2])
    single = FieldProblem(field=as_field(lambda s: rates.float() * s), start=start.float()).double()
    assert single.template.dtype == single.residual(start).dtype == DOUBLE


@pytest.mark.parametrize("n", [1, 2, 3, 8, 40])
def test_the_size_of_the_terms_is_measured(n: int) -> None:
    A, s = draw(n, n), draw(4, n, seed=1)
    problem = FieldProblem(field=LinearFlow(A, draw(n, seed=2)), start=s)
    exact = ((A[None] * problem.units(s)[:, None, :]) ** 2).sum(-1).sqrt()
    ratio = problem.terms(s) / exact
    if n <= 8:
        assert torch.allclose(ratio, torch.ones_like(ratio), rtol=1e-9)
    assert float(ratio.min()) > 0.2 and float(ratio.max()) < 3


def test_newton_chunks_and_torchdiffeq_rows_solve_problems_of_some_rows() -> None:
    targets, start = draw(5, 3), draw(5, 3, seed=1)
    for method in (SemismoothNewton(memory=1), NewtonKrylov(memory=1), TorchDiffEq("dopri5", per_row=True)):
        assert torch.allclose(steady_state(lambda s: targets - s, start, method=method).z, targets, atol=1e-6)


@dataclass
class Region:
    """A rate that holds where no entry is larger than ``size``."""

    rate: float
    metric: Metric
    size: float

    def contains(self, states: Tensor) -> Tensor:
        return states.abs().amax(-1) <= self.size


def test_the_error_bound_holds_and_is_tight_and_ends_with_its_region() -> None:
    A, target = torch.diag(torch.tensor([-1.0, -3.0], dtype=DOUBLE)), draw(3, 2)
    metric = WeightedL2(torch.tensor([1.0, 4.0], dtype=DOUBLE))
    flow, start = LinearFlow(A, -target @ A), target + draw(3, 2, seed=4)
    everywhere = Region(1.0, metric, 1e9)
    found = steady_state(flow, start, method=DormandPrince(), stop=Stop(rtol=1e-3), certificate=everywhere)
    error = metric.norm(found.z - target)
    assert found.error_bound is not None and bool((error <= found.error_bound).all())
    assert bool((found.error_bound <= 3.01 * error + 1e-12).all())  # rates from 1 to 3
    part = steady_state(flow, start, certificate=Region(1.0, metric, float(target[0].abs().max()) + 1e-3)).error_bound
    assert part is not None and bool(part.isfinite()[0]) and not bool(part.isfinite().all())
    assert steady_state(flow, start).error_bound is None
    assert steady_state(flow, start, certificate=Region(-1.0, metric, 1e9)).error_bound is None


def test_a_region_that_was_proved_bounds_the_error_inside() -> None:
    def field(s: Tensor) -> Tensor:
        return 0.5 - s + 0.4 * torch.sin(s.flip(-1)) - s**3

    metric = WeightedL2.identity(2, dtype=DOUBLE)
    flow, centre = NeuralFlow(lambda t, s: field(s)), torch.tensor([0.4, 0.4], dtype=DOUBLE)
    proved = certify_region(flow, Ball(centre, 1.0, metric), metric=metric)
    assert proved.contracting and proved.equilibrium is not None
    start = centre + torch.tensor([[0.3, -0.2], [4.0, 4.0]], dtype=DOUBLE)
    exact = steady_state(flow, start, stop=PRECISE).z
    found = steady_state(flow, start, method=DormandPrince(), stop=Stop(rtol=1e-2, max_steps=0), certificate=proved,
                         throw=False)  # fmt: skip
    assert found.error_bound is not None and found.error_bound.isfinite().tolist() == [True, False]
    error = torch.linalg.vector_norm(found.z - exact, dim=-1)[0]
    assert bool(error <= found.error_bound[0]) and bool(found.error_bound[0] <= 10 * error)


def equilibrium(W: Tensor, q: Tensor) -> EquilibriumProblem:
    return EquilibriumProblem(linear=Dense(W), q=q, activation=Tanh(), metric=WeightedL2(monotone(3, 0)[1]))


def test_first_and_second_derivatives_are_those_of_the_equilibrium_problem() -> None:
    found = []
    for way in ("field", "problem"):
        W, q = monotone(3, 0)[0].requires_grad_(), draw(2, 3).requires_grad_()
        problem = equilibrium(W, q)
        if way == "field":
            z = steady_state(FiringRate().bind(problem), torch.zeros(2, 3, dtype=DOUBLE), stop=PRECISE).z
        else:
            z = Implicit(stop=PRECISE).equilibrium(problem, SemismoothNewton(), PRECISE)
        first = torch.autograd.grad(z.pow(3).sum(), (W, q), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (W, q))
        found.append([z, *first, *second])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def test_gradcheck_and_gradgradcheck() -> None:
    start = torch.zeros(2, 2, dtype=DOUBLE)

    def state(W: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return steady_state(lambda s: torch.tanh(s @ W.mT + b) + x - s - 0.1 * s**3, start, stop=PRECISE).z

    inputs = tuple(0.5 * draw(*shape, seed=i) for i, shape in enumerate(((2, 2), (2,), (2, 2))))
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)
    assert torch.autograd.gradcheck(state, inputs)
    assert torch.autograd.gradgradcheck(state, inputs)


def test_tensors_that_are_no_leaves_are_reached_and_third_derivatives_refused() -> None:
    def cube_root(b: Tensor) -> Tensor:
        return steady_state(lambda s: b**1 - s**3, 2 * ONE, stop=PRECISE).z.sum()

    b = torch.tensor(8.0, dtype=DOUBLE)
    hessian = torch.autograd.functional.hessian(cube_root, b)
    assert torch.allclose(hessian, -2 / 9 * b ** (-5 / 3))
    b.requires_grad_()
    (first,) = torch.autograd.grad(cube_root(b), b, create_graph=True)
    (second,) = torch.autograd.grad(first, b, create_graph=True)
    assert torch.allclose(first, b ** (-2 / 3) / 3) and torch.allclose(second, hessian)
    with pytest.raises(PreconditionError, match="second"):
        torch.autograd.grad(second, b)


def test_parameters_of_modules_and_inputs_have_gradients_and_graphs_stay_usable() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    x = draw(4, 1).requires_grad_()
    flow = InputFlow(lambda s, x: 0.3 * net(torch.cat([s, x], 1)), x)
    found = steady_state(flow, torch.zeros(4, 2, dtype=DOUBLE))
    loss = found.z.square().sum() + x.square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters()) and x.grad is not None
    with torch.no_grad():
        assert not steady_state(flow, torch.zeros(4, 2, dtype=DOUBLE)).z.requires_grad
    assert not steady_state(lambda s: 1 - s, ONE).z.requires_grad


@pytest.mark.parametrize(
    ("f", "s0"),
    [
        (lambda k, s: -k * s * s, [[1.0]]),
        (lambda k, s: (s - k) ** 3, [[2.0]]),
        (lambda k, s: s * 0 * k, [[1.0]]),
        (lambda k, s: torch.stack([s[:, 1] - k * s[:, 0], k * s[:, 0] - s[:, 1]], 1), [[0.3, 1.0], [2.0, 0.1]]),
    ],
)
def test_a_singular_jacobian_is_refused(f: object, s0: list[list[float]]) -> None:
    k = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)
    found = steady_state(lambda s: f(k, s), torch.tensor(s0, dtype=DOUBLE))
    with pytest.raises(PreconditionError, match="Jacobian"):
        found.z.sum().backward()


def test_ill_scaled_is_not_singular() -> None:
    k = torch.tensor([1e-7, 1e7], dtype=DOUBLE, requires_grad=True)
    found = steady_state(lambda s: k - s * torch.tensor([1e6, 1e-6], dtype=DOUBLE), torch.ones(1, 2, dtype=DOUBLE))
    (gradient,) = torch.autograd.grad(found.z.sum(), k)
    assert torch.allclose(gradient, torch.tensor([1e-6, 1e6], dtype=DOUBLE))


def test_rows_that_failed_have_no_gradient_and_spoil_none() -> None:
    b = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE, requires_grad=True)
    found = steady_state(lambda s: b - s * s, torch.ones(2, 1, dtype=DOUBLE), stop=Stop(max_steps=50), throw=False)
    assert found.converged.tolist() == [True, False]
    (gradient,) = torch.autograd.grad(found.z.sum(), b)
    assert torch.allclose(gradient, torch.tensor([[0.5], [0.0]], dtype=DOUBLE))


def test_a_failure_carries_what_was_found() -> None:
    with pytest.raises(SolveError) as error:
        steady_state(lambda s: 1 + s * s, ONE, method=DormandPrince())
    assert error.value.solution is not None and bool(error.value.solution.z.isfinite().all())


def test_a_problem_of_a_field_is_solved_as_any_other() -> None:
    problem = FieldProblem(field=as_field(lambda s: 1 - s), start=ONE)
    assert torch.allclose(solve(problem, PseudoTransient(), z0=3 * ONE).z, ONE)
    with pytest.raises(InputError, match="problem"):
        solve(lambda s: 1 - s, PseudoTransient())
