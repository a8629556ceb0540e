"""What solve_time.py measured of one network, batch and goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from equilibrium.experiments.timing import Spread, Times

DEFAULT, BARE, CHECKED = "default", "bare", "bare-with-checks"
"""Names of contestants: the default solver, and its bare products without and with those of its checks."""


@dataclass(kw_only=True)
class Contestant:
    """One way to solve one case; ``failure`` says why it does not count."""

    name: str
    residual: float | None = None
    iterations: int | None = None
    setting: Any = None
    setup_seconds: float | None = None
    failure: str | None = None
    times: Times | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, a number of rows, a precision and a residual, with everybody who tried."""

    network: str
    rows: int
    dtype: str
    target: float
    contestants: dict[str, Contestant]

    def seconds(self, name: str, clock: str) -> float | None:
        """Median time of a solve, or None where it failed."""
        times = self.times(name)
        return None if times is None else getattr(times, clock)

    def times(self, name: str) -> Times | None:
        """Times of a solve, or None where it failed."""
        entry = self.contestants.get(name)
        return None if entry is None or entry.failure else entry.times

    def ratio(self, name: str, clock: str) -> float | None:
        """Its time over that of the default solver; for the bare products, the other way round; the median."""
        found = self.spread(name, clock)
        return None if found is None else found[0]

    def spread(self, name: str, clock: str) -> Spread | None:
        """The same with its quartiles."""
        mine, its = self.times(DEFAULT), self.times(name)
        if mine is None or its is None:
            return None
        return mine.over(its, clock) if name in (BARE, CHECKED) else its.over(mine, clock)

    def ours(self, clock: str) -> dict[str, Spread]:
        """The time of the default solver over that of everybody who got there, by names for ``ratios.py``."""
        where = f"solve, {self.network}, {self.rows} rows, {self.dtype}, {self.target:g}"
        mine = self.times(DEFAULT)
        found = {name: self.times(name) for name in self.contestants if name != DEFAULT}
        return {
            f"{where}: default / {name}": mine.over(times, clock)
            for name, times in found.items()
            if mine is not None and times is not None
        }
