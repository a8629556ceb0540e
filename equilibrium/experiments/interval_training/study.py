r"""Which images keep their class in a box of pixels: proved by boxes of equilibria, by local constants, and attacked.

A task for each network: it is trained, then measured at every radius; a killed run continues at its last step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contracting import Implicit, PreconditionError
from equilibrium import NEMON, EquilibriumLayer, LocalSearch, MonDEQ, Stop, certified_within, train
from equilibrium.attacks import fooled_in_boxes
from equilibrium.experiments.networks import seeded
from equilibrium.experiments.robustness.models import Images, load_images
from equilibrium.experiments.runner import Task, Workspace, run_tasks
from equilibrium.lipschitz import Norm
from equilibrium.local.boxes import box_leads
from equilibrium.local.finder import Effort
from equilibrium.training.certified import LOSSES
from equilibrium.training.data import Dataset
from equilibrium.training.losses import CrossEntropy, Loss

# In training, where a relative error of 1e-3 hardly turns a gradient; everything is measured in float64, more closely.
_SOLVED = Stop(rtol=1e-3, atol=0.0, max_steps=5000)


@dataclass(frozen=True, kw_only=True)
class BoxSettings:
    """One network of the study; its results depend on nothing else.

    Attributes:
        name: of the network.
        neurons: n.
        loss: by its name in ``LOSSES``; a NEMON is trained with the interval loss, a monDEQ with any other.
        trained_radius: of the loss, in pixels from 0 (black) to 1 (white); ℓ∞ or, of a certified margin, ℓ2.
        radii: of the boxes that are asked about, in the same unit.
        images: what is classified.
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: the largest of the schedule.
        share: of the worst outputs in the loss.
        epsilon: ε of the parameterisation.
        count: so many test images, the first ones, are attacked.
        looked_at: so many of these are looked at by local constants, which take a second for an image.
        attack_steps: gradients per start of the attack.
        restarts: random starts of the attack.
        passes: of the search for local constants.
        seed: of the weights and of the order of the images.
    """

    name: str
    neurons: int
    loss: str
    trained_radius: float
    radii: tuple[float, ...]
    images: Images
    epochs: int
    batch_size: int
    learning_rate: float
    share: float
    epsilon: float
    count: int
    looked_at: int
    attack_steps: int
    restarts: int
    passes: int
    seed: int


def interval_training_of(
    settings: list[BoxSettings],
    folder: Path,
    *,
    data_dir: Path | None = None,
    jobs: int = 1,
    progress: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the study, or what is left of it in ``folder``.

    Returns:
        Results by network, and the wall times of their steps.

    Raises:
        InputError: on a folder begun with other settings.
        TaskError: if a network cannot be trained or measured.
    """
    run = functools.partial(run_network, data_dir=data_dir)
    outcome = run_tasks(
        [Task(name=each.name, settings=each, run=run) for each in settings], folder, jobs=jobs, progress=progress
    )
    return outcome.results, outcome.seconds


def run_network(settings: BoxSettings, workspace: Workspace, *, data_dir: Path | None) -> dict[str, Any]:
    """Train one network and measure it; a task of the study."""
    dataset = load_images(settings.images, data_dir)
    bounds = (float(dataset.train_inputs.min()), float(dataset.train_inputs.max()))
    pixel = 1 / dataset.normalization.std  # the full range of a pixel, in units of the inputs
    layer = new_layer(settings, dataset)
    record = train(
        layer,
        dataset,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        loss=loss_of(settings, bounds, pixel),
        seed=settings.seed,
        checkpoint=workspace.folder / "training.pt",
        progress=workspace.progress,
    )
    exact = layer.double().requires_grad_(False)
    inputs, labels = dataset.test_inputs.double(), dataset.test_labels
    bounds = (min(bounds[0], float(inputs.min())), max(bounds[1], float(inputs.max())))
    measured = [
        workspace.once(
            f"radius-{radius:g}",
            functools.partial(_measured, exact, inputs, labels, radius * pixel, bounds, settings),
        )
        for radius in settings.radii
    ]
    return {
        "settings": settings,
        "accuracy": 100 - record.test_error,
        "images": len(labels),
        "attacked_images": min(settings.count, len(labels)),
        "looked_at": min(settings.looked_at, settings.count, len(labels)),
        **{key: [part[key] for part in measured] for key in measured[0]},
    }


def new_layer(settings: BoxSettings, dataset: Dataset) -> EquilibriumLayer:
    """The network before training, float32."""
    made = NEMON if settings.loss == "interval-margin" else MonDEQ
    with seeded(settings.seed):
        free = made(dataset.features, settings.neurons, dataset.classes, epsilon=settings.epsilon)
    return EquilibriumLayer(free, stop=_SOLVED, backward=Implicit(stop=_SOLVED))


def loss_of(settings: BoxSettings, bounds: tuple[float, float], pixel: float) -> Loss:
    """The loss by its name, its radius in units of the inputs."""
    if settings.loss == "cross-entropy":
        return CrossEntropy()
    own = {"bounds": bounds} if settings.loss == "interval-margin" else {}
    made: Loss = LOSSES[settings.loss](radius=settings.trained_radius * pixel, share=settings.share, **own)
    return made


def _measured(
    layer: EquilibriumLayer,
    inputs: Tensor,
    labels: Tensor,
    radius: float,
    bounds: tuple[float, float],
    settings: BoxSettings,
) -> dict[str, Any]:
    """At one radius: what boxes of equilibria prove of all images, what fools some, and what is proved of a few."""
    others = torch.nn.functional.one_hot(labels, layer.out_features) == 0
    try:
        leads = box_leads(layer, inputs, labels, radius, bounds=bounds)
        boxed = ((leads > 0) | ~others).all(-1)
    except PreconditionError:
        boxed = None
    some, few = slice(settings.count), slice(min(settings.looked_at, settings.count))
    attack = fooled_in_boxes(
        layer, inputs[some], labels[some], radius, bounds=bounds, steps=settings.attack_steps,
        restarts=settings.restarts, seed=settings.seed,
    )  # fmt: skip
    unfooled = torch.isinf(attack.sizes)
    proved = torch.zeros_like(unfooled) if boxed is None else boxed[some].clone()
    left = torch.nonzero(~proved[few]).flatten()
    if len(left):
        search = LocalSearch(passes=settings.passes, effort=Effort(steps=10))
        proved[left] = certified_within(
            layer, inputs[left], labels[left], radius, bounds=bounds, norm=Norm.LINF, search=search
        ).proved
    return {
        "by_boxes": None if boxed is None else _percent(boxed),
        "attacked": _percent(unfooled),
        "proved": _percent(proved[few]),
        "attacked_of_these": _percent(unfooled[few]),
        "inside": int((proved & ~unfooled).sum()),
    }


def _percent(which: Tensor) -> float:
    return 100 * float(which.double().mean())
