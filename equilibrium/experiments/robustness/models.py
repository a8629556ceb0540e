"""The models of the robustness experiments: settings, the images they classify, and the models before training."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from torch import nn

from contracting import InputError
from equilibrium import LBEN, NEMON, EquilibriumLayer, Implicit, LBENConv2d, Stop, Unconstrained
from equilibrium.convolution import ContractiveConv2d, MetricShape
from equilibrium.experiments.networks import seeded
from equilibrium.training.certified import LOSSES, LocalMargin, WorstCase
from equilibrium.training.cifar import cifar10
from equilibrium.training.data import Dataset, digits, fashion_mnist, mnist, subset
from equilibrium.training.losses import CrossEntropy
from equilibrium.training.resume import last_complete_epoch
from equilibrium.training.spectral import SpectralMargin
from equilibrium.training.steep import SteepCrossEntropy

# Local constants of all rows make a step several times as long: so many rows of each batch, a quarter, have them.
_LOCAL_ROWS = 64


class Kind(Enum):
    """What is trained."""

    LBEN = "LBEN"
    MONDEQ = "monDEQ"
    NEMON = "NEMON"
    UNCONSTRAINED = "unconstrained"
    PERCEPTRON = "perceptron"
    MARGIN = "Lipschitz margin"

    @property
    def certified(self) -> bool:
        """Whether a Lipschitz constant can be certified for every such model."""
        return self is not Kind.UNCONSTRAINED

    @property
    def losses(self) -> tuple[str, ...]:
        """The names of the losses that have a meaning for every such model, of those in ``LOSSES``."""
        if self in (Kind.UNCONSTRAINED, Kind.PERCEPTRON, Kind.MARGIN):
            return ("cross-entropy",)  # no metric, no equilibrium layer, or a margin of its own
        return tuple(name for name in LOSSES if name != "interval-margin" or self is Kind.NEMON)


class Images(Enum):
    """What is classified."""

    MNIST = "mnist"
    FASHION_MNIST = "fashion-mnist"
    DIGITS = "digits"
    CIFAR10 = "cifar10"


@dataclass(frozen=True, kw_only=True)
class Convolutions:
    """The kernels of a network on images; fields as in ``LBENConv2d``, ``metric`` without a rate."""

    input_kernel_size: int
    stride: int
    pool: int
    metric: MetricShape = MetricShape.CHANNEL


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """One model of the experiment; its results depend on nothing else.

    Attributes:
        kind: what is trained.
        hidden: n, or the channels of a network on images; a perceptron has two hidden layers and about as many
            parameters as an LBEN with n neurons, one that is trained for a margin has one hidden layer of n.
        lipschitz: γ, or None.
        margin: distance in normalised pixels over which a network without γ is trained to keep its class, or None.
        contraction_rate: c, or None.
        epsilon: ε of the parameterisation; a network with a rate has none.
        images: what is classified.
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: the largest of the schedule.
        temperature: of the cross-entropy, in training and of the fast-gradient attack.
        loss: of the training, by its name in ``LOSSES``.
        trained_radius: of a certified loss, in normalised inputs: ℓ2, of an interval margin ℓ∞.
        noise: standard deviation of the noise on the training inputs.
        tolerance: relative residual of the solves in training.
        seed: of the weights and of the order of the images.
        attacked: the last so many test images are attacked by the fast gradient (and all by the strong attack, if
            the model is certified).
        allowed: sizes of the fast-gradient attack.
        attack_steps: gradients of the strong attack, per image.
        thorough: whether one constant is certified for every pair of classes, and the attained constant is searched
            in every way; otherwise one constant and one quick search.
        convolutions: of an equilibrium network on images; None for a dense one.
        shift: pixels by which training images are shifted at most.
        strongly_attacked: the last so many test images are attacked by the strong attack; None for all.
        used: share of γ that training asks the network to attain, or None.
    """

    hidden: int
    images: Images
    epochs: int
    seed: int
    batch_size: int
    tolerance: float
    attacked: int
    allowed: tuple[float, ...]
    attack_steps: int
    thorough: bool
    kind: Kind = Kind.LBEN
    lipschitz: float | None = None
    margin: float | None = None
    contraction_rate: float | None = None
    epsilon: float = 1.0
    learning_rate: float = 0.01
    temperature: float = 1.0
    noise: float = 0.0
    convolutions: Convolutions | None = None
    shift: int = 0
    strongly_attacked: int | None = None
    loss: str = "cross-entropy"
    trained_radius: float = 0.0
    used: float | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """A checkpoint of the authors, attacked as ours are; fields as in ``ModelSettings``.

    Attributes:
        name: of the file, without suffix.
    """

    name: str
    lipschitz: float | None
    attacked: int
    allowed: tuple[float, ...]


@functools.cache
def load_images(images: Images, data_dir: Path | None) -> Dataset:
    """The data set; digits are divided in a small and fixed way. Only MNIST does without a folder.

    Raises:
        InputError: without the folder of another data set, or if its files are not there.
    """
    if images is Images.MNIST:
        return mnist(data_dir)
    if images is Images.FASHION_MNIST:
        if data_dir is None:
            raise InputError(
                "Fashion-MNIST needs data_dir, the folder of its four files (at the command line: --data-dir); "
                "Debian's package dataset-fashion-mnist has them"
            )
        return fashion_mnist(data_dir)
    if images is Images.CIFAR10:
        if data_dir is None:
            raise InputError("CIFAR-10 needs data_dir, the folder of its binary files (at the command line: --cifar)")
        return cifar10(data_dir)
    return subset(digits(), train=600, test=200)


def read_settings(folder: Path) -> ModelSettings:
    """The settings of a model that ``mnist-robustness`` has trained, from the folder of its task.

    Raises:
        InputError: if it is no such folder.
    """
    try:
        found = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        convolutions = found["convolutions"]
        known = {
            "kind": Kind[found["kind"]],
            "images": Images[found["images"]],
            "allowed": tuple(found["allowed"]),
            "convolutions": None
            if convolutions is None
            else Convolutions(**{**convolutions, "metric": MetricShape[convolutions["metric"]]}),
        }
        return ModelSettings(**{**found, **known})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(folder)!r} is no folder of a model of mnist-robustness, such as out/models/lben "
            f"({type(error).__name__}: {error})"
        ) from error


def trained_model(folder: Path, dataset: Dataset) -> nn.Module:
    """The model of such a folder with the weights of its last pass, float32.

    Raises:
        InputError: if it is no such folder, or nothing is trained in it.
    """
    model = new_model(read_settings(folder), dataset)
    last_complete_epoch(folder / "training.pt", model)
    return model


def new_model(settings: ModelSettings, dataset: Dataset) -> nn.Module:
    """The model before training, float32; its weights depend on the seed only."""
    stop = Stop(rtol=settings.tolerance, atol=0.0, max_steps=5000)
    sizes = (dataset.features, settings.hidden, dataset.classes)
    with seeded(settings.seed):
        if settings.kind is Kind.PERCEPTRON:
            return _perceptron(*sizes)
        if settings.kind is Kind.MARGIN:
            inputs, hidden, outputs = sizes
            return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
        if settings.kind is Kind.UNCONSTRAINED:
            # Newton's method finds an equilibrium within a few steps, or there may be none
            stop = replace(stop, max_steps=50)
            return EquilibriumLayer(Unconstrained(*sizes), stop=stop, backward=Implicit(stop=stop))
        if settings.convolutions is not None:
            return _on_images(settings, settings.convolutions, dataset, stop)
        if settings.kind is Kind.NEMON:
            return EquilibriumLayer(NEMON(*sizes, epsilon=settings.epsilon), stop=stop, backward=Implicit(stop=stop))
        rate = settings.contraction_rate
        asked: dict[str, Any] = {"epsilon": settings.epsilon} if rate is None else {"contraction_rate": rate}
        return LBEN(
            *sizes,
            lipschitz=settings.lipschitz,
            **asked,
            learn_metric=settings.kind is not Kind.MONDEQ,
            stop=stop,
            backward=Implicit(stop=stop),
        )


def training_loss(settings: ModelSettings) -> CrossEntropy:
    """What is minimised."""
    options: dict[str, Any] = {"temperature": settings.temperature}
    if settings.margin is not None:
        return SpectralMargin(radius=settings.margin, share=1.0, **options)
    if settings.used is not None and settings.lipschitz is not None:
        return SteepCrossEntropy(gain=settings.used * settings.lipschitz, **options)
    made = LOSSES[settings.loss]
    if issubclass(made, WorstCase):
        options["radius"] = settings.trained_radius
    if issubclass(made, LocalMargin):
        options["rows"] = _LOCAL_ROWS
    loss: CrossEntropy = made(**options)
    return loss


def _on_images(settings: ModelSettings, convolutions: Convolutions, dataset: Dataset, stop: Stop) -> LBENConv2d:
    colours, height, width = dataset.image_shape
    rate = settings.contraction_rate
    asked: dict[str, Any] = {"contraction_rate": rate}
    if rate is None:
        asked = {"epsilon": settings.epsilon, "metric": convolutions.metric}
    return (LBENConv2d if rate is None else ContractiveConv2d)(
        colours,
        settings.hidden,
        dataset.classes,
        image=(height, width),
        input_kernel_size=convolutions.input_kernel_size,
        stride=convolutions.stride,
        pool=convolutions.pool,
        lipschitz=settings.lipschitz,
        **asked,
        stop=stop,
        backward=Implicit(stop=stop),
    )


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of the width w whose number of parameters is that of an LBEN, rounded down."""
    budget = hidden * (inputs + 2 * hidden + 2) + outputs * (hidden + 1)
    b = inputs + outputs + 2  # w² + bw + outputs parameters
    width = math.floor((math.sqrt(b * b + 4 * (budget - outputs)) - b) / 2)
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)]
    return nn.Sequential(*layers)
