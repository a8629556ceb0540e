"""Figures of regions: outlines where the region is, tubes of the radius that is proved, rates on the right side."""

from __future__ import annotations

import pytest
import torch

from contracting import Ball, Box, InputError, NeuralFlow, WeightedLinf, carry_ball, certify_region, rate_against_radius
from contracting.metrics import FullP
from contracting.plots import plot_phase_portrait, plot_rate_against_radius
from contracting.plots.regions import outline

F64 = torch.float64
EYE = FullP(torch.eye(2, dtype=F64))


@pytest.fixture(scope="module")
def flow() -> NeuralFlow:
    return NeuralFlow(lambda t, s: -s + 0.5 * s**3)


def test_outlines_are_closed_and_on_the_boundary() -> None:
    metric = WeightedLinf(torch.tensor([1.0, 2.0], dtype=F64))
    centre = torch.tensor([1.0, -1.0], dtype=F64)
    ring = outline(Ball(centre, 0.5, metric))
    assert torch.allclose(metric.norm(ring - centre), torch.tensor(0.5, dtype=F64)) and torch.equal(ring[0], ring[-1])
    corners = outline(Box(-torch.ones(2, dtype=F64), torch.ones(2, dtype=F64)))
    assert corners.shape == (5, 2) and torch.equal(corners[0], corners[-1])


def test_a_portrait_shows_what_is_proved(flow: NeuralFlow) -> None:
    found = certify_region(flow, Ball(torch.zeros(2, dtype=F64), 0.6, EYE))
    times = torch.linspace(0, 2, 9, dtype=F64)
    start = torch.tensor([0.2, 0.1], dtype=F64)
    tube = carry_ball(flow, start, 0.2, times, evidence=found, points=12)
    assert bool((tube.reached <= tube.radius * (1 + 1e-6)).all())
    window = {"x": (-1, 1), "y": (-1, 1), "nullclines": False}
    axes = plot_phase_portrait(flow, region=found, tubes=[tube], names=("a", "b"), **window)
    labels = axes.get_legend_handles_labels()[1]
    assert any("proved" in label for label in labels) and any("tube" in label for label in labels)
    assert "converges" in axes.get_title(loc="left") and axes.get_xlabel() == "a"
    with pytest.raises(InputError, match="radius"):
        carry_ball(flow, start, 0.5, times, evidence=found)


def test_rates_are_drawn_on_their_sides(flow: NeuralFlow) -> None:
    profile = rate_against_radius(flow, torch.zeros(2, dtype=F64), torch.tensor([0.2, 0.5, 0.8, 1.0]), EYE)
    exact = 1 - 1.5 * profile.radii**2  # the worst slope on the ball
    assert bool((profile.certified <= exact + 1e-12).all()) and bool((profile.sampled >= exact - 1e-2).all())
    assert bool((exact - profile.certified <= 0.03).all())
    axes = plot_rate_against_radius(profile, broken=0.82)
    assert "0.8" in axes.get_title(loc="left")
    with pytest.raises(InputError, match="radii"):
        rate_against_radius(flow, torch.zeros(2, dtype=F64), torch.tensor([0.0]), EYE)
    with pytest.raises(InputError, match="region"):
        line = certify_region(NeuralFlow(lambda t, s: -s), Box(-torch.ones(1, dtype=F64), torch.ones(1, dtype=F64)))
        plot_phase_portrait(flow, x=(-1, 1), y=(-1, 1), region=line)
