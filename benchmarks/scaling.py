"""Time and memory against the number of neurons, of rows and of iterations; every point is a process of its own.

Three tables in float64 with PeacemanRachford(): random well-posed weights of growing size, to a relative residual of
1e-6 (the largest is n = 4000 with 128 rows); one weight with n = 80 and batches up to 60,000 rows in one call; and the
peak memory of a forward and backward pass at loose and tight tolerances, beside the same differentiated through its
iterations (Unrolled), whose memory must grow. Set-up is what depends on the weight alone. Memory is the largest that
the process took beyond what it had with the problem in hand. Exponents are fitted by least squares to the larger half
of the points.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import command_line
import torch
from cases import fitted_exponent, true_residual
from own_process import in_own_process
from scaling_point import Point
from torch import Tensor

from contracting.activations.catalogue import ReLU
from contracting.gradients.implicit import Implicit, Unrolled
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers.splitting import PeacemanRachford
from equilibrium.experiments.timing import Times, timer
from equilibrium.files import output_directory, write_figure

WAYS = ("Implicit", "Unrolled")


def weight(size: int) -> Tensor:
    """W = I − (VᵀV + I + S − Sᵀ): well-posed with m ≥ 1 and, for every n, about the same condition."""
    generator = torch.Generator().manual_seed(0)
    V, S = (torch.randn(size, size, generator=generator, dtype=torch.float64).div_(size**0.5) for _ in range(2))
    return -(V.mT @ V + S - S.mT)


def point(file: Path, rows: int, target: float, way: str | None, threads: int, runs: int) -> Point:
    """Solve in this process, which has done nothing else."""
    torch.set_num_threads(threads)
    # what is loaded on first use is no cost of the method
    solve(_problem(weight(8), 2), PeacemanRachford(), stop=Stop(rtol=1e-3))
    W = torch.load(file, weights_only=True)
    problem = _problem(W, rows)
    stop = Stop(rtol=target, atol=0.0)
    before = _start_peak()
    setup = timer(lambda: PeacemanRachford().bind(problem.rows(slice(0, 1)), stop.resolved(problem)))(1)
    if way is not None:
        return _with_gradient(problem, stop, way, before, setup)
    measure = timer(lambda: solve(problem, PeacemanRachford(), stop=stop))
    times = [measure(1) for _ in range(runs)]
    memory = _peak() - before
    solution = solve(problem, PeacemanRachford(), stop=stop)
    residual = true_residual(W, problem.q, solution.z)
    return _point(problem, stop, None, int(solution.steps.max()), residual, setup, times, memory)


def _with_gradient(
    problem: EquilibriumProblem, stop: Stop, way: str, before: int, setup: tuple[float, float]
) -> Point:
    """Forward and backward pass, for the gradient with respect to q."""
    q = problem.q.clone().requires_grad_()
    asked = problem.with_tensors([q, *problem.tensors()[1:]])
    backward: Any = Implicit(stop=stop) if way == "Implicit" else Unrolled()
    answers = []

    def both() -> None:
        z = backward.equilibrium(asked, PeacemanRachford(), stop)
        z.sum().backward()
        answers.append(z.detach())

    times = [timer(both)(1)]
    memory = _peak() - before
    iterations = int(solve(problem, PeacemanRachford(), stop=stop).steps.max())
    residual = true_residual(problem.linear.to_dense(), problem.q, answers[0])
    return _point(problem, stop, way, iterations, residual, setup, times, memory)


def _point(
    problem: EquilibriumProblem,
    stop: Stop,
    way: str | None,
    iterations: int,
    residual: float,
    setup: tuple[float, float],
    times: list[tuple[float, float]],
    memory: int,
) -> Point:
    wall, cpu = zip(*times, strict=True)
    return Point(
        size=problem.size,
        rows=problem.batch,
        target=stop.rtol or 0.0,
        way=way,
        iterations=iterations,
        residual=residual,
        setup_wall=setup[0],
        setup_cpu=setup[1],
        solve=Times(walls=wall, cpus=cpu, repeats=1),
        memory=memory,
    )


def _problem(W: Tensor, rows: int) -> EquilibriumProblem:
    q = torch.randn(rows, len(W), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    metric = WeightedL2.identity(len(W), dtype=torch.float64)
    return EquilibriumProblem(linear=Dense(W), q=q, activation=ReLU(), metric=metric)


def _start_peak() -> int:
    """The memory of this process now, in bytes; its peak counts from here where the system (Linux) allows that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """The largest memory of this process so far, in bytes."""
    with contextlib.suppress(OSError):
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Points:
    """Measures every point in a new process, on a weight that this one made."""

    def __init__(self, folder: Path, threads: int, runs: int):
        self.folder, self.threads, self.runs = folder, threads, runs

    def __call__(self, size: int, rows: int, target: float, way: str | None = None) -> Point:
        file = self.folder / f"{size}.pt"
        if not file.exists():
            torch.save(weight(size), file)
        found = in_own_process(point, file, rows, target, way, self.threads, self.runs)
        print(f"n = {size}, {rows} rows, {target:g}, {way or 'solve'}: {found.solve_wall:.3g} s", flush=True)
        return found


def exponent(points: list[Point], field: str, value: str) -> float | None:
    """Of the larger half of the points."""
    half = points[len(points) // 2 :] if len(points) > 3 else points
    if len(half) < 2 or any(getattr(entry, value) <= 0 for entry in half):
        return None
    return fitted_exponent([getattr(entry, field) for entry in half], [getattr(entry, value) for entry in half])


def tables(sizes: list[Point], batches: list[Point], memory: list[Point], clock: str) -> str:
    solved, made = f"solve_{clock}", f"setup_{clock}"
    lines = [
        f"{clock} time against the number of neurons, {sizes[0].rows} rows, float64; solves: median (quartiles)",
        "",
        "| n | iterations | true residual | set-up (s) | solve (s) | memory (MB) | in n × n matrices |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.size} | {p.iterations} | {p.residual:.1e} | {getattr(p, made):.3g} | {p.solve.text(clock, 1)} | "
        f"{p.memory / 1e6:.0f} | {p.matrices:.1f} |"
        for p in sizes
    ]
    lines += [
        "",
        f"fitted exponents in n: set-up {_shown(exponent(sizes, 'size', made))}, "
        f"solve {_shown(exponent(sizes, 'size', solved))}, memory {_shown(exponent(sizes, 'size', 'memory'))}",
        "",
        f"{clock} time against the number of rows, n = {batches[0].size}, float64",
        "",
        "| rows | iterations | true residual | solve (s) | per row (µs) | memory (MB) | in rows × n arrays |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.rows} | {p.iterations} | {p.residual:.1e} | {p.solve.text(clock, 1)} | "
        f"{1e6 * getattr(p, solved) / p.rows:.3g} | {p.memory / 1e6:.1f} | {p.states:.1f} |"
        for p in batches
    ]
    lines += [
        "",
        f"fitted exponents in rows: solve {_shown(exponent(batches, 'rows', solved))}, "
        f"memory {_shown(exponent(batches, 'rows', 'memory'))}",
        "",
        f"Memory of a forward and backward pass, n = {memory[0].size}, {memory[0].rows} rows, float64",
        "",
        "| gradient | tolerance | iterations | memory (MB) | in rows × n arrays |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.way} | {p.target:g} | {p.iterations} | {p.memory / 1e6:.0f} | {p.states:.1f} |" for p in memory
    ]
    for way in WAYS:
        some = [p for p in memory if p.way == way]
        lines += ["", f"{way}: {some[-1].memory / some[0].memory:.2f} times the memory for "
                  f"{some[-1].iterations / some[0].iterations:.1f} times the iterations"]
    return "\n".join(lines) + "\n"


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.timed(command_line.parser(__doc__, "scaling"), rounds=5)
    parser.add_argument("--sizes", type=command_line.whole, nargs="+", help="numbers of neurons (default 50 … 4000)")
    parser.add_argument("--rows", type=command_line.whole, nargs="+", help="batch sizes at n = 80 (default 1 … 60000)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    from scaling_plots import draw

    sizes = given.sizes or ([40, 120] if given.small else [50, 100, 250, 500, 1000, 2000, 4000])
    rows = given.rows or ([2000] if given.small else [1, 10, 100, 1000, 10_000, 60_000])
    folder = output_directory(given.out)
    with tempfile.TemporaryDirectory() as temporary:
        points = Points(Path(temporary), given.threads, given.rounds or (1 if given.small else 5))
        by_size = [points(size, 128, 1e-6) for size in sizes]
        by_rows = [points(80, count, 1e-6) for count in rows]
        count = 5000 if given.small else 20_000
        memory = [points(80, count, target, way) for way in WAYS for target in (1e-2, 1e-12)]
    entries = {
        name: [vars(p) | {"matrices": p.matrices, "states": p.states} for p in some]
        for name, some in (("sizes", by_size), ("rows", by_rows), ("memory", memory))
    }
    text = tables(by_size, by_rows, memory, given.clock)
    command_line.finish(folder, text, settings=command_line.settings(given), **entries)
    print(f"wrote {write_figure(folder / 'scaling.png', draw(by_size, by_rows, given.clock), dpi=200)}")


if __name__ == "__main__":
    command_line.run(main)
