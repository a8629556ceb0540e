"""A contracting neural ODE: what holds for every value of the parameters, seen in trajectories and in the matrices."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracting import (
    AdaptiveStep,
    ContractingODE,
    FixedStep,
    FullP,
    Implicit,
    InputError,
    LinearInterpolation,
    LureODE,
    PeacemanRachford,
    ReLU,
    SemismoothNewton,
    Stop,
    Tanh,
    TorchDiffEqStep,
    WellPosed,
    ZeroOrderHold,
    simulate,
    solve,
)
from contracting.integrators.explicit import HEUN

DOUBLE = torch.float64
TIMES = torch.linspace(0, 1, 5, dtype=DOUBLE)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def made(*sizes: int | None, seed: int = 0, scale: float | None = None, **options: Any) -> ContractingODE:
    """A module with the parameters it starts with, or with others of a scale."""
    torch.manual_seed(seed)
    options = {"dtype": DOUBLE, "activation": ReLU(), "integrator": FixedStep(step=0.1), **options}
    layer = ContractingODE(*sizes, **options)  # type: ignore[arg-type]
    if scale is not None:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(scale * torch.randn_like(parameter))
            layer.parameterization.log_multiplier.clamp_(-3, 3)
    return layer


def metric_of(layer: LureODE) -> FullP:
    metric = layer.weights().metric
    assert metric is not None
    return metric


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3, 2.0])
def test_trajectories_approach_at_the_promised_rate(feedback: bool, scale: float | None) -> None:
    # without feedback some of the random systems are stiff
    layer = made(2, 3, 6, 2, contraction_rate=0.4, feedback=feedback, scale=scale, integrator=AdaptiveStep(rtol=1e-6))
    one, other, u, times = drawn(4, 3, seed=1), drawn(4, 3, seed=2), drawn(5, 4, 2, seed=3), TIMES / 10
    with torch.no_grad():
        gap = metric_of(layer).norm(layer.response(one, times, u).states - layer.response(other, times, u).states)
    bound = (-0.4 * times).exp()[:, None] * gap[0]
    assert bool((gap <= bound * (1 + 1e-4) + 1e-5).all()) and bool((gap[-1] < gap[0]).all())


def test_the_control_promises_nothing() -> None:
    torch.manual_seed(1)
    free = LureODE(WellPosed(1, 3, 8, None, dtype=DOUBLE), activation=ReLU(), integrator=FixedStep(step=0.1))
    assert free.weights().metric is None
    with torch.no_grad():
        gap = (free(drawn(4, 3, seed=1), TIMES * 5) - free(drawn(4, 3, seed=2), TIMES * 5)).norm(dim=-1)
    assert bool((gap[-1] > gap[0]).all())  # and indeed it does not contract


def test_it_rests_where_it_is_told_to() -> None:
    goal = drawn(2, seed=4)
    layer = made(1, 2, 8, None, contraction_rate=2.0, rest=goal)
    with torch.no_grad():
        y = layer(10 * drawn(5, 2), torch.tensor([0.0, 12.0], dtype=DOUBLE))
        assert torch.allclose(y[-1], goal.expand(5, 2), atol=1e-7)
        assert torch.allclose(layer.steady_state()[0], goal, atol=1e-9)
        assert not torch.allclose(layer.steady_state(torch.ones(1, dtype=DOUBLE))[0], goal, atol=1e-3)
        assert torch.equal(made(1, 2, 8, None, contraction_rate=2.0, rest=goal, seed=3).rest, goal)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", [PeacemanRachford(), SemismoothNewton()])
def test_integrate_or_split(solver: Any) -> None:
    layer, u = made(2, 3, 6, 2, contraction_rate=1.0), drawn(4, 2, seed=5)
    problem = layer.equilibrium_problem(u)
    assert problem.well_posed
    system = layer.system()
    assert torch.allclose(problem.linear.to_dense(), system.D - system.C @ torch.linalg.solve(system.A, system.B))
    with torch.no_grad():
        split = layer.flow(u).steady_state(solve(problem, solver, stop=Stop(rtol=1e-12)).z)
        integrated = layer.response(None, torch.tensor([0.0, 25.0], dtype=DOUBLE), u).states[-1]
        assert torch.allclose(split, integrated, rtol=1e-7, atol=1e-9)
        assert float(layer.flow(u)(0.0, split).abs().max()) < 1e-9
        assert torch.allclose(layer.steady_state(u), split, rtol=1e-8, atol=1e-10)


def test_all_ways_to_say_the_same_input() -> None:
    layer, s0 = made(2, 3, 6, 2, integrator=FixedStep(step=0.05)), drawn(4, 3, seed=6)
    constant = drawn(4, 2, seed=7)
    ways = [constant, constant.expand(5, -1, -1), lambda t: constant, LinearInterpolation(constant.expand(5, -1, -1))]
    ys = [layer(s0, TIMES, way) for way in ways]
    assert all(torch.allclose(ys[0], y, rtol=1e-9) for y in ys[1:])
    assert torch.allclose(layer(s0, TIMES), layer(s0, TIMES, torch.zeros(2, dtype=DOUBLE)))
    held = drawn(3, 4, 2, seed=8)
    knots = torch.tensor([0.0, 0.3, 0.61], dtype=DOUBLE)  # jumps between the times, which the steps must hit

    def by_hand(t: Tensor) -> Tensor:
        return torch.where(t < 0.3, held[0], torch.where(t < 0.61, held[1], held[2]))

    exact = layer(s0, torch.cat([TIMES, knots[1:]]).sort().values, by_hand)[[0, 1, 3, 5, 6]]
    assert torch.allclose(layer(s0, TIMES, ZeroOrderHold(held, knots)), exact, rtol=1e-6)
    each = knots[:, None] + torch.tensor([0.0, 0.01, 0.02, 0.03], dtype=DOUBLE)
    own = layer(s0, TIMES, ZeroOrderHold(held, each))
    assert torch.allclose(own[:, 0], exact[:, 0], rtol=1e-6) and not torch.allclose(own[-1, 3], exact[-1, 3], rtol=1e-3)


def test_each_row_has_a_grid_of_its_own() -> None:
    layer, s0, u = made(2, 3, 6, 2), drawn(2, 3, seed=6), drawn(5, 2, 2, seed=7)
    grids = torch.stack([TIMES, 0.3 + 2 * TIMES**2], 1)
    both = layer.response(s0, grids, u)
    for row in range(2):
        alone = layer.response(s0[row : row + 1], grids[:, row], u[:, row : row + 1])
        assert torch.allclose(both.outputs[:, row], alone.outputs[:, 0], rtol=1e-8)
    back = layer.response(both.states[2], grids[:3].flip(0), ZeroOrderHold(u, grids))  # it jumps there backwards too
    assert torch.allclose(back.states, both.states[:3].flip(0), rtol=1e-3, atol=1e-3)
    assert torch.allclose(back.outputs, both.outputs[:3].flip(0), rtol=1e-3, atol=1e-3)


def test_a_linear_input_is_what_it_says() -> None:
    values, times = drawn(3, 2, 1, seed=1), torch.tensor([0.0, 1.0, 4.0], dtype=DOUBLE)
    u = LinearInterpolation(values, times)
    at = u(torch.tensor([[0.25], [3.0]], dtype=DOUBLE))
    assert torch.allclose(at[0], 0.75 * values[0, 0] + 0.25 * values[1, 0])
    assert torch.allclose(at[1], values[1, 1] / 3 + 2 * values[2, 1] / 3)
    assert torch.allclose(u(torch.tensor(9.0, dtype=DOUBLE)), values[2])
    jump = ZeroOrderHold(values, times)
    assert torch.equal(jump(torch.tensor(1.0, dtype=DOUBLE)), values[1])  # continuous from the right
    assert torch.equal(jump(torch.tensor(0.999, dtype=DOUBLE)), values[0])


def test_events_and_other_times() -> None:
    layer, s0, u = made(2, 3, 6, 2), 3 * drawn(4, 3, seed=6), drawn(5, 4, 2, seed=7)
    with torch.no_grad():
        free = layer.response(s0, TIMES, u)
        level = float(free.states[:, 1, 0].mean())
        response = layer.response(s0, TIMES, u, event=lambda t, s: s[:, 0] - level)
        assert response.stopped is not None
        ended = torch.isfinite(response.stopped)
        assert bool(ended[1]) and torch.allclose(response.states[-1, ended, 0], torch.tensor(level, dtype=DOUBLE))
        assert torch.allclose(response.outputs[:, ~ended], free.outputs[:, ~ended])
        states, outputs = free.at(response.stopped[None].clamp_max(1.0))
        assert torch.allclose(states[0, ended], response.states[-1, ended], atol=1e-6)
        assert torch.allclose(outputs[0, ended], response.outputs[-1, ended], atol=1e-6)


@pytest.mark.parametrize("feedback", [True, False])
def test_derivatives(feedback: bool) -> None:
    tight = Stop(rtol=1e-14, atol=1e-15)
    layer = made(
        1, 2, 3, 1, lipschitz=1.0, contraction_rate=0.2, activation=Tanh(), feedback=feedback,
        integrator=FixedStep(step=1.0, tableau=HEUN), stop=tight, backward=Implicit(stop=tight),
    )  # fmt: skip
    names = ("X", "X_P", "S1", "log_multiplier", "C", "B2", "C2", "bias")
    parameters = [getattr(layer.parameterization, name) for name in names]
    s0, t, u = drawn(1, 2, seed=1), torch.tensor([0.0, 0.9], dtype=DOUBLE), drawn(2, 1, 1, seed=2)
    inputs = [value.clone().requires_grad_() for value in (s0, t, u)]

    def y(s0: Tensor, t: Tensor, u: Tensor, *values: Tensor) -> Tensor:
        free = {f"parameterization.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(layer, free, (s0, t, LinearInterpolation(u))).sum(-1)  # type: ignore[no-any-return]

    everything = (*inputs, *(value.detach().clone().requires_grad_() for value in parameters))
    assert torch.autograd.gradcheck(y, everything, atol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(y, everything, atol=1e-5, fast_mode=True)


@pytest.mark.parametrize("adjoint", [False, True])
def test_torchdiffeq_gives_the_same_gradients(adjoint: bool) -> None:
    layer, s0, u = made(2, 3, 4, 2, activation=Tanh()), drawn(2, 3, seed=6), drawn(2, 2, 2, seed=7)
    times, found = torch.tensor([0.0, 0.3], dtype=DOUBLE), []
    for integrator in (AdaptiveStep(rtol=1e-7), TorchDiffEqStep(rtol=1e-7, adjoint=adjoint)):
        layer.integrator = integrator
        values = u.clone().requires_grad_()
        loss = layer(s0, times, values).square().sum()
        found.append(torch.autograd.grad(loss, [values, *layer.parameters()]))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True))


def test_copies_pickles_and_state_dicts() -> None:
    options: dict[str, Any] = {"contraction_rate": 0.3, "lipschitz": 2.0, "rest": drawn(3)}
    layer, s0 = made(2, 3, 4, 2, **options), drawn(2, 3, seed=1)
    loaded = made(2, 3, 4, 2, seed=9, **options)
    loaded.load_state_dict(layer.state_dict())
    with torch.no_grad():
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
            assert torch.equal(twin(s0, TIMES), layer(s0, TIMES))
    for other in ({"contraction_rate": 0.4}, {"lipschitz": 1.0}, {"activation": Tanh()}, {"epsilon": 0.1}):
        with pytest.raises(InputError, match=next(iter(other))):
            made(2, 3, 4, 2, **{**options, **other}).load_state_dict(layer.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_and_no_rows(dtype: torch.dtype) -> None:
    layer = made(2, 3, 4, 2, dtype=torch.float32, integrator=AdaptiveStep()).to(dtype)
    y = layer(torch.ones(3, 3, dtype=dtype), torch.tensor([0, 1]), torch.ones(3, 2, dtype=dtype))
    assert y.dtype == dtype and y.shape == (2, 3, 2)
    none = layer(torch.ones(0, 3, dtype=dtype), torch.tensor([0, 1]), torch.ones(2, 0, 2, dtype=dtype))
    assert none.shape == (2, 0, 2) and none.dtype == dtype
    none.sum().backward()


@pytest.mark.parametrize(
    ("sizes", "options", "name"),
    [
        ((1, 2, 3, 1), {"contraction_rate": -0.1}, "contraction_rate"),
        ((1, 2, 3, 1), {"lipschitz": 0.0}, "lipschitz"),
        ((1, 2, 3, 1), {"epsilon": 0.0}, "epsilon"),
        ((1, 2, 0, 1), {}, "neurons"),
        ((-1, 2, 3, 1), {}, "inputs"),
        ((0, 2, 3, 1), {"lipschitz": 1.0}, "inputs"),
        ((1, 0, 3, None), {}, "outputs"),
        ((1, 2, 3, 2), {"passive": True}, "passive"),
        ((1, 2, 3, 1), {"passive": 0.5}, "passive"),
        ((1, 2, 3, 1), {"activation": nn.GELU()}, "GELU"),
        ((1, 2, 3, 1), {"solver": "dopri5"}, "solver"),
        ((1, 2, 3, 1), {"integrator": "dopri5"}, "integrator"),
        ((1, 2, 3, 1), {"stop": 1e-3}, "stop"),
        ((1, 2, 3, 1), {"rest": torch.zeros(3)}, "rest"),
        ((1, 2, 3, 1), {"dtype": torch.int64}, "dtype"),
    ],
)
def test_bad_settings_are_refused_by_name(sizes: Any, options: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=name):
        ContractingODE(*sizes, **options)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((torch.zeros(3), TIMES), "s0"),
        ((drawn(2, 4), TIMES), "s0"),
        ((drawn(2, 3).float(), TIMES), "s0"),
        ((drawn(2, 3), torch.tensor([0.0, 2.0, 1.0])), "times"),
        ((drawn(2, 3), torch.zeros(3, 5)), "times"),
        ((drawn(2, 3), [0.0, 1.0]), "times"),
        ((drawn(2, 3), TIMES, drawn(5, 2, 3)), "u"),
        ((drawn(2, 3), TIMES, drawn(5, 3, 2)), "u"),
        ((drawn(2, 3), TIMES, drawn(4, 2, 2)), "values"),
        ((drawn(2, 3), TIMES, drawn(3, 2)), "u"),
        ((drawn(2, 3), TIMES, "sin"), "u"),
        ((drawn(2, 3), TIMES, lambda t: drawn(7, 2)), "u"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: Any, name: str) -> None:
    with pytest.raises(InputError, match=name):
        made(2, 3, 4, 2)(*arguments)


@pytest.mark.parametrize(("name", "value"), [("X", torch.nan), ("X_P", torch.inf), ("log_multiplier", 800.0)])
def test_parameters_that_make_no_matrices_are_named(name: str, value: float) -> None:
    layer = made(2, 3, 4, 2)
    with torch.no_grad():
        getattr(layer.parameterization, name).fill_(value)
    with pytest.raises(InputError, match=name):
        layer(drawn(2, 3), TIMES)


def test_an_input_for_a_module_without_is_refused() -> None:
    with pytest.raises(InputError, match="u must be None"):
        made(0, 2, 3, None)(drawn(1, 2), TIMES, drawn(1, 1))


def test_the_field_is_one_of_the_library() -> None:
    layer, s0 = made(2, 3, 4, None), drawn(2, 3)
    assert torch.allclose(simulate(layer.flow(), s0, TIMES, integrator=layer.integrator).states, layer(s0, TIMES))
