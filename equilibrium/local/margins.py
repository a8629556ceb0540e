"""Margins of classes, accuracies within a radius, and the checks of rows and labels that go with them."""

from __future__ import annotations

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError


def margins(outputs: Tensor, labels: Tensor) -> Tensor:
    """The lead y_label − y_j over every class j, zero for the label itself: (batch, classes), (batch,) -> the same."""
    return with_axes("outputs", outputs, "batch", "classes").gather(-1, labels[:, None]) - outputs


def accuracy_within(radius: Tensor, sizes: Tensor) -> Tensor:
    """The share of inputs whose radius is larger than each size, in percent: (count,), (k,) -> (k,).

    Of certified radii this is the certified accuracy; of the smallest perturbations found, the accuracy under attack.
    """
    radius, sizes = with_axes("radius", radius, "count"), with_axes("sizes", sizes, "k")
    return 100 * (radius[None, :] > sizes[:, None]).double().mean(-1)


def attacks_inside(radius: Tensor, sizes: Tensor) -> Tensor:
    """Indices of the inputs that were fooled by a perturbation smaller than their certified radius: there are none.

    Args:
        radius: certified, (count,).
        sizes: of the smallest perturbation that fooled each input, ∞ where none did, (count,).
    """
    radius, sizes = with_axes("radius", radius, "count"), with_axes("sizes", sizes, "count")
    return torch.nonzero(checks.shape("sizes", sizes, tuple(radius.shape)) < radius).flatten()


def with_axes(name: str, value: Tensor, *axes: str) -> Tensor:
    """Return ``value`` if it is a tensor with these axes, else raise InputError."""
    if checks.floating_tensor(name, value).ndim != len(axes):
        raise InputError(f"{name} must be of shape ({', '.join(axes)}), got {tuple(value.shape)}")
    return value


def checked_rows(inputs: Tensor, labels: Tensor) -> None:
    """Refuse inputs that are no rows, (count, in), or labels that are not one for each."""
    with_axes("inputs", inputs, "count", "in")
    if not isinstance(labels, Tensor):
        raise InputError(f"labels must be a torch.Tensor, got {type(labels).__name__}; use torch.as_tensor(...)")
    checks.shape("labels", labels, (checks.whole_number("the number of inputs", len(inputs)),))


def checked_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels that are no whole numbers in 0 … classes − 1."""
    if labels.dtype != torch.int64 or not bool(((labels >= 0) & (labels < classes)).all()):
        raise InputError(
            f"labels must be int64 in 0 … {classes - 1}, the classes of the model, got {labels.dtype} from "
            f"{labels.min():g} to {labels.max():g}"
        )


def batches(inputs: Tensor, labels: Tensor, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs (count, in) and labels (count,) in pieces of at most ``batch_size`` rows."""
    checks.whole_number("batch_size", batch_size)
    return list(zip(torch.split(inputs, batch_size), torch.split(labels, batch_size), strict=True))
