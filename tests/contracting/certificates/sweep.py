"""Random LBENs over sizes, skew, spread of ψ and activations: no certificate may exceed an upper bound.

Run ``python -m tests.contracting.certificates.sweep`` for 10,000 networks, ``--small`` for 300.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import torch

from contracting import EquilibriumProblem, FiringRate, ForwardBackwardFlow, Hopfield, PeacemanRachfordFlow
from contracting.certificates import (
    CertificateError,
    DiagonalMetric,
    ExplicitMetric,
    FiringRateSystem,
    HopfieldSystem,
    ParabolaTest,
    PolyhedralMetric,
    abscissa_bound,
    system_of,
)
from contracting.metrics import WeightedL1, WeightedLinf
from tests.contracting.certificates.instances import ACTIVATIONS, random_lben

METHODS = (
    DiagonalMetric(),
    ExplicitMetric(),
    PolyhedralMetric(norm=WeightedLinf),
    PolyhedralMetric(norm=WeightedL1),
    ParabolaTest(),
)
FLOWS = (FiringRate(), Hopfield(), ForwardBackwardFlow(), PeacemanRachfordFlow())


@dataclass
class Result:
    """What a sweep saw: networks, certificates, the gap to the bound, and every violation."""

    networks: int = 0
    certificates: int = 0
    refused: int = 0
    asked_rates: int = 0
    kept_rates: int = 0
    smallest_gap: float = float("inf")
    violations: list[str] = field(default_factory=list)


def sweep(networks: int, *, seed: int = 0) -> Result:
    """Certify random networks; sampled Jacobians of the flow itself and the spectral abscissa are the judges."""
    result = Result()
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    for index in range(networks):
        n = int(torch.randint(1, 9, (), generator=generator))
        asked = draw(0.0, 0.9) if index % 3 == 0 else None
        weights = random_lben(
            n, 10_000 * seed + index, skew=10 ** draw(-1, 1), spread=draw(0, 1.5), contraction_rate=asked
        )
        activation = ACTIVATIONS[index % len(ACTIVATIONS)]
        problem = EquilibriumProblem(
            linear=weights.state, q=torch.randn(8, n, dtype=torch.float64), activation=activation, metric=weights.metric
        )
        flow = FLOWS[int(torch.randint(0, 4, (), generator=generator))].bind(problem)
        system = system_of(flow)
        assert isinstance(system, FiringRateSystem | HopfieldSystem)
        bound = abscissa_bound(system).rate
        jacobians = flow.jacobian(3 * torch.randn(8, n, dtype=torch.float64))
        best = -float("inf")
        for method in METHODS:
            if isinstance(method, ExplicitMetric) and system.slopes[0] < 0:
                continue
            try:
                certificate = method.certify(system)
            except CertificateError:
                result.refused += 1
                continue
            result.certificates += 1
            best = max(best, certificate.rate)
            sampled = -float(certificate.metric.matrix_measure(jacobians).max())
            if certificate.rate > min(bound, sampled) + 1e-9 * (1 + abs(bound)):
                result.violations.append(f"network {index}: {certificate} > {bound:.6g}, {sampled:.6g} sampled")
        result.smallest_gap = min(result.smallest_gap, bound - best)
        if asked is not None and system.name in ("firing rate", "Hopfield"):
            result.asked_rates += 1
            result.kept_rates += best >= asked - 1e-6
        result.networks += 1
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(sweep(300 if options.small else 10_000, seed=options.seed))
