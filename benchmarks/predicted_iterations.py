"""Iterations that the contraction factor predicts against those that are used, for every splitting and integrator.

With factor ρ, a residual τ takes about ln τ/ln ρ iterations from z = 0, whose relative residual is 1. The factor of a
splitting is a bound for the worst input and any start; so fewer iterations than predicted are the rule, and more would
only be due to the constants between norms. For integrators on the firing-rate and Hopfield flows the factor is the one
close to the equilibrium. Residuals are looked at after every step; methods without a constant factor (adaptive steps,
Newton) are listed with what they used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import command_line
import torch
from cases import Network, networks

from contracting.errors import MissingExtraError, PreconditionError
from contracting.loop.method import Method
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.solvers.catalogue import ROW_LIMITS, default_solvers
from equilibrium.files import output_directory

MOST = 20_000  # A solver that needs more steps is given up.


@dataclass(frozen=True, kw_only=True)
class Count:
    """One method on one network; ``refused`` says why it did not start."""

    network: str
    solver: str
    family: str
    factor: float | None
    predicted: float | None
    used: int | None
    refused: str | None

    @property
    def ratio(self) -> float | None:
        """Used over predicted."""
        return None if self.predicted is None or self.used is None else self.used / self.predicted


def count(network: Network, rows: int, name: str, method: Method, target: float) -> Count:
    problem = network.problem(min(rows, ROW_LIMITS.get(name, rows)), torch.float64)
    stop = Stop(rtol=target, atol=0.0, check_every=1, max_steps=MOST)
    factor = predicted = used = refused = None
    try:
        factor = method.bind(problem, stop.resolved(problem)).factor
        solution = solve(problem, method, stop=stop, throw=False)
    except (PreconditionError, MissingExtraError) as error:
        refused = str(error)
    else:
        predicted = None if factor is None or not 0 < factor < 1 else math.log(target) / math.log(factor)
        used = int(solution.steps.max()) if bool(solution.converged.all()) else None
    return Count(
        network=network.name,
        solver=name,
        family=method.family,
        factor=factor,
        predicted=predicted,
        used=used,
        refused=refused,
    )


def table(found: list[Count], target: float) -> str:
    lines = [
        f"Iterations to a true relative residual of {target:g}, slowest row",
        "",
        "| network | method | factor ρ | predicted, ln τ/ln ρ | used | used / predicted |",
        "|---|---|---|---|---|---|",
    ]
    for entry in found:
        factor = "–" if entry.factor is None else f"{entry.factor:.4f}"
        predicted = "–" if entry.predicted is None else f"{entry.predicted:.1f}"
        used = "refused" if entry.refused else "not reached" if entry.used is None else str(entry.used)
        ratio = "–" if entry.ratio is None else f"{entry.ratio:.2f}"
        lines.append(f"| {entry.network} | {entry.solver} | {factor} | {predicted} | {used} | {ratio} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.on_networks(__doc__, "predicted-iterations", rows=200)
    parser.add_argument("--threads", type=command_line.whole, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    rows = given.rows or (4 if given.small else 200)
    target = given.target or (1e-3 if given.small else 1e-6)
    chosen = networks(given.checkpoints, given.data_dir, small=given.small)
    folder = output_directory(given.out)
    found = []
    for network in chosen:
        for name, method in default_solvers().items():
            if not (given.small and name in ROW_LIMITS):
                found.append(count(network, rows, name, method, target))
                print(f"{network.name}, {name}: {found[-1].used}", flush=True)
    counts = [vars(entry) | {"ratio": entry.ratio} for entry in found]
    command_line.finish(folder, table(found, target), settings={"rows": rows, "target": target}, counts=counts)


if __name__ == "__main__":
    command_line.run(main)
