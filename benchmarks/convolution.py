"""One solve of a convolutional equilibrium: Peaceman–Rachford by the transform against forward–backward.

Both stop at the same true residual, in the same run, on the same weights, with the same products with W (tap by tap or
by the transform, whichever the library takes to be cheaper). Each method runs twice: with its best proved step, the one
that minimises its exact worst-case factor and that the library takes by itself, and with the best step in hindsight, of
a sweep on a few images of the same batch, which nobody knows beforehand. Analysis and sweep are not part of the times.

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
from contracting.solve import Solution, Stop, solve
from equilibrium import ForwardBackward, PeacemanRachford, load_reference
from equilibrium.convolution import ConvolutionalLayer, LBENConv2d, MetricShape

SWEEP = (1.0, 1.4, 2.0, 2.5, 3.0, 3.5, 4.0)  # times the best proved step
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
    proved = {PeacemanRachford: operator.best_reflected, ForwardBackward: operator.best_forward}
    result: dict[str, object] = {
        "m": operator.bounds.monotonicity,
        "L": operator.bounds.lipschitz,
        "analysis seconds": time.perf_counter() - started,
    }
    few = problem.rows(torch.arange(min(6, problem.batch)))
    cost: dict[tuple[str, str], dict[str, float]] = {}
    for method, choice in proved.items():
        steps: dict[float, int] = {}
        for multiple in SWEEP:
            closely = Stop(rtol=rtol, atol=0.0, check_every=1, max_steps=1000)
            tried = solve(few, method(step=multiple * choice.step), stop=closely, throw=False)
            if bool((tried.status == Status.CONVERGED).all()):
                steps[multiple] = int(tried.steps.max())
        best = min(steps, key=lambda multiple: steps[multiple])
        result[f"{method.__name__}: proved factor"] = choice.factor
        result[f"{method.__name__}: steps by multiple of the proved step"] = steps
        for kind, multiple in (("proved", 1.0), ("hindsight", best)):
            call = partial(solve, problem, method(step=multiple * choice.step), stop=stop)
            solution, wall, process = timed(call, repeats)
            assert float(solution.relative_residual.max()) <= rtol
            numbers = {"seconds": wall, "process seconds": process, "steps": int(solution.steps.max())}
            result[f"{method.__name__}, {kind} step"] = cost[method.__name__, kind] = numbers
    for other in ("proved", "hindsight"):
        for ours in ("proved", "hindsight"):
            ratio = {
                key: cost["ForwardBackward", other][key] / cost["PeacemanRachford", ours][key]
                for key in ("seconds", "process seconds", "steps")
            }
            result[f"ForwardBackward, {other} step / PeacemanRachford, {ours} step"] = ratio
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
