"""Evaluation mode for a while: whatever mode each part of a model is in, it finds itself in again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def modes_restored(model: nn.Module) -> Iterator[None]:
    """Put every module of the model back into its own mode at the end: a frozen one stays frozen."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode: no dropout, and no statistics of batches are taken."""
    with modes_restored(model):
        model.eval()
        yield
