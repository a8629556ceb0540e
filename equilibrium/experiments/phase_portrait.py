"""``phase-portrait``: two units in the plane, balls that shrink as certified, and the energy of the convex case."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from contracting import (
    Activation,
    Dense,
    Energy,
    EquilibriumProblem,
    FiringRate,
    Flow,
    ForwardBackward,
    ReLU,
    SemismoothNewton,
    Stop,
    Tanh,
    TimeScaledForwardBackward,
    Trace,
    WeightedL2,
    carry_ball,
    certify,
    report,
    simulate,
    solve,
)
from contracting.certificates import ParabolaTest
from contracting.plots import (
    animate_phase_portrait,
    plot_energy_contours,
    plot_energy_descent,
    plot_phase_portrait,
)
from equilibrium.experiments.options import Out, Small, Threads
from equilibrium.experiments.publishing import SQUARE, on_axes, publish, working_in
from equilibrium.files import check_film

_SPIRAL = ((-0.3, 1.2), (-1.5, 0.1))
_SPIRAL_INPUT = (0.3, 0.5)
_SYMMETRIC = ((0.35, 0.4), (0.4, 0.55))  # I − W has eigenvalues 0.14 and 0.96, so e^{−mt} holds for all flows below
_SYMMETRIC_INPUT = (0.5, -0.6)
_START = (0.3, 1.4)  # of the flows and of the iteration that descend the energy
_STEP = 0.6  # The iteration z ← prox(z − α∇E) is drawn with this α.
_WINDOW = (-1.1, 1.1)


class _Film(StrEnum):
    GIF = "gif"
    MP4 = "mp4"
    NONE = "none"


def phase_portrait(
    film: Annotated[_Film, "Format of the film; mp4 needs ffmpeg."] = _Film.GIF,
    threads: Threads = 1,
    out: Out = Path("out"),
    small: Small = False,
) -> None:
    """Two units in the plane: streamlines, nullclines, shrinking certified balls, an energy and its descent."""
    films = [] if film is _Film.NONE else [f"phase-portrait.{film}"]
    for name in films:
        check_film(name)
    with working_in(out, threads=threads) as folder:
        flow = FiringRate().bind(_problem(_SPIRAL, _SPIRAL_INPUT, Tanh()))
        rates, certificate = report(flow), certify(flow, ParabolaTest())
        times = torch.linspace(0, 5, 51 if small else 251, dtype=torch.float64)
        radius = 0.3 * float(certificate.metric.norm(torch.tensor([1.0, 0.0], dtype=torch.float64)))
        centre = torch.full((2,), -0.65, dtype=torch.float64)
        ball = carry_ball(flow, centre, radius, times, evidence=certificate, points=40 if small else 120)
        starts = torch.tensor([[0.9, 0.9], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
        portrait = on_axes(
            plot_phase_portrait,
            flow,
            heights=SQUARE,
            equilibrium=_equilibrium(flow.problem),
            trajectories=simulate(flow, starts, times).states,
            ball=ball,
            x=_WINDOW,
            y=_WINDOW,
        )
        descent = _Descent()
        fills = float((ball.reached / ball.radius)[times >= 1].amax())
        text = "\n".join(
            [
                str(rates),
                "",
                f"drawn: {certificate}",
                f"the image of the ball reaches at most {fills:.4f} of the radius of its certified ball, for t ≥ 1",
                "",
                *descent.lines(),
            ]
        )
        certified = {f"{c.method} in {type(c.metric).__name__}": c.rate for c in rates.all}
        certified[f"upper bound, {rates.bound.method}"] = rates.bound.rate
        moving = partial(animate_phase_portrait, flow, ball, x=_WINDOW, y=_WINDOW, frames=6 if small else 50)
        publish(
            folder,
            text,
            {"certificates": certified, "drawn": certificate.rate, "fills": fills},
            draws={
                "phase-portrait": portrait,
                "energy": on_axes(
                    plot_energy_contours,
                    descent.energy,
                    heights=SQUARE,
                    x=(-0.2, 1.6),
                    y=(-0.4, 1.6),
                    equilibrium=descent.z,
                    flow=descent.path,
                    iterates=descent.iterates[:12],
                    step=_STEP,
                ),
                "energy-descent": on_axes(
                    plot_energy_descent, descent.flows, energy=descent.energy, iterations=descent.iterations
                ),
            },
            films=dict.fromkeys(films, moving),
            small=small,
        )


def _problem(weight: tuple[tuple[float, ...], ...], q: tuple[float, ...], activation: Activation) -> EquilibriumProblem:
    return EquilibriumProblem(
        linear=Dense(torch.tensor(weight, dtype=torch.float64)),
        q=torch.tensor([q], dtype=torch.float64),
        activation=activation,
        metric=WeightedL2.identity(2, dtype=torch.float64),
    )


def _equilibrium(problem: EquilibriumProblem) -> Tensor:
    return solve(problem, SemismoothNewton(), stop=Stop(rtol=1e-13)).z[0]


class _Descent:
    """The convex case: a problem with its energy, and what goes down it.

    ``flows`` and ``iterations`` are E − E* against time, by name for the legend.
    """

    def __init__(self) -> None:
        problem = _problem(_SYMMETRIC, _SYMMETRIC_INPUT, ReLU())
        self.energy, self.z = Energy(problem), _equilibrium(problem)
        lowest = self.energy(self.z[None])
        start = torch.tensor([_START], dtype=torch.float64)
        times = torch.linspace(0, 12, 61, dtype=torch.float64)
        settings: dict[str, Flow] = {
            "firing rate": FiringRate(),
            "forward–backward flow": TimeScaledForwardBackward(step=0.1),
        }
        paths = {name: simulate(flow.bind(problem), start, times).states[:, 0] for name, flow in settings.items()}
        self.path = paths["firing rate"]
        self.flows = {name: (times, self.energy(path) - lowest) for name, path in paths.items()}
        trace = Trace(keep_z=True)
        stop = Stop(rtol=0.0, atol=0.0, max_steps=20, check_every=1)
        solve(problem, ForwardBackward(step=_STEP), stop=stop, z0=start, trace=trace, throw=False)
        self.iterates = trace.z[:, 0]
        clock = _STEP * torch.arange(len(self.iterates), dtype=torch.float64)
        self.iterations = {f"iteration, α = {_STEP:g}": (clock, self.energy(self.iterates) - lowest)}

    def lines(self) -> list[str]:
        """The largest ratio of E − E* to its certified bound, after the start."""
        m = self.energy.strong_convexity
        ratios = {
            name: float((gap / gap[0] * torch.exp(m * times))[1:].amax())
            for name, (times, gap) in (self.flows | self.iterations).items()
        }
        return [
            f"convex case: m = {m:.4f}, L = {self.energy.smoothness:.4f}; "
            "largest E(t) − E* relative to its bound e^(−mt):",
            *(f"  {name}: {ratio:.4f}" for name, ratio in ratios.items()),
        ]
