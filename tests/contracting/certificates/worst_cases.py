"""How much of a certified rate trajectories use up: the worst slopes and direction found, realised on the flow itself.

A flow is given the input q for which its equilibrium has the wanted slopes (ReLU, the input is free); two trajectories
start there, close together, apart in the direction that the certificate's norm shrinks least. Their distance, simulated
on the nonlinear flow, is what the certified rate is compared with.

Run ``python -m tests.contracting.certificates.worst_cases`` for the ratio certified/measured of every family of
certificates over random networks.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import EquilibriumProblem, FiringRate, ForwardBackwardFlow, Hopfield, PeacemanRachfordFlow
from contracting.activations.catalogue import ReLU
from contracting.certificates import (
    Certificate,
    DiagonalMetric,
    ExplicitMetric,
    Finder,
    FiringRateSystem,
    HopfieldSystem,
    InclusionMetric,
    InclusionSystem,
    ParabolaTest,
    PolyhedralMetric,
    SectorInequality,
    VertexInequalities,
    certify,
    system_of,
)
from contracting.flows.base import BoundFlow, Flow
from contracting.flows.speed import DouglasRachfordFlow, TimeScaledForwardBackward
from contracting.maps.dense import Dense
from contracting.metrics import FullP, Metric, WeightedL1, WeightedL2, WeightedLinf
from contracting.simulation.time_steps import AdaptiveStep
from contracting.simulation.trajectories import distance, simulate_pairs
from tests.contracting.certificates.instances import corners
from tests.problems import monotone_weight

F64 = torch.float64
_NEAR = 1e-7  # starting distance; preactivations are ±1, so nothing switches


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of certificate on a flow it is for."""

    method: Finder
    flow: Flow

    @property
    def name(self) -> str:
        norm = f" {self.method.norm.__name__}" if isinstance(self.method, PolyhedralMetric) else ""
        return f"{self.method.name}{norm}, {type(self.flow).__name__}"


FAMILIES = (
    Family(method=ExplicitMetric(), flow=FiringRate()),
    Family(method=ExplicitMetric(), flow=Hopfield()),
    Family(method=ParabolaTest(), flow=FiringRate()),
    Family(method=ParabolaTest(optimise=25), flow=FiringRate()),
    Family(method=ParabolaTest(optimise=25), flow=Hopfield()),
    Family(method=SectorInequality(diagonal=True), flow=FiringRate()),
    Family(method=SectorInequality(), flow=FiringRate()),
    Family(method=VertexInequalities(), flow=FiringRate()),
    Family(method=VertexInequalities(), flow=Hopfield()),
    Family(method=PolyhedralMetric(norm=WeightedLinf), flow=FiringRate()),
    Family(method=PolyhedralMetric(norm=WeightedL1), flow=FiringRate()),
    Family(method=PolyhedralMetric(norm=WeightedLinf), flow=Hopfield()),
    Family(method=PolyhedralMetric(norm=WeightedL1), flow=Hopfield()),
    Family(method=DiagonalMetric(), flow=FiringRate()),
    Family(method=DiagonalMetric(), flow=ForwardBackwardFlow()),
    Family(method=DiagonalMetric(), flow=TimeScaledForwardBackward(step=0.05)),
    Family(method=DiagonalMetric(), flow=PeacemanRachfordFlow()),
    Family(method=DiagonalMetric(), flow=DouglasRachfordFlow()),
)


def at_equilibrium(settings: Flow, W: Tensor, lam: Tensor, active: Tensor) -> tuple[BoundFlow, Tensor]:
    """The flow whose equilibrium has preactivation 1 where ``active`` and −1 elsewhere, by its input, and its state."""
    v = torch.where(active, 1.0, -1.0).to(F64)[None]
    z = v.clamp(min=0)
    problem = EquilibriumProblem(linear=Dense(W), q=v - z @ W.mT, activation=ReLU(), metric=WeightedL2(lam))
    flow = settings.bind(problem)
    return flow, flow.init(z)


def worst_slopes(certificate: Certificate, flow: BoundFlow) -> tuple[Tensor, Tensor]:
    """Of all 2ⁿ patterns of active neurons the one in which the metric shrinks least, and the direction in which."""
    system = system_of(flow)
    assert isinstance(system, FiringRateSystem | HopfieldSystem)
    patterns = corners((0.0, 1.0), system.size)
    jacobians = system.jacobians(torch.where(patterns > 0, system.slopes[1], system.slopes[0]))
    measures = certificate.metric.matrix_measure(jacobians)
    # of several that are as bad the one with most neurons active: the decay lasts longest there
    worst = int(torch.where(measures >= measures.max() - 1e-9, patterns.sum(-1), -1.0).argmax())
    return patterns[worst] > 0, steepest(certificate.metric, jacobians[worst])


def steepest(metric: Metric, jacobian: Tensor) -> Tensor:
    """A direction d with ‖d‖' = μ(J)‖d‖ under d' = Jd."""
    if isinstance(metric, WeightedLinf):
        scaled = metric.weights[:, None] * jacobian / metric.weights[None, :]
        row = int((scaled.abs().sum(1) - scaled.diagonal().abs() + scaled.diagonal()).argmax())
        signs = scaled[row].sign()
        signs[row] = 1
        return signs / metric.weights
    if isinstance(metric, WeightedL1):
        scaled = metric.weights[:, None] * jacobian / metric.weights[None, :]
        column = int((scaled.abs().sum(0) - scaled.diagonal().abs() + scaled.diagonal()).argmax())
        return torch.eye(metric.size, dtype=F64)[column]
    assert isinstance(metric, FullP | WeightedL2)
    P = metric.matrix if isinstance(metric, FullP) else torch.diag(metric.weights)
    root = torch.linalg.cholesky(P).mT
    whitened = root @ jacobian @ torch.linalg.inv(root)
    top = torch.linalg.eigh((whitened + whitened.mT) / 2)[1][:, -1]
    return torch.linalg.solve(root, top)


def measured(flow: BoundFlow, state: Tensor, direction: Tensor, metric: Metric, *, time: float) -> float:
    """Average decay rate of the distance of two trajectories that start ``_NEAR`` apart in a direction."""
    apart = _NEAR * direction / direction.abs().max()
    times = torch.tensor([0.0, time], dtype=F64)
    pair = simulate_pairs(flow, state, state + apart, times, integrator=AdaptiveStep(rtol=1e-10, atol=1e-13))
    d = distance(pair, metric)[:, 0]
    return float((d[0] / d[1]).log()) / time


def certified_and_measured(
    family: Family, W: Tensor, lam: Tensor, *, units: float = 1e-3
) -> tuple[Certificate, float]:
    """A certificate of the family, and the slowest decay found in its metric, over a time of ``units`` per ‖J‖."""
    flow = at_equilibrium(family.flow, W, lam, torch.ones(len(W), dtype=torch.bool))[0]
    certificate = certify(flow, family.method)
    active, direction = worst_slopes(certificate, flow)
    flow, state = at_equilibrium(family.flow, W, lam, active)
    system = system_of(flow)
    size = system.speed * (1 + float(torch.linalg.matrix_norm(system.W, 2)))
    return certificate, measured(flow, state, direction, certificate.metric, time=units / size)


def inclusion_certified_and_measured(W: Tensor, lam: Tensor, *, step: float = 1e-3) -> tuple[Certificate, float]:
    """The inclusion where no constraint is active: the time-scaled flow with a short step, against the rate m."""
    certificate = certify(InclusionSystem(W=W, hint=lam), InclusionMetric())
    flow, state = at_equilibrium(
        TimeScaledForwardBackward(step=step), W, lam, torch.ones(len(W), dtype=torch.bool)
    )
    direction = steepest(certificate.metric, W - torch.eye(len(W), dtype=F64))
    return certificate, measured(flow, state, direction, certificate.metric, time=1e-3)


def main() -> None:
    """Print the ratio certified/measured of every family over random networks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--skews", type=float, nargs="+", default=[0.0, 0.3, 1.0, 3.0])
    options = parser.parse_args()
    print(f"{'certified/measured: median (largest)':62s}" + "".join(f"{f'skew {s:g}':>18s}" for s in options.skews))
    for family in (*FAMILIES, None):
        cells = []
        for skew in options.skews:
            ratios = []
            for seed in range(options.count):
                W, lam = monotone_weight(4, seed=seed, skew=skew, spread=0.5, monotonicity=0.5)
                certificate, seen = (
                    inclusion_certified_and_measured(W, lam)
                    if family is None
                    else certified_and_measured(family, W, lam)
                )
                if seen > 1e-3:
                    ratios.append(certificate.rate / seen)
            middle = float(torch.tensor(ratios).median()) if ratios else float("nan")
            cells.append(f"{middle:9.3f} ({max(ratios, default=float('nan')):.4f})")
        print(f"{family.name if family else 'monotonicity, inclusion':62s}" + "".join(f"{cell:>18s}" for cell in cells))


if __name__ == "__main__":
    main()
