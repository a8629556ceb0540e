"""Equilibrium layers inside a field are read with it: their neurons see each other within an instant."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from contracting import InputFlow, NeuralFlow, SemismoothNewton, Stop, find_metric, lure_of, solve
from equilibrium import LBEN, LBENConv2d

EXACT = Stop(rtol=1e-14, atol=1e-14)


def layer(size_in: int, hidden: int, size_out: int, seed: int = 0) -> LBEN:
    torch.manual_seed(seed)
    return LBEN(size_in, hidden, size_out, lipschitz=2.0, activation=nn.Tanh(), stop=EXACT, dtype=torch.float64)


def test_a_layer_in_a_field_is_read() -> None:
    inner, s = layer(3, 6, 3), torch.randn(4, 3, dtype=torch.float64)
    field = NeuralFlow(lambda t, s: inner(s) - 2 * s)
    found = replace(lure_of(field), stop=EXACT)
    weights = inner.weights()
    assert found.layers == (6,) and torch.equal(found.D, weights.state.to_dense())  # type: ignore[arg-type]
    assert torch.equal(found.C, weights.input) and torch.equal(found.B, weights.output)
    assert torch.allclose(found(0.0, s), field(0.0, s), atol=1e-12)
    assert torch.allclose(found.jacobian(s), field.jacobian(s), atol=1e-10)
    assert found.system().hint is not None


def test_layers_between_others_are_read() -> None:
    first, second, outer = layer(3, 5, 4), layer(4, 6, 4, seed=1), nn.Linear(4, 3, dtype=torch.float64)
    net = nn.Sequential(first, nn.ReLU(), second, outer)
    field, s = NeuralFlow(lambda t, s: net(s) + first(s)[:, :3] - s), torch.randn(4, 3, dtype=torch.float64)
    found = replace(lure_of(field), stop=EXACT)
    assert found.layers is not None and sorted(found.layers) == [4, 5, 5, 6]
    assert torch.allclose(found(0.0, s), field(0.0, s), atol=1e-12)
    assert torch.allclose(found.jacobian(s), field.jacobian(s), atol=1e-10)


def test_gradients_reach_the_parameters_of_the_layer() -> None:
    inner, s = layer(3, 6, 3), torch.randn(4, 3, dtype=torch.float64)
    expected = torch.autograd.grad((inner(s) - s).square().sum(), inner.parameters(), allow_unused=True)
    flow = replace(lure_of(lambda t, s: inner(s) - s), stop=EXACT)
    found = torch.autograd.grad(flow(0.0, s).square().sum(), inner.parameters(), allow_unused=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, atol=1e-7)


def test_the_steady_state_of_such_a_field_is_an_equilibrium() -> None:
    inner, x = layer(5, 6, 3), torch.randn(4, 2, dtype=torch.float64)
    flow = InputFlow(lambda s, x: inner(torch.cat([s, x], 1)), x, leak=3.0)
    found = lure_of(flow)
    problem = found.equilibrium_problem(metric=find_metric(found.system().steady_weight).metric)
    s = found.steady_state(solve(problem, SemismoothNewton(), stop=EXACT).z)
    assert torch.allclose(flow(0.0, s), torch.zeros_like(s), atol=1e-10)


def test_a_convolutional_layer_in_a_field_is_read() -> None:
    torch.manual_seed(0)
    inner = LBENConv2d(1, 2, 16, image=(4, 4), lipschitz=1.0, stop=EXACT, dtype=torch.float64)
    field = NeuralFlow(lambda t, s: inner(s) - s)
    s: Tensor = torch.randn(3, 16, dtype=torch.float64)
    found = replace(lure_of(field, state=s), stop=EXACT)
    assert torch.allclose(found(0.0, s), field(0.0, s), atol=1e-11)


def test_a_layer_of_the_input_alone_is_an_input() -> None:
    encoder, x = layer(2, 4, 3), torch.randn(4, 2, dtype=torch.float64)
    flow = InputFlow(lambda s, x: torch.tanh(s + encoder(x)), x)
    found, s = lure_of(flow), torch.randn(4, 3, dtype=torch.float64)
    assert isinstance(found.u, Tensor) and torch.allclose(found.u, encoder(x)) and found.neurons == 3
    assert torch.allclose(found(0.0, s), flow(0.0, s), atol=1e-12)


@pytest.mark.parametrize("wrong", ["data", "hidden"])
def test_a_layer_whose_state_is_looked_into_is_refused(wrong: str) -> None:
    inner = layer(3, 6, 3)
    fields = {"data": lambda t, s: inner(s.data), "hidden": lambda t, s: inner.equilibrium(s)[:, :3] - s}
    with pytest.raises(Exception, match="cannot be read"):
        lure_of(fields[wrong], state=torch.zeros(3, dtype=torch.float64))
