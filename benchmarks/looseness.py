"""How far certificates lie from the truth: every kind that once was loose, by its old recipe and by today's.

Rates are compared by truth − certified, in units of the leak, with an upper bound in any norm in the place of the
truth; bounds by certified/true − 1. Each row is the median, the 90 % quantile and the worst of so many random systems,
or of the rows of a solve. --small is a version of seconds.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import command_line
import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.activations.catalogue import ReLU, Sigmoid
from contracting.certificates import (
    CertificateError,
    DiagonalMetric,
    FiringRateSystem,
    GivenMetric,
    HopfieldSystem,
    LinearSystem,
    ParabolaTest,
    PolyhedralMetric,
    VertexInequalities,
    abscissa_bound,
    best_peaceman_rachford_step,
    certify,
    find_metric,
    fixed_input_convergence,
    peaceman_rachford_system,
    upper_bound,
)
from contracting.certificates.riccati import lyapunov_metric
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.metrics import FullP, WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers.splitting import PeacemanRachford
from equilibrium.checkpoints import load_reference
from equilibrium.convolution import LBENConv2d, MetricShape
from equilibrium.files import output_directory
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz import (
    Branches,
    Coupled,
    InteriorPoint,
    LipschitzSystem,
    Norm,
    PatternSearch,
    RowByRow,
    attained_lipschitz,
    certified_lipschitz,
    lipschitz_system,
)
from equilibrium.lipschitz.checker import single_output, turned
from equilibrium.lipschitz.frequencies import PerFrequency
from equilibrium.lipschitz.frequency_checker import ImageSystem
from equilibrium.lipschitz.pairs import Network
from equilibrium.parameterizations import Monotone
from equilibrium.weights import explicit_weights

F64 = torch.float64
_CHECKPOINTS = {"fc_lip5.0_w80": 5.0, "lben_w80": None, "mondeq_w80": None}  # γ each was trained with


@dataclass(frozen=True, kw_only=True)
class Looseness:
    """One kind of certificate.

    Attributes:
        kind: which.
        measure: what the numbers are.
        before: looseness of the old recipe, (median, 90 %, worst).
        after: of today's.
        count: of how many systems or rows.
    """

    kind: str
    measure: str
    before: tuple[float, float, float]
    after: tuple[float, float, float]
    count: int


def _row(kind: str, measure: str, pairs: Sequence[tuple[float, float]]) -> Looseness:
    before, after = (_quantiles(values) for values in zip(*pairs, strict=True))
    return Looseness(kind=kind, measure=measure, before=before, after=after, count=len(pairs))


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    found = torch.tensor(values, dtype=F64).quantile(torch.tensor([0.5, 0.9, 1.0], dtype=F64))
    median, most, worst = found.tolist()
    return median, most, worst


def gaussian(n: int, seed: int) -> Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=F64) / n**0.5


def monotone(n: int, seed: int, *, m: float = 0.1) -> tuple[Tensor, Tensor]:
    """W and Λ with λmin(sym Ã) = m, a skew part of norm 2 and a Λ that is not even."""
    draw = torch.Generator().manual_seed(1000 + seed)
    V, S = torch.randn(2, n, n, generator=draw, dtype=F64)
    gram, skew = V @ V.mT / n, S - S.mT
    values = torch.linalg.eigvalsh(gram)
    A = gram + (m - values[0]) * torch.eye(n, dtype=F64) + 2 * skew / torch.linalg.matrix_norm(skew, 2)
    root = torch.exp(0.75 * torch.randn(n, generator=draw, dtype=F64))
    return torch.eye(n, dtype=F64) - A / root[:, None] * root, root.square()


def _reflected(seed: int, off: float) -> tuple[float, float]:
    """Peaceman–Rachford with the best step in Λ; the hint is off by factors of e^±off."""
    W, lam = monotone(6, seed)
    step = best_peaceman_rachford_step(W, WeightedL2(lam)).step
    signs = 2 * (torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=F64) < 0.5).double() - 1
    system = peaceman_rachford_system(W, step=step, hint=lam * (off * signs).exp())
    truth = upper_bound(system).rate
    return truth - DiagonalMetric().certify(system).rate, truth - ParabolaTest().certify(system).rate


def _firing(seed: int) -> tuple[float, float]:
    """Firing rate of 6 and 7 units: from the sector inequality alone, and from all vertices."""
    system = FiringRateSystem(W=gaussian(6 + seed % 2, seed))
    truth, sector = upper_bound(system).rate, ParabolaTest().certify(system).rate
    return truth - sector, truth - max(sector, VertexInequalities().certify(system).rate)


def _by_itself(seed: int) -> tuple[float, float]:
    """``ParabolaTest()`` without settings."""
    system = FiringRateSystem(W=gaussian(8, seed))
    truth = upper_bound(system).rate
    return truth - ParabolaTest(optimise=0).certify(system).rate, truth - ParabolaTest().certify(system).rate


def _nilpotent(seed: int) -> tuple[float, float]:
    """−I plus a nilpotent matrix of 16 rows in rotated coordinates: the truth is 1."""
    draw = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(16, 16, generator=draw, dtype=F64)).Q
    N = torch.triu(torch.randn(16, 16, generator=draw, dtype=F64), 1)
    system = LinearSystem(W=Q @ (N / N.abs().max() - torch.eye(16, dtype=F64)) @ Q.mT)
    return 1 - _first_lyapunov(system), 1 - certify(system).rate


def _jordan(seed: int) -> tuple[float, float]:
    """−I plus a Jordan block of 16 rows, times a coupling from 1 to 100: the truth is 1, which no metric attains."""
    coupling = 100 ** float(torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=F64))
    system = LinearSystem(W=coupling * torch.diag(torch.ones(15, dtype=F64), 1) - torch.eye(16, dtype=F64))
    return 1 - _first_lyapunov(system), 1 - certify(system).rate


def _first_lyapunov(system: LinearSystem) -> float:
    """The old recipe: the first gap of a list at which the equation has a positive definite solution, else P = I."""
    A = system.W
    abscissa, size = float(torch.linalg.eigvals(A).real.max()), float(torch.linalg.matrix_norm(A, 2))
    metric: FullP | WeightedL2 = WeightedL2.identity(len(A), dtype=F64)
    for gap in (1e-6, 1e-5, 1e-3, 1e-2, 0.1):
        P = lyapunov_metric(A - (abscissa + gap * size) * torch.eye(len(A), dtype=F64))
        if P is not None:
            metric = FullP(P)
            break
    try:
        return GivenMetric(metric=metric).certify(system).rate
    except CertificateError:
        return PolyhedralMetric().certify(system).rate  # which was tried beside it


def _convergence(seed: int) -> tuple[float, float]:
    """Constant input: ½min(1, m), and what is searched."""
    system = HopfieldSystem(W=monotone(6, seed, m=0.5)[0])
    truth = abscissa_bound(system).rate
    old = 0.5 * min(1.0, find_metric(system.W).monotonicity)
    return truth - old, truth - fixed_input_convergence(system).rate


def _beside_contraction(seed: int) -> tuple[float, float]:
    """Constant input, how far below the rate that ``certify`` proves for every input; the first W is zero."""
    system = FiringRateSystem(W=(seed > 0) * monotone(6, seed, m=0.5)[0])
    proved = certify(system).rate
    old = 0.5 * min(1.0, find_metric(system.W).monotonicity)
    return proved - old, proved - fixed_input_convergence(system).rate


def _errors(dtype: torch.dtype, count: int) -> list[tuple[float, float]]:
    """Certified over true error of each row of a solve: by (1 + w/m)‖r‖ in the precision of the solve, and now."""
    W, lam = monotone(40, 0)
    q = 3 * torch.randn(count, 40, generator=torch.Generator().manual_seed(1), dtype=F64)
    problem = EquilibriumProblem(
        linear=Dense(W.to(dtype)), q=q.to(dtype), activation=ReLU(), metric=WeightedL2(lam.to(dtype))
    )
    solution = solve(problem, PeacemanRachford())
    truth = solve(problem.double(), PeacemanRachford(), stop=Stop(rtol=1e-14, atol=0.0), throw=False).z
    operator, metric = problem.operator, problem.metric
    assert operator is not None and metric is not None and solution.error_bound is not None
    z, gain, eps = solution.z, operator.bounds.gain, torch.finfo(dtype).eps
    rounding = 8 * eps * 40**0.5 * ((1 + gain) * metric.norm(z) + metric.norm(problem.q))
    old = (1 + gain / operator.bounds.monotonicity) * (metric.norm(problem.residual(z)) + rounding)
    error = metric.norm(z.double() - truth)
    found = torch.stack([old.double() / error - 1, solution.error_bound / error - 1], 1)
    return [(before, after) for before, after in found.tolist()]


def _small(seed: int) -> tuple[LipschitzSystem, Tensor]:
    """A network of 8 units, and the slopes of its input-output map for all patterns of slopes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        free = Monotone(4, 8, 3, dtype=F64)
    system = lipschitz_system(free.explicit())
    J = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)), dtype=F64)
    states = torch.linalg.solve(torch.eye(8, dtype=F64) - J[:, :, None] * system.W, J[:, :, None] * system.U)
    return system, system.C @ states + system.D


def _beside_one(finder: Branches | Coupled, seed: int) -> tuple[float, float]:
    """ℓ2 constant of 8 units: by one multiplier and by ``finder``, over the largest gain of all patterns of slopes."""
    system, slopes = _small(seed)
    truth = float(torch.linalg.matrix_norm(slopes, 2).max())
    return InteriorPoint().certify(system).bound / truth - 1, finder.certify(system).bound / truth - 1


def _row_by_row(norm: Norm, seed: int) -> tuple[float, float]:
    """ℓ∞ or ℓ1 constant of 8 units: √n times that of every row in ℓ2, and the best units of the inputs."""
    system, slopes = _small(seed)
    truth = float(torch.linalg.matrix_norm(slopes, float("inf") if norm is Norm.LINF else 1).max())
    rows = turned(system, norm)  # in ℓ1 of the transposed map
    inputs = rows.U.shape[1]
    outputs = [single_output(rows, i, torch.ones(inputs, dtype=F64)) for i in range(len(rows.C))]
    largest = max(InteriorPoint().certify(output).bound for output in outputs)
    return inputs**0.5 * largest / truth - 1, RowByRow(norm=norm).certify(system).bound / truth - 1


def image_layer(seed: int, metric: MetricShape, activation: Activation) -> LBENConv2d:
    """Two channels on 4×4 positions inside a border, 32 neurons, with three outputs and no γ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = LBENConv2d(1, 2, 3, image=(4, 4), metric=metric, activation=activation, epsilon=0.1, dtype=F64)
        if layer.parameterization.psi is not None:
            torch.nn.init.normal_(layer.parameterization.psi, std=0.3)
    return layer


def _of_images(seed: int, metric: MetricShape, activation: Activation, cases: int) -> tuple[float, float]:
    """ℓ2 constant on images: per frequency with the border's slopes in [0, 1], and now, over the best pattern found."""
    layer = image_layer(seed, metric, activation)
    system = lipschitz_system(layer)
    free = Network(explicit_weights(system.W, system.U, system.C), activation)
    _, gains = PatternSearch().patterns(free, torch.empty(0, 16, dtype=F64), torch.Generator().manual_seed(seed))
    truth = float(gains.max())
    old = PerFrequency().certify(ImageSystem(weights=layer.weights()))
    return old.bound / truth - 1, certified_lipschitz(layer, cases=cases).bound / truth - 1


def _gains(layer: EquilibriumLayer, restarts: int, leaves: int) -> tuple[float, ...]:
    """The largest gain that is attained, the constant by one multiplier, by cases, and by couplings."""
    attained = attained_lipschitz(layer, searches=[PatternSearch(restarts=restarts)])
    system = lipschitz_system(layer)
    proofs = (finder.certify(system) for finder in (InteriorPoint(), Branches(leaves=leaves), Coupled()))
    return attained.ratio, *(proof.bound for proof in proofs)


def study(*, systems: int, rows: int) -> list[Looseness]:
    """Every kind, in the order of the table."""
    kinds = {
        "Peaceman–Rachford, Λ exact": lambda seed: _reflected(seed, 0.0),
        "Peaceman–Rachford, Λ off by e^±2": lambda seed: _reflected(seed, 2.0),
        "firing rate, 6 and 7 units": _firing,
        "`ParabolaTest()` by itself": _by_itself,
        "Jordan block, n = 16": _jordan,
        "nilpotent linear flow, rotated, n = 16": _nilpotent,
        "constant input": _convergence,
    }
    found = []
    for kind, compare in kinds.items():
        found.append(_row(kind, "truth − rate", [compare(seed) for seed in range(systems)]))
        print(f"{kind}: worst {found[-1].before[2]:.3g} before, {found[-1].after[2]:.3g} after", flush=True)
    below = [_beside_contraction(seed) for seed in range(systems)]
    found.append(_row("constant input, `certify` beside it", "its rate − rate", below))
    for finder, name in ((Branches(leaves=64), "by cases"), (Coupled(), "by couplings")):
        pairs = [_beside_one(finder, seed) for seed in range(systems)]
        found.append(_row(f"ℓ2 constant, 8 units, {name}", "bound/gain − 1", pairs))
    for norm, name in ((Norm.LINF, "ℓ∞"), (Norm.L1, "ℓ1")):
        pairs = [_row_by_row(norm, seed) for seed in range(systems)]
        found.append(_row(f"{name} constant, 8 units", "bound/gain − 1", pairs))
    shapes = {"ReLU": (MetricShape.CHANNEL, ReLU(), 1), "ReLU, Ψ per position": (MetricShape.POSITION, ReLU(), 1)}
    shapes |= {"ReLU, Ψ full": (MetricShape.FULL, ReLU(), 1), "ReLU, 8 cases": (MetricShape.CHANNEL, ReLU(), 8)}
    shapes |= {"ReLU, Ψ per position, 8 cases": (MetricShape.POSITION, ReLU(), 8)}
    shapes |= {"ReLU, Ψ full, 8 cases": (MetricShape.FULL, ReLU(), 8)}
    shapes |= {"sigmoid": (MetricShape.CHANNEL, Sigmoid(), 1), "sigmoid, Ψ full": (MetricShape.FULL, Sigmoid(), 1)}
    for name, (metric, activation, cases) in shapes.items():
        pairs = [_of_images(seed, metric, activation, cases) for seed in range(systems)]
        found.append(_row(f"ℓ2 constant on images, {name}", "bound/gain − 1", pairs))
        print(f"images, {name}: worst {found[-1].before[2]:.3g} before, {found[-1].after[2]:.3g} after", flush=True)
    for dtype, name in ((torch.float32, "float32"), (torch.float64, "float64")):
        found.append(_row(f"error of a solve, {name}", "bound/error − 1", _errors(dtype, rows)))
    return found


def table(found: Sequence[Looseness], gains: dict[str, tuple[float, ...]]) -> str:
    lines = [
        "| certificate | measured | of | before: median | 90 % | worst | now: median | 90 % | worst |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        numbers = " | ".join(f"{value:.3g}" for value in (*row.before, *row.after))
        lines.append(f"| {row.kind} | {row.measure} | {row.count} | {numbers} |")
    if gains:
        lines += ["", "| network | attained | by one multiplier | by cases | by couplings |", "|---|---|---|---|---|"]
        lines += [f"| {name} | " + " | ".join(f"{value:.4f}" for value in row) + " |" for name, row in gains.items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", type=command_line.whole, help="random systems of each kind (default 6)")
    parser.add_argument("--rows", type=command_line.whole, help="rows of the solve (default 200)")
    parser.add_argument("--checkpoints", type=command_line.path, help="folder of the reference code (default none)")
    parser.add_argument("--restarts", type=command_line.whole, default=64, help="of the pattern search (default 64)")
    parser.add_argument("--leaves", type=command_line.whole, default=16, help="cases of a checkpoint (default 16)")
    out = Path("out/looseness")
    parser.add_argument("--out", type=command_line.path, default=out, help="folder (default %(default)s)")
    parser.add_argument("--small", action="store_true", help="a few seconds' version (default: the whole)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = output_directory(given.out)
    found = study(systems=given.systems or (2 if given.small else 6), rows=given.rows or (20 if given.small else 200))
    gains: dict[str, tuple[float, ...]] = {}
    for name, gamma in _CHECKPOINTS.items() if given.checkpoints else ():
        layer = load_reference(given.checkpoints / f"{name}.pt", lipschitz=gamma).double()
        gains[name.removesuffix("_w80")] = _gains(layer, given.restarts, given.leaves)
    command_line.finish(folder, table(found, gains), looseness=[asdict(row) for row in found], gains=gains)


if __name__ == "__main__":
    command_line.run(main)
