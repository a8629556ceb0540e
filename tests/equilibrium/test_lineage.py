"""What guides the solves of a training may be a few updates old: it costs steps, never correctness."""

from __future__ import annotations

import copy

import pytest
import torch

from contracting import Stop
from contracting.maps import base as linear
from contracting.maps import estimates
from contracting.maps.estimates import Estimates
from contracting.solvers import reflected as folded
from equilibrium import LBEN, Implicit, LBENConv2d

STOP = Stop(rtol=1e-6, atol=0.0)


def layer_on_rows() -> LBEN:
    torch.manual_seed(0)
    return LBEN(6, 20, 3, lipschitz=1.0, stop=STOP, backward=Implicit(stop=STOP)).double()


def layer_on_images() -> LBENConv2d:
    torch.manual_seed(0)
    return LBENConv2d(1, 3, 2, image=(6, 6), stop=STOP, backward=Implicit(stop=STOP)).double()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often estimates and forecasts were computed."""
    counts = {"estimates": 0, "forecasts": 0}

    def estimated(*args: object, **options: object) -> Estimates | None:
        counts["estimates"] += 1
        return estimates.estimate(*args, **options)  # type: ignore[arg-type]

    forecast = folded.sampled_forecast

    def sampled(*args: object, **options: object) -> object:
        counts["forecasts"] += 1
        return forecast(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(linear, "estimate", estimated)
    monkeypatch.setattr(folded, "sampled_forecast", sampled)
    return counts


def updates(layer: LBEN | LBENConv2d, x: torch.Tensor, count: int, rate: float) -> None:
    for _ in range(count):
        layer.zero_grad()
        layer(x).square().sum().backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= rate * parameter.grad


@pytest.mark.parametrize("make", [layer_on_rows, layer_on_images])
def test_one_update_in_ten_computes_what_guides_it(make: object, computed: dict[str, int]) -> None:
    layer = make()  # type: ignore[operator]
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    updates(layer, x, 20, 1e-3)
    assert computed == {"estimates": 2, "forecasts": 2}
    layer.train()  # starts anew, so that a resumed training is the same as one that was not interrupted
    updates(layer, x, 1, 1e-3)
    assert computed == {"estimates": 3, "forecasts": 3}
    layer.eval()
    updates(layer, x, 3, 1e-3)
    assert computed == {"estimates": 6, "forecasts": 6}


@pytest.mark.parametrize("make", [layer_on_rows, layer_on_images])
@pytest.mark.parametrize("factor", [0.02, 20.0])
def test_gradients_are_right_however_old_it_is(make: object, factor: float) -> None:
    layer = make()  # type: ignore[operator]
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    updates(layer, x, 2, 1e-3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter *= factor
    fresh = copy.deepcopy(layer)
    gradients = []
    for module in (layer, fresh):
        module.zero_grad()
        module(x).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    assert fresh._lineage is not layer._lineage
    difference = torch.linalg.vector_norm(gradients[0] - gradients[1]) / torch.linalg.vector_norm(gradients[1])
    assert difference <= 1e-4
