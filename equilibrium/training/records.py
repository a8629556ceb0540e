"""What a training leaves: every epoch, every step, and how the whole was set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from contracting.display import Displayed, Tabular
from contracting.errors import ContractingError
from contracting.loop.records import LastSolves


class TrainingError(ContractingError, RuntimeError):
    """Training cannot go on; the message says where it stopped and what to try."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What was seen in one epoch.

    Attributes:
        loss: mean loss over the epoch, while the weights moved.
        train_error: the error of the loss on the training rows, over the epoch, while the weights moved: misclassified
            ones in percent, or the root mean square of the difference.
        test_error: the same of the test rows at the end of the epoch; None where there are none.
        seconds: wall time of the epoch, with its test.
        solver_steps: mean number of solver steps per test row at the end of the epoch; None without a solver or a test.
        unproved: test rows at the end of the epoch whose class is not proved to stay within the radius of the loss, in
            percent; None of a loss that proves nothing.
    """

    loss: float
    train_error: float
    test_error: float | None
    seconds: float
    solver_steps: float | None
    unproved: float | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainingStep(Displayed):
    """What a callback is told after a step of the optimiser.

    Attributes:
        epoch: from 1.
        step: over all epochs, from 1.
        loss: before the step.
        learning_rate: of the step.
        solves: what the solves of each equilibrium layer in the model measured, forward and backward, in the order of
            its modules: ``step.solves[0].forward.numbers()`` is what to log.
    """

    epoch: int
    step: int
    loss: float
    learning_rate: float
    solves: tuple[LastSolves, ...]


Callback = Callable[[TrainingStep], object]


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainingRecord(Tabular):
    """How a model was trained, and what every epoch brought."""

    dataset: str
    batch_size: int
    learning_rate: float
    loss: str
    error: str
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
        """The error of the test rows after the last epoch; NaN where there are none."""
        error = self.epochs[-1].test_error
        return float("nan") if error is None else error
