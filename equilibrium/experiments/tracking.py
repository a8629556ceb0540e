"""``tracking``: how closely contracting flows follow the equilibrium of a moving input, beside the bound."""

# no postponed annotations here: typer reads the annotations of the commands, which exist only once typer is imported

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from torch import Tensor

from contracting import checks
from contracting.activations.catalogue import Identity
from contracting.certificates import Certificate, best_forward_backward_step, certify
from contracting.errors import PreconditionError
from contracting.flows.base import BoundFlow, Flow
from contracting.flows.network import FiringRate
from contracting.flows.splitting import ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.simulation.time_steps import AdaptiveStep
from contracting.simulation.tracking import Tracking, track
from equilibrium.experiments.common import (
    SMALL_HELP,
    THREADS_HELP,
    aligned,
    clean_output,
    draw_figures,
    number,
    report,
    running_with,
)
from equilibrium.experiments.lists import numbers
from equilibrium.files import environment, write_json, write_text
from equilibrium.layers import LBEN

_RADIUS = 2.0  # of the circle on which the input moves
_SETTLED = 0.5  # share of the time after which the start is forgotten


def command(typer: ModuleType) -> Callable[..., None]:
    """The command as a function whose parameters are the options."""
    option = typer.Option

    def tracking(
        hidden: Annotated[int | None, option(help="Neurons (default 20).")] = None,
        rate: Annotated[float, option(help="Contraction rate built into the weights.")] = 0.5,
        frequencies: Annotated[str, option(help="Angular frequencies of the input, the last is drawn.")] = "0.1,0.3,1",
        seed: Annotated[int, option(help="Of the weights.")] = 0,
        threads: Annotated[int, option(help=THREADS_HELP)] = 1,
        out: Annotated[Path, option(help="Folder for figures, results.json and table.txt.")] = Path("out"),
        small: Annotated[bool, option("--small", help=SMALL_HELP)] = False,
    ) -> None:
        """Move the input of a contracting network in a circle and compare the tracking error with its bound."""
        chosen = numbers("--frequencies", frequencies, example="0.3", high=100)
        hidden = checks.whole_number("--hidden", (6 if small else 20) if hidden is None else hidden)
        checks.number("--rate", rate, low=0, low_open=True, high=1, high_open=True)
        checks.seed("--seed", seed)
        with running_with(checks.whole_number("--threads", threads)), clean_output(out) as folder:
            _run(hidden, rate, chosen[-1:] if small else chosen, seed, folder, small)

    return tracking


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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Case:
    flow: BoundFlow
    name: str
    certificate: Certificate


def _layer(hidden: int, rate: float, seed: int) -> LBEN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = LBEN(2, hidden, 2, contraction_rate=rate, epsilon=0.1, dtype=torch.float64)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(torch.randn_like(parameter) / math.sqrt(hidden))
    return layer.requires_grad_(False)


def _run(hidden: int, rate: float, frequencies: Sequence[float], seed: int, folder: Path, small: bool) -> None:
    layer = _layer(hidden, rate, seed)
    records, drawn, cases = [_ramp(0.5, 0.3)], {}, _cases(layer)
    for frequency in frequencies:
        for case in cases:
            record, tracked = _follow(layer, case, frequency, 40 if small else 200)
            records.append(record)
            drawn[case.name] = tracked
    text = "\n".join(_table(hidden, records))
    print(text, flush=True)
    written = [
        write_json(folder / "results.json", {"environment": environment(), "tracking": records}),
        write_text(folder / "table.txt", text + "\n"),
    ]
    report(written, draw_figures(folder, _figures(drawn), small=small))


def _cases(layer: LBEN) -> list[_Case]:
    weights = layer.weights()
    metric = weights.metric
    if not isinstance(metric, WeightedL2):
        raise PreconditionError("this layer claims no diagonal metric")
    W = weights.state.to_dense()
    flows: dict[str, Flow] = {
        "firing rate": FiringRate(),
        "forward–backward": ForwardBackwardFlow(step=best_forward_backward_step(W, metric).step),
        "Peaceman–Rachford": PeacemanRachfordFlow(),
    }
    cases = []
    for name, settings in flows.items():
        flow = layer.flow(settings)
        cases.append(_Case(flow=flow, name=name, certificate=certify(flow)))
    return cases


def _follow(layer: LBEN, case: _Case, frequency: float, points: int) -> tuple[TrackingRecord, Tracking]:
    weights = layer.weights()
    U, b = weights.input, weights.bias

    def signal(t: Tensor) -> Tensor:
        t = t.reshape(-1)
        return _RADIUS * torch.stack([torch.cos(frequency * t), torch.sin(frequency * t)], -1) @ U.mT + b

    # two turns, at least as long as the start takes to be forgotten
    duration = max(4 * math.pi / frequency, 10 / case.certificate.rate)
    times = torch.linspace(0, duration, points + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    start = case.flow.init(torch.rand(3, layer.hidden_features, dtype=torch.float64, generator=generator))
    result = track(
        case.flow, signal, times, start=start, evidence=case.certificate, integrator=AdaptiveStep(rtol=1e-6),
    )  # fmt: skip
    late = times >= _SETTLED * duration
    record = TrackingRecord(
        flow=case.name,
        input=f"circle, ω = {frequency:g}",
        rate=case.certificate.rate,
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


def _table(hidden: int, records: Sequence[TrackingRecord]) -> list[str]:
    columns = ("flow", "input", "rate", "speed", "error", "bound", "error/bound")
    rows = [
        (
            r.flow, r.input, number(r.rate), number(r.speed, ".4g"), number(r.error, ".4g"), number(r.bound, ".4g"),
            number(r.error / r.bound),
        )
        for r in records
    ]  # fmt: skip
    return [
        f"An LBEN of {hidden} units follows the equilibrium of a moving input",
        "",
        *aligned(columns, rows, left=2),
        "",
        "rate: certified contraction rate; speed: largest speed of the equilibrium between two times; error: largest",
        "distance to it in the second half of the time, from three starts; bound: speed/rate once the start is",
        "forgotten. Each row is in the norm of its own certificate. The linear unit attains the bound.",
    ]


def _figures(drawn: dict[str, Tracking]) -> dict[str, Any]:
    from contracting.plots import plot_tracking

    return {
        f"tracking-{name.replace('–', '-').replace(' ', '-')}": partial(plot_tracking, tracked)
        for name, tracked in drawn.items()
    }
