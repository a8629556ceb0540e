"""A square wave fitted by networks with Lipschitz bounds: a bound is a slope one can see."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from equilibrium import LBEN, Implicit, Samples, Stop, certified_lipschitz, train
from equilibrium.experiments.networks import seeded

REACH = 1.5
"""The wave is fitted on [−REACH, REACH]; it jumps at −1, 0 and 1."""

_TRAINING = Stop(rtol=1e-4, atol=1e-6, max_steps=5000)
_SHOWN = 10  # The figure draws every tenth point of the grid of slopes: 3,000 points, 400 to the inch.


@dataclass(frozen=True, kw_only=True)
class WaveSettings:
    """How the wave is fitted.

    Attributes:
        hidden: neurons.
        steps: of Adam, on all points.
        points: of the wave that are fitted.
        grid: intervals of the grid on which slopes are measured.
        learning_rate: the largest, as of ``train``.
        epsilon: ε of the parameterisation.
        seed: of the weights.
    """

    hidden: int = 40
    steps: int = 1000
    points: int = 200
    grid: int = 30_000
    learning_rate: float = 0.02
    epsilon: float = 0.1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A network fitted to the wave.

    Attributes:
        lipschitz: γ it was built with, or None.
        certified: certified slope: γ or a tighter constant.
        measured: the steepest slope between two neighbours of the grid.
        steepest: where that is, (x, y).
        error: root mean square error at the fitted points.
        x: the points of the figure.
        y: the values there.
    """

    lipschitz: float | None
    certified: float
    measured: float
    steepest: tuple[float, float]
    error: float
    x: tuple[float, ...]
    y: tuple[float, ...]

    @property
    def name(self) -> str:
        """For tables and legends."""
        return _name(self.lipschitz)


def square_wave(x: Tensor) -> Tensor:
    """sign sin πx: period 2, height ±1."""
    return torch.sign(torch.sin(math.pi * x))


def _name(lipschitz: float | None) -> str:
    return "no γ" if lipschitz is None else f"γ = {lipschitz:g}"


def fit(lipschitz: float | None, settings: WaveSettings, *, progress: bool = False) -> Fit:
    """Fit an LBEN with one input and one output to the wave, and measure its slopes.

    Args:
        lipschitz: γ, or None for a well-posed network without a bound.
        settings: of the fit.
        progress: show a bar.

    Raises:
        InputError: on a γ that is not positive.
    """
    for name in ("hidden", "steps", "points", "grid"):
        checks.whole_number(name, getattr(settings, name))
    with seeded(settings.seed):
        layer = LBEN(
            1,
            settings.hidden,
            1,
            lipschitz=lipschitz,
            epsilon=settings.epsilon,
            stop=_TRAINING,
            backward=Implicit(stop=Stop(rtol=_TRAINING.rtol, atol=0.0)),
        )
    x = torch.linspace(-REACH, REACH, settings.points)[:, None]
    target = square_wave(x)
    train(
        layer,
        Samples(name="square wave", train_inputs=x, train_targets=target),
        epochs=settings.steps,
        batch_size=settings.points,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        progress=progress,
    )
    return _measured(layer.double(), x.double(), target.double(), lipschitz, settings)


@torch.no_grad()
def _measured(layer: LBEN, x: Tensor, target: Tensor, lipschitz: float | None, settings: WaveSettings) -> Fit:
    layer.stop = Stop(rtol=1e-12, atol=1e-13)
    grid = torch.linspace(-REACH, REACH, settings.grid + 1, dtype=torch.float64)
    y = torch.cat([layer(part[:, None])[:, 0] for part in torch.split(grid, 2000)])
    slopes = (y.diff() / grid.diff()).abs()
    at = int(slopes.argmax())
    return Fit(
        lipschitz=lipschitz,
        certified=certified_lipschitz(layer).bound,
        measured=float(slopes[at]),
        steepest=(float(grid[at : at + 2].mean()), float(y[at : at + 2].mean())),
        error=float((layer(x) - target).square().mean().sqrt()),
        x=tuple(grid[::_SHOWN].tolist()),
        y=tuple(y[::_SHOWN].tolist()),
    )
