r"""How many products any Krylov method would need at least, against the products that the default takes.

Once the active neurons J of a row are known, z = ReLU(Wz + q) is a linear system. Whoever combines the vectors
c, Tc, T²c, … of a linearised flow u' = −u + Tu + c (Richardson, momentum, Chebyshev, Anderson, GMRES, …) cannot have a
smaller residual after k products than the combination that minimises it. That one is computed here, for each row of
its own, with J taken from the solution and, for the Peaceman–Rachford flow, the best of five steps for this row: what
nobody can know beforehand, and at no cost but the products.

The default cannot know J, combines nothing, and takes the products of its slowest row for all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import command_line
import torch
from cases import Network, networks
from torch import Tensor

from contracting.flows.splitting import PeacemanRachfordFlow
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.problem import EquilibriumProblem
from contracting.solvers.automatic import Automatic
from contracting.solvers.splitting import PeacemanRachford
from equilibrium.files import output_directory

_EXACT = 1e-12  # J is taken at a solution of this relative residual.
_SAMPLE = 100  # Krylov spaces are computed of so many rows.
_STEPS = 0.25, 0.5, 1.0, 2.0, 4.0  # The Peaceman–Rachford flow is tried with these multiples of the automatic step.


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Products until a relative residual is reached: of some rows the fewest possible, and those of the default.

    Attributes:
        network: its name.
        peaceman_rachford: fewest products with 2K − I, for each row of the sample.
        firing_rate: fewest products with W, for each row of the sample.
        default: steps of the default until its slowest row is there, looking after each.
        taken: steps that the default takes, which plans when to look.
    """

    network: str
    peaceman_rachford: list[int]
    firing_rate: list[int]
    default: int
    taken: int


def fewest(T: Tensor, c: Tensor, residual: tuple[Tensor, Tensor], target: float) -> int:
    """The smallest k for which some u in span(c, Tc, …, Tᵏ⁻¹c) has a residual ‖r + Ru‖ ≤ target.

    Args:
        T: (n, n).
        c: (n,).
        residual: r, (n,), and R, (n, n).
        target: of the norm.
    """
    r, R = residual
    basis = [c / torch.linalg.vector_norm(c)]
    while len(basis) < len(c):
        columns = R @ torch.stack(basis, 1)
        best = torch.linalg.lstsq(columns, -r[:, None]).solution[:, 0]
        if torch.linalg.vector_norm(r + columns @ best) <= target:
            break
        new = T @ basis[-1]
        for _ in range(2):  # twice is enough (Gram–Schmidt)
            for v in basis:
                new = new - (v @ new) * v
        basis.append(new / torch.linalg.vector_norm(new))
    return len(basis)


def limits_of(problem: EquilibriumProblem, sample: int, target: float) -> tuple[list[int], list[int]]:
    """Fewest products of the Peaceman–Rachford and of the firing-rate flow, for each of the first ``sample`` rows."""
    problem = problem.rows(torch.arange(sample))
    z = solve(problem, Automatic(), stop=Stop(rtol=_EXACT, atol=0.0)).z
    automatic = PeacemanRachford().bind(problem, Stop(rtol=target)).step_size
    assert automatic is not None
    flows = [PeacemanRachfordFlow(step=factor * automatic).bind(problem) for factor in _STEPS]
    W, identity = problem.linear.to_dense(), torch.eye(problem.size, dtype=torch.float64)
    slopes, sizes = problem.slopes(z), torch.linalg.vector_norm(z, dim=-1)
    found: tuple[list[int], list[int]] = [], []
    for row in range(sample):
        J, q, wanted = slopes[row], problem.q[row], target * float(sizes[row])
        error = J[:, None] * W - identity  # z ↦ JWz − z, the residual but for Jq
        split = ((flow.reflection.to_dense() * (2 * J - 1), flow.offset[row]) for flow in flows)
        found[0].append(min(fewest(T, c, (J * q, error * J), wanted) for T, c in split))
        found[1].append(fewest(J[:, None] * W, J * q, (J * q, error), wanted))
    return found


def limit(network: Network, rows: int, target: float) -> Limit:
    problem = network.problem(rows, torch.float64)
    stop = Stop(rtol=target, atol=0.0)
    split, plain = limits_of(problem, min(rows, _SAMPLE), target)
    return Limit(
        network=network.name,
        peaceman_rachford=split,
        firing_rate=plain,
        default=int(solve(problem, Automatic(), stop=Stop(rtol=target, atol=0.0, check_every=1)).steps.max()),
        taken=int(solve(problem, Automatic(), stop=stop).steps.max()),
    )


def table(found: list[Limit], target: float) -> str:
    lines = [
        f"Products to a relative residual of {target:g}: the fewest of any Krylov method that knows the active",
        "neurons, each row for itself (fewest, median, most), and the steps of the default, all rows together",
        "",
        "| network | Peaceman–Rachford flow | firing-rate flow | default, slowest row | default, taken |",
        "|---|---|---|---|---|",
    ]
    for entry in found:
        split, plain = (_spread(counts) for counts in (entry.peaceman_rachford, entry.firing_rate))
        lines.append(f"| {entry.network} | {split} | {plain} | {entry.default} | {entry.taken} |")
    return "\n".join(lines) + "\n"


def _spread(counts: list[int]) -> str:
    ordered = sorted(counts)
    return f"{ordered[0]}, {ordered[len(ordered) // 2]}, {ordered[-1]}"


def main(arguments: list[str] | None = None) -> None:
    given = command_line.on_networks(__doc__, "krylov-limit", rows=1000).parse_args(arguments)
    torch.set_num_threads(1)  # nothing is timed
    rows, target = given.rows or (5 if given.small else 1000), given.target or 1e-6
    chosen = networks(given.checkpoints, given.data_dir, small=given.small)
    folder = output_directory(given.out)
    found = [limit(network, rows, target) for network in chosen]
    settings = {"rows": rows, "target": target, "sample": _SAMPLE}
    command_line.finish(folder, table(found, target), settings=settings, limits=[vars(entry) for entry in found])


if __name__ == "__main__":
    command_line.run(main)
