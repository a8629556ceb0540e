"""Two methods, one after the other: rows that the first has not solved after so many steps go on with the second."""

from __future__ import annotations

from dataclasses import dataclass

from contracting.loop.method import Family, Iteration, Method
from contracting.loop.records import Stop
from contracting.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Relay(Method):
    """``first`` for ``after`` steps, then ``then`` from where each row is.

    When a row changes methods depends on the number of steps alone, never on the other rows.

    Args:
        first: begins.
        after: steps of ``first``.
        then: goes on.
    """

    first: Method
    after: int
    then: Method

    @property
    def family(self) -> Family:
        """That of the method that begins."""
        return self.first.family

    @property
    def solves_systems(self) -> bool:
        """As the method that begins."""
        return self.first.solves_systems

    @property
    def switch(self) -> tuple[int, Method]:
        """When which method takes over."""
        return self.after, self.then

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        """The iteration of the method that begins."""
        return self.first.bind(problem, stop)
