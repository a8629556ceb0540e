"""FISTA: Nesterov's acceleration, for weights that are self-adjoint in the metric and for no others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from contracting.errors import PreconditionError
from contracting.flows.splitting import forward_backward
from contracting.loop.method import Family, Iteration, Method, State
from contracting.loop.records import Stop
from contracting.maps.operator import Bounds
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem, Problem, with_weights

_ROUNDING = 100  # units of rounding by which two entries of Ã may differ that would be equal in exact arithmetic


@dataclass(frozen=True, kw_only=True)
class FISTA(Method):
    r"""z⁺ = prox_{αf}(y − α((I − W)y − q)), y⁺ = z⁺ + β(z⁺ − z): accelerated forward–backward, one product per step.

    Only where ΛW is symmetric: the equilibrium then minimises ½zᵀΛ(I − W)z − ⟨Λq, z⟩ + Σλᵢf(zᵢ), which is m-strongly
    convex in ‖·‖_Λ, and α = 1/L with β = (√κ − 1)/(√κ + 1), κ = L/m, reduces its gap by 1 − 1/√κ per step. With a skew
    part the momentum turns into an instability (the iteration stalls or diverges), so such weights are refused.

    Without restart the distance ‖z − z*‖_Λ falls like (1 − 1/√κ)^{k/2}. The adaptive restart drops the momentum of a
    row that moves against its own step, at most every 2√κ·log 2 steps; each restart at most doubles the gap, so the
    rate that is then still proved is (1 − 1/√κ)^{k/4}, while the usual effect is to save steps.

    Args:
        restart: whether rows restart.

    Raises:
        PreconditionError: on binding, if Condition 1 is not certified or W is not self-adjoint in the metric.

    Source: Beck and Teboulle, SIAM J. Imaging Sci. 2 (2009); Nesterov, Lectures on Convex Optimization, 2.2.1;
    O'Donoghue and Candès, Found. Comput. Math. 15 (2015), for the restart.
    """

    restart: bool = True
    family: ClassVar[Family] = Family.SPLITTING

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        """The iteration on one problem."""
        found = with_weights(problem, "FISTA")
        operator = found.require_operator("FISTA")
        bounds, rounding = operator.bounds, _ROUNDING * torch.finfo(found.linear.dtype).eps
        # with a skew part beyond m the momentum grows, even where it is no more than rounding beside L
        harmless = bounds.skew <= bounds.monotonicity / 2 and operator.self_adjoint(rounding)
        if not harmless or not isinstance(found.metric, WeightedL2):
            raise PreconditionError("FISTA needs W self-adjoint in the metric; use PeacemanRachford()")
        return _FISTAIteration(found, found.metric, bounds, self.restart)


class _FISTAIteration(Iteration):
    # state: z, the extrapolated y, steps since the row's last restart
    def __init__(self, problem: EquilibriumProblem, metric: WeightedL2, bounds: Bounds, restart: bool):
        self.problem, self.restart = problem, restart
        self.weights = metric.weights.to(problem.q)
        self.alpha = self.step_size = 1 / bounds.symmetric
        root = math.sqrt(bounds.monotonicity / bounds.symmetric)
        self.momentum = (1 - root) / (1 + root)
        gap = max(0.0, 1 - root)  # factor of the gap to the minimum
        self.shortest = math.ceil(2 * math.log(2) / -math.log(gap)) if gap > 0 else 1
        self.factor = gap ** (1 / 4 if restart else 1 / 2)

    def init(self, z0: Tensor) -> State:
        return z0, z0, z0.new_zeros(z0.shape[0])

    def step(self, state: State) -> State:
        z, y, age = state
        new = forward_backward(self.problem, y, self.alpha)
        age = age + 1
        momentum = torch.full_like(age, self.momentum)
        if self.restart:
            uphill = ((y - new) * self.weights * (new - z)).sum(-1) > 0
            restart = uphill & (age >= self.shortest)
            momentum, age = momentum.masked_fill(restart, 0.0), age.masked_fill(restart, 0.0)
        return new, new + momentum[:, None] * (new - z), age

    def read(self, state: State) -> Tensor:
        return state[0]
