"""What is remembered on weights serves every solve with them, and none with others."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracting.activations.catalogue import LeakyReLU, ReLU
from contracting.gradients.implicit import Implicit, Unrolled
from contracting.loop.method import Method
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers.automatic import Automatic
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.splitting import PeacemanRachford
from equilibrium.layers import LBEN
from tests.problems import monotone_weight

STOP = Stop(rtol=1e-9, atol=0.0)


def a_problem(rows: int = 7, n: int = 12) -> EquilibriumProblem:
    W, _ = monotone_weight(n, seed=3)
    return EquilibriumProblem(
        linear=Dense(W), q=torch.randn(rows, n, dtype=W.dtype), activation=ReLU(), metric=WeightedL2(W.new_ones(n))
    )


def check_against_fresh_weights(problem: EquilibriumProblem, method: Method, stop: Stop = STOP) -> Tensor:
    """The answer is that of the same weights without any memory, to the bit."""
    z = solve(problem, method, stop=stop).z
    fresh = replace(problem, linear=Dense(problem.linear.to_dense().clone()))
    torch.testing.assert_close(z, solve(fresh, method, stop=stop).z, rtol=0, atol=0)
    return z


def test_whatever_a_solve_depends_on_is_noticed() -> None:
    problem, method = a_problem(), PeacemanRachford()
    usual = check_against_fresh_weights(problem, method)
    others: tuple[tuple[EquilibriumProblem, Method, Stop], ...] = (
        (problem, method, replace(STOP, rtol=1e-5)),
        (problem, PeacemanRachford(step=0.7), STOP),
        (problem, PeacemanRachford(mixed_precision=False), STOP),
        (replace(problem, activation=LeakyReLU(negative_slope=0.1)), method, STOP),
        (replace(problem, metric=WeightedL2(torch.full_like(problem.q[0], 2.0))), method, STOP),
        (replace(problem, q=problem.q[:3]), method, STOP),
    )
    for case in others:
        check_against_fresh_weights(*case)
    assert torch.equal(check_against_fresh_weights(problem, method), usual)
    problem.linear.to_dense().mul_(0.5)
    assert not torch.allclose(check_against_fresh_weights(problem, method), usual, rtol=0.1)
    assert problem.metric is not None
    problem.metric.tensors()[0].mul_(4)
    check_against_fresh_weights(problem, method)
    step = torch.full_like(problem.q[0], 0.4)
    check_against_fresh_weights(problem, PeacemanRachford(step=step))
    step.mul_(2)
    check_against_fresh_weights(problem, PeacemanRachford(step=step))


def test_bounds_of_a_problem_follow_its_weights() -> None:
    problem = a_problem()
    assert problem.well_posed and problem.operator is not None
    before = problem.operator.bounds.monotonicity
    problem.linear.to_dense().mul_(0.5)
    assert problem.operator is not None and problem.operator.bounds.monotonicity == pytest.approx((1 + before) / 2)
    problem.linear.to_dense().copy_(2 * torch.eye(problem.size))
    assert not problem.well_posed and problem.operator is None


@pytest.mark.parametrize("rows", [7, 900])
def test_repeated_solves_are_the_same_to_the_bit_and_in_their_counts(rows: int) -> None:
    problem = a_problem(rows, 40)
    problem = replace(problem, q=problem.q * torch.logspace(-6, 6, rows, dtype=problem.q.dtype)[:, None])
    solutions = [solve(problem, Automatic(), stop=Stop(rtol=1e-12, atol=0.0)) for _ in range(3)]
    for other in solutions[1:]:
        for name in ("z", "residual", "steps", "status"):
            torch.testing.assert_close(getattr(other, name), getattr(solutions[0], name), rtol=0, atol=0)
        assert other.map_evals == solutions[0].map_evals


def test_threads_share_what_was_bound_but_not_its_state() -> None:
    problem = a_problem(300, 40)
    inputs = [problem.q * size for size in (1.0, -2.0, 1e3, 1e-40)]

    def answer(q: Tensor) -> Tensor:
        return solve(replace(problem, q=q), Automatic(), stop=Stop(rtol=1e-12, atol=0.0)).z

    expected = [answer(q) for q in inputs]
    with ThreadPoolExecutor(len(inputs)) as pool:
        found = list(pool.map(answer, inputs * 20))
    for z, alone in zip(found, expected * 20, strict=True):
        torch.testing.assert_close(z, alone, rtol=0, atol=0)


def test_nothing_keeps_a_batch_alive() -> None:
    problem = a_problem()
    linear, q = problem.linear, problem.q
    gone = weakref.ref(q)
    solve(problem, Automatic(), stop=STOP)
    del problem, q
    gc.collect()
    assert gone() is None
    assert linear.size == 12


def test_a_gradient_with_respect_to_the_input_alone_is_that_of_fresh_weights() -> None:
    """What was bound without a graph serves a solve that is recorded."""
    problem = a_problem()
    solve(problem, Automatic(), stop=STOP)

    def gradient(linear: Dense) -> Tensor:
        q = problem.q.clone().requires_grad_()
        z = solve(replace(problem, linear=linear, q=q), PeacemanRachford(), stop=STOP).z
        return torch.autograd.grad((z * torch.arange(z.shape[1])).sum(), q)[0]

    assert isinstance(problem.linear, Dense)
    remembered = gradient(problem.linear), gradient(problem.linear)
    fresh = gradient(Dense(problem.linear.weight.clone()))
    for value in remembered:
        torch.testing.assert_close(value, fresh, rtol=0, atol=0)


def frozen_layer(**options: object) -> LBEN:
    torch.manual_seed(0)
    layer = LBEN(3, 12, 2, lipschitz=2.0, dtype=torch.float64, stop=STOP, **options)  # type: ignore[arg-type]
    return layer.requires_grad_(False)


def input_derivatives(layer: LBEN, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of a loss in x, and one of its second derivatives."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    return first.detach(), torch.autograd.grad(first.sin().sum(), x)[0]


def test_a_frozen_layer_gives_the_gradients_of_one_in_training() -> None:
    layer, x = frozen_layer(), torch.randn(7, 3, dtype=torch.float64)
    found = [input_derivatives(layer, x) for _ in range(2)]
    layer.requires_grad_(True)
    expected = input_derivatives(layer, x)
    assert all(torch.allclose(a, b, atol=1e-7) for pair in found for a, b in zip(pair, expected, strict=True))
    with torch.no_grad():
        layer.requires_grad_(False).parameterization.psi.add_(1.0)  # type: ignore[operator,union-attr]
    changed = input_derivatives(layer, x)
    assert not torch.allclose(changed[0], expected[0], atol=1e-3)


@pytest.mark.parametrize("backward", [Implicit(), Unrolled()], ids=lambda b: type(b).__name__)
@pytest.mark.parametrize("solver", [None, SemismoothNewton(), PeacemanRachford()], ids=lambda m: type(m).__name__)
def test_what_inference_mode_remembers_serves_gradients(backward: Implicit | Unrolled, solver: Method | None) -> None:
    """Before or after the weights were first known outside of it."""
    x = torch.randn(7, 3, dtype=torch.float64)
    expected = input_derivatives(frozen_layer(backward=backward, solver=solver), x)
    for known_before in (False, True):
        layer = frozen_layer(backward=backward, solver=solver)
        if known_before:
            layer.weights()
        with torch.inference_mode():
            layer(x)
        found = input_derivatives(layer, x)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
