"""A layer as people deploy it: autocast, torch.compile, torch.export, the meta device."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from contracting import FiringRate, InputError, PeacemanRachford, PreconditionError, Stop, simulate, solve
from equilibrium import LBEN, EquilibriumLayer, FixedIterations, LBENConv2d, MonDEQ


def dense_model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), LBEN(5, 8, 4, lipschitz=1.0), nn.Linear(4, 2))


def image_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), LBENConv2d(2, 2, 3, image=(4, 4), pool=2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("model_of", "shape"), [(dense_model, (7, 6)), (image_model, (7, 1, 4, 4))])
def test_a_layer_after_another_under_autocast(model_of: type, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """What autocast rounds are the neighbours: with them out of it, not a bit of output or gradient changes."""
    torch.manual_seed(0)
    model, x = model_of(), torch.randn(shape)
    loss = model(x).square().sum()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    with torch.autocast("cpu", dtype=dtype):
        h = model[0](x)
        assert h.dtype == dtype
        y = model[1](h)
        assert y.dtype == torch.float32
        assert torch.equal(y, model[1](h.float()))
        loss = model(x).float().square().sum()
    for ours, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        assert (ours - theirs).abs().max() <= 0.1 * theirs.abs().max()


def test_what_autocast_did_not_make_is_refused_inside_it_too() -> None:
    layer = LBEN(6, 8, 3)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            with pytest.raises(InputError, match=r"\bx\b"):
                layer(torch.randn(2, 6, dtype=torch.float64))
            with pytest.raises(InputError, match=r"\bx\b"):
                layer(torch.randn(2, 6).half())
    with pytest.raises(InputError, match=r"\bx\b"):
        layer(torch.randn(2, 6).bfloat16())


def test_every_way_into_a_layer_takes_what_autocast_made() -> None:
    layer, x = LBEN(6, 8, 3), torch.randn(2, 6).bfloat16()
    fixed = FixedIterations(layer, iterations=40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for call in (layer, layer.equilibrium, lambda x: layer.solve(x).z, lambda x: layer.problem(x).q, fixed):
            assert torch.equal(call(x), call(x.float()))


def test_a_solve_under_autocast_is_one_outside() -> None:
    problem = LBEN(6, 8, 3).problem(torch.randn(2, 6)).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = solve(problem, PeacemanRachford(), stop=Stop(rtol=1e-6))
    assert torch.equal(inside.z, solve(problem, PeacemanRachford(), stop=Stop(rtol=1e-6)).z)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.layer, self.after = nn.Linear(6, 5), LBEN(5, 8, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(self.before(x)).relu())


def test_what_is_computed_with_a_weight_under_autocast_is_what_it_is_outside() -> None:
    """Trajectories, bounds, numbers of steps, and the weights themselves."""
    torch.manual_seed(0)
    layer, x, times = LBEN(6, 8, 3, lipschitz=1.0), torch.randn(2, 6), torch.tensor([0.0, 1.0])

    def results() -> list[Tensor]:
        field, weights = layer.flow(FiringRate, x), layer.weights()
        problem = weights.problem(x, layer.activation)
        bound = solve(problem, PeacemanRachford()).error_bound
        assert bound is not None
        trajectory = simulate(field, torch.zeros(2, 8), times)
        steps = torch.tensor(FixedIterations(layer, tolerance=1e-3).iterations)
        return [weights.state.to_dense(), problem.q, bound, trajectory.states, trajectory.steps, steps]

    expected = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own, of its own look at it
def test_compile_breaks_once_and_never_again() -> None:
    """One graph before the layer and one after it, whatever number of optimiser steps."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = Model()
    twin = copy.deepcopy(model)
    backend = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=backend)
    for network, parameters in ((compiled, model.parameters()), (twin, twin.parameters())):
        optimiser = torch.optim.SGD(parameters, 0.1)
        for step in range(4):
            x = torch.randn(3, 6, generator=torch.Generator().manual_seed(step))
            optimiser.zero_grad()
            network(x).square().sum().backward()
            optimiser.step()
    assert backend.frame_count == 2
    assert counters["stats"]["unique_graphs"] == 2
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_what_cannot_hold_a_solve_names_what_can() -> None:
    layer, x = LBEN(6, 8, 3), torch.randn(2, 6)
    for trace in (torch.export.export, torch.jit.trace):
        with pytest.raises(PreconditionError, match=r"\bFixedIterations\b"):
            trace(layer, (x,))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"\bFixedIterations\b"):
        torch.compile(layer, backend="eager", fullgraph=True)(x)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (LBEN(6, 8, 3, device="meta"), (2, 6)),
        (EquilibriumLayer(MonDEQ(6, 8, 3, device="meta")), (2, 6)),
        (LBENConv2d(2, 2, 3, image=(4, 4), device="meta"), (2, 2, 4, 4)),
    ],
)
def test_a_layer_without_values_says_so(layer: EquilibriumLayer, shape: tuple[int, ...]) -> None:
    for device in ("meta", "cpu"):
        x = torch.randn(shape, device=device)
        for call in (layer, layer.equilibrium, layer.solve, layer.problem):
            with pytest.raises(InputError, match=r"\bmeta\b"):
                call(x)
    with pytest.raises(InputError, match=r"\bmeta\b"):
        layer.weights()
    layer = layer.to_empty(device="cpu")
    layer.parameterization.reset_parameters()
    assert torch.isfinite(layer(torch.randn(shape))).all()
