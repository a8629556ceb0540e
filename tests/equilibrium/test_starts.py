"""A learned start changes steps and nothing else, and is exact where the equilibrium is affine in its input."""

from __future__ import annotations

import pytest
import torch

from contracting import Identity, InputError
from equilibrium import LBEN, AffineStart, Stop

STOP = Stop(rtol=1e-10, check_every=1)


def trained(seed: int = 0, **settings) -> tuple[LBEN, torch.Tensor, AffineStart]:
    torch.manual_seed(seed)
    layer = LBEN(3, 12, 2, stop=STOP, dtype=torch.float64, **settings)
    x = torch.randn(400, 3, dtype=torch.float64)
    start = AffineStart(layer)
    start.learn(x, layer.solve(x).z)
    return layer, x, start


def test_the_start_of_an_affine_network_is_its_equilibrium():
    layer, _, start = trained(activation=Identity())
    x = torch.randn(20, 3, dtype=torch.float64)
    z = layer.solve(x).z
    assert float((start(x) - z).norm() / z.norm()) < 1e-5
    assert int(layer.solve(x, z0=start(x), stop=Stop(rtol=1e-4)).steps.max()) == 0
    # control: nothing is known of a layer whose equilibria were not seen
    assert float((AffineStart(layer)(x) - z).norm() / z.norm()) > 1e-2


def test_a_learned_start_is_nearer_and_saves_steps_and_the_answer_is_the_same():
    layer, _, start = trained()
    x = torch.randn(50, 3, dtype=torch.float64)
    cold = layer.solve(x)
    blank = AffineStart(layer)(x)
    learned = start(x)
    assert float((learned - cold.z).norm()) < 0.5 * float((blank - cold.z).norm())
    warm = layer.solve(x, z0=learned)
    assert torch.allclose(warm.z, cold.z, atol=1e-8) and int(warm.steps.sum()) < int(cold.steps.sum())
    assert torch.allclose(layer(x, z0=learned), layer(x), atol=1e-8)


def test_what_was_seen_long_ago_is_forgotten():
    layer, x, start = trained()
    with torch.no_grad():
        layer.parameterization.bias.add_(1.0)
    probe = torch.randn(50, 3, dtype=torch.float64)
    z = layer.solve(probe).z
    stale = float((start(probe) - z).norm())
    for _ in range(30):
        start.learn(x, layer.solve(x).z)
    fresh = AffineStart(layer)
    fresh.learn(x, layer.solve(x).z)
    assert float((start(probe) - z).norm()) == pytest.approx(float((fresh(probe) - z).norm()), rel=0.1)
    assert float((fresh(probe) - z).norm()) < stale


def test_rows_without_equilibrium_are_left_out_and_batches_may_have_any_shape():
    layer, x, start = trained()
    before = start(x)
    spoiled = x[:2].clone()
    spoiled[0, 0] = torch.nan
    z = layer.solve(x[:2]).z
    z[1, 3] = torch.inf
    start.learn(spoiled, z)
    assert torch.allclose(start(x), before)
    assert start(x.reshape(20, 20, 3)).shape == (20, 20, 12)
    assert torch.equal(start(x.reshape(20, 20, 3)).flatten(0, 1), start(x))


def test_a_fit_is_saved_and_loaded_and_is_no_parameter():
    layer, x, start = trained()
    other = AffineStart(layer)
    _ = other(x)
    other.load_state_dict(start.state_dict())
    assert torch.equal(other(x), start(x)) and not list(start.parameters())


def test_what_does_not_fit_is_refused():
    layer, x, start = trained()
    with pytest.raises(InputError, match="layer"):
        AffineStart(torch.nn.Linear(3, 2))
    with pytest.raises(InputError, match="memory"):
        AffineStart(layer, memory=0.0)
    with pytest.raises(InputError, match="z"):
        start.learn(x, torch.zeros(400, 11, dtype=torch.float64))
