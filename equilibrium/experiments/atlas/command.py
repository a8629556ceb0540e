"""``atlas``: six known systems, and for each the largest ball over which contraction is proved."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from contracting.errors import InputError
from equilibrium.experiments.atlas.figures import draw_portraits, draw_rates
from equilibrium.experiments.atlas.study import COLUMNS, Entry, explore
from equilibrium.experiments.atlas.systems import KnownSystem, known_systems
from equilibrium.experiments.options import Out, Small, Threads, words
from equilibrium.experiments.publishing import publish, working_in
from equilibrium.experiments.tables import markdown

_ALL = "van-der-pol,fitzhugh-nagumo,toggle-switch,lotka-volterra,kuramoto,trained-spiral"


def atlas(
    systems: Annotated[str, "Systems by name, separated by commas."] = _ALL,
    threads: Threads = 1,
    out: Out = Path("out"),
    small: Small = False,
) -> None:
    """Six known systems in the plane: the largest ball proved to contract, beside what a dense sample allows."""
    makers = known_systems(small=small)
    names = words("--systems", systems, example="van-der-pol,kuramoto")
    for name in names:
        if name not in makers:
            raise InputError(f"--systems has no {name!r}; there are {', '.join(makers)}")
    with working_in(out, threads=threads) as folder:
        entries = [_explored(makers[name](), small) for name in names]
        publish(
            folder,
            markdown(COLUMNS, entries),
            {"systems": {name: _numbers(entry) for name, entry in zip(names, entries, strict=True)}},
            wide={"atlas": partial(draw_portraits, entries), "atlas-rates": partial(draw_rates, entries)},
            table="table.md",
            timings={name: entry.seconds for name, entry in zip(names, entries, strict=True)},
            small=small,
        )


def _explored(system: KnownSystem, small: bool) -> Entry:
    entry = explore(system, small=small)
    print(f"{system.title}: {entry.found}\n", flush=True)
    return entry


def _numbers(entry: Entry) -> dict[str, object]:
    record = entry.found.certificate
    return {
        "source": entry.system.source,
        "equilibrium": entry.found.ball.centre.tolist(),
        "metric": entry.found.ball.metric.tensors()[0].tolist(),
        "proved_radius": entry.found.radius,
        "sampled_radius": entry.sampled,
        "ratio": entry.share,
        "boxes": record.boxes,
        "radii": entry.profile.radii.tolist(),
        "certified_rates": entry.profile.certified.tolist(),
        "sampled_rates": entry.profile.sampled.tolist(),
    }
