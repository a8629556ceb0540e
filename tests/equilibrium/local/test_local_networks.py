"""Local constants of every network that the library certifies: on images, composed, converted, of mixed activations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from contracting import Activation, Clamped, HardTanh, InputError, ReLU, Softplus
from contracting.activations.blockwise import Blockwise
from equilibrium import LBEN, LBENConv2d, from_residual, from_sequential, local_lipschitz
from equilibrium.lipschitz import Norm
from equilibrium.local.network import LocalNetwork
from equilibrium.local.slopes import secant_slopes
from tests.equilibrium.local.instances import F64, drawn, largest_drops


def seeded(make: object, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double().eval()  # type: ignore[operator, no-any-return]


def uncoupled(layer: LBENConv2d, gain: float = -3.0) -> LBENConv2d:
    """A layer whose neurons see so little of each other that the coupled system of boxes is well-posed."""
    with torch.no_grad():
        layer.parameterization.log_g.fill_(gain)
        layer.parameterization.log_h.fill_(gain)
    return layer


def assert_bounded(model: nn.Module, x: torch.Tensor, radius: float, least: float, classes: int) -> None:
    """No move beyond its bound, and the largest one at least this share of it."""
    c = torch.eye(classes, dtype=F64)
    c = torch.cat([c[:1] - c[1:2], c[1:2] - c[:1]])
    for bounds in (None, (0.0, 1.0)):
        found = local_lipschitz(model, x, radius, bounds=bounds, functionals=c)  # type: ignore[arg-type]
        attained = largest_drops(model, x, radius, bounds, c)
        assert bool((attained <= found.drops[0] + 1e-9).all())
        assert float((attained / found.drops[0]).max()) > least
        assert int(found.undecided) < LocalNetwork(model).size  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"pool": 2}, {"border": 0}, {"stride": 2, "kernel_size": 3}], ids=str)
def test_layers_on_images(settings: dict[str, int]) -> None:
    layer = seeded(lambda: LBENConv2d(1, 2, 3, image=(4, 4), epsilon=0.3, **settings), 3)
    assert_bounded(layer, torch.rand(1, 16, generator=torch.Generator().manual_seed(1), dtype=F64), 0.3, 0.6, 3)


@torch.no_grad()
def test_boxes_of_images() -> None:
    layer = seeded(lambda: uncoupled(LBENConv2d(1, 2, 3, image=(4, 4))), 3)
    x = torch.rand(1, 16, generator=torch.Generator().manual_seed(1), dtype=F64)
    assert LocalNetwork(layer).coupled is not None  # type: ignore[arg-type]
    found = local_lipschitz(layer, x, 0.1, norm=Norm.LINF, functionals=torch.eye(3, dtype=F64))  # type: ignore[arg-type]
    corners = x + 0.1 * drawn(0, 2000, 16).sign()
    share = ((layer(corners) - layer(x)) / found.drops).amax()
    assert 0.4 < float(share) <= 1


def test_the_border_of_an_image_is_decided_from_the_start() -> None:
    layer = seeded(lambda: LBENConv2d(1, 2, 3, image=(4, 4)))
    x = torch.rand(2, 16, generator=torch.Generator().manual_seed(1), dtype=F64)
    found = local_lipschitz(layer, x, 100.0, functionals=torch.eye(3, dtype=F64), passes=0)  # type: ignore[arg-type]
    assert found.undecided.tolist() == [32, 32]  # of 72 neurons


def test_linear_maps_and_normalisation_on_both_sides() -> None:
    def model() -> nn.Sequential:
        norms = nn.BatchNorm1d(5), nn.BatchNorm1d(4)
        for norm in norms:
            norm.running_var.uniform_(0.3, 2)
            norm.running_mean.normal_()
        before = nn.Sequential(nn.Flatten(), nn.Linear(3, 5), norms[0], nn.Dropout(), nn.Linear(5, 4))
        return nn.Sequential(before, LBEN(4, 8, 6, epsilon=0.3), nn.Linear(6, 4), norms[1], nn.Linear(4, 3))

    assert_bounded(seeded(model, 3), torch.full((1, 3), 0.5, dtype=F64), 0.5, 0.8, 3)


def test_an_image_layer_in_a_sequence() -> None:
    def model() -> nn.Sequential:
        layer = LBENConv2d(1, 2, 4, image=(4, 4), epsilon=0.3, pool=2)
        return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.BatchNorm2d(1), nn.Flatten(), layer, nn.Linear(4, 3))

    assert_bounded(seeded(model, 3), torch.full((1, 16), 0.5, dtype=F64), 0.3, 0.6, 3)


def test_two_equilibrium_layers_by_from_sequential_and_refused_without() -> None:
    model = seeded(
        lambda: nn.Sequential(
            nn.Linear(3, 4), LBEN(4, 5, 4, epsilon=0.3), nn.Linear(4, 4), nn.ReLU(), LBEN(4, 5, 3, epsilon=0.3)
        )
    )
    with pytest.raises(InputError, match="from_sequential"):
        local_lipschitz(model, torch.zeros(1, 3, dtype=F64), 0.1)  # type: ignore[arg-type]
    assert_bounded(from_sequential(model), torch.full((1, 3), 0.5, dtype=F64), 0.5, 0.6, 3)  # type: ignore[arg-type]


def test_a_residual_network() -> None:
    blocks = [(nn.Linear(3, 6, dtype=F64), nn.Linear(6, 3, dtype=F64)) for _ in range(2)]
    assert_bounded(from_residual(blocks), torch.full((1, 3), 0.5, dtype=F64), 0.3, 0.6, 3)


@pytest.mark.parametrize("mixed", [False, True])
def test_neurons_with_different_activations_keep_the_slopes_of_their_own(mixed: bool) -> None:
    parts = (ReLU(), Softplus() if mixed else ReLU(), HardTanh() if mixed else ReLU())
    free = torch.tensor([True] * 7 + [False] * 2)
    activation: Activation = Clamped(inner=Blockwise(parts=parts, sizes=(3, 4, 2)), free=free)
    v, reach = 2 * drawn(0, 5, 9), drawn(1, 5, 9).abs()
    low, high = secant_slopes(activation, v, torch.zeros_like(v), reach)
    for part, (a, b) in zip(parts[:2], ((0, 3), (3, 7)), strict=True):
        alone = secant_slopes(part, v[:, a:b], torch.zeros_like(v[:, a:b]), reach[:, a:b])
        assert torch.equal(low[:, a:b], alone[0]) and torch.equal(high[:, a:b], alone[1])
    assert not low[:, 7:].any() and not high[:, 7:].any()
    share = torch.linspace(-1, 1, 200, dtype=F64).reshape(-1, 1, 1)
    move = share * reach
    secants = (activation(v + move) - activation(v)) / move
    assert bool(((secants >= low - 1e-9) & (secants <= high + 1e-9)).all())
    tight = torch.maximum((secants.amin(0) - low).abs(), (secants.amax(0) - high).abs())[:, :3]
    assert float(tight.max()) < 0.02
