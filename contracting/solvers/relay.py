"""Two methods, one after the other: rows that the first has not solved after so many steps go on with the second."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from contracting.loop.method import Family, Iteration, Method, State
from contracting.loop.records import Stop
from contracting.maps.counting import counting
from contracting.problem import EquilibriumProblem


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

    def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        """The iteration on one problem; the second method is bound when a row first needs it."""
        return _RelayIteration(problem, stop, self)


class _RelayIteration(Iteration):
    # state: whether the second method is at work, and the state of the one that is
    def __init__(self, problem: EquilibriumProblem, stop: Stop, settings: Relay):
        self.problem, self.stop, self.settings = problem, stop, settings
        self.first = settings.first.bind(problem, stop)
        self.factor, self.step_size = self.first.factor, self.first.step_size
        self.check_every, self.separable = self.first.check_every, self.first.separable

    @cached_property
    def then(self) -> Iteration:
        """The second method, bound."""
        with counting(None):
            return self.settings.then.bind(self.problem, self.stop)

    def _at_work(self, state: State) -> Iteration:
        return self.then if state[0] else self.first

    def init(self, z0: Tensor) -> State:
        return False, self.first.init(z0)

    def cold(self) -> State | None:
        state = self.first.cold()
        return None if state is None else (False, state)

    def step(self, state: State) -> State:
        return state[0], self._at_work(state).step(state[1])

    def advance(self, state: State, taken: int, steps: int) -> State:
        second, inner = state
        before = 0 if second else min(steps, max(0, self.settings.after - taken))
        if before:
            inner = self.first.advance(inner, taken, before)
        if before == steps:
            return second, inner
        if not second:
            inner = self.then.init(self.first.read(inner))
        return True, self.then.advance(inner, taken + before, steps - before)

    def check_after(self, state: State, taken: int) -> int:
        steps = self._at_work(state).check_after(state[1], taken)
        rest = self.settings.after - taken
        return min(steps, rest) if rest > 0 else self.then.check_every

    def resume(self, state: State, preactivation: Tensor, taken: int) -> State:
        return state[0], self._at_work(state).resume(state[1], preactivation, taken)

    def read(self, state: State) -> Tensor:
        return self._at_work(state).read(state[1])

    def given_up(self, state: State) -> Tensor | None:
        return self._at_work(state).given_up(state[1])

    def advice(self) -> str | None:
        return self.first.advice()
