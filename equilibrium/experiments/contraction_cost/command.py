"""``contraction-cost``: train with and without a certified contraction rate, and tell what the rate costs."""

# no postponed annotations here: typer reads the annotations of the commands, which exist only once typer is imported

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated

from contracting import checks
from contracting.errors import InputError
from equilibrium.experiments.common import DPI, NARROW, SMALL_HELP, THREADS_HELP, clean_output, report, running_with
from equilibrium.experiments.contraction_cost.study import CostSettings, TrainedLayer, contraction_cost, cost_table
from equilibrium.experiments.lists import numbers_or_none
from equilibrium.files import environment, output_directory, write_figure, write_json, write_text
from equilibrium.training.data import digits, subset


def command(typer: ModuleType) -> Callable[..., None]:
    """The command as a function whose parameters are the options."""
    option = typer.Option

    def contraction_cost(
        rates: Annotated[str, option(help="Rates to ask for, by commas; none asks for none.")] = "none,0.2,0.5",
        seeds: Annotated[int | None, option(help="Trainings per rate (default 5).")] = None,
        hidden: Annotated[int | None, option(help="Neurons (default 64).")] = None,
        epochs: Annotated[int | None, option(help="Passes over the training images (default 15).")] = None,
        lipschitz: Annotated[float, option(help="Certified Lipschitz constant of every layer.")] = 1.0,
        threads: Annotated[int, option(help=THREADS_HELP)] = 1,
        out: Annotated[Path, option(help="Folder for the figure, results.json and table.md.")] = Path("out"),
        small: Annotated[bool, option("--small", help=SMALL_HELP)] = False,
        redraw: Annotated[
            list[Path] | None, option(help="Only tabulate and draw this results.json again; several are joined.")
        ] = None,
    ) -> None:
        """Train on digits with and without a certified contraction rate: errors, certificates, measured decay."""
        if redraw:
            layers = tuple(layer for source in redraw for layer in _read(source))
            print(cost_table(layers))
            with clean_output(out) as folder:
                report([], _figure(layers, folder))
            return
        settings = CostSettings(
            rates=numbers_or_none("--rates", rates, example="none,0.2,0.5", high=1, zero=True),
            seeds=(2 if small else 5) if seeds is None else seeds,
            hidden=(12 if small else 64) if hidden is None else hidden,
            epochs=(1 if small else 15) if epochs is None else epochs,
            lipschitz=lipschitz,
        )
        with running_with(checks.whole_number("--threads", threads)), clean_output(out) as folder:
            _run(settings, small, folder)

    return contraction_cost


def _run(settings: CostSettings, small: bool, folder: Path) -> None:
    dataset = digits(seed=0)
    dataset = subset(dataset, train=400, test=100) if small else dataset
    layers = contraction_cost(dataset, settings, said=_say)
    table = cost_table(layers)
    print(f"\nLBEN({dataset.features}, {settings.hidden}, {dataset.classes}, lipschitz={settings.lipschitz:g})")
    print(f"on {dataset.name}, {settings.epochs} epochs, {settings.seeds} seeds, mean ± standard deviation:\n\n{table}")
    results = {"environment": environment(), "settings": settings, "layers": list(layers)}
    files = [write_json(folder / "results.json", results), write_text(folder / "table.md", table + "\n")]
    report(files, _figure(layers, folder))


def _say(layer: TrainedLayer) -> None:
    asked = "no rate" if layer.contraction_rate is None else f"c = {layer.contraction_rate:g}"
    print(
        f"{asked}, seed {layer.seed}: test error {layer.test_error:.2f} %, certified rate {layer.certified:.3f} "
        f"({layer.method}), slowest pair {layer.slowest:.3f}",
        flush=True,
    )


def _read(source: Path) -> tuple[TrainedLayer, ...]:
    try:
        return tuple(TrainedLayer(**record) for record in json.loads(source.read_text(encoding="utf-8"))["layers"])
    except OSError as error:
        raise InputError(f"{str(source)!r} cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(source)!r} is no results.json of contraction-cost ({error})") from error


def _figure(layers: tuple[TrainedLayer, ...], folder: Path) -> list[Path]:
    from contracting.plots import FULL_WIDTH, HALF_WIDTH
    from equilibrium.experiments.contraction_cost.figures import draw_contraction_cost

    below = output_directory(folder / "figures")
    widths = {"": FULL_WIDTH, NARROW: HALF_WIDTH}
    return [
        write_figure(below / f"contraction-cost{suffix}.png", draw_contraction_cost(layers, width=width), dpi=DPI)
        for suffix, width in widths.items()
    ]
