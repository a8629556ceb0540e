r"""What contraction costs: layers trained with and without a certified rate, their errors, and what their flows do.

Training asks for the rate c of the firing-rate flow z' = −z + σ(Wz + Ux + b); afterwards the same weights are certified
again by every affordable method, bounded from above, and their trajectories are measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from contracting import checks
from contracting.certificates import Certificate, ExplicitMetric, certify, check, system_of, upper_bound
from contracting.errors import InputError
from contracting.flows.network import FiringRate
from contracting.simulation.decay import decay_rate
from contracting.simulation.sampled import sampled_rate_along
from contracting.simulation.time_steps import FixedStep
from contracting.simulation.trajectories import Trajectory, distance, simulate_pairs
from equilibrium.layers import LBEN
from equilibrium.lipschitz import BuiltIn, lipschitz_system
from equilibrium.training.classifier import train
from equilibrium.training.data import Dataset

_PAIRS, _POINTS, _TIME, _RESOLUTION = 64, 21, 4.0, 0.1  # pairs, times looked at, time simulated, step times ‖W‖ + 1
_FLOOR = 1e-9  # relative to the first distance, below which a fit ends
_NEAR = 1e-3  # starting distance of the near pairs, relative to that of the far ones


@dataclass(frozen=True, kw_only=True)
class TrainedLayer:
    """One trained layer.

    Attributes:
        contraction_rate: c that training asked for, or None.
        seed: of weights and batches.
        test_error: in percent.
        kept: whether c, in the metric of the parameterisation, passed the checker; None where none was asked for.
        lipschitz: γ of the parameterisation as the checker confirmed it.
        explicit: certified rate in the explicit metric of the layer's own Λ.
        certified: the best certified rate found afterwards.
        method: how that one was found.
        bound: no metric has a larger rate, from slope patterns.
        sampled: rate in the best certificate's metric at the states visited: at most this.
        slowest: the smallest average decay rate of a pair of trajectories, in the same metric.
        fitted: the smallest exponential rate fitted to a pair.
    """

    contraction_rate: float | None
    seed: int
    test_error: float
    kept: bool | None
    lipschitz: float
    explicit: float
    certified: float
    method: str
    bound: float
    sampled: float
    slowest: float
    fitted: float


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """What to train: LBEN(features, hidden, classes, lipschitz=γ) for every rate and seed.

    Attributes:
        rates: those to ask for; None asks for no contraction.
        seeds: how many.
        hidden: neurons.
        epochs: passes over the training images.
        lipschitz: γ.
        epsilon: of the parameterisation.
    """

    rates: tuple[float | None, ...] = (None, 0.2, 0.5)
    seeds: int = 5
    hidden: int = 64
    epochs: int = 15
    lipschitz: float = 1.0
    epsilon: float = 1.0

    def __post_init__(self) -> None:
        for name in ("seeds", "hidden", "epochs"):
            checks.whole_number(name, getattr(self, name))
        if not self.rates or len(set(self.rates)) < len(self.rates):
            raise InputError(f"rates must be different from each other and at least one, got {self.rates}")
        for rate in self.rates:
            if rate is not None:
                checks.number("rates", rate, low=0, high=1, high_open=True)
        for name in ("lipschitz", "epsilon"):
            checks.number(name, getattr(self, name), low=0, low_open=True, high=math.inf, high_open=True)


def contraction_cost(
    dataset: Dataset, settings: CostSettings, *, said: Callable[[TrainedLayer], None] | None = None
) -> tuple[TrainedLayer, ...]:
    """Train and measure a layer for every rate and seed.

    Args:
        dataset: images and labels.
        settings: what to train.
        said: called with every layer as it is finished.

    Raises:
        TrainingError: if training does not go on.
        CertificateError: if a layer does not keep what its parameterisation promises.
    """
    done = []
    for rate in settings.rates:
        for seed in range(settings.seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                layer = LBEN(
                    dataset.features,
                    settings.hidden,
                    dataset.classes,
                    lipschitz=settings.lipschitz,
                    epsilon=settings.epsilon,
                    contraction_rate=rate,
                )
            error = train(layer, dataset, epochs=settings.epochs, seed=seed).test_error
            done.append(measure_layer(layer.double(), dataset, seed=seed, test_error=error))
            if said is not None:
                said(done[-1])
    return tuple(done)


@torch.no_grad()
def measure_layer(layer: LBEN, dataset: Dataset, *, seed: int, test_error: float) -> TrainedLayer:
    """Certify the firing-rate flow of a layer, bound it from above, and follow pairs of its trajectories.

    Raises:
        CertificateError: if the layer does not keep its γ or its c.
    """
    weights = layer.weights()
    inputs = dataset.test_inputs[:_PAIRS].double()
    flow = layer.flow(FiringRate, inputs)
    system = system_of(flow)
    assert weights.metric is not None
    rate, lam = weights.contraction_rate, weights.metric.weights.detach()
    kept = None
    if rate is not None:
        assert weights.firing_rate_metric is not None
        claim = Certificate(
            rate=rate,
            metric=weights.firing_rate_metric,
            multiplier=lam,
            slopes=layer.activation.slopes,
            method="contracting parameterisation",
            flow=system.name,
            margin=0.0,
        )
        kept = check(claim, system) > 0
    best = certify(system)
    explicit = certify(system, ExplicitMetric(weights=lam)).rate
    generator = torch.Generator().manual_seed(seed)
    first = layer.solve(inputs).z + torch.randn(len(inputs), system.size, generator=generator, dtype=torch.float64)
    apart = torch.randn(first.shape, generator=generator, dtype=torch.float64)
    apart[::2] *= _NEAR
    step = _RESOLUTION / (1 + float(torch.linalg.matrix_norm(system.W, 2)))
    times = torch.linspace(0, _TIME, _POINTS, dtype=torch.float64)
    pair = simulate_pairs(flow, first, first + apart, times, integrator=FixedStep(step=step))
    d = distance(pair, best.metric)
    fit = decay_rate(times, d / d[0], floor=_FLOOR)
    path = Trajectory(times=times, states=pair.first, steps=torch.zeros(len(first), dtype=torch.int64))
    return TrainedLayer(
        contraction_rate=rate,
        seed=seed,
        test_error=test_error,
        kept=kept,
        lipschitz=BuiltIn().certify(lipschitz_system(layer)).bound,
        explicit=max(explicit, rate) if rate is not None and kept else explicit,
        certified=best.rate,
        method=best.method,
        bound=upper_bound(system, best.metric).rate,
        sampled=sampled_rate_along(flow, path, best.metric).rate,
        slowest=float(fit.slowest.min()),
        fitted=float(fit.rate.min()),
    )


def cost_table(layers: Sequence[TrainedLayer]) -> str:
    """A Markdown table with a row for every rate, mean ± standard deviation over the seeds."""
    header = (
        "asked rate c", "test error (%)", "certified, explicit metric", "certified, best found", "sampled ≤",
        "upper bound", "slowest pair", "slowest fit",
    )  # fmt: skip
    rows = [
        (
            "none" if rate is None else f"{rate:g}",
            *(
                mean_and_deviation([getattr(layer, name) for layer in group], digits)
                for name, digits in (
                    ("test_error", 2), ("explicit", 3), ("certified", 3), ("sampled", 3), ("bound", 3),
                    ("slowest", 3), ("fitted", 3),
                )
            ),
        )
        for rate, group in by_rate(layers).items()
    ]  # fmt: skip
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_rate(layers: Sequence[TrainedLayer]) -> dict[float | None, list[TrainedLayer]]:
    """The layers of every rate that was asked for, in the order they came."""
    groups: dict[float | None, list[TrainedLayer]] = {}
    for layer in layers:
        groups.setdefault(layer.contraction_rate, []).append(layer)
    return groups


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Mean ± sample standard deviation, as text; the mean alone for one value."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
