"""``local-certificates``: certified accuracy around every image, beside one global constant and an attack."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from contracting import InputError, checks
from equilibrium.experiments.local_certificates.figures import draw_local_certificates
from equilibrium.experiments.local_certificates.study import LocalSettings, local_certificates_of, on_digits, published
from equilibrium.experiments.options import Jobs, LastingOut, SmallDigits, numbers, words
from equilibrium.experiments.publishing import publish
from equilibrium.experiments.tables import Column, aligned
from equilibrium.files import output_directory, plain


def local_certificates(
    checkpoints: Annotated[
        Path | None, "Folder with the authors' checkpoints (default none, which only --small can do without)."
    ] = None,
    data_dir: Annotated[Path | None, "Folder with the MNIST files (default: downloaded)."] = None,
    networks: Annotated[str | None, "Names of checkpoints, by commas (default all five)."] = None,
    radii: Annotated[str, "ℓ2 radii in normalised pixels, by commas."] = "1.54",
    count: Annotated[int | None, "Test images, the first ones (default 10000)."] = None,
    jobs: Jobs = 2,
    out: LastingOut = Path("out"),
    small: SmallDigits = False,
) -> None:
    """Prove which test images keep their class within a radius, by local constants; continues where it was stopped."""
    sizes = tuple(sorted(numbers("--radii", radii, example="0.5,1.54", high=1e6)))
    images = checks.whole_number("--count", (60 if small else 10_000) if count is None else count)
    checks.whole_number("--jobs", jobs)
    if small and not (checkpoints is None and data_dir is None and networks is None):
        raise InputError("--small trains on digits: leave --checkpoints, --data-dir and --networks out")
    if not small and checkpoints is None:
        raise InputError("--checkpoints must name the folder of the authors' files, or take --small for digits")
    settings = on_digits(sizes, images) if small else _chosen(published(sizes, images), networks)
    folder = output_directory(out)
    results, times = local_certificates_of(
        settings, folder / "networks", data_dir=data_dir, checkpoints=checkpoints, jobs=jobs, progress=True
    )
    results = plain(results)
    draws = {"local-certificates": partial(draw_local_certificates, results)}
    publish(folder, table(results, times), {"networks": results}, draws=draws, timings=times, small=small)


def _chosen(settings: list[LocalSettings], names: str | None) -> list[LocalSettings]:
    if names is None:
        return settings
    known = {each.name: each for each in settings}
    chosen = words("--networks", names, example="lben_w80")
    for name in chosen:
        if name not in known:
            raise InputError(f"--networks has the unknown name {name!r}; known are {', '.join(known)}")
    return [known[name] for name in chosen]


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
        Column("attacked", of("attacked"), ".2f"),
        Column("inside", lambda row: str(results[row[0]]["inside"])),
        Column("s/image, one run", seconds, ".3f"),
    )
    return f"""{aligned(columns, rows)}

global, local: percent of the images whose class is proved to stay within the radius, by one constant for each pair of
classes and by constants of the surroundings of each image; attacked: percent that a strong attack has not fooled;
inside: attacks that succeeded within a proved radius, of which there are none; s/image: mean wall
time in the one run, of all radii and the attack together."""
