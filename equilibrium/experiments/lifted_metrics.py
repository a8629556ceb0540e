"""``lifted-metrics``: rates past the best quadratic metric by forms of higher degree, beside what no norm exceeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from contracting import Certificate, LiftedInequality, certify, checks
from contracting.certificates import (
    FiringRateSystem,
    HopfieldSystem,
    UpperBound,
    VertexInequalities,
    upper_bound,
)
from contracting.plots import plot_shrinking_balls
from contracting.simulation.counterexample import SwitchingCounterexample
from equilibrium.experiments.options import Out, Small, Threads, numbers
from equilibrium.experiments.publishing import SQUARE, Draw, on_axes, publish, working_in
from equilibrium.experiments.tables import Column, aligned

_DEGREES = (1, 2, 3, 4)
_ROUGH = 1e-3  # Random systems are certified to so much of the largest norm of a Jacobian, which halves their time.
_SHARE_OF_THREE = 5  # Every so manyth random system has three units in place of two.
_DRAWN_GAIN, _DRAWN_TIME = 2.5, 3.0  # The balls of this k are drawn until then, in time constants of the flow.
_NOTES = """
d: certified rate of the firing-rate flow in a form of degree 2d, d = 1 being the best quadratic metric; r: with the
relations between monomials, among norms only; C: by how much a Euclidean distance may exceed e^(−ct) times its first
value, in the last of these norms; bound: on the rate in any norm, proved by switching slopes."""


def lifted_metrics(
    gains: Annotated[str, "Values of k, separated by commas."] = "1.9,2.01,2.5,2.8,4",
    systems: Annotated[int | None, "Random systems of two or three units (default 500)."] = None,
    threads: Threads = 1,
    out: Out = Path("out"),
    small: Small = False,
) -> None:
    """Norms that are roots of forms of degree 2d: what they prove of W = k[[0, 1], [−1, 0]] and of random systems."""
    chosen = numbers("--gains", gains, example="2.5", high=1e3)
    systems = checks.whole_number("--systems", (3 if small else 500) if systems is None else systems)
    with working_in(out, threads=threads) as folder:
        records = [_of_gain(gain) for gain in (chosen[:2] if small else chosen)]
        text = f"W = k[[0, 1], [-1, 0]]\n\n{aligned(_columns(), records)}\n{_NOTES}\n"
        print(text, flush=True)
        compared = Compared.of([_compare(seed) for seed in range(systems)])
        results = {"gains": records, "random": compared}
        publish(folder, f"{compared}\n", results, draws={"shrinking-balls": _balls()}, small=small)


@dataclass(frozen=True, kw_only=True)
class GainRecord:
    """What is proved for one k.

    Attributes:
        gain: k.
        plain: the best rate by forms of degree 2, 4, 6 and 8 without relations.
        related: the same by norms with relations, degrees 4, 6 and 8.
        overshoot: of the last of them in Euclidean distance.
        bound: on the rate in any norm.
    """

    gain: float
    plain: tuple[float, ...]
    related: tuple[float, ...]
    overshoot: float
    bound: float


def _of_gain(gain: float) -> GainRecord:
    system = FiringRateSystem(W=SwitchingCounterexample(gain=gain).problem.linear.to_dense())
    plain = [certify(system, LiftedInequality(degree=d, relations=False, norm=False)) for d in _DEGREES]
    related = [certify(system, LiftedInequality(degree=d)) for d in _DEGREES[1:]]
    return GainRecord(
        gain=gain,
        plain=tuple(certificate.rate for certificate in plain),
        related=tuple(certificate.rate for certificate in related),
        overshoot=related[-1].metric.overshoot,  # type: ignore[attr-defined]
        bound=upper_bound(system).rate,
    )


def _columns() -> Sequence[Column]:
    def rate(of: str, at: int) -> Callable[[GainRecord], float]:
        return lambda record: float(getattr(record, of)[at])

    plain = [Column(f"d = {d}", rate("plain", at), ".3f") for at, d in enumerate(_DEGREES)]
    related = [Column(f"{d}, r", rate("related", at), ".3f") for at, d in enumerate(_DEGREES[1:])]
    gain, overshoot = Column("k", lambda record: record.gain, "g"), Column("C", lambda record: record.overshoot, ".3f")
    return gain, *plain, *related, overshoot, Column("bound", form=".3f")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Random systems: how far a norm of degree 4 goes from the best quadratic rate to the bound.

    Attributes:
        systems: how many.
        above: the largest excess of a certified rate over the bound; negative where there is none.
        closed: shares of the way from the quadratic rate to the bound that are proved, largest first.
        gained: systems that are proved to contract, and in no quadratic metric.
    """

    systems: int
    above: float
    closed: tuple[float, ...]
    gained: int

    @classmethod
    def of(cls, rates: Sequence[tuple[float, float, float]]) -> Compared:
        """From the quadratic rate, that of the norm of degree 4 and the bound of each system."""
        closed = [(lifted - low) / (bound - low) for low, lifted, bound in rates if bound - low > _ROUGH]
        return cls(
            systems=len(rates),
            above=max(lifted - bound for _, lifted, bound in rates),
            closed=tuple(sorted(closed, reverse=True)),
            gained=sum(low <= 0 < lifted for low, lifted, _ in rates),
        )

    def __str__(self) -> str:
        middle = self.closed[len(self.closed) // 2] if self.closed else 1.0
        return (
            f"{self.systems} random systems of two and three units, norms of degree 4. The largest excess of a rate\n"
            f"over its bound is {self.above:.2g}. Of the way from the best quadratic rate to the bound {middle:.0%}\n"
            f"is proved in the median of the {len(self.closed)} systems where there is one; {self.gained} are proved\n"
            "to contract that contract in no quadratic metric."
        )


def _compare(seed: int) -> tuple[float, float, float]:
    n = 2 if (seed + 1) % _SHARE_OF_THREE else 3
    generator = torch.Generator().manual_seed(seed)
    mixed, skew = torch.randn(2, n, n, dtype=torch.float64, generator=generator)
    W = 0.5 * mixed + torch.rand((), dtype=torch.float64, generator=generator) * 2 * (skew - skew.mT)
    system = (FiringRateSystem, HopfieldSystem)[seed % 2](W=W)
    found = certify(system, LiftedInequality(tolerance=_ROUGH))
    return certify(system, VertexInequalities(tolerance=_ROUGH)).rate, found.rate, upper_bound(system).rate


def _balls() -> Draw:
    system = FiringRateSystem(W=SwitchingCounterexample(gain=_DRAWN_GAIN).problem.linear.to_dense())
    quadratic, lifted = VertexInequalities().certify(system), LiftedInequality(degree=4).certify(system)
    times = torch.linspace(0, _DRAWN_TIME, 301, dtype=torch.float64)
    paths = switched(system, upper_bound(system), lifted, times)
    return on_axes(plot_shrinking_balls, times, paths, evidence=lifted, beside=quadratic, heights=SQUARE)


def switched(system: FiringRateSystem, worst: UpperBound, start: Certificate, times: Tensor, count: int = 3) -> Tensor:
    """Differences of trajectories under the slopes that prove a bound, from points of the unit sphere of a certificate.

    Args:
        system: the flow.
        worst: a bound by switching slopes.
        start: whose metric has the sphere.
        times: (T,), at equal distances, far smaller than the dwell times.
        count: how many, from directions that are equally far apart.

    Returns:
        (T, count, n).
    """
    step, ends = float(times[1] - times[0]), worst.dwell.cumsum(0)
    angle = torch.arange(count, dtype=torch.float64) * 2 * torch.pi / count + 0.4
    state = torch.stack([angle.cos(), angle.sin()], 1)
    state = state / start.metric.norm(state)[:, None]
    exponentials = torch.linalg.matrix_exp(step * system.jacobians(worst.slopes))
    path = [state]
    for time in times[:-1].tolist():
        phase = torch.tensor((time + step / 2) % float(ends[-1]), dtype=torch.float64)
        path.append(path[-1] @ exponentials[int((phase >= ends).sum())].mT)
    return torch.stack(path)
