"""``convolution``: equilibrium networks on images, trained, certified as they run, attacked and looked at."""

# no postponed annotations here: typer reads the annotations of the commands, which exist only once typer is imported

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch

from contracting import checks
from contracting.errors import InputError
from contracting.flows.splitting import PeacemanRachfordFlow
from contracting.gradients.implicit import Implicit
from contracting.integrators import RK4, DormandPrince, ExplicitEuler
from contracting.loop.method import Method
from contracting.loop.records import Stop
from contracting.solvers.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from equilibrium.convolution import LBENConv2d
from equilibrium.experiments.common import DPI, aligned, draw_figures, number, report
from equilibrium.experiments.lists import words
from equilibrium.experiments.robustness.models import Images, load_images, new_model
from equilibrium.experiments.robustness.study import Plan, catalogue, run_experiment
from equilibrium.files import output_directory, plain, write_figure, write_json, write_text
from equilibrium.training.classifier import last_complete_epoch
from equilibrium.training.data import Dataset

_EPOCHS = 4
_COLUMNS = ("model", "test error", "training", "γ", "certified", "attained", "of γ", "ratio", "inside")
_METHODS: dict[str, Method] = {
    "Peaceman–Rachford": PeacemanRachford(),
    "Douglas–Rachford": DouglasRachford(),
    "forward–backward": ForwardBackward(),
    "Euler, firing rate": ExplicitEuler(),
    "RK4, Peaceman–Rachford flow": RK4(flow=PeacemanRachfordFlow()),
    "Dormand–Prince, firing rate": DormandPrince(),
}


def command(typer: ModuleType) -> Callable[..., None]:
    """The command as a function whose parameters are the options."""
    option = typer.Option

    def convolution(
        mnist: Annotated[Path | None, option(help="Folder with the MNIST files; downloaded if absent.")] = None,
        cifar: Annotated[Path | None, option(help="Folder with CIFAR-10's binary files, instead of MNIST.")] = None,
        models: Annotated[str | None, option(help="Of lipschitz-1, lben, mondeq, separated by commas.")] = None,
        epochs: Annotated[int | None, option(help=f"Passes over the training images (default {_EPOCHS}).")] = None,
        seed: Annotated[int, option(help="Of the weights and of the order of the images.")] = 0,
        jobs: Annotated[int, option(help="Models at work at once, each in a process with one thread.")] = 2,
        out: Annotated[Path, option(help="Folder for everything; continues what was begun there.")] = Path("out"),
        small: Annotated[bool, option("--small", help="Small networks and attacks, on small digits.")] = False,
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
        dataset = load_images(images, data_dir)  # refused now rather than in a process of its own
        results, times = run_experiment(plan, folder / "models", data_dir=data_dir, jobs=jobs, progress=True)
        results, times = plain(results), plain(times)
        text = table(results, times)
        print(text, flush=True)
        written = [
            write_json(folder / "results.json", results),
            write_json(folder / "timings.json", times),
            write_text(folder / "table.txt", text + "\n"),
        ]
        report(written, _figures(plan, results, dataset, folder))

    return convolution


def table(results: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    """What every model does, what was certified and attained, and how long the training took."""
    rows = [_line(name, model, times[name]["training"]) for name, model in results["models"].items()]
    first = next(iter(results["models"].values()))
    count = first["robustness"]["images"]
    return "\n".join(
        [
            *aligned(_COLUMNS, rows),
            "",
            "test error: percent of the test images, solved in float64 to 1e-8; training: wall seconds on one thread;",
            "γ: built in, for the whole map from normalised pixels to logits; certified: proved afterwards; attained:",
            "by a pair of inputs; of γ: attained/γ; ratio: attained/certified; inside: attacks that succeeded inside a",
            f"certified radius, of {count} test images.",
        ]
    )


def _line(name: str, model: Mapping[str, Any], seconds: float) -> tuple[str, ...]:
    lipschitz, robustness = model["lipschitz"], model["robustness"]
    gamma, attained, certified = lipschitz["built_in"], lipschitz["attained"], lipschitz["certified"]
    return (
        name,
        number(model["test_error"], ".2f"),
        number(seconds, ".0f"),
        number(gamma, "g"),
        number(certified, ".4g"),
        number(attained, ".4g"),
        number(None if gamma is None else attained / gamma, ".3f"),
        number(attained / certified, ".3f"),
        str(robustness["inside"]),
    )


def _figures(plan: Plan, results: dict[str, Any], dataset: Dataset, folder: Path) -> list[Path]:
    from equilibrium.experiments.convolution import figures as pictures
    from equilibrium.experiments.robustness import figures as plots

    models = results["models"]
    draws: dict[str, Callable[[Any], Any]] = {
        "certified-and-attained": partial(plots.plot_tightness, models),
        "error-under-attack": partial(plots.plot_error_under_attack, models),
    }
    name = "lben" if "lben" in models else next(iter(models))
    layer = _trained(plan, name, dataset, folder)
    images = dataset.test_inputs[:8].reshape(-1, *dataset.image_shape).double()
    stop = Stop(rtol=1e-4 if plan.small else 1e-6, atol=0.0, check_every=1)
    draws["convergence"] = partial(_drawn, pictures.plot_convergence, layer, images, _METHODS, stop)
    written = draw_figures(folder, draws, small=plan.small, tall=("certified-and-attained",))
    below = folder / "figures"
    written.append(write_figure(below / "filters.png", pictures.plot_filters(layer), dpi=DPI))
    written.append(write_figure(below / "equilibrium.png", pictures.plot_equilibrium(layer, images[0]), dpi=DPI))
    film = below / "relaxation.gif"
    watched = Stop(rtol=1e-2, atol=0.0, check_every=1)
    pictures.animate_relaxation(layer, images[0], ExplicitEuler(step=0.2), film, stop=watched)
    return [*written, film]


def _drawn(plot: Callable[..., Any], layer: Any, images: Any, methods: Any, stop: Stop, axes: Any) -> Any:
    return plot(layer, images, methods, axes, stop=stop)


def _trained(plan: Plan, name: str, dataset: Dataset, folder: Path) -> LBENConv2d:
    """The trained model from its folder, in double precision."""
    layer = new_model(catalogue(plan)[name], dataset)
    assert isinstance(layer, LBENConv2d)
    last_complete_epoch(folder / "models" / name / "training.pt", layer)
    layer = layer.to(torch.float64)
    layer.stop = Stop()
    layer.backward = Implicit()
    return layer
