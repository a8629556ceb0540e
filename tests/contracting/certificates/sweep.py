"""Random LBENs over sizes, skew, spread of ψ, activations and flows: nothing may be certified that is not so.

Run ``python -m tests.contracting.certificates.sweep --workers 2`` for 10,000 networks (about 15 minutes of processor
time), ``--count 300`` for fewer; a SIGTERM ends it with what was seen so far. The judges use no certificate: spectral
abscissae, Jacobians of the flow itself, pairs of trajectories under moving inputs, and the eigenvalues of the matrix
inequality for the Lipschitz constant.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from contracting import EquilibriumProblem, FiringRate, ForwardBackwardFlow, Hopfield, PeacemanRachfordFlow
from contracting.activations.catalogue import HardTanh, LeakyReLU, ReLU, Softshrink
from contracting.certificates import (
    Certificate,
    CertificateError,
    DiagonalMetric,
    ExplicitMetric,
    Finder,
    InclusionMetric,
    InclusionSystem,
    ParabolaTest,
    PolyhedralMetric,
    System,
    abscissa_bound,
    check,
    system_of,
    upper_bound,
)
from contracting.flows.base import BoundFlow, Flow
from contracting.flows.speed import DouglasRachfordFlow, ScaledFlow
from contracting.flows.splitting import BoundForwardBackward
from contracting.metrics import FullP, Metric, WeightedL1, WeightedL2, WeightedLinf
from contracting.simulation.time_steps import FixedStep
from contracting.simulation.trajectories import simulate
from equilibrium import Weights
from equilibrium.lipschitz import LipschitzCertificate, Norm, check_lipschitz, lipschitz_system
from tests.contracting.certificates.instances import ACTIVATIONS, random_lben

F64 = torch.float64
METHODS: tuple[Finder, ...] = (
    DiagonalMetric(),
    ExplicitMetric(),
    PolyhedralMetric(norm=WeightedLinf),
    PolyhedralMetric(norm=WeightedL1),
    ParabolaTest(),
)
CLOSED = tuple(s for s in ACTIVATIONS if isinstance(s, ReLU | LeakyReLU | HardTanh | Softshrink))
GAMMAS = (0.3, 1.0, 2.0)
_PAIRS, _POINTS, _STEPS = 8, 2, 3  # per network: pairs, times looked at, time steps between two of them
_STEP = 0.25  # of time, times the Lipschitz constant of the flow
_SWITCHING = 100  # every so many networks the switching bound is searched too
_EVERY_SEARCHED = 5  # every so many networks with a splitting flow draw from all activations, the others from CLOSED
_EVERY_LARGE = 10  # every so many networks there are more than 8 neurons


@dataclass(frozen=True)
class TimeScaled:
    """The forward–backward flow with its best step, in time t/α."""

    def bind(self, problem: EquilibriumProblem) -> BoundFlow:
        inner = ForwardBackwardFlow().bind(problem)
        assert isinstance(inner, BoundForwardBackward) and isinstance(inner.step, float)
        return ScaledFlow(inner, 1 / inner.step)


FLOWS: tuple[Flow, ...] = (
    FiringRate(),
    Hopfield(),
    FiringRate(),
    Hopfield(),
    ForwardBackwardFlow(),
    PeacemanRachfordFlow(),
    DouglasRachfordFlow(),
    TimeScaled(),
)


@dataclass
class Result:
    """What a sweep saw.

    ``asked``: networks of the contracting parameterisation; ``kept_rates`` and ``kept_lipschitz``: those in which its
    c and γ passed the checkers. ``tightest``: the largest certified rate, for n > 1, relative to the slowest decay that
    was seen (trajectories) or to the upper bound; above one it would be a violation. ``ratios``: that of the best
    certificate of each network with a positive bound.
    """

    networks: int = 0
    large: int = 0
    certificates: int = 0
    refused: int = 0
    pairs: int = 0
    judged: int = 0
    asked: int = 0
    kept_rates: int = 0
    kept_lipschitz: int = 0
    smallest_gap: float = float("inf")
    tightest: float = -float("inf")
    tightest_at: str = ""
    margins: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def __add__(self, other: Result) -> Result:
        tightest = max(self, other, key=lambda result: result.tightest)
        gap = min(self.smallest_gap, other.smallest_gap)
        kept = {"tightest": tightest.tightest, "tightest_at": tightest.tightest_at, "smallest_gap": gap}
        return Result(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Result)} | kept)

    def __str__(self) -> str:
        ratios, margins = torch.tensor(self.ratios, dtype=F64), torch.tensor(self.margins, dtype=F64)
        quarters = ", ".join(f"{float(q):.3f}" for q in ratios.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=F64)))
        return "\n".join(
            [
                f"networks                     {self.networks} ({self.large} of them with 9 to 40 neurons)",
                f"certificates                 {self.certificates} ({self.refused} times a method found none)",
                f"pairs of trajectories        {self.pairs}, judged {self.judged} times (pair × certificate)",
                f"integration margin           {float(margins.quantile(0.5)):.1e} (median), "
                f"{float(margins.quantile(0.99)):.1e} (99 %), {float(margins.max()):.1e} (largest), of log distance",
                f"violations                   {len(self.violations)}",
                f"contracting parameterisation {self.kept_rates} rates and {self.kept_lipschitz} Lipschitz constants "
                f"kept of {self.asked}",
                f"smallest gap to the bound    {self.smallest_gap:.1e}",
                f"tightest certified/true      {self.tightest:.6f} ({self.tightest_at})",
                f"best certificate/bound       {quarters} (10 %, 50 %, 90 % of the networks with a positive bound)",
                *self.violations[:20],
            ]
        )


def sweep(networks: int | range, *, seed: int = 0) -> Result:
    """Certify random networks and let everything that is independent of the certificates judge them."""
    result = Result()
    generator = torch.Generator()

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    for index in range(networks) if isinstance(networks, int) else networks:
        generator.manual_seed(1_000_000 * seed + index)  # each network is the same whichever others are looked at
        large = index % _EVERY_LARGE == _EVERY_LARGE - 1
        n = int(torch.randint(9 if large else 1, 41 if large else 9, (), generator=generator))
        asked = draw(0.0, 0.9) if index % 3 == 0 else None
        gamma = GAMMAS[index // 3 % 3] if asked is not None or index % 2 else None
        weights = random_lben(
            n, 1_000_000 * seed + index, skew=10 ** draw(-1, 1), spread=draw(0, 1.5), contraction_rate=asked,
            lipschitz=gamma,
        )  # fmt: skip
        settings = FLOWS[int(torch.randint(0, len(FLOWS), (), generator=generator))]
        plain = isinstance(settings, FiringRate | Hopfield)
        # the proximal operators without a closed form cost most of the time of a sweep
        choice = ACTIVATIONS if plain or index % _EVERY_SEARCHED == 0 else CLOSED
        activation = choice[index % len(choice)]
        problem = EquilibriumProblem(
            linear=weights.state, q=torch.randn(_PAIRS, n, dtype=F64), activation=activation, metric=weights.metric
        )
        flow = settings.bind(problem)
        system, states = system_of(flow), 3 * torch.randn(_PAIRS, n, dtype=F64)
        bound = (upper_bound if index % _SWITCHING == 0 else abscissa_bound)(system).rate
        jacobians = flow.jacobian(states)
        found = _certificates(system, result)
        label = f"network {index}, n = {n}, {activation}, {system.name}"
        for certificate in found:
            sampled = -float(certificate.metric.matrix_measure(jacobians).max())
            if certificate.rate > min(bound, sampled) + 1e-9 * (1 + abs(bound)):
                result.violations.append(f"{label}: {certificate} > {bound:.6g}, {sampled:.6g} sampled")
        best = max(found, key=lambda certificate: certificate.rate)
        slowest = _simulate(flow, system, states, jacobians, best, found, result, label)
        result.smallest_gap = min(result.smallest_gap, bound - best.rate)
        if bound > 0:
            result.ratios.append(best.rate / bound)
        for rate, true in [(c.rate, min(s, bound)) for c, s in zip(found, slowest, strict=True)]:
            if n > 1 and true > 1e-3 and rate / true > result.tightest:
                result.tightest, result.tightest_at = rate / true, label
        _inclusion(weights, label, result)
        if asked is not None:
            _asked_for(weights, asked, label, result)
        result.networks += 1
        result.large += large
    return result


def _certificates(system: System, result: Result) -> list[Certificate]:
    found = []
    for method in METHODS:
        if isinstance(method, ExplicitMetric) and system.slopes[0] < 0:
            continue
        try:
            found.append(method.certify(system))
        except CertificateError:
            result.refused += 1
    result.certificates += len(found)
    return found


def _simulate(
    flow: BoundFlow,
    system: System,
    states: Tensor,
    jacobians: Tensor,
    best: Certificate,
    found: list[Certificate],
    result: Result,
    label: str,
) -> list[float]:
    """Follow pairs under constant and moving inputs; the slowest average decay in the metric of each certificate.

    The error of the integration is seen by halving the step. Half of the pairs start far apart, the others close, in
    the direction in which the Jacobian at the first state contracts least.
    """
    lipschitz = system.speed * (1 + float(torch.linalg.matrix_norm(system.W, 2)))
    step = _STEP / lipschitz
    times = torch.linspace(0, _POINTS * _STEPS * step, _POINTS + 1, dtype=F64)
    second = states + torch.randn_like(states)
    near = slice(_PAIRS // 2, None)
    second[near] = states[near] + 1e-3 * _slowest_direction(jacobians[near], best.metric)
    q, amplitude = flow.problem.q, torch.randn_like(flow.problem.q)
    amplitude[::2] = 0
    frequency = lipschitz * torch.rand(_PAIRS, 1, dtype=F64)

    def signal(t: Tensor) -> Tensor:
        return q.repeat(2, 1) + amplitude.repeat(2, 1) * torch.sin(frequency.repeat(2, 1) * t)

    # equal steps for all rows: both members of a pair in one batch, which is cheaper than simulate_pairs
    start, driven = torch.cat([states, second]), flow.with_input(q.repeat(2, 1))
    with torch.no_grad():
        coarse, fine = (
            simulate(driven, start, times, signal=signal, integrator=FixedStep(step=step / halvings)).states
            for halvings in (1, 2)
        )
    result.pairs += _PAIRS
    slowest = []
    for certificate in found:
        distances = [certificate.metric.norm(path[:, :_PAIRS] - path[:, _PAIRS:]) for path in (coarse, fine)]
        logs = [(d / d[0]).log() for d in distances]
        size = certificate.metric.norm(fine[:, :_PAIRS]) / distances[1]
        margin = 4 * (logs[0] - logs[1]).abs() + 1e-13 * size + 1e-9
        excess = logs[1] + certificate.rate * times[:, None] - margin
        result.judged += _PAIRS
        result.margins.append(float(margin.max()))
        if not float(excess.max()) <= 0:
            result.violations.append(f"{label}: {certificate}, log distance {float(excess.max()):.2e} too large")
        slowest.append(float(((margin - logs[1])[1:] / times[1:, None]).min()))
    return slowest


def _slowest_direction(jacobians: Tensor, metric: Metric) -> Tensor:
    """Of unit length in the metric, where the Jacobian of each row contracts least; (batch, n)."""
    if isinstance(metric, FullP):
        root = torch.linalg.cholesky(metric.matrix).mT
    elif isinstance(metric, WeightedL2):
        root = torch.diag(metric.weights.sqrt())
    else:
        root = torch.eye(metric.size, dtype=F64)
    whitened = torch.linalg.solve(root, root @ jacobians, left=False)
    top = torch.linalg.eigh((whitened + whitened.mT) / 2)[1][..., -1]
    return torch.linalg.solve(root, top.mT).mT


def _inclusion(weights: Weights, label: str, result: Result) -> None:
    """The rate of the inclusion against all principal submatrices."""
    assert weights.metric is not None
    system = InclusionSystem(W=weights.state.to_dense(), hint=weights.metric.weights)
    certificate, bound = InclusionMetric(optimise=0).certify(system), abscissa_bound(system).rate
    result.certificates += 1
    if certificate.rate > bound + 1e-9 * (1 + abs(bound)):
        result.violations.append(f"{label}: {certificate} > {bound:.6g}")


def _asked_for(weights: Weights, rate: float, label: str, result: Result) -> None:
    """Whether the contracting parameterisation keeps the c and the γ that were asked for."""
    result.asked += 1
    assert weights.metric is not None and weights.lipschitz is not None
    W, lam = weights.state.to_dense(), weights.metric.weights
    kept = []
    for flow in (FiringRate(), Hopfield()):
        problem = EquilibriumProblem(
            linear=weights.state, q=torch.zeros(1, len(W), dtype=F64), activation=ACTIVATIONS[0], metric=weights.metric
        )
        metric = weights.firing_rate_metric if isinstance(flow, FiringRate) else weights.hopfield_metric
        assert metric is not None
        claim = Certificate(
            rate=rate, metric=metric, multiplier=lam, slopes=(0.0, 1.0), method="parameterisation", flow="", margin=0.0
        )
        try:
            kept.append(check(claim, system_of(flow.bind(problem))) > 0)
        except CertificateError as error:
            result.violations.append(f"{label}: asked for rate {rate:.4g}, {error}")
    result.kept_rates += len(kept) == 2
    gamma = float(weights.lipschitz)
    proof = LipschitzCertificate(
        bound=gamma, norm=Norm.L2, method="parameterisation", slopes=(0.0, 1.0), margin=0.0, multiplier=gamma * lam
    )
    U, readout = weights.input.detach(), weights.output.detach()
    half = lam[:, None] * (torch.eye(len(W), dtype=F64) - W)
    inequality = half + half.mT - readout.mT @ readout / gamma - (lam[:, None] * U) @ (lam[:, None] * U).mT / gamma
    try:
        by_checker = check_lipschitz(proof, lipschitz_system(weights)) > 0
    except CertificateError:
        by_checker = False
    if by_checker and float(torch.linalg.eigvalsh((inequality + inequality.mT) / 2)[0]) > 0:
        result.kept_lipschitz += 1
    else:
        result.violations.append(f"{label}: Lipschitz constant {gamma} is not kept")


def _one_thread() -> None:
    torch.set_num_threads(1)


def main() -> int:
    """Run the sweep and print what it saw; exit code 1 on any violation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parts = [range(first, min(first + 25, options.count)) for first in range(0, options.count, 25)]
    outcome = Result()
    with ProcessPoolExecutor(options.workers, initializer=_one_thread) as pool:
        try:
            for result in pool.map(functools.partial(sweep, seed=options.seed), parts):
                outcome = outcome + result
                if outcome.networks % 500 == 0:
                    violations = len(outcome.violations)
                    print(f"{outcome.networks} networks, {violations} violations", file=sys.stderr, flush=True)
        except KeyboardInterrupt:  # what was seen so far is still worth reading
            pool.shutdown(wait=False, cancel_futures=True)
    print(outcome)
    return int(bool(outcome.violations))


if __name__ == "__main__":
    sys.exit(main())
