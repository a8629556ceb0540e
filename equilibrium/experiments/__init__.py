"""The commands of the command line, one module each.

A module has ``command(typer)``, which returns the command as a function whose annotated parameters are its options.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from equilibrium.experiments import (
    contraction_rates,
    counterexample,
    lipschitz_report,
    ode_layer,
    phase_portrait,
    tracking,
)
from equilibrium.experiments.compare_solvers import command as compare_solvers
from equilibrium.experiments.contraction_cost import command as contraction_cost
from equilibrium.experiments.convolution import command as convolution
from equilibrium.experiments.robustness import command as mnist_robustness
from equilibrium.experiments.square_wave import command as square_wave

COMMANDS: dict[str, Callable[[ModuleType], Callable[..., None]]] = {
    "compare-solvers": compare_solvers.command,
    "contraction-cost": contraction_cost.command,
    "contraction-rates": contraction_rates.command,
    "convolution": convolution.command,
    "counterexample": counterexample.command,
    "lipschitz-report": lipschitz_report.command,
    "mnist-robustness": mnist_robustness.command,
    "ode-layer": ode_layer.command,
    "phase-portrait": phase_portrait.command,
    "square-wave": square_wave.command,
    "tracking": tracking.command,
}
