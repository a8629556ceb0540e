r"""Gradients that leave out the adjoint solve, or all but its first steps: cheap, and wrong by what they leave out.

The gradient with respect to q is w = J(Wᵀw + g). Iterating w ← (1 − τ)w + τJ(Wᵀw + g) from w = Jg gives with τ = 1 the
partial sums of the Neumann series Σ (JWᵀ)ᵏJg, and with none of its steps what is known as the Jacobian-free gradient.
Nothing of it is solved to a tolerance, so that nothing fails either: where ‖JWᵀ‖ > 1, which Condition 1 allows, more
terms can be worse than fewer. With τ below one the steps are those of explicit Euler on the adjoint firing-rate flow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import PreconditionError
from contracting.gradients.implicit import ByAdjoint
from contracting.loop.records import LastSolves
from contracting.problem import EquilibriumProblem


@dataclass(frozen=True, kw_only=True)
class NeumannSeries(ByAdjoint):
    """Approximate the adjoint by its first steps, w ← (1 − τ)w + τJ(Wᵀw + g) from w = Jg; for comparison.

    With τ = 1 the terms Σ_{k ≤ terms} (JWᵀ)ᵏJg; with τ < 1 the phantom gradient of Geng et al. (arXiv 2111.05177).
    The value is that of the solve. ``Implicit()`` is exact, and what anyone should take who does not compare.

    Args:
        terms: steps after the first term.
        damping: τ in (0, 1].

    Raises:
        InputError: on values out of range.
        PreconditionError: in backward, if the gradient is to have a graph: what is left out has derivatives too.
    """

    terms: int
    damping: float = 1.0

    def __post_init__(self) -> None:
        checks.whole_number("terms", self.terms, low=0)
        checks.number("damping", self.damping, low=0, low_open=True, high=1)

    def cotangent(self, adjoint: EquilibriumProblem, seen: LastSolves) -> Tensor:
        if torch.is_grad_enabled():
            raise PreconditionError(
                f"{type(self).__name__} approximates first derivatives only; backward=Implicit() has those of any order"
            )
        w = adjoint.activation.value(adjoint.q)
        for _ in range(self.terms):
            w = torch.lerp(w, adjoint.map(w), self.damping)
        return w


    def error_bound(self, problem: EquilibriumProblem) -> float:
        r"""A bound of ‖w − w*‖/‖w*‖ in every row, in ℓ2, from ‖W‖₂ alone; infinite for ‖W‖₂ ≥ 1.

        w − w* = ((1 − τ)I + τJWᵀ)ᵗ(−JWᵀ)w* after t steps, and ‖JWᵀ‖ ≤ ‖W‖ for slopes in [0, 1], so that
        (1 − τ + τ‖W‖)ᵗ‖W‖ is a bound. With ‖W‖ ≥ 1 the steps need not converge.

        Args:
            problem: the one that is differentiated, or its adjoint: W and Wᵀ have one norm.
        """
        norm = float(torch.linalg.matrix_norm(problem.linear.to_dense().detach().double(), 2))
        return norm * (1 - self.damping + self.damping * norm) ** self.terms if norm < 1 else math.inf


@dataclass(frozen=True, kw_only=True)
class JacobianFree(NeumannSeries):
    """Take Jg for the gradient with respect to q, as if W were zero there (Fung et al., arXiv 2103.12803).

    Raises:
        PreconditionError: in backward, if the gradient is to have a graph.
    """

    terms: int = field(default=0, init=False)
    damping: float = field(default=1.0, init=False)
