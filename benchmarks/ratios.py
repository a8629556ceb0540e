"""All ratios of a folder with results of benchmarks on one page; with --before, those that are worse than there.

A ratio is the time of ours over that of something else, so that less is better: the median of the rounds with its
quartiles, whatever file named results.json holds it. With --before FOLDER each is compared with that of the same name
in the same file below that folder, measured on the same machine by the same clock; those that are worse by more than
--worse percent are printed with both spreads, and the exit code is 1.

    python benchmarks/ratios.py out                     # the page
    cp -r out before                                    # keep these results; measure again some day; then
    python benchmarks/ratios.py out --before before     # what has become worse since
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command_line

from contracting.errors import InputError
from equilibrium.experiments.timing import Spread, spread

MACHINE = ("platform", "processor", "cpus", "accelerator", "threads", "torch")
"""What of the environment must be equal where ratios are compared."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The ratios of one results.json, and on what they were measured."""

    ratios: dict[str, Spread]
    machine: dict[str, str]
    small: bool

    @classmethod
    def of(cls, content: dict[str, Any]) -> Results:
        environment, settings = content["environment"], content.get("settings", {})
        machine = {key: str(environment[key]) for key in MACHINE} | {"clock": str(settings.get("clock", "cpu"))}
        ratios = {name: (float(m), float(low), float(high)) for name, (m, low, high) in content["ratios"].items()}
        return cls(ratios=ratios, machine=machine, small=bool(settings.get("small")))


def read(folder: Path) -> dict[str, Results]:
    """The results below a folder that have ratios, by the path of their folder in it.

    Raises:
        InputError: if there are none, or one cannot be read.
    """
    found = {}
    for path in sorted(folder.rglob("results.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.get("ratios"):
                found[str(path.parent.relative_to(folder))] = Results.of(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} cannot be read ({type(error).__name__}: {error}); measure it again") from error
    if not found:
        raise InputError(f"no results.json below {folder} has ratios; run a benchmark with --out {folder}/NAME")
    return found


def page(found: dict[str, Results]) -> str:
    """Every ratio, below the machine that it was measured on."""
    lines: list[str] = []
    told = None
    for results in found.values():
        machine = ", ".join(f"{key} {value}" for key, value in results.machine.items())
        if machine != told:
            lines += ["", machine, "", "| ours / other, less is better | median (quartiles) |", "|---|---|"]
            told = machine
        note = " (small: says nothing about speed)" if results.small else ""
        lines += [f"| {name}{note} | {spread(*ratio)} |" for name, ratio in results.ratios.items()]
    return "\n".join(lines).lstrip() + "\n"


def compared(before: dict[str, Results], after: dict[str, Results], percent: float) -> tuple[str, int]:
    """What has become worse by more than so many percent, and how many ratios that are.

    Raises:
        InputError: if the machines differ, or nothing has the same name.
    """
    pairs = []
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        for key, value in old.machine.items():
            if new.machine[key] != value:
                raise InputError(
                    f"ratios compare on one machine by one clock only: {key} of {name} is {value} before and "
                    f"{new.machine[key]} after; measure both there"
                )
        pairs += [(key, old.ratios[key], new.ratios[key]) for key in old.ratios if key in new.ratios]
    if not pairs:
        raise InputError("no ratio has the same name before and after; run the same benchmarks with the same options")
    worse = [(new[0] / old[0], key, old, new) for key, old, new in pairs if new[0] > (1 + percent / 100) * old[0]]
    lines = [f"{len(pairs)} ratios compared, {len(worse)} worse by more than {percent:g} %"]
    if worse:
        lines += ["", "| ours / other, less is better | before | after | worse by | |", "|---|---|---|---|---|"]
    for factor, key, old, new in sorted(worse, reverse=True):
        note = "quartiles overlap: measure again" if new[1] <= old[2] else ""
        lines.append(f"| {key} | {spread(*old)} | {spread(*new)} | {100 * (factor - 1):.0f} % | {note} |")
    return "\n".join(lines) + "\n", len(worse)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=command_line.path, nargs="?", default=Path("out"), help="default out")
    parser.add_argument("--before", type=command_line.path, help="folder to compare with (default none: the page)")
    parser.add_argument("--worse", type=command_line.positive, default=15.0, help="percent (default 15)")
    given = parser.parse_args(arguments)
    after = read(given.folder)
    if given.before is None:
        print(page(after), end="")
        return
    text, worse = compared(read(given.before), after, given.worse)
    print(text, end="")
    if worse:
        sys.exit(1)


if __name__ == "__main__":
    command_line.run(main)
