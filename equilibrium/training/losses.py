"""What training minimises, and the error that a reader understands: of classes, of numbers, or of one's own making."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from contracting import checks
from contracting.errors import InputError

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What a loss makes of some rows.

    Attributes:
        value: the mean loss, ().
        outputs: of the model, (batch, out).
    """

    value: Tensor
    outputs: Tensor


class Loss(ABC):
    """A loss of outputs and targets, with an error per row, whose mean is told as one number.

    Attributes:
        error_name: what that number is, with its unit.
    """

    error_name: str

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over the rows: (batch, out), (batch, …) -> ()."""

    @abstractmethod
    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The error of each row: (batch, out), (batch, …) -> (batch,)."""

    def told(self, mean: float) -> float:
        """The number that is told of a mean error; here the mean itself."""
        return mean

    def at(self, progress: float) -> Loss:
        """The loss after this share of the training, in [0, 1]; here always the same."""
        return self

    def of(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Judged:
        """What is minimised; here the loss of the outputs. One that asks for more of the model brings its own."""
        outputs = model(inputs)
        return Judged(value=self(outputs, targets), outputs=outputs)

    def unproved(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor | None:
        """Which rows are not proved to be right all around them, (batch,); None of a loss that proves nothing."""
        return None

    def check(self, outputs: int, targets: Tensor) -> None:  # noqa: B027  # one's own loss says so itself
        """Whether so many outputs can be compared with targets of this kind.

        Raises:
            InputError: if not.
        """


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """The cross-entropy of outputs/τ and classes; its error is the share of misclassified rows, in percent.

    Args:
        temperature: τ > 0. A map with Lipschitz constant γ cannot reach a small loss unless γ/τ is large: τ/γ is the
            distance in the inputs over which training looks for a margin.

    Raises:
        InputError: on a temperature that is not positive.
    """

    temperature: float = 1.0
    error_name = "misclassified (%)"

    def __post_init__(self) -> None:
        checks.number("temperature", self.temperature, low=0, low_open=True, high=math.inf, high_open=True)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs / self.temperature, targets)

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(-1) != targets).double()

    def told(self, mean: float) -> float:
        return 100 * mean

    def check(self, outputs: int, targets: Tensor) -> None:
        if targets.dtype != torch.int64 or targets.ndim != 1:
            raise InputError(f"classes must be (count,) and int64, got {tuple(targets.shape)} of {targets.dtype}")
        classes = int(targets.max()) + 1
        if int(targets.min()) < 0 or outputs < classes:
            raise InputError(f"model must have an output for each of the {classes} classes, it has {outputs}")


@dataclass(frozen=True, kw_only=True)
class SquaredError(Loss):
    """The mean of the squared differences of outputs and targets; its error is the root of their mean square."""

    error_name = "root mean square error"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).double().square().flatten(1).mean(-1)

    def told(self, mean: float) -> float:
        return math.sqrt(mean)

    def check(self, outputs: int, targets: Tensor) -> None:
        if not targets.is_floating_point() or targets.ndim != 2 or targets.shape[1] != outputs:
            raise InputError(
                f"targets must be floating point of shape (count, {outputs}) for a model of {outputs} outputs, got "
                f"{tuple(targets.shape)} of {targets.dtype}"
            )


@dataclass(frozen=True, kw_only=True)
class OwnLoss(Loss):
    """A loss of one's own, (batch, out), (batch, …) -> (), the mean over rows; it is its own error."""

    function: Function
    error_name = "mean loss"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return checks.shape("the loss", checks.floating_tensor("the loss", self.function(outputs, targets)), ())

    def errors(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self(outputs, targets).double().expand(len(outputs))


def as_loss(loss: Loss | Function) -> Loss:
    """The loss that is meant by one of this file, or by any function of outputs and targets.

    Raises:
        InputError: if it is neither.
    """
    if isinstance(loss, Loss):
        return loss
    if not callable(loss):
        known = "CrossEntropy(), SquaredError() or a function of outputs and targets"
        raise InputError(f"loss must be {known}, got {loss!r}")
    return OwnLoss(function=loss)
