"""Train a classifier: cross-entropy, Adam, warm-up and cosine, a seeded order of batches, checkpoints to go on from."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from contracting import checks
from contracting.display import Tabular
from contracting.errors import ContractingError, InputError
from equilibrium.files import write_tensors
from equilibrium.layers import EquilibriumLayer
from equilibrium.training.data import Dataset
from equilibrium.training.modes import evaluating, modes_restored
from equilibrium.training.progress import progress_bar

_WARM_UP = 0.1  # share of all steps in which the learning rate rises to its full value
_TEST_BATCH = 1000
_LARGEST_RATE = 1e37  # Adam's first step divides it by 0.1, in float32


class TrainingError(ContractingError, RuntimeError):
    """Training cannot go on; the message says where it stopped and what to try."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What was seen in one epoch.

    Attributes:
        loss: mean cross-entropy over the epoch, while the weights moved.
        train_error: misclassified training images in percent, over the epoch, while the weights moved.
        test_error: misclassified test images in percent at the end of the epoch.
        seconds: wall time of the epoch, with its test.
        solver_steps: mean number of solver steps per test image at the end of the epoch; None without a solver.
    """

    loss: float
    train_error: float
    test_error: float
    seconds: float
    solver_steps: float | None


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainingRecord(Tabular):
    """How a model was trained, and what every epoch brought."""

    dataset: str
    batch_size: int
    learning_rate: float
    temperature: float
    noise: float
    shift: int
    seed: int
    epochs: tuple[Epoch, ...]

    def _each(self) -> Iterator[dict[str, Any]]:
        return (asdict(epoch) for epoch in self.epochs)

    @property
    def seconds(self) -> float:
        """Wall time of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def test_error(self) -> float:
        """Misclassified test images after the last epoch, in percent."""
        return self.epochs[-1].test_error


def train(
    model: nn.Module,
    dataset: Dataset,
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 0.03,
    temperature: float = 1.0,
    noise: float = 0.0,
    shift: int = 0,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
    place: int = 0,
) -> TrainingRecord:
    """Minimise the cross-entropy of outputs/temperature in place, with Adam.

    The learning rate rises linearly over the first tenth of all steps and then falls to zero along a cosine. The same
    seed, model and data give the same weights on the same number of threads. Small layers train fastest on one thread.
    The model is put in training mode for each epoch, in evaluation mode for its test, and in its own mode at the end.

    Args:
        model: the classifier, (batch, in) -> (batch, classes); its dtype and device are those of the data.
        dataset: images and labels.
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: the largest learning rate.
        temperature: τ > 0. A map with Lipschitz constant γ cannot reach a small loss unless γ/τ is large: τ/γ is the
            distance in the inputs over which training looks for a margin.
        noise: standard deviation of the normal noise that is added to every training input, drawn anew each time. It
            smooths the classes, and so helps against attacks and against overfitting.
        shift: every training image is shifted by up to so many pixels along each axis, drawn anew each time; what comes
            in is background, a pixel of value zero. Less than a side of the images.
        seed: of the order of the images, of noise and shifts; the model's start is the caller's.
        checkpoint: file that holds, after every epoch, everything that the rest of the training depends on. If it
            exists, training continues from there and ends with the same weights, bit for bit, as without a break.
        progress: show a bar where standard error is a terminal.
        place: line of the bar.

    Returns:
        The record of all epochs.

    Raises:
        InputError: on a setting out of range, a model that does not fit the data or has nothing to train, or a
            checkpoint of another training or another model.
        TrainingError: if the loss or the model stops being finite, or the model cannot be solved any more.
        MissingExtraError: with ``progress`` but without tqdm, the extra ``cli``.
    """
    checks.whole_number("epochs", epochs)
    checks.whole_number("batch_size", batch_size)
    checks.number("learning_rate", learning_rate, low=0, low_open=True, high=_LARGEST_RATE)
    checks.number("temperature", temperature, low=0, low_open=True, high=math.inf, high_open=True)
    checks.number("noise", noise, low=0, high=math.inf, high_open=True)
    if checks.whole_number("shift", shift, low=0) >= min(dataset.image_shape[1:]):
        height, width = dataset.image_shape[1:]
        raise InputError(f"shift must be smaller than the images, {height} × {width} pixels, got {shift}")
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    _check_fit(model, dataset)
    count = len(dataset.train_labels)
    batches = math.ceil(count / batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = _WarmUpThenCosine(epochs * batches)
    settings = {
        "dataset": dataset.name,
        "images": count,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "temperature": temperature,
        "noise": noise,
        "shift": shift,
        "seed": seed,
        # γ, ε and the activation are no tensors, so that the weights of another model may fit; addresses tell nothing,
        # and a γ that is learnt is among the weights
        "model": re.sub(r" at 0x[0-9a-fA-F]+|lipschitz=\S+(?=, learn_lipschitz)", "", repr(model)),
    }
    progress_file = None if checkpoint is None else _Checkpoint(Path(checkpoint), settings)
    records = [] if progress_file is None else progress_file.load(model, optimizer, generator)
    done = len(records) * batches
    bars = progress_bar(epochs * batches, "training", show=progress, place=place, start=done)
    with modes_restored(model), bars as bar:
        for epoch in range(len(records), epochs):
            started, where = time.perf_counter(), f"epoch {epoch + 1} of {epochs}"
            model.train()
            loss_sum, wrong = 0.0, 0
            for batch, rows in enumerate(torch.split(torch.randperm(count, generator=generator), batch_size)):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * schedule(epoch * batches + batch)
                inputs, labels = dataset.train_inputs[rows], dataset.train_labels[rows]
                if shift > 0:
                    inputs = shifted(inputs, dataset, shift, generator)
                if noise > 0:
                    inputs = inputs + noise * torch.randn(inputs.shape, generator=generator).to(inputs)
                with _diverging(where):
                    loss, outputs = _step(model, optimizer, inputs, labels, temperature)
                loss_sum += loss * len(rows)
                wrong += int((outputs.argmax(-1) != labels).sum())
                bar.update()
            with _diverging(where):
                for name, parameter in model.named_parameters():
                    checks.finite(name, parameter)
                test_error, solver_steps = _test(model, dataset)
            records.append(
                Epoch(
                    loss=loss_sum / count,
                    train_error=100 * wrong / count,
                    test_error=test_error,
                    seconds=time.perf_counter() - started,
                    solver_steps=solver_steps,
                )
            )
            if progress_file is not None:
                progress_file.save(model, optimizer, generator, records)
            bar.set_postfix_str(f"loss {loss_sum / count:.3f}, test error {test_error:.1f} %")
    return TrainingRecord(
        dataset=dataset.name,
        batch_size=batch_size,
        learning_rate=learning_rate,
        temperature=temperature,
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


def last_complete_epoch(checkpoint: str | os.PathLike[str], model: nn.Module) -> tuple[Epoch, ...]:
    """Put the weights of a checkpoint of ``train`` into the model: those of a training that could not go on.

    Returns:
        The records of the epochs that were completed.

    Raises:
        InputError: if there is no such checkpoint, or it is of another model.
    """
    content = _read_checkpoint(Path(checkpoint))
    with _refusing(Path(checkpoint)):
        model.load_state_dict(content["model"])
        return tuple(Epoch(**record) for record in content["epochs"])


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


@dataclass(frozen=True)
class _Checkpoint:
    """A training between two epochs, in a file."""

    path: Path
    settings: dict[str, Any]

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, records: Sequence[Epoch]
    ) -> None:
        content = {
            "settings": self.settings,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "epochs": [asdict(record) for record in records],
        }
        write_tensors(self.path, content)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> list[Epoch]:
        """Put everything back; the records of the epochs that are over."""
        if not self.path.exists():
            return []
        content = _read_checkpoint(self.path)
        found = content["settings"]
        if found == self.settings:
            with _refusing(self.path):
                model.load_state_dict(content["model"])
                optimizer.load_state_dict(content["optimizer"])
                generator.set_state(content["generator"])
                return [Epoch(**record) for record in content["epochs"]]
        differ = [f"{k} = {found.get(k)!r}, now {v!r}" for k, v in self.settings.items() if found.get(k) != v]
        raise InputError(
            f"{str(self.path)!r} belongs to a training with {', '.join(differ)}; repeat that or name another file"
        )


def _read_checkpoint(path: Path) -> dict[str, Any]:
    with _refusing(path):
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["settings"].keys() and content["epochs"]:
            return content
        raise ValueError("it holds no epoch")


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged pickle can raise anything
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{str(path)!r} is no checkpoint of this training ({type(error).__name__}: {reason}); remove it"
        ) from error


@contextlib.contextmanager
def _diverging(where: str) -> Iterator[None]:
    try:
        yield
    except (ContractingError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        raise TrainingError(
            f"training stopped in {where}: {error} — use a smaller learning_rate, and check the data for NaN"
        ) from error


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, temperature: float
) -> tuple[float, Tensor]:
    """One step of the optimiser: the loss before it, and the outputs."""
    outputs = model(inputs)
    loss = cross_entropy(outputs / temperature, labels)
    if not bool(torch.isfinite(loss)):
        raise TrainingError(f"the loss is {float(loss.detach()):g}")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach()), outputs.detach()


@torch.no_grad()
def _check_fit(model: nn.Module, dataset: Dataset) -> None:
    """Whether the model takes the images, tells all classes apart, and has something to train."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("model must have a parameter that requires a gradient, or there is nothing to train")
    image = dataset.train_inputs[:1]
    if isinstance(model, EquilibriumLayer):
        checks.last_size("train_inputs", image, model.in_features)
        checks.same_kind("train_inputs", image, "the layer", model.parameterization.example)
        outputs = model.out_features
    else:
        try:
            with evaluating(model):
                outputs = model(image).shape[-1]
        except Exception as error:  # whatever module it is
            raise InputError(
                f"model does not take the images of {dataset.name}, {tuple(image.shape)} of {image.dtype}: {error}"
            ) from error
    if outputs < dataset.classes:
        raise InputError(f"model must have an output for each of the {dataset.classes} classes, it has {outputs}")


@torch.no_grad()
def _test(model: nn.Module, dataset: Dataset) -> tuple[float, float | None]:
    """Test error in percent and mean number of solver steps."""
    if not isinstance(model, EquilibriumLayer):
        return error_percent(model, dataset.test_inputs, dataset.test_labels), None
    weights, count = model.weights(), len(dataset.test_labels)
    wrong, steps = 0, 0
    for rows in torch.split(torch.arange(count), _TEST_BATCH):
        inputs = dataset.test_inputs[rows]
        solution = model.solve(inputs)
        wrong += int((weights.readout(solution.z, inputs).argmax(-1) != dataset.test_labels[rows]).sum())
        steps += int(solution.steps.sum())
    return 100 * wrong / count, steps / count
