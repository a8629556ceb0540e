"""Attained ratios: real pairs of inputs, never above the certificate, at least what the authors' attacks reached."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from contracting.certificates.records import CertificateError
from contracting.errors import InputError
from equilibrium import LBEN, EquilibriumLayer, LBENConv2d, load_reference
from equilibrium.convert import from_sequential
from equilibrium.lipschitz import (
    LipschitzReport,
    Norm,
    PairAscent,
    PatternSearch,
    RegionWalk,
    attained_lipschitz,
    certified_lipschitz,
    lipschitz_report,
    pair_ratio,
    verify_report,
)

CHECKPOINTS = [
    ("fc_lip0.3_w80", 0.3, 0.2825),
    ("fc_lip1.0_w80", 1.0, 0.8252),
    ("fc_lip5.0_w80", 5.0, 2.912),
    ("lben_w80", None, 9.80),
    ("mondeq_w80", None, 7.75),
]


@pytest.mark.parametrize(("name", "gamma", "reported"), CHECKPOINTS, ids=lambda v: str(v))
def test_attained_is_at_least_what_the_authors_report(
    shared_data: Path, name: str, gamma: float | None, reported: float
) -> None:
    layer = load_reference(shared_data / "lben-checkpoints" / f"{name}.pt", lipschitz=gamma)
    report = lipschitz_report(layer, searches=[PatternSearch(restarts=12, rounds=2)])
    assert reported <= report.attained <= report.certified
    assert gamma is None or report.certified <= gamma
    assert report.ratio > 0.85
    assert pair_ratio(layer, *report.pair) == pytest.approx(report.attained, rel=1e-6)


@pytest.mark.parametrize(
    ("activation", "sizes", "feedthrough"),
    [
        (nn.ReLU(), (8, 6, 3), False),
        (nn.ReLU(), (2, 6, 3), True),
        (nn.Tanh(), (8, 6, 3), True),
        (nn.Tanh(), (2, 6, 3), False),
        (nn.LeakyReLU(0.2), (2, 6, 3), True),
        (nn.Sigmoid(), (8, 6, 3), False),
    ],
    ids=str,
)
def test_every_search_stays_below_the_certificate(
    activation: nn.Module, sizes: tuple[int, int, int], feedthrough: bool
) -> None:
    layer = LBEN(*sizes, lipschitz=1.0, feedthrough=feedthrough, activation=activation, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    bound = certified_lipschitz(layer).bound
    found = [
        attained_lipschitz(layer, searches=[search], starts=6).ratio
        for search in (PatternSearch(restarts=6, rounds=2), RegionWalk(steps=6), PairAscent(steps=15))
    ]
    assert 0 < min(found) and max(found) <= bound * (1 + 1e-8)
    assert max(found) > 0.3 * bound


@pytest.mark.parametrize(("images", "outputs", "least"), [(True, 3, 1 - 1e-6), (False, 3, 1 - 1e-6), (False, 30, 0.6)])
def test_where_the_map_is_linear_one_step_of_the_ascent_attains_its_norm(
    images: bool, outputs: int, least: float
) -> None:
    torch.manual_seed(0)
    if images:
        layer: EquilibriumLayer = LBENConv2d(1, 2, outputs, image=(4, 4), border=0, dtype=torch.float64)
    else:
        layer = LBEN(16, 40, outputs, dtype=torch.float64)
    with torch.no_grad():
        layer.parameterization.bias.fill_(100.0)  # every neuron is far from its kink
        weights, x = layer.weights().dense(), torch.randn(2, 16, dtype=torch.float64)
        active = (layer.equilibrium(x) > 0).double()
        slopes, identity = active[0, :, None], torch.eye(layer.hidden_features, dtype=torch.float64)
        z = torch.linalg.solve(identity - slopes * weights.state.to_dense(), slopes * weights.input)
        norm = float(torch.linalg.matrix_norm(weights.output @ z, 2))
    assert torch.equal(active[0], active[1])
    found = attained_lipschitz(layer, x, searches=[PairAscent(steps=1)], starts=2)
    assert least * norm <= found.ratio <= norm * (1 + 1e-12)


def test_the_same_seed_gives_the_same_pair() -> None:
    layer = LBEN(5, 6, 2, lipschitz=1.0)
    searches = [PatternSearch(restarts=4, rounds=1)]
    one, other = (attained_lipschitz(layer, searches=searches, seed=3) for _ in range(2))
    assert one.ratio == other.ratio and torch.equal(one.first, other.first)


def test_bad_arguments_are_refused_by_name() -> None:
    layer = LBEN(5, 6, 2)
    with pytest.raises(InputError, match=r"\bsearches\b"):
        attained_lipschitz(layer, searches=[])
    with pytest.raises(InputError, match=r"\bx\b"):
        attained_lipschitz(layer, torch.randn(3, 4))
    with pytest.raises(InputError, match=r"\bsearches\b"):
        attained_lipschitz(layer, searches=PatternSearch())
    with pytest.raises(InputError, match=r"\bmodel\b"):
        attained_lipschitz(torch.nn.Linear(5, 3))
    with pytest.raises(InputError, match=r"\bmodel\b"):
        pair_ratio(torch.nn.Linear(5, 3), torch.zeros(5), torch.ones(5))
    with pytest.raises(InputError, match=r"\bseed\b"):
        attained_lipschitz(layer, seed=2**64)
    with pytest.raises(InputError, match=r"\brestarts\b"):
        PatternSearch(restarts=0)
    with pytest.raises(InputError, match=r"\bx\b"):
        attained_lipschitz(layer, torch.randn(0, 5))


def test_a_report_with_a_certificate_of_another_norm_is_not_verified() -> None:
    torch.manual_seed(0)
    layer = from_sequential(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double())
    witness = attained_lipschitz(layer, searches=[PatternSearch(restarts=4, rounds=1)])
    honest = LipschitzReport(certificate=certified_lipschitz(layer), witness=witness)
    assert verify_report(layer, honest) == pytest.approx(witness.ratio)
    other = LipschitzReport(certificate=certified_lipschitz(layer, norm=Norm.LINF), witness=witness)
    with pytest.raises(CertificateError, match="ℓ∞"):
        verify_report(layer, other)
