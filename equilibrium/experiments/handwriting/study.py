r"""What trained models of motions do: how well they reproduce, where they end, and what becomes of a push.

Of two paths of a contracting model ‖Δs(t)‖_P ≤ e^{−ct}‖Δs(0)‖_P is proved. In the plane of the positions that is a
tube around the path: Δyᵀ S Δy ≤ e^{−2ct}‖Δs(0)‖²_P, where S⁻¹ is the block of P⁻¹ that belongs to the positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from contracting import (
    AdaptiveStep,
    FullP,
    Trajectory,
    TrajectoryPair,
    distance,
    sampled_rate_along,
    simulate,
    simulate_pairs,
)
from contracting.certificates.lure.checker import dissipation_margin
from equilibrium.experiments.handwriting.distances import rms_distance, warped_distance
from equilibrium.experiments.handwriting.models import Kind, MotionModel, MotionSettings, new_model, train_model
from equilibrium.experiments.runner import Workspace
from equilibrium.files import write_tensors
from equilibrium.training.motions import Motion, load_motion

Results = Mapping[Kind, Mapping[str, dict[str, Any]]]
"""By kind of model and name of motion, what ``run_motion`` found."""
ARRIVED = 0.01
"""A motion has ended at its goal if it rests within so much of its own size."""
PUSH = 0.2
"""Length of a push, in sizes of the motion."""
PUSHED = 0.3
"""When a push comes, in durations of the motion."""

_BOX = 1.5  # Random starts are in a square of so many sizes of the motion around its goal.
_MOMENTS = 40  # Distances are looked at so often per duration.
_FLOOR = 1e-7  # Distances below this share of the first one are not asked for their rate: rounding moves them.
_ACCURATE = AdaptiveStep(
    rtol=1e-7
)  # Two paths of a pair share their steps, so their distance is more accurate than that.
_SHOWN_STARTS = 20  # So many paths from random starts are kept for the figure.


@dataclass(frozen=True, kw_only=True, eq=False)
class Push:
    """Held-out motions pushed in all directions: the hidden states stay as they are, the position jumps.

    Attributes:
        elapsed: times since the push, (T,).
        pair: the motion as it would have gone on, and as it went on; rows are demonstrations × directions.
    """

    elapsed: Tensor
    pair: TrajectoryPair


def run_motion(settings: MotionSettings, workspace: Workspace) -> dict[str, Any]:
    """Train a model of a motion and measure it; a task of the experiment."""
    motion, model = load_motion(settings.motion), new_model(settings)
    weights = workspace.folder / "weights.pt"

    def train() -> list[float]:
        seen = train_model(model, motion, settings, progress=workspace.progress)
        write_tensors(weights, model.state_dict())
        return seen

    errors = workspace.once("training", train)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return {"settings": settings, "training": errors[-1], **measured(model, motion, settings)}


@torch.no_grad()
def measured(model: MotionModel, motion: Motion, settings: MotionSettings) -> dict[str, Any]:
    """What a model does; lengths in millimetres, and paths for the figures in sizes of the motion."""
    metric = model.metric if settings.kind is Kind.CONTRACTING else None
    starts, times = from_random_starts(model, settings)
    push = pushed(model, motion.positions[settings.training :, 0], settings)
    flow, scale = model.ode.flow(), motion.millimetres
    paths = simulate(flow, model.start(motion.positions[:, 0]), motion.times, integrator=_ACCURATE, throw=False).states[
        ..., :2
    ]
    paths = paths.transpose(0, 1)
    rms = rms_distance(paths, motion.positions) * scale
    warped = warped_distance(paths, motion.positions) * scale
    ends = torch.linalg.vector_norm(starts.first[-1, :, :2], dim=-1)
    apart = torch.linalg.vector_norm((push.pair.second - push.pair.first)[..., :2], dim=-1) / PUSH
    ended = int((push.elapsed <= 1 - PUSHED + 1e-9).sum()) - 1
    found: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "rms": {"trained": float(rms[: settings.training].mean()), "held out": float(rms[settings.training :].mean())},
        "warped": {
            "trained": float(warped[: settings.training].mean()),
            "held out": float(warped[settings.training :].mean()),
        },
        "arrived": int((ends <= ARRIVED).sum()),
        "farthest end": float(ends.nan_to_num(math.inf).max()) * scale,
        "push": {
            "left": float(apart[ended].nan_to_num(math.inf).max()) * PUSH * scale,
            "growth": float(apart.nan_to_num(math.inf).max()),
        },
        "paths": {
            "reproduced": _rounded(paths[settings.training :, ::2]),
            "demonstrated": _rounded(motion.positions[:, ::2]),
            "starts": _rounded(starts.first[:, :_SHOWN_STARTS, :2].transpose(0, 1)),
            "pushed": _rounded(push.pair.second[:, : settings.pushes, :2].transpose(0, 1)),
            "unpushed": _rounded(push.pair.first[:, 0, :2]),
            "elapsed": _rounded(push.elapsed),
            "apart": _rounded(apart.amax(1), 8),
        },
    }
    if metric is not None:
        found |= _kept(model, metric, settings, starts, times, push, scale)
    return found


def _kept(
    model: MotionModel,
    metric: FullP,
    settings: MotionSettings,
    starts: TrajectoryPair,
    times: Tensor,
    push: Push,
    scale: float,
) -> dict[str, Any]:
    """What was certified, beside what was seen of it."""
    rate, size = settings.rate, float(metric.norm(starts.first[0]).max())
    shape = tube_shape(metric)
    multiplier = model.ode.weights().multiplier.detach()
    thinnest = float(torch.linalg.eigvalsh(shape)[0].sqrt())
    d = distance(push.pair, metric)
    rates = [local_rates(times, starts, metric), local_rates(push.elapsed, push.pair, metric)]
    flow = model.ode.flow()
    path = Trajectory(times=times, states=starts.first, steps=torch.zeros(settings.starts, dtype=torch.int64))
    return {
        "rate": {
            "certified": rate,
            "margin": dissipation_margin(model.ode.system(), metric.matrix, multiplier, rate),
            "slowest": min(float(found.min()) for found in rates),
            "sampled": sampled_rate_along(flow, path, metric).rate,
        },
        "certified end": scale * size * math.exp(-rate * settings.horizon) / thinnest,
        "share of tube": float((d / (d[0] * torch.exp(-rate * push.elapsed)[:, None]))[1:].max()),
        "tube": {
            "shape": shape.tolist(),
            "radius": float(d[0, : settings.pushes].max()),
            "share": _rounded((d / d[0]).amax(1), 8),
        },
    }


def from_random_starts(model: MotionModel, settings: MotionSettings) -> tuple[TrajectoryPair, Tensor]:
    """Paths from random positions around the goal, each beside the one of the next row, and their times."""
    generator = torch.Generator().manual_seed(settings.seed)
    positions = torch.rand(settings.starts, 2, generator=generator, dtype=torch.float64)
    first = model.start(_BOX * (2 * positions - 1))
    times = _grid(settings.horizon)
    return simulate_pairs(model.ode.flow(), first, first.roll(1, 0), times, integrator=_ACCURATE, throw=False), times


def pushed(model: MotionModel, positions: Tensor, settings: MotionSettings) -> Push:
    """Motions from these positions, (batch, 2), each pushed in every direction at ``PUSHED``."""
    flow = model.ode.flow()
    moment = torch.tensor([0.0, PUSHED], dtype=torch.float64)
    before = simulate(flow, model.start(positions), moment).states[-1].repeat_interleave(settings.pushes, 0)
    angles = 2 * math.pi * torch.arange(settings.pushes, dtype=torch.float64) / settings.pushes
    jump = torch.zeros_like(before)
    jump[:, :2] = PUSH * torch.stack([angles.cos(), angles.sin()], -1).repeat(len(positions), 1)
    elapsed = _grid(1.5)
    return Push(
        elapsed=elapsed, pair=simulate_pairs(flow, before, before + jump, elapsed, integrator=_ACCURATE, throw=False)
    )


def tube_shape(metric: FullP) -> Tensor:
    r"""S with min over the hidden states of ‖s‖²_P = yᵀSy, (2, 2): what a ball of states is in the plane."""
    return torch.linalg.inv(torch.linalg.inv(metric.matrix)[:2, :2])


def local_rates(times: Tensor, pair: TrajectoryPair, metric: FullP) -> Tensor:
    """−Δlog‖Δs‖/Δt between every two neighbouring times, of distances that are more than rounding: (count,)."""
    d = distance(pair, metric)
    rates = -d.log().diff(dim=0) / times.diff()[:, None]
    return rates[d[1:] > _FLOOR * d[0]]


def _grid(duration: float) -> Tensor:
    return torch.linspace(0, duration, round(_MOMENTS * duration) + 1, dtype=torch.float64)


def _rounded(values: Tensor, decimals: int = 4) -> Any:
    """For the file: what a figure can show of it; what is not finite is no number there."""
    return torch.round(values, decimals=decimals).tolist()
