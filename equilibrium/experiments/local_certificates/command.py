"""``local-certificates``: certified accuracy around every image, beside one global constant and an attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from contracting import InputError, checks
from equilibrium.experiments.local_certificates.figures import draw_local_certificates
from equilibrium.experiments.local_certificates.study import (
    LocalSettings,
    local_certificates_of,
    on_digits,
    published,
    trained_before,
)
from equilibrium.experiments.options import Jobs, LastingOut, SmallDigits, numbers, words
from equilibrium.experiments.publishing import publish
from equilibrium.experiments.tables import Column, aligned
from equilibrium.files import output_directory, plain


def local_certificates(
    checkpoints: Annotated[
        Path | None, "Folder with the authors' checkpoints (default none, which only --small can do without)."
    ] = None,
    data_dir: Annotated[Path | None, "Folder with the MNIST files (default: downloaded)."] = None,
    networks: Annotated[
        str | None,
        "Names of checkpoints and folders of models that mnist-robustness has trained, such as out/models/perceptron, "
        "by commas (default all five checkpoints).",
    ] = None,
    radii: Annotated[str, "ℓ2 radii in normalised pixels, by commas."] = "1.54",
    count: Annotated[int | None, "Test images, the first ones (default 10000)."] = None,
    targeted: Annotated[
        int, "Steps of an attack on every other class within what is proved (default 0: none; soundness: 500)."
    ] = 0,
    restarts: Annotated[int, "How often that attack begins anew in these steps (default 9)."] = 9,
    jobs: Jobs = 2,
    out: LastingOut = Path("out"),
    small: SmallDigits = False,
) -> None:
    """Prove which test images keep their class within a radius, by local constants; continues where it was stopped."""
    sizes = tuple(sorted(numbers("--radii", radii, example="0.5,1.54", high=1e6)))
    images = checks.whole_number("--count", (60 if small else 10_000) if count is None else count)
    checks.whole_number("--jobs", jobs)
    checks.whole_number("--restarts", restarts, low=0)
    checks.whole_number("--targeted", targeted, low=0)
    if 0 < targeted <= restarts:
        raise InputError(f"--targeted must be more than --restarts, {restarts}, or 0, got {targeted}")
    if small and not (checkpoints is None and data_dir is None and networks is None):
        raise InputError("--small trains on digits: leave --checkpoints, --data-dir and --networks out")
    models: dict[str, Path] = {}
    settings = on_digits(sizes, images) if small else _chosen(sizes, images, networks, models)
    if checkpoints is None and any(each.model is None and not each.trained for each in settings):
        raise InputError("--checkpoints must name the folder of the authors' files, or take --small for digits")
    settings = [replace(each, targeted=targeted, restarts=restarts) for each in settings]
    folder = output_directory(out)
    results, times = local_certificates_of(
        settings,
        folder / "networks",
        data_dir=data_dir,
        checkpoints=checkpoints,
        models=models,
        jobs=jobs,
        progress=True,
    )
    results = plain(results)
    draws = {"local-certificates": partial(draw_local_certificates, results)}
    publish(folder, table(results, times), {"networks": results}, draws=draws, timings=times, small=small)


def _chosen(
    radii: tuple[float, ...], count: int, names: str | None, models: dict[str, Path]
) -> list[LocalSettings]:
    """The settings of the networks; ``models`` is told the folders of those that mnist-robustness has trained."""
    known = {each.name: each for each in published(radii, count)}
    chosen = tuple(known) if names is None else words("--networks", names, example="lben_w80")
    found = []
    for name in chosen:
        if name in known:
            found.append(known[name])
        elif (folder := Path(name)).is_dir():
            found.append(trained_before(folder, radii, count))
            models[found[-1].name] = folder.resolve()
        else:
            raise InputError(
                f"--networks has the unknown name {name!r}; known are {', '.join(known)}, and folders of models of "
                "mnist-robustness"
            )
    return found


def table(results: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    """A line for each network and radius."""
    rows = [(name, k) for name, found in results.items() for k in range(len(found["settings"]["radii"]))]

    def of(key: str) -> Any:
        return lambda row: results[row[0]][key][row[1]]

    def seconds(row: tuple[str, int]) -> float:
        spent = sum(time for step, time in times[row[0]].items() if step.startswith("images"))
        return spent / results[row[0]]["images"]

    columns = (
        Column("network", lambda row: row[0]),
        Column("radius", lambda row: results[row[0]]["settings"]["radii"][row[1]], ".3g"),
        Column("accuracy", lambda row: results[row[0]]["accuracy"], ".2f"),
        Column("global", of("by_global"), ".2f"),
        Column("local", of("by_local"), ".2f"),
        Column("complete", of("complete"), ".2f"),
        Column("refuted", of("refuted"), ".2f"),
        Column("attacked", of("attacked"), ".2f"),
        Column("inside", lambda row: str(results[row[0]]["inside"])),
        Column("s/image, one run", seconds, ".3f"),
    )
    return f"""{aligned(columns, rows)}

global, local: percent of the images whose class is proved to stay within the radius, by one constant for each pair of
classes and by constants of the surroundings of each image; complete: the same with branch and bound for what is left
open; refuted: percent for which a counterexample was found on the way; attacked: percent that a strong attack has not
fooled; inside: attacks that succeeded within a proved radius, each of which refutes a proof; s/image: mean wall time in
the one run, of all radii and the attack together.{_attacked(results)}"""


def _attacked(results: Mapping[str, Any]) -> str:
    """What an attack on every other class reached within the proved radii; nothing where there was none."""
    found = {name: result["targeted"] for name, result in results.items() if result["targeted"] is not None}
    if not found:
        return ""
    settings = next(iter(results.values()))["settings"]
    columns = (
        Column("network", str),
        Column("images", lambda name: str(found[name]["images"])),
        Column("pairs", lambda name: str(found[name]["pairs"])),
        Column("fooled", lambda name: str(found[name]["flipped"])),
        Column("below", lambda name: str(found[name]["below"])),
    )
    return f"""

Attacked inside what is proved, every other class of every image by {settings["targeted"]} steps of projected gradient
in {settings["restarts"] + 1} starts, each image within its largest proved radius:

{aligned(columns, list(found))}

pairs: of an image and another class; fooled: images of which another class leads somewhere inside; below: pairs with a
smaller lead somewhere inside than is proved. Any of them refutes a proof."""
