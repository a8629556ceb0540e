"""The commands of the command line, one module each.

A module has ``command(typer)``, which returns the command as a function whose annotated parameters are its options.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from equilibrium.commands import (
    compare_solvers,
    contraction_cost,
    contraction_rates,
    convolution,
    counterexample,
    lipschitz_report,
    mnist_robustness,
    ode_layer,
    phase_portrait,
    square_wave,
    tracking,
)

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
