"""``contraction-rates``: every flow of a trained network with its certified, its seen and its largest possible rate."""

# no postponed annotations here: typer reads the annotations of the commands, which exist only once typer is imported

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates import (
    FiringRateSystem,
    InclusionSystem,
    ParabolaTest,
    Report,
    best_forward_backward_step,
    best_peaceman_rachford_step,
    report,
    system_of,
)
from contracting.certificates.multipliers import scaled
from contracting.certificates.numerical_range import boundary
from contracting.certificates.sweeps import SkewnessSweep, StepSweep, sweep_skewness, sweep_steps
from contracting.errors import PreconditionError
from contracting.flows.base import BoundFlow, Flow
from contracting.flows.network import FiringRate, Hopfield
from contracting.flows.splitting import ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.loop.run import solve
from contracting.metrics import WeightedL2
from contracting.simulation.decay import decay_rate
from contracting.simulation.sampled import sampled_rate
from contracting.simulation.time_steps import AdaptiveStep
from contracting.simulation.trajectories import distance, simulate_pairs
from contracting.solvers.newton import SemismoothNewton
from equilibrium.checkpoints import load_reference
from equilibrium.experiments.common import (
    SMALL_HELP,
    THREADS_HELP,
    aligned,
    clean_output,
    draw_figures,
    new_layer,
    number,
    running_with,
)
from equilibrium.experiments.common import report as report_files
from equilibrium.files import environment, write_json, write_text
from equilibrium.layers import EquilibriumLayer
from equilibrium.training.classifier import error_percent, train
from equilibrium.training.data import Dataset, digits, subset

_DURATION = 6.0  # of the simulated pairs, in time constants
_SMALL_UNITS, _SWEEP_UNITS = 3, 5


def command(typer: ModuleType) -> Callable[..., None]:
    """The command as a function whose parameters are the options."""
    option = typer.Option

    def contraction_rates(
        rate: Annotated[float, option(help="Contraction rate built into the trained network.")] = 0.2,
        lipschitz: Annotated[float, option(help="Certified Lipschitz constant of the trained network.")] = 1.0,
        hidden: Annotated[int | None, option(help="Neurons (default 40).")] = None,
        epochs: Annotated[int | None, option(help="Passes over the training images (default 15).")] = None,
        checkpoint: Annotated[Path | None, option(help="Reference checkpoint to examine beside it.")] = None,
        checkpoint_lipschitz: Annotated[
            float | None, option(help="Lipschitz constant that the checkpoint was trained with, if it was.")
        ] = None,
        epsilon: Annotated[float, option(help="Strong monotonicity that the checkpoint was trained with.")] = 1.0,
        seed: Annotated[int, option(help="Of the weights and of the order of the images.")] = 0,
        threads: Annotated[int, option(help=THREADS_HELP)] = 1,
        out: Annotated[Path, option(help="Folder for figures, results.json and table.txt.")] = Path("out"),
        small: Annotated[bool, option("--small", help=SMALL_HELP)] = False,
    ) -> None:
        """Train a contracting network on digits; certified ≤ true ≤ bound for each of its flows, with figures."""
        hidden = checks.whole_number("--hidden", (12 if small else 40) if hidden is None else hidden)
        epochs = checks.whole_number("--epochs", (1 if small else 15) if epochs is None else epochs)
        checks.seed("--seed", seed)
        with running_with(checks.whole_number("--threads", threads)), clean_output(out) as folder:
            networks: dict[str, EquilibriumLayer] = {}
            if checkpoint is not None:  # read first: a wrong file is said before the training
                reference = load_reference(checkpoint, lipschitz=checkpoint_lipschitz, epsilon=epsilon)
                networks[f"checkpoint {checkpoint.name}"] = reference.double()
            dataset = digits(seed=seed)
            dataset = subset(dataset, train=600, test=200) if small else dataset
            layer = new_layer(dataset, hidden, seed, lipschitz=lipschitz, contraction_rate=rate)
            train(layer, dataset, epochs=epochs, seed=seed, progress=True)
            layer.double()
            error = error_percent(layer, dataset.test_inputs.double(), dataset.test_labels)
            print(
                f"trained LBEN({dataset.features}, {hidden}, {dataset.classes}, lipschitz={lipschitz:g}, "
                f"contraction_rate={rate:g}) on digits: test error {error:.2f} %\n",
                flush=True,
            )
            networks = {f"trained on digits, contraction_rate={rate:g}": layer, **networks}
            for network in networks.values():
                network.requires_grad_(False)
            _run(networks, dataset, error, folder, small)

    return contraction_rates


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


def _run(
    networks: dict[str, EquilibriumLayer], dataset: Dataset, error: float, folder: Path, small: bool
) -> None:
    records: list[RateRecord] = []
    firing: list[_Examined] = []
    for name, layer in networks.items():
        inputs = dataset.test_inputs.double()[: 8 if small else 24]
        if layer.in_features != dataset.features:  # made for other images; certificates hold for every input anyway
            generator = torch.Generator().manual_seed(0)
            inputs = torch.randn(len(inputs), layer.in_features, dtype=torch.float64, generator=generator)
        for settings in _flows(layer):
            record, examined = _examine(name, layer.flow(settings, inputs))
            records.append(record)
            firing += [examined] if isinstance(settings, FiringRate) else []
        records.append(_inclusion(name, layer))
    text = "\n".join(_table(records))
    print(text, flush=True)
    results = {"environment": environment(), "test_error": error, "rates": records}
    written = [write_json(folder / "results.json", results), write_text(folder / "table.txt", text + "\n")]
    skewness, steps = _sweeps(small)
    report_files(written, draw_figures(folder, _figures(firing[0], skewness, steps), small=small))


def _weight(layer: EquilibriumLayer) -> tuple[Tensor, WeightedL2]:
    weights = layer.weights()
    if not isinstance(weights.metric, WeightedL2):
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


def _table(records: Sequence[RateRecord]) -> list[str]:
    lines = []
    for network in dict.fromkeys(record.network for record in records):
        rows = [
            (r.flow, r.method, r.metric, number(r.certified), number(r.seen), number(r.sampled), number(r.bound))
            for r in records
            if r.network == network
        ]
        columns = ("flow", "certified by", "norm", "certified", "pairs", "sampled", "bound")
        lines += [network, "", *aligned(columns, rows, left=3), ""]
    return [
        *lines,
        "certified: for every input and state; pairs: slowest mean decay of simulated pairs, sampled: rate of the",
        "Jacobian at states they visit, both in the norm of the certificate and never below it; bound: no certificate",
        "in any norm can exceed it. Rates per time constant of each flow.",
    ]


def _sweeps(small: bool) -> tuple[SkewnessSweep, StepSweep]:
    """On a few random units, for which the truth is known well: the best constant metric comes from all vertices."""
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


def _figures(firing: _Examined, skewness: SkewnessSweep, steps: StepSweep) -> dict[str, Any]:
    from contracting.plots import (
        plot_distance,
        plot_numerical_range,
        plot_rate_against_step,
        plot_rates_against_skewness,
        plot_spectra,
    )

    system, rates = system_of(firing.flow), firing.rates
    assert isinstance(system, FiringRateSystem)
    parabola = ParabolaTest(optimise=6).certify(system)
    assert parabola.multiplier is not None
    ranges = {"W, scaled by Q": boundary(scaled(system.W, parabola.multiplier))}
    generator = torch.Generator().manual_seed(0)
    random = (torch.rand(60, system.size, dtype=torch.float64, generator=generator) < 0.5).to(torch.float64)
    problem = firing.flow.problem
    at_equilibrium = problem.slopes(solve(problem, SemismoothNewton()).z)
    spectra = {
        "random patterns": torch.linalg.eigvals(system.jacobians(random)),
        "patterns of test images": torch.linalg.eigvals(system.jacobians(at_equilibrium)),
        "worst pattern found": torch.linalg.eigvals(system.jacobians(rates.bound.slopes)),
    }
    return {
        "trajectories": lambda axes: plot_distance(
            firing.times, firing.distances, axes, evidence=rates.best, bound=rates.bound.rate
        ),
        "numerical-range": lambda axes: plot_numerical_range(ranges, axes, rate=parabola.rate),
        "spectra": lambda axes: plot_spectra(spectra, axes, evidence=rates.best, bound=rates.bound.rate),
        "rates-against-skewness": lambda axes: plot_rates_against_skewness(skewness, axes),
        "rate-against-step": lambda axes: plot_rate_against_step(steps, axes),
    }
