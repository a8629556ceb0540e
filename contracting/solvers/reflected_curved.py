r"""Peaceman–Rachford for a curved σ: its reflection is evaluated now and then, and followed by tangents in between.

h = R_f u needs s with σ(s) + α(s − σ(s)) = u, and u moves less in every step: so s is led after it, and h is taken from
the tangents at a known s (``WarmReflection``), renewed after the first steps and then more and more seldom. What s lags
behind is looked at whenever the residual is. A row in which the lag is no small part of what the row still has to go
has its s sought from scratch from then on, as if nothing were known.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple, cast

import torch
from torch import Tensor

from contracting.activations.base import Activation, Curved
from contracting.activations.warm import Tangent, WarmReflection, error
from contracting.flows.splitting import BoundPeacemanRachford, forward
from contracting.loop.method import State
from contracting.loop.records import Stop
from contracting.memory import in_no_graph
from contracting.solvers.forecast import Forecast
from contracting.solvers.reflected import MOST, FoldedIteration, blocks_of
from contracting.solvers.relaxed import FEWEST, Relaxed
from contracting.types import Step

# At z = σ(s) and v = Wz + q, a step moves u by 2Kα(v − s) where s is the pre-image of u. Where g(s) − u is this share
# of g(s) − u + α(v − s), which is what z leaves of the optimality condition, it is the lag that keeps u from resting.
_LAG = 0.25
_SHARE = 0.4  # of the rows of a block of ReLU, as that many more arrays are at work


# The forecast is of slopes of zero and one. Nine rows in ten with tanh and ELU take at most this many times the steps
# before the first look at ReLU (γ = 0.3 and 1, 80 neurons; digits), and a look in vain costs more than these steps.
_SLOWER = 1.1


class Led(NamedTuple):
    """The state u with its pre-image, and the tangents by which that was followed."""

    u: Tensor
    preimage: Tensor
    tangent: Tangent | None  # None at a given start
    exact: Tensor | None  # rows whose pre-image is sought from scratch in every step, (batch,); None for no row
    cold: bool


class CurvedIteration(FoldedIteration):
    """The iteration of ``FoldedIteration`` for a curved σ; its state is that of ``RelaxedIteration`` or ``Led``."""

    def __init__(self, flow: BoundPeacemanRachford, relaxation: float, stop: Stop, forecast: Forecast | None):
        super().__init__(flow, relaxation, stop, forecast)
        self.check_every = max(FEWEST, self.check_every // 2)  # a look costs less than two of these steps
        self._first_check = min(MOST, math.ceil(_SLOWER * self._first_check))

    def warm(self, z0: Tensor, preactivation: Tensor) -> State:
        u = forward(self.flow.problem, z0, self.flow.step, preactivation)
        return Relaxed(u) if self._in_graph(u) else Led(u, preactivation, None, None, False)

    def read(self, state: State) -> Tensor:
        return self._sigma(slice(None))(state.preimage) if isinstance(state, Led) else super().read(state)

    def step(self, state: State) -> State:
        return super().step(Relaxed(state[0], state[-1]))

    def advance(self, state: State, taken: int, steps: int) -> State:
        u, cold = state[0], state[-1]
        if self._in_graph(u):
            return super().advance(Relaxed(u, cold), taken, steps)
        known = state if isinstance(state, Led) else None
        with in_no_graph():
            if known is None and cold and taken == 0:
                u, steps, taken = self._kicked(), steps - 1, 1
            blocks = []
            for rows in blocks_of(u, _SHARE):
                lead = self._lead(rows, u, known, taken)
                last = self._steps(rows, lead, u[rows], steps) if steps else u[rows]
                blocks.append((last, *lead.at(last)))
            u, preimage, tangent = blocks[0] if len(blocks) == 1 else _joined(blocks)
            exact = None if known is None else known.exact
            if known is not None and exact is not None:
                lost = torch.nonzero(exact).flatten()
                sought = self._steps(lost, self._reflection(lost), known.u[lost], steps)
                u = u.index_copy(0, lost, sought)
                preimage = preimage.index_copy(0, lost, self._sigma(lost).preimage(sought, self._alpha))
        return Led(u, preimage, tangent, exact, cold)

    def _lead(self, rows: slice, u: Tensor, known: Led | None, taken: int) -> _Lead:
        warm = WarmReflection(self._sigma(rows), self._alpha, u)
        if known is not None and known.tangent is not None:
            return _Lead(warm, Tangent(*(entry[rows] for entry in known.tangent)), taken)
        start = self.flow.reflection.laid_out((u if known is None else known.preimage)[rows])
        return _Lead(warm, warm.tangent(start), taken)

    def resume(self, state: State, preactivation: Tensor, taken: int) -> State:
        if not isinstance(state, Led):
            return state
        with in_no_graph():
            lag = error(self._sigma(slice(None)), self._alpha, state.preimage, state.u)
            left = torch.add(lag, preactivation - state.preimage, alpha=self._alpha)
            late = torch.linalg.vector_norm(lag, dim=-1) > _LAG * torch.linalg.vector_norm(left, dim=-1)
            if state.exact is not None:
                late |= state.exact
            return state._replace(exact=late) if bool(late.any()) else state

    def _sigma(self, rows: slice | Tensor) -> Curved:
        return cast(Curved, self.flow.problem.activation.rows(rows))

    @property
    def _alpha(self) -> float:
        return cast(float, self.flow.step)


class _Lead:
    """The reflection of some rows by tangents, which are renewed when the number of steps says so."""

    def __init__(self, warm: WarmReflection, tangent: Tangent, taken: int):
        self._warm, self._tangent, self._taken = warm, tangent, taken

    def __call__(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if _renewed_after(self._taken):
            self._tangent = self._warm.tangent(self._warm.preimage(self._tangent, x))
        self._taken += 1
        return torch.addcmul(self._tangent.constant, self._tangent.factor, x, out=out)

    def at(self, x: Tensor) -> tuple[Tensor, Tangent]:
        """The pre-image of x, and the tangents that it is from."""
        return self._warm.preimage(self._tangent, x), self._tangent


@functools.cache
def _renewed_after(taken: int) -> bool:
    """Whether tangents are renewed after so many steps: 2, 3, 4, 6, 9, 13, 19, 28 and so on.

    The error of a tangent is the square of what u has moved since it was made, and each step moves less than the one
    before. With these, the networks of ``benchmarks/activations.py`` take as many steps as if each were renewed.
    """
    last = 2
    while last < taken:
        last += max(1, last // 2)
    return last == taken


def _joined(blocks: list[tuple[Tensor, Tensor, Tangent]]) -> tuple[Tensor, Tensor, Tangent]:
    states, preimages, tangents = zip(*blocks, strict=True)
    return torch.cat(states), torch.cat(preimages), Tangent(*map(torch.cat, zip(*tangents, strict=True)))


def leads(activation: Activation, step: Step) -> bool:
    """Whether pre-images are worth their lead: σ is curved, and the prox with this step is not σ itself."""
    return isinstance(activation, Curved) and isinstance(step, float) and step != 1
