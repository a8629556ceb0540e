"""Contracting networks on images: what is certified of the map that runs holds for all parameters; all are reached."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import torch
from torch import Tensor

from contracting.errors import InputError
from contracting.maps.frequencies import kernel_of, symbol_of
from contracting.maps.polyphase import from_phases
from contracting.maps.transform import shares, spectrum
from equilibrium import Weights
from equilibrium.convert import from_weights
from equilibrium.convolution import ContractiveConv2d
from equilibrium.parameterizations.room import Room

D = torch.float64


@pytest.fixture(scope="module")
def draws() -> Iterator[ModuleType]:
    """The benchmark that puts networks before the checkers."""
    folder = str(Path(__file__).resolve().parents[3] / "benchmarks")
    sys.path.insert(0, folder)
    yield importlib.import_module("contractive_draws")
    sys.path.remove(folder)


def used(weights: Weights) -> float:
    """‖T‖² of [W_oᵀ, ΛU] = √γ chol(R) T, from the matrices."""
    assert weights.metric is not None and weights.lipschitz is not None
    lam, W = weights.metric.weights, weights.state.to_dense()
    R = 2 * torch.diag(lam) - lam[:, None] * W - (lam[:, None] * W).mT
    columns = torch.cat([weights.output.mT, lam[:, None] * weights.input], 1)
    T = torch.linalg.solve_triangular(torch.linalg.cholesky(R), columns, upper=False)
    return float(torch.linalg.matrix_norm(T, 2)) ** 2 / float(weights.lipschitz)


def test_every_draw_keeps_what_it_promises(draws: ModuleType) -> None:
    """Parameters of 1e-6 to 1e3, in float32 and float64: rates of both flows, and γ, by the independent checkers."""
    for seed in range(60):
        weights = draws.as_matrices(draws.drawn_images(seed))
        assert draws.unproved(from_weights(weights), weights) == [], seed


def test_what_lies_outside_is_refused(draws: ModuleType) -> None:
    """S of norm 1.05, or T: of the input alone, of the readout alone."""
    ball = Room.ball

    def larger(room: Room, X: Tensor) -> Tensor:
        if X.shape[-1] != 3:  # S has as many columns as there are channels
            return ball(room, X)
        left, _, right = torch.linalg.svd(ball(room, X), full_matrices=False)
        return 1.05 * left @ right

    for seed in (4, 5, 16, 17):
        free = draws.drawn_images(seed, low=-1, high=0.5, lipschitz=None)
        assert free.geometry.channels == 3
        with mock.patch.object(Room, "ball", larger):
            weights = draws.as_matrices(free)
        assert draws.unproved(from_weights(weights), weights) != []
        weights = draws.as_matrices(draws.drawn_images(seed, low=-1, high=0.5))
        for name, other in (("input", "output"), ("output", "input")):
            alone = used(replace(weights, **{other: 0 * getattr(weights, other)}))
            beyond = replace(weights, **{name: 1.05 / alone**0.5 * getattr(weights, name)})
            assert "γ" in draws.unproved(from_weights(beyond), beyond)


def test_nothing_is_given_up_where_nothing_is_padded(draws: ModuleType) -> None:
    """Large inputs, or large outputs, use all of γ up to the room of rounding: no convolution dominates the readout."""
    for seed in (2, 5, 14):
        assert draws.drawn_images(seed).geometry.border == 0
        for name in ("U", "output"):
            free = draws.drawn_images(seed, low=-1, high=0, dtype=D)
            with torch.no_grad():
                for other in ("U", "output"):
                    getattr(free, other).mul_(1e4 if other == name else 1e-4)
            assert 1 - 1e-5 < used(draws.as_matrices(free)) < 1


@pytest.mark.parametrize("seed", range(6))  # one of each shape
def test_every_certified_network_is_reached(draws: ModuleType, seed: int) -> None:
    """Symbols with a certificate that were not made from parameters → parameters → the weights, to 1e-10."""
    side = 2 * max(size for size in draws.SHAPES[seed][0]) * 3 + 1
    free = draws.drawn_images(seed, low=-1, high=0, dtype=D, kernel_size=side, lipschitz=2.0, contraction_rate=0.3)
    geometry, room, grid, C = free.geometry, free._room(), free.geometry.grid, free.geometry.channels
    phases = geometry.in_channels * geometry.stride ** len(grid)

    def inside(out: int, into: int) -> Tensor:
        X = symbol_of(torch.randn(out, into, *[side] * len(grid), dtype=D), grid)
        return 0.95 * X / torch.linalg.matrix_norm(X, 2).amax()

    root = torch.randn(C, dtype=D).exp()
    V = symbol_of(torch.randn(C, C, *[side] * len(grid), dtype=D) / side, grid)
    P = V.mH @ V + 0.1 * torch.eye(C)  # of which another root than V is taken
    values, vectors = torch.linalg.eigh(P)
    M = 2 * 0.7**0.5 * inside(C, C) @ (vectors * values.sqrt()[:, None]) @ vectors.mH - P
    values, vectors = torch.linalg.eigh(2 * torch.eye(C) - M - M.mH)
    inputs = 2**0.5 * (vectors * values.sqrt()[:, None]) @ vectors.mH @ inside(C, phases)
    left = 2 * torch.eye(C) - M - M.mH - inputs @ inputs.mH / 2
    output = torch.randn(3, geometry.cell_features, dtype=D)

    def gram_of(output: Tensor, inverse: Tensor) -> Tensor:
        images = geometry.average_adjoint(output).reshape(-1, C, *grid)
        G = spectrum(images, grid) / root[:, None]
        return (shares(grid)[:, None, None] * (G.mH @ inverse @ G).real).sum(0)

    H = gram_of(output, torch.linalg.inv(left))
    output *= (0.9 * 2 / torch.linalg.eigvalsh(H)[-1]).sqrt()
    # the parameters
    p = torch.zeros((), dtype=D)
    for _ in range(50):
        V = torch.linalg.cholesky(P - p * torch.eye(C)).mH
        p = room.floor(torch.linalg.vector_norm(V, dim=(1, 2)).amax().square())
    S = torch.linalg.solve(V, M + P, left=False) / (2 * 0.7**0.5)
    K = torch.linalg.cholesky(2 * torch.eye(C) - M - M.mH)
    X = room.out_of_ball(torch.linalg.solve_triangular(K, inputs, upper=False) / 2**0.5)
    known = torch.linalg.inv(K)
    inverse = known.mH @ (torch.eye(C) + X @ X.mH) @ known
    scaled = output / (2**0.5 * (1 - 2 * room.edge))
    E = torch.linalg.cholesky(torch.eye(3) - gram_of(scaled, inverse))
    with torch.no_grad():
        free.psi.copy_(40 * torch.atanh(-2 * root.log() / 40))
        for name, symbol in (("V", V), ("S", room.out_of_ball(S))):
            getattr(free, name).copy_(_padded(kernel_of(symbol, grid), side))
        reach = from_phases(kernel_of(K @ X, grid), geometry.stride)
        free.U.copy_(_padded(reach, side))
        free.output.copy_(torch.linalg.solve_triangular(E, scaled, upper=False))
        weights = free.explicit()
    assert torch.allclose(weights.state.symbol, M * root / root[:, None], atol=1e-10)
    assert torch.allclose(geometry.symbol(weights.input_kernel), inputs / root[:, None], atol=1e-10)
    assert torch.allclose(weights.output, output, atol=1e-10)
    assert used(draws.as_matrices(free)) < 1


def _padded(kernel: Tensor, side: int) -> Tensor:
    margins = [(side - own) // 2 for own in reversed(kernel.shape[2:]) for _ in range(2)]
    return torch.nn.functional.pad(kernel, margins)


def test_outputs_of_pairs_are_no_farther_apart_than_gamma_allows() -> None:
    torch.manual_seed(0)
    layer = ContractiveConv2d(1, 3, 2, image=(4, 4), lipschitz=1.0, contraction_rate=0.3, dtype=D)
    with torch.no_grad():
        layer.parameterization.output.mul_(100)
    x = torch.randn(6, 1, 4, 4, dtype=D)
    ratio = torch.pdist(layer(x).detach()) / torch.pdist(x.flatten(1))
    assert 0.05 < ratio.max() < 1


@pytest.mark.parametrize("c", [0.0, 0.5])
def test_it_starts_with_values_and_gradients_of_order_one(c: float) -> None:
    torch.manual_seed(0)
    layer = ContractiveConv2d(1, 12, 10, image=(14, 14), stride=2, pool=2, lipschitz=1.0, contraction_rate=c)
    x = torch.randn(16, 1, 14, 14)
    assert 0.02 < float(layer.solve(x).z.square().mean().sqrt()) < 2
    y = layer(x)
    assert 0.02 < float(y.detach().std()) < 2
    y.square().sum().div(16).backward()
    for name, parameter in layer.parameterization.named_parameters():
        assert parameter.grad is not None and 1e-4 < float(parameter.grad.norm()) < 30, name


def test_options() -> None:
    layer = ContractiveConv2d(1, 2, 3, image=(4, 4))
    weights = layer.weights()
    assert weights.contraction_rate == 0 and weights.lipschitz is None
    assert weights.input_kernel.shape == (2, 1, 3, 3)  # without γ it is the parameter itself
    for name, value in (("kernel_size", 2), ("lipschitz", -1.0), ("contraction_rate", 1 - 1e-12)):
        with pytest.raises(InputError, match=rf"\b{name}\b"):
            ContractiveConv2d(1, 2, 3, image=(4, 4), **{name: value})  # type: ignore[arg-type]


def test_the_room_of_a_network_of_usual_size_is_small() -> None:
    settings = {"size": 24, "rate": 0.2, "feedthrough": False, "positions": 16 * 16 + 10}
    assert Room.of(dtype=torch.float32, **settings).edge < 2e-3  # type: ignore[arg-type]
    assert Room.of(dtype=D, **settings).edge < 2e-6  # type: ignore[arg-type]
    assert math.isclose(Room.of(dtype=D, **{**settings, "positions": 1}).error, 2.0**-52 + 32 * 24**0.5 * 2.0**-53)  # type: ignore[arg-type]
