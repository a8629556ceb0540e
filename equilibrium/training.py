"""Train an equilibrium layer as a classifier: cross-entropy, Adam, warm-up and cosine, a seeded order of batches."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from contracting import checks
from contracting.errors import ContractingError
from equilibrium.data import Dataset
from equilibrium.layers import EquilibriumLayer

_WARM_UP = 0.1  # share of all steps in which the learning rate rises to its full value
_TEST_BATCH = 1000


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
        solver_steps: mean number of solver steps per test image at the end of the epoch.
    """

    loss: float
    train_error: float
    test_error: float
    seconds: float
    solver_steps: float


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How a layer was trained, and what every epoch brought."""

    dataset: str
    batch_size: int
    learning_rate: float
    seed: int
    epochs: tuple[Epoch, ...]

    @property
    def seconds(self) -> float:
        """Wall time of all epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    @property
    def test_error(self) -> float:
        """Misclassified test images after the last epoch, in percent."""
        return self.epochs[-1].test_error


def train(
    layer: EquilibriumLayer,
    dataset: Dataset,
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 0.03,
    seed: int = 0,
    progress: bool = False,
) -> TrainingRecord:
    """Minimise the cross-entropy of the layer's output in place, with Adam.

    The learning rate rises linearly over the first tenth of all steps and then falls to zero along a cosine. The same
    seed, layer and data give the same weights on the same number of threads. Small layers train fastest on one thread.

    Args:
        layer: the classifier; its dtype and device are those of the data.
        dataset: images and labels.
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: the largest learning rate.
        seed: of the order of the images; the layer's start is the caller's.
        progress: show a bar where standard error is a terminal.

    Returns:
        The record of all epochs.

    Raises:
        InputError: on a setting out of range, or a layer that does not fit the data.
        TrainingError: if the loss or the layer stops being finite.
        MissingExtraError: with ``progress`` but without tqdm, the extra ``cli``.
    """
    checks.whole_number("epochs", epochs)
    checks.whole_number("batch_size", batch_size)
    checks.number("learning_rate", learning_rate, low=0, low_open=True, high=math.inf, high_open=True)
    generator = torch.Generator().manual_seed(checks.whole_number("seed", seed, low=0))
    checks.last_size("train_inputs", dataset.train_inputs, layer.in_features)
    count = len(dataset.train_labels)
    batches = math.ceil(count / batch_size)
    optimizer = torch.optim.Adam(layer.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _WarmUpThenCosine(epochs * batches))
    records: list[Epoch] = []
    with progress_bar(epochs * batches, "training", show=progress) as bar:
        for epoch in range(epochs):
            started = time.perf_counter()
            loss_sum, wrong = 0.0, 0
            for rows in torch.split(torch.randperm(count, generator=generator), batch_size):
                inputs, labels = dataset.train_inputs[rows], dataset.train_labels[rows]
                loss, outputs = _step(layer, optimizer, inputs, labels, f"epoch {epoch + 1} of {epochs}")
                schedule.step()
                loss_sum += loss * len(rows)
                wrong += int((outputs.argmax(-1) != labels).sum())
                bar.update()
            test_error, solver_steps = _test(layer, dataset)
            records.append(
                Epoch(
                    loss=loss_sum / count,
                    train_error=100 * wrong / count,
                    test_error=test_error,
                    seconds=time.perf_counter() - started,
                    solver_steps=solver_steps,
                )
            )
            bar.set_postfix_str(f"loss {loss_sum / count:.3f}, test error {test_error:.1f} %")
    return TrainingRecord(
        dataset=dataset.name, batch_size=batch_size, learning_rate=learning_rate, seed=seed, epochs=tuple(records)
    )


@torch.no_grad()
def error_percent(layer: nn.Module, inputs: Tensor, labels: Tensor, *, batch_size: int = _TEST_BATCH) -> float:
    """Misclassified inputs in percent, the class being the largest output.

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
    return 100 * sum(int((layer(x).argmax(-1) != y).sum()) for x, y in parts) / count


def progress_bar(total: int, description: str, *, show: bool) -> Any:
    """A tqdm bar on standard error, silent where that is no terminal or ``show`` is off.

    Raises:
        MissingExtraError: with ``show`` but without tqdm, the extra ``cli``.
    """
    if not show:
        return _Silent()
    tqdm = checks.extra("tqdm", "cli", "the progress bar").tqdm
    return tqdm(total=total, desc=description, disable=None, leave=False, dynamic_ncols=True)


class _Silent:
    """What this library asks of a tqdm bar, doing nothing."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, n: int = 1) -> None: ...

    def set_postfix_str(self, text: str) -> None: ...


@dataclass(frozen=True)
class _WarmUpThenCosine:
    steps: int

    def __call__(self, step: int) -> float:
        warm_up = _WARM_UP * self.steps
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (self.steps - warm_up)))


def _step(
    layer: EquilibriumLayer, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, where: str
) -> tuple[float, Tensor]:
    """One step of the optimiser: the loss before it, and the outputs."""
    try:
        outputs = layer(inputs)
        loss = cross_entropy(outputs, labels)
        if not bool(torch.isfinite(loss)):
            raise TrainingError(f"the loss is {float(loss.detach()):g}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
    except (ContractingError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        raise TrainingError(
            f"training stopped in {where}: {error} — use a smaller learning_rate, and check the data for NaN"
        ) from error
    optimizer.step()
    return float(loss.detach()), outputs.detach()


@torch.no_grad()
def _test(layer: EquilibriumLayer, dataset: Dataset) -> tuple[float, float]:
    """Test error in percent and mean number of solver steps."""
    weights, count = layer.weights(), len(dataset.test_labels)
    wrong, steps = 0, 0
    for rows in torch.split(torch.arange(count), _TEST_BATCH):
        inputs = dataset.test_inputs[rows]
        solution = layer.solve(inputs)
        wrong += int((weights.readout(solution.z, inputs).argmax(-1) != dataset.test_labels[rows]).sum())
        steps += int(solution.steps.sum())
    return 100 * wrong / count, steps / count
