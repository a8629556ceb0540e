r"""Peaceman–Rachford for a curved σ: the state has the pre-image of u with it, so that a step evaluates σ once.

h = R_f u needs s with σ(s) + α(s − σ(s)) = u, and u moves less in every step: so s is led after it
(``WarmReflection``). What it lags behind is looked at whenever the residual is. A row in which the lag is no small part
of what the row still has to go has its s sought from scratch from then on, as if nothing were known.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from contracting.activations.base import Activation, Curved
from contracting.activations.warm import WarmReflection, error
from contracting.flows.splitting import BoundPeacemanRachford, forward
from contracting.loop.method import State
from contracting.loop.records import Stop
from contracting.solvers.forecast import Forecast
from contracting.solvers.reflected import FoldedIteration, blocks_of
from contracting.solvers.relaxed import FEWEST, Relaxed
from contracting.types import Step

# At z = σ(s) and v = Wz + q, a step moves u by 2Kα(v − s) where s is the pre-image of u. Where g(s) − u is this share
# of g(s) − u + α(v − s), which is what z leaves of the optimality condition, it is the lag that keeps u from resting.
_LAG = 0.25
_SHARE = 0.4  # of the rows of a block of ReLU, as that many more arrays are at work


class Led(NamedTuple):
    """The state u with its pre-image s."""

    u: Tensor
    preimage: Tensor
    exact: Tensor | None  # rows whose pre-image is sought from scratch in every step, (batch,); None for no row
    cold: bool


class CurvedIteration(FoldedIteration):
    """The iteration of ``FoldedIteration`` for a curved σ; its state is that of ``RelaxedIteration`` or ``Led``."""

    def __init__(self, flow: BoundPeacemanRachford, relaxation: float, stop: Stop, forecast: Forecast | None):
        super().__init__(flow, relaxation, stop, forecast)
        self.check_every = max(FEWEST, self.check_every // 2)  # a look costs less than two of these steps

    def warm(self, z0: Tensor, preactivation: Tensor) -> State:
        u = forward(self.flow.problem, z0, self.flow.step, preactivation)
        return Relaxed(u) if self._in_graph(u) else Led(u, preactivation, None, False)

    def read(self, state: State) -> Tensor:
        return self._sigma(slice(None))(state.preimage) if isinstance(state, Led) else super().read(state)

    def step(self, state: State) -> State:
        return super().step(Relaxed(state[0], state[-1]))

    def advance(self, state: State, taken: int, steps: int) -> State:
        u, cold = state[0], state[-1]
        if self._in_graph(u):
            return super().advance(Relaxed(u, cold), taken, steps)
        known = state if isinstance(state, Led) else None
        with torch.no_grad():
            if known is None and cold and taken == 0:
                u, steps = self._kicked(), steps - 1
            preimage = self.flow.reflection.laid_out(u if known is None else known.preimage)
            near = None if known is None else taken > 0
            blocks = [self._led(rows, u[rows], preimage[rows], near, steps) for rows in blocks_of(u, _SHARE)]
            u, preimage = blocks[0] if len(blocks) == 1 else map(torch.cat, zip(*blocks, strict=True))
            if known is not None and known.exact is not None:
                rows = torch.nonzero(known.exact).flatten()
                sought = self._steps(rows, self._reflection(rows), known.u[rows], steps)
                u = u.index_copy(0, rows, sought)
                preimage = preimage.index_copy(0, rows, self._sigma(rows).preimage(sought, self._alpha))
        return Led(u, preimage, None if known is None else known.exact, cold)

    def _led(
        self, rows: slice, u: Tensor, preimage: Tensor, near: bool | None, steps: int
    ) -> tuple[Tensor, Tensor]:
        reflect = WarmReflection(self._sigma(rows), self._alpha, preimage, near=near)
        if steps:
            u = self._steps(rows, reflect, u, steps)
        return u, reflect.follow(u)

    def resume(self, state: State, preactivation: Tensor, taken: int) -> State:
        if not isinstance(state, Led):
            return state
        with torch.no_grad():
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


def leads(activation: Activation, step: Step) -> bool:
    """Whether pre-images are worth their lead: σ is curved, and the prox with this step is not σ itself."""
    return isinstance(activation, Curved) and isinstance(step, float) and step != 1
