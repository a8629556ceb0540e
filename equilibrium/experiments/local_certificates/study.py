r"""Which images keep their class within a radius: proved globally, proved locally, and not fooled by an attack.

A task for each network, in batches of images that are computed once: a killed run continues at its last batch.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equilibrium import (
    LocalSearch,
    PairwiseLipschitz,
    certified_radius,
    certified_within,
    from_sequential,
    load_reference,
    pairwise_lipschitz,
)
from equilibrium.attacks import smallest_perturbation
from equilibrium.experiments.robustness.classifiers import for_attacks
from equilibrium.experiments.robustness.models import (
    Images,
    Kind,
    ModelSettings,
    load_images,
    new_model,
    read_settings,
    trained_model,
)
from equilibrium.experiments.robustness.study import CHECKPOINTS
from equilibrium.experiments.runner import Task, Workspace, run_tasks
from equilibrium.layers import EquilibriumLayer
from equilibrium.local.finder import Effort
from equilibrium.local.margins import accuracy_within, attacks_inside
from equilibrium.local.targeted import targeted_attack
from equilibrium.training.data import Dataset
from equilibrium.training.loop import train
from equilibrium.training.progress import progress_bar

_BATCH = 250  # images of one step of a task
_SOLVED = 1e-5  # More than solves to a relative residual of 1e-8 leave of an error in leads (their size is about 10).
_SMALL_EPOCHS = 6


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """One network of the study; its results depend on nothing else.

    Attributes:
        name: of a checkpoint of the authors, of a network that is trained on digits, or of the folder of a model.
        lipschitz: its γ, or None.
        trained: whether it is trained here, on digits.
        radii: ℓ2, in normalised inputs.
        count: so many test images, the first ones.
        passes: of each search.
        steps: of each search.
        attack_steps: gradients of the attack, per image.
        model: how ``mnist-robustness`` has trained it; None for another network.
        targeted: gradients of the attack on every other class within what is proved, for each; 0 for none.
        restarts: of that attack.
        branches: nodes of the branch and bound of each claim that local constants leave open.
    """

    name: str
    lipschitz: float | None
    trained: bool
    radii: tuple[float, ...]
    count: int
    passes: int
    steps: int
    attack_steps: int
    model: ModelSettings | None = None
    targeted: int = 0
    restarts: int = 9
    branches: int = 40

    @property
    def images(self) -> Images:
        """What is classified."""
        return self.model.images if self.model is not None else Images.DIGITS if self.trained else Images.MNIST


def local_certificates_of(
    settings: list[LocalSettings],
    folder: Path,
    *,
    data_dir: Path | None = None,
    checkpoints: Path | None = None,
    models: Mapping[str, Path] | None = None,
    jobs: int = 1,
    progress: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the study, or what is left of it in ``folder``.

    Args:
        settings: of the networks.
        folder: of the tasks.
        data_dir: folder with MNIST; None downloads it.
        checkpoints: folder with the authors' checkpoints.
        models: the folder of each model that ``mnist-robustness`` has trained.
        jobs: processes at work at once; no result depends on it.
        progress: show bars.

    Returns:
        Results by network, and the wall times of their steps.

    Raises:
        InputError: on a folder begun with other settings.
        TaskError: if a network cannot be measured.
    """
    run = functools.partial(run_network, data_dir=data_dir, checkpoints=checkpoints, models=models or {})
    listed = [Task(name=each.name, settings=each, run=run) for each in settings]
    outcome = run_tasks(listed, folder, jobs=jobs, progress=progress)
    return outcome.results, outcome.seconds


def run_network(
    settings: LocalSettings,
    workspace: Workspace,
    *,
    data_dir: Path | None,
    checkpoints: Path | None,
    models: Mapping[str, Path],
) -> dict[str, Any]:
    """Everything about one network; a task of the study."""
    dataset = load_images(settings.images, data_dir)
    network = _network(settings, workspace, dataset, checkpoints, models)
    layer = copy.deepcopy(network).double()
    if not isinstance(layer, EquilibriumLayer):
        assert isinstance(layer, nn.Sequential)
        layer = from_sequential(layer)
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
    if settings.targeted:
        for k, part in zip(batches, parts, strict=True):
            rows = slice(k, k + _BATCH)
            attack = functools.partial(
                attacked_within, network, layer, inputs[rows], labels[rows], part, bounds, settings
            )
            part |= workspace.once(f"attacked-{k}", attack)
    joined = {name: [entry for part in parts for entry in part[name]] for name in parts[0]}
    fooled = torch.tensor([math.inf if size is None else size for size in joined["fooled"]], dtype=torch.float64)
    proved = torch.tensor(joined["proved"])
    within = torch.where(torch.tensor(joined["complete"]), radii, 0.0).amax(-1)
    return {
        "settings": settings,
        "certified": pairs.whole.bound,
        "accuracy": accuracy_within(fooled, torch.zeros(1, dtype=torch.float64)).item(),
        "by_global": accuracy_within(torch.tensor(joined["radius"], dtype=torch.float64), radii),
        "by_local": 100 * proved.double().mean(0),
        "complete": 100 * torch.tensor(joined["complete"]).double().mean(0),
        "refuted": 100 * torch.tensor(joined["refuted"]).double().mean(0),
        "attacked": accuracy_within(fooled, radii),
        "inside": len(attacks_inside(within, fooled)),
        "undecided": torch.tensor(joined["undecided"], dtype=torch.float64).mean(0),
        "images": len(labels),
        "targeted": _summary(joined) if settings.targeted else None,
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
    search = LocalSearch(passes=settings.passes, branches=settings.branches, effort=Effort(steps=settings.steps))
    proved, complete, refuted, undecided, leads = [], [], [], [], []
    for size in settings.radii:
        found = certified_within(layer, inputs, labels, size, bounds=bounds, constants=pairs, search=search)
        proved.append(found.proved & ~found.branched)
        complete.append(found.proved)
        refuted.append(found.refuted)
        undecided.append(found.undecided)
        leads.append(found.leads)
    attack = smallest_perturbation(layer, inputs, labels, bounds=bounds, steps=settings.attack_steps)
    return {
        "radius": certified_radius(layer, inputs, labels, pairs),
        "proved": torch.stack(proved, -1),
        "complete": torch.stack(complete, -1),
        "refuted": torch.stack(refuted, -1),
        "undecided": torch.stack(undecided, -1),
        "leads": torch.stack(leads, 1),
        "fooled": attack.sizes,
    }


def attacked_within(
    network: nn.Module,
    layer: EquilibriumLayer,
    inputs: Tensor,
    labels: Tensor,
    measured: dict[str, Any],
    bounds: tuple[float, float],
    settings: LocalSettings,
) -> dict[str, Any]:
    """An attack on every other class within the largest radius that is proved, for those images that have one."""
    proved = torch.tensor(measured["proved"])
    rows = torch.nonzero(proved.any(-1)).flatten()
    largest = proved.shape[1] - 1 - proved.flip(-1).int().argmax(-1)
    # what is not a number was decided by a global constant, and only known to be positive
    least = torch.tensor([[[lead or 0.0 for lead in row] for row in image] for image in measured["leads"]]).double()
    attacked, fooled, below = (torch.zeros(len(labels), dtype=torch.int64) for _ in range(3))
    if len(rows):
        found = targeted_attack(
            for_attacks(copy.deepcopy(network)),
            inputs[rows],
            labels[rows],
            torch.tensor(settings.radii, dtype=torch.float64)[largest[rows]],
            bounds=bounds,
            verify=layer,
            steps=settings.targeted,
            restarts=settings.restarts,
        )
        others = torch.isfinite(found.leads)
        attacked[rows], fooled[rows] = others.sum(-1), found.fooled.long()
        below[rows] = (others & (found.leads < least[rows, largest[rows]] - _SOLVED)).sum(-1)
    return {"pairs": attacked, "flipped": fooled, "below": below}


def _summary(joined: dict[str, list[Any]]) -> dict[str, int]:
    """Of the attack on every other class: how many images and pairs there were, and what was broken."""
    pairs = torch.tensor(joined["pairs"])
    counts = {"images": (pairs > 0).sum(), "pairs": pairs.sum()}
    counts |= {name: torch.tensor(joined[name]).sum() for name in ("flipped", "below")}
    return {name: int(count) for name, count in counts.items()}


def _network(
    settings: LocalSettings,
    workspace: Workspace,
    dataset: Dataset,
    checkpoints: Path | None,
    models: Mapping[str, Path],
) -> nn.Module:
    """The network of the settings, float32, as it was trained."""
    if settings.model is not None:
        return trained_model(models[settings.name], dataset)
    if settings.trained:
        return _trained(settings, workspace)
    assert checkpoints is not None
    return load_reference(checkpoints / f"{settings.name}.pt", lipschitz=settings.lipschitz)


def _trained(settings: LocalSettings, workspace: Workspace) -> nn.Module:
    dataset = load_images(Images.DIGITS, None)
    model = new_model(
        ModelSettings(
            hidden=16, images=Images.DIGITS, epochs=_SMALL_EPOCHS, seed=0, batch_size=32, tolerance=1e-4, attacked=0,
            allowed=(), attack_steps=0, thorough=False, kind=Kind.LBEN, lipschitz=settings.lipschitz,
        ),
        dataset,
    )  # fmt: skip
    train(model, dataset, epochs=_SMALL_EPOCHS, batch_size=32, checkpoint=workspace.folder / "training.pt")
    return model


def published(radii: tuple[float, ...], count: int, *, passes: int = 4, steps: int = 10) -> list[LocalSettings]:
    """The authors' networks."""
    return [
        LocalSettings(
            name=name, lipschitz=gamma, trained=False, radii=radii, count=count, passes=passes, steps=steps,
            attack_steps=40,
        )
        for name, (gamma, _) in CHECKPOINTS.items()
    ]  # fmt: skip


def trained_before(folder: Path, radii: tuple[float, ...], count: int) -> LocalSettings:
    """A model that ``mnist-robustness`` has trained, by the folder of its task.

    Raises:
        InputError: if it is no such folder.
    """
    model = read_settings(folder)
    (settings,) = published(radii, count)[:1]
    return replace(settings, name=folder.resolve().name, lipschitz=model.lipschitz, model=model)


def on_digits(radii: tuple[float, ...], count: int) -> list[LocalSettings]:
    """Two small networks, without and with a bound."""
    return [
        LocalSettings(
            name=name, lipschitz=gamma, trained=True, radii=radii, count=count, passes=3, steps=10, attack_steps=20
        )
        for name, gamma in (("digits, γ = 2", 2.0), ("digits, no γ", None))
    ]
