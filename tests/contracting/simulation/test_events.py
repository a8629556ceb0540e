"""Events, states at any time and gradients through times, on flows whose solutions are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contracting import AdaptiveStep, FixedStep, InputError, LinearFlow, NeuralFlow, simulate
from contracting.simulation.time_steps import Integrator

DOUBLE = torch.float64
INTEGRATORS = [AdaptiveStep(rtol=1e-11), FixedStep(step=0.01)]


def halved(level: float = 0.5):  # type: ignore[no-untyped-def]
    return lambda t, s: s[:, 0] - level


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=lambda i: type(i).__name__)
def test_a_row_ends_where_the_function_changes_its_sign(integrator: Integrator) -> None:
    flow = LinearFlow(torch.tensor([[-1.0]], dtype=DOUBLE))
    start = torch.tensor([[1.0], [3.0], [0.4], [0.5]], dtype=DOUBLE)
    path = simulate(flow, start, torch.tensor([0.0, 0.3, 4.0]), integrator=integrator, event=halved())
    # from below the level, and from the level itself, the sign never changes
    exact = torch.tensor([math.log(2), math.log(6), math.inf, math.inf], dtype=DOUBLE)
    assert path.stopped is not None and torch.allclose(path.stopped, exact, rtol=1e-9)
    assert torch.allclose(path.states[-1, :2, 0], torch.tensor([0.5, 0.5], dtype=DOUBLE), rtol=1e-9)
    assert torch.allclose(path.states[-1, 2:], start[2:] * math.exp(-4), rtol=1e-7)


def test_a_row_ends_at_a_time_and_backwards_too() -> None:
    flow = LinearFlow(torch.tensor([[-1.0]], dtype=DOUBLE))
    start = torch.tensor([[1.0], [2.0]], dtype=DOUBLE)
    by_time = simulate(flow, start, torch.tensor([0.0, 2.0]), event=lambda t, s: t[:, 0] - 0.7)
    assert torch.allclose(by_time.states[-1], start * math.exp(-0.7), rtol=1e-8)
    back = simulate(flow, start, torch.tensor([0.0, -3.0]), event=halved(4.0))
    assert back.stopped is not None
    assert torch.allclose(back.stopped, -torch.tensor([math.log(4), math.log(2)], dtype=DOUBLE), rtol=1e-8)


def test_rows_do_not_wait_for_each_other() -> None:
    rotation = LinearFlow(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=DOUBLE))
    angles = torch.tensor([0.2, 1.0, 2.0], dtype=DOUBLE)
    start = torch.stack([angles.sin(), angles.cos()], 1)
    path = simulate(rotation, start, torch.linspace(0, 3.5, 8), event=lambda t, s: s[:, 0])
    assert path.stopped is not None and torch.allclose(path.stopped, math.pi - angles, rtol=1e-8)
    alone = simulate(rotation, start[1:2], torch.linspace(0, 3.5, 8), event=lambda t, s: s[:, 0])
    assert torch.equal(alone.states[:, 0], path.states[:, 1])


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=lambda i: type(i).__name__)
def test_derivatives_of_an_event(integrator: Integrator) -> None:
    rate = torch.tensor(1.3, dtype=DOUBLE, requires_grad=True)
    start = torch.tensor([[2.0]], dtype=DOUBLE, requires_grad=True)
    path = simulate(
        NeuralFlow(lambda t, s: -rate * s), start, torch.tensor([0.0, 2.0]), integrator=integrator, event=halved()
    )
    moment = path.stopped
    assert moment is not None  # log(4)/rate
    (by_rate, by_start) = torch.autograd.grad(moment.sum(), (rate, start), create_graph=True)
    assert float(by_rate.detach()) == pytest.approx(-math.log(4) / 1.3**2, rel=1e-6)
    assert float(by_start.detach()) == pytest.approx(1 / (1.3 * 2), rel=1e-6)
    (second,) = torch.autograd.grad(by_rate, rate, retain_graph=True)
    assert float(second) == pytest.approx(2 * math.log(4) / 1.3**3, rel=1e-5)
    (flat,) = torch.autograd.grad(path.states[-1].sum(), start)  # it always ends at the level
    assert float(flat.abs()) < 1e-9


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=lambda i: type(i).__name__)
def test_gradients_flow_through_the_times(integrator: Integrator) -> None:
    times = torch.tensor([0.2, 0.5, 1.1], dtype=DOUBLE, requires_grad=True)
    field = NeuralFlow(lambda t, s: t * s, time_dtype=DOUBLE)

    def last(times: Tensor) -> Tensor:
        return simulate(field, torch.ones(1, 1, dtype=DOUBLE), times, integrator=integrator).states[-1].sum()

    # s = exp((t² − t₀²)/2)
    exact = math.exp((1.1**2 - 0.2**2) / 2)
    (gradient,) = torch.autograd.grad(last(times), times, create_graph=True)
    assert torch.allclose(gradient, exact * torch.tensor([-0.2, 0.0, 1.1], dtype=DOUBLE), rtol=1e-6, atol=1e-7)
    (second,) = torch.autograd.grad(gradient[2], times)
    assert float(second[2]) == pytest.approx(exact * (1 + 1.1**2), rel=1e-5)
    assert torch.autograd.gradcheck(last, (times,), atol=1e-5)


def test_each_row_has_times_of_its_own_to_learn() -> None:
    times = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=DOUBLE, requires_grad=True)
    flow = LinearFlow(torch.tensor([[-1.0]], dtype=DOUBLE))
    end = simulate(flow, torch.ones(2, 1, dtype=DOUBLE), times).states[-1]
    (gradient,) = torch.autograd.grad(end.sum(), times)
    assert torch.allclose(gradient[1], -torch.tensor([1.0, 2.0], dtype=DOUBLE).neg().exp(), rtol=1e-7)


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=lambda i: type(i).__name__)
def test_the_state_at_any_time(integrator: Integrator) -> None:
    flow = LinearFlow(torch.tensor([[-1.0]], dtype=DOUBLE))
    start = torch.tensor([[1.0], [3.0]], dtype=DOUBLE)
    path = simulate(flow, start, torch.tensor([0.0, 1.0, 2.0]), integrator=integrator, event=halved())
    asked = torch.tensor([1.7, 0.0, 0.6, 1.0], dtype=DOUBLE)
    exact = torch.maximum(start[None, :, 0] * (-asked[:, None]).exp(), torch.tensor(0.5))
    assert torch.allclose(path.at(asked)[:, :, 0], exact, rtol=1e-8)
    assert torch.allclose(path.at(torch.tensor(0.6, dtype=DOUBLE))[:, 0], exact[2], rtol=1e-8)
    each = path.at(torch.tensor([[0.6, 1.7]], dtype=DOUBLE))
    assert torch.allclose(each[0, :, 0], torch.stack([exact[2, 0], exact[0, 1]]), rtol=1e-8)
    for wrong in (torch.tensor(2.5), torch.tensor([-0.1])):
        with pytest.raises(InputError, match="times"):
            path.at(wrong)


def test_an_event_of_another_shape_is_refused() -> None:
    flow = LinearFlow(torch.tensor([[-1.0]], dtype=DOUBLE))
    with pytest.raises(InputError, match="event"):
        simulate(flow, torch.ones(2, 1, dtype=DOUBLE), torch.tensor([0.0, 1.0]), event=lambda t, s: s)
