"""``compare-solvers``: train an equilibrium network, then find the same equilibria with every solver."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from contracting import InputError, Method, checks, default_solvers
from contracting.solvers.catalogue import ROW_LIMITS
from equilibrium import EquilibriumLayer, load_reference, train
from equilibrium.experiments.compare_solvers.figures import draws
from equilibrium.experiments.compare_solvers.study import TOLERANCES, Comparison, Measurement, compare
from equilibrium.experiments.networks import digits_for, new_layer
from equilibrium.experiments.options import Out, Small, Threads, numbers, words
from equilibrium.experiments.publishing import publish, working_in
from equilibrium.experiments.tables import Column, aligned
from equilibrium.training.data import Dataset, mnist, subset
from equilibrium.training.loop import error_percent
from equilibrium.training.records import TrainingRecord

_TOLERANCES = ",".join(f"{tolerance:g}" for tolerance in TOLERANCES)


class _Data(StrEnum):
    DIGITS = "digits"
    MNIST = "mnist"


def compare_solvers(
    data: Annotated[_Data, "Images to classify."] = _Data.DIGITS,
    data_dir: Annotated[Path | None, "Folder with the MNIST files (default: downloaded)."] = None,
    checkpoint: Annotated[Path | None, "Reference checkpoint to use (default: train a network)."] = None,
    lipschitz: Annotated[
        float | None, "Certified Lipschitz constant, of training (default 1) or of the checkpoint (default none)."
    ] = None,
    epsilon: Annotated[float, "Strong monotonicity of the parameterisation."] = 1.0,
    solvers: Annotated[
        str | None, f"Names separated by commas (default all): {', '.join(default_solvers())}."
    ] = None,
    tolerances: Annotated[str | None, f"Relative residuals separated by commas (default {_TOLERANCES})."] = None,
    rows: Annotated[int | None, "Test images to solve for (default 200)."] = None,
    hidden: Annotated[int | None, "Neurons (default 64)."] = None,
    epochs: Annotated[int | None, "Passes over the training images (default 15, MNIST 2)."] = None,
    seed: Annotated[int, "Of the weights, of the order of the images and of their division."] = 0,
    threads: Threads = 1,
    out: Out = Path("out"),
    small: Small = False,
) -> None:
    """Train an equilibrium network, then find the same equilibria with every solver."""
    chosen = _chosen(solvers)
    usual_epochs = 1 if small else 15 if data is _Data.DIGITS else 2
    settings: dict[str, Any] = {
        "data": data.value,
        "lipschitz": 1.0 if lipschitz is None and checkpoint is None else lipschitz,
        "epsilon": epsilon,
        "checkpoint": None if checkpoint is None else checkpoint.name,
        "solvers": list(chosen),
        "tolerances": (1e-2, 1e-4) if small and tolerances is None else _tolerances(tolerances),
        "rows": checks.whole_number("--rows", (16 if small else 200) if rows is None else rows),
        "hidden": checks.whole_number("--hidden", (16 if small else 64) if hidden is None else hidden),
        "epochs": checks.whole_number("--epochs", usual_epochs if epochs is None else epochs),
        "batch_size": 64 if data is _Data.DIGITS else 256,
        "seed": checks.seed("--seed", seed),
        "threads": threads,
        "small": small,
    }
    with working_in(out, threads=threads) as folder:
        layer: EquilibriumLayer
        if checkpoint is not None:  # read first: a wrong file is said before any work
            layer = load_reference(checkpoint, lipschitz=lipschitz, epsilon=epsilon)
        dataset = _dataset(data, data_dir, seed, small)
        record: TrainingRecord | None = None
        if checkpoint is None:
            layer, record = _trained(settings, dataset)
        elif layer.in_features != dataset.features:
            raise InputError(
                f"{checkpoint.name} reads {layer.in_features} inputs but {dataset.name} has {dataset.features}; "
                "choose other images (--data)"
            )
        inputs = dataset.test_inputs.double()
        test_error = error_percent(layer.double(), inputs, dataset.test_labels)
        print(f"test error {test_error:.2f} % on {len(inputs)} test images of {dataset.name}\n", flush=True)
        comparison = compare(
            layer,
            inputs[: settings["rows"]],
            chosen,
            settings["tolerances"],
            row_limits={name: 2 for name in ROW_LIMITS} if small else ROW_LIMITS,
            repeats=1 if small else 5,
            progress=True,
        )
        results = {"settings": settings, "test_error": test_error, "training": record, "comparison": comparison}
        publish(folder, table(comparison), results, draws=draws(comparison), small=small)


def _chosen(names: str | None) -> dict[str, Method]:
    known = default_solvers()
    if names is None:
        return known
    exact = {name.lower(): name for name in known}
    wanted = words("--solvers", names, example=next(iter(known)))
    for name in wanted:
        if name.lower() not in exact:
            raise InputError(f"--solvers has the unknown name {name!r}; known are {', '.join(known)}")
    chosen = {exact[name.lower()] for name in wanted}
    return {name: method for name, method in known.items() if name in chosen}


def _tolerances(text: str | None) -> tuple[float, ...]:
    if text is None:
        return TOLERANCES
    return tuple(sorted(numbers("--tolerances", text, example="1e-6", high=1, high_open=True), reverse=True))


def _dataset(data: _Data, data_dir: Path | None, seed: int, small: bool) -> Dataset:
    if data is _Data.MNIST:
        return subset(mnist(data_dir), train=2000, test=500) if small else mnist(data_dir)
    if data_dir is not None:
        raise InputError("--data-dir is the folder of MNIST, so it needs --data mnist")
    return digits_for(seed, small=small)


def _trained(settings: dict[str, Any], dataset: Dataset) -> tuple[EquilibriumLayer, TrainingRecord]:
    hidden, seed, lipschitz = settings["hidden"], settings["seed"], settings["lipschitz"]
    layer = new_layer(dataset, hidden, seed, lipschitz=lipschitz, epsilon=settings["epsilon"])
    epochs, batch_size = settings["epochs"], settings["batch_size"]
    record = train(layer, dataset, epochs=epochs, batch_size=batch_size, seed=seed, progress=True)
    print(
        f"trained LBEN({dataset.features}, {hidden}, {dataset.classes}, lipschitz={lipschitz:g}) on "
        f"{dataset.name}: {epochs} epochs in {record.seconds:.1f} s (one run), loss {record.epochs[-1].loss:.3f}"
    )
    return layer, record


def table(comparison: Comparison) -> str:
    """One line per solver at the tightest tolerance, fastest first, with what the columns mean and who refused."""
    tightest = [m for m in comparison.measurements if m.tolerance == comparison.tightest]
    tightest.sort(key=lambda m: (not m.converged, m.seconds / m.rows))
    columns = (
        Column("solver"),
        Column("family", lambda m: comparison.solver(m.solver).family),
        Column("status", _status),
        Column("steps", lambda m: m.steps_max, "d"),
        Column("maps", lambda m: m.map_evals, "d"),
        Column("ms/input", lambda m: 1e3 * m.seconds / m.rows, ".3g"),
        Column("from–to", lambda m: "–".join(f"{1e3 * s / m.rows:.2g}" for s in m.seconds_range)),
        Column("residual", lambda m: m.relative_residual, ".0e"),
        Column("distance", lambda m: m.distance, ".0e"),
        Column("predicted", lambda m: comparison.solver(m.solver).factor, ".3f"),
        Column("measured", lambda m: comparison.solver(m.solver).measured_factor, ".3f"),
    )
    title = (
        f"{comparison.rows} equilibria of {comparison.hidden_features} neurons, "
        f"every input to a relative residual of {comparison.tightest:g}"
    )
    return "\n".join([title, "", aligned(columns, tightest), "", *_notes(comparison, tightest)])


def _status(m: Measurement) -> str:
    return "converged" if m.converged else ", ".join(f"{count} {name.lower()}" for name, count in m.status.items())


def _notes(comparison: Comparison, shown: Sequence[Measurement]) -> list[str]:
    notes = [
        "steps: of the slowest input (of torchdiffeq: time intervals); maps: applications of W or its resolvent to the",
        "batch; residual, distance: of the worst input, distance to the reference equilibrium; predicted, measured:",
        "contraction factor per step; ms/input, from–to: the median of rounds in which all are timed in turn,",
        "and the fastest and the slowest of them.",
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
