"""Branch and bound against the largest drop over a ball, known from a fine grid of a plane of inputs."""

from __future__ import annotations

import pytest
import torch

from contracting import LeakyReLU, ReLU
from equilibrium import EquilibriumLayer, from_weights
from equilibrium.local import LocalSearch, certified_within
from equilibrium.local.branches import Branched, branched
from equilibrium.local.finder import Effort
from equilibrium.local.network import LocalNetwork
from equilibrium.local.passes import Narrowing
from equilibrium.local.surroundings import Surroundings
from tests.equilibrium.local.instances import F64, drawn, random_layer

PAIRS = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0], [-1.0, 0.0, 1.0]], dtype=F64)


def plane(seed: int) -> EquilibriumLayer:
    return random_layer(seed, inputs=2, neurons=6, scale=1.5)


def disc(x: torch.Tensor, radius: float) -> torch.Tensor:
    """A fine grid of a disc with its border."""
    angles, sizes = torch.linspace(0, 2 * torch.pi, 721, dtype=F64), torch.linspace(0.02, 1, 50, dtype=F64)
    ring = torch.stack([angles.cos(), angles.sin()], -1)
    return x + radius * (sizes[:, None, None] * ring).reshape(-1, 2)


def decided(layer: EquilibriumLayer, x: torch.Tensor, radius: float, lead: torch.Tensor) -> Branched:
    """Claims row·Δy < lead of the three pairs."""
    network, around = LocalNetwork(layer), Surroundings.of(x, radius, None)
    plain = Narrowing(network, network.anchors(x), around, Effort(steps=10))
    plain.step()
    claimed = plain.against(torch.zeros(3, dtype=torch.int64), PAIRS, lead)
    return branched(claimed, x.expand(3, -1), PAIRS, lead, nodes=300, attack=0)


@torch.no_grad()
@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(negative_slope=0.2)])
def test_claims_above_the_largest_drop_are_proved_and_none_below(activation: torch.nn.Module) -> None:
    split, met = 0, 0
    for seed in range(3):
        layer = from_weights(plane(seed).weights(), activation=activation)
        x = drawn(seed + 60, 1, 2)
        largest = ((layer(disc(x, 1.0)) - layer(x)) @ PAIRS.mT).amax(0)
        assert bool(decided(layer, x, 1.0, 2 * largest).proved.all())
        met += int(decided(layer, x, 1.0, 1.01 * largest).proved.sum())
        assert not bool(decided(layer, x, 1.0, 0.999 * largest).proved.any())
        network = LocalNetwork(layer)
        plain = Narrowing(network, network.anchors(x), Surroundings.of(x, 1.0, None), Effort(steps=10))
        for _ in range(3):
            plain.step()
        claimed = plain.against(torch.zeros(3, dtype=torch.int64), PAIRS, 1.01 * largest)
        split += int((claimed.drop(torch.arange(3), PAIRS) > 1.01 * largest).sum())
    assert split > 3  # one inequality leaves some of them open
    # of nine: at a corner of cuts the multiples are found by descent along one of them at a time, which may stall
    assert met >= 8


@torch.no_grad()
def test_sides_of_a_neuron_hold_where_they_say() -> None:
    """And fail on the other side."""
    kept, wrong = 0, 0
    for seed in range(4):
        layer, x = plane(seed), drawn(seed + 60, 1, 2)
        network = LocalNetwork(layer)
        anchors = network.anchors(x)
        whole = Narrowing(network, anchors, Surroundings.of(x, 1.0, None), Effort())
        inputs = disc(x, 1.0)[::17]
        z = layer.equilibrium(inputs)
        v = layer.weights().problem(inputs, layer.activation).preactivation(z)
        for neuron in range(6):
            slopes = whole.split(torch.tensor([neuron])).slopes
            move, moved = (v - anchors.inner)[:, neuron], (z - anchors.state)[:, neuron]
            same = v[:, neuron] * anchors.inner[0, neuron] > 0
            for side, here in ((0, same), (1, ~same)):
                low, high = slopes.low[side, neuron], slopes.high[side, neuron]
                rest = moved - slopes.shift[side, neuron]
                fits = (rest - (low + high) / 2 * move).abs() <= (high - low) / 2 * move.abs() + 1e-7
                assert bool(fits[here].all())
                kept += int(here.sum())
                wrong += int((~fits[~here]).sum())
    assert kept > 1000 and wrong > 500


@torch.no_grad()
def test_every_class_is_proved_or_refuted() -> None:
    layer, x = random_layer(1, neurons=8, outputs=4, scale=1.5), drawn(6, 12, 4)
    labels = layer(x).argmax(-1)
    found = {}
    for nodes in (0, 200):
        search = LocalSearch(claims=2, branches=nodes, effort=Effort(steps=10))
        found[nodes] = certified_within(layer, x, labels, 0.8, search=search)
        assert not bool((found[nodes].proved & found[nodes].refuted).any())
    closed = [int((each.proved | each.refuted).sum()) for each in found.values()]
    assert closed[0] < 10 and closed[1] >= 11
    open_before = ~(found[0].proved | found[0].refuted)
    assert not bool(found[0].branched.any())
    assert torch.equal(found[200].branched, open_before & (found[200].proved | found[200].refuted))
    assert bool((found[200].proved | ~found[0].proved).all())
    refuted = found[200].refuted
    assert bool((layer(found[200].counterexamples[refuted]).argmax(-1) != labels[refuted]).all())
    samples = drawn(3, 400, 1, 4)
    moves = 0.8 * torch.nn.functional.normalize(samples, dim=-1)
    assert bool((layer(x + moves).argmax(-1) == labels).all(0)[found[200].proved].all())
