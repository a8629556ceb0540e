"""Iterations of Peaceman–Rachford with its automatic step against the best step of a sweep, on trained networks.

The sweep has 12 steps, evenly spaced on a logarithmic scale from a quarter to four times the automatic one. Iterations
are those of the slowest row to a true relative residual, looked at after every iteration.
"""

from __future__ import annotations

from dataclasses import dataclass

import command_line
import torch
from cases import Network, networks

from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.problem import EquilibriumProblem
from contracting.solvers.splitting import PeacemanRachford
from equilibrium.files import output_directory

POINTS = 12  # So many steps are tried, each a fixed factor from the next.
MOST = 5_000  # A step that needs more iterations is given up.


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One network: None stands for more iterations than ``MOST``."""

    network: str
    condition: float
    step: float
    iterations: int | None
    steps: list[float]
    counts: list[int | None]

    @property
    def best(self) -> int | None:
        """Of the sweep."""
        return min((count for count in self.counts if count is not None), default=None)

    @property
    def ratio(self) -> float:
        """Of the automatic step's iterations to the best."""
        return float("nan") if self.iterations is None or self.best is None else self.iterations / self.best


def iterations(problem: EquilibriumProblem, step: float | None, target: float) -> int | None:
    """Of the slowest row, all in the precision of the problem."""
    method = PeacemanRachford(step=step, mixed_precision=False)
    stop = Stop(rtol=target, atol=0.0, check_every=1, max_steps=MOST)
    solution = solve(problem, method, stop=stop, throw=False)
    return int(solution.steps.max()) if bool(solution.converged.all()) else None


def sweep(network: Network, rows: int, target: float) -> Sweep:
    problem = network.problem(rows, torch.float64)
    operator = problem.require_operator("the sweep")
    centre = operator.best_reflected.step
    steps = [centre * 4 ** (2 * k / (POINTS - 1) - 1) for k in range(POINTS)]
    return Sweep(
        network=network.name,
        condition=operator.bounds.condition,
        step=operator.usual_reflected.step,  # which PeacemanRachford() takes
        iterations=iterations(problem, None, target),
        steps=steps,
        counts=[iterations(problem, step, target) for step in steps],
    )


def table(found: list[Sweep], target: float) -> str:
    lines = [
        f"Iterations to a true relative residual of {target:g}, slowest row",
        "",
        "| network | κ | automatic α | iterations | best α of the sweep | iterations | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in found:
        best = "–" if entry.best is None else f"{entry.steps[entry.counts.index(entry.best)]:.4f}"
        lines.append(
            f"| {entry.network} | {entry.condition:.1f} | {entry.step:.4f} | {entry.iterations} | {best} | "
            f"{entry.best} | {entry.ratio:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    given = command_line.on_networks(__doc__, "step-sweep", rows=1000).parse_args(arguments)
    torch.set_num_threads(1)  # nothing is timed
    rows, target = given.rows or (20 if given.small else 1000), given.target or 1e-6
    chosen = networks(given.checkpoints, given.data_dir, small=given.small)
    folder = output_directory(given.out)
    found = [sweep(network, rows, target) for network in chosen]
    settings = {"rows": rows, "target": target, "points": POINTS}
    entries = [vars(entry) | {"best": entry.best, "ratio": entry.ratio} for entry in found]
    command_line.finish(folder, table(found, target), settings=settings, sweeps=entries)


if __name__ == "__main__":
    command_line.run(main)
