"""Semismooth Newton: the few-step solver for small and medium n, and the only one that needs no metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from contracting import checks
from contracting.flows.base import BoundFlow
from contracting.flows.splitting import PeacemanRachfordFlow
from contracting.linear_systems import solve_rows
from contracting.loop.method import Family, Iteration, Method, State
from contracting.loop.records import Stop
from contracting.problem import EquilibriumProblem

_SUFFICIENT = 1e-3  # a Newton step must reduce the best residual so far by at least this fraction


@dataclass(frozen=True, kw_only=True)
class SemismoothNewton(Method):
    r"""z ← z − t(I − JW)⁻¹(z − σ(Wz + q)), J = diag σ'(Wz + q): finite for ReLU, quadratic for smooth σ.

    Each step solves one n×n system per row. The step length t is halved, per row, until the residual is below the best
    so far; where no length helps, the row takes Peaceman–Rachford steps (globally convergent under Condition 1) until
    it is. Without a metric such a row takes the undamped step, and convergence is not guaranteed: the status tells.

    Under Condition 1 the matrix I − JW is nonsingular for all slopes in [0, 1].

    Args:
        halvings: how often t may be halved.
        memory: bytes that the matrices of one chunk of rows may take.
    """

    halvings: int = 6
    memory: int = 256 * 2**20
    family: ClassVar[Family] = Family.NEWTON
    solves_systems: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.whole_number("halvings", self.halvings, low=0)
        checks.whole_number("memory", self.memory)

    def bind(self, problem: EquilibriumProblem, stop: Stop) -> Iteration:
        """The iteration on one problem."""
        return _NewtonIteration(problem, self)


class _NewtonIteration(Iteration):
    # state: z, the Peaceman–Rachford state u of a row that fell back, whether it did, the best residual of the row
    def __init__(self, problem: EquilibriumProblem, settings: SemismoothNewton):
        self.problem, self.settings = problem, settings
        fallback = problem.well_posed
        self.fallback: BoundFlow | None = PeacemanRachfordFlow().bind(problem) if fallback else None

    def init(self, z0: Tensor) -> State:
        residual = self._norm(z0)
        return z0, z0, torch.zeros_like(residual, dtype=torch.bool), residual

    def _norm(self, z: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.problem.residual(z), dim=-1)

    def step(self, state: State) -> State:
        z, u, fell_back, best = state
        direction = self._newton_direction(z)
        length = torch.ones_like(best)
        candidate, residual = z + direction, self._norm(z + direction)
        for _ in range(self.settings.halvings):
            good = residual <= (1 - _SUFFICIENT) * best
            if bool(good.all()):
                break
            length = torch.where(good, length, length / 2)
            candidate = z + length[:, None] * direction
            residual = self._norm(candidate)
        good = residual <= (1 - _SUFFICIENT) * best
        # a residual that is already rounding noise cannot fall further, and a full step does no harm
        if self.fallback is None:
            z = torch.where(good[:, None], candidate, z + direction)
            return z, u, fell_back, torch.minimum(best, residual.nan_to_num(float("inf")))
        if not bool(good.all()):
            u = self.fallback.map(torch.where(fell_back[:, None], u, self.fallback.init(z)))
            candidate = torch.where(good[:, None], candidate, self.fallback.read(u))
            residual = self._norm(candidate)
        return candidate, u, ~good, torch.minimum(best, residual)

    def _newton_direction(self, z: Tensor) -> Tensor:
        problem = self.problem
        per_row = problem.size**2 * z.element_size()
        rows = max(1, self.settings.memory // per_row)
        chunks = [slice(start, start + rows) for start in range(0, z.shape[0], rows)]
        W = problem.linear.to_dense()
        identity = torch.eye(problem.size, dtype=z.dtype, device=z.device)
        preactivation = problem.preactivation(z)
        residual = z - problem.activation(preactivation)
        slopes = problem.activation.derivative(preactivation)
        return torch.cat([solve_rows(identity - slopes[c, :, None] * W, -residual[c]) for c in chunks])

    def read(self, state: State) -> Tensor:
        return state[0]
