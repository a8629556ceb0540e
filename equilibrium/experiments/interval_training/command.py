"""``interval-training``: certified accuracy in boxes of pixels, of networks trained as usual and for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from contracting import InputError, checks
from equilibrium.experiments.interval_training.figures import draw_interval_training
from equilibrium.experiments.interval_training.study import BoxSettings, interval_training_of
from equilibrium.experiments.options import Jobs, LastingOut, Seed, SmallDigits, numbers, words
from equilibrium.experiments.publishing import publish
from equilibrium.experiments.robustness.models import Images
from equilibrium.experiments.tables import Column, aligned
from equilibrium.files import output_directory, plain
from equilibrium.training.certified import LOSSES

_TRAINED_AS = {"cross-entropy": "as usual", "interval-margin": "interval loss", "certified-margin": "certified margin"}


def interval_training(
    data_dir: Annotated[Path | None, "Folder with the MNIST files (default: downloaded)."] = None,
    neurons: Annotated[str | None, "Neurons of the networks, by commas (default 40,87)."] = None,
    losses: Annotated[str, f"Losses of the training, by commas, of {', '.join(LOSSES)}."] = (
        "cross-entropy,interval-margin"
    ),
    radii: Annotated[str, "Half the sides of the boxes, in pixels from 0 to 1, by commas."] = "0.05,0.1",
    epochs: Annotated[int | None, "Passes over the training images (default 8)."] = None,
    count: Annotated[int | None, "Test images to attack, the first ones (default 500)."] = None,
    local: Annotated[int | None, "Images of these to search local constants of (default 50)."] = None,
    seed: Seed = 0,
    jobs: Jobs = 2,
    out: LastingOut = Path("out"),
    small: SmallDigits = False,
) -> None:
    """Train with the interval loss and as usual, prove and attack boxes of pixels; continues where it was stopped."""
    if small and data_dir is not None:
        raise InputError("--data-dir is the folder of MNIST, and --small classifies digits: leave one of them out")
    sizes = words("--neurons", ("10" if small else "40,87") if neurons is None else neurons, example="40,87")
    chosen = words("--losses", losses, example="cross-entropy,interval-margin")
    for name in chosen:
        if name not in LOSSES:
            raise InputError(f"--losses has the unknown name {name!r}; known are {', '.join(LOSSES)}")
    boxes = tuple(sorted(numbers("--radii", radii, example="0.05,0.1", high=1.0)))
    settings = [
        BoxSettings(
            name=f"{size} neurons, {_TRAINED_AS[loss]}" + ("" if radius == 0 else f" {radius:g}"),
            neurons=checks.whole_number("--neurons", int(size) if size.isdigit() else size),
            loss=loss,
            trained_radius=radius,
            radii=boxes,
            images=Images.DIGITS if small else Images.MNIST,
            epochs=checks.whole_number("--epochs", (4 if small else 8) if epochs is None else epochs),
            batch_size=40 if small else 500,
            learning_rate=0.01,
            share=1.0,
            epsilon=1.0,
            count=checks.whole_number("--count", (20 if small else 500) if count is None else count),
            looked_at=checks.whole_number("--local", (20 if small else 50) if local is None else local),
            attack_steps=10 if small else 40,
            restarts=1 if small else 2,
            passes=1 if small else 2,
            seed=checks.seed("--seed", seed),
        )
        for size in sizes
        for loss in chosen
        for radius in ((0.0,) if loss == "cross-entropy" else boxes)
    ]
    checks.whole_number("--jobs", jobs)
    folder = output_directory(out)
    results, times = interval_training_of(
        settings, folder / "networks", data_dir=data_dir, jobs=jobs, progress=True
    )
    results = plain(results)
    draws = {"interval-training": partial(draw_interval_training, results)}
    publish(folder, table(results), {"networks": results}, draws=draws, timings=times, small=small)


def table(results: Mapping[str, Any]) -> str:
    """A line for each network and radius."""
    rows = [(name, k) for name, found in results.items() for k in range(len(found["settings"]["radii"]))]

    def of(key: str) -> Any:
        return lambda row: results[row[0]][key][row[1]]

    columns = (
        Column("network, training", lambda row: row[0]),
        Column("ε", lambda row: results[row[0]]["settings"]["radii"][row[1]], ".3g"),
        Column("accuracy", lambda row: results[row[0]]["accuracy"], ".2f"),
        Column("by boxes", of("by_boxes"), ".2f"),
        Column("attacked", of("attacked"), ".1f"),
        Column("of few: certified", of("proved"), ".1f"),
        Column("attacked", of("attacked_of_these"), ".1f"),
        Column("inside", lambda row: str(of("inside")(row))),
    )
    first = next(iter(results.values()))
    return f"""{aligned(columns, rows)}

ε: half the side of the box, in pixels from 0 to 1; accuracy, by boxes: percent of all {first["images"]} test images
that are right, and whose class is proved by boxes of equilibria alone (– where there are none); attacked: percent of
the first {first["attacked_images"]} that a projected gradient does not fool; of few: of the first {first["looked_at"]},
percent certified by boxes or by local constants, and not fooled; inside: attacks that succeeded within a proved box,
each of which refutes a proof."""
