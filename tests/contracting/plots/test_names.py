"""Axes in the plane carry the names of the user's own coordinates."""

from __future__ import annotations

import pytest
import torch

from contracting import Claim, Dense, Energy, EquilibriumProblem, InputError, LinearFlow, ReLU, WeightedL2, carry_ball
from contracting.plots import animate_phase_portrait, plot_energy_contours, plot_phase_portrait
from contracting.plots.style import figure_of

FLOW = LinearFlow(torch.tensor([[-1.0, 2.0], [-2.0, -1.0]], dtype=torch.float64))
WINDOW = {"x": (-1.0, 1.0), "y": (-1.0, 1.0)}
OWN = ("voltage (mV)", "recovery")


def words(axes) -> set[str]:
    legend = axes.get_legend()
    return {axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in legend.get_texts())}


def test_a_portrait_names_the_coordinates() -> None:
    assert {"state of unit 1", "state of unit 2", "unit 1 at rest"} <= words(plot_phase_portrait(FLOW, **WINDOW))
    said = words(plot_phase_portrait(FLOW, **WINDOW, names=OWN))
    assert {*OWN, "voltage (mV) at rest", "recovery at rest"} <= said and not [w for w in said if "unit" in w]


def test_a_film_and_an_energy_do_too() -> None:
    claim = Claim(rate=1.0, metric=WeightedL2.identity(2))
    ball = carry_ball(FLOW, torch.ones(2).double(), 0.1, torch.linspace(0, 1, 5).double(), evidence=claim, points=8)
    film = animate_phase_portrait(FLOW, ball, **WINDOW, frames=2, names=OWN)
    said = words(film._fig.axes[0])
    film._draw_was_started = True
    assert set(OWN) <= said and not [w for w in said if "unit" in w]
    symmetric = Dense(torch.tensor([[0.2, 0.1], [0.1, 0.3]], dtype=torch.float64))
    problem = EquilibriumProblem(
        linear=symmetric, q=torch.ones(1, 2).double(), activation=ReLU(), metric=WeightedL2.identity(2).to(FLOW.matrix)
    )
    axes = plot_energy_contours(Energy(problem), x=(0, 2), y=(0, 2), equilibrium=torch.ones(2), names=OWN)
    assert set(OWN) <= words(axes) and figure_of(axes) is not None


@pytest.mark.parametrize("names", ["xy", ("x",), ("x", 2)])
def test_other_names_are_refused(names: object) -> None:
    with pytest.raises(InputError, match="names"):
        plot_phase_portrait(FLOW, **WINDOW, names=names)  # type: ignore[arg-type]
