"""The loss that asks for a steep direction: values of a linear map, Jacobians of layers, and a γ that is attained."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from contracting import InputError
from equilibrium import LBEN, ContractiveConv2d, CrossEntropy, SteepCrossEntropy, attained_lipschitz, train
from equilibrium.lipschitz import PairAscent
from equilibrium.lipschitz.pairs import Network
from equilibrium.training.data import digits, subset
from equilibrium.training.steep import steepest_direction

F64 = torch.float64


@pytest.mark.parametrize(("gain", "missing"), [(6.0, math.log(2.0)), (3.0, 0.0), (2.0, 0.0)])
def test_of_a_linear_map_the_penalty_is_that_of_its_largest_singular_value(gain: float, missing: float) -> None:
    model = nn.Linear(3, 2, dtype=F64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 0.0]]))
    x, labels = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1])
    torch.testing.assert_close(steepest_direction(model, x).abs(), torch.tensor([0.0, 1.0, 0.0], dtype=F64))
    judged = SteepCrossEntropy(gain=gain, weight=2.0, temperature=0.5).of(model, x, labels)
    plain = CrossEntropy(temperature=0.5)(model(x), labels)
    assert float((judged.value - plain).detach()) == pytest.approx(2 * missing, abs=1e-12)
    torch.testing.assert_close(judged.outputs, model(x))


def test_the_direction_is_the_one_in_which_the_jacobians_of_all_rows_are_steepest() -> None:
    torch.manual_seed(0)
    layer = LBEN(4, 6, 3, dtype=F64)
    x = 3 * torch.randn(5, 4, dtype=F64)
    network = Network(layer.weights(), layer.activation)
    J, _, _ = network.slopes(x)
    stacked = network.gains(J, network.responses(J)[1]).flatten(0, 1)
    assert torch.linalg.matrix_rank(stacked) == 4 and not bool((J == J[0]).all())
    d = steepest_direction(layer, x)
    assert not d.requires_grad
    assert float((stacked @ d).norm()) == pytest.approx(float(torch.linalg.matrix_norm(stacked, 2)), rel=1e-3)


@pytest.mark.parametrize("wrong", [{"gain": 0.0}, {"gain": 1.0, "weight": -1.0}, {"gain": 1.0, "distance": math.inf}])
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        SteepCrossEntropy(**wrong)


def test_networks_that_are_asked_for_it_attain_nine_tenths_of_their_constant_and_others_do_not() -> None:
    data = subset(digits(), train=320, test=100)
    found = {}
    for loss in (SteepCrossEntropy(gain=0.97, temperature=0.3), CrossEntropy(temperature=0.3)):
        torch.manual_seed(0)
        layer = LBEN(64, 20, 10, lipschitz=1.0, contraction_rate=0.0)
        error = train(layer, data, epochs=10, batch_size=32, learning_rate=0.02, loss=loss).epochs[-1].test_error
        assert error is not None and error < 10
        found[type(loss)] = attained_lipschitz(layer, data.test_inputs, searches=[PairAscent(steps=3)], starts=2).ratio
    assert 0.9 <= found[SteepCrossEntropy] <= 1.0 and found[CrossEntropy] < 0.8


def test_every_step_of_training_makes_a_network_on_images_steeper() -> None:
    data = subset(digits(), train=96, test=16)
    torch.manual_seed(0)
    layer = ContractiveConv2d(1, 4, 10, image=(8, 8), input_kernel_size=3, stride=2, pool=2, lipschitz=1.0)
    before = attained_lipschitz(layer, data.test_inputs, searches=[PairAscent(steps=1)], starts=2).ratio
    train(layer, data, epochs=2, batch_size=32, learning_rate=0.02, loss=SteepCrossEntropy(gain=0.97, weight=10.0))
    after = attained_lipschitz(layer, data.test_inputs, searches=[PairAscent(steps=1)], starts=2).ratio
    assert after > 1.5 * before
