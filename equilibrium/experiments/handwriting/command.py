"""``handwriting``: motions learnt with and without a certified rate: errors, ends, pushes; killed, it continues."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from contracting import InputError, checks
from equilibrium.experiments.handwriting.figures import (
    draw_motions,
    draw_paths,
    plot_pushes,
)
from equilibrium.experiments.handwriting.models import Kind, MotionSettings
from equilibrium.experiments.handwriting.study import Results, run_motion
from equilibrium.experiments.options import LastingOut, Small, words
from equilibrium.experiments.publishing import on_axes, publish
from equilibrium.experiments.runner import Task, run_tasks
from equilibrium.experiments.tables import Column, aligned
from equilibrium.files import output_directory, plain
from equilibrium.training.motions import motion_names

_NOTES = """
test error: root mean square distance to the held-out demonstrations at equal times, and warped: mean distance
after the best alignment of times (millimetres, means over motions); arrived: random starts from which the motion
ends within 1 % of its size; left: distance, at the end of the motion, between a held-out motion and the same one
pushed by a fifth of its size at 0.3 (millimetres, the worst of all directions, and median over motions); proved:
models whose rate, certified by construction, the independent checker confirms after training; slowest: the smallest
rate between any two neighbouring times of any simulated pair, and sampled: of any Jacobian that was met, to compare
with the certified one (per duration); of tube: the largest share of the certified distance that was used."""


def handwriting(
    motions: Annotated[str | None, "Names separated by commas; default all thirty."] = None,
    rate: Annotated[float, "Certified contraction rate c, per duration of the motion."] = 3.0,
    iterations: Annotated[int | None, "Of the training of each model (default 250)."] = None,
    same_start: Annotated[
        bool, "Also an unconstrained model that begins with the field of the contracting one."
    ] = False,
    shown: Annotated[str | None, "Motion in the figures of one motion; default Sshape, or the first."] = None,
    seed: Annotated[int, "Of parameters and random starts."] = 0,
    jobs: Annotated[int, "Models at work at once, each in a process with one thread."] = 2,
    out: LastingOut = Path("out"),
    small: Small = False,
) -> None:
    """Learn handwritten motions by a contracting neural ODE and by unconstrained ones; continues what was begun."""
    names = _names(motions, small)
    kinds = tuple(kind for kind in Kind if same_start or kind is not Kind.SAME_START)
    chosen = _chosen(shown, names)
    settings = MotionSettings(
        motion=chosen,
        kind=Kind.CONTRACTING,
        rate=checks.positive_number("--rate", rate),
        iterations=checks.whole_number(
            "--iterations", (2 if small else 250) if iterations is None else iterations, low=2
        ),
        seed=checks.seed("--seed", seed),
    )
    if small:
        settings = replace(settings, neurons=6, steps=10, starts=6, horizon=2.0, pushes=4)
    checks.whole_number("--jobs", jobs)
    folder = output_directory(out)
    tasks = {
        (kind, name): Task(
            name=f"{name}-{kind.name.lower().replace('_', '-')}",
            settings=replace(settings, motion=name, kind=kind),
            run=run_motion,
        )
        for kind in kinds
        for name in names
    }
    outcome = run_tasks(list(tasks.values()), folder / "models", jobs=jobs, progress=True)
    results: Results = {kind: {name: outcome.results[tasks[kind, name].name] for name in names} for kind in kinds}
    publish(
        folder,
        f"{summary(results)}\n{_NOTES}\n\n{table(results)}",
        {"models": {kind.name: _without_paths(found) for kind, found in results.items()}},
        draws={
            "handwriting-push": partial(draw_paths, results, chosen, "pushed"),
            "handwriting-starts": partial(draw_paths, results, chosen, "starts"),
            "handwriting-decay": on_axes(plot_pushes, results),
        },
        wide={"handwriting-motions": partial(draw_motions, results)},
        timings=outcome.seconds,
        small=small,
    )


def _names(motions: str | None, small: bool) -> tuple[str, ...]:
    known = motion_names()
    names = known if motions is None else words("--motions", motions, example="Sshape,GShape")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"--motions has {unknown[0]!r}, which there is not; there are {', '.join(known)}")
    return ("Sshape",) if small and motions is None else names


def _chosen(shown: str | None, names: Sequence[str]) -> str:
    if shown is None:
        return "Sshape" if "Sshape" in names else names[0]
    if shown not in names:
        raise InputError(f"--shown must be one of the motions that are learnt, {', '.join(names)}, got {shown!r}")
    return shown


def _without_paths(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in plain(entry).items() if key != "paths"} for name, entry in found.items()
    }


def summary(results: Results) -> str:
    """One row for each kind of model, over all motions."""

    def over(reduce: Callable[[list[float]], float], *keys: str) -> Callable[[Kind], float | None]:
        def value(kind: Kind) -> float | None:
            entries: list[Any] = list(results[kind].values())
            for key in keys:
                entries = [None if entry is None else entry.get(key) for entry in entries]
            return None if None in entries else reduce(entries)

        return value

    def arrived(kind: Kind) -> str:
        entries = results[kind].values()
        return f"{sum(e['arrived'] for e in entries)} of {sum(e['settings']['starts'] for e in entries)}"

    def proved(kind: Kind) -> str | None:
        margins = [entry["rate"]["margin"] for entry in results[kind].values() if "rate" in entry]
        return f"{sum(margin > 0 for margin in margins)} of {len(margins)}" if margins else None

    columns = (
        Column("model", lambda kind: kind.value),
        Column("parameters", over(max, "parameters"), ".0f"),
        Column("train error", over(statistics.fmean, "rms", "trained"), ".2f"),
        Column("test error", over(statistics.fmean, "rms", "held out"), ".2f"),
        Column("train warped", over(statistics.fmean, "warped", "trained"), ".2f"),
        Column("test warped", over(statistics.fmean, "warped", "held out"), ".2f"),
        Column("arrived", arrived),
        Column("left", over(statistics.median, "push", "left"), ".2f"),
        Column("certified", over(min, "rate", "certified"), ".3g"),
        Column("proved", proved),
        Column("slowest", over(min, "rate", "slowest"), ".3f"),
        Column("sampled", over(min, "rate", "sampled"), ".3f"),
        Column("of tube", over(max, "share of tube"), ".3f"),
    )
    return aligned(columns, list(results))


def table(results: Results) -> str:
    """One row for each motion, the kinds of models side by side."""

    def each(form: str, *keys: str) -> Callable[[str], str]:
        def value(name: str) -> str:
            found = []
            for by_name in results.values():
                entry: Any = by_name[name]
                for key in keys:
                    entry = entry[key]
                found.append("∞" if entry is None else format(entry, form))
            return " / ".join(found)

        return value

    columns = (
        Column("motion", str),
        Column("test error", each(".2f", "rms", "held out")),
        Column("test warped", each(".2f", "warped", "held out")),
        Column("arrived", each("d", "arrived")),
        Column("left", each(".2f", "push", "left")),
        Column("slowest", lambda name: results[Kind.CONTRACTING][name]["rate"]["slowest"], ".3f"),
    )
    names = list(results[Kind.CONTRACTING])
    return f"By motion, {' / '.join(kind.value for kind in results)}:\n\n{aligned(columns, names)}"
