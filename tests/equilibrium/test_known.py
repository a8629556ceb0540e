"""Weights of parameters that stay are made once; whatever changes a parameter, they are never stale."""

from __future__ import annotations

import copy
import sys
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from contracting import PreconditionError
from equilibrium import LBEN
from equilibrium.parameterizations import Monotone


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever weights are made from parameters."""
    calls: list[int] = []
    explicit = Monotone.explicit

    def counted(self: Monotone) -> object:
        calls.append(1)
        return explicit(self)

    monkeypatch.setattr(Monotone, "explicit", counted)
    return calls


def layer_of() -> LBEN:
    torch.manual_seed(0)
    return LBEN(6, 10, 3, lipschitz=1.0).double()


def test_frozen_weights_are_made_once(made: list[int]) -> None:
    layer, x = layer_of().requires_grad_(False), torch.randn(4, 6, dtype=torch.float64)
    first = layer.solve(x)
    for _ in range(3):
        assert torch.equal(layer.solve(x).z, first.z) and torch.equal(layer.equilibrium(x), first.z)
    assert len(made) == 1


def test_in_training_they_are_made_in_every_step(made: list[int]) -> None:
    layer, x = layer_of(), torch.randn(4, 6, dtype=torch.float64)
    for step in range(3):
        layer(x).sum().backward()
        assert len(made) == step + 1
    layer.solve(x), layer.solve(x)  # without a graph, once
    layer(x)  # and once more with one
    assert len(made) == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.parameterization.U.data.mul_(1.5),
        lambda layer: layer.parameterization.output_bias.data.add_(1.0),
        lambda layer: layer.parameterization.log_gamma.fill_(-1.0),
        lambda layer: setattr(layer.parameterization, "epsilon", 2.0),
        lambda layer: setattr(layer.parameterization, "contraction_rate", 0.3),
        lambda layer: layer.load_state_dict(LBEN(6, 10, 3, lipschitz=1.0).double().state_dict()),
        lambda layer: setattr(layer.parameterization, "V", torch.nn.Parameter(torch.eye(10, dtype=torch.float64))),
        lambda layer: setattr(layer.parameterization.V, "data", layer.parameterization.V.data + 0.1),
        lambda layer: setattr(layer.parameterization.V, "data", layer.parameterization.V.data.mT),
    ],
    ids=[
        "data", "output bias", "gamma", "epsilon", "rate", "state dict", "another parameter", "other memory",
        "the same memory, read the other way",
    ],
)
def test_a_change_is_noticed_however_it_is_made(change, made: list[int]) -> None:  # type: ignore[no-untyped-def]
    layer, x = layer_of(), torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        layer(x)
        change(layer)
        before, y = len(made), layer(x)
        assert len(made) == before + 1 and torch.equal(y, copy.deepcopy(layer)(x))


@pytest.mark.parametrize("contiguous", [True, False])
def test_equal_values_in_other_memory_are_known(contiguous: bool, made: list[int]) -> None:
    layer, x = layer_of(), torch.randn(4, 6, dtype=torch.float64)
    with torch.no_grad():
        layer(x)
        values = layer.parameterization.V.data
        layer.parameterization.V.data = values.clone() if contiguous else values.mT.clone().mT
        layer(x), layer(x)
    assert len(made) == 1


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("seen", [True, False], ids=["known before", "not known"])
def test_nobody_looks_at_weights_under_a_transformation(contiguous: bool, seen: bool) -> None:
    """There an alias of a parameter has no memory: the remedy is named for weights that were known and others."""
    layer, x = layer_of().requires_grad_(False), torch.randn(2, 6, dtype=torch.float64)
    if not contiguous:
        layer.parameterization.V.data = layer.parameterization.V.data.mT.clone().mT
    if seen:
        layer.solve(x)
    with pytest.raises(PreconditionError, match="FixedIterations"):
        torch.func.jacrev(layer)(x)


def test_what_inference_mode_made_serves_no_graph(made: list[int]) -> None:
    layer, x = layer_of().requires_grad_(False), torch.randn(4, 6, dtype=torch.float64)
    with torch.inference_mode():
        layer.solve(x), layer.solve(x)
    assert len(made) == 1
    inputs = x.clone().requires_grad_()
    layer(inputs).sum().backward()
    assert len(made) == 2 and inputs.grad is not None and inputs.grad.isfinite().all()


def test_a_solve_of_one_row_makes_few_calls_and_few_operations() -> None:
    """Of frozen weights: 237 calls of functions in Python, 294 before; a step of one row costs as much as four."""
    layer, x = LBEN(64, 80, 10, lipschitz=1.0).requires_grad_(False), torch.randn(1, 64)
    for _ in range(2):
        steps = int(layer.solve(x).steps)
    calls: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, argument: calls.update([event]))
    try:
        solution = layer.solve(x)
    finally:
        sys.setprofile(None)
    assert 100 < calls["call"] <= 260 and int(solution.steps) == steps
    with Operations() as seen:
        layer.solve(x)
    assert 5 < len(seen.names) <= 20
    assert sum("mm" in name for name in seen.names) == 3  # of x, of q and of the look; numpy takes the steps


class Operations(TorchDispatchMode):
    """Writes down the names of torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(str(function.overloadpacket))
        return function(*args, **(kwargs or {}))
