"""One measurement of scaling.py."""

from __future__ import annotations

from dataclasses import dataclass

from equilibrium.experiments.timing import Times


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement; ``matrices`` and ``states`` are the memory in n × n matrices and in rows × n arrays."""

    size: int
    rows: int
    target: float
    way: str | None
    iterations: int
    residual: float
    setup_wall: float
    setup_cpu: float
    solve: Times
    memory: int

    @property
    def solve_wall(self) -> float:
        return self.solve.wall

    @property
    def solve_cpu(self) -> float:
        return self.solve.cpu

    @property
    def matrices(self) -> float:
        return self.memory / (8 * self.size**2)

    @property
    def states(self) -> float:
        return self.memory / (8 * self.size * self.rows)
