"""The models of the robustness experiments, trained and measured: tasks that continue where they were interrupted."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from equilibrium import (
    EquilibriumLayer,
    Implicit,
    Stop,
    attained_lipschitz,
    certified_lipschitz,
    certified_radius,
    from_sequential,
    load_reference,
    pairwise_lipschitz,
    train,
)
from equilibrium.attacks import fast_gradient, smallest_perturbation
from equilibrium.experiments.robustness.models import (
    CheckpointSettings,
    Images,
    ModelSettings,
    load_images,
    new_model,
    training_loss,
)
from equilibrium.experiments.runner import Workspace
from equilibrium.lipschitz import PairAscent, PatternSearch, RegionWalk
from equilibrium.local.margins import accuracy_within, attacks_inside
from equilibrium.training.data import Dataset
from equilibrium.training.loop import error_percent
from equilibrium.training.progress import progress_bar
from equilibrium.training.records import TrainingError
from equilibrium.training.resume import last_complete_epoch

_EXACT = Stop(rtol=1e-8, atol=1e-12)
_ATTACK = 1e-4  # An attack solves in float32 to this relative residual; what it finds is verified in float64.
_BATCH = 1000  # So many images are attacked at once, which bounds the memory.
_PAIR_STEPS = 60  # The search for the attained constant of a network on images ascends for so many steps.


def run_model(settings: ModelSettings, workspace: Workspace, *, data_dir: Path | None = None) -> dict[str, Any]:
    """Train the model and measure it; a task of the experiment, continued where it was interrupted.

    Args:
        settings: of the model.
        workspace: its folder.
        data_dir: folder with MNIST; None downloads it.
    """
    dataset = load_images(settings.images, data_dir)
    model = new_model(settings, dataset)
    checkpoint = workspace.folder / "training.pt"
    stopped: str | None = None
    try:
        records = train(
            model,
            dataset,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            loss=training_loss(settings),
            noise=settings.noise,
            shift=settings.shift,
            seed=settings.seed,
            checkpoint=checkpoint,
            progress=workspace.progress,
        ).epochs
    except TrainingError as error:
        # without Condition 1 an equilibrium need not exist; with it this is a defect
        if settings.kind.certified or not checkpoint.exists():
            raise
        stopped, records = str(error), last_complete_epoch(checkpoint, model)
    epochs = [{name: value for name, value in asdict(e).items() if name != "seconds"} for e in records]
    return {
        "settings": settings,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": epochs,
        "stopped": stopped,
        "training_seconds": sum(epoch.seconds for epoch in records),
        **_measured(model, dataset, settings, workspace),
    }


def run_checkpoint(
    settings: CheckpointSettings, workspace: Workspace, *, checkpoints: Path, data_dir: Path | None = None
) -> dict[str, Any]:
    """Measure a checkpoint of the authors on MNIST with our attack; a task of the experiment.

    Args:
        settings: of the checkpoint.
        workspace: its folder.
        checkpoints: folder with the file.
        data_dir: folder with MNIST; None downloads it.
    """
    layer = load_reference(checkpoints / f"{settings.name}.pt", lipschitz=settings.lipschitz, dtype=torch.float64)
    layer.stop = _EXACT
    exact = _Exact.of(load_images(Images.MNIST, data_dir))
    attack = workspace.once("fast-gradient", lambda: _fast_gradient(layer, exact, settings, 1.0))
    return {
        "settings": settings,
        "test_error": workspace.once("accuracy", lambda: error_percent(layer, exact.inputs, exact.labels)),
        "fast_gradient": {"error_percent": attack["error_percent"]},
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class _Exact:
    """The test images in float64, and the range of their pixels."""

    inputs: Tensor
    labels: Tensor
    bounds: tuple[float, float]

    @classmethod
    def of(cls, dataset: Dataset) -> _Exact:
        inputs = dataset.test_inputs.double()
        return cls(inputs=inputs, labels=dataset.test_labels, bounds=(float(inputs.min()), float(inputs.max())))


def _measured(model: nn.Module, dataset: Dataset, settings: ModelSettings, workspace: Workspace) -> dict[str, Any]:
    """Everything about the trained model, from its float64 copy; the steps in the workspace are found if they exist."""
    exact = _Exact.of(dataset)
    judge = copy.deepcopy(model).double()
    layer = judge if isinstance(judge, EquilibriumLayer) else from_sequential(cast(nn.Sequential, judge))
    layer.stop = replace(layer.stop, rtol=_EXACT.rtol, atol=_EXACT.atol)
    layer.backward = Implicit(stop=replace(layer.stop, atol=0.0))
    if not settings.kind.certified:
        judge = _WithoutCertificate(layer)
    temperature = settings.temperature
    measured = {
        "test_error": workspace.once("accuracy", lambda: error_percent(judge, exact.inputs, exact.labels)),
        "fast_gradient": workspace.once("fast-gradient", lambda: _fast_gradient(judge, exact, settings, temperature)),
    }
    smallest = measured["fast_gradient"].pop("smallest")
    attained = workspace.once("attained", lambda: _attained(layer, exact, settings))
    if not settings.kind.certified:
        return measured | {"lipschitz": attained}
    certified = workspace.once("certified", lambda: _certified(layer, exact, settings))
    sizes = workspace.once("perturbations", lambda: _perturbations(model, judge, exact, settings, workspace))
    # a radius is finite; what JSON wrote as null would be no certificate, and is an error here
    radii = {name: torch.tensor(certified.pop(name), dtype=torch.float64) for name in ("radius", "plain_radius")}
    return measured | {
        "lipschitz": attained | certified,
        "robustness": _robustness(radii, _tensor(sizes), smallest, settings),
    }


class _WithoutCertificate(nn.Module):
    """A layer whose equilibria need not exist: where none is found, the last iterate counts, without gradient."""

    def __init__(self, layer: EquilibriumLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        solution = self.layer.solve(x, throw=False)
        outputs = self.layer.weights().readout(solution.z, x).detach()
        if not (torch.is_grad_enabled() and x.requires_grad):
            return outputs
        return outputs.index_put((solution.converged,), self.layer(x[solution.converged]))


def _fast_gradient(
    model: nn.Module, exact: _Exact, settings: ModelSettings | CheckpointSettings, temperature: float
) -> dict[str, Any]:
    rows = slice(-settings.attacked, None)
    attack = fast_gradient(
        model,
        exact.inputs[rows],
        exact.labels[rows],
        settings.allowed,
        bounds=exact.bounds,
        temperature=temperature,
    )
    return {"error_percent": attack.error_percent, "smallest": attack.smallest}


def _attained(layer: EquilibriumLayer, exact: _Exact, settings: ModelSettings) -> dict[str, Any]:
    searches: tuple[PatternSearch | RegionWalk | PairAscent, ...]
    if settings.convolutions is not None:
        searches = (PairAscent(steps=_PAIR_STEPS),)  # the others need matrices
    else:
        searches = (PatternSearch(), RegionWalk(), PairAscent()) if settings.thorough else (PatternSearch(rounds=1),)
    witness = attained_lipschitz(layer, exact.inputs, searches=searches, seed=settings.seed)
    return {"attained": witness.ratio, "attained_by": witness.method, "built_in": settings.lipschitz}


def _certified(layer: EquilibriumLayer, exact: _Exact, settings: ModelSettings) -> dict[str, Any]:
    """The certified constants and the radius of every test image, by one constant per pair of classes and by √2γ."""
    pairs = pairwise_lipschitz(layer) if settings.thorough else None
    whole = certified_lipschitz(layer) if pairs is None else pairs.whole
    plain = certified_radius(layer, exact.inputs, exact.labels, whole)
    return {
        "certified": whole.bound,
        "certified_by": whole.method,
        "pairs": None if pairs is None else pairs.bounds,
        "radius": plain if pairs is None else certified_radius(layer, exact.inputs, exact.labels, pairs),
        "plain_radius": plain,
    }


def for_attacks(model: nn.Module) -> nn.Module:
    """The model, float32, with solves that are as accurate as an attack needs them."""
    if isinstance(model, EquilibriumLayer):
        # relative to z alone, float32 could not resolve an equilibrium close to zero
        model.stop = Stop(rtol=_attack_tolerance(model), atol=_ATTACK)
        model.backward = Implicit(stop=model.stop)
    return model


def _attack_tolerance(model: EquilibriumLayer) -> float:
    """Large enough for the float32 solves of any weight: what rounding lets one resolve, with a margin."""
    with torch.no_grad():
        rounding = torch.finfo(torch.float32).eps * (1 + model.weights().state.rough_norm)
    return max(_ATTACK, 8 * rounding)


def _perturbations(
    model: nn.Module, judge: nn.Module, exact: _Exact, settings: ModelSettings, workspace: Workspace
) -> Tensor:
    """Size of the smallest perturbation found for each test image: sought in float32, verified in float64."""
    rows = slice(None if settings.strongly_attacked is None else -settings.strongly_attacked, None)
    inputs, labels = exact.inputs[rows], exact.labels[rows]
    batches = math.ceil(len(labels) / _BATCH)
    with progress_bar(batches, "attacking", show=workspace.progress) as bar:
        return smallest_perturbation(
            for_attacks(model),
            inputs,
            labels,
            bounds=exact.bounds,
            verify=judge,
            steps=settings.attack_steps,
            seed=settings.seed,
            batch_size=_BATCH,
            on_batch=bar.update,
        ).sizes


def _robustness(
    radii: dict[str, Tensor], sizes: Tensor, smallest: list[float | None], settings: ModelSettings
) -> dict[str, Any]:
    """Curves over the attack sizes, and whether any attack succeeded inside a certified radius."""
    allowed = torch.tensor(settings.allowed, dtype=torch.float64)
    both = sizes.clone()
    common = min(len(smallest), len(sizes))
    both[-common:] = torch.minimum(both[-common:], _tensor(smallest)[-common:])
    radius = radii["radius"][-len(sizes) :]
    close = (both / radius)[radius > 0]
    return {
        "certified_accuracy": accuracy_within(radii["radius"], allowed),
        "certified_accuracy_plain": accuracy_within(radii["plain_radius"], allowed),
        "attacked_accuracy": accuracy_within(sizes, allowed),
        "images": len(sizes),
        "fooled": int(torch.isfinite(both).sum()),
        "inside": len(attacks_inside(radius, both)),
        "inside_twice_the_radius": len(attacks_inside(2 * radius, both)),
        "closest": float(close.min()) if len(close) else None,
    }


def _tensor(values: list[float | None]) -> Tensor:
    """What JSON made of a tensor; null was an infinity."""
    return torch.tensor([math.inf if value is None else value for value in values], dtype=torch.float64)
