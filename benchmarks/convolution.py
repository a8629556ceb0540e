"""One solve of a convolutional equilibrium by the library's default, against forward–backward with a fixed step.

Both stop at the same true residual, in the same run, on the same weights, with the same products with W and the same
layout of the rows. Forward–backward runs twice: with its best proved step, the one that minimises its exact worst-case
factor and that the library takes by itself, and with the best fixed step in hindsight, of a sweep on a few images of
the same batch, which nobody knows beforehand. The default is ``Automatic()``, with nothing tuned to the batch. Analysis
and sweep are not part of the times.

    python benchmarks/convolution.py [--small] [--checkpoint conv_mondeq_w54.pt] [--mnist FOLDER] [--threads 2]

With ``--checkpoint`` and ``--mnist`` the batch are test images, and ``--classify`` classifies all 10,000 of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import command_line
import torch
from torch import Tensor

from contracting.errors import Status
from contracting.loop.method import Method
from contracting.loop.records import Solution, Stop
from contracting.loop.run import solve
from contracting.problem import EquilibriumProblem
from equilibrium import Automatic, ForwardBackward, load_reference
from equilibrium.convolution import ConvolutionalLayer, LBENConv2d, MetricShape
from equilibrium.files import write_json
from equilibrium.training.data import mnist

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


def timed(call: Callable[[], Solution], repeats: int) -> tuple[Solution, list[float], list[float]]:
    """The last solution, and the least and the largest wall time and process time of several calls."""
    wall, process = [], []
    for _ in range(repeats):
        wall_started, started = time.perf_counter(), time.process_time()
        solution = call()
        wall.append(time.perf_counter() - wall_started)
        process.append(time.process_time() - started)
    return solution, [min(wall), max(wall)], [min(process), max(process)]


def run(problem: EquilibriumProblem, rtol: float, repeats: int) -> dict[str, object]:
    stop = Stop(rtol=rtol, atol=0.0)
    started = time.perf_counter()
    operator = problem.require_operator("the benchmark")
    proved = operator.best_forward
    result: dict[str, object] = {
        "m": operator.bounds.monotonicity,
        "L": operator.bounds.lipschitz,
        "analysis seconds": time.perf_counter() - started,
        "ForwardBackward: proved factor": proved.factor,
        "default": Automatic().choose(problem, stop).reason,
    }
    few = problem.rows(torch.arange(min(6, problem.batch)))
    closely = Stop(rtol=rtol, atol=0.0, check_every=1, max_steps=1000)
    steps: dict[float, int] = {}
    for multiple in SWEEP:
        tried = solve(few, ForwardBackward(step=multiple * proved.step), stop=closely, throw=False)
        if bool((tried.status == Status.CONVERGED).all()):
            steps[multiple] = int(tried.steps.max())
    result["ForwardBackward: steps by multiple of the proved step"] = steps
    best = min(steps, key=lambda multiple: steps[multiple])
    methods: dict[str, Method] = {
        "default": Automatic(),
        "ForwardBackward, proved step": ForwardBackward(step=proved.step),
        "ForwardBackward, best fixed step": ForwardBackward(step=best * proved.step),
    }
    cost: dict[str, dict[str, float]] = {}
    for name, method in methods.items():
        solution, wall, process = timed(partial(solve, problem, method, stop=stop), repeats)
        assert float(solution.relative_residual.max()) <= rtol
        cost[name] = {
            "seconds": wall[0],
            "slowest, seconds": wall[1],
            "process seconds": process[0],
            "slowest, process seconds": process[1],
            "steps": int(solution.steps.max()),
            "products": solution.map_evals,
        }
        result[name] = cost[name]
    for name in list(methods)[1:]:
        result[f"{name} / default"] = {key: cost[name][key] / cost["default"][key] for key in cost[name]}
    return result


@torch.no_grad()
def classify(layer: ConvolutionalLayer, inputs: Tensor, labels: Tensor, rtol: float) -> dict[str, float]:
    """Test error in percent over all images, the largest true residual of any, and the time."""
    wrong, worst, steps = 0, 0.0, 0
    wall, process = time.perf_counter(), time.process_time()
    for x, y in zip(torch.split(inputs, 200), torch.split(labels, 200), strict=True):
        solution = layer.solve(x, stop=Stop(rtol=rtol, atol=0.0))
        worst = max(worst, float(solution.relative_residual.max()))
        steps = max(steps, int(solution.steps.max()))
        wrong += int((layer.weights().readout(solution.z, x).argmax(-1) != y).sum())
    return {
        "images": len(labels),
        "test error in percent": 100 * wrong / len(labels),
        "largest true residual, relative": worst,
        "steps": steps,
        "seconds": time.perf_counter() - wall,
        "process seconds": time.process_time() - process,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="8 channels on 10×10, batch 8")
    parser.add_argument("--checkpoint", type=Path, help="a convolutional checkpoint instead of random weights")
    parser.add_argument("--mnist", type=Path, help="folder with MNIST: solve for test images instead of noise")
    parser.add_argument("--classify", action="store_true", help="classify all test images instead of timing one solve")
    parser.add_argument("--threads", type=command_line.whole, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=command_line.whole, default=3, help="of every solve; the least time counts")
    parser.add_argument("--out", type=command_line.path, help="write the numbers as JSON")
    args = parser.parse_args(arguments)
    if args.classify and (args.mnist is None or args.checkpoint is None):
        parser.error("--classify needs --mnist and --checkpoint")
    if args.small and args.mnist is not None:
        parser.error("--small has images of its own; leave --mnist out")
    torch.set_num_threads(args.threads)
    channels, side, batch = (8, 10, 8) if args.small else (54, 30, 128)
    layer = random_layer(channels, side) if args.checkpoint is None else load_reference(args.checkpoint)
    x = torch.randn(batch, layer.in_features, generator=torch.Generator().manual_seed(1))
    if args.mnist is not None:
        images = mnist(args.mnist)
        x = images.test_inputs[:batch]
    result: dict[str, object]
    if args.classify:
        result = dict(classify(layer, images.test_inputs, images.test_labels, 1e-4))
    else:
        with torch.no_grad():
            result = run(layer.problem(x), 1e-4, 1 if args.small else args.repeats)
        result["batch"] = batch
    result |= {"torch": torch.__version__, "threads": args.threads, "machine": platform.processor()}
    print(json.dumps(result, indent=2, ensure_ascii=False))
    if args.out is not None:
        write_json(args.out, result)


if __name__ == "__main__":
    command_line.run(main)
