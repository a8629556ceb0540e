"""Motions as paths of neural ODEs: positions with hidden states beside them, contracting by construction or not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from contracting import ContractingODE, FullP, LureODE, WellPosed, checks
from contracting.errors import InputError
from contracting.integrators.explicit import HEUN, runge_kutta_step
from equilibrium.experiments.networks import seeded
from equilibrium.training.motions import Motion
from equilibrium.training.progress import progress_bar

_TURNING = 3.0  # Skew part of the first contracting field, in 1/duration: some of its states turn while they decay.
_LIFT = 0.3  # Hidden states of the first model are so much of the position where it starts, and of random constants.
_BEGIN = 0.1  # Share of the learning rate with which a training begins; it rises for a fifth of the iterations.
_CLIP = 1.0  # Gradients are no longer than this, so that a field which grows for a while does not throw it away.


class Kind(Enum):
    """What a model promises, and where its training begins; the value is for tables and legends."""

    CONTRACTING = "contracting"
    UNCONSTRAINED = "unconstrained"
    SAME_START = "unconstrained, same start"


@dataclass(frozen=True, kw_only=True)
class MotionSettings:
    """A model of one motion and its training; times in durations of the demonstration.

    Attributes:
        motion: its name.
        kind: of model.
        rate: c of the contracting model, which the one that has the same start also begins with.
        states: n, two of them the position.
        neurons: m.
        iterations: of Adam, each on whole paths of all training demonstrations.
        steps: of the integrator in training, per duration.
        rest: how long a demonstration stays at its goal, in training.
        learning_rate: the largest.
        training: demonstrations to train on; the others are held out.
        starts: random starts from which the model is followed.
        horizon: how long it is followed from these.
        pushes: directions of pushes.
        seed: of parameters and starts.
    """

    motion: str
    kind: Kind
    rate: float = 3.0
    states: int = 8
    neurons: int = 32
    iterations: int = 250
    steps: int = 25
    rest: float = 0.24
    learning_rate: float = 0.01
    training: int = 5
    starts: int = 100
    horizon: float = 4.0
    pushes: int = 8
    seed: int = 0


class MotionModel(nn.Module):
    r"""y = the first two entries of s, s' = As + Bσ(Cs + b) + e with s' = 0 at s = 0, s(0) = (y₀, Ly₀ + l).

    Args:
        ode: the field, with s as its output.
    """

    def __init__(self, ode: LureODE):
        super().__init__()
        self.ode = ode
        self.lift = nn.Linear(2, ode.parameterization.states - 2, dtype=ode.example.dtype)
        with torch.no_grad():
            self.lift.weight.mul_(_LIFT)
            self.lift.bias.normal_()

    def start(self, positions: Tensor) -> Tensor:
        """The state in which a motion begins: (batch, 2) -> (batch, n)."""
        return torch.cat([positions, self.lift(positions)], -1)

    @property
    def metric(self) -> FullP:
        """P, in which the state contracts.

        Raises:
            InputError: if nothing is promised of this model.
        """
        metric = self.ode.weights().metric
        if metric is None:
            raise InputError("this model does not contract by construction, so it has no metric")
        return metric


def new_model(settings: MotionSettings) -> MotionModel:
    """The model before its training, in float64; those of two kinds begin with the same field.

    Raises:
        InputError: on a size or a rate out of range.
    """
    n, m = checks.whole_number("states", settings.states, low=3), checks.whole_number("neurons", settings.neurons)
    rest = torch.zeros(n, dtype=torch.float64)
    with seeded(settings.seed):
        contracting = ContractingODE(
            0, n, m, None, contraction_rate=settings.rate, feedback=False, rest=rest, dtype=torch.float64
        )
        nn.init.normal_(contracting.parameterization.get_parameter("S1"), std=_TURNING / math.sqrt(n))
        if settings.kind is Kind.CONTRACTING:
            return MotionModel(contracting)
        free = WellPosed(0, n, m, None, feedback=False, dtype=torch.float64)
        if settings.kind is Kind.SAME_START:
            weights = contracting.weights()
            with torch.no_grad():
                for name in ("A", "B", "C", "bias"):
                    free.get_parameter(name).copy_(getattr(weights, name))
        return MotionModel(LureODE(free, rest=rest))


def train_model(
    model: MotionModel, motion: Motion, settings: MotionSettings, *, progress: bool = False
) -> list[float]:
    """Minimise the mean square distance of paths to demonstrations at equal times, by Adam, in place.

    The paths are those of Heun's method with a fixed step, and gradients go through all of its steps.

    Returns:
        The root mean square distance before each iteration, in millimetres.

    Raises:
        InputError: on a number of steps that does not divide the intervals of the motion.
    """
    intervals, steps = len(motion.times) - 1, checks.whole_number("steps", settings.steps)
    if intervals % steps:
        raise InputError(f"steps must divide the {intervals} intervals of the motion, got {steps}")
    positions = motion.positions[: settings.training, :: intervals // steps].transpose(0, 1)
    resting = round(settings.rest * steps)
    wanted = torch.cat([positions, positions[-1:].expand(resting, -1, -1)])
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.iterations, pct_start=0.2, div_factor=1 / _BEGIN
    )
    seen = []
    with progress_bar(settings.iterations, f"{motion.name}, {settings.kind.value}", show=progress) as bar:
        for _ in range(settings.iterations):
            flow, states = model.ode.flow(), [model.start(positions[0])]
            for _ in wanted[1:]:
                states.append(runge_kutta_step(HEUN, flow, states[-1], 1 / steps)[0])
            loss = (torch.stack(states)[..., :2] - wanted).square().sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
            optimizer.step()
            schedule.step()
            seen.append(math.sqrt(loss.item()) * motion.millimetres)
            bar.update()
    return seen
