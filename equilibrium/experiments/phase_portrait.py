"""``phase-portrait``: two units in the plane, balls that shrink as certified, and the energy of the convex case."""

# no postponed annotations here: typer reads the annotations of the commands, which exist only once typer is imported

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from torch import Tensor

from contracting import checks
from contracting.activations.base import Activation
from contracting.activations.catalogue import ReLU, Tanh
from contracting.certificates import Certificate, ParabolaTest, Report, certify, report
from contracting.flows.base import BoundFlow
from contracting.flows.network import FiringRate
from contracting.flows.speed import TimeScaledForwardBackward
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.simulation.balls import CarriedBall, carry_ball
from contracting.simulation.energy import Energy
from contracting.simulation.trajectories import distance, simulate, simulate_pairs
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.splitting import ForwardBackward
from equilibrium.experiments.common import SMALL_HELP, THREADS_HELP, clean_output, draw_figures, running_with
from equilibrium.experiments.common import report as report_files
from equilibrium.files import check_film, environment, output_directory, write_animation, write_json, write_text

_SPIRAL = ((-0.3, 1.2), (-1.5, 0.1))
_SPIRAL_INPUT = (0.3, 0.5)
_SYMMETRIC = ((0.35, 0.4), (0.4, 0.55))  # I − W has eigenvalues 0.14 and 0.96, so e^{−mt} holds for all flows below
_SYMMETRIC_INPUT = (0.5, -0.6)
_STEP = 0.6
_WINDOW = (-1.1, 1.1)


class _Film(StrEnum):
    GIF = "gif"
    MP4 = "mp4"
    NONE = "none"


def command(typer: ModuleType) -> Callable[..., None]:
    """The command as a function whose parameters are the options."""
    option = typer.Option

    def phase_portrait(
        film: Annotated[_Film, option(help="Format of the film; mp4 needs ffmpeg.")] = _Film.GIF,
        threads: Annotated[int, option(help=THREADS_HELP)] = 1,
        out: Annotated[Path, option(help="Folder for figures, film, results.json and table.txt.")] = Path("out"),
        small: Annotated[bool, option("--small", help=SMALL_HELP)] = False,
    ) -> None:
        """Two units in the plane: streamlines, nullclines, shrinking certified balls, an energy and its descent."""
        if film is not _Film.NONE:
            check_film(f"film.{film.value}")
        with running_with(checks.whole_number("--threads", threads)), clean_output(out) as folder:
            _run(film, folder, small)

    return phase_portrait


def _problem(weight: tuple[tuple[float, ...], ...], q: tuple[float, ...], activation: Activation) -> EquilibriumProblem:
    W = torch.tensor(weight, dtype=torch.float64)
    return EquilibriumProblem(
        linear=Dense(W),
        q=torch.tensor([q], dtype=torch.float64),
        activation=activation,
        metric=WeightedL2.identity(2, dtype=torch.float64),
    )


def _equilibrium(problem: EquilibriumProblem) -> Tensor:
    return solve(problem, SemismoothNewton(), stop=Stop(rtol=1e-13)).z[0]


def _run(film: _Film, folder: Path, small: bool) -> None:
    flow = FiringRate().bind(_problem(_SPIRAL, _SPIRAL_INPUT, Tanh()))
    rates, certificate = report(flow), certify(flow, ParabolaTest(optimise=25))
    times = torch.linspace(0, 5, 51 if small else 251, dtype=torch.float64)
    ball = _ball(flow, certificate, times, 40 if small else 120)
    pairs = _pairs(flow, certificate, times, 8 if small else 40)
    energy = _Descent()
    descent = energy.measured(times=torch.linspace(0, 12, 61, dtype=torch.float64))
    late = times >= 1
    fills = float((ball.reached / ball.radius)[late].amax())
    slowest = float((pairs / pairs[0] * torch.exp(certificate.rate * times)[:, None])[late].amax())
    text = "\n".join(
        [
            str(rates),
            "",
            f"drawn: {certificate}",
            f"the image of the ball reaches at most {fills:.4f} of the radius of its certified ball, for t ≥ 1",
            f"slowest of {pairs.shape[1]} pairs: a distance of at most {slowest:.4f} of the certified one, for t ≥ 1",
            "",
            f"convex case: m = {energy.energy.strong_convexity:.4f}, L = {energy.energy.smoothness:.4f}; "
            "largest E(t) − E* relative to its bound e^(−mt):",
            *(f"  {name}: {worst:.4f}" for name, worst in energy.against_bound(descent).items()),
        ]
    )
    print(text, flush=True)
    results = {"environment": environment(), "certificates": _rates(rates), "drawn": certificate.rate, "fills": fills}
    written = [write_json(folder / "results.json", results), write_text(folder / "table.txt", text + "\n")]
    figures = draw_figures(
        folder, _figures(flow, rates, certificate, ball, times, pairs, energy, descent), small=small,
        tall=("phase-portrait", "energy"),
    )  # fmt: skip
    if film is not _Film.NONE:
        figures.append(_film(folder, film, flow, ball, 6 if small else 50))
    report_files(written, figures)


def _rates(rates: Report) -> dict[str, float]:
    named = {f"{c.method} in {type(c.metric).__name__}": c.rate for c in rates.all}
    return named | {f"upper bound, {rates.bound.method}": rates.bound.rate}


def _ball(flow: BoundFlow, certificate: Certificate, times: Tensor, points: int) -> CarriedBall:
    unit = float(certificate.metric.norm(torch.tensor([1.0, 0.0], dtype=torch.float64)))
    centre = torch.tensor([-0.65, -0.65], dtype=torch.float64)
    return carry_ball(
        flow, centre, 0.3 * unit, times, evidence=certificate, points=points
    )


def _pairs(flow: BoundFlow, certificate: Certificate, times: Tensor, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    first, second = 2 * torch.rand(2, count, 2, dtype=torch.float64, generator=generator) - 1
    return distance(simulate_pairs(flow, first, second, times), certificate.metric)


class _Descent:
    """The convex case: a problem with its energy, and what goes down it."""

    def __init__(self) -> None:
        self.problem = _problem(_SYMMETRIC, _SYMMETRIC_INPUT, ReLU())
        self.energy = Energy(self.problem)
        self.z = _equilibrium(self.problem)
        self.start = torch.tensor([0.3, 1.4], dtype=torch.float64)
        self.path = torch.empty(0)
        self.iterates = self._iterate(21)

    def _iterate(self, count: int) -> Tensor:
        iteration, z = ForwardBackward(step=_STEP).bind(self.problem, Stop()), self.start[None]
        kept, state = [z], iteration.init(z)
        for _ in range(count - 1):
            state = iteration.step(state)
            kept.append(iteration.read(state))
        return torch.cat(kept)

    def measured(self, times: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """E − E* along two flows and the iteration, against time."""
        lowest, found = self.energy(self.z[None]), {}
        for name, flow in (
            ("firing rate", FiringRate()),
            ("forward–backward flow", TimeScaledForwardBackward(step=0.1)),
        ):
            states = simulate(flow.bind(self.problem), self.start[None], times).states[:, 0]
            found[name] = (times, self.energy(states) - lowest)
            self.path = states if name == "firing rate" else self.path
        clock = _STEP * torch.arange(len(self.iterates), dtype=torch.float64)
        found[self.iteration_name] = (clock, self.energy(self.iterates) - lowest)
        return found

    @property
    def iteration_name(self) -> str:
        """For the legend."""
        return f"iteration, α = {_STEP:g}"

    def against_bound(self, measured: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The largest ratio of E − E* to its certified bound, after the start."""
        m = self.energy.strong_convexity
        return {
            name: float((gap / gap[0] * torch.exp(m * times))[1:].amax()) for name, (times, gap) in measured.items()
        }


def _figures(
    flow: BoundFlow,
    rates: Report,
    certificate: Certificate,
    ball: CarriedBall,
    times: Tensor,
    pairs: Tensor,
    descent: _Descent,
    gaps: dict[str, tuple[Tensor, Tensor]],
) -> dict[str, Any]:
    from contracting.plots import plot_distance, plot_energy_contours, plot_energy_descent, plot_phase_portrait

    starts = torch.tensor([[0.9, 0.9], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    z, paths = _equilibrium(flow.problem), simulate(flow, starts, times).states
    iterations = {name: gap for name, gap in gaps.items() if name == descent.iteration_name}
    flows = {name: gap for name, gap in gaps.items() if name not in iterations}
    return {
        "phase-portrait": lambda axes: plot_phase_portrait(
            flow, axes, x=_WINDOW, y=_WINDOW, equilibrium=z, trajectories=paths, ball=ball
        ),
        "distance": lambda axes: plot_distance(
            times, pairs, axes, evidence=certificate, bound=rates.bound.rate
        ),
        "energy": lambda axes: plot_energy_contours(
            descent.energy, axes, x=(-0.2, 1.6), y=(-0.4, 1.6), equilibrium=descent.z, flow=descent.path,
            iterates=descent.iterates[:12], step=_STEP,
        ),
        "energy-descent": lambda axes: plot_energy_descent(
            flows, axes, energy=descent.energy, iterations=iterations
        ),
    }  # fmt: skip


def _film(folder: Path, kind: _Film, flow: BoundFlow, ball: CarriedBall, frames: int) -> Path:
    from contracting.plots import animate_phase_portrait

    animation = animate_phase_portrait(flow, ball, x=_WINDOW, y=_WINDOW, frames=frames)
    below = output_directory(folder / "figures")
    return write_animation(below / f"phase-portrait.{kind.value}", animation)
