"""``counterexample``: Condition 1 holds, and yet two trajectories of the firing-rate flow diverge under one input."""

# no postponed annotations here: typer reads the annotations of the commands, which exist only once typer is imported

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates import (
    Certificate,
    DiagonalMetric,
    FiringRateSystem,
    InclusionSystem,
    best_forward_backward_step,
    certify,
    fixed_input_convergence,
    forward_backward_system,
    report,
)
from contracting.certificates.numerical_range import boundary
from contracting.flows.network import FiringRate
from contracting.flows.speed import TimeScaledForwardBackward
from contracting.metrics import WeightedL2
from contracting.simulation.counterexample import SwitchingCounterexample
from contracting.simulation.decay import decay_rate
from contracting.simulation.time_steps import FixedStep
from contracting.simulation.trajectories import distance, simulate_pairs
from equilibrium.experiments.common import (
    SMALL_HELP,
    THREADS_HELP,
    aligned,
    clean_output,
    draw_figures,
    number,
    running_with,
)
from equilibrium.experiments.common import report as report_files
from equilibrium.experiments.lists import numbers
from equilibrium.files import environment, write_json, write_text

_PHASE = 3.63  # gain times dwell with the largest exponent, whatever the gain
_PERIODS = 5


def command(typer: ModuleType) -> Callable[..., None]:
    """The command as a function whose parameters are the options."""
    option = typer.Option

    def counterexample(
        gains: Annotated[str, option(help="Values of k, separated by commas; the last is drawn.")] = "1,1.9,2.01,4,10",
        threads: Annotated[int, option(help=THREADS_HELP)] = 1,
        out: Annotated[Path, option(help="Folder for figures, results.json and table.txt.")] = Path("out"),
        small: Annotated[bool, option("--small", help=SMALL_HELP)] = False,
    ) -> None:
        """W = k[[0, 1], [−1, 0]]: Condition 1 for every k, contraction of the firing-rate flow for k < 2 only."""
        chosen = numbers("--gains", gains, example="10", high=1e3)
        chosen = (chosen[0], chosen[-1]) if small and len(chosen) > 2 else chosen
        with running_with(checks.whole_number("--threads", threads)), clean_output(out) as folder:
            _run(chosen, folder, small)

    return counterexample


@dataclass(frozen=True, kw_only=True)
class GainRecord:
    """What is proved and what is seen for one k.

    Attributes:
        gain: k.
        monotonicity: certified m of Condition 1, which is the rate of the inclusion.
        certified: certified rate of the firing-rate flow, in the best metric found.
        quadratic: the best rate of any constant quadratic metric, from all vertices; None without cvxpy.
        formula: 1 − k/2.
        bound: upper bound on the rate in any norm.
        exponent: growth exponent of the diverging pair in closed form; negative where it decays.
        measured: the same from a simulation.
        uncertainty: standard error of ``measured``.
        step: α of the forward–backward flow.
        forward_certified: its certified rate, in time t/α.
        forward_measured: the slowest decay of pairs under the same input, in time t/α.
    """

    gain: float
    monotonicity: float
    certified: float
    quadratic: float | None
    formula: float
    bound: float
    exponent: float
    measured: float
    uncertainty: float
    step: float
    forward_certified: float
    forward_measured: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Curves:
    times: Tensor
    diverging: Tensor
    contracting: Tensor
    firing: Certificate
    forward: Certificate


def _study(gain: float, pairs: int) -> tuple[GainRecord, _Curves]:
    trap = SwitchingCounterexample(gain=gain, dwell=_PHASE / gain)
    problem, euclidean = trap.problem, WeightedL2.identity(2, dtype=torch.float64)
    W = problem.linear.to_dense()
    rates = report(FiringRateSystem(W=W, hint=euclidean.weights))
    times = trap.times(2 * _PERIODS)
    start = trap.reference(times[:1])
    # smaller than V/k, so that the difference does not change who is active
    offset = torch.tensor([[1e-9 if trap.exponent > 0 else 1e-3, 0.0]], dtype=torch.float64)
    integrator = FixedStep(step=trap.dwell / max(24, round(12 * trap.dwell)))
    diverging = simulate_pairs(
        FiringRate().bind(problem), start, start + offset, times, signal=trap.signal, integrator=integrator
    )
    apart = distance(diverging, euclidean)[:, 0]
    fit = decay_rate(times[::2], apart[::2], skip=2 * trap.dwell, floor=1e-15)

    step = float(best_forward_backward_step(W, euclidean).step)
    system = forward_backward_system(W, step=step, hint=euclidean.weights).at_speed(1 / step)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, pairs, 2, dtype=torch.float64, generator=generator)
    together = simulate_pairs(
        TimeScaledForwardBackward(step=step).bind(problem), first, second, times, signal=trap.signal,
        integrator=FixedStep(step=min(step, trap.dwell / 4)),
    )  # fmt: skip
    closer = distance(together, euclidean)
    forward = DiagonalMetric().certify(system)
    record = GainRecord(
        gain=gain,
        monotonicity=certify(InclusionSystem(W=W, hint=euclidean.weights)).rate,
        certified=rates.best.rate,
        quadratic=None if rates.quadratic is None else rates.quadratic.rate,
        formula=1 - gain / 2,
        bound=rates.bound.rate,
        exponent=trap.exponent,
        measured=-float(fit.rate),
        uncertainty=float(fit.uncertainty),
        step=step,
        forward_certified=forward.rate,
        forward_measured=float(decay_rate(times, closer).slowest.min()),
    )
    return record, _Curves(times=times, diverging=apart, contracting=closer, firing=rates.best, forward=forward)


def _run(gains: tuple[float, ...], folder: Path, small: bool) -> None:
    studies = [_study(gain, 4 if small else 12) for gain in gains]
    records = [record for record, _ in studies]
    text = "\n".join(_table(records))
    print(text, flush=True)
    written = [
        write_json(folder / "results.json", {"environment": environment(), "gains": records}),
        write_text(folder / "table.txt", text + "\n"),
    ]
    figures = draw_figures(folder, _figures(records, *studies[-1]), small=small)
    report_files(written, figures)


_COLUMNS = ("k", "m", "1 − k/2", "certified", "best P", "bound", "exponent", "simulated", "α", "FB cert.", "FB seen")


def _table(records: list[GainRecord]) -> list[str]:
    convergence = fixed_input_convergence(FiringRateSystem(W=_weight(records[-1].gain)))
    rows = [
        (
            f"{r.gain:g}",
            number(r.monotonicity),
            number(r.formula),
            number(r.certified),
            number(r.quadratic),
            number(r.bound),
            number(r.exponent),
            number(r.measured),
            number(r.step),
            number(r.forward_certified),
            number(r.forward_measured),
        )
        for r in records
    ]
    return [
        "W = k[[0, 1], [-1, 0]], ReLU: what Condition 1 (m > 0) does not give, and what it does",
        "",
        *aligned(_COLUMNS, rows),
        "",
        "certified ≤ best P ≤ bound: rates of the firing-rate flow. best P: of the best constant quadratic metric",
        "there is, from all vertices of the slopes (– without cvxpy); bound: in any norm. exponent, simulated: growth",
        "of the distance of two trajectories under one bounded periodic input. FB: rate of the forward–backward flow",
        "with step α under the same input, certified and slowest pair seen, in time t/α.",
        "",
        f"What Condition 1 does give: under any constant input, for k = {records[-1].gain:g}, the distance of the "
        "firing-rate flow to its",
        f"equilibrium stays below {convergence.overshoot:.4g}·e^(−{convergence.rate:g}t) times the first one "
        f"({convergence.method}, certified).",
    ]


def _figures(records: list[GainRecord], last: GainRecord, curves: _Curves) -> dict[str, Any]:
    from contracting.plots import plot_distance, plot_numerical_range

    def diverging(axes: Any) -> Any:
        plot_distance(curves.times, curves.contracting, axes, evidence=curves.forward, flow="forward–backward")
        grows = last.measured > 0
        return plot_distance(
            curves.times, curves.diverging, axes, evidence=curves.firing, bound=last.bound, flow="firing rate",
            title=f"k = {last.gain:g}: two firing-rate trajectories {'diverge' if grows else 'approach'} at "
            f"{abs(last.measured):.2f}; forward–backward contracts",
        )  # fmt: skip

    some = (records[0], records[-2] if len(records) > 2 else records[-1])  # the longest would hide the parabola
    ends = {f"k = {r.gain:g}": boundary(_weight(r.gain)) for r in some}
    return {"two-trajectories": diverging, "numerical-range": lambda axes: plot_numerical_range(ends, axes)}


def _weight(gain: float) -> Tensor:
    return SwitchingCounterexample(gain=gain).problem.linear.to_dense()
