"""Forward and backward pass of an LBEN against the training step of the reference algorithm, on the same parameters.

LBEN(784, n, 10, lipschitz=1) in float32, cross-entropy, true residual of both solves at most the target in every row.
The reference algorithm has its step by trial halving, as its code finds it, and for both passes the loosest stopping
tolerance (of a grid) whose true residual is the target, which its user cannot know. The same parameterisation makes the
weights of both, in every step anew; ten steps are timed together. Gradients are compared at this accuracy, and in
float64 with tight tolerances.

Images are MNIST with --data-dir, otherwise the bundled digits enlarged to 28 × 28.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import command_line
import reference_algorithm as reference
import torch
from cases import images_28
from parts_of_a_step import parts
from torch import Tensor, nn

from contracting.gradients.implicit import Implicit
from contracting.loop.records import Stop
from contracting.loop.run import solve
from equilibrium.experiments.timing import Spread, Times, in_turn, spread, timer
from equilibrium.files import output_directory
from equilibrium.layers import LBEN
from equilibrium.training.data import Dataset, subset
from equilibrium.training.loop import train

_TIGHT = 1e-12  # Both gradients are compared once more at this relative residual.
_GRID = [10 ** (-k / 4) for k in range(4, 65)]  # Stopping tolerances of the reference are sought here.
_TOGETHER = 10  # A measurement has so many steps: they share what guides their solves, which one of them computes.
_MOST = 1_000  # A setting of the reference that needs more iterations is not considered.
Module = LBEN | reference.ReferenceLayer


@dataclass(frozen=True, kw_only=True)
class Step:
    """One width; differences of gradients are relative, of all parameters together and of the worst parameter."""

    hidden: int
    rows: int
    target: float
    ours: Times
    reference: Times
    alpha: float
    tolerance: float
    backward_tolerance: float
    iterations: int
    backward_iterations: int
    own_iterations: int
    own_backward_iterations: int
    parts: dict[str, Times]
    residual: float
    adjoint_residual: float
    reference_residual: float
    reference_adjoint_residual: float
    difference: float
    worst_difference: float
    tight_difference: float
    tight_worst_difference: float

    def ratio(self, clock: str) -> Spread:
        """The reference's time over ours."""
        return self.reference.over(self.ours, clock)


@dataclass(frozen=True)
class Batch:
    """Images with their labels."""

    inputs: Tensor
    labels: Tensor

    def double(self) -> Batch:
        return Batch(self.inputs.double(), self.labels)


def step(module: Module, batch: Batch) -> None:
    """Forward and backward pass."""
    module.zero_grad(set_to_none=True)
    nn.functional.cross_entropy(module(batch.inputs), batch.labels).backward()


def steps_together(module: Module, batch: Batch) -> None:
    for _ in range(_TOGETHER):
        step(module, batch)


def gradients(module: Module, batch: Batch) -> dict[str, Tensor]:
    step(module, batch)
    parameters = module.parameterization.named_parameters()
    return {name: p.grad.double().clone() for name, p in parameters if p.grad is not None}


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, float]:
    """Relative difference of the whole gradient, and that of the worst parameter."""
    if ours.keys() != theirs.keys():
        raise SystemExit("the two layers have gradients for different parameters")
    errors = {name: float((ours[name] - theirs[name]).norm()) for name in ours}
    sizes = {name: float(theirs[name].norm()) for name in ours}
    whole = sum(e**2 for e in errors.values()) ** 0.5 / sum(s**2 for s in sizes.values()) ** 0.5
    return whole, max(errors[name] / sizes[name] for name in ours)


class Probe:
    """The forward and adjoint problem of one layer and batch, to judge solutions of both."""

    def __init__(self, layer: LBEN, batch: Batch):
        self.problem = layer.problem(batch.inputs).detach()  # cut from a graph, it is solved as in training
        self.W, self.q = self.problem.linear.to_dense(), self.problem.q
        weights = layer.parameterization.explicit()
        z = self.solved(layer)
        z = z.requires_grad_()
        nn.functional.cross_entropy(weights.readout(z, batch.inputs), batch.labels).backward()
        self.slopes, self.cotangent = (z.detach() > 0).to(z.dtype), z.grad

    def solved(self, layer: LBEN) -> Tensor:
        return solve(self.problem, layer.solver, stop=layer.stop).z

    def residual(self, z: Tensor) -> float:
        image = torch.relu(torch.addmm(self.q.double(), z.double(), self.W.double().mT))
        return worst(z.double(), image)

    def adjoint_residual(self, w: Tensor) -> float:
        image = self.slopes.double() * (w.double() @ self.W.double() + self.cotangent.double())
        return worst(w.double(), image)

    def adjoint_of(self, layer: LBEN) -> Tensor:
        adjoint = self.problem.adjoint(self.slopes, self.cotangent)
        backward: Any = layer.backward
        return solve(adjoint, backward.adjoint_solver(adjoint), stop=backward.stop).z


def worst(z: Tensor, image: Tensor) -> float:
    size = torch.linalg.vector_norm(image, dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
    return float((torch.linalg.vector_norm(z - image, dim=-1) / size).max())


def tuned(probe: Probe, target: float) -> tuple[reference.Setting, float]:
    """The reference's step by halving, and the loosest forward and backward tolerance that reach the target."""
    halved = reference.halved(probe.W, probe.q, target)
    resolvent = reference.inverse(probe.W, halved.alpha)
    forward = _loosest(halved, lambda setting: _forward_residual(probe, resolvent, setting), target)
    backward = _loosest(halved, lambda setting: _backward_residual(probe, resolvent, setting), target)
    return forward, backward.tolerance


def _loosest(
    setting: reference.Setting, residual: Callable[[reference.Setting], tuple[float, int]], target: float
) -> reference.Setting:
    best = float("inf")
    for tolerance in _GRID:
        found, iterations = residual(replace(setting, tolerance=tolerance))
        if found <= target:
            return replace(setting, tolerance=tolerance, iterations=iterations)
        best = min(best, found)
        if iterations == _MOST:
            break
    raise SystemExit(f"the reference algorithm does not reach a residual of {target:g}, only {best:.1e}")


def _forward_residual(probe: Probe, resolvent: Tensor, setting: reference.Setting) -> tuple[float, int]:
    """Before or after the last application of the map, whichever is better."""
    endings = [
        reference.equilibrium(probe.W, probe.q, resolvent, replace(setting, applied=applied), most=_MOST)
        for applied in (False, True)
    ]
    return min(probe.residual(z) for z, _ in endings), endings[0][1]


def _backward_residual(probe: Probe, resolvent: Tensor, setting: reference.Setting) -> tuple[float, int]:
    w, iterations = reference.adjoint(probe.cotangent, probe.slopes, resolvent, setting, most=_MOST)
    return probe.adjoint_residual(w), iterations


def layer_with(target: float, hidden: int, classes: int, dtype: torch.dtype) -> LBEN:
    stop = Stop(rtol=target, atol=0.0)
    return LBEN(784, hidden, classes, lipschitz=1.0, stop=stop, backward=Implicit(stop=stop), dtype=dtype)


def measure(hidden: int, images: Dataset, given: argparse.Namespace) -> Step:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = layer_with(given.target, hidden, images.classes, torch.float32)
    train(layer, images, epochs=given.epochs, batch_size=64, seed=0)
    layer.train()
    batch = Batch(images.train_inputs[: given.rows], images.train_labels[: given.rows])
    probe = Probe(layer, batch)
    forward, backward_tolerance = tuned(probe, given.target)
    rival = reference.ReferenceLayer(layer.parameterization, forward, backward_tolerance)
    at_target = differences(gradients(layer, batch), gradients(rival, batch))
    iterations = rival.iterations, rival.backward_iterations
    step(layer, batch)
    own = [int(solve.numbers()["steps"]) for solve in (layer.last_solves.forward, layer.last_solves.backward) if solve]
    tight = tight_differences(layer, batch)
    modules: dict[str, Module] = {"ours": layer, "reference": rival}
    blocks = in_turn(
        {name: timer(lambda module=module: steps_together(module, batch)) for name, module in modules.items()},
        rounds=given.rounds,
        shortest=0.0,
        budget=30.0,
    )
    times = {name: t.per(_TOGETHER) for name, t in blocks.items()}
    resolvent = reference.inverse(probe.W, forward.alpha)
    adjoint_setting = replace(forward, tolerance=backward_tolerance)
    return Step(
        hidden=hidden,
        rows=len(batch.inputs),
        target=given.target,
        ours=times["ours"],
        reference=times["reference"],
        alpha=forward.alpha,
        tolerance=forward.tolerance,
        backward_tolerance=backward_tolerance,
        iterations=iterations[0],
        backward_iterations=iterations[1],
        own_iterations=own[0],
        own_backward_iterations=own[1],
        parts=parts(layer, batch.inputs, rounds=given.rounds),
        residual=probe.residual(probe.solved(layer)),
        adjoint_residual=probe.adjoint_residual(probe.adjoint_of(layer)),
        reference_residual=_forward_residual(probe, resolvent, forward)[0],
        reference_adjoint_residual=_backward_residual(probe, resolvent, adjoint_setting)[0],
        difference=at_target[0],
        worst_difference=at_target[1],
        tight_difference=tight[0],
        tight_worst_difference=tight[1],
    )


def tight_differences(layer: LBEN, batch: Batch) -> tuple[float, float]:
    """Of the same two gradients in float64, both solves of both run to the end."""
    free = layer.parameterization
    exact = layer_with(_TIGHT, free.hidden_features, free.out_features, torch.float64)
    exact.load_state_dict(layer.state_dict())
    probe = Probe(exact, batch.double())
    setting, backward_tolerance = tuned(probe, 10 * _TIGHT)
    rival = reference.ReferenceLayer(exact.parameterization, setting, backward_tolerance)
    return differences(gradients(exact, batch.double()), gradients(rival, batch.double()))


def table(steps: list[Step], clock: str) -> str:
    lines = [
        f"Forward and backward pass, float32, {clock} time, median (quartiles of the rounds); residual of the worst "
        "row, forward and adjoint",
        "",
        "| n | rows | ours (ms) | reference (ms) | ratio | our residuals | its residuals | its α | our "
        "iterations | its iterations | gradients differ by (worst parameter) | in float64, tight (worst parameter) |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in steps:
        lines.append(
            f"| {s.hidden} | {s.rows} | {s.ours.text(clock, 1e-3)} | {s.reference.text(clock, 1e-3)} | "
            f"{spread(*s.ratio(clock))} | {s.residual:.1e}, {s.adjoint_residual:.1e} | "
            f"{s.reference_residual:.1e}, {s.reference_adjoint_residual:.1e} | {s.alpha:g} | "
            f"{s.own_iterations} + {s.own_backward_iterations} | "
            f"{s.iterations} + {s.backward_iterations} | {s.difference:.1e} ({s.worst_difference:.1e}) | "
            f"{s.tight_difference:.1e} ({s.tight_worst_difference:.1e}) |"
        )
    lines += ["", "The parts of our step, each alone (ms):", ""]
    lines += [
        f"* n = {s.hidden}: " + ", ".join(f"{name} {part.text(clock, 1e-3)}" for name, part in s.parts.items())
        for s in steps
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.timed(command_line.parser(__doc__, "training-step"), rounds=25)
    parser.add_argument("--hidden", type=command_line.whole, nargs="+", help="widths (default 80 250)")
    parser.add_argument("--rows", type=command_line.whole, help="batch size (default 128)")
    parser.add_argument("--target", type=command_line.residual, default=1e-4)
    parser.add_argument(
        "--train-images", type=command_line.whole, help="images to train on before anything is timed (default 1000)"
    )
    parser.add_argument("--epochs", type=command_line.whole, help="passes over them (default 3)")
    parser.add_argument("--data-dir", type=Path, help="folder with the MNIST files")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    usual = (10, 16, 100, 1, 3) if given.small else (None, 128, 1000, 3, 25)
    widths = given.hidden or ([usual[0]] if given.small else [80, 250])
    given.rows, given.train_images = given.rows or usual[1], given.train_images or usual[2]
    given.epochs, given.rounds = given.epochs or usual[3], given.rounds or usual[4]
    images = subset(images_28(given.data_dir), train=given.train_images, test=10)
    folder = output_directory(given.out)
    steps = [measure(width, images, given) for width in widths]
    ratios = {
        f"training step, n = {s.hidden}, {s.rows} rows, float32, {s.target:g}: ours / reference": s.ours.over(
            s.reference, given.clock
        )
        for s in steps
    }
    entries = [vars(s) | {"ratio": s.ratio(given.clock)} for s in steps]
    command_line.finish(
        folder, table(steps, given.clock), ratios=ratios, settings=command_line.settings(given), steps=entries
    )


if __name__ == "__main__":
    command_line.run(main)
