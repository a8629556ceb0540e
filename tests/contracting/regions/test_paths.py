"""Metrics that change with the state: the rate of a linear flow in curved coordinates is found again and proved."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from contracting import FullP, InputError, NeuralFlow, simulate
from contracting.regions import Ball, Box, StateMetric, certify_paths, certify_region
from contracting.simulation.sampled import fit_metric

F64 = torch.float64
A = torch.tensor([[-1.0, 3.0], [-3.0, -1.2]], dtype=F64)
BEND = 0.5


def straight(s: Tensor) -> Tensor:
    """Coordinates y = (s₁, s₂ + 0.5 s₁²), in which the flow is y' = Ay."""
    x, y = s.unbind(-1)
    return torch.stack([x, y + BEND * x**2], -1)


def theta(s: Tensor) -> Tensor:
    """∂y/∂s."""
    x = s[:, 0]
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    return torch.stack([torch.stack([one, zero], -1), torch.stack([2 * BEND * x, one], -1)], -2)


def curved(t: Tensor, s: Tensor) -> Tensor:
    dx, dy = (straight(s) @ A.mT).unbind(-1)
    return torch.stack([dx, dy - 2 * BEND * s[:, 0] * dx], -1)


FLOW = NeuralFlow(curved)
RATE = -float(torch.linalg.eigvalsh((A + A.mT) / 2).max())
BOX = Box(torch.tensor([-1.0, -1.0], dtype=F64), torch.tensor([1.0, 1.0], dtype=F64))


def test_the_rate_of_the_straight_flow_is_seen_everywhere() -> None:
    points = 6 * torch.rand(100, 2, generator=torch.Generator().manual_seed(0), dtype=F64) - 3
    assert torch.allclose(StateMetric(theta).measure(FLOW, points), torch.tensor(-RATE, dtype=F64), atol=1e-9)
    # and no constant metric sees it as far
    assert fit_metric(FLOW, points, steps=100).rate < 0


def test_the_rate_of_the_straight_flow_is_proved_over_a_region() -> None:
    found = certify_paths(FLOW, BOX, StateMetric(theta), tolerance=0.3)
    assert 0.7 * RATE - 1e-9 <= found.rate <= RATE and found.contracting and found.complete
    ball = Ball(torch.zeros(2, dtype=F64), 0.5, FullP(torch.eye(2, dtype=F64)))
    assert RATE >= certify_paths(FLOW, ball, StateMetric(theta), tolerance=0.3).rate >= 0.7 * RATE - 1e-9


def test_another_metric_of_the_same_kind_is_refused() -> None:
    found = certify_paths(FLOW, BOX, StateMetric(lambda s: theta(-3 * s)), budget=500)
    assert not found.contracting and found.invariant is None


def test_a_constant_factor_gives_what_its_metric_gives() -> None:
    def field(t: Tensor, s: Tensor) -> Tensor:
        return -s - 0.3 * torch.sin(s.flip(-1))

    root = torch.tensor([[1.0, 0.2], [0.0, 2.0]], dtype=F64)
    metric = StateMetric(lambda s: root.expand(len(s), 2, 2))
    P = root.mT @ root
    found = certify_paths(NeuralFlow(field), BOX, metric, tolerance=1e-3)
    same = certify_region(NeuralFlow(field), BOX, FullP((P + P.mT) / 2), tolerance=1e-3)
    assert found.rate == pytest.approx(same.rate, rel=3e-3)
    assert found.invariant is BOX
    starts = 2 * torch.rand(40, 2, dtype=F64) - 1
    states = simulate(NeuralFlow(field), starts, torch.linspace(0, 3, 7, dtype=F64)).states
    gaps = ((states[:, ::2] - states[:, 1::2]) @ root.mT).norm(dim=-1)
    assert bool((gaps[-1] <= gaps[0] * math.exp(-3 * found.rate) * (1 + 1e-5)).all())


def test_a_tall_factor_and_time_are_taken() -> None:
    tall = StateMetric(lambda s: torch.cat([theta(s), theta(s)], 1))
    assert certify_paths(FLOW, BOX, tall, tolerance=0.5).rate >= 0.5 * RATE - 1e-9
    moving = NeuralFlow(lambda t, s: -(1.5 + torch.sin(t)) * s)
    unit = StateMetric(lambda s: torch.eye(2, dtype=F64).expand(len(s), 2, 2))
    assert 0.45 <= certify_paths(moving, BOX, unit, times=(0.0, 6.3), tolerance=0.05).rate <= 0.5


def test_bad_input_is_refused() -> None:
    for bad in (lambda s: s, lambda s: theta(s)[:, :1], nn.Linear(2, 2).double()):
        with pytest.raises(InputError, match="metric"):
            certify_paths(FLOW, BOX, StateMetric(bad))
    with pytest.raises(InputError, match="metric"):
        certify_paths(FLOW, BOX, FullP(torch.eye(2, dtype=F64)))
    with pytest.raises(InputError, match="lgamma"):
        certify_paths(FLOW, BOX, StateMetric(lambda s: theta(s) + torch.lgamma(s.abs() + 1)[:, :, None]))
    with pytest.raises(InputError, match="module"):
        StateMetric(3.0)
