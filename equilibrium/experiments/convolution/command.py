"""``convolution``: equilibrium networks on images, trained, certified as they run, attacked and looked at."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from contracting import (
    RK4,
    DormandPrince,
    DouglasRachford,
    ExplicitEuler,
    ForwardBackward,
    InputError,
    Method,
    PeacemanRachford,
    PeacemanRachfordFlow,
    Stop,
    checks,
)
from equilibrium import Implicit, LBENConv2d
from equilibrium.experiments.convolution.figures import (
    animate_relaxation,
    plot_convergence,
    plot_equilibrium,
)
from equilibrium.experiments.options import Jobs, LastingOut, Seed, SmallDigits, words
from equilibrium.experiments.publishing import SQUARE, on_axes, publish
from equilibrium.experiments.robustness.figures import plot_error_under_attack, plot_tightness
from equilibrium.experiments.robustness.models import Images, load_images, new_model
from equilibrium.experiments.robustness.study import Plan, catalogue, run_experiment
from equilibrium.experiments.tables import Column, aligned
from equilibrium.files import output_directory, plain
from equilibrium.training.data import Dataset
from equilibrium.training.resume import last_complete_epoch

_EPOCHS = 4
_METHODS: dict[str, Method] = {
    "Peaceman–Rachford": PeacemanRachford(),
    "Douglas–Rachford": DouglasRachford(),
    "forward–backward": ForwardBackward(),
    "Euler, firing rate": ExplicitEuler(),
    "RK4, Peaceman–Rachford flow": RK4(flow=PeacemanRachfordFlow()),
    "Dormand–Prince, firing rate": DormandPrince(),
}


def convolution(
    mnist: Annotated[Path | None, "Folder with the MNIST files (default: downloaded)."] = None,
    cifar: Annotated[Path | None, "Folder with CIFAR-10's binary files, to take these images (default: MNIST)."] = None,
    models: Annotated[
        str | None, "lipschitz-1, lipschitz-1-steep, contracting, lben-full, lben, mondeq, by commas (default all)."
    ] = None,
    epochs: Annotated[int | None, f"Passes over the training images (default {_EPOCHS})."] = None,
    seed: Seed = 0,
    jobs: Jobs = 2,
    out: LastingOut = Path("out"),
    small: SmallDigits = False,
) -> None:
    """Train, certify and attack equilibrium networks on images; continues where an earlier run was stopped."""
    if (mnist is not None) + (cifar is not None) + small > 1:
        raise InputError("--mnist, --cifar and --small choose the images: give one of them")
    images = Images.DIGITS if small else Images.MNIST if cifar is None else Images.CIFAR10
    data_dir = mnist if cifar is None else cifar
    plan = Plan(
        images=images,
        epochs=checks.whole_number("--epochs", (2 if small else _EPOCHS) if epochs is None else epochs),
        seed=checks.seed("--seed", seed),
        small=small,
        models=() if models is None else words("--models", models, example="lipschitz-1"),
        convolutional=True,
    )
    checks.whole_number("--jobs", jobs)
    folder = output_directory(out)
    catalogue(plan)  # a name that is unknown is refused before anything is read or downloaded
    dataset = load_images(images, data_dir)  # refused now rather than in a process of its own
    results, times = run_experiment(plan, folder / "models", data_dir=data_dir, jobs=jobs, progress=True)
    results, times = plain(results), plain(times)
    trained = results["models"]
    layer = _trained(plan, "lben" if "lben" in trained else next(iter(trained)), dataset, folder)
    pictures = dataset.test_inputs[:8].reshape(-1, *dataset.image_shape).double()
    stop = Stop(rtol=1e-4 if small else 1e-6, atol=0.0, check_every=1)
    watched = Stop(rtol=1e-2, atol=0.0, check_every=1)
    film = partial(animate_relaxation, layer, pictures[0], ExplicitEuler(step=0.2), stop=watched)
    publish(
        folder,
        table(trained, times),
        results,
        draws={
            "certified-and-attained": on_axes(plot_tightness, trained, heights=SQUARE),
            "error-under-attack": on_axes(plot_error_under_attack, trained),
            "convergence": on_axes(plot_convergence, layer, pictures, _METHODS, stop=stop),
        },
        wide={"equilibrium": partial(plot_equilibrium, layer, pictures[0])},
        films={"relaxation.gif": film},
        timings=times,
        small=small,
    )


def table(models: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    """What every model does, what was certified and attained, and how long the training took."""
    lipschitz = {name: model["lipschitz"] for name, model in models.items()}

    def of_gamma(name: str) -> float | None:
        gamma = lipschitz[name]["built_in"]
        return None if gamma is None else lipschitz[name]["attained"] / gamma

    columns = (
        Column("model", str),
        Column("test error", lambda name: models[name]["test_error"], ".2f"),
        Column("training, one run", lambda name: times[name]["training"], ".0f"),
        Column("γ", lambda name: lipschitz[name]["built_in"], "g"),
        Column("c", lambda name: models[name]["settings"]["contraction_rate"], "g"),
        Column("certified", lambda name: lipschitz[name]["certified"], ".4g"),
        Column("attained", lambda name: lipschitz[name]["attained"], ".4g"),
        Column("of γ", of_gamma, ".3f"),
        Column("ratio", lambda name: lipschitz[name]["attained"] / lipschitz[name]["certified"], ".3f"),
        Column("inside", lambda name: models[name]["robustness"]["inside"], "d"),
    )
    count = next(iter(models.values()))["robustness"]["images"]
    return f"""{aligned(columns, list(models))}

test error: percent of the test images, solved in float64 to 1e-8; training: wall seconds of one run on one thread;
γ: built in, for the whole map from normalised pixels to logits; c: built in, the rate at which the flows contract;
certified: proved afterwards; attained: by a pair of inputs; of γ: attained/γ; ratio: attained/certified; inside:
attacks that succeeded inside a certified radius, of {count} test images."""


def _trained(plan: Plan, name: str, dataset: Dataset, folder: Path) -> LBENConv2d:
    """The trained model from its folder, in double precision."""
    layer = new_model(catalogue(plan)[name], dataset)
    assert isinstance(layer, LBENConv2d)
    last_complete_epoch(folder / "models" / name / "training.pt", layer)
    layer.stop, layer.backward = Stop(), Implicit()
    return layer.double()
