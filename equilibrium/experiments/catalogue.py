"""The commands by name: functions whose parameters are the options.

A parameter is annotated with its type and its help: ``Annotated[int, "Neurons."]``.
"""

from __future__ import annotations

from collections.abc import Callable

from equilibrium.experiments.atlas.command import atlas
from equilibrium.experiments.compare_solvers.command import compare_solvers
from equilibrium.experiments.contraction_cost.command import contraction_cost
from equilibrium.experiments.contraction_rates import contraction_rates
from equilibrium.experiments.convolution.command import convolution
from equilibrium.experiments.counterexample import counterexample
from equilibrium.experiments.handwriting.command import handwriting
from equilibrium.experiments.interval_training.command import interval_training
from equilibrium.experiments.lifted_metrics import lifted_metrics
from equilibrium.experiments.lipschitz_report import lipschitz_report
from equilibrium.experiments.local_certificates.command import local_certificates
from equilibrium.experiments.ode_layer import ode_layer
from equilibrium.experiments.pendulum.command import pendulum
from equilibrium.experiments.phase_portrait import phase_portrait
from equilibrium.experiments.robustness.command import mnist_robustness
from equilibrium.experiments.square_wave.command import square_wave
from equilibrium.experiments.tracking import tracking
from equilibrium.explorer.command import explore

_STUDIES: tuple[Callable[..., None], ...] = (
    atlas,
    compare_solvers,
    contraction_cost,
    contraction_rates,
    convolution,
    counterexample,
    explore,
    handwriting,
    interval_training,
    lifted_metrics,
    lipschitz_report,
    local_certificates,
    mnist_robustness,
    ode_layer,
    pendulum,
    phase_portrait,
    square_wave,
    tracking,
)
TRAINED_TOGETHER: tuple[Callable[..., None], ...] = (
    contraction_cost,
    contraction_rates,
    convolution,
    interval_training,
    lipschitz_report,
    mnist_robustness,
    ode_layer,
    square_wave,
)
"""Commands whose models several processes can train together, by ``train``; others would do everything twice."""
COMMANDS = {study.__name__.replace("_", "-"): study for study in _STUDIES}
