"""``compare-solvers``: train an equilibrium network, then find the same equilibria with every solver."""

# no postponed annotations here: typer reads the annotations of the commands, which exist only once typer is imported

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from contracting import checks
from contracting.errors import InputError
from contracting.loop.method import Method
from contracting.solvers.catalogue import ROW_LIMITS, default_solvers
from equilibrium.checkpoints import load_reference
from equilibrium.experiments.common import (
    DPI,
    NARROW,
    SMALL_HELP,
    THREADS_HELP,
    clean_output,
    new_layer,
    report,
    running_with,
)
from equilibrium.experiments.compare_solvers.study import TOLERANCES, Comparison, compare
from equilibrium.experiments.compare_solvers.table import table
from equilibrium.experiments.lists import numbers, words
from equilibrium.files import environment, output_directory, write_figure, write_json, write_text
from equilibrium.layers import EquilibriumLayer
from equilibrium.training.classifier import TrainingRecord, error_percent, train
from equilibrium.training.data import Dataset, digits, mnist, subset


class _Data(StrEnum):
    DIGITS = "digits"
    MNIST = "mnist"


def command(typer: ModuleType) -> Callable[..., None]:
    """The command as a function whose parameters are the options."""
    option = typer.Option

    def compare_solvers(
        data: Annotated[_Data, option(help="Images to classify.")] = _Data.DIGITS,
        data_dir: Annotated[Path | None, option(help="Folder with the MNIST files; downloaded if absent.")] = None,
        checkpoint: Annotated[Path | None, option(help="Reference checkpoint to use instead of training.")] = None,
        lipschitz: Annotated[
            float | None, option(help="Certified Lipschitz constant, of training (default 1) or of the checkpoint.")
        ] = None,
        epsilon: Annotated[float, option(help="Strong monotonicity of the parameterisation.")] = 1.0,
        solvers: Annotated[str | None, option(help="Names separated by commas; default all.")] = None,
        tolerances: Annotated[str | None, option(help="Relative residuals separated by commas.")] = None,
        rows: Annotated[int | None, option(help="Test images to solve for (default 200).")] = None,
        hidden: Annotated[int | None, option(help="Neurons (default 64).")] = None,
        epochs: Annotated[int | None, option(help="Passes over the training images (default 15, MNIST 2).")] = None,
        seed: Annotated[int, option(help="Of the weights, of the order of the images and of their division.")] = 0,
        threads: Annotated[int, option(help=THREADS_HELP)] = 1,
        out: Annotated[Path, option(help="Folder for figures, results.json and table.txt.")] = Path("out"),
        small: Annotated[bool, option("--small", help=SMALL_HELP)] = False,
        redraw: Annotated[Path | None, option(help="Only draw the figures of this results.json again.")] = None,
    ) -> None:
        """Train an equilibrium network, then find the same equilibria with every solver."""
        if redraw is not None:
            _redraw(redraw, out, small)
            return
        settings = Settings(
            data=data.value,
            lipschitz=1.0 if lipschitz is None and checkpoint is None else lipschitz,
            epsilon=epsilon,
            checkpoint=None if checkpoint is None else checkpoint.name,
            solvers=tuple(_chosen_solvers(solvers)),
            tolerances=_chosen_tolerances(tolerances) or ((1e-2, 1e-4) if small else TOLERANCES),
            rows=checks.whole_number("--rows", (16 if small else 200) if rows is None else rows),
            hidden=checks.whole_number("--hidden", (16 if small else 64) if hidden is None else hidden),
            epochs=checks.whole_number("--epochs", _epochs(data, small) if epochs is None else epochs),
            batch_size=64 if data is _Data.DIGITS else 256,
            seed=checks.seed("--seed", seed),
            threads=checks.whole_number("--threads", threads),
            small=small,
        )
        with running_with(settings.threads), clean_output(out) as folder:
            _compare(settings, checkpoint, data_dir, folder)

    return compare_solvers


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What ``compare-solvers`` was asked for, defaults filled in; part of results.json."""

    data: str
    lipschitz: float | None
    epsilon: float
    checkpoint: str | None
    solvers: tuple[str, ...]
    tolerances: tuple[float, ...]
    rows: int
    hidden: int
    epochs: int
    batch_size: int
    seed: int
    threads: int
    small: bool


def _epochs(data: _Data, small: bool) -> int:
    return 1 if small else 15 if data is _Data.DIGITS else 2


def _chosen_solvers(names: str | None) -> dict[str, Method]:
    known = default_solvers()
    if names is None:
        return known
    wanted = words("--solvers", names, example=next(iter(known)))
    exact = {name.lower(): name for name in known}
    for name in wanted:
        if name.lower() not in exact:
            raise InputError(f"--solvers has the unknown name {name!r}; known are {', '.join(known)}")
    return {exact[name.lower()]: known[exact[name.lower()]] for name in wanted}


def _chosen_tolerances(text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    return tuple(sorted(numbers("--tolerances", text, example="1e-6", high=1, high_open=True), reverse=True))


def _compare(settings: Settings, checkpoint: Path | None, data_dir: Path | None, folder: Path) -> None:
    solvers = {name: method for name, method in default_solvers().items() if name in settings.solvers}
    layer: EquilibriumLayer
    if checkpoint is not None:
        layer = load_reference(checkpoint, lipschitz=settings.lipschitz, epsilon=settings.epsilon)
    dataset = _dataset(settings, data_dir)
    record: TrainingRecord | None = None
    if checkpoint is None:
        layer, record = _trained(settings, dataset)
    elif layer.in_features != dataset.features:
        raise InputError(
            f"{settings.checkpoint} reads {layer.in_features} inputs but {dataset.name} has {dataset.features}; "
            "choose other images (--data)"
        )
    layer = layer.double()
    test_error = error_percent(layer, dataset.test_inputs.double(), dataset.test_labels)
    print(f"test error {test_error:.2f} % on {len(dataset.test_labels)} test images of {dataset.name}\n", flush=True)
    comparison = compare(
        layer,
        dataset.test_inputs[: settings.rows].double(),
        solvers,
        settings.tolerances,
        row_limits={name: 2 for name in ROW_LIMITS} if settings.small else ROW_LIMITS,
        repeats=1 if settings.small else 5,
        progress=True,
    )
    text = table(comparison)
    print(text, flush=True)
    results = {
        "environment": environment(),
        "settings": settings,
        "test_error": test_error,
        "training": record,
        "comparison": comparison.to_json(),
    }
    figures = _figures(comparison, small=settings.small)
    written = [write_json(folder / "results.json", results), write_text(folder / "table.txt", text + "\n")]
    report(written, _write_figures(figures, folder))


def _dataset(settings: Settings, data_dir: Path | None) -> Dataset:
    if settings.data == _Data.MNIST:
        dataset = mnist(data_dir)
        return subset(dataset, train=2000, test=500) if settings.small else dataset
    if data_dir is not None:
        raise InputError("--data-dir is the folder of MNIST, so it needs --data mnist")
    dataset = digits(seed=settings.seed)
    return subset(dataset, train=600, test=200) if settings.small else dataset


def _trained(settings: Settings, dataset: Dataset) -> tuple[EquilibriumLayer, TrainingRecord]:
    layer = new_layer(dataset, settings.hidden, settings.seed, lipschitz=settings.lipschitz, epsilon=settings.epsilon)
    record = train(
        layer,
        dataset,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=settings.seed,
        progress=True,
    )
    print(
        f"trained LBEN({dataset.features}, {settings.hidden}, {dataset.classes}, lipschitz={settings.lipschitz:g}) on "
        f"{dataset.name}: {len(record.epochs)} epochs in {record.seconds:.1f} s, loss {record.epochs[-1].loss:.3f}"
    )
    return layer, record


def _redraw(source: Path, out: Path, small: bool) -> None:
    try:
        comparison = Comparison.from_json(json.loads(source.read_text(encoding="utf-8"))["comparison"])
    except OSError as error:
        raise InputError(f"{str(source)!r} cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{str(source)!r} is no results.json of compare-solvers ({reason})") from error
    with clean_output(out) as folder:
        report([], _write_figures(_figures(comparison, small=small), folder))


def _figures(comparison: Comparison, *, small: bool = False) -> dict[str, Any]:
    """The figures by file name; ``small`` leaves out those for half the width of a page and the many-panelled ones."""
    from contracting.plots import HALF_WIDTH
    from equilibrium.experiments.compare_solvers import figures as plots

    figures = {f"{name}.png": figure for name, figure in plots.draw_all(comparison, panels=not small).items()}
    if not small:
        narrow = plots.draw_all(comparison, width=HALF_WIDTH)
        figures |= {f"{name}{NARROW}.png": figure for name, figure in narrow.items()}
    return figures


def _write_figures(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Write the figures; those of an earlier run that have no successor are removed, for they show other numbers."""
    from equilibrium.experiments.compare_solvers.figures import FIGURES, PANELS

    below = output_directory(folder / "figures")
    written = [write_figure(below / name, figure, dpi=DPI) for name, figure in figures.items()]
    for name in FIGURES + PANELS:
        for stale in {below / f"{name}.png", below / f"{name}{NARROW}.png"} - set(written):
            stale.unlink(missing_ok=True)
    return written
