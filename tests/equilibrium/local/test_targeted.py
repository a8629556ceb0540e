"""Ascents towards every other class: where the answer is known, and that what they find is inside."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from contracting import InputError
from equilibrium.local.targeted import targeted_attack
from tests.equilibrium.local.instances import drawn, random_layer

F64 = torch.float64


def linear(seed: int, inputs: int = 6, classes: int = 4) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    model = nn.Linear(inputs, classes, dtype=F64)
    with torch.no_grad():
        model.weight.copy_(drawn(seed, classes, inputs))
        model.bias.copy_(drawn(seed + 1, classes))
        x = drawn(seed + 2, 5, inputs).clamp(-1, 1)
        return model, x, model(x).argmax(-1)


def clipped(c: torch.Tensor, x: torch.Tensor, r: float) -> torch.Tensor:
    """The smallest c·Δ for ‖Δ‖ ≤ r and −1 ≤ x + Δ ≤ 1: −clip(t·c) with the t that makes it as long as r."""
    t = torch.logspace(-2, 2, 20000, dtype=F64)[:, None]
    moves = (x - t * c).clamp(-1, 1) - x
    return (moves @ c)[moves.norm(dim=-1) <= r].min()


@torch.no_grad()
def test_the_smallest_lead_of_a_linear_map_is_found() -> None:
    model, x, labels = linear(0)
    whole = targeted_attack(model, x, labels, 0.7, steps=20, restarts=1)
    cut = targeted_attack(copy.deepcopy(model).float(), x, labels, 0.7, bounds=(-1, 1), verify=model, steps=200)
    here = model(x)
    for k, label in enumerate(labels.tolist()):
        for j in set(range(4)) - {label}:
            c, lead = model.weight[label] - model.weight[j], here[k, label] - here[k, j]
            assert float(whole.leads[k, j]) == pytest.approx(float(lead - 0.7 * c.norm()), rel=1e-6)
            assert float(cut.leads[k, j] - lead - clipped(c, x[k], 0.7)) == pytest.approx(0, abs=5e-3)
        assert bool(whole.leads[k, label].isinf())
    for found, low in ((whole, -torch.inf), (cut, -1.0)):
        assert bool(((found.inputs - x).norm(dim=-1) <= 0.7).all()) and float(found.inputs.min()) >= low
        outputs = model(found.inputs)
        margin = outputs.gather(1, labels[:, None]) - outputs
        margin[torch.arange(5), labels] = torch.inf
        assert torch.allclose(margin.amin(-1), found.leads.amin(-1))
        assert torch.equal(found.fooled, (margin < 0).any(-1))


@torch.no_grad()
def test_no_sample_of_a_network_is_worse_and_radii_are_those_of_the_rows() -> None:
    layer, x = random_layer(3, outputs=4), drawn(11, 6, 4)
    labels, radius = layer(x).argmax(-1), torch.linspace(0.1, 1, 6, dtype=F64)
    found = targeted_attack(layer, x, labels, radius, steps=60, restarts=2)
    moves = radius[:, None] * torch.nn.functional.normalize(drawn(1, 500, 6, 4), dim=-1)
    outputs = layer(x + moves)
    margin = outputs.gather(-1, labels.expand(500, -1)[..., None]) - outputs
    margin[:, torch.arange(6), labels] = torch.inf
    assert bool((found.leads <= margin.amin(0) + 1e-6).all())
    assert bool(((found.inputs - x).norm(dim=-1) <= radius).all())
    again = targeted_attack(layer, x, labels, radius, steps=60, restarts=2)
    assert torch.equal(again.leads, found.leads)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"radius": -1.0}, "radius"),
        ({"bounds": (2.0, 3.0)}, "bounds"),
        ({"steps": 3, "restarts": 3}, "steps"),
        ({"restarts": -1}, "restarts"),
        ({"labels": torch.full((5,), 4)}, "labels"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, object], name: str) -> None:
    model, x, labels = linear(0)
    with pytest.raises(InputError, match=name):
        targeted_attack(**{"model": model, "inputs": x, "labels": labels, "radius": 1.0, **changes})  # type: ignore[arg-type]
