"""The networks that several studies train: on the embedded digits, from a seed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from contracting import checks
from equilibrium import LBEN
from equilibrium.training.data import Dataset, digits, subset


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from a seed, without disturbing those of anybody else.

    Raises:
        InputError: on a seed that no generator takes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(checks.seed("--seed", seed))
        yield


def digits_for(seed: int, *, small: bool) -> Dataset:
    """The digits as the seed divides them; 400 to train on and 100 to test if that is to take no time."""
    dataset = digits(seed=checks.seed("--seed", seed))
    return subset(dataset, train=400, test=100) if small else dataset


def new_layer(dataset: Dataset, hidden: int, seed: int, **options: Any) -> LBEN:
    """An LBEN that fits the data set, its weights drawn from ``seed``."""
    with seeded(seed):
        return LBEN(dataset.features, hidden, dataset.classes, **options)
