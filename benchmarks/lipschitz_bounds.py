"""The Lipschitz bounds against each other: the semidefinite program, the first-order bound and the interior point.

Two tables, with the numbers in results.json: the gap of the first-order bound to the semidefinite program for growing
networks, and the worst post-hoc bound relative to the built-in γ over many random networks. Times are CPU seconds of
one process: the median of several rounds (quartiles), or one run alone where it takes long. --small is a version
of seconds.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import command_line
import torch
from torch import nn

from contracting.activations.names import as_activation
from equilibrium.experiments.timing import Times, in_turn, timer
from equilibrium.files import environment, output_directory, write_json, write_text
from equilibrium.lipschitz import (
    BuiltIn,
    FirstOrder,
    InteriorPoint,
    LipschitzSystem,
    MatrixInequality,
    lipschitz_system,
)
from equilibrium.parameterizations import Monotone

_BUDGET = 10.0  # Wall seconds: who needs more for a run is timed in that run alone.
ACTIVATIONS = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "leaky": nn.LeakyReLU(0.1), "sigmoid": nn.Sigmoid()}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One network, every way; None where the semidefinite program was not run."""

    hidden: int
    feedthrough: bool
    program: float | None
    program_times: Times | None
    interior: float
    interior_times: Times
    first_order: float
    first_order_times: Times

    @property
    def gap_percent(self) -> float:
        """Of the first-order bound to the best optimum there is."""
        return 100 * (self.first_order / min(self.interior, self.program or self.interior) - 1)


@dataclass(frozen=True, kw_only=True)
class RandomNetworks:
    """The worst post-hoc bound relative to γ, over random networks; at most 1 is the claim."""

    count: int
    worst_ratio: float
    median_ratio: float
    above: int
    seconds: float


def network(
    sizes: tuple[int, int, int],
    seed: int,
    *,
    gamma: float = 1.0,
    feedthrough: bool = False,
    epsilon: float = 0.1,
    size: float = 0.5,
    activation: str = "relu",
) -> LipschitzSystem:
    """The matrices of a random Lipschitz-bounded network; ``size`` scales the free parameters, log Ψ among them."""
    torch.manual_seed(seed)
    free = Monotone(*sizes, lipschitz=gamma, feedthrough=feedthrough, epsilon=epsilon, dtype=torch.float64)
    with torch.no_grad():
        for parameter in free.parameters():
            parameter.copy_(size * torch.randn_like(parameter))
        return lipschitz_system(free.explicit(), activation=as_activation(ACTIVATIONS[activation]))


def compare(hidden: int, feedthrough: bool, program: bool, seed: int, rounds: int) -> Comparison:
    size = 0.3 if hidden <= 60 else 0.05
    inputs = 10 if hidden <= 60 else 784  # few, or the semidefinite program takes many minutes
    system = network((inputs, hidden, 10), seed, feedthrough=feedthrough, size=size)
    ways = {"interior": InteriorPoint(), "first order": FirstOrder()}
    finders = ways | ({"program": MatrixInequality()} if program else {})
    bounds: dict[str, float] = {}

    def certify(name: str) -> None:
        bounds[name] = finders[name].certify(system).bound

    timers = {name: timer(partial(certify, name)) for name in finders}
    times = in_turn(timers, rounds=rounds, shortest=0.01, budget=_BUDGET)
    return Comparison(
        hidden=hidden,
        feedthrough=feedthrough,
        program=bounds.get("program"),
        program_times=times.get("program"),
        interior=bounds["interior"],
        interior_times=times["interior"],
        first_order=bounds["first order"],
        first_order_times=times["first order"],
    )


def random_networks(count: int) -> RandomNetworks:
    start = time.process_time()
    ratios = []
    for seed in range(count):
        draw = torch.Generator().manual_seed(seed)
        inputs, hidden, outputs = (int(torch.randint(1, most + 1, (), generator=draw)) for most in (12, 12, 5))
        exponents = torch.rand(3, generator=draw, dtype=torch.float64)
        gamma = 10 ** float(4 * exponents[0] - 2)  # 0.01 … 100
        system = network(
            (inputs, hidden, outputs),
            seed,
            gamma=gamma,
            feedthrough=seed % 3 == 0,
            epsilon=10 ** float(3 * exponents[1] - 3),  # 0.001 … 1
            size=10 ** float(1.3 * exponents[2] - 1),  # 0.1 … 2
            activation=list(ACTIVATIONS)[seed % 4],
        )
        BuiltIn().certify(system)
        ratios.append(InteriorPoint(tolerance=1e-4).certify(system).bound / gamma)
    found = torch.tensor(ratios)
    return RandomNetworks(
        count=count,
        worst_ratio=float(found.max()),
        median_ratio=float(found.median()),
        above=int((found > 1).sum()),
        seconds=time.process_time() - start,
    )


def table(rows: list[Comparison], found: RandomNetworks) -> str:
    lines = [
        "| n | D | semidefinite program | CPU s | interior point | CPU s | first order | CPU s | gap % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        timed = row.program_times
        program = "– | –" if timed is None else f"{row.program:.6f} | {timed.text('cpu', 1)}"
        lines.append(
            f"| {row.hidden} | {'yes' if row.feedthrough else 'no'} | {program} | {row.interior:.6f} | "
            f"{row.interior_times.text('cpu', 1)} | {row.first_order:.6f} | {row.first_order_times.text('cpu', 1)} | "
            f"{row.gap_percent:.4f} |"
        )
    lines += [
        "",
        f"{found.count} random networks: post-hoc bound / γ at most {found.worst_ratio:.9f}, median "
        f"{found.median_ratio:.4f}, above 1 in {found.above} ({found.seconds:.0f} CPU s, one run)",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a few seconds' version")
    parser.add_argument(
        "--program-up-to", type=command_line.whole, default=60, help="largest n of the semidefinite program"
    )
    parser.add_argument("--networks", type=command_line.whole, help="random networks (default 1000)")
    parser.add_argument("--rounds", type=command_line.whole, default=3, help="in each of which everybody is timed")
    parser.add_argument("--threads", type=command_line.whole, default=1)
    parser.add_argument("--out", type=command_line.path, default=Path("out/lipschitz-bounds"))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    folder = output_directory(given.out)
    sizes = (5, 8) if given.small else (5, 10, 20, 30, 40, 50, 60, 300)
    rows = []
    found = random_networks(given.networks or (10 if given.small else 1000))
    for hidden in sizes:
        for feedthrough in (False, True):
            row = compare(hidden, feedthrough, hidden <= given.program_up_to, hidden, given.rounds)
            rows.append(row)
            print(f"n = {hidden}, feedthrough {feedthrough}: gap {row.gap_percent:.4f} %", flush=True)
            # after every network, so that an interrupted run has shown something
            entries = [asdict(entry) | {"gap_percent": entry.gap_percent} for entry in rows]
            write_json(
                folder / "results.json", {"environment": environment(), "comparison": entries, "random": vars(found)}
            )
    text = table(rows, found)
    write_text(folder / "table.md", text)
    print(text)


if __name__ == "__main__":
    command_line.run(main)
