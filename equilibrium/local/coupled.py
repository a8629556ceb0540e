r"""Boxes of inputs to boxes of equilibria: the coupled lower and upper equilibrium.

With W = M + N, M the diagonal and the positive entries beside it and N the negative ones, the system

    z̄ = σ(Mz̄ + Nz̲ + U⁺x̄ + U⁻x̲ + b),   z̲ = σ(Mz̲ + Nz̄ + U⁺x̲ + U⁻x̄ + b)

is an equilibrium problem in (z̄, −z̲): its weight is [[M, −N], [−N, M]], its activation σ on the first half and −σ(−·) on
the second. It is well-posed where α(⌈W⌉) < 1, ⌈W⌉ = |W| beside the diagonal and W on it, and its solution encloses the
equilibrium of every input of the box (Jafarpour, Davydov, Abate, Bullo and Coogan, arXiv 2112.05310): zᵢ is a rising
function of what else enters neuron i, so that a pair with z̄ ≥ σ(…) and z̲ ≤ σ(…) is mapped into itself, and there is
only one equilibrium. Only these two inequalities are relied on; they are checked with room for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.activations.blockwise import joined
from contracting.activations.mirrored import Mirrored
from contracting.certificates.definite import UNIT
from contracting.errors import PreconditionError
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers.automatic import Automatic
from equilibrium.local.surroundings import Rows

_STOP = Stop(rtol=1e-9, atol=1e-12, max_steps=5000)


@dataclass(frozen=True, kw_only=True, eq=False)
class Enclosure:
    """Lower and upper ends of the equilibria and of their pre-activations; infinite where nothing is proved.

    Attributes:
        low: of z, (batch, n).
        high: of z, (batch, n).
        inner_low: of v = Wz + Ux + b, (batch, n).
        inner_high: of v, (batch, n).
    """

    low: Tensor
    high: Tensor
    inner_low: Tensor
    inner_high: Tensor

    def rows(self, index: Rows) -> Self:
        """Those of some rows."""
        return type(self)(**{name: part[index] for name, part in vars(self).items()})


class CoupledNetwork:
    """The coupled system of a network z = σ(Wz + Ux + b).

    Args:
        W: (n, n).
        U: (n, in).
        bias: b, (n,).
        activation: σ.

    Raises:
        PreconditionError: if α(⌈W⌉) ≥ 1, where a box of inputs need not have a box of equilibria.
    """

    def __init__(self, W: Tensor, U: Tensor, bias: Tensor, activation: Activation):
        self.W, self.U, self.bias, self.activation = W, U, bias, activation
        diagonal = torch.diag(W.diagonal())
        self.positive = (W - diagonal).clamp_min(0) + diagonal
        self.negative = (W - diagonal).clamp_max(0)
        loop = torch.eye(len(W), dtype=W.dtype, device=W.device) - (self.positive - self.negative).detach()
        ones = torch.ones_like(W[:, 0].detach())
        right, left = (torch.linalg.solve_ex(matrix, ones)[0] for matrix in (loop, loop.mT))
        # an M-matrix has a positive inverse; and x > 0 with (I − ⌈W⌉)x > 0 shows that it is one
        if not bool((right > 0).all() and (loop @ right > 0.5).all() and (left > 0).all()):
            raise PreconditionError(
                "the coupled equilibrium needs α(⌈W⌉) < 1, |W| beside its diagonal: a box of inputs need not have a "
                "box of equilibria here; local constants in ℓ2 need Condition 1 only"
            )
        self.growth = right
        self.metric = WeightedL2(torch.cat([left / right, left / right]))

    @classmethod
    def of(cls, W: Tensor, U: Tensor, bias: Tensor, activation: Activation) -> Self | None:
        """The same, or None where it is not well-posed."""
        try:
            return cls(W, U, bias, activation)
        except PreconditionError:
            return None

    def problem(self, low: Tensor, high: Tensor) -> EquilibriumProblem:
        """The problem in (z̄, −z̲) for boxes of inputs, (batch, in) each."""
        n = len(self.W)
        weight = torch.cat(
            [torch.cat([self.positive, -self.negative], 1), torch.cat([-self.negative, self.positive], 1)]
        )
        activation = joined([(self.activation, n), (Mirrored(base=self.activation), n)])
        upper, lower = self.terms(low, high)
        q = torch.cat([upper, -lower], -1)
        return EquilibriumProblem(linear=Dense(weight), q=q, activation=activation, metric=self.metric)

    def terms(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """U⁺x̄ + U⁻x̲ + b and U⁺x̲ + U⁻x̄ + b."""
        middle = torch.addmm(self.bias, (high + low) / 2, self.U.mT)
        half = (high - low) / 2 @ self.U.abs().mT
        return middle + half, middle - half

    @torch.no_grad()
    def enclosure(self, low: Tensor, high: Tensor) -> Enclosure:
        """Ends that hold every equilibrium of the boxes, (batch, in) each, float64."""
        n = len(self.W)
        solution = solve(self.problem(low, high), Automatic(), stop=_STOP, throw=False)
        upper, lower = solution.z[:, :n], -solution.z[:, n:]
        terms = self.terms(low, high)
        sizes = torch.maximum(low.abs(), high.abs()) @ self.U.abs().mT + self.bias.abs()
        for _ in range(3):
            room = self._room(upper, lower, sizes)
            above = self._image(upper, lower, terms[0]) + room - upper
            lacking = torch.maximum(above, lower - self._image(lower, upper, terms[1]) + room)
            if not bool((lacking > 0).any()):
                break
            # growth g has g − s⌈W⌉g ≥ min(g, 1) for every slope s in [0, 1]
            more = 1.01 * (lacking / self.growth.clamp_max(1.0)).amax(-1, keepdim=True).clamp_min(0) * self.growth
            upper, lower = upper + more, lower - more
        proved = ~(lacking > 0).any(-1, keepdim=True)
        own = self.W.diagonal() * upper, self.W.diagonal() * lower
        inner_high = self._beside(upper, lower, terms[0]) + torch.maximum(*own)
        inner_low = self._beside(lower, upper, terms[1]) + torch.minimum(*own)
        room = self._room(upper, lower, sizes)
        infinite = torch.full_like(upper, torch.inf)
        return Enclosure(
            low=torch.where(proved, lower, -infinite),
            high=torch.where(proved, upper, infinite),
            inner_low=torch.where(proved, inner_low - room, -infinite),
            inner_high=torch.where(proved, inner_high + room, infinite),
        )

    def _beside(self, same: Tensor, other: Tensor, term: Tensor) -> Tensor:
        """What enters every neuron from the others and from the input."""
        return same @ self.positive.mT - same * self.W.diagonal() + other @ self.negative.mT + term

    def _image(self, same: Tensor, other: Tensor, term: Tensor) -> Tensor:
        return self.activation(same @ self.positive.mT + other @ self.negative.mT + term)

    def _room(self, upper: Tensor, lower: Tensor, sizes: Tensor) -> Tensor:
        """More than the pre-activations and the activation round, (batch, n)."""
        largest = torch.maximum(upper.abs(), lower.abs())
        entries = self.W.shape[1] + self.U.shape[1]
        return 4 * (entries + 8) * UNIT * (largest @ self.W.abs().mT + sizes + largest + 1)
