"""Readers refuse every kind of damaged file in one sentence, and read MNIST bit for bit as the checkpoints expect."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from contracting import checks
from contracting.errors import InputError, MissingExtraError
from equilibrium.training import data

MNIST_NAMES = tuple(data._MNIST.sha256)


def idx_bytes(array: np.ndarray) -> bytes:
    """An IDX file with ``array``, of bytes."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def one_sentence(error: pytest.ExceptionInfo[InputError], path: Path) -> str:
    """The message, after checking that it is one line that names the file."""
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


def test_digits_are_divided_fairly_and_normalised():
    dataset = data.digits()
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (1347, 450)
    assert dataset.features == 64 and dataset.classes == 10
    assert dataset.train_inputs.dtype == torch.float32 and dataset.train_labels.dtype == torch.int64
    train, test = dataset.train_labels.bincount(), dataset.test_labels.bincount()
    assert ((test - (train + test) / 4).abs() < 1).all()
    assert abs(float(dataset.train_inputs.mean())) < 1e-5
    assert abs(float(dataset.train_inputs.std()) - 1) < 1e-5
    assert dataset.train_inputs.unflatten(-1, dataset.image_shape).shape == (1347, 1, 8, 8)
    # Not sorted by class: a subset has all of them.
    assert (dataset.train_labels[:200].bincount(minlength=10) > 0).all()


def test_digits_division_loses_and_repeats_nothing():
    from sklearn.datasets import load_digits

    dataset = data.digits(dtype=torch.float64)
    inputs = torch.cat([dataset.train_inputs, dataset.test_inputs])
    pixels = dataset.normalization.restore(inputs)
    labelled = torch.cat([pixels, torch.cat([dataset.train_labels, dataset.test_labels])[:, None]], dim=1)
    bunch = load_digits()
    expected = np.column_stack([bunch.data, bunch.target])
    assert sorted(labelled.round().long().tolist()) == sorted(expected.astype(int).tolist())


def test_digits_division_depends_on_the_seed_alone():
    first = data.digits(seed=3)
    torch.manual_seed(17)
    second, other = data.digits(seed=3), data.digits(seed=4)
    assert torch.equal(first.train_inputs, second.train_inputs)
    assert torch.equal(first.test_labels, second.test_labels)
    assert not torch.equal(first.train_inputs, other.train_inputs)
    state = torch.get_rng_state()
    data.digits(seed=3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("seed", [-1, 0.5, "0", True, 2**63, 2**64])
def test_digits_refuses_a_bad_seed(seed):
    with pytest.raises(InputError, match="seed"):
        data.digits(seed=seed)


def test_the_largest_seed():
    assert checks.seed("seed", 2**63 - 1) == 2**63 - 1
    torch.Generator().manual_seed(2**63 - 1)
    with pytest.raises(InputError, match=r"^--seed must be a whole number below 2\*\*63, got 18446744073709551616; "):
        checks.seed("--seed", 2**64)


def test_dtype_must_be_float32_or_float64(tmp_path):
    assert data.digits(dtype=torch.float64).test_inputs.dtype == torch.float64
    with pytest.raises(InputError, match="dtype"):
        data.digits(dtype=torch.float16)
    with pytest.raises(InputError, match="dtype"):
        data.mnist(tmp_path, dtype=torch.uint8)


def test_missing_extras_are_named(monkeypatch):
    def no_module(name):
        raise ImportError(name)

    monkeypatch.setattr(checks.importlib, "import_module", no_module)
    with pytest.raises(MissingExtraError, match=r"contracting-equilibria\[data\]"):
        data.digits()
    with pytest.raises(MissingExtraError, match=r"contracting-equilibria\[data\]"):
        data.mnist()


def test_normalization_undoes_itself():
    normalization = data.Normalization(scale=255.0, mean=0.1307, std=0.3081)
    pixels = torch.arange(256, dtype=torch.float64)
    before = pixels.clone()
    inputs = normalization.normalize(pixels)
    assert torch.equal(pixels, before)
    assert math.isclose(float(inputs[255]), (1 - 0.1307) / 0.3081)
    assert torch.allclose(normalization.restore(inputs), pixels, atol=1e-12)
    with pytest.raises(InputError, match="floating point"):
        normalization.normalize(torch.arange(3))


def test_subset_takes_the_first_rows_and_frees_the_rest():
    dataset = data.digits()
    small = data.subset(dataset, train=10, test=5)
    assert torch.equal(small.train_inputs, dataset.train_inputs[:10])
    assert torch.equal(small.test_labels, dataset.test_labels[:5])
    assert small.train_inputs.untyped_storage().nbytes() == 10 * 64 * 4
    assert small.normalization == dataset.normalization
    assert data.subset(dataset, train=10).test_inputs is dataset.test_inputs
    for count in (0, -1, 1348, 2.0, True):
        with pytest.raises(InputError, match="train"):
            data.subset(dataset, train=count)
    with pytest.raises(InputError, match="at most 450"):
        data.subset(dataset, test=451)


def test_dataset_refuses_parts_that_do_not_fit():
    dataset = data.digits()
    parts = {name: getattr(dataset, name) for name in dataset.__dataclass_fields__}
    with pytest.raises(InputError, match="train_labels"):
        data.Dataset(**{**parts, "train_labels": dataset.train_labels[:-1]})
    with pytest.raises(InputError, match="test_inputs"):
        data.Dataset(**{**parts, "test_inputs": dataset.test_inputs[:, :-1]})
    with pytest.raises(AttributeError):
        dataset.name = "other"


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """Four small files in a folder, and their hashes in place of MNIST's."""
    hashes = {}
    for count, stem in ((3, "train"), (2, "t10k")):
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8)
        for name, array in ((f"{stem}-images-idx3-ubyte.gz", images), (f"{stem}-labels-idx1-ubyte.gz", labels)):
            content = idx_bytes(array)
            (tmp_path / name).write_bytes(gzip.compress(content))
            hashes[name] = hashlib.sha256(content).hexdigest()
    assert tuple(sorted(hashes)) == tuple(sorted(MNIST_NAMES))
    known = {name: hashes[name] for name in MNIST_NAMES}
    for source in ("_MNIST", "_FASHION_MNIST"):
        monkeypatch.setattr(data, source, replace(getattr(data, source), sha256=known))
    return tmp_path


def respell(name: str, spelling: str) -> str:
    plain = name.removesuffix(".gz")
    return {"plain": plain, "dotted": plain.replace("-idx", ".idx"), "gz": name}[spelling]


@pytest.mark.parametrize("spelling", ["gz", "plain", "dotted"])
def test_mnist_understands_every_spelling(small_mnist, spelling):
    expected = data.mnist(small_mnist)
    for name in MNIST_NAMES:
        content = (small_mnist / name).read_bytes()
        (small_mnist / name).unlink()
        (small_mnist / respell(name, spelling)).write_bytes(content if spelling == "gz" else gzip.decompress(content))
    dataset = data.mnist(str(small_mnist))
    assert dataset.train_inputs.shape == (3, 784) and dataset.test_inputs.shape == (2, 784)
    assert dataset.train_labels.tolist() == [0, 1, 2]
    assert dataset.image_shape == (1, 28, 28)
    assert torch.equal(dataset.train_inputs, expected.train_inputs)


def test_mnist_skips_folders_named_like_the_file(small_mnist):
    """Some archives unpack each file into a folder of its own name."""
    name = MNIST_NAMES[0]
    content = gzip.decompress((small_mnist / name).read_bytes())
    (small_mnist / name).unlink()
    (small_mnist / respell(name, "plain")).mkdir()
    (small_mnist / respell(name, "dotted")).write_bytes(content)
    assert len(data.mnist(small_mnist).train_labels) == 3


def test_mnist_names_the_missing_file(small_mnist):
    missing = MNIST_NAMES[3]
    (small_mnist / missing).unlink()
    with pytest.raises(InputError, match="--data-dir") as error:
        data.mnist(small_mnist)
    assert missing in one_sentence(error, small_mnist)


LABELS = gzip.compress(idx_bytes(np.arange(3, dtype=np.uint8)), mtime=0)
DAMAGED = {
    "other content": gzip.compress(idx_bytes(np.array([0, 1, 3], dtype=np.uint8))),
    "no IDX file": b"<!DOCTYPE html>",
    "empty": b"",
    "cut short": idx_bytes(np.arange(3, dtype=np.uint8))[:-1],
    "too long": gzip.compress(idx_bytes(np.arange(3, dtype=np.uint8)) + b"!"),
    "truncated gzip": LABELS[:-12],
    "wrong checksum": LABELS[:-8] + bytes(8),
    "no deflate": LABELS[:10] + b"\xff" * 30,
    "garbage behind": LABELS + b"garbage",
    "gzip header only": LABELS[:2],
}


@pytest.mark.parametrize("what", DAMAGED)
def test_mnist_refuses_damage_and_other_content(small_mnist, what):
    path = small_mnist / MNIST_NAMES[1]
    assert LABELS != DAMAGED[what] and len(data.mnist(small_mnist).train_labels) == 3
    path.write_bytes(DAMAGED[what])
    with pytest.raises(InputError, match="download the file again") as error:
        data.mnist(small_mnist)
    one_sentence(error, path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every file")
def test_mnist_names_missing_permission(small_mnist):
    path = small_mnist / MNIST_NAMES[1]
    path.chmod(0)
    with pytest.raises(InputError, match="permissions") as error:
        data.mnist(small_mnist)
    one_sentence(error, path)


def test_mnist_refuses_a_folder_that_is_none(tmp_path):
    with pytest.raises(InputError, match=r"does not exist.*--data-dir"):
        data.mnist(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"is not a folder.*--data-dir"):
        data.mnist(tmp_path / "file")


def test_download_fetches_the_four_files_into_the_cache(small_mnist, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    asked = []

    def retrieve(url, *, known_hash, fname, path):
        asked.append((url, known_hash))
        Path(path).mkdir(exist_ok=True)
        (Path(path) / fname).write_bytes((small_mnist / fname).read_bytes())

    pooch = SimpleNamespace(os_cache=lambda project: cache, retrieve=retrieve)
    monkeypatch.setattr(checks.importlib, "import_module", lambda name: pooch)
    assert torch.equal(data.mnist().train_inputs, data.mnist(small_mnist).train_inputs)
    assert [url.rsplit("/", 1)[1] for url, _ in asked] == list(MNIST_NAMES)
    assert all(url.startswith("https://") and known.startswith("md5:") for url, known in asked)


@pytest.mark.parametrize("failure", [ConnectionError("no route"), PermissionError("cache"), ValueError("wrong hash")])
def test_download_failure_is_one_sentence_with_the_remedy(tmp_path, monkeypatch, failure):
    def retrieve(*args, **kwargs):
        raise failure

    pooch = SimpleNamespace(os_cache=lambda project: tmp_path, retrieve=retrieve)
    monkeypatch.setattr(checks.importlib, "import_module", lambda name: pooch)
    with pytest.raises(data.DownloadError, match="--data-dir") as error:
        data.mnist()
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is failure


def test_real_pooch_failure_is_caught(tmp_path, monkeypatch):
    """The exceptions of pooch itself, without a network: nothing listens on the discard port of this machine."""
    pytest.importorskip("pooch")
    monkeypatch.setattr(data, "_MIRROR", "http://127.0.0.1:9/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    with pytest.raises(data.DownloadError, match="--data-dir"):
        data.mnist()


def test_fashion_mnist_is_read_as_mnist_is_with_its_own_normalisation(small_mnist):
    fashion, digits = data.fashion_mnist(small_mnist, dtype=torch.float64), data.mnist(small_mnist, dtype=torch.float64)
    assert fashion.name == "fashion-mnist" and torch.equal(fashion.test_labels, digits.test_labels)
    pixels = digits.normalization.restore(digits.train_inputs)
    assert torch.allclose(fashion.train_inputs, (pixels / 255 - 0.2860) / 0.3530, atol=1e-12)


def test_the_files_of_one_data_set_never_pass_for_the_other(shared_data, tmp_path):
    with pytest.raises(InputError, match="Fashion-MNIST's train-images") as error:
        data.fashion_mnist(shared_data / "mnist")
    one_sentence(error, shared_data / "mnist" / MNIST_NAMES[0])
    with pytest.raises(InputError, match="dataset-fashion-mnist"):
        data.fashion_mnist(tmp_path / "nothing")


def test_real_fashion_mnist():
    folder = Path("/usr/share/datasets/fashion-mnist")
    if not folder.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    dataset = data.fashion_mnist(folder)
    assert dataset.train_inputs.shape == (60000, 784)
    assert dataset.test_labels.bincount().tolist() == [1000] * 10
    assert abs(float(dataset.train_inputs.mean())) < 1e-3 and abs(float(dataset.train_inputs.std()) - 1) < 1e-3


def test_real_mnist(shared_data):
    dataset = data.mnist(shared_data / "mnist")
    assert dataset.train_inputs.shape == (60000, 784) and dataset.test_inputs.shape == (10000, 784)
    assert dataset.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert dataset.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # The published mean and standard deviation are those of the training images.
    assert abs(float(dataset.train_inputs.mean())) < 1e-3
    assert abs(float(dataset.train_inputs.std()) - 1) < 1e-3
    assert math.isclose(float(dataset.test_inputs.min()), -0.1307 / 0.3081, rel_tol=1e-6)
    assert math.isclose(float(dataset.test_inputs.max()), (1 - 0.1307) / 0.3081, rel_tol=1e-6)
