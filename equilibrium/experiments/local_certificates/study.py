r"""Which images keep their class within a radius: proved globally, proved locally, and not fooled by an attack.

A task for each network, in batches of images that are computed once: a killed run continues at its last batch.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equilibrium import (
    LocalSearch,
    PairwiseLipschitz,
    certified_radius,
    certified_within,
    load_reference,
    pairwise_lipschitz,
)
from equilibrium.attacks import smallest_perturbation
from equilibrium.experiments.robustness.models import Images, Kind, ModelSettings, load_images, new_model
from equilibrium.experiments.robustness.study import CHECKPOINTS
from equilibrium.experiments.runner import Task, Workspace, run_tasks
from equilibrium.layers import EquilibriumLayer
from equilibrium.local.finder import Effort
from equilibrium.local.margins import accuracy_within, attacks_inside
from equilibrium.training.loop import train
from equilibrium.training.progress import progress_bar

_BATCH = 250  # images of one step of a task
_SMALL_EPOCHS = 6


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """One network of the study; its results depend on nothing else.

    Attributes:
        name: of a checkpoint of the authors, or of a network that is trained on digits.
        lipschitz: its γ, or None.
        trained: whether it is trained here, on digits.
        radii: ℓ2, in normalised inputs.
        count: so many test images, the first ones.
        passes: of each search.
        steps: of each search.
        attack_steps: gradients of the attack, per image.
    """

    name: str
    lipschitz: float | None
    trained: bool
    radii: tuple[float, ...]
    count: int
    passes: int
    steps: int
    attack_steps: int


def local_certificates_of(
    settings: list[LocalSettings],
    folder: Path,
    *,
    data_dir: Path | None = None,
    checkpoints: Path | None = None,
    jobs: int = 1,
    progress: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the study, or what is left of it in ``folder``.

    Returns:
        Results by network, and the wall times of their steps.

    Raises:
        InputError: on a folder begun with other settings.
        TaskError: if a network cannot be measured.
    """
    run = functools.partial(run_network, data_dir=data_dir, checkpoints=checkpoints)
    listed = [Task(name=each.name, settings=each, run=run) for each in settings]
    outcome = run_tasks(listed, folder, jobs=jobs, progress=progress)
    return outcome.results, outcome.seconds


def run_network(
    settings: LocalSettings, workspace: Workspace, *, data_dir: Path | None, checkpoints: Path | None
) -> dict[str, Any]:
    """Everything about one network; a task of the study."""
    dataset = load_images(Images.DIGITS if settings.trained else Images.MNIST, data_dir)
    layer = _trained(settings, workspace) if settings.trained else _loaded(settings, checkpoints)
    everything = dataset.test_inputs.double()
    bounds = (float(everything.min()), float(everything.max()))
    inputs, labels = everything[: settings.count], dataset.test_labels[: settings.count]
    pairs = pairwise_lipschitz(layer)
    batches = range(0, len(labels), _BATCH)
    parts = []
    with progress_bar(len(batches), settings.name, show=workspace.progress) as bar:
        for k in batches:
            rows = slice(k, k + _BATCH)
            measure = functools.partial(_measured, layer, inputs[rows], labels[rows], pairs, bounds, settings)
            parts.append(workspace.once(f"images-{k}", measure))
            bar.update()
    radii = torch.tensor(settings.radii, dtype=torch.float64)
    joined = {name: [entry for part in parts for entry in part[name]] for name in parts[0]}
    fooled = torch.tensor([math.inf if size is None else size for size in joined["fooled"]], dtype=torch.float64)
    proved = torch.tensor(joined["proved"])
    within = torch.where(proved, radii, 0.0).amax(-1)
    return {
        "settings": settings,
        "certified": pairs.whole.bound,
        "accuracy": accuracy_within(fooled, torch.zeros(1, dtype=torch.float64)).item(),
        "by_global": accuracy_within(torch.tensor(joined["radius"], dtype=torch.float64), radii),
        "by_local": 100 * proved.double().mean(0),
        "attacked": accuracy_within(fooled, radii),
        "inside": len(attacks_inside(within, fooled)),
        "undecided": torch.tensor(joined["undecided"], dtype=torch.float64).mean(0),
        "images": len(labels),
    }


def _measured(
    layer: EquilibriumLayer,
    inputs: Tensor,
    labels: Tensor,
    pairs: PairwiseLipschitz,
    bounds: tuple[float, float],
    settings: LocalSettings,
) -> dict[str, Any]:
    """Of some images: global radii, what is proved at every radius, and the smallest perturbation that was found."""
    search = LocalSearch(passes=settings.passes, effort=Effort(steps=settings.steps))
    proved, undecided = [], []
    for size in settings.radii:
        found = certified_within(layer, inputs, labels, size, bounds=bounds, constants=pairs.bounds, search=search)
        proved.append(found.proved)
        undecided.append(found.undecided)
    attack = smallest_perturbation(layer, inputs, labels, bounds=bounds, steps=settings.attack_steps)
    return {
        "radius": certified_radius(layer, inputs, labels, pairs),
        "proved": torch.stack(proved, -1),
        "undecided": torch.stack(undecided, -1),
        "fooled": attack.sizes,
    }


def _loaded(settings: LocalSettings, checkpoints: Path | None) -> EquilibriumLayer:
    assert checkpoints is not None
    return load_reference(checkpoints / f"{settings.name}.pt", lipschitz=settings.lipschitz, dtype=torch.float64)


def _trained(settings: LocalSettings, workspace: Workspace) -> EquilibriumLayer:
    dataset = load_images(Images.DIGITS, None)
    model = new_model(
        ModelSettings(
            hidden=16, images=Images.DIGITS, epochs=_SMALL_EPOCHS, seed=0, batch_size=32, tolerance=1e-4, attacked=0,
            allowed=(), attack_steps=0, thorough=False, kind=Kind.LBEN, lipschitz=settings.lipschitz,
        ),
        dataset,
    )  # fmt: skip
    train(model, dataset, epochs=_SMALL_EPOCHS, batch_size=32, checkpoint=workspace.folder / "training.pt")
    assert isinstance(model, EquilibriumLayer)
    return model.double()


def published(radii: tuple[float, ...], count: int, *, passes: int = 4, steps: int = 10) -> list[LocalSettings]:
    """The authors' networks."""
    return [
        LocalSettings(
            name=name, lipschitz=gamma, trained=False, radii=radii, count=count, passes=passes, steps=steps,
            attack_steps=40,
        )
        for name, (gamma, _) in CHECKPOINTS.items()
    ]  # fmt: skip


def on_digits(radii: tuple[float, ...], count: int) -> list[LocalSettings]:
    """Two small networks, without and with a bound."""
    return [
        LocalSettings(
            name=name, lipschitz=gamma, trained=True, radii=radii, count=count, passes=3, steps=10, attack_steps=20
        )
        for name, gamma in (("digits, γ = 2", 2.0), ("digits, no γ", None))
    ]
