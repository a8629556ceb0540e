"""``counterexample``: Condition 1 holds, and yet two trajectories of the firing-rate flow diverge under one input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from contracting import (
    Certificate,
    FiringRate,
    FixedStep,
    LiftedForm,
    TimeScaledForwardBackward,
    WeightedL1,
    WeightedL2,
    WeightedLinf,
    certify,
    decay_rate,
    distance,
    fixed_input_convergence,
    report,
    simulate_pairs,
)
from contracting.certificates import (
    DiagonalMetric,
    ExplicitMetric,
    FiringRateSystem,
    InclusionSystem,
    ParabolaTest,
    VertexInequalities,
    best_forward_backward_step,
    forward_backward_system,
)
from contracting.certificates.numerical_range import boundary
from contracting.plots import plot_distance, plot_numerical_range
from contracting.simulation.counterexample import SwitchingCounterexample
from equilibrium.experiments.options import Out, Small, Threads, numbers
from equilibrium.experiments.publishing import Draw, on_axes, publish, working_in
from equilibrium.experiments.tables import Column, aligned

_PHASE = 3.63  # The exponent is largest where gain times dwell is this, whatever the gain (from its closed form).
_PERIODS = 5  # The simulation lasts so many periods of the input.
_COLUMNS = (
    Column("k", lambda record: record.gain, "g"),
    Column("m", lambda record: record.monotonicity),
    Column("1 − k/2", lambda record: record.formula),
    Column("certified"),
    Column("best P", lambda record: record.quadratic),
    Column("bound"),
    Column("exponent"),
    Column("simulated", lambda record: record.measured),
    Column("α", lambda record: record.step),
    Column("FB cert.", lambda record: record.forward_certified),
    Column("FB seen", lambda record: record.forward_measured),
)
_KINDS: dict[str, Callable[[Certificate], bool]] = {
    "ℓ∞": lambda certificate: isinstance(certificate.metric, WeightedLinf),
    "ℓ1": lambda certificate: isinstance(certificate.metric, WeightedL1),
    "diagonal": lambda certificate: certificate.method == DiagonalMetric.name,
    "explicit P": lambda certificate: certificate.method == ExplicitMetric.name,
    "parabola": lambda certificate: certificate.method.startswith(ParabolaTest.title),
    "vertices": lambda certificate: certificate.method == VertexInequalities.name,
    "degree 4": lambda certificate: isinstance(certificate.metric, LiftedForm),
}
_TRUTH = (
    Column("skewness k", lambda record: record.gain, "g"),
    *(Column(kind, lambda record, kind=kind: record.rates[kind]) for kind in _KINDS),  # type: ignore[misc]
    Column("bound"),
)
_NOTES = """
best P ≤ certified ≤ bound: rates of the firing-rate flow. best P: of the best constant quadratic metric
there is, from all vertices of the slopes (– without cvxpy); certified: in a norm of degree 4; bound: in any
norm. exponent, simulated: growth of the distance of two trajectories under one bounded periodic input. FB:
rate of the forward–backward flow with step α under the same input, certified and slowest pair seen, in t/α.
"""


def counterexample(
    gains: Annotated[str, "Values of k, separated by commas; the last is drawn."] = "1,1.9,2.01,4,10",
    threads: Threads = 1,
    out: Out = Path("out"),
    small: Small = False,
) -> None:
    """W = k[[0, 1], [−1, 0]]: Condition 1 for every k, contraction of the firing-rate flow for small k only."""
    chosen = numbers("--gains", gains, example="10", high=1e3)
    chosen = (chosen[0], chosen[-1]) if small and len(chosen) > 2 else chosen
    with working_in(out, threads=threads) as folder:
        studies = [_study(gain, 4 if small else 12) for gain in chosen]
        records = [record for record, _ in studies]
        publish(folder, _text(records), {"gains": records}, draws=_figures(records, studies[-1][1]), small=small)


@dataclass(frozen=True, kw_only=True)
class GainRecord:
    """What is proved and what is seen for one k.

    Attributes:
        gain: k.
        monotonicity: certified m of Condition 1, which is the rate of the inclusion.
        certified: certified rate of the firing-rate flow, in the best metric found.
        quadratic: the best rate of any constant quadratic metric, from all vertices; None without cvxpy.
        formula: 1 − k/2.
        rates: the best certified rate of each kind of metric; None where there is none.
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
    rates: dict[str, float | None]
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
    within = distance(diverging, rates.best.metric)[:, 0]  # where the line of the certificate holds
    fit = decay_rate(times[::2], apart[::2], skip=2 * trap.dwell, floor=1e-15)

    step = float(best_forward_backward_step(W, euclidean).step)
    system = forward_backward_system(W, step=step, hint=euclidean.weights).at_speed(1 / step)
    forward = DiagonalMetric().certify(system)
    first, second = torch.rand(2, pairs, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    integrator = FixedStep(step=min(step, trap.dwell / 4))
    flow = TimeScaledForwardBackward(step=step).bind(problem)
    together = simulate_pairs(flow, first, second, times, signal=trap.signal, integrator=integrator)
    closer = distance(together, euclidean)
    record = GainRecord(
        gain=gain,
        monotonicity=certify(InclusionSystem(W=W, hint=euclidean.weights)).rate,
        certified=rates.best.rate,
        quadratic=None if rates.quadratic is None else rates.quadratic.rate,
        formula=1 - gain / 2,
        rates={
            kind: max((found.rate for found in rates.all if belongs(found)), default=None)
            for kind, belongs in _KINDS.items()
        },
        bound=rates.bound.rate,
        exponent=trap.exponent,
        measured=-float(fit.rate),
        uncertainty=float(fit.uncertainty),
        step=step,
        forward_certified=forward.rate,
        forward_measured=float(decay_rate(times, closer).slowest.min()),
    )
    return record, _Curves(times=times, diverging=within, contracting=closer, firing=rates.best, forward=forward)


def _weight(gain: float) -> Tensor:
    return SwitchingCounterexample(gain=gain).problem.linear.to_dense()


def _text(records: list[GainRecord]) -> str:
    convergence = fixed_input_convergence(FiringRateSystem(W=_weight(records[-1].gain)))
    return "\n".join(
        [
            "W = k[[0, 1], [-1, 0]], ReLU: what Condition 1 (m > 0) does not give, and what it does",
            "",
            aligned(_COLUMNS, records),
            _NOTES,
            f"What Condition 1 does give: under any constant input, for k = {records[-1].gain:g}, the distance of the "
            "firing-rate flow to its",
            f"equilibrium stays below {convergence.overshoot:.4g}·e^(−{convergence.rate:g}t) times the first one "
            f"({convergence.method}, certified).",
            "",
            "Every certificate of the firing-rate flow beside the bound, over the skewness of I − W:",
            "",
            aligned(_TRUTH, records),
        ]
    )


def _figures(records: list[GainRecord], curves: _Curves) -> dict[str, Draw | None]:
    last = records[-1]

    def plot_both(axes: Any) -> Any:
        plot_distance(curves.times, curves.contracting, axes, evidence=curves.forward, flow="forward–backward")
        title = (
            f"k = {last.gain:g}: two firing-rate trajectories {'diverge' if last.measured > 0 else 'approach'} at "
            f"{abs(last.measured):.2f}; forward–backward contracts"
        )
        firing, bound = curves.firing, last.bound
        return plot_distance(
            curves.times, curves.diverging, axes, evidence=firing, bound=bound, flow="firing rate", title=title
        )

    some = (records[0], records[-2] if len(records) > 2 else last)  # the longest would hide the parabola
    ranges = {f"k = {record.gain:g}": boundary(_weight(record.gain)) for record in some}
    return {"two-trajectories": on_axes(plot_both), "numerical-range": on_axes(plot_numerical_range, ranges)}
