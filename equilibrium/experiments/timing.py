"""Side by side: everybody is timed in turn, A B C B C A …, so that what disturbs one round disturbs all of it.

Each round has another order, the same in every run: somebody who always came after the same other would always find the
machine as that one leaves it.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

_WARM_UP = 5  # Repeated runs follow a fifth as many unmeasured ones, for a predecessor leaves its own cache and clock.

Timer = Callable[[int], tuple[float, float]]  # repeats ↦ wall and CPU seconds of all of them


Spread = tuple[float, float, float]  # a median with the lower and the upper quartile


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a run in each round.

    Attributes:
        walls: wall time.
        cpus: time of the processor.
        repeats: runs of a round, whose mean counts.
    """

    walls: tuple[float, ...]
    cpus: tuple[float, ...]
    repeats: int

    @property
    def wall(self) -> float:
        """Median wall time."""
        return statistics.median(self.walls)

    @property
    def cpu(self) -> float:
        """Median time of the processor."""
        return statistics.median(self.cpus)

    def per(self, share: int) -> Times:
        """The same times of one part of a run that consists of so many."""
        walls, cpus = (tuple(value / share for value in values) for values in (self.walls, self.cpus))
        return replace(self, walls=walls, cpus=cpus)

    def over(self, other: Times, clock: str) -> Spread:
        """The ratio to the other's time in the same round: what disturbs a whole round is in both, and in no ratio."""
        own, others = (getattr(times, f"{clock}s") for times in (self, other))
        return quartiles([mine / its for mine, its in zip(own, others, strict=False)])  # one may have left earlier

    def text(self, clock: str, unit: float) -> str:
        """Median and quartiles by one of the two clocks, in units of so many seconds."""
        return spread(*quartiles([value / unit for value in getattr(self, f"{clock}s")]))


def quartiles(values: Sequence[float]) -> Spread:
    """The median, and the quartiles between which half of the values are."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def spread(middle: float, low: float, high: float) -> str:
    """A median with its quartiles, three digits each; they are left out where they agree."""
    median, lower, upper = (f"{value:.3g}" for value in (middle, low, high))
    return median if lower == upper else f"{median} ({lower}–{upper})"


def timer(run: Callable[[], object]) -> Timer:
    """The timer of something that runs in this process."""

    def measure(repeats: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            run()
        return time.perf_counter() - wall, time.process_time() - cpu

    return measure


def in_turn(timers: Mapping[str, Timer], *, rounds: int, shortest: float, budget: float) -> dict[str, Times]:
    """Times of several rounds, each in another order; before a measurement of many runs a few are not counted.

    Args:
        timers: who takes part.
        rounds: how many rounds; whoever has used up the budget leaves after the third.
        shortest: seconds that a measurement lasts at least, by repetition.
        budget: seconds for each; whoever needs more for a single run is measured in that run only.
    """
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
    return {
        name: Times(walls=tuple(w for w, _ in entries), cpus=tuple(c for _, c in entries), repeats=repeats[name])
        for name, entries in seen.items()
    }


def ratios_in_turn(
    timers: Mapping[str, Timer], to: str, *, rounds: int, shortest: float, clock: str
) -> dict[str, Spread]:
    """Of everybody's time over that of ``to``; arguments as of ``in_turn`` and ``Times.over``."""
    times = in_turn(timers, rounds=rounds, shortest=shortest, budget=math.inf)
    return {name: own.over(times[to], clock) for name, own in times.items()}
