"""CIFAR-10 from its binary files: https://www.cs.toronto.edu/~kriz/cifar.html, "CIFAR-10 binary version"."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from contracting.errors import InputError
from equilibrium.training.data import Dataset, Normalization, check_dtype, from_pixels

_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # one byte of label, then red, green and blue in row-major order
_TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]


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
    check_dtype(dtype)
    folder = Path(directory)
    if (folder / "cifar-10-batches-bin").is_dir():
        folder = folder / "cifar-10-batches-bin"
    train = torch.cat([_records(folder / name) for name in _TRAIN])
    test = _records(folder / "test_batch.bin")
    parts = (train[:, 1:], train[:, 0], test[:, 1:], test[:, 0])
    return from_pixels("cifar10", parts, Normalization(scale=255.0, mean=0.4734, std=0.2516), _SHAPE, dtype)


def _records(path: Path) -> Tensor:
    """One binary batch as (count, 1 + 3072), uint8: labels, then pixels."""
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
    if int(records[:, 0].max()) > 9:
        raise InputError(f"{str(path)!r} has a label above 9, but CIFAR-10 has ten classes")
    return records
