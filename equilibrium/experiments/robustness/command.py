"""``mnist-robustness``: classifiers with Lipschitz bounds, trained, certified and attacked; killed, it continues."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from contracting import InputError, checks
from equilibrium.experiments.options import Jobs, LastingOut, Seed, SmallDigits, words
from equilibrium.experiments.publishing import SQUARE, Draw, on_axes, publish
from equilibrium.experiments.robustness.figures import (
    has_unit_bound,
    plot_error_against_bound,
    plot_error_against_width,
    plot_error_under_attack,
    plot_tightness,
)
from equilibrium.experiments.robustness.models import Images
from equilibrium.experiments.robustness.study import (
    CHECKPOINTS,
    PAPER_ERROR,
    PAPER_ERROR_OF_MARGIN,
    PAPER_ERROR_OF_WIDTH,
    WIDTHS,
    Plan,
    catalogue,
    run_experiment,
)
from equilibrium.experiments.tables import Column, aligned
from equilibrium.files import output_directory, plain
from equilibrium.training.certified import LOSSES, IntervalMargin, WorstCase

_SHOWN_SIZES = (1.5, 3.0, 5.0, 8.0)  # of the fast-gradient columns, the nearest of those that were tried
_RADIUS = 1.58  # Certified and attacked accuracy stand in the table for the attack size nearest to this one.
_BOX = 0.16  # Half the side of the boxes that an interval margin is trained for: .05 of the range of MNIST's pixels.
_EPOCHS = 20
_MODELS = ", ".join(catalogue(Plan(images=Images.MNIST, epochs=_EPOCHS, seed=0, small=False)))
_MARGINS = ", ".join(map(str, PAPER_ERROR_OF_MARGIN))
_WIDTHS = ", ".join(map(str, WIDTHS))
_DENSE_IMAGES = (Images.MNIST, Images.FASHION_MNIST)


def mnist_robustness(
    images: Annotated[str, "mnist, or fashion-mnist, which needs a folder with its files (default mnist)."] = "mnist",
    data_dir: Annotated[Path | None, "Folder with the files of the images (default: MNIST is downloaded)."] = None,
    checkpoints: Annotated[
        Path | None, "Folder with the authors' checkpoints and reported.json, to compare with (default none)."
    ] = None,
    models: Annotated[
        str | None,
        f"Names separated by commas (default: {_MODELS}); lipschitz-1-width-N, N = {_WIDTHS}, and "
        f"margin-C, C = {_MARGINS}, beside them.",
    ] = None,
    epochs: Annotated[int | None, f"Passes over the training images (default {_EPOCHS})."] = None,
    loss: Annotated[
        str, f"Loss of the training, of {', '.join(LOSSES)}; one that has no meaning for a model is refused."
    ] = "cross-entropy",
    trained_radius: Annotated[
        float | None,
        f"Radius that such a margin is trained for, in normalised pixels: ℓ2 (default {_RADIUS}), or ℓ∞ of "
        f"interval-margin (default {_BOX}).",
    ] = None,
    seed: Seed = 0,
    jobs: Jobs = 2,
    out: LastingOut = Path("out"),
    small: SmallDigits = False,
) -> None:
    """Train, certify and attack classifiers with Lipschitz bounds; continues where an earlier run was stopped."""
    if small and (data_dir is not None or images != Images.MNIST.value):
        raise InputError("--images and --data-dir name what is classified, and --small classifies digits: leave it out")
    named = {kind.value: kind for kind in _DENSE_IMAGES}
    if images not in named:
        raise InputError(f"--images must be {' or '.join(named)}, got {images!r}")
    if loss not in LOSSES:
        raise InputError(f"--loss has the unknown name {loss!r}; known are {', '.join(LOSSES)}")
    certified = issubclass(LOSSES[loss], WorstCase)
    if not certified and trained_radius is not None:
        raise InputError(f"--trained-radius is of a margin: leave it out with --loss {loss}")
    usual = _BOX if LOSSES[loss] is IntervalMargin else _RADIUS if certified else 0.0
    plan = Plan(
        images=Images.DIGITS if small else named[images],
        epochs=checks.whole_number("--epochs", (2 if small else _EPOCHS) if epochs is None else epochs),
        seed=checks.seed("--seed", seed),
        small=small,
        models=() if models is None else words("--models", models, example="lipschitz-1"),
        loss=loss,
        trained_radius=checks.number("--trained-radius", usual if trained_radius is None else trained_radius, low=0),
    )
    checks.whole_number("--jobs", jobs)
    folder = output_directory(out)
    results, times = run_experiment(
        plan, folder / "models", data_dir=data_dir, checkpoints=checkpoints, jobs=jobs, progress=True
    )
    results = plain(results)
    publish(folder, table(results), results, draws=_figures(results), timings=times, small=small)


def _reported(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the authors report, by the name of the model of ours that it is compared with."""
    return {CHECKPOINTS[name][1]: entry for name, entry in results.get("reported", {}).items()}


def _figures(results: Mapping[str, Any]) -> dict[str, Draw | None]:
    models, reported = results["models"], results.get("reported", {})
    lower = {name: (CHECKPOINTS[name][0], entry["lipschitz_lower_bound"]) for name, entry in reported.items()}
    paper = PAPER_ERROR if results["plan"]["images"] == Images.MNIST.name else None
    bounded = any(name.startswith("lipschitz-") and "width" not in name for name in models)
    certified = any("robustness" in model for model in models.values())
    tightness = on_axes(plot_tightness, models, heights=SQUARE, reported=lower)
    widths = {model["settings"]["hidden"] for model in models.values() if has_unit_bound(model)}
    reported_widths = None if paper is None else PAPER_ERROR_OF_WIDTH
    of_width = on_axes(plot_error_against_width, models, paper=reported_widths)
    return {
        "error-against-lipschitz-bound": on_axes(plot_error_against_bound, models, paper=paper) if bounded else None,
        "error-against-width": of_width if len(widths) > 1 else None,
        "certified-and-attained": tightness if certified else None,
        "error-under-attack": on_axes(plot_error_under_attack, models),
    }


def table(results: Mapping[str, Any]) -> str:
    """What every model does, beside what the paper reports, and whether any attack got inside a certified radius."""
    return "\n".join([_lipschitz_table(results), "", _attack_table(results)])


def paper_error(results: Mapping[str, Any], name: str) -> float | None:
    """The published test error in percent: of the published file, or else of the network in the paper's table."""
    reported = _reported(results).get(name)
    if reported is not None:  # error and lower bound are then of one network; the paper's table is about another one
        error: float = reported["test_error_percent"]
        return error
    if results["plan"]["images"] != Images.MNIST.name:
        return None
    if name.startswith("margin-"):
        return PAPER_ERROR_OF_MARGIN[int(name.removeprefix("margin-"))]
    if not name.startswith("lipschitz-"):
        return None
    model = results["models"][name]
    if "width" in name:
        return PAPER_ERROR_OF_WIDTH[model["settings"]["hidden"]]
    return PAPER_ERROR.get(model["lipschitz"]["built_in"])


def _lipschitz_table(results: Mapping[str, Any]) -> str:
    models, reported = results["models"], _reported(results)

    def inside(name: str) -> str | None:
        robustness = models[name].get("robustness")
        return None if robustness is None else f"{robustness['inside']} of {robustness['images']}"

    def share_of(whole: str, name: str) -> float | None:
        lipschitz = models[name]["lipschitz"]
        return lipschitz["attained"] / lipschitz[whole] if lipschitz.get(whole) is not None else None

    columns = (
        Column("model", str),
        Column("test error", lambda name: models[name]["test_error"], ".2f"),
        Column("paper", partial(paper_error, results), ".2f"),
        Column("attained", lambda name: models[name]["lipschitz"]["attained"], ".4g"),
        Column("paper's", lambda name: reported.get(name, {}).get("lipschitz_lower_bound"), ".4g"),
        Column("certified", lambda name: models[name]["lipschitz"].get("certified"), ".4g"),
        Column("ratio", partial(share_of, "certified"), ".3f"),
        Column("of γ", partial(share_of, "built_in"), ".3f"),
        Column("inside", inside),
    )
    return f"""{aligned(columns, list(models))}

test error: percent of the test images; attained: ratio of a pair of inputs, paper's: the lower bound found
there; ratio: attained/certified; of γ: attained/γ; inside: attacks that succeeded inside a certified radius,
of all test images.
"""


def _attack_table(results: Mapping[str, Any]) -> str:
    models, reported = results["models"], _reported(results)
    again = {CHECKPOINTS[name][1]: entry for name, entry in results.get("checkpoints", {}).items()}
    settings = next(iter(models.values()))["settings"]
    sizes = np.asarray(settings["allowed"])
    shown = sorted({_nearest(sizes, wanted) for wanted in _SHOWN_SIZES})
    near = _nearest(sizes, _RADIUS)

    def error(k: int, name: str) -> float:
        found: float = models[name]["fast_gradient"]["error_percent"][k]
        return found

    def theirs(name: str) -> str | None:
        """The reported errors, linear between the reported sizes."""
        paper = reported.get(name)
        if paper is None:
            return None
        return "/".join(f"{100 * np.interp(sizes[k], paper['fgm_epsilon'], paper['fgm_error']):.1f}" for k in shown)

    def excess(name: str) -> float | None:
        paper = reported.get(name)
        if paper is None:
            return None
        ours = np.interp(paper["fgm_epsilon"], sizes, models[name]["fast_gradient"]["error_percent"])
        return float(max(ours - 100 * np.asarray(paper["fgm_error"])))

    def attacked_again(name: str) -> str | None:
        errors = again[name]["fast_gradient"]["error_percent"] if name in again else None
        return None if errors is None else "/".join(f"{errors[k]:.1f}" for k in shown)

    def accuracy(kind: str, name: str) -> float | None:
        found: float | None = models[name]["robustness"][kind][near] if "robustness" in models[name] else None
        return found

    columns = (
        Column("model", str),
        *(Column(f"error at {sizes[k]:.3g}", partial(error, k), ".1f") for k in shown),
        Column("reported", theirs),
        Column("worse by", excess, ".1f"),
        Column("authors' by ours", attacked_again),
        Column(f"certified at {sizes[near]:.3g}", partial(accuracy, "certified_accuracy"), ".1f"),
        Column("strong", partial(accuracy, "attacked_accuracy"), ".1f"),
    )
    return f"""\
Fast-gradient error in percent, on the last {settings["attacked"]} test images, inputs clipped to the range of
the pixels:

{aligned(columns, list(models))}

worse by: the largest excess over the reported curve at its own sizes, in percentage points (negative: better
everywhere); authors' by ours: their checkpoint under our attack; certified, strong: accuracy in percent on
all test images at size {sizes[near]:.3g}, proved and under the strong attack."""


def _nearest(sizes: np.ndarray[Any, Any], wanted: float) -> int:
    return int(abs(sizes - wanted).argmin())
