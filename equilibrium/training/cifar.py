"""CIFAR-10 from its binary files: https://www.cs.toronto.edu/~kriz/cifar.html, "CIFAR-10 binary version"."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from contracting.errors import InputError
from equilibrium.training.data import Dataset, Normalization

_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # one byte of label, then red, green and blue in row-major order
_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_TEST = ("test_batch.bin",)


def cifar10(directory: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test images of 3×32×32, inputs (pixel/255 − 0.4734)/0.2516.

    The same mean and deviation for the three colours, so that a Lipschitz constant scales by one number.

    Args:
        directory: folder with ``data_batch_1.bin`` … ``data_batch_5.bin`` and ``test_batch.bin``; the folder
            ``cifar-10-batches-bin`` in it is found too.
        dtype: of the inputs, float32 or float64.

    Raises:
        InputError: if a file is missing or not of the format.
    """
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    folder = Path(directory)
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"
    normalization = Normalization(scale=255.0, mean=0.4734, std=0.2516)
    parts = []
    for names in (_TRAIN, _TEST):
        batches = [read_batch(folder / name) for name in names]
        parts.append(torch.cat([pixels for pixels, _ in batches]))
        parts.append(torch.cat([labels for _, labels in batches]))
    return Dataset(
        name="cifar10",
        train_inputs=normalization.normalize(parts[0].flatten(1).to(dtype)),
        train_labels=parts[1],
        test_inputs=normalization.normalize(parts[2].flatten(1).to(dtype)),
        test_labels=parts[3],
        classes=10,
        normalization=normalization,
        image_shape=_SHAPE,
    )


def read_batch(path: str | os.PathLike[str]) -> tuple[Tensor, Tensor]:
    """One binary batch: images (count, 3, 32, 32) as uint8, labels (count,) as int64.

    Raises:
        InputError: if the file is missing, empty, cut short, or has a label above 9.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({error.strerror}); give the folder that has data_batch_1.bin and its five "
            "companions, the binary version of CIFAR-10"
        ) from None
    if not raw or len(raw) % _RECORD:
        raise InputError(f"{str(path)!r} has {len(raw)} bytes, which is no whole number of records of {_RECORD} bytes")
    records = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).reshape(-1, _RECORD).copy())
    labels = records[:, 0].long()
    if int(labels.max()) > 9:
        raise InputError(f"{str(path)!r} has the label {int(labels.max())}, but CIFAR-10 has ten classes")
    return records[:, 1:].reshape(-1, *_SHAPE), labels
