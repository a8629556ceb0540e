"""How fast the explorer answers a slider: CPU and wall time of its first answer, its picture, and what follows.

For every example of the page, side by side: the answer that is shown at once, its picture and tables as they are sent
to the browser, and the semidefinite programs, bounds and solvers that the page adds afterwards beside the next answer.
A median with the fastest and the slowest round in milliseconds. ``--small`` takes seconds.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import command_line
import torch

from equilibrium.experiments.timing import Times, in_turn, timer
from equilibrium.explorer.answer import Answer, answer, growing
from equilibrium.explorer.page import picture, tables
from equilibrium.explorer.setting import EXAMPLES, Setting
from equilibrium.files import output_directory


def shown(found: Answer) -> str:
    """What the browser gets."""
    return picture(found) + tables(found)


def at_once(setting: Setting) -> str:
    """All that stands between a slider and what is seen."""
    return shown(answer(setting))


def measured(setting: Setting, rounds: int) -> dict[str, Times]:
    """The answer with its picture, the picture alone, and what follows."""
    first = answer(setting)
    people: dict[str, Callable[[], object]] = {
        "at once": partial(at_once, setting),
        "picture": partial(shown, first),
        "afterwards": lambda: list(growing(first)),
    }
    return in_turn({name: timer(run) for name, run in people.items()}, rounds=rounds, shortest=0.01, budget=5.0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=command_line.whole, default=9)
    parser.add_argument("--out", type=command_line.path, default=Path("out") / "explorer")
    parser.add_argument("--small", action="store_true", help="two examples, one round")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder, examples = output_directory(options.out), dict(list(EXAMPLES.items())[:: 4 if options.small else 1])
    lines = ["| example | part | CPU (ms) | wall (ms) |", "|---|---|---|---|"]
    times = {}
    for name, setting in examples.items():
        found = measured(setting, 1 if options.small else options.rounds)
        lines += [f"| {name} | {part} | {t.text('cpu', 1e-3)} | {t.text('wall', 1e-3)} |" for part, t in found.items()]
        times[name] = {part: vars(t) for part, t in found.items()}
    command_line.finish(folder, "\n".join(lines) + "\n", times=times)


if __name__ == "__main__":
    command_line.run(main)
