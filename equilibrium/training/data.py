"""Data sets as normalised tensors: scikit-learn's digits, MNIST and Fashion-MNIST from folders, MNIST downloaded."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from contracting import checks
from contracting.display import Displayed, Row
from contracting.errors import ContractingError, InputError


class DownloadError(ContractingError, OSError):
    """A data set could not be downloaded; the message says how to do without."""


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """The affine map from pixels to network inputs: (pixel/scale − mean)/std.

    A Lipschitz constant γ with respect to the inputs is γ/(scale·std) with respect to the pixels.
    """

    scale: float
    mean: float
    std: float

    def normalize(self, pixels: Tensor) -> Tensor:
        """Inputs of the same shape and dtype as ``pixels``, which must be floating point."""
        return checks.floating_tensor("pixels", pixels).div(self.scale).sub_(self.mean).div_(self.std)

    def restore(self, inputs: Tensor) -> Tensor:
        """The pixels that ``normalize`` maps to ``inputs``."""
        return checks.floating_tensor("inputs", inputs).mul(self.std).add_(self.mean).mul_(self.scale)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dataset(Displayed):
    """Images to classify, flattened and normalised, with a fixed division into training and test.

    Inputs are (count, features) floating-point tensors, labels are (count,) int64 tensors in 0 … classes − 1.
    ``inputs.unflatten(-1, image_shape)`` gives images of shape (count, channels, height, width).
    """

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    classes: int
    normalization: Normalization
    image_shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            inputs, labels = getattr(self, f"{part}_inputs"), getattr(self, f"{part}_labels")
            checks.shape(f"{part}_inputs", inputs, (len(inputs), math.prod(self.image_shape)))
            checks.shape(f"{part}_labels", labels, (len(inputs),))

    @property
    def train_targets(self) -> Tensor:
        """The labels to train on, by the name that any data have."""
        return self.train_labels

    @property
    def test_targets(self) -> Tensor:
        """The labels to test with."""
        return self.test_labels

    def shown(self) -> Sequence[Row]:
        shape = " × ".join(map(str, self.image_shape))
        return [
            Row("name", self.name),
            Row("training", len(self.train_labels), "images"),
            Row("test", len(self.test_labels), "images"),
            Row("image", shape, "channels × height × width"),
            Row("classes", self.classes),
        ]

    @property
    def features(self) -> int:
        """Number of pixels of one image, the input size of a network."""
        return math.prod(self.image_shape)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Samples(Displayed):
    """Inputs with what a model is to make of them: classes, or numbers.

    Attributes:
        name: in words.
        train_inputs: (count, in), floating point.
        train_targets: (count,) int64 classes, or (count, out) numbers of the dtype of the inputs.
        test_inputs: the same of the rows to test with, or None.
        test_targets: the same, or None.

    Raises:
        InputError: if numbers of rows do not fit, there are none, or only one of the last two is given.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor | None = None
    test_targets: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.test_inputs is None) != (self.test_targets is None):
            raise InputError("give both test_inputs and test_targets, or neither")
        for part, inputs, targets in (
            ("train", self.train_inputs, self.train_targets),
            ("test", self.test_inputs, self.test_targets),
        ):
            if inputs is None or targets is None:
                continue
            if checks.floating_tensor(f"{part}_inputs", inputs).ndim != 2 or not len(inputs):
                raise InputError(f"{part}_inputs must have shape (count, in), count ≥ 1, got {tuple(inputs.shape)}")
            if targets.ndim == 0 or len(targets) != len(inputs):
                raise InputError(f"{part}_targets must have {len(inputs)} rows, got shape {tuple(targets.shape)}")


def digits(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> Dataset:
    """scikit-learn's 1797 bundled 8×8 digits: 1347 to train on and 450 to test, no download.

    Every class has the same share of the test images (within one image). The normalisation uses the mean and standard
    deviation of the training pixels.

    Args:
        seed: Draws the division into training and test; the same seed always gives the same one.
        dtype: Of the inputs, float32 or float64.

    Raises:
        InputError: For a seed that is not a whole number from 0 and below 2⁶³, or another dtype.
        MissingExtraError: Without scikit-learn, the extra ``data``.
    """
    check_dtype(dtype)
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    bunch = checks.extra("sklearn.datasets", "data", "digits()").load_digits()
    pixels = torch.as_tensor(bunch.data, dtype=torch.float64)
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)

    order = torch.randperm(len(labels), generator=generator)
    by_class = torch.argsort(labels[order], stable=True)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    is_test[by_class[::4]] = True
    train, test = order[~is_test], order[is_test]

    scaled = pixels[train] / 16
    normalization = Normalization(scale=16.0, mean=float(scaled.mean()), std=float(scaled.std()))
    parts = (pixels[train], labels[train], pixels[test], labels[test])
    return from_pixels("digits", parts, normalization, (1, 8, 8), dtype)


def from_pixels(
    name: str,
    parts: tuple[Tensor, Tensor, Tensor, Tensor],
    normalization: Normalization,
    image_shape: tuple[int, int, int],
    dtype: torch.dtype,
) -> Dataset:
    """The data set of images in ten classes.

    Args:
        name: of the data set.
        parts: pixels and labels to train on, pixels and labels to test with; pixels are (count, ...), bytes
            or already of a floating-point type, in which they are then normalised.
        normalization: from pixels to inputs.
        image_shape: channels, height and width.
        dtype: of the inputs.
    """
    train_pixels, train_labels, test_pixels, test_labels = parts

    def inputs(pixels: Tensor) -> Tensor:
        exact = pixels if pixels.is_floating_point() else pixels.to(dtype)
        return normalization.normalize(exact.flatten(1)).to(dtype)

    return Dataset(
        name=name,
        train_inputs=inputs(train_pixels),
        train_labels=train_labels.long(),
        test_inputs=inputs(test_pixels),
        test_labels=test_labels.long(),
        classes=10,
        normalization=normalization,
        image_shape=image_shape,
    )


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse what is not a floating-point type of inputs.

    Raises:
        InputError: for another type than float32 and float64.
    """
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype must be torch.float32 or torch.float64, got {dtype}")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A data set in four files of the format IDX.

    Attributes:
        name: of the data set, as people write it.
        sha256: of each file by name. Of the uncompressed content, so that it does not matter how a file was compressed.
        normalization: from pixels to inputs.
        remedy: what to do where there is no folder with the files.
    """

    name: str
    sha256: dict[str, str]
    normalization: Normalization
    remedy: str = ""


_MNIST = _Source(
    name="MNIST",
    sha256={
        "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    normalization=Normalization(scale=255.0, mean=0.1307, std=0.3081),
)
_FASHION_MNIST = _Source(
    name="Fashion-MNIST",
    sha256={
        "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    # mean and standard deviation of the 60,000 training images
    normalization=Normalization(scale=255.0, mean=0.2860, std=0.3530),
    remedy="; Debian's package dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist",
)
_GZIP = b"\x1f\x8b"  # A gzipped file starts with these bytes.
_MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
# Of the mirror's compressed files, so that a damaged download is fetched again.
_MIRROR_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}


def mnist(directory: str | os.PathLike[str] | None = None, *, dtype: torch.dtype = torch.float32) -> Dataset:
    """MNIST: 60,000 training and 10,000 test images of 28×28, inputs (pixel/255 − 0.1307)/0.3081.

    The content of each file is compared with its published SHA-256, so a damaged or different data set never passes
    for MNIST.

    Args:
        directory: Folder with the four files ``train-images-idx3-ubyte.gz``, ``train-labels-idx1-ubyte.gz``,
            ``t10k-images-idx3-ubyte.gz`` and ``t10k-labels-idx1-ubyte.gz``, compressed or not (then without ``.gz``;
            ``train-images.idx3-ubyte`` is understood too). None downloads them once (11 MB) into the user's cache.
        dtype: Of the inputs, float32 or float64.

    Raises:
        InputError: When a file is missing, damaged, or not the MNIST file of its name.
        DownloadError: When the mirror cannot be reached.
        MissingExtraError: To download without pooch, the extra ``data``.
    """
    check_dtype(dtype)
    return _from_folder(_MNIST, _download_mnist() if directory is None else Path(directory), dtype)


def fashion_mnist(directory: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> Dataset:
    """Fashion-MNIST (arXiv 1708.07747): as many images of the same size as MNIST, inputs (pixel/255 − 0.2860)/0.3530.

    Args:
        directory: Folder with the four files, named and read as those of ``mnist``. Debian's package
            ``dataset-fashion-mnist`` puts them into ``/usr/share/datasets/fashion-mnist``.
        dtype: Of the inputs, float32 or float64.

    Raises:
        InputError: When a file is missing, damaged, or not the Fashion-MNIST file of its name.
    """
    check_dtype(dtype)
    return _from_folder(_FASHION_MNIST, Path(directory), dtype)


def _from_folder(source: _Source, folder: Path, dtype: torch.dtype) -> Dataset:
    if not folder.is_dir():
        raise InputError(
            f"the {source.name} folder {str(folder)!r} {'is not a folder' if folder.exists() else 'does not exist'}; "
            "give the folder that has train-images-idx3-ubyte.gz and its three companions (at the command line: "
            f"--data-dir){source.remedy}"
        )
    train_pixels, train_labels, test_pixels, test_labels = (_read(source, folder, name) for name in source.sha256)
    parts = (train_pixels, train_labels, test_pixels, test_labels)
    return from_pixels(source.name.lower(), parts, source.normalization, (1, 28, 28), dtype)


def subset(dataset: Dataset, *, train: int | None = None, test: int | None = None) -> Dataset:
    """The first ``train`` training and ``test`` test images; None keeps all of them.

    The kept rows are copied, so the memory of the full data set can be freed.

    Raises:
        InputError: For a count below 1 or above what the data set has.
    """
    changes = {}
    for part, count in (("train", train), ("test", test)):
        if count is None:
            continue
        available = len(getattr(dataset, f"{part}_labels"))
        if checks.whole_number(part, count) > available:
            raise InputError(f"{part} must be at most {available}, the images that {dataset.name} has, got {count}")
        for field in (f"{part}_inputs", f"{part}_labels"):
            changes[field] = getattr(dataset, field)[:count].clone()
    return replace(dataset, **changes)


def _read(source: _Source, folder: Path, name: str) -> Tensor:
    """The bytes of one file as (count, 28, 28) or (count,), uint8, once its content is known to be that of the set."""
    plain = name.removesuffix(".gz")
    dotted = plain.replace("-idx", ".idx")
    candidates = [folder / spelling for spelling in (name, plain, dotted, f"{dotted}.gz")]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise InputError(
            f"the folder {str(folder)!r} has no {name} (nor {plain}, nor {dotted}); put the four files of "
            f"{source.name} there or give the folder that has them (at the command line: --data-dir){source.remedy}"
        )
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw.startswith(_GZIP) else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{str(path)!r} cannot be read or is damaged ({error}); check its permissions, or download the file again"
        ) from error
    if hashlib.sha256(content).hexdigest() != source.sha256[name]:
        raise InputError(
            f"{str(path)!r} is damaged, or not {source.name}'s {plain} (its SHA-256 differs); download the file again"
        )
    # the format IDX: the rank in the fourth byte, four big-endian bytes for each size, then the entries
    sizes = np.frombuffer(content, dtype=">u4", count=content[3], offset=4)
    entries = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * content[3])
    return torch.from_numpy(entries.reshape(sizes).copy())


def _download_mnist() -> Path:
    """Folder of the user's cache with the four files, downloaded if they are not there yet."""
    pooch = checks.extra("pooch", "data", "downloading MNIST")
    cache = Path(pooch.os_cache("contracting-equilibria")) / "mnist"
    for name, md5 in _MIRROR_MD5.items():
        try:
            pooch.retrieve(_MIRROR + name, known_hash=f"md5:{md5}", fname=name, path=os.fspath(cache))
        except (OSError, ValueError) as error:  # the network or the cache folder; a wrong hash
            raise DownloadError(
                f"MNIST could not be downloaded from {_MIRROR} ({type(error).__name__}); check the connection, or put "
                "the four files into a folder and name it (--data-dir at the command line, mnist(directory) in Python)"
            ) from error
    return cache
