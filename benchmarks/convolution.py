"""One solve of a convolutional equilibrium: Peaceman–Rachford by the transform against forward–backward.

Both stop at the same true residual, in the same run, on the same weights, with the same products with W (tap by tap or
by the transform, whichever the library takes to be cheaper). Forward–backward gets the best fixed step of a sweep
around the one with the smallest proved factor; the time of the sweep, and of the analysis that gives either method its
automatic step, is not counted but printed.

    python benchmarks/convolution.py [--small] [--checkpoint conv_mondeq_w54.pt] [--threads 2] [--out result.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from contracting.errors import Status
from contracting.problem import EquilibriumProblem
from contracting.solve import Method, Solution, Stop, solve
from equilibrium import ForwardBackward, PeacemanRachford, load_reference
from equilibrium.convolution import ConvolutionalLayer, LBENConv2d, MetricShape

SWEEP = (0.5, 0.7, 1.0, 1.3, 1.6, 2.0, 2.5)  # times the step of the smallest proved factor
# gains that give random kernels about the m = 1, L = 5 of a trained monDEQ
G, H = 50.0, 6.5


def random_layer(channels: int, side: int) -> ConvolutionalLayer:
    torch.manual_seed(0)
    layer = LBENConv2d(1, channels, 10, image=(side - 2, side - 2), pool=1, metric=MetricShape.IDENTITY)
    with torch.no_grad():
        layer.parameterization.log_g.fill_(torch.tensor(G).log())
        layer.parameterization.log_h.fill_(torch.tensor(H).log())
    return layer


def timed(call: Callable[[], Solution], repeats: int) -> tuple[Solution, float, float]:
    """The last solution, the least wall time and the least process time of several calls."""
    wall, process = [], []
    for _ in range(repeats):
        wall_started, started = time.perf_counter(), time.process_time()
        solution = call()
        wall.append(time.perf_counter() - wall_started)
        process.append(time.process_time() - started)
    return solution, min(wall), min(process)


def run(problem: EquilibriumProblem, rtol: float, repeats: int) -> dict[str, object]:
    stop = Stop(rtol=rtol, atol=0.0)
    started = time.perf_counter()
    operator = problem.require_operator("the benchmark")
    proved = operator.best_forward.step
    reflected = operator.best_reflected
    analysis = time.perf_counter() - started
    few = problem.rows(torch.arange(min(8, problem.batch)))
    steps: dict[float, int] = {}
    for factor in SWEEP:
        tried = solve(few, ForwardBackward(step=factor * proved), stop=stop, throw=False)
        if bool((tried.status == Status.CONVERGED).all()):
            steps[factor] = int(tried.steps.max())
    best = min(steps, key=lambda factor: steps[factor])
    methods: dict[str, Method] = {
        "Peaceman–Rachford": PeacemanRachford(),
        "forward–backward": ForwardBackward(step=best * proved),
    }
    result: dict[str, object] = {
        "L": operator.bounds.lipschitz,
        "m": operator.bounds.monotonicity,
        "Peaceman–Rachford factor": reflected.factor,
        "analysis seconds": analysis,
        "forward–backward sweep, steps by multiple of the proved step": steps,
    }
    for name, method in methods.items():
        solution, wall, process = timed(partial(solve, problem, method, stop=stop), repeats)
        assert float(solution.relative_residual.max()) <= rtol
        result[name] = {"seconds": wall, "process seconds": process, "steps": int(solution.steps.max())}
    ours, other = result["Peaceman–Rachford"], result["forward–backward"]
    assert isinstance(ours, dict) and isinstance(other, dict)
    result["ratio of seconds"] = other["seconds"] / ours["seconds"]
    result["ratio of process seconds"] = other["process seconds"] / ours["process seconds"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="8 channels on 10×10, batch 8")
    parser.add_argument("--checkpoint", type=Path, help="a convolutional checkpoint instead of random weights")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    channels, side, batch = (8, 10, 8) if args.small else (54, 30, 128)
    layer = random_layer(channels, side) if args.checkpoint is None else load_reference(args.checkpoint)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, layer.in_features, generator=generator)
    with torch.no_grad():
        result = run(layer.problem(x), 1e-4, 1 if args.small else 3)
    result |= {"batch": batch, "torch": torch.__version__, "threads": args.threads, "machine": platform.processor()}
    print(json.dumps(result, indent=2, ensure_ascii=False))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
