"""``tracking``: how closely contracting flows follow the equilibrium of a moving input, beside the bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from contracting import (
    AdaptiveStep,
    Certificate,
    Dense,
    EquilibriumProblem,
    FiringRate,
    Flow,
    ForwardBackwardFlow,
    Identity,
    PeacemanRachfordFlow,
    Tracking,
    WeightedL2,
    certify,
    checks,
    track,
)
from contracting.certificates import best_forward_backward_step
from contracting.plots import plot_tracking
from equilibrium import LBEN
from equilibrium.experiments.networks import seeded
from equilibrium.experiments.options import Out, Small, Threads, numbers
from equilibrium.experiments.publishing import on_axes, publish, working_in
from equilibrium.experiments.tables import Column, aligned

_RADIUS = 2.0  # The input moves on a circle of this radius, in units of the input.
_SETTLED = 0.5  # Errors count after this share of the time, when the start is forgotten.
_COLUMNS = (
    Column("flow"),
    Column("input"),
    Column("rate"),
    Column("speed", form=".4g"),
    Column("error", form=".4g"),
    Column("bound", form=".4g"),
    Column("error/bound", lambda record: record.error / record.bound),
)
_NOTES = """
rate: certified contraction rate; speed: largest speed of the equilibrium between two times; error: largest
distance to it in the second half of the time, from three starts; bound: speed/rate once the start is
forgotten. Each row is in the norm of its own certificate. The linear unit attains the bound."""


def tracking(
    hidden: Annotated[int | None, "Neurons (default 20)."] = None,
    rate: Annotated[float, "Contraction rate built into the weights."] = 0.5,
    frequencies: Annotated[str, "Angular frequencies of the input, the last is drawn."] = "0.1,0.3,1",
    seed: Annotated[int, "Of the weights."] = 0,
    threads: Threads = 1,
    out: Out = Path("out"),
    small: Small = False,
) -> None:
    """Move the input of a contracting network in a circle and compare the tracking error with its bound."""
    chosen = numbers("--frequencies", frequencies, example="0.3", high=100)
    hidden = checks.whole_number("--hidden", (6 if small else 20) if hidden is None else hidden)
    checks.number("--rate", rate, low=0, low_open=True, high=1, high_open=True)
    with working_in(out, threads=threads) as folder:
        layer = _layer(hidden, rate, seed)
        records, draws = [_ramp(0.5, 0.3)], {}
        for frequency in chosen[-1:] if small else chosen:
            for name, settings in _flows(layer).items():
                record, tracked = _follow(layer, name, settings, frequency, 40 if small else 200)
                records.append(record)
                draws[f"tracking-{name.replace('–', '-').replace(' ', '-')}"] = on_axes(plot_tracking, tracked)
        title = f"An LBEN of {hidden} units follows the equilibrium of a moving input"
        text = f"{title}\n\n{aligned(_COLUMNS, records)}\n{_NOTES}"
        publish(folder, text, {"tracking": records}, draws=draws, small=small)


@dataclass(frozen=True, kw_only=True)
class TrackingRecord:
    """One flow under one moving input.

    Attributes:
        flow: its name.
        input: the motion.
        rate: certified contraction rate.
        speed: largest ‖ds*/dt‖ between two times, in the norm of the certificate; for the ramp known exactly.
        error: largest distance to the moving equilibrium after the start is forgotten, over all starts.
        bound: its bound for that speed.
    """

    flow: str
    input: str
    rate: float
    speed: float
    error: float
    bound: float


def _layer(hidden: int, rate: float, seed: int) -> LBEN:
    with seeded(seed), torch.no_grad():
        layer = LBEN(2, hidden, 2, contraction_rate=rate, dtype=torch.float64)
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) / math.sqrt(hidden))
    return layer.requires_grad_(False)


def _flows(layer: LBEN) -> dict[str, Flow]:
    weights = layer.weights()
    assert weights.metric is not None  # which every LBEN has
    step = best_forward_backward_step(weights.state.to_dense(), weights.metric).step
    return {
        "firing rate": FiringRate(),
        "forward–backward": ForwardBackwardFlow(step=step),
        "Peaceman–Rachford": PeacemanRachfordFlow(),
    }


def _follow(
    layer: LBEN, name: str, settings: Flow, frequency: float, points: int
) -> tuple[TrackingRecord, Tracking]:
    weights, flow = layer.weights(), layer.flow(settings)
    certificate: Certificate = certify(flow)

    def signal(t: Tensor) -> Tensor:
        angle = frequency * t.reshape(-1)
        return _RADIUS * torch.stack([torch.cos(angle), torch.sin(angle)], -1) @ weights.input.mT + weights.bias

    # two turns, at least as long as the start takes to be forgotten
    duration = max(4 * math.pi / frequency, 10 / certificate.rate)
    times = torch.linspace(0, duration, points + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    start = flow.init(torch.rand(3, layer.hidden_features, dtype=torch.float64, generator=generator))
    result = track(flow, signal, times, start=start, evidence=certificate, integrator=AdaptiveStep(rtol=1e-6))
    late = times >= _SETTLED * duration
    record = TrackingRecord(
        flow=name,
        input=f"circle, ω = {frequency:g}",
        rate=certificate.rate,
        speed=float(result.speed.max()),
        error=float(result.error[late].max()),
        bound=float(result.bound[late].max()),
    )
    return record, result


def _ramp(c: float, v: float) -> TrackingRecord:
    """s' = −cs + vt, whose lag v/c² attains the bound: what the bound is worth."""
    problem = EquilibriumProblem(
        linear=Dense(torch.full((1, 1), 1 - c, dtype=torch.float64)),
        q=torch.zeros(1, 1, dtype=torch.float64),
        activation=Identity(),
        metric=WeightedL2.identity(1, dtype=torch.float64),
    )
    times = torch.linspace(0, 20 / c, 41, dtype=torch.float64)
    result = track(FiringRate().bind(problem), lambda t: (v * t).reshape(-1, 1), times, speed=v / c)
    return TrackingRecord(
        flow="one linear unit",
        input=f"ramp, slope {v:g}",
        rate=c,
        speed=v / c,
        error=float(result.error[-1, 0]),
        bound=float(result.bound[-1, 0]),
    )
