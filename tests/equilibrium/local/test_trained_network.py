"""Negative controls on a network that was trained: what is not so must be refuted, by an attack or by the checker."""

from __future__ import annotations

import pytest
import torch

from contracting import ReLU
from equilibrium import LBEN, explicit_weights, from_weights, local_lipschitz, train
from equilibrium.layers import EquilibriumLayer
from equilibrium.local import checker
from equilibrium.local.network import LocalNetwork
from equilibrium.local.relaxation import Forms
from equilibrium.local.surroundings import Surroundings
from equilibrium.training.data import Dataset, digits, subset
from tests.equilibrium.local.instances import F64, largest_drops


@pytest.fixture(scope="module")
def data() -> Dataset:
    return subset(digits(), train=600, test=20)


@pytest.fixture(scope="module")
def layer(data: Dataset) -> EquilibriumLayer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trained = LBEN(64, 16, 10)
    train(trained, data, epochs=5, batch_size=64)
    return trained.double()


@pytest.fixture(scope="module")
def neurons(layer: EquilibriumLayer) -> EquilibriumLayer:
    """The same network with its pre-activations v − b = Wz + Ux as outputs."""
    with torch.no_grad():
        weights = layer.weights()
        W = weights.state.to_dense()
        shown = explicit_weights(
            W, weights.input, W, bias=weights.bias, feedthrough=weights.input, metric=weights.metric.weights
        )
    return from_weights(shown, activation=ReLU())


def test_constants_of_neurons_times_four_fifths_are_refuted(neurons: EquilibriumLayer, data: Dataset) -> None:
    """Lᵢ of every neuron on the ball: nothing inside moves it further than Lᵢr, some do further than 0.8Lᵢr."""
    x, eye = data.test_inputs[:1].double(), torch.eye(16, dtype=F64)
    for radius in (0.3, 1.5):
        found = local_lipschitz(neurons, x, radius, functionals=eye)
        share = largest_drops(neurons, x, radius, None, eye) / found.drops[0]
        assert bool((share <= 1 + 1e-9).all()) and float(share.max()) > 0.8


def test_constants_of_a_ball_are_refuted_on_one_twice_as_large(layer: EquilibriumLayer, data: Dataset) -> None:
    """With slopes of its own radius a bound of a whole ball is proportional to the radius."""
    x, radius, eye = data.test_inputs[:6].double(), 0.5, torch.eye(10, dtype=F64)
    c = torch.cat([eye[:3] - eye[3:6], eye[3:6] - eye[:3]])
    small, large = (local_lipschitz(layer, x, r, functionals=c).drops for r in (radius, 2 * radius))
    attained = torch.stack([largest_drops(layer, row[None], 2 * radius, None, c) for row in x])
    assert bool((attained <= large * (1 + 1e-9)).all())
    assert bool((attained > 2 * small * (1 + 1e-6)).any())


def test_a_sign_of_the_trained_weights_is_caught(layer: EquilibriumLayer, data: Dataset) -> None:
    network, x = LocalNetwork(layer), data.test_inputs[:4].double()
    around = Surroundings.of(x, 0.5, None)
    zero, one = torch.zeros(4, 16, dtype=F64), torch.ones(4, 16, dtype=F64)
    forms = Forms(state=one[:, None])
    for scale in (1e-4, 1e-2, 1.0):
        multiplier = scale * network.metric.expand(4, -1)
        W = network.matrices.W
        right, wrong = (
            checker.bounds(network.matrices._replace(W=each), zero, one, multiplier, forms, None, around)
            for each in (W, -W)
        )
        assert bool(wrong.isinf().all()) and (scale > 1e-4 or bool(right.isfinite().all()))
