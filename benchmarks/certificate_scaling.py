"""Time and memory of a contraction certificate with its metric: the parabola test against the number of neurons.

Prints process CPU time, the median of several rounds (quartiles), and the largest memory that the first run took
beyond what the process had before, for random weights of each size. ``--small`` for a second's version.
"""

import argparse
import resource
import sys

import command_line
import torch
from own_process import in_own_process

from contracting.certificates import FiringRateSystem, ParabolaTest, check
from equilibrium.experiments.timing import in_turn, timer


def certificate(size: int) -> None:
    """Print one row: time and memory of certifying, and of checking again, a firing-rate flow of ``size`` neurons."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5
    system = FiringRateSystem(W=0.9 * W)
    torch.linalg.eigvalsh(torch.eye(8, dtype=torch.complex128))  # what is loaded on first use is no cost of the method
    before = _peak()
    finder = ParabolaTest(optimise=0, tolerance=1e-4)
    found = finder.certify(system)
    check(found, system)
    memory = _peak() - before
    people = {"certify": timer(lambda: finder.certify(system)), "check": timer(lambda: check(found, system))}
    times = in_turn(people, rounds=3, shortest=0.01, budget=60.0)
    certified, checked = ("".join(times[name].text("cpu", 1).split()) for name in people)
    print(
        f"{size:6d} {certified:>24s} {checked:>24s} {memory / 1e6:12.0f} "
        f"{memory / (8 * size**2):18.1f} {found.rate:12.4f} {found.margin:10.1e}",
        flush=True,
    )


def _peak() -> int:
    """The largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=command_line.whole, nargs="+", default=[100, 200, 500, 1000])
    parser.add_argument("--small", action="store_true", help="sizes 10 and 40 only")
    options = parser.parse_args(arguments)
    print(
        f"{'n':>6s} {'certify (s)':>24s} {'check (s)':>24s} {'memory (MB)':>12s} {'matrices of n × n':>18s} "
        f"{'rate':>12s} {'margin':>10s}",
        flush=True,
    )
    for size in [10, 40] if options.small else options.sizes:
        in_own_process(certificate, size)  # for its own peak of memory


if __name__ == "__main__":
    command_line.run(main)
