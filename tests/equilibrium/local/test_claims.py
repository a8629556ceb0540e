"""Claims that a class stays: proved by what would refute them, or refuted by inputs that are checked."""

from __future__ import annotations

import pytest
import torch

from contracting import Activation, InputError, ReLU, Softplus
from equilibrium import EquilibriumLayer, from_weights
from equilibrium.lipschitz import Norm
from equilibrium.local import LocalSearch, certified_within, passes
from equilibrium.local.counterexamples import counterexamples, farthest
from equilibrium.local.finder import Effort
from equilibrium.local.network import LocalNetwork
from equilibrium.local.surroundings import Surroundings
from tests.equilibrium.local.instances import F64, drawn, random_layer


def sampled(x: torch.Tensor, radius: float, count: int) -> torch.Tensor:
    """Inputs of a ball around x, (1, in)."""
    directions = torch.nn.functional.normalize(drawn(7, count, x.shape[1]), dim=-1)
    sizes = torch.rand(count, 1, generator=torch.Generator().manual_seed(8), dtype=F64) ** 0.3
    return x + radius * sizes * directions


@torch.no_grad()
@pytest.mark.parametrize(("activation", "broken"), [(ReLU(), 200), (Softplus(), 0)])
def test_slopes_against_a_claim_hold_at_every_input_that_refutes_it(activation: Activation, broken: int) -> None:
    """And at these only: elsewhere slopes lie outside, and where the claim is true nothing is left."""
    refuting, violated, narrower = 0, 0, []
    for seed in range(5):
        layer, x, radius = random_layer(seed, neurons=8), drawn(seed + 40, 1, 4), 0.5
        layer = from_weights(layer.weights(), activation=activation)
        network = LocalNetwork(layer)
        anchors = network.anchors(x)
        plain = passes.Narrowing(network, anchors, Surroundings.of(x, radius, None), Effort(steps=30))
        plain.step()
        row = torch.tensor([[1.0, -1.0, 0.0]], dtype=F64)
        inputs = sampled(x, radius, 1500)
        moved = ((layer(inputs) - layer(x)) @ row[0]).flatten()
        lead = 0.9 * moved.max()
        claimed = plain.against(torch.tensor([0]), row, lead[None])
        for _ in range(2):
            claimed.step()
        z0, v0 = anchors.state, anchors.inner
        z = layer.equilibrium(inputs)
        v = layer.weights().problem(inputs, activation).preactivation(z)
        secants = (z - z0) / (v - v0)
        low, high = claimed.slopes.low - 1e-6, claimed.slopes.high + 1e-6
        held = ((secants >= low) & (secants <= high)).all(-1)
        assert bool(held[moved >= lead].all())
        refuting += int((moved >= lead).sum())
        violated += int((~held[moved < lead]).sum())
        widths = (slopes.high - slopes.low for slopes in (claimed.slopes, plain.slopes))
        narrower.append(float(next(widths).sum() / next(widths).sum()))
        attained = moved.max()
        assert claimed.drop(torch.tensor([0]), row)[0] >= attained
        false = plain.against(torch.tensor([0]), row, 1.05 * plain.drop(torch.tensor([0]), row))
        assert float(false.drop(torch.tensor([0]), row)[0]) < 0
    assert refuting > 30 and violated >= broken and sum(narrower) / 5 < 0.7


@torch.no_grad()
def test_one_search_for_all_claims_of_a_row_bounds_each_of_them() -> None:
    layer, x, radius = random_layer(2, neurons=10, outputs=4), drawn(12, 3, 4), 0.4
    network = LocalNetwork(layer)
    narrowing = passes.Narrowing(network, network.anchors(x), Surroundings.of(x, radius, None), Effort(steps=30))
    narrowing.step()
    rows = (torch.eye(4, dtype=F64)[1:] - torch.eye(4, dtype=F64)[0]).expand(3, -1, -1)
    together = narrowing.examined(torch.arange(3), rows, torch.ones(3, 3, dtype=F64))[0]
    alone = narrowing.drop(torch.arange(3).repeat_interleave(3), rows.flatten(0, 1)).reshape(3, 3)
    for k in range(3):
        moved = (layer(sampled(x[k : k + 1], radius, 1000)) - layer(x[k : k + 1])) @ rows[k].mT
        assert bool((moved.amax(0) <= together[k]).all())
    assert bool((together < 1.4 * alone).all())
    # a form of no weight is bounded too, and does not pull the search away from the others
    only = narrowing.examined(torch.arange(3), rows, torch.tensor([0.0, 1.0, 0.0], dtype=F64).expand(3, -1))[0]
    assert only[:, 1].tolist() == pytest.approx(alone[:, 1].tolist(), rel=1e-3)
    assert bool((only >= 0.99 * alone).all())


def cases() -> tuple[EquilibriumLayer, torch.Tensor, torch.Tensor]:
    layer = random_layer(3, neurons=10, outputs=4)
    x = drawn(11, 30, 4).clamp(-2, 2)
    with torch.no_grad():
        return layer, x, layer(x).argmax(-1)


def test_claims_prove_more_and_no_input_is_both_proved_and_refuted() -> None:
    layer, x, labels = cases()
    found = {}
    for claims in (0, 4):
        search = LocalSearch(passes=2, claims=claims, effort=Effort(steps=20))
        found[claims] = certified_within(layer, x, labels, 0.9, bounds=(-2.0, 2.0), search=search)
        assert not bool((found[claims].proved & found[claims].refuted).any())
    assert bool((found[4].proved | ~found[0].proved).all())
    assert int(found[4].proved.sum()) > int(found[0].proved.sum())
    for k in torch.nonzero(found[4].proved).flatten().tolist():
        with torch.no_grad():
            assert bool((layer(sampled(x[k : k + 1], 0.9, 500).clamp(-2, 2)).argmax(-1) == labels[k]).all())


@torch.no_grad()
@pytest.mark.parametrize("norm", [Norm.L2, Norm.LINF])
def test_what_refutes_a_class_is_an_input_nearby_with_another_one(norm: Norm) -> None:
    layer, x, labels = cases()
    found = certified_within(layer, x, labels, 0.6, bounds=(-2.0, 2.0), norm=norm)
    assert 3 < int(found.refuted.sum()) < 27
    near = found.counterexamples[found.refuted]
    assert bool((layer(near).argmax(-1) != labels[found.refuted]).all())
    order = torch.inf if norm is Norm.LINF else 2
    assert bool((torch.linalg.vector_norm(near - x[found.refuted], ord=order, dim=-1) <= 0.6).all())
    assert float(near.abs().max()) <= 2.0
    assert torch.equal(found.counterexamples[~found.refuted], x[~found.refuted])
    missed = certified_within(layer, x, labels, 0.6, bounds=(-2.0, 2.0), norm=norm, search=LocalSearch(attack=0))
    assert not bool(missed.refuted.any()) and not bool((missed.proved & found.refuted).any())
    wrong = certified_within(layer, x, (labels + 1) % 4, 0.01)
    assert bool(wrong.refuted.all()) and torch.equal(wrong.counterexamples, x)


def test_an_ascent_of_a_linear_network_ends_at_the_border() -> None:
    layer = from_weights(random_layer(1).weights(), activation=ReLU())
    network, x = LocalNetwork(layer), drawn(2, 5, 4)
    row = torch.tensor([[1.0, 0.0, -1.0]], dtype=F64)
    with torch.no_grad():
        rows = -row * (layer(x) @ row[0]).sign()[:, None]  # claims that are true at the anchors
    around = Surroundings.of(x, 1e-6, None)  # so near, every neuron keeps its side
    found = counterexamples(network, x, rows, around, 1)
    with torch.no_grad():
        slopes = torch.stack([torch.autograd.functional.jacobian(lambda row: layer(row[None])[0], each) for each in x])
        gained = (rows * (layer(found.inputs) - layer(x))).sum(-1)
    assert torch.allclose(gained, 1e-6 * (rows[:, None] @ slopes)[:, 0].norm(dim=-1), rtol=1e-3)


def test_the_farthest_move_of_a_cut_ball() -> None:
    """Against all moves of a grid."""
    x = torch.tensor([[0.1, 0.7], [0.5, 0.5], [0.0, 1.0]], dtype=F64)
    around = Surroundings.of(x, torch.tensor([0.4, 9.0, 0.6], dtype=F64), (0.0, 1.0))
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 201, dtype=F64)] * 2)
    for angle in torch.linspace(0, 6, 7, dtype=F64):
        direction = torch.stack([angle.cos(), angle.sin()])
        moves = farthest(direction.expand(3, -1), around)
        for k in range(3):
            allowed = (grid - x[k])[(grid - x[k]).norm(dim=-1) <= around.radius[k]]
            assert float(moves[k].norm()) <= around.radius[k] * (1 + 1e-9)
            assert -1e-9 <= float(moves[k] @ direction - (allowed @ direction).max()) <= 0.01


@pytest.mark.parametrize("name", ["attack", "branches", "claims", "passes"])
def test_bad_settings_are_named(name: str) -> None:
    with pytest.raises(InputError, match=name):
        LocalSearch(**{name: -1})
