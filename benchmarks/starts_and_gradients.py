"""Other starts of the solve and other gradients beside the usual ones: what they cost, and what they are wrong by.

Gradients: of the cross-entropy in all parameters, against the implicit one in float64 to 1e-12; times are those of a
training step over that with ``Implicit()``, float32. Starts: a layer is solved from zero, from σ(q), from an affine
guess fitted to the equilibria of other rows, and from the equilibria themselves, which nobody knows beforehand; times
contain the guess. Training: the bundled digits, from the same weights, with each gradient. Everybody is timed in turn,
and ratios are those within a round. Without --checkpoints a network is trained on the digits. --small is a version of
seconds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from dataclasses import asdict, dataclass
from functools import partial

import command_line
import torch
from cases import Network, networks
from torch import Tensor, nn

from contracting.gradients.implicit import Backward, Implicit, Unrolled
from contracting.gradients.truncated import JacobianFree, NeumannSeries
from contracting.loop.records import Stop
from equilibrium.experiments.timing import ratios_in_turn, spread, timer
from equilibrium.files import output_directory
from equilibrium.layers import LBEN, EquilibriumLayer
from equilibrium.starts import AffineStart
from equilibrium.training.data import digits, subset
from equilibrium.training.loop import train
from equilibrium.training.records import TrainingError

GRADIENTS: dict[str, Backward] = {
    "Implicit()": Implicit(),
    "Unrolled()": Unrolled(),
    "NeumannSeries(terms=10)": NeumannSeries(terms=10),
    "NeumannSeries(terms=10, damping=0.5)": NeumannSeries(terms=10, damping=0.5),
    "NeumannSeries(terms=3)": NeumannSeries(terms=3),
    "NeumannSeries(terms=1)": NeumannSeries(terms=1),
    "JacobianFree()": JacobianFree(),
}
USUAL = "Implicit()"
_SHORTEST = 0.02  # seconds of a measurement, so that the clock's own steps do not count
_EXACT = Stop(rtol=1e-12, atol=0.0)
_SEEN = 20  # batches to which a start is fitted, of other rows than those that are solved


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """One way to differentiate one network; the ratio is a median with its quartiles."""

    network: str
    way: str
    error: float
    cosine: float
    step: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start of one network."""

    network: str
    start: str
    distance: float
    steps: int
    products: float
    solve: tuple[float, float, float]


def gradient(layer: EquilibriumLayer, inputs: Tensor) -> Tensor:
    """Of the cross-entropy in all parameters, one vector."""
    layer.zero_grad(set_to_none=True)
    labels = torch.arange(len(inputs)) % layer.out_features
    nn.functional.cross_entropy(layer(inputs), labels).backward()
    return torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])


def with_backward(layer: EquilibriumLayer, backward: Backward) -> EquilibriumLayer:
    other = copy.deepcopy(layer)
    other.backward = backward
    return other


def gradients(network: Network, given: argparse.Namespace) -> list[Gradient]:
    inputs = network.inputs[: given.rows]
    exact = with_backward(network.layer.double(), Implicit(stop=_EXACT))
    exact.stop = _EXACT
    right = gradient(exact, inputs.double())
    layers = {name: with_backward(network.layer.float(), way) for name, way in GRADIENTS.items()}
    timers = {name: timer(partial(gradient, layer, inputs)) for name, layer in layers.items()}
    shortest = 0.0 if given.small else _SHORTEST
    ratios = ratios_in_turn(timers, USUAL, rounds=given.rounds, shortest=shortest, clock=given.clock)
    found = []
    for name, layer in layers.items():
        value = gradient(layer, inputs).double()
        error, cosine = (value - right).norm() / right.norm(), torch.cosine_similarity(value, right, dim=0)
        found.append(
            Gradient(network=network.name, way=name, error=float(error), cosine=float(cosine), step=ratios[name])
        )
    return found


@torch.no_grad()
def starts(network: Network, given: argparse.Namespace) -> list[Start]:
    layer, inputs = network.layer.float(), network.inputs[: given.rows]
    others = network.inputs[given.rows :][: _SEEN * given.rows]
    layer.stop = Stop(rtol=1e-4)
    blank, fitted = AffineStart(layer), AffineStart(layer, memory=1.0)
    for rows in others.split(given.rows):
        fitted.learn(rows, layer.solve(rows).z)
    exact = copy.deepcopy(layer).double().solve(inputs.double(), stop=Stop(rtol=1e-9)).z.float()
    guesses = {
        "zero": lambda: None,
        "σ(q)": lambda: blank(inputs),
        "affine": lambda: fitted(inputs),
        "the equilibrium": lambda: exact,
    }
    solves = {name: (lambda guess=guess: layer.solve(inputs, z0=guess())) for name, guess in guesses.items()}
    shortest = 0.0 if given.small else _SHORTEST
    timers = {name: timer(run) for name, run in solves.items()}
    ratios = ratios_in_turn(timers, "zero", rounds=given.rounds, shortest=shortest, clock=given.clock)
    found = []
    for name, guess in guesses.items():
        start, solution = guess(), solves[name]()
        begin = torch.zeros_like(exact) if start is None else start
        found.append(
            Start(
                network=network.name,
                start=name,
                distance=float(((begin - exact).norm(dim=-1) / exact.norm(dim=-1)).median()),
                steps=int(solution.steps.max()),
                products=solution.map_evals,
                solve=ratios[name],
            )
        )
    return found


def training(given: argparse.Namespace) -> dict[str, list[float]]:
    """Test errors in percent on the digits, by gradient and seed; NaN where training failed."""
    data = subset(digits(), train=300, test=100) if given.small else digits()
    found: dict[str, list[float]] = {}
    for name, way in GRADIENTS.items():
        if way == Unrolled():
            continue
        found[name] = []
        for seed in range(1 if given.small else given.seeds):
            torch.manual_seed(seed)
            layer = LBEN(data.features, 16 if given.small else 80, data.classes, backward=way)
            try:
                record = train(layer, data, epochs=1 if given.small else 10, batch_size=64, seed=seed)
                found[name].append(record.epochs[-1].test_error)
            except TrainingError:
                found[name].append(float("nan"))
    return found


def table(by_gradient: list[Gradient], by_start: list[Start], errors: dict[str, list[float]], clock: str) -> str:
    lines = [
        f"Gradients: error and cosine against the exact one; training step over that with {USUAL}, float32, {clock} "
        "time: median ratio (quartiles of the rounds)",
        "",
        "| network | gradient | relative error | cosine | step |",
        "|---|---|---|---|---|",
        *(f"| {e.network} | {e.way} | {e.error:.2g} | {e.cosine:.4f} | {spread(*e.step)} |" for e in by_gradient),
        "",
        "Starts: relative distance to the equilibrium (median row), steps of the slowest row and products to a "
        f"residual of 1e-4, and time over that from zero, {clock} time",
        "",
        "| network | start | distance | steps | products | time |",
        "|---|---|---|---|---|---|",
        *(
            f"| {e.network} | {e.start} | {e.distance:.2g} | {e.steps} | {e.products:.0f} | {spread(*e.solve)} |"
            for e in by_start
        ),
    ]
    if errors:
        lines += [
            "",
            "Trained on the digits without a bound: test error in percent, median (smallest–largest of the seeds)",
            "",
            "| gradient | test error |",
            "|---|---|",
            *(
                f"| {name} | {spread(statistics.median(found), min(found), max(found))} |"
                for name, found in errors.items()
            ),
        ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.on_networks(__doc__, "starts-and-gradients", rows=128)
    command_line.timed(parser, rounds=15, clock="cpu")
    parser.add_argument("--seeds", type=command_line.whole, default=5, help="of the training on digits (default 5)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    given.rounds = given.rounds or (2 if given.small else 15)
    given.rows = given.rows or (20 if given.small else 128)
    found = networks(given.checkpoints, given.data_dir, small=given.small)
    folder = output_directory(given.out)
    by_gradient = [entry for network in found for entry in gradients(network, given)]
    by_start = [entry for network in found for entry in starts(network, given)]
    errors = training(given)
    ratios = {f"training step, {e.network}, {given.rows} rows: {e.way} / {USUAL}": e.step for e in by_gradient}
    ratios |= {f"solve, {e.network}, {given.rows} rows: from {e.start} / from zero": e.solve for e in by_start}
    command_line.finish(
        folder,
        table(by_gradient, by_start, errors, given.clock),
        ratios=ratios,
        settings=command_line.settings(given),
        gradients=[asdict(e) for e in by_gradient],
        starts=[asdict(e) for e in by_start],
        training=errors,
    )


if __name__ == "__main__":
    command_line.run(main)
