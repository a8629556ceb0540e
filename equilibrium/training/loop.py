"""Train a model: Adam, warm-up and cosine, a seeded order of batches, a word on every step, files to go on from."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contracting import checks
from contracting.errors import ContractingError, InputError
from equilibrium.files import is_first
from equilibrium.layers import EquilibriumLayer
from equilibrium.training import ranks
from equilibrium.training.data import Dataset, Samples
from equilibrium.training.losses import CrossEntropy, Function, Loss, SquaredError, as_loss
from equilibrium.training.modes import evaluating, modes_restored
from equilibrium.training.progress import progress_bar
from equilibrium.training.records import Callback, Epoch, TrainingError, TrainingRecord, TrainingStep
from equilibrium.training.resume import Checkpoint
from equilibrium.training.step import OptimizerStep

_WARM_UP = 0.1  # share of all steps in which the learning rate rises to its full value
_TEST_BATCH = 1000
_LARGEST_RATE = 1e37  # Adam's first step divides it by 0.1, in float32


def train(
    model: nn.Module,
    dataset: Dataset | Samples,
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 0.03,
    loss: Loss | Function | None = None,
    noise: float = 0.0,
    shift: int = 0,
    seed: int = 0,
    callback: Callback | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> TrainingRecord:
    """Minimise a loss of outputs and targets in place, with Adam.

    The learning rate rises linearly over the first tenth of all steps and then falls to zero along a cosine. The same
    seed, model and data give the same weights on the same number of threads. Small layers train fastest on one thread.
    The model is put in training mode for each epoch, in evaluation mode for its test, and in its own mode at the end.

    Where ``torch.distributed`` has a process group, as under ``torchrun``, all of its processes train one model, which
    begins as that of the first: each takes its part of the rows of every batch and of the test. Order, noise and shifts
    are those of one process, and so are weights and record, up to rounding and the tolerance of the solves; dropout
    draws from another stream in each process, statistics of batches are those of the first process's rows. Only the
    first process writes, shows a bar and calls ``callback``.

    Args:
        model: (batch, in) -> (batch, out); its dtype and device are those of the data.
        dataset: images and labels, or any inputs and targets.
        epochs: passes over the training rows.
        batch_size: rows per step.
        learning_rate: the largest learning rate.
        loss: ``CrossEntropy(temperature=…)``, ``SquaredError()``, or a function of outputs and targets that gives the
            mean over the rows; None takes the first for targets that are classes, int64, and the second for numbers.
        noise: standard deviation of the normal noise that is added to every training input, drawn anew each time. It
            smooths the classes, and so helps against attacks and against overfitting.
        shift: of images only: every one is shifted by up to so many pixels along each axis, drawn anew each time; what
            comes in is background, a pixel of value zero. Less than a side of the images.
        seed: of the order of the rows, of noise and shifts, and of what the model or the loss draws from the global
            generator, such as dropout; the model's start is the caller's.
        callback: is told of every step, with what the solves of that step measured; what it returns does not matter.
        checkpoint: file that holds, after every epoch, everything that the rest of the training depends on. If it
            exists, training continues from there and ends with the same weights, bit for bit, as without a break, with
            as many processes; with another number, up to rounding.
        progress: show a bar where standard error is a terminal.

    Returns:
        The record of all epochs.

    Raises:
        InputError: on a setting out of range, a model that does not fit the data or has nothing to train, a checkpoint
            of another training or another model, or processes that were asked for different trainings.
        TrainingError: if the loss or the model stops being finite, or the model cannot be solved any more.
        MissingExtraError: with ``progress`` but without tqdm, the extra ``cli``.
    """
    checks.whole_number("epochs", epochs)
    checks.whole_number("batch_size", batch_size)
    checks.number("learning_rate", learning_rate, low=0, low_open=True, high=_LARGEST_RATE)
    if callback is not None and not callable(callback):
        raise InputError(f"callback must be a function of a TrainingStep, got {callback!r}")
    chosen = _usual_loss(dataset) if loss is None else as_loss(loss)
    checks.number("noise", noise, low=0, high=math.inf, high_open=True)
    if checks.whole_number("shift", shift, low=0):
        if not isinstance(dataset, Dataset):
            raise InputError("shift is for images, of a Dataset; leave it at 0")
        height, width = dataset.image_shape[1:]
        if shift >= min(height, width):
            raise InputError(f"shift must be smaller than the images, {height} × {width} pixels, got {shift}")
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    _check_fit(model, dataset, chosen)
    count = len(dataset.train_inputs)
    batches = math.ceil(count / batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = _WarmUpThenCosine(epochs * batches)
    settings = {
        "dataset": dataset.name,
        "images": count,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "loss": _without_address(repr(chosen)),
        "noise": noise,
        "shift": shift,
        "seed": seed,
        # γ, ε and the activation are no tensors, so that the weights of another model may fit; addresses tell nothing,
        # and a γ that is learnt is among the weights
        "model": re.sub(r"lipschitz=\S+(?=, learn_lipschitz)", "", _without_address(repr(model))),
    }
    _check_others(model, settings)
    progress_file = None if checkpoint is None else Checkpoint(Path(checkpoint), settings)
    records = [] if progress_file is None else progress_file.load(model, optimizer, generator)
    _as_the_first(model)
    step = OptimizerStep(model, optimizer)
    done = len(records) * batches
    bars = progress_bar(epochs * batches, "training", show=progress and is_first(), start=done)
    with modes_restored(model), bars as bar:
        for epoch in range(len(records), epochs):
            started, where = time.perf_counter(), f"epoch {epoch + 1} of {epochs}"
            model.train()
            loss_sum = error_sum = 0.0
            with _drawing(seed, epoch, model):
                for batch, rows in enumerate(torch.split(torch.randperm(count, generator=generator), batch_size)):
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate * schedule(epoch * batches + batch)
                    inputs, targets = dataset.train_inputs[rows], dataset.train_targets[rows]
                    if shift > 0 and isinstance(dataset, Dataset):
                        inputs = shifted(inputs, dataset, shift, generator)
                    if noise > 0:
                        inputs = inputs + noise * torch.randn(inputs.shape, generator=generator).to(inputs)
                    now = chosen.at((epoch * batches + batch) / (epochs * batches))
                    with _diverging(where):
                        value, errors = step(inputs, targets, now)
                    loss_sum += value * len(rows)
                    error_sum += errors
                    bar.update()
                    if callback is not None and is_first():
                        callback(_told(model, epoch, epoch * batches + batch, value, optimizer))
            with _diverging(where):
                for name, parameter in model.named_parameters():
                    checks.finite(name, parameter)
                _as_the_first(model)
                tested = _test(model, dataset, chosen)
            records.append(
                Epoch(
                    loss=loss_sum / count,
                    train_error=chosen.told(error_sum / count),
                    seconds=time.perf_counter() - started,
                    **tested,
                )
            )
            if progress_file is not None:
                progress_file.save(model, optimizer, generator, records)
            bar.set_postfix_str(f"loss {loss_sum / count:.3f}{_of_the_test(tested, chosen)}")
    return TrainingRecord(
        dataset=dataset.name,
        batch_size=batch_size,
        learning_rate=learning_rate,
        loss=_without_address(repr(chosen)),
        error=chosen.error_name,
        noise=noise,
        shift=shift,
        seed=seed,
        epochs=tuple(records),
    )


def shifted(inputs: Tensor, dataset: Dataset, shift: int, generator: torch.Generator) -> Tensor:
    """Every image moved by a random number of pixels in [−shift, shift] along each axis: (count, in) -> (count, in)."""
    channels, height, width = dataset.image_shape
    background = float(dataset.normalization.normalize(torch.zeros((), dtype=torch.float64)))
    images = inputs.reshape(-1, *dataset.image_shape)
    padded = torch.nn.functional.pad(images, [shift] * 4, value=background)
    corners = torch.randint(0, 2 * shift + 1, (2, len(inputs)), generator=generator).to(inputs.device)
    rows = corners[0][:, None] + torch.arange(height, device=inputs.device)
    columns = corners[1][:, None] + torch.arange(width, device=inputs.device)
    image = torch.arange(len(inputs), device=inputs.device)[:, None, None, None]
    channel = torch.arange(channels, device=inputs.device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]].flatten(1)


@torch.no_grad()
def error_percent(layer: nn.Module, inputs: Tensor, labels: Tensor, *, batch_size: int = _TEST_BATCH) -> float:
    """Misclassified inputs in percent, the class being the largest output, in evaluation mode.

    Args:
        layer: (batch, in) -> (batch, classes).
        inputs: (count, in).
        labels: (count,), int64.
        batch_size: inputs per call of the layer.

    Raises:
        InputError: on no input at all, or inputs and labels of different count.
    """
    checks.whole_number("batch_size", batch_size)
    count = checks.whole_number("the number of inputs", len(inputs))
    checks.shape("labels", labels, (count,))
    parts = zip(torch.split(inputs, batch_size), torch.split(labels, batch_size), strict=True)
    with evaluating(layer):
        return 100 * sum(int((layer(x).argmax(-1) != y).sum()) for x, y in parts) / count


@dataclass(frozen=True)
class _WarmUpThenCosine:
    steps: int

    def __call__(self, step: int) -> float:
        warm_up = _WARM_UP * self.steps
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (self.steps - warm_up)))


@contextlib.contextmanager
def _diverging(where: str) -> Iterator[None]:
    try:
        yield
    except (ContractingError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        raise TrainingError(
            f"training stopped in {where}: {error} — use a smaller learning_rate, and check the data for NaN"
        ) from error


def _without_address(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _check_others(model: nn.Module, settings: dict[str, Any]) -> None:
    """Whether all processes were asked for the same."""
    shapes = {name: f"{tuple(entry.shape)} of {entry.dtype}" for name, entry in model.state_dict().items()}
    asked = settings | shapes
    for number, other in enumerate(ranks.gathered(asked)):
        if other != asked:
            name = next(key for key in asked | other if asked.get(key) != other.get(key))
            raise InputError(
                f"all processes train one model: {name} is {asked.get(name)!r} here and {other.get(name)!r} in process "
                f"{number}; call train in each with the same arguments, or train outside of a process group"
            )


def _as_the_first(model: nn.Module) -> None:
    """Weights and buffers of the first process for all."""
    state = ranks.from_first(lambda: {name: entry.cpu() for name, entry in model.state_dict().items()})
    if not is_first():
        model.load_state_dict(state)


@contextlib.contextmanager
def _drawing(seed: int, epoch: int, model: nn.Module) -> Iterator[None]:
    """What is drawn from the global generator depends on the epoch and the process, not on what happened before."""
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence([seed, epoch, ranks.own()]).generate_state(1, np.uint64)[0]))
        yield


def _usual_loss(dataset: Dataset | Samples) -> Loss:
    return SquaredError() if dataset.train_targets.is_floating_point() else CrossEntropy()


def _told(model: nn.Module, epoch: int, step: int, loss: float, optimizer: torch.optim.Optimizer) -> TrainingStep:
    """What a callback is told; the solves as they are now, which the next step writes over."""
    layers = [module for module in model.modules() if isinstance(module, EquilibriumLayer)]
    return TrainingStep(
        epoch=epoch + 1,
        step=step + 1,
        loss=loss,
        learning_rate=optimizer.param_groups[0]["lr"],
        solves=tuple(replace(layer.last_solves) for layer in layers),
    )


@torch.no_grad()
def _check_fit(model: nn.Module, dataset: Dataset | Samples, loss: Loss) -> None:
    """Whether the model takes the inputs, gives what the loss compares, and has something to train."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("model must have a parameter that requires a gradient, or there is nothing to train")
    row = dataset.train_inputs[:1]
    if isinstance(model, EquilibriumLayer):
        checks.last_size("train_inputs", row, model.in_features)
        checks.same_kind("train_inputs", row, "the layer", model.parameterization.example)
        outputs = model.out_features
    else:
        try:
            with evaluating(model):
                outputs = model(row).shape[-1]
        except Exception as error:  # whatever module it is
            raise InputError(
                f"model does not take the inputs of {dataset.name}, {tuple(row.shape)} of {row.dtype}: {error}"
            ) from error
    loss.check(outputs, dataset.train_targets)


@torch.no_grad()
def _test(model: nn.Module, dataset: Dataset | Samples, loss: Loss) -> dict[str, float | None]:
    """What an ``Epoch`` says of the test rows; None where there are no rows, no solver, or nothing is proved."""
    if dataset.test_inputs is None or dataset.test_targets is None:
        return dict.fromkeys(("test_error", "unproved", "solver_steps"))
    layer = model if isinstance(model, EquilibriumLayer) else None
    own = ranks.part(len(dataset.test_inputs))
    parts = zip(
        *(torch.split(rows[own], _TEST_BATCH) for rows in (dataset.test_inputs, dataset.test_targets)), strict=True
    )
    nothing = torch.zeros(4, dtype=torch.float64, device=dataset.test_inputs.device)

    def sums() -> Tensor:
        """Of errors, solver steps, rows that are not proved, and rows that were asked for a proof."""
        found = nothing.clone()
        weights = None if layer is None else layer.weights()
        for inputs, targets in parts:
            if len(inputs) == 0:  # fewer rows than processes
                continue
            if layer is None or weights is None:
                outputs = model(inputs)
            else:
                solution = layer.solve(inputs)
                outputs = weights.readout(solution.z, inputs)
                found[1] += solution.steps.sum()
            found[0] += loss.errors(outputs, targets).sum()
            if (unproved := loss.unproved(model, inputs, targets)) is not None:
                found[2:] += found.new_tensor([int(unproved.sum()), len(inputs)])
        return found

    with evaluating(model) if layer is None else contextlib.nullcontext():
        errors, steps, unproved, asked = ranks.total(sums, nothing).tolist()
    count = len(dataset.test_inputs)
    return {
        "test_error": loss.told(errors / count),
        "unproved": 100 * unproved / count if asked else None,
        "solver_steps": None if layer is None else steps / count,
    }


def _of_the_test(tested: dict[str, float | None], loss: Loss) -> str:
    """What the bar says of it."""
    error, unproved = tested["test_error"], tested["unproved"]
    said = "" if error is None else f", test: {error:.3g} {loss.error_name}"
    return said if unproved is None else f"{said}, {unproved:.3g} % unproved"
