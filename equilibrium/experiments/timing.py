"""Side by side: everybody is timed in turn, A B C B C A …, so that what disturbs one round disturbs all of it.

Each round has another order, the same in every run: somebody who always came after the same other would always find the
machine as that one leaves it.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

_WARM_UP = 5  # Repeated runs follow a fifth as many unmeasured ones, for a predecessor leaves its own cache and clock.

Timer = Callable[[int], tuple[float, float]]  # repeats ↦ wall and CPU seconds of all of them


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a run: medians over the rounds, and the fastest and the slowest round.

    Attributes:
        wall: median wall time.
        cpu: median time of the processor.
        wall_range: of the fastest and of the slowest round.
        cpu_range: the same.
        rounds: how many there were.
        repeats: runs of a round.
    """

    wall: float
    cpu: float
    wall_range: tuple[float, float]
    cpu_range: tuple[float, float]
    rounds: int
    repeats: int

    def per(self, share: int) -> Times:
        """The same times of one part of a run that consists of so many."""
        low, high = self.wall_range
        less, more = self.cpu_range
        wall_range, cpu_range = (low / share, high / share), (less / share, more / share)
        return replace(self, wall=self.wall / share, cpu=self.cpu / share, wall_range=wall_range, cpu_range=cpu_range)

    def text(self, clock: str, unit: float) -> str:
        """Median, fastest and slowest by one of the two clocks, in units of so many seconds."""
        return spread(getattr(self, clock) / unit, *(value / unit for value in getattr(self, f"{clock}_range")))


def spread(middle: float, low: float, high: float) -> str:
    """A time with the fastest and the slowest of its rounds, three digits each; they are left out where they agree."""
    median, fastest, slowest = (f"{value:.3g}" for value in (middle, low, high))
    return median if fastest == slowest else f"{median} ({fastest}–{slowest})"


def timer(run: Callable[[], object]) -> Timer:
    """The timer of something that runs in this process."""

    def measure(repeats: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            run()
        return time.perf_counter() - wall, time.process_time() - cpu

    return measure


def in_turn(timers: Mapping[str, Timer], *, rounds: int, shortest: float, budget: float) -> dict[str, Times]:
    """Medians of several rounds, each in another order; before a measurement of many runs a few are not counted.

    Args:
        timers: who takes part.
        rounds: how many rounds; whoever has used up the budget leaves after the third.
        shortest: seconds that a measurement lasts at least, by repetition.
        budget: seconds for each; whoever needs more for a single run is measured in that run only.
    """
    return {name: _summary(*found) for name, found in rounds_in_turn(timers, rounds, shortest, budget).items()}


def ratios_in_turn(
    timers: Mapping[str, Timer], to: str, *, rounds: int, shortest: float, clock: str
) -> dict[str, tuple[float, float, float]]:
    """Of everybody's time over that of ``to`` in the same round: the median, the smallest and the largest.

    What disturbs a whole round is in both times, so that ratios are far steadier than times.

    Args:
        timers: who takes part.
        to: the name of whom the others are compared with.
        rounds: how many rounds.
        shortest: seconds that a measurement lasts at least, by repetition.
        clock: wall or cpu.
    """
    which = ("wall", "cpu").index(clock)
    seen = {name: found[0] for name, found in rounds_in_turn(timers, rounds, shortest, math.inf).items()}
    ratios = {
        name: [own[which] / other[which] for own, other in zip(entries, seen[to], strict=True)]
        for name, entries in seen.items()
    }
    return {name: (statistics.median(found), min(found), max(found)) for name, found in ratios.items()}


def rounds_in_turn(
    timers: Mapping[str, Timer], rounds: int, shortest: float, budget: float
) -> dict[str, tuple[list[tuple[float, float]], int]]:
    """Wall and CPU seconds of a run in every round, and how many runs a round has; as ``in_turn``."""
    first = {name: measure(1) for name, measure in timers.items()}  # also the warm-up
    for name, measure in timers.items():  # a cold run says too much, and so would be repeated too little
        if first[name][0] <= budget:
            first[name] = min(first[name], measure(1))
    repeats = {name: max(1, math.ceil(shortest / max(wall, 1e-9))) for name, (wall, _) in first.items()}
    spent = dict.fromkeys(timers, 0.0)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in timers}
    for name in [name for name, (wall, _) in first.items() if wall > budget]:
        seen[name].append(first[name])
    for number in range(rounds):
        for name in random.Random(number).sample(list(timers), len(timers)):
            measure = timers[name]
            if first[name][0] > budget:
                continue
            if number < 3 or spent[name] < budget:
                if repeats[name] > 1:
                    measure(math.ceil(repeats[name] / _WARM_UP))
                wall, cpu = measure(repeats[name])
                seen[name].append((wall / repeats[name], cpu / repeats[name]))
                spent[name] += wall
    return {name: (entries, repeats[name]) for name, entries in seen.items()}


def _summary(entries: list[tuple[float, float]], repeats: int) -> Times:
    walls, cpus = zip(*entries, strict=True)
    return Times(
        wall=statistics.median(walls),
        cpu=statistics.median(cpus),
        wall_range=(min(walls), max(walls)),
        cpu_range=(min(cpus), max(cpus)),
        rounds=len(entries),
        repeats=repeats,
    )
