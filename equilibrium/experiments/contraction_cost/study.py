r"""What contraction costs: layers trained with and without a certified rate, their errors, and what their flows do.

Training asks for the rate c of the firing-rate flow z' = −z + σ(Wz + Ux + b); afterwards the same weights are certified
again by every affordable method, bounded from above, and their trajectories are measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import sqrt

import torch

from contracting import (
    Certificate,
    FiringRate,
    FixedStep,
    Trajectory,
    certify,
    check,
    decay_rate,
    distance,
    sampled_rate_along,
    simulate_pairs,
)
from contracting.certificates import ExplicitMetric, system_of, upper_bound
from equilibrium import Contractive, EquilibriumLayer, Monotone, train
from equilibrium.experiments.networks import seeded
from equilibrium.experiments.tables import Column, markdown
from equilibrium.lipschitz import BuiltIn, lipschitz_system
from equilibrium.training.data import Dataset

_PAIRS = 64  # So many pairs of trajectories are followed, each under the input of one test image.
_TIME, _POINTS = 4.0, 21  # They are followed for four time constants of the flow, and looked at so many times.
_RESOLUTION = 0.1  # The fixed step is this over ‖W‖ + 1, which is the Lipschitz constant of the flow.
_FLOOR = 1e-9  # A fit of a rate ends where the distance, relative to the first one, is in the rounding.
_NEAR = 1e-3  # Every second pair starts this much closer than the others, to see the rate of one slope pattern.


class Kind(Enum):
    """What makes a layer contract: the complete parameterisation, or the one with an added term."""

    CONTRACTIVE = "contractive"
    MONOTONE = "monotone"


Asked = tuple[float | None, Kind | None]
"""A rate and how it is built in; (None, None) where none is asked for."""


def named(asked: Asked) -> str:
    """In words, as tables and figures have it."""
    rate, kind = asked
    return "none" if rate is None or kind is None else f"{rate:g}" + ("" if kind is Kind.CONTRACTIVE else " (monotone)")


@dataclass(frozen=True, kw_only=True)
class TrainedLayer:
    """One trained layer.

    Attributes:
        contraction_rate: c that training asked for, or None.
        kind: how it is built in, or None.
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
    kind: Kind | None
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
        kinds: how to build them in.
        seeds: how many.
        first_seed: the smallest of them.
        hidden: neurons.
        epochs: passes over the training images.
        lipschitz: γ.
    """

    rates: tuple[float | None, ...] = (None, 0.2, 0.5)
    kinds: tuple[Kind, ...] = (Kind.CONTRACTIVE,)
    seeds: int = 5
    first_seed: int = 0
    hidden: int = 64
    epochs: int = 15
    lipschitz: float = 1.0

    @property
    def all_seeds(self) -> range:
        """Every seed, in order."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def asked(self) -> list[Asked]:
        """Every rate in every way."""
        return [pair for c in self.rates for pair in ([(None, None)] if c is None else [(c, k) for k in self.kinds])]


def new_layer_of(dataset: Dataset, settings: CostSettings, asked: Asked, seed: int) -> EquilibriumLayer:
    """A layer before training."""
    (rate, kind), gamma = asked, settings.lipschitz
    sizes = (dataset.features, settings.hidden, dataset.classes)
    made = Contractive if kind is Kind.CONTRACTIVE else Monotone
    with seeded(seed):
        return EquilibriumLayer(made(*sizes, lipschitz=gamma, contraction_rate=rate))


def errors_of(
    dataset: Dataset, settings: CostSettings, *, said: Callable[[Asked, int, float], None] | None = None
) -> dict[Asked, list[float]]:
    """Test errors in percent, seed by seed, without measuring anything else.

    Args:
        dataset: images and labels.
        settings: what to train.
        said: called with every error.

    Raises:
        TrainingError: if training does not go on.
    """
    errors: dict[Asked, list[float]] = {asked: [] for asked in settings.asked}
    for seed in settings.all_seeds:
        for asked, found in errors.items():
            layer = new_layer_of(dataset, settings, asked, seed)
            found.append(train(layer, dataset, epochs=settings.epochs, seed=seed).test_error)
            if said is not None:
                said(asked, seed, found[-1])
    return errors


def paired_table(errors: dict[Asked, list[float]]) -> str:
    """Mean errors, and the mean difference to those of the first row with its standard error, over equal seeds."""
    first = next(iter(errors.values()))

    def difference(row: tuple[Asked, list[float]]) -> str:
        gaps = [error - other for error, other in zip(row[1], first, strict=True)]
        if row[1] is first or len(gaps) < 2:
            return "–"
        return f"{statistics.fmean(gaps):+.3f} ± {statistics.stdev(gaps) / sqrt(len(gaps)):.3f}"

    columns = (
        Column("asked rate c", lambda row: named(row[0])),
        Column("test error (%)", lambda row: f"{statistics.fmean(row[1]):.3f}"),
        Column(f"less that of the first, paired over {len(first)} seeds", difference),
    )
    return markdown(columns, list(errors.items()))


def contraction_cost_of(
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
    for asked in settings.asked:
        for seed in settings.all_seeds:
            layer = new_layer_of(dataset, settings, asked, seed)
            error = train(layer, dataset, epochs=settings.epochs, seed=seed).test_error
            done.append(measure_layer(layer.double(), dataset, seed=seed, test_error=error))
            if said is not None:
                said(done[-1])
    return tuple(done)


@torch.no_grad()
def measure_layer(layer: EquilibriumLayer, dataset: Dataset, *, seed: int, test_error: float) -> TrainedLayer:
    """Certify the firing-rate flow of a layer, bound it from above, and follow pairs of its trajectories.

    Raises:
        CertificateError: if the layer does not keep its γ or its c.
    """
    weights, free = layer.weights(), layer.parameterization
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
        kind=None if rate is None else Kind.CONTRACTIVE if isinstance(free, Contractive) else Kind.MONOTONE,
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


def _mean_of(name: str, head: str, digits: int = 3) -> Column:
    """A column of means ± sample standard deviations over the layers of a row."""

    def mean(row: tuple[Asked, Sequence[TrainedLayer]]) -> str:
        values = [getattr(layer, name) for layer in row[1]]
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.{digits}f}{spread}"

    return Column(head, mean)


_COLUMNS = (
    Column("asked rate c", lambda row: named(row[0])),
    _mean_of("test_error", "test error (%)", digits=2),
    _mean_of("explicit", "certified, explicit metric"),
    _mean_of("certified", "certified, best found"),
    _mean_of("sampled", "sampled ≤"),
    _mean_of("bound", "upper bound"),
    _mean_of("slowest", "slowest pair"),
    _mean_of("fitted", "slowest fit"),
)


def cost_table(layers: Sequence[TrainedLayer]) -> str:
    """A Markdown table with a row for every rate, mean ± standard deviation over the seeds."""
    return markdown(_COLUMNS, list(by_rate(layers).items()))


def by_rate(layers: Sequence[TrainedLayer]) -> dict[Asked, list[TrainedLayer]]:
    """The layers of every rate that was asked for, in the order they came."""
    groups: dict[Asked, list[TrainedLayer]] = {}
    for layer in layers:
        groups.setdefault((layer.contraction_rate, layer.kind), []).append(layer)
    return groups
