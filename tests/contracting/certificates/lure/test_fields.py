"""Fields of one's own are certified by being read: what holds for the matrices holds for simulated pairs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracting import InputError, NeuralFlow, certify, distance, report, simulate_pairs
from contracting.certificates import (
    CircleCriterion,
    SectorInequality,
    applicable,
    certificates,
    certify_gain,
    system_of,
)
from contracting.certificates.lmi import available
from contracting.flows.fields import InputFlow
from contracting.lure.flow import LureFlow
from contracting.lure.reading import lure_of
from contracting.lure.system import LureSystem
from tests.contracting.certificates.lure.lure_instances import normal, seeded


class Field(nn.Module):
    """s' = net(s) − leak·s."""

    def __init__(self, net: nn.Module, leak: float):
        super().__init__()
        self.net, self.leak = net, leak

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        return self.net(s) - self.leak * s


def network(n: int, hidden: tuple[int, ...], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip((n, *hidden), hidden, strict=False):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], n)).double()


def test_a_network_simply_has_a_rate_and_simulated_pairs_keep_it() -> None:
    flow = NeuralFlow(Field(network(2, (6, 6), 0), 1.0))
    certificate = certify(flow)
    assert certificate.rate > 0.5 and certificate in {certificate} and "slopes in [0, 1]" in str(certificate)
    first = normal(8, 2, generator=seeded(0))
    times = torch.linspace(0, 4, 9, dtype=torch.float64)
    pair = simulate_pairs(flow, first, first + normal(8, 2, generator=seeded(1)), times)
    apart = distance(pair, certificate.metric)
    assert bool((apart <= apart[0] * torch.exp(-certificate.rate * times)[:, None] * (1 + 1e-6)).all())


def test_all_that_is_asked_of_a_flow_may_be_asked_of_one_that_is_read() -> None:
    flow = NeuralFlow(Field(network(2, (3,), 1), 0.5))
    system = system_of(flow)
    assert isinstance(system, LureSystem)
    found = certificates(flow)
    seen = report(flow)
    assert any(isinstance(finder, CircleCriterion) for finder in applicable(flow))
    assert {c.method for c in found} == {c.method for c in seen.all} and len(found) >= 3
    assert seen.best.rate <= seen.bound.rate
    same = LureFlow(A=system.A, B=system.B, C=system.C, D=system.D, activation=nn.Tanh())
    assert certify(same, CircleCriterion()).rate == CircleCriterion().certify(system).rate


def test_without_a_leak_the_rate_is_negative() -> None:
    """At slopes of zero nothing moves: no positive rate can hold for all of them."""
    certificate = certify(NeuralFlow(Field(network(2, (3,), 1), 0.0)))
    assert -5 < certificate.rate < 0


@pytest.mark.skipif(not available(), reason="needs cvxpy and Clarabel")
@pytest.mark.parametrize(("n", "hidden"), [(2, (4,)), (3, (4, 4)), (2, (3, 3, 3))])
def test_the_gradient_reaches_the_optimum_of_the_program(n: int, hidden: tuple[int, ...]) -> None:
    system = system_of(NeuralFlow(Field(network(n, hidden, 2), 1.0)))
    by_gradient = CircleCriterion(optimise=25).certify(system).rate
    assert by_gradient == pytest.approx(SectorInequality().certify(system).rate, abs=1e-3)


def test_a_linear_field_has_the_rate_of_its_abscissa() -> None:
    torch.manual_seed(0)
    flow = NeuralFlow(Field(nn.Linear(3, 3).double(), 2.0))
    abscissa = float(torch.linalg.eigvals(system_of(flow).A).real.max())
    assert certify(flow).rate == pytest.approx(-abscissa, abs=1e-3)


def test_an_input_has_a_gain() -> None:
    """s' = −2s + tanh(s) + x has the gain 1/(2 − 1)."""
    flow = InputFlow(lambda s, x: torch.tanh(s) + x, torch.zeros(1, 1, dtype=torch.float64), leak=2.0)
    read = lure_of(flow, state=torch.zeros(1, dtype=torch.float64))
    assert certify_gain(read).gain == pytest.approx(1.0, rel=1e-3)
    assert certify(read).rate == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(("last", "named"), [(torch.exp, "exp"), (torch.square, "square"), (None, "state")])
def test_what_cannot_be_read_is_refused_by_name_with_what_to_do(last: Any, named: str) -> None:
    net = network(2, (3,), 0)
    flow = NeuralFlow(lambda t, s: last(net(s)) - s if last else -s)
    assert applicable(flow) == ()
    with pytest.raises(InputError, match=rf"{named}.*certify_region.*sampled_rate"):
        certify(flow)


def test_a_network_that_does_not_contract_is_given_the_rate_at_which_it_may_expand() -> None:
    flow = NeuralFlow(Field(network(2, (4,), 3), -1.0))
    certificate = certify(flow)
    assert certificate.rate < -1 and math.isfinite(certificate.rate)
