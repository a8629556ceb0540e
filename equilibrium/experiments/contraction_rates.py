"""``contraction-rates``: every flow of a trained network with its certified, its seen and its largest possible rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from contracting import (
    AdaptiveStep,
    BoundFlow,
    FiringRate,
    Flow,
    ForwardBackwardFlow,
    Hopfield,
    PeacemanRachfordFlow,
    PreconditionError,
    Report,
    SemismoothNewton,
    WeightedL2,
    checks,
    decay_rate,
    distance,
    report,
    sampled_rate,
    simulate_pairs,
    solve,
)
from contracting.certificates import (
    FiringRateSystem,
    InclusionSystem,
    ParabolaTest,
    SkewnessSweep,
    StepSweep,
    best_forward_backward_step,
    best_peaceman_rachford_step,
    sweep_skewness,
    sweep_steps,
    system_of,
)
from contracting.certificates.multipliers import scaled
from contracting.certificates.numerical_range import boundary
from contracting.plots import (
    plot_distance,
    plot_numerical_range,
    plot_rate_against_step,
    plot_rates_against_skewness,
    plot_spectra,
)
from equilibrium import EquilibriumLayer, load_reference, train
from equilibrium.experiments.networks import digits_for, new_layer
from equilibrium.experiments.options import Out, Seed, Small, Threads
from equilibrium.experiments.publishing import Draw, on_axes, publish, working_in
from equilibrium.experiments.tables import Column, aligned
from equilibrium.training.loop import error_percent

_DURATION = 6.0  # Pairs are simulated for so many time constants of their flow.
_SMALL_UNITS, _SWEEP_UNITS = 3, 5  # Of 2ⁿ patterns of slopes every one is looked at, which bounds n.
_COLUMNS = (
    Column("flow"),
    Column("certified by", lambda record: record.method),
    Column("norm", lambda record: record.metric),
    Column("certified"),
    Column("pairs", lambda record: record.seen),
    Column("sampled"),
    Column("bound"),
)
_NOTES = """\
certified: for every input and state; pairs: slowest mean decay of simulated pairs, sampled: rate of the
Jacobian at states they visit, both in the norm of the certificate and never below it; bound: no certificate
in any norm can exceed it. Rates per time constant of each flow."""


def contraction_rates(
    rate: Annotated[float, "Contraction rate built into the trained network."] = 0.2,
    lipschitz: Annotated[float, "Certified Lipschitz constant of the trained network."] = 1.0,
    hidden: Annotated[int | None, "Neurons (default 40)."] = None,
    epochs: Annotated[int | None, "Passes over the training images (default 15)."] = None,
    checkpoint: Annotated[Path | None, "Reference checkpoint to examine beside it (default none)."] = None,
    checkpoint_lipschitz: Annotated[
        float | None, "Lipschitz constant that the checkpoint was trained with (default none)."
    ] = None,
    epsilon: Annotated[float, "Strong monotonicity that the checkpoint was trained with."] = 1.0,
    seed: Seed = 0,
    threads: Threads = 1,
    out: Out = Path("out"),
    small: Small = False,
) -> None:
    """Train a contracting network on digits; certified ≤ true ≤ bound for each of its flows, with figures."""
    hidden = checks.whole_number("--hidden", (12 if small else 40) if hidden is None else hidden)
    epochs = checks.whole_number("--epochs", (1 if small else 15) if epochs is None else epochs)
    with working_in(out, threads=threads) as folder:
        others: dict[str, EquilibriumLayer] = {}
        if checkpoint is not None:  # read first: a wrong file is said before the training
            others[f"checkpoint {checkpoint.name}"] = load_reference(
                checkpoint, lipschitz=checkpoint_lipschitz, epsilon=epsilon
            )
        dataset = digits_for(seed, small=small)
        layer = new_layer(dataset, hidden, seed, lipschitz=lipschitz, contraction_rate=rate)
        train(layer, dataset, epochs=epochs, seed=seed, progress=True)
        inputs = dataset.test_inputs.double()
        error = error_percent(layer.double(), inputs, dataset.test_labels)
        print(
            f"trained LBEN({dataset.features}, {hidden}, {dataset.classes}, lipschitz={lipschitz:g}, "
            f"contraction_rate={rate:g}) on digits: test error {error:.2f} %\n",
            flush=True,
        )
        networks = {f"trained on digits, contraction_rate={rate:g}": layer, **others}
        records: list[RateRecord] = []
        firing: list[_Examined] = []
        for name, network in networks.items():
            some = _inputs(network.double().requires_grad_(False), inputs[: 8 if small else 24])
            for settings in _flows(network):
                record, examined = _examine(name, network.flow(settings, some))
                records.append(record)
                firing += [examined] if isinstance(settings, FiringRate) else []
            records.append(_inclusion(name, network))
        tables = [
            f"{name}\n\n{aligned(_COLUMNS, [record for record in records if record.network == name])}\n"
            for name in networks
        ]
        draws = _figures(firing[0], *_sweeps(small))
        text = "\n".join([*tables, _NOTES])
        publish(folder, text, {"test_error": error, "rates": records}, draws=draws, small=small)


@dataclass(frozen=True, kw_only=True)
class RateRecord:
    """One flow of one network.

    Attributes:
        network: which one.
        flow: its name, with its step.
        certified: the best certified rate, for every input and state.
        method: how it was found.
        metric: its norm.
        seen: the slowest mean decay of a pair of trajectories in that norm; None for the inclusion, which is no ODE.
        sampled: −max μ of the Jacobian at sampled states, in that norm; None for the inclusion.
        bound: what no certificate in any norm may exceed.
    """

    network: str
    flow: str
    certified: float
    method: str
    metric: str
    seen: float | None
    sampled: float | None
    bound: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Examined:
    flow: BoundFlow
    rates: Report
    times: Tensor
    distances: Tensor


def _inputs(layer: EquilibriumLayer, images: Tensor) -> Tensor:
    """The images, or random inputs for a network made for others: certificates hold for every input anyway."""
    if layer.in_features == images.shape[-1]:
        return images
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(images), layer.in_features, dtype=torch.float64, generator=generator)


def _weight(layer: EquilibriumLayer) -> tuple[Tensor, WeightedL2]:
    weights = layer.weights()
    if weights.metric is None:
        raise PreconditionError("this network claims no metric in which I − W is strongly monotone (Condition 1)")
    return weights.state.to_dense(), weights.metric


def _flows(layer: EquilibriumLayer) -> Sequence[Flow]:
    W, metric = _weight(layer)
    return (
        FiringRate(),
        Hopfield(),
        ForwardBackwardFlow(step=best_forward_backward_step(W, metric).step),
        PeacemanRachfordFlow(step=best_peaceman_rachford_step(W, metric).step),
    )


def _examine(name: str, flow: BoundFlow) -> tuple[RateRecord, _Examined]:
    rates = report(flow)
    best = rates.best
    q = flow.problem.q
    generator = torch.Generator().manual_seed(0)
    first, second = 3 * torch.randn(2, *q.shape, dtype=q.dtype, generator=generator)
    times = torch.linspace(0, _DURATION, 61, dtype=torch.float64)
    pair = simulate_pairs(flow, first, second, times, integrator=AdaptiveStep(rtol=1e-7))
    apart = distance(pair, best.metric)
    record = RateRecord(
        network=name,
        flow=best.flow,
        certified=best.rate,
        method=best.method,
        metric=type(best.metric).__name__,
        seen=float(decay_rate(times, apart).slowest.min()),
        sampled=min(sampled_rate(flow, states, best.metric).rate for states in pair.first[::6]),
        bound=rates.bound.rate,
    )
    return record, _Examined(flow=flow, rates=rates, times=times, distances=apart)


def _inclusion(name: str, layer: EquilibriumLayer) -> RateRecord:
    W, metric = _weight(layer)
    rates = report(InclusionSystem(W=W, hint=metric.weights))
    return RateRecord(
        network=name,
        flow=rates.best.flow,
        certified=rates.best.rate,
        method="monotonicity, best diagonal",
        metric=type(rates.best.metric).__name__,
        seen=None,
        sampled=None,
        bound=rates.bound.rate,
    )


def _sweeps(small: bool) -> tuple[SkewnessSweep, StepSweep]:
    """On a few random units, for which the best constant quadratic metric is known, from all vertices."""
    n = _SMALL_UNITS if small else _SWEEP_UNITS
    generator = torch.Generator().manual_seed(3)
    V, S = torch.randn(2, n, n, dtype=torch.float64, generator=generator)
    values, basis = torch.linalg.eigh(V @ V.mT)
    spread = (values - values[0]) / (values[-1] - values[0])
    symmetric = basis @ torch.diag(0.3 + 1.5 * spread) @ basis.mT
    skew = S - S.mT
    root = torch.exp(0.25 * (2 * torch.rand(n, dtype=torch.float64, generator=generator) - 1))
    A = symmetric + 1.5 / float(torch.linalg.matrix_norm(skew, 2)) * skew
    W, metric = torch.eye(n, dtype=torch.float64) - A / root[:, None] * root[None, :], WeightedL2(root**2)
    skewness = torch.linspace(0, 3, 3 if small else 9, dtype=torch.float64)
    return sweep_skewness(W, metric, skewness), sweep_steps(
        W, metric, (1.0, 0.1) if small else (1.0, 0.6, 0.35, 0.2, 0.1, 0.03, 0.01)
    )


def _figures(firing: _Examined, skewness: SkewnessSweep, steps: StepSweep) -> dict[str, Draw]:
    system, problem, rates = system_of(firing.flow), firing.flow.problem, firing.rates
    assert isinstance(system, FiringRateSystem)
    parabola = ParabolaTest(optimise=6).certify(system)
    assert parabola.multiplier is not None
    ranges = {"W, scaled by Q": boundary(scaled(system.W, parabola.multiplier))}
    generator = torch.Generator().manual_seed(0)
    patterns = {
        "random patterns": (torch.rand(60, system.size, dtype=torch.float64, generator=generator) < 0.5).double(),
        "patterns of test images": problem.slopes(solve(problem, SemismoothNewton()).z),
        "worst pattern found": rates.bound.slopes,
    }
    spectra = {name: torch.linalg.eigvals(system.jacobians(slopes)) for name, slopes in patterns.items()}
    proved: dict[str, Any] = {"evidence": rates.best, "bound": rates.bound.rate}
    return {
        "trajectories": on_axes(plot_distance, firing.times, firing.distances, **proved),
        "numerical-range": on_axes(plot_numerical_range, ranges, rate=parabola.rate),
        "spectra": on_axes(plot_spectra, spectra, **proved),
        "rates-against-skewness": on_axes(plot_rates_against_skewness, skewness),
        "rate-against-step": on_axes(plot_rate_against_step, steps),
    }
