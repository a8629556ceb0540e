"""``mnist-robustness``: classifiers with Lipschitz bounds, trained, certified and attacked; killed, it continues."""

# no postponed annotations here: typer reads the annotations of the commands, which exist only once typer is imported

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from contracting import checks
from contracting.errors import InputError
from equilibrium.experiments.common import DPI, aligned, draw_figures, number, report
from equilibrium.experiments.lists import words
from equilibrium.experiments.robustness.models import Images
from equilibrium.experiments.robustness.study import CHECKPOINTS, PAPER_ERROR, Plan, run_experiment
from equilibrium.files import output_directory, plain, write_figure, write_json, write_text

_SHOWN_SIZES = (1.5, 3.0, 5.0, 8.0)  # of the fast-gradient columns, the nearest of those that were tried
_RADIUS = 1.58
_EPOCHS = 20


def command(typer: ModuleType) -> Callable[..., None]:
    """The command as a function whose parameters are the options."""
    option = typer.Option

    def mnist_robustness(
        data_dir: Annotated[Path | None, option(help="Folder with the MNIST files; downloaded if absent.")] = None,
        checkpoints: Annotated[
            Path | None, option(help="Folder with the authors' checkpoints and reported.json, to compare with.")
        ] = None,
        models: Annotated[str | None, option(help="Names separated by commas; default all.")] = None,
        epochs: Annotated[int | None, option(help=f"Passes over the training images (default {_EPOCHS}).")] = None,
        seed: Annotated[int, option(help="Of the weights and of the order of the images.")] = 0,
        jobs: Annotated[int, option(help="Models at work at once, each in a process with one thread.")] = 2,
        out: Annotated[Path, option(help="Folder for everything; continues what was begun there.")] = Path("out"),
        small: Annotated[bool, option("--small", help="Small networks and attacks, on small digits.")] = False,
    ) -> None:
        """Train, certify and attack classifiers with Lipschitz bounds; continues where an earlier run was stopped."""
        plan = Plan(
            images=Images.DIGITS if small else Images.MNIST,
            epochs=checks.whole_number("--epochs", (2 if small else _EPOCHS) if epochs is None else epochs),
            seed=checks.seed("--seed", seed),
            small=small,
            models=() if models is None else words("--models", models, example="lipschitz-1"),
        )
        checks.whole_number("--jobs", jobs)
        if small and data_dir is not None:
            raise InputError("--data-dir is the folder of MNIST, and --small classifies digits: leave one of them out")
        results, times = run_experiment(
            plan,
            output_directory(out) / "models",
            data_dir=data_dir,
            checkpoints=checkpoints,
            jobs=jobs,
            progress=True,
        )
        _write(plain(results), times, out, small)

    return mnist_robustness


def _write(results: dict[str, Any], times: dict[str, Any], folder: Path, small: bool) -> None:
    text = table(results)
    print(text, flush=True)
    written = [
        write_json(folder / "results.json", results),
        write_json(folder / "timings.json", times),
        write_text(folder / "table.txt", text + "\n"),
    ]
    report(written, _figures(results, folder, small))


def _figures(results: dict[str, Any], folder: Path, small: bool) -> list[Path]:
    from equilibrium.experiments.robustness import figures as plots

    models, reported = results["models"], results.get("reported", {})
    lower = {name: (CHECKPOINTS[name][0], entry["lipschitz_lower_bound"]) for name, entry in reported.items()}
    curves = {
        CHECKPOINTS[name][1]: (entry["fgm_epsilon"], [100 * error for error in entry["fgm_error"]])
        for name, entry in reported.items()
    }
    draws: dict[str, Any] = {}
    paper = None if small else PAPER_ERROR
    if any(name.startswith("lipschitz-") for name in models):
        draws["error-against-lipschitz-bound"] = partial(_drawn, plots.plot_error_against_bound, models, paper=paper)
    if any("robustness" in model for model in models.values()):
        draws["certified-and-attained"] = partial(_drawn, plots.plot_tightness, models, reported=lower)
    draws["error-under-attack"] = partial(_drawn, plots.plot_error_under_attack, models)
    written = draw_figures(folder, draws, small=small, tall=("certified-and-attained",))
    figure = plots.plot_every_model(models, reported=curves)
    return [*written, write_figure(folder / "figures" / "every-model-under-attack.png", figure, dpi=DPI)]


def _drawn(plot: Callable[..., Any], models: Mapping[str, Any], axes: Any, **options: Any) -> Any:
    return plot(models, axes, **options)


def table(results: Mapping[str, Any]) -> str:
    """What every model does, beside what the paper reports, and whether any attack got inside a certified radius."""
    models = results["models"]
    reported = {CHECKPOINTS[name][1]: entry for name, entry in results.get("reported", {}).items()}
    again = {CHECKPOINTS[name][1]: entry for name, entry in results.get("checkpoints", {}).items()}
    on_mnist = results["plan"]["images"] == Images.MNIST.name
    lines = [
        *aligned(
            ("model", "test error", "paper", "attained", "paper's", "certified", "ratio", "of γ", "inside"),
            [_line(name, model, reported.get(name), on_mnist) for name, model in models.items()],
        ),
        "",
        "test error: percent of the test images; attained: ratio of a pair of inputs, paper's: the lower bound found",
        "there; ratio: attained/certified; of γ: attained/γ; inside: attacks that succeeded inside a certified radius,",
        "of all test images.",
        "",
        *_attack_table(models, reported, again),
    ]
    return "\n".join(lines)


def _line(name: str, model: Mapping[str, Any], reported: Mapping[str, Any] | None, on_mnist: bool) -> tuple[str, ...]:
    lipschitz, robustness = model["lipschitz"], model.get("robustness")
    gamma, attained, certified = lipschitz["built_in"], lipschitz["attained"], lipschitz.get("certified")
    if reported is not None:  # error and lower bound are then of one network; the paper's table is about another one
        paper = reported["test_error_percent"]
    else:
        paper = PAPER_ERROR.get(gamma) if on_mnist and name.startswith("lipschitz-") else None
    return (
        name,
        number(model["test_error"], ".2f"),
        number(paper, ".2f"),
        number(attained, ".4g"),
        number(None if reported is None else reported["lipschitz_lower_bound"], ".4g"),
        number(certified, ".4g"),
        number(None if certified is None else attained / certified, ".3f"),
        number(None if gamma is None else attained / gamma, ".3f"),
        "–" if robustness is None else f"{robustness['inside']} of {robustness['images']}",
    )


def _attack_table(models: Mapping[str, Any], reported: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    first = next(iter(models.values()))["settings"]
    sizes = first["allowed"]
    shown = sorted({min(range(len(sizes)), key=lambda k: abs(sizes[k] - wanted)) for wanted in _SHOWN_SIZES})
    near = min(range(len(sizes)), key=lambda k: abs(sizes[k] - _RADIUS))
    columns = [f"error at {sizes[k]:.3g}" for k in shown]
    heads = ("model", *columns, "reported", "worse by", "authors' by ours", f"certified at {sizes[near]:.3g}", "strong")
    rows = []
    for name, model in models.items():
        errors, robustness = model["fast_gradient"]["error_percent"], model.get("robustness")
        paper, theirs = reported.get(name), again.get(name, {}).get("fast_gradient", {}).get("error_percent")
        rows.append(
            (
                name,
                *(number(errors[k], ".1f") for k in shown),
                "–" if paper is None else "/".join(f"{100 * _at(paper, sizes[k]):.1f}" for k in shown),
                number(None if paper is None else _excess(sizes, errors, paper), ".1f"),
                "–" if theirs is None else "/".join(f"{theirs[k]:.1f}" for k in shown),
                number(None if robustness is None else robustness["certified_accuracy"][near], ".1f"),
                number(None if robustness is None else robustness["attacked_accuracy"][near], ".1f"),
            )
        )
    return [
        f"Fast-gradient error in percent, on the last {first['attacked']} test images, inputs clipped to the range of",
        "the pixels:",
        "",
        *aligned(heads, rows),
        "",
        "worse by: the largest excess over the reported curve at its own sizes, in percentage points (negative: better",
        "everywhere); authors' by ours: their checkpoint under our attack; certified, strong: accuracy in percent on",
        f"all test images at size {sizes[near]:.3g}, proved and under the strong attack.",
    ]


def _at(paper: Mapping[str, Any], size: float) -> float:
    """The reported error at a size, linear between the reported sizes."""
    return _interpolated(paper["fgm_epsilon"], paper["fgm_error"], size)


def _excess(sizes: list[float], errors: list[float], paper: Mapping[str, Any]) -> float:
    pairs = zip(paper["fgm_epsilon"], paper["fgm_error"], strict=True)
    return max(_interpolated(sizes, errors, size) - 100 * error for size, error in pairs)


def _interpolated(x: list[float], y: list[float], at: float) -> float:
    for k in range(1, len(x)):
        if at <= x[k]:
            share = max(0.0, (at - x[k - 1]) / (x[k] - x[k - 1]))
            return y[k - 1] + share * (y[k] - y[k - 1])
    return y[-1]
