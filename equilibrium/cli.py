"""The command line ``contracting-equilibria``: compare every solver on a trained network, and try the ODE-based layer.

Whatever goes wrong on purpose is one sentence on standard error and exit code 2. Results appear complete or not at all.
"""

# no postponed annotations here: typer reads the annotations of the commands, which exist only once typer is imported

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import ContractingError, InputError
from contracting.integrators import TorchDiffEq
from contracting.solve import Method, Stop
from equilibrium.artifacts import environment, output_directory, write_figure, write_json, write_text
from equilibrium.checkpoints import load_reference
from equilibrium.comparison import TOLERANCES, Comparison, Measurement, compare
from equilibrium.data import Dataset, digits, mnist, subset
from equilibrium.layers import LBEN, EquilibriumLayer
from equilibrium.solvers import ROW_LIMITS, default_solvers
from equilibrium.splitting import PeacemanRachford
from equilibrium.training import TrainingRecord, error_percent, train

PROGRAM = "contracting-equilibria"
_BAD_INPUT, _INTERRUPTED = 2, 130
_DPI = 200
_NARROW = "-half-width"  # ends the file names of figures for half the width of a page


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on ``arguments`` (those of the process if None) and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        application = _application(checks.extra("typer", "cli", "the command line"))
        code: int = application(args=given or ["--help"], prog_name=PROGRAM, standalone_mode=False) or 0
        return _refuse("interrupted", code) if code == _INTERRUPTED else code
    except ContractingError as error:
        return _refuse(str(error))
    except Exception as error:
        # a mistake in the options or an interrupt; the class is typer's or click's, depending on their versions
        if type(error).__name__ == "Abort":
            return _refuse("interrupted", _INTERRUPTED)
        if not hasattr(error, "format_message"):
            raise
        return _refuse(f"{error.format_message()} (options: {PROGRAM} COMMAND --help)")


def _refuse(message: str, code: int = _BAD_INPUT) -> int:
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)
    return code


class _Data(StrEnum):
    DIGITS = "digits"
    MNIST = "mnist"


def _application(typer: ModuleType) -> Any:
    """The typer application with its two commands."""
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
        threads: Annotated[int, option(help="Threads; for matrices this small more than one rarely helps.")] = 1,
        out: Annotated[Path, option(help="Folder for figures, results.json and table.txt.")] = Path("out"),
        small: Annotated[bool, option("--small", help="A few seconds' version of everything.")] = False,
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
            seed=checks.whole_number("--seed", seed, low=0),
            threads=checks.whole_number("--threads", threads),
            small=small,
        )
        with _threads(settings.threads), _clean_output(out) as folder:
            _compare(settings, checkpoint, data_dir, folder)

    def ode_layer(
        method: Annotated[str, option(help="Integrator of torchdiffeq (dopri5, bosh3, rk4, ...).")] = "dopri5",
        hidden: Annotated[int, option(help="Neurons.")] = 40,
        epochs: Annotated[int, option(help="Passes over the training images.")] = 2,
        seed: Annotated[int, option(help="Of the weights and of the order of the images.")] = 0,
        threads: Annotated[int, option(help="Threads; for matrices this small more than one rarely helps.")] = 1,
        small: Annotated[bool, option("--small", help="Train on a fifth of the images.")] = False,
    ) -> None:
        """Train the ODE-based layer on digits, swap its solver, and compare outputs and gradients."""
        with _threads(checks.whole_number("--threads", threads)):
            _ode_layer(TorchDiffEq(method), hidden, epochs, seed, small)

    application = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Equilibrium networks solved by operator splittings and by ODE integrators.",
    )
    application.command("compare-solvers")(compare_solvers)
    application.command("ode-layer")(ode_layer)
    return application


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
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise InputError(f"--solvers names no solver; known are {', '.join(known)}")
    exact = {name.lower(): name for name in known}
    for name in wanted:
        if name.lower() not in exact:
            raise InputError(f"--solvers has the unknown name {name!r}; known are {', '.join(known)}")
    return {exact[name.lower()]: known[exact[name.lower()]] for name in wanted}


def _chosen_tolerances(text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        values = {float(part) for part in text.split(",") if part.strip()}
    except ValueError:
        raise InputError(f"--tolerances must be numbers separated by commas, got {text!r}") from None
    if not values:
        raise InputError("--tolerances must have at least one number, such as 1e-6")
    for value in values:
        checks.number("--tolerances", value, low=0, high=1, low_open=True, high_open=True)
    return tuple(sorted(values, reverse=True))


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _clean_output(out: Path) -> Iterator[Path]:
    """The output folder, checked before any work; folders made for it disappear again if nothing is written."""
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        yield output_directory(out)
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


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
    _report(written, _write_figures(figures, folder))


def _dataset(settings: Settings, data_dir: Path | None) -> Dataset:
    if settings.data == _Data.MNIST:
        dataset = mnist(data_dir)
        return subset(dataset, train=2000, test=500) if settings.small else dataset
    if data_dir is not None:
        raise InputError("--data-dir is the folder of MNIST, so it needs --data mnist")
    dataset = digits(seed=settings.seed)
    return subset(dataset, train=600, test=200) if settings.small else dataset


def _trained(settings: Settings, dataset: Dataset) -> tuple[EquilibriumLayer, TrainingRecord]:
    layer = _new_layer(dataset, settings.hidden, settings.seed, lipschitz=settings.lipschitz, epsilon=settings.epsilon)
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


def _new_layer(dataset: Dataset, hidden: int, seed: int, **options: Any) -> LBEN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LBEN(dataset.features, hidden, dataset.classes, **options)


def _redraw(source: Path, out: Path, small: bool) -> None:
    try:
        comparison = Comparison.from_json(json.loads(source.read_text(encoding="utf-8"))["comparison"])
    except OSError as error:
        raise InputError(f"{str(source)!r} cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{str(source)!r} is no results.json of compare-solvers ({reason})") from error
    with _clean_output(out) as folder:
        _report([], _write_figures(_figures(comparison, small=small), folder))


def _figures(comparison: Comparison, *, small: bool = False) -> dict[str, Any]:
    """The figures by file name; ``small`` leaves out those for half the width of a page and the many-panelled ones."""
    from equilibrium import plots

    figures = {f"{name}.png": figure for name, figure in plots.draw_all(comparison, panels=not small).items()}
    if not small:
        narrow = plots.draw_all(comparison, width=plots.HALF_WIDTH)
        figures |= {f"{name}{_NARROW}.png": figure for name, figure in narrow.items()}
    return figures


def _write_figures(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Write the figures; those of an earlier run that have no successor are removed, for they show other numbers."""
    from equilibrium.plots import FIGURES, PANELS

    below = output_directory(folder / "figures")
    written = [write_figure(below / name, figure, dpi=_DPI) for name, figure in figures.items()]
    for name in FIGURES + PANELS:
        for stale in {below / f"{name}.png", below / f"{name}{_NARROW}.png"} - set(written):
            stale.unlink(missing_ok=True)
    return written


def _report(files: Sequence[Path], figures: Sequence[Path]) -> None:
    print()
    for path in files:
        print(f"wrote {path}")
    if figures:
        print(f"wrote {len(figures)} figures into {figures[0].parent}")


_COLUMNS = ("solver", "family", "status", "steps", "maps", "ms/input", "residual", "distance", "predicted", "measured")
_LEFT = 3  # columns of text


def table(comparison: Comparison) -> str:
    """One line per solver at the tightest tolerance, fastest first, with what the columns mean and who refused."""
    tightest = [m for m in comparison.measurements if m.tolerance == comparison.tightest]
    tightest.sort(key=lambda m: (not m.converged, m.seconds / m.rows))
    lines = [_COLUMNS, *(_line(comparison, m) for m in tightest)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if place < _LEFT else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    aligned.insert(1, "-" * len(aligned[0]))
    title = (
        f"{comparison.rows} equilibria of {comparison.hidden_features} neurons, "
        f"every input to a relative residual of {comparison.tightest:g}"
    )
    return "\n".join([title, "", *aligned, "", *_notes(comparison, tightest)])


def _line(comparison: Comparison, m: Measurement) -> tuple[str, ...]:
    record = comparison.solver(m.solver)
    status = "converged" if m.converged else ", ".join(f"{n} {name.lower()}" for name, n in m.status.items())
    return (
        m.solver,
        record.family,
        status,
        str(m.steps_max),
        str(m.map_evals),
        f"{1e3 * m.seconds / m.rows:.3g}",
        _number(m.relative_residual, ".0e"),
        _number(m.distance, ".0e"),
        _number(record.factor, ".3f"),
        _number(record.measured_factor, ".3f"),
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _notes(comparison: Comparison, shown: Sequence[Measurement]) -> list[str]:
    notes = [
        "steps: of the slowest input (of torchdiffeq: time intervals); maps: applications of W or its resolvent to the",
        "batch; residual, distance: of the worst input, distance to the reference equilibrium; predicted, measured:",
        "contraction factor per step.",
    ]
    bounds = [m.error_bound for m in shown if m.error_bound is not None and m.converged]
    if bounds and comparison.reference.error_bound is not None:
        notes.append(
            f"Certified relative distance to the true equilibrium, in the metric: at most {max(bounds):.0e} for every "
            f"converged answer,\n{comparison.reference.error_bound:.0e} for the reference."
        )
    notes += [f"{m.solver}: on the first {m.rows} inputs only." for m in shown if m.rows < comparison.rows]
    refusals: dict[str, list[str]] = {}
    for record in comparison.solvers:
        if record.refused is not None:
            refusals.setdefault(record.refused, []).append(record.name)
    return notes + [f"refused: {', '.join(names)}: {reason}" for reason, names in refusals.items()]


def _ode_layer(solver: TorchDiffEq, hidden: int, epochs: int, seed: int, small: bool) -> None:
    dataset = digits(seed=seed)
    dataset = subset(dataset, train=256, test=100) if small else dataset
    layer = _new_layer(dataset, hidden, seed, lipschitz=1.0, solver=solver)
    record = train(layer, dataset, epochs=epochs, seed=seed, progress=True)
    print(f"trained with {solver.method}: {record.seconds:.1f} s, test error {record.test_error:.2f} %")
    layer = layer.double()
    layer.stop = Stop(rtol=1e-10)
    inputs, labels = dataset.test_inputs[:64].double(), dataset.test_labels[:64]
    by_ode = _output_and_gradient(layer, inputs, labels)
    layer.solver = PeacemanRachford()
    by_splitting = _output_and_gradient(layer, inputs, labels)
    for what, a, b in zip(("outputs", "gradients"), by_ode, by_splitting, strict=True):
        print(f"{what}: largest difference to PeacemanRachford() {float((a - b).abs().max()):.1e}")


def _output_and_gradient(layer: EquilibriumLayer, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    outputs = layer(inputs)
    loss = torch.nn.functional.cross_entropy(outputs, labels)
    gradients = torch.autograd.grad(loss, list(layer.parameters()))
    return outputs.detach(), torch.cat([gradient.flatten() for gradient in gradients])


if __name__ == "__main__":
    sys.exit(main())
