"""A training between two epochs, in a file: what the rest of it depends on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contracting.errors import InputError
from equilibrium.files import write_tensors
from equilibrium.training import ranks
from equilibrium.training.records import Epoch


@dataclass(frozen=True)
class Checkpoint:
    """A training between two epochs, in a file."""

    path: Path
    settings: dict[str, Any]

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, records: Sequence[Epoch]
    ) -> None:
        """Write everything down."""
        content = {
            "settings": self.settings,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "epochs": [asdict(record) for record in records],
        }
        write_tensors(self.path, content)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> list[Epoch]:
        """Put everything back, as the first process finds it; the records of the epochs that are over."""
        content = ranks.from_first(lambda: _read_checkpoint(self.path) if self.path.exists() else None)
        if content is None:
            return []
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
