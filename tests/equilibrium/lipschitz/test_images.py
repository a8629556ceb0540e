"""Certified constants of networks on images: their matrices, their border and their slopes as they are."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from contracting.activations.base import Activation
from contracting.activations.catalogue import LeakyReLU, ReLU, Sigmoid
from contracting.activations.clamped import Clamped
from contracting.certificates import CertificateError
from contracting.errors import InputError
from equilibrium import LBENConv2d, certified_radius, explicit_weights
from equilibrium.convolution import MetricShape
from equilibrium.lipschitz import (
    Elementwise,
    LipschitzReport,
    PairAscent,
    attained_lipschitz,
    certified_lipschitz,
    check_lipschitz,
    lipschitz_system,
    verify_report,
)
from equilibrium.lipschitz.frequencies import PerFrequency, image_system
from equilibrium.lipschitz.frequency_checker import ImageSystem, check_frequencies
from equilibrium.lipschitz.images import image_matrices
from equilibrium.lipschitz.system import LipschitzSystem

F64 = torch.float64


def made(
    seed: int,
    metric: MetricShape = MetricShape.CHANNEL,
    activation: Activation | None = None,
    image: tuple[int, int] = (2, 2),
    **geometry: int,
) -> LBENConv2d:
    torch.manual_seed(seed)
    layer = LBENConv2d(
        1, 2, 3, image=image, metric=metric, activation=activation or ReLU(), epsilon=0.1, dtype=F64, **geometry
    )
    if layer.parameterization.psi is not None:
        torch.nn.init.normal_(layer.parameterization.psi, std=0.3)
    return layer


def worst(system: LipschitzSystem) -> float:
    """The largest gain of all patterns of ends of the slopes."""
    J = torch.tensor(list(itertools.product(system.slopes, repeat=system.size)), dtype=F64)
    states = torch.linalg.solve(torch.eye(system.size, dtype=F64) - J[:, :, None] * system.W, J[:, :, None] * system.U)
    return float(torch.linalg.matrix_norm(system.C @ states, 2).max())


@pytest.mark.parametrize("metric", MetricShape)
def test_the_matrices_are_those_of_the_maps_and_say_where_they_are_rounded(metric: MetricShape) -> None:
    for wide, layer in (
        (False, made(0, metric, image=(4, 6), stride=2, pool=2, input_kernel_size=5, border=2)),
        (True, made(1, metric, image=(2, 4), kernel_size=3, border=0)),
    ):
        weights = layer.weights().double()
        dense, found = weights.dense(), image_matrices(weights)
        for (matrix, error), product in zip(found, (dense.state.to_dense(), dense.input, dense.output), strict=True):
            assert torch.allclose(matrix, product, rtol=0, atol=1e-14)
            assert bool(((matrix - product).abs() <= error + 4 * torch.finfo(F64).eps).all())
        scaled = metric in (MetricShape.POSITION, MetricShape.FULL)
        assert bool(found[0][1].any()) == (wide or scaled)  # the kernel of AᵀA, 5×5, is wider than this torus
        assert bool(found[1][1].any()) == wide


@pytest.mark.parametrize("metric", [MetricShape.CHANNEL, MetricShape.POSITION, MetricShape.FULL])
@pytest.mark.parametrize("activation", [ReLU(), LeakyReLU(negative_slope=0.2), Sigmoid()])
def test_the_bound_of_a_small_network_is_near_its_worst_pattern_of_slopes(
    metric: MetricShape, activation: Activation
) -> None:
    for seed in range(2):
        layer = made(seed, metric, activation)
        system = lipschitz_system(layer)
        assert system.size == 8 and system.slopes == activation.slopes
        truth, certificate = worst(system), certified_lipschitz(layer)
        assert truth <= certificate.bound <= 1.3 * truth
        assert PerFrequency().certify(ImageSystem(weights=layer.weights())).bound > 1.5 * certificate.bound
        with pytest.raises(CertificateError):
            check_lipschitz(replace(certificate, bound=0.999 * truth), system)
        with pytest.raises(CertificateError):  # the border is part of the map, and here it is not held
            check_lipschitz(certificate, lipschitz_system(layer.weights(), activation=activation))


def test_more_cases_of_slopes_prove_a_smaller_constant() -> None:
    layer = made(1, MetricShape.FULL)
    plain, split = (certified_lipschitz(layer, cases=cases) for cases in (1, 8))
    truth = worst(lipschitz_system(layer))
    assert truth <= split.bound < plain.bound and split.bound - truth < 0.7 * (plain.bound - truth)
    assert split.branches is not None and check_lipschitz(split, lipschitz_system(layer)) > 0
    with pytest.raises(InputError, match=r"\bcases\b"):
        certified_lipschitz(layer, cases=0)


@pytest.mark.parametrize("metric", MetricShape)
def test_slopes_of_the_activation_count_per_frequency_too(metric: MetricShape, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = made(0, metric, Sigmoid(), image=(4, 4))
    dense = certified_lipschitz(layer)
    monkeypatch.setattr("equilibrium.lipschitz.frequencies._TIGHT_UP_TO", 0)
    monkeypatch.setattr("equilibrium.lipschitz.bounds._BORDER_UP_TO", 0)
    system = image_system(layer)
    assert system is not None and system.slopes == Sigmoid().slopes
    certificate = certified_lipschitz(layer)
    assert certificate.method == "per frequency" and dense.bound <= certificate.bound
    steeper = ImageSystem(weights=layer.weights())
    assert certificate.bound < 0.25 * PerFrequency().certify(steeper).bound
    # every neuron of the torus, by the dense checker
    assert check_lipschitz(certificate, lipschitz_system(layer.weights(), activation=Sigmoid())) > 0
    with pytest.raises(CertificateError):
        check_frequencies(certificate, steeper)
    for broken in (
        replace(certificate, bound=0.99 * certificate.bound),
        replace(certificate, slopes=(0.0, 0.24)),
        replace(certificate, slopes=(0.0, 1.0)),
        replace(certificate, slopes=(0.1, 0.25)),
    ):
        with pytest.raises(CertificateError):
            check_frequencies(broken, system)
    assert certified_lipschitz(layer.weights(), activation=Sigmoid()).bound == pytest.approx(certificate.bound)


def test_the_multiplier_of_a_large_network_is_judged_again_without_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = made(1, image=(4, 4))
    best, torus = certified_lipschitz(layer), PerFrequency().certify(ImageSystem(weights=layer.weights()))
    monkeypatch.setattr("equilibrium.lipschitz.frequencies._TIGHT_UP_TO", 0)
    certificate = certified_lipschitz(layer)
    assert certificate.multiplier is not None and len(certificate.multiplier) == 32
    assert best.bound <= certificate.bound < 0.9 * torus.bound
    pair = attained_lipschitz(layer, starts=2, searches=[PairAscent(steps=5)])
    report, x = LipschitzReport(certificate=certificate, witness=pair), torch.rand(2, 16, dtype=F64)
    for proof in (certificate, torus):
        assert verify_report(layer, replace(report, certificate=proof)) > 0
        assert bool((certified_radius(layer, x, layer(x).argmax(-1), proof) > 0).all())
        with pytest.raises(CertificateError):
            verify_report(layer, replace(report, certificate=replace(proof, bound=0.8 * best.bound)))
        with pytest.raises(InputError, match=r"\bconstants\b"):
            certified_radius(made(2, image=(4, 4)), x, layer(x).argmax(-1), proof)


def test_held_neurons_of_any_network_are_left_out() -> None:
    torch.manual_seed(0)
    W, U, C = 0.3 * torch.randn(5, 5, dtype=F64), torch.randn(5, 2, dtype=F64), torch.randn(3, 5, dtype=F64)
    free = torch.tensor([True, False, True, True, False])
    inner = LeakyReLU(negative_slope=0.1)
    activation = Clamped(inner=inner, free=free)
    system = lipschitz_system(explicit_weights(W, U, C), activation=activation)
    assert torch.equal(system.W, W[free][:, free]) and system.slopes == (0.1, 1.0)
    part = certified_lipschitz(explicit_weights(W[free][:, free], U[free], C[:, free]), activation=inner)
    whole = certified_lipschitz(explicit_weights(W, U, C), activation=activation)
    assert whole.bound == pytest.approx(part.bound, rel=1e-9) and whole.about == part.about
    held = Clamped(inner=ReLU(), free=torch.zeros(5, dtype=torch.bool))
    assert certified_lipschitz(explicit_weights(0.1 * W, U, C), activation=held).bound < 1e-6


def test_errors_of_the_state_matrix_are_allowed_for() -> None:
    layer = made(0, MetricShape.CHANNEL, Sigmoid())
    system = lipschitz_system(layer)
    certificate = certified_lipschitz(layer)
    entrywise = Elementwise().certify(system)
    unsure = replace(system, state_error=torch.full_like(system.W, 1e-3))
    for proof in (certificate, entrywise):
        assert check_lipschitz(proof, replace(system, state_error=torch.zeros_like(system.W))) > 0
        with pytest.raises(CertificateError):
            check_lipschitz(proof, unsure)
