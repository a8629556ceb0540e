"""What a curved activation costs: solves and training steps over those of ReLU, on the same weights and inputs.

Each network is solved and trained one step with each σ in place of its own. Everybody is timed in turn, and ratios are
those within a round. The true relative residual of the worst row is computed in float64. Without --checkpoints a
network is trained on the bundled digits. --small is a version of seconds.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace

import command_line
import torch
from cases import Network, networks
from torch import nn

from contracting.activations.base import Activation
from contracting.activations.catalogue import ELU, ReLU, Sigmoid, Softplus, Tanh
from contracting.loop.run import solve
from contracting.problem import EquilibriumProblem
from equilibrium.experiments.timing import Spread, ratios_in_turn, spread, timer
from equilibrium.files import output_directory
from equilibrium.layers import EquilibriumLayer

BASE = "ReLU"
ACTIVATIONS: dict[str, Activation] = {
    BASE: ReLU(), "Tanh": Tanh(), "Softplus": Softplus(), "ELU": ELU(), "Sigmoid": Sigmoid()
}  # fmt: skip
_SHORTEST = 0.02  # seconds of a measurement, so that the clock's own steps do not count


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One σ on one network with so many rows; ratios are medians with their quartiles."""

    network: str
    rows: int
    activation: str
    iterations: int
    residual: float
    solve: Spread
    step: Spread


def training_step(network: Network, rows: int) -> None:
    """Forward and backward pass."""
    inputs = network.inputs[:rows]
    network.layer.zero_grad(set_to_none=True)
    labels = torch.arange(len(inputs)) % network.layer.out_features
    nn.functional.cross_entropy(network.layer(inputs), labels).backward()


def true_residual(problem: EquilibriumProblem, z: torch.Tensor) -> float:
    """‖z − σ(Wz + q)‖/‖σ(Wz + q)‖ of the worst row, in float64."""
    exact = problem.double()
    image = exact.map(z.double())
    return float(((z.double() - image).norm(dim=-1) / image.norm(dim=-1)).max())


def measure(network: Network, rows: int, given: argparse.Namespace) -> list[Entry]:
    layers = {}
    for name, activation in ACTIVATIONS.items():
        layer = EquilibriumLayer(network.layer.parameterization, activation=activation)
        layers[name] = replace(network, layer=layer)
    problems = {name: one.problem(rows, torch.float32) for name, one in layers.items()}
    solutions = {name: solve(problem, layers[name].layer.solver) for name, problem in problems.items()}
    solves = {
        name: timer(lambda name=name, problem=problem: solve(problem, layers[name].layer.solver))
        for name, problem in problems.items()
    }
    steps = {name: timer(lambda one=one: training_step(one, rows)) for name, one in layers.items()}
    shortest = 0.0 if given.small else _SHORTEST
    found = [
        ratios_in_turn(timers, BASE, rounds=given.rounds, shortest=shortest, clock=given.clock)
        for timers in (solves, steps)
    ]
    return [
        Entry(
            network=network.name,
            rows=rows,
            activation=name,
            iterations=int(solutions[name].steps.max()),
            residual=true_residual(problems[name], solutions[name].z),
            solve=found[0][name],
            step=found[1][name],
        )
        for name in ACTIVATIONS
        if name != BASE
    ]


def table(entries: list[Entry], clock: str) -> str:
    lines = [
        f"Solve and training step over those of ReLU on the same weights, float32, {clock} time: median ratio "
        "(quartiles of the rounds)",
        "",
        "| network | rows | σ | iterations | true residual | solve / ReLU | training step / ReLU |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        lines.append(
            f"| {entry.network} | {entry.rows} | {entry.activation} | {entry.iterations} | {entry.residual:.1e} | "
            f"{spread(*entry.solve)} | {spread(*entry.step)} |"
        )
    worst = [max(getattr(entry, name)[0] for entry in entries) for name in ("solve", "step")]
    return "\n".join([*lines, "", f"Largest medians: solve {worst[0]:.3g}, training step {worst[1]:.3g}"]) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.with_networks(command_line.parser(__doc__, "activations"))
    command_line.timed(parser, rounds=15, clock="cpu")
    parser.add_argument("--rows", type=command_line.whole, nargs="+", help="batch sizes (default 1 128 1000)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    given.rounds = given.rounds or (2 if given.small else 15)
    batches = given.rows or ([1, 20] if given.small else [1, 128, 1000])
    known = networks(given.checkpoints, given.data_dir, small=given.small)
    found = [network for network in known if network.layer.weights().lipschitz is not None]
    folder = output_directory(given.out)
    entries = [entry for one in found for rows in batches for entry in measure(one, rows, given)]
    ratios = {
        f"{what}, {e.network}, {e.rows} rows, float32: {e.activation} / {BASE}": ratio
        for e in entries
        for what, ratio in (("solve", e.solve), ("training step", e.step))
    }
    command_line.finish(
        folder, table(entries, given.clock), ratios=ratios, settings=command_line.settings(given),
        entries=[asdict(e) for e in entries],
    )  # fmt: skip


if __name__ == "__main__":
    command_line.run(main)
