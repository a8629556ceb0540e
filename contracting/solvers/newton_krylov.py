"""Newton's method for large n: linear systems by a Krylov method that needs products only, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from contracting import checks
from contracting.flows.base import Flow, SteadyFlow
from contracting.flows.network import BoundFiringRate, FiringRate
from contracting.flows.speed import ScaledFlow
from contracting.flows.splitting import PeacemanRachfordFlow, contracting_flow
from contracting.integrators.base import FlowMethod
from contracting.linear_systems import solve_rows_by_products
from contracting.loop.method import Family, Iteration, State, refuse_graph
from contracting.loop.records import Stop
from contracting.problem import EquilibriumProblem, Problem
from contracting.solvers.newton import NewtonIteration

_LOOSEST, _GAIN = 0.1, 0.9  # forcing terms: η ≤ 0.1, η = 0.9 (‖F‖/‖F before‖)²


@dataclass(frozen=True, kw_only=True)
class NewtonKrylov(FlowMethod):
    r"""s ← s + td with (I − T'(s))d ≈ T(s) − s by GMRES: inexact Newton on the map T of a flow, without matrices.

    The linear system of a row is solved to ‖T(s) − s − (I − T'(s))d‖ ≤ η‖T(s) − s‖, with η following the fall of
    ‖T(s) − s‖ (Eisenstat and Walker), by a Krylov space of its own that uses only the action of T'. The length t is
    halved, per row, until the residual z − σ(Wz + q) or the distance ‖T(s) − s‖ falls enough; where no length helps,
    the row takes a Peaceman–Rachford step, and such steps converge from any start under Condition 1. Without a metric
    such a row takes the undamped step, and convergence is not guaranteed: the status tells.

    The Peaceman–Rachford flow is a preconditioner: its T' has norm below one, so that the Krylov method converges at
    least as fast as the splitting, and much faster where κ is large. The firing-rate flow needs no resolvent and no
    metric, but more products. Not for small n, where SemismoothNewton is simpler and exact, nor for small κ, where
    splitting is faster than any of this.

    Args:
        flow: whose map T; None takes PeacemanRachfordFlow() where Condition 1 is certified and W has a
            resolvent, else FiringRate().
        krylov: largest dimension of a Krylov space.
        restarts: how often a Krylov space may be started anew within one Newton step.
        halvings: how often t may be halved.
        memory: bytes that the Krylov spaces of one chunk of rows may take.

    Raises:
        InputError: if a setting is out of range.
        PreconditionError: on binding, if gradients would have to flow through the steps.

    Source: Eisenstat and Walker, Forcing terms in an inexact Newton method, SIAM J. Sci. Comput. 17 (1996);
    Jiránek and Rozložník, Adaptive version of Simpler GMRES, Numer. Algorithms 53 (2010).
    """

    flow: Flow | type[Flow] | None = None
    krylov: int = 60
    restarts: int = 3
    halvings: int = 6
    memory: int = 256 * 2**20
    family: ClassVar[Family] = Family.NEWTON

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole_number("krylov", self.krylov)
        checks.whole_number("restarts", self.restarts, low=0)
        checks.whole_number("halvings", self.halvings, low=0)
        checks.whole_number("memory", self.memory)

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        """The iteration on one problem."""
        refuse_graph(problem, "NewtonKrylov, which reuses the memory of its Krylov spaces,")
        flow = self.flow
        if flow is None:
            weights = problem.linear if isinstance(problem, EquilibriumProblem) and problem.well_posed else None
            inverts = weights is not None and math.isfinite(weights.resolvent_products)
            flow = PeacemanRachfordFlow() if inverts else FiringRate()
        bound = replace(self, flow=flow).flow_on(problem)
        while isinstance(bound, ScaledFlow):  # Newton's method knows no speed
            bound = bound.inner
        return _NewtonKrylovIteration(bound, self, stop)


class _NewtonKrylovIteration(NewtonIteration):
    # the direction remembers ‖T(s) − s‖ one step before and the forcing term of that step; then, where T is not known
    # to contract, the Peaceman–Rachford state u of a row that fell back, and whether it did
    def __init__(self, flow: SteadyFlow, settings: NewtonKrylov, stop: Stop):
        super().__init__(flow, settings.halvings)
        self.settings, self.stop = settings, stop

    @cached_property
    def fallback(self) -> SteadyFlow | None:
        """A flow whose map contracts; found when a row first needs it, because it may cost a factorisation."""
        return contracting_flow(self.problem)

    def memory(self, s: Tensor) -> State:
        unknown = s.new_full((s.shape[0],), float("inf"))
        forcing = torch.full_like(unknown, _LOOSEST)
        fell_back = torch.zeros_like(unknown, dtype=torch.bool)
        return (unknown, forcing) if self.contracts else (unknown, forcing, s, fell_back)

    def direction(self, s: Tensor, defect: Tensor, memory: State) -> tuple[Tensor, State]:
        last_size, last_forcing, *rest = memory
        size = torch.linalg.vector_norm(defect, dim=-1)
        forcing = self._forcing(s, size, last_size, last_forcing)
        return self._solved(s, defect, forcing * size), (size, forcing, *rest)

    def rescue(self, s: Tensor, defect: Tensor, direction: Tensor, good: Tensor, memory: State) -> tuple[Tensor, State]:
        if self.contracts or self.fallback is None:
            return super().rescue(s, defect, direction, good, memory)
        size, forcing, u, fell_back = memory
        u = self.fallback.map(torch.where(fell_back[:, None], u, self.fallback.init(self.flow.read(s))))
        return self.flow.init(self.fallback.read(u)), (size, forcing, u, ~good)

    def _forcing(self, s: Tensor, size: Tensor, last_size: Tensor, last_forcing: Tensor) -> Tensor:
        eta = _GAIN * (size / last_size).square()
        memory = _GAIN * last_forcing.square()  # a sudden fall of η is not to be trusted while η is large
        eta = torch.where(memory > _LOOSEST, torch.maximum(eta, memory), eta)
        # what is solved beyond the tolerance of the whole is wasted
        scale = self.problem.usual_scale(self.flow.read(s))
        enough = _LOOSEST * self.stop.tolerance(scale) / size.clamp_min(torch.finfo(size.dtype).tiny)
        return torch.maximum(eta, enough).clamp(10 * torch.finfo(size.dtype).eps, _LOOSEST)

    def _solved(self, s: Tensor, defect: Tensor, tolerance: Tensor) -> Tensor:
        dimension = min(self.settings.krylov, s.shape[1])
        rows = max(1, self.settings.memory // (2 * dimension * s.shape[1] * s.element_size()))
        directions = []
        for start in range(0, s.shape[0], rows):
            chunk = slice(start, start + rows)
            direction, _ = solve_rows_by_products(
                self._newton_matrix(s, chunk),
                defect[chunk],
                tolerance[chunk],
                dimension=dimension,
                restarts=self.settings.restarts,
            )
            directions.append(direction)
        return torch.cat(directions)

    def _newton_matrix(self, s: Tensor, chunk: slice) -> Callable[[Tensor], Tensor]:
        """d ↦ (I − T'(s))d on some rows."""
        if type(self.flow) is BoundFiringRate:
            slopes, linear = self.flow.problem.slopes(s)[chunk], self.flow.problem.linear
            return lambda d: d - slopes * linear.apply(d)
        flow, at = self.flow, s[chunk]
        if len(at) < len(s):
            flow = self.flow.on(self.problem.rows(torch.arange(len(s), device=s.device)[chunk]))
        return lambda d: -flow.jvp(at, d)
