"""Models around a layer, certified as one map; and lower bounds that rounding cannot raise above certified ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from contracting.certificates import CertificateError
from contracting.errors import InputError
from equilibrium import LBEN, EquilibriumLayer, LBENConv2d
from equilibrium.convert import from_sequential
from equilibrium.lipschitz import (
    PairAscent,
    PatternSearch,
    certified_lipschitz,
    lipschitz_report,
    lipschitz_system,
    pair_ratio,
    pairwise_lipschitz,
    verify_report,
)
from equilibrium.lipschitz.frequencies import PerFrequency, image_system
from equilibrium.lipschitz.frequency_checker import ImageSystem, check_frequencies

F64 = torch.float64


def normalised() -> tuple[nn.BatchNorm1d, torch.Tensor]:
    norm = nn.BatchNorm1d(4, dtype=F64)
    with torch.no_grad():
        norm.running_var.copy_(torch.tensor([0.01, 1.0, 4.0, 100.0]))
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
    return norm.eval(), torch.diag(norm.weight.detach() / (norm.running_var + norm.eps).sqrt())


def test_a_sequential_is_certified_as_the_map_that_it_is() -> None:
    layer, (norm, scale) = LBEN(4, 6, 5, lipschitz=1.0, dtype=F64), normalised()
    before, after = nn.Linear(3, 4, dtype=F64), nn.Linear(5, 2, dtype=F64)
    model = nn.Sequential(nn.Flatten(), before, nn.Sequential(norm, nn.Dropout()), layer, nn.Identity(), after).eval()
    by_hand = certified_lipschitz(layer, preceding=scale @ before.weight.detach(), following=after)
    whole = certified_lipschitz(model)
    assert whole.bound == pytest.approx(by_hand.bound, rel=1e-6)
    assert float(pairwise_lipschitz(model).bounds[0, 1]) <= 2**0.5 * whole.bound
    x = torch.randn(200, 3, dtype=F64)
    moved = x + 1e-3 * torch.randn(200, 3, dtype=F64)
    with torch.no_grad():
        ratio = torch.linalg.vector_norm(model(x) - model(moved), dim=-1) / torch.linalg.vector_norm(x - moved, dim=-1)
    assert 0.1 * whole.bound < float(ratio.max()) <= whole.bound


def test_what_is_not_linear_around_a_layer_is_refused() -> None:
    layer = LBEN(4, 6, 4, dtype=F64)
    for model in (
        nn.Sequential(nn.Linear(4, 4, dtype=F64), nn.ReLU(), layer),
        nn.Sequential(nn.LayerNorm(4), layer),
        nn.Sequential(nn.BatchNorm1d(4), layer),  # in training
        nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False).eval(), layer),
        nn.Sequential(nn.Flatten(0), layer),
        nn.Sequential(layer, layer),
        nn.Sequential(nn.Linear(4, 4)),
        nn.Sequential(nn.Linear(4, 3, dtype=F64), layer),
    ):
        with pytest.raises(InputError):
            certified_lipschitz(model)


def images(dtype: torch.dtype = F64) -> LBENConv2d:
    torch.manual_seed(0)
    return LBENConv2d(1, 2, 3, image=(6, 6), lipschitz=1.0, dtype=dtype)


def test_a_readout_in_double_precision_stays_so_behind_a_network_in_single(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = images(torch.float32)
    rows = torch.randn(2, 3, dtype=F64) + 1e-9
    exact = certified_lipschitz(layer, following=rows)
    weights = layer.weights().double()
    readout, seen = weights.output, weights.output_matrix[:, layer.activation.free]
    assert torch.allclose(lipschitz_system(layer, following=rows).C, rows @ seen, rtol=1e-14)
    monkeypatch.setattr("equilibrium.lipschitz.frequencies._TIGHT_UP_TO", 0)
    system = image_system(layer, rows)
    assert system is not None and torch.allclose(system.weights.output, rows @ readout, rtol=1e-14)
    model = nn.Sequential(layer, nn.Linear(3, 2, bias=False))
    model[1].weight.data = rows
    monkeypatch.undo()
    assert certified_lipschitz(model).bound == exact.bound


def test_a_proof_per_frequency_is_refused_where_anything_in_it_is_wrong() -> None:
    layer = images()
    system = ImageSystem(weights=layer.weights())
    certificate = PerFrequency().certify(system)
    assert certificate.multiplier is not None and check_frequencies(certificate, system) > 0
    weights, multiplier = system.weights, certificate.multiplier
    graded = multiplier * torch.linspace(1, 1.001, len(multiplier), dtype=F64)
    for broken in (
        replace(certificate, bound=certificate.bound * (1 - 1e-6)),
        replace(certificate, bound=float("nan")),
        replace(certificate, bound=0.0),
        replace(certificate, multiplier=1.01 * multiplier),
        replace(certificate, multiplier=graded),
        replace(certificate, multiplier=multiplier[:-1]),
        replace(certificate, slopes=(0.0, 0.9)),
    ):
        with pytest.raises(CertificateError):
            check_frequencies(broken, system)
    kernel = weights.state.tensors()[0]
    for other in (
        ImageSystem(weights=replace(weights, output=weights.output * (1 + 1e-6))),
        ImageSystem(weights=replace(weights, input_kernel=weights.input_kernel * (1 + 1e-6))),
        ImageSystem(weights=replace(weights, state=weights.state.with_tensors([kernel - 1e-3]))),
        ImageSystem(weights=weights, output_error=torch.full_like(weights.output, 1e-6)),  # known too badly
    ):
        with pytest.raises(CertificateError):
            check_frequencies(certificate, other)


@pytest.mark.parametrize("size", [2.0**-570, 2.0**570])
def test_images_of_any_scale_and_equal_rows_of_their_readout(size: float) -> None:
    system = ImageSystem(weights=images().weights())
    scaled = ImageSystem(weights=replace(system.weights, output=size * system.weights.output))
    plain = PerFrequency(steps=5).certify(system).bound
    assert PerFrequency(steps=5).certify(scaled).bound == pytest.approx(size * plain, rel=1e-9)
    assert PerFrequency(steps=0).certify(system.difference(1, 1)).bound == 0.0


def neuron(weight: float, bias: float) -> EquilibriumLayer:
    network = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for linear in (network[0], network[2]):
            linear.weight.fill_(weight)
            linear.bias.fill_(bias)
    return from_sequential(network)


@pytest.mark.parametrize(("weight", "bias"), [(1e-6, 0.0), (1e-6, 1.0), (1.0, 1e8), (1.0, 1e12), (1e-6, 1e8)])
def test_rounding_cannot_raise_an_attained_constant_above_a_certified_one(weight: float, bias: float) -> None:
    layer = neuron(weight, bias)
    report = lipschitz_report(layer, starts=4)
    assert 0.999 * weight**2 <= report.attained <= weight**2 <= report.certified
    assert verify_report(layer, report) == pytest.approx(report.attained)
    with pytest.raises(CertificateError):  # the negative control
        verify_report(layer, replace(report, witness=replace(report.witness, ratio=1.01 * report.attained)))


def test_the_ratio_of_a_short_pair_is_a_lower_bound_and_not_zero() -> None:
    layer = LBEN(4, 6, 3, lipschitz=1.0, dtype=F64)
    x, step = torch.randn(2, 4, dtype=F64)
    true = pair_ratio(layer, x, x + 1e-4 * step)
    for length in (1e-8, 1e-10, 1e-11):
        assert 0.8 * true < pair_ratio(layer, x, x + length * step) <= true * (1 + 1e-9)
    assert pair_ratio(layer, x, x) == 0.0


def test_every_report_that_is_made_is_accepted() -> None:
    for layer in (
        images(),
        LBEN(3, 5, 2, lipschitz=0.5, feedthrough=True, activation=nn.Tanh(), dtype=F64),
        LBEN(3, 5, 2),
        from_sequential(nn.Sequential(nn.Linear(2, 4), nn.LeakyReLU(0.1), nn.Linear(4, 2))),
    ):
        report = lipschitz_report(layer, starts=2, searches=[PatternSearch(), PairAscent(steps=10)])
        assert 0 < verify_report(layer, report) <= report.certified
    with torch.no_grad():
        constant = LBEN(3, 5, 2, dtype=F64)
        constant.parameterization.output.zero_()  # type: ignore[union-attr,operator]
    report = lipschitz_report(constant, starts=2)
    assert report.certified == report.attained == verify_report(constant, report) == 0.0 and report.ratio == 1.0
