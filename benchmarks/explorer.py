"""How fast the explorer answers a slider: CPU and wall time of its first answer, its picture, and what follows.

For every example of the page, side by side: the answer that is shown at once, its picture and tables as they are sent
to the browser, and the semidefinite programs, bounds and solvers that the page adds afterwards beside the next answer.
The answer is also timed while such pieces of another one are being made. A median with the quartiles of the
rounds in milliseconds, the CPU time of all threads. ``--small`` takes seconds.
"""

import argparse
import threading
import time
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


def meanwhile(setting: Setting, first: Answer, repeats: int) -> tuple[float, float]:
    """Wall and CPU seconds of the same while another answer grows, which then stops as it does on the page."""
    walls = cpus = 0.0
    for repeat in range(repeats):
        stop = threading.Event()

        def grow(stop: threading.Event = stop) -> None:
            for _ in growing(first):
                if stop.is_set():
                    return

        other = threading.Thread(target=grow)
        other.start()
        time.sleep(0.1 + 0.2 * (repeat % 4))  # in the midst of another piece each time
        wall, cpu = time.perf_counter(), time.process_time()
        stop.set()
        at_once(setting)
        walls, cpus = walls + time.perf_counter() - wall, cpus + time.process_time() - cpu
        other.join()
    return walls, cpus


def measured(setting: Setting, rounds: int) -> dict[str, Times]:
    """The answer with its picture, the picture alone, and what follows."""
    first = answer(setting)
    people: dict[str, Callable[[], object]] = {
        "at once": partial(at_once, setting),
        "picture": partial(shown, first),
        "afterwards": lambda: list(growing(first)),
    }
    timers = {name: timer(run) for name, run in people.items()}
    timers["at once, meanwhile"] = partial(meanwhile, setting, first)
    return in_turn(timers, rounds=rounds, shortest=0.01, budget=5.0)


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
