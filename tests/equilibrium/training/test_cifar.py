"""The reader of CIFAR-10's binary files, on files in the same format that are written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from contracting.errors import InputError
from equilibrium.training.cifar import cifar10

NAMES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def write(folder: Path, count: int = 3) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    content = {}
    for name in NAMES:
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        pixels = generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        (folder / name).write_bytes(
            b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, pixels, strict=True))
        )
        content[name] = (pixels, labels)
    return content


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_images_labels_and_order_survive(tmp_path: Path, inner: str) -> None:
    content = write(tmp_path / inner)
    data = cifar10(tmp_path)
    assert data.image_shape == (3, 32, 32) and data.classes == 10
    assert data.train_inputs.shape == (15, 3072) and data.test_inputs.shape == (3, 3072)
    pixels = data.normalization.restore(data.train_inputs.clone()).round().reshape(15, 3, 32, 32)
    expected = np.concatenate([content[name][0] for name in NAMES[:5]])
    assert np.array_equal(pixels.numpy().astype(np.uint8), expected)
    assert data.train_labels.tolist() == np.concatenate([content[name][1] for name in NAMES[:5]]).tolist()
    assert data.test_labels.tolist() == content["test_batch.bin"][1].tolist()
    # one pixel by hand: image 1 of the first file, green, row 2, column 5
    raw = (tmp_path / inner / NAMES[0]).read_bytes()
    assert int(pixels[1, 1, 2, 5]) == raw[3073 + 1 + 1024 + 2 * 32 + 5]


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data_batch_1.bin"):
        cifar10(tmp_path)
    write(tmp_path)
    path = tmp_path / NAMES[2]
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(InputError, match="no whole number of records"):
        cifar10(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="0 bytes"):
        cifar10(tmp_path)
    path.write_bytes(bytes([10]) + whole[1:])
    with pytest.raises(InputError, match="label above 9"):
        cifar10(tmp_path)
    with pytest.raises(InputError, match="float"):
        cifar10(tmp_path, dtype=torch.float16)
