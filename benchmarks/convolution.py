"""One solve of a convolutional equilibrium by the library's default, against forward–backward with a fixed step.

Both stop at the same true residual, in the same run, on the same weights, with the same products with W and the same
layout of the rows. Forward–backward runs twice: with its best proved step, the one that minimises its exact worst-case
factor and that the library takes by itself, and with the best fixed step in hindsight, of a sweep on a few images of
the same batch, which nobody knows beforehand. The default is ``Automatic()``, with nothing tuned to the batch. Analysis
and sweep are not part of the times.

    python benchmarks/convolution.py [--small] [--checkpoint conv_mondeq_w54.pt] [--mnist FOLDER] [--threads 2]

With ``--checkpoint`` and ``--mnist`` the batch are test images, and ``--classify`` classifies all 10,000 of them.
``--training`` times forward and backward pass of the networks of the convolution study, beside as many bare products.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import command_line
import torch
from torch import Tensor, nn

from contracting.errors import Status
from contracting.loop.method import Method
from contracting.loop.records import Solution, Stop
from contracting.loop.run import solve
from contracting.problem import EquilibriumProblem
from equilibrium import Automatic, ForwardBackward, Implicit, load_reference
from equilibrium.convolution import ContractiveConv2d, ConvolutionalLayer, LBENConv2d, MetricShape
from equilibrium.experiments.timing import Times, in_turn, spread, timer
from equilibrium.files import output_directory
from equilibrium.training.data import mnist

DEFAULT = "default"
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


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one method took."""

    steps: int
    products: int
    times: Times


def run(problem: EquilibriumProblem, rtol: float, rounds: int) -> tuple[dict[str, object], dict[str, Cost]]:
    """What is known of the problem, and what each method took."""
    stop = Stop(rtol=rtol, atol=0.0)
    started = time.perf_counter()
    operator = problem.require_operator("the benchmark")
    proved = operator.best_forward
    result: dict[str, object] = {
        "m": operator.bounds.monotonicity,
        "L": operator.bounds.lipschitz,
        "analysis seconds": time.perf_counter() - started,
        "ForwardBackward: proved factor": proved.factor,
        "chosen": Automatic().choose(problem, stop).reason,
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
        DEFAULT: Automatic(),
        "ForwardBackward, proved step": ForwardBackward(step=proved.step),
        "ForwardBackward, best fixed step": ForwardBackward(step=best * proved.step),
    }
    solutions: dict[str, Solution] = {}

    def solved(name: str) -> None:
        solutions[name] = solve(problem, methods[name], stop=stop)

    timers = {name: timer(partial(solved, name)) for name in methods}
    times = in_turn(timers, rounds=rounds, shortest=0.0, budget=math.inf)
    assert all(float(solution.relative_residual.max()) <= rtol for solution in solutions.values())
    return result, {
        name: Cost(steps=int(found.steps.max()), products=found.map_evals, times=times[name])
        for name, found in solutions.items()
    }


def table(costs: dict[str, Cost], clock: str) -> str:
    default = costs[DEFAULT]
    lines = [
        f"{clock} time, median (quartiles of the rounds); ratios to the default are those within a round",
        "",
        "| method | steps | products | seconds | time / default's | products / default's |",
        "|---|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        ratio = spread(*cost.times.over(default.times, clock))
        products = cost.products / default.products
        seconds = cost.times.text(clock, 1)
        lines.append(f"| {name} | {cost.steps} | {cost.products} | {seconds} | {ratio} | {products:.2g} |")
    return "\n".join(lines) + "\n"


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


def training(small: bool, rounds: int) -> tuple[dict[str, Times], dict[str, int]]:
    """Times of a training step of each network and of its bare products, on noise, and the number of products."""
    channels, side, batch = (4, 8, 16) if small else (24, 28, 128)
    stop = Stop(rtol=1e-2, atol=0.0)
    kinds: dict[str, tuple[type[LBENConv2d], dict[str, Any]]] = {
        "lben": (LBENConv2d, {}),
        "mondeq": (LBENConv2d, {"metric": MetricShape.IDENTITY}),
        "lben, γ = 1": (LBENConv2d, {"lipschitz": 1.0}),
        "contractive, γ = 1": (ContractiveConv2d, {"lipschitz": 1.0}),
    }
    noise = torch.Generator().manual_seed(1)
    x, labels = torch.randn(batch, side * side, generator=noise), torch.randint(10, (batch,), generator=noise)
    runs: dict[str, Callable[[], object]] = {}
    products: dict[str, int] = {}
    for name, (kind, options) in kinds.items():
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"image": (side, side), "input_kernel_size": 5, "stride": 2, "pool": 2}
        layer = kind(1, channels, 10, **sizes, **options, stop=stop, backward=Implicit(stop=stop))

        def step(layer: LBENConv2d = layer) -> None:
            layer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(layer(x), labels).backward()

        step()
        solves = layer.last_solves
        assert solves.forward is not None and solves.backward is not None
        products[name] = solves.forward.map_evals + solves.backward.map_evals
        linear = layer.weights().state.detached
        z = linear.laid_out(torch.randn(batch, linear.size, generator=noise))
        bare = partial(linear.resolvent(0.5).iterated, torch.abs, z, z, products[name])
        runs |= {name: step, f"{name}: {products[name]} bare products": bare}
    timers = {name: timer(run) for name, run in runs.items()}
    return in_turn(timers, rounds=rounds, shortest=0.0, budget=math.inf), products


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.timed(command_line.parser(__doc__, "convolution"), rounds=3, clock="cpu")
    parser.add_argument("--checkpoint", type=Path, help="a convolutional checkpoint (default random weights)")
    parser.add_argument("--mnist", type=Path, help="folder with MNIST: solve for test images (default noise)")
    parser.add_argument("--classify", action="store_true", help="classify all test images instead of timing one solve")
    parser.add_argument("--training", action="store_true", help="time training steps on noise (default one solve)")
    args = parser.parse_args(arguments)
    if args.classify and (args.mnist is None or args.checkpoint is None):
        parser.error("--classify needs --mnist and --checkpoint")
    if args.small and args.mnist is not None:
        parser.error("--small has images of its own; leave --mnist out")
    torch.set_num_threads(args.threads)
    if args.training:
        times, products = training(args.small, args.rounds or (1 if args.small else 7))
        lines = [f"{name}: {found.text(args.clock, 1e-3)} ms" for name, found in times.items()]
        text = f"{args.clock} time of a training step, median (quartiles)\n\n" + "\n".join(lines) + "\n"
        known = {"products": products, "times": times}
        command_line.finish(output_directory(args.out), text, settings=command_line.settings(args), training=known)
        return
    channels, side, batch = (8, 10, 8) if args.small else (54, 30, 128)
    layer = random_layer(channels, side) if args.checkpoint is None else load_reference(args.checkpoint)
    x = torch.randn(batch, layer.in_features, generator=torch.Generator().manual_seed(1))
    if args.mnist is not None:
        images = mnist(args.mnist)
        x = images.test_inputs[:batch]
    folder = output_directory(args.out)
    settings = command_line.settings(args)
    if args.classify:
        found = classify(layer, images.test_inputs, images.test_labels, 1e-4)
        text = "\n".join(f"{name}: {value:.4g}" for name, value in found.items()) + "\n"
        command_line.finish(folder, text, settings=settings, classified=found)
        return
    with torch.no_grad():
        known, costs = run(layer.problem(x), 1e-4, args.rounds or (1 if args.small else 3))
    text = "\n".join(f"{name}: {value}" for name, value in known.items()) + "\n\n" + table(costs, args.clock)
    weights = "random weights" if args.checkpoint is None else args.checkpoint.stem
    ratios = {
        f"convolution, {weights}, {channels}×{side}×{side}, {batch} rows, float32, 1e-4: default / {name}": costs[
            DEFAULT
        ].times.over(cost.times, args.clock)
        for name, cost in costs.items()
        if name != DEFAULT
    }
    named = {str(name): str(value) for name, value in known.items()}
    command_line.finish(folder, text, ratios=ratios, settings=settings, known=named, costs=costs)


if __name__ == "__main__":
    command_line.run(main)
