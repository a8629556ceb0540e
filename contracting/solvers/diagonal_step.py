"""A step of its own for every neuron, where that provably contracts faster than one step for all."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.flows.splitting import BoundSplitting, ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.maps.operator import MonotoneOperator, StepChoice
from contracting.problem import EquilibriumProblem

SplittingFlow = type[ForwardBackwardFlow] | type[PeacemanRachfordFlow]


@dataclass(frozen=True, kw_only=True)
class DiagonalStep:
    r"""Steps D = α·D₀ with D₀ the best of I, 1/diag Ã and 1/√(row norm · column norm of Ã) by the exact factor.

    A splitting with the diagonal step D contracts in ‖·‖_{ΛD⁻¹} with the factor of D^½ÃD^½ in place of αÃ, so every
    candidate gets its own best α, and the smallest factor wins; where no candidate beats D₀ = I, the step is a number.
    1/diag Ã usually helps where neurons differ much in gain, and sometimes does harm; D = Λ, an obvious guess, is never
    tried, since Ã already contains the metric. For maps that are not one dense matrix, D₀ = I is the only candidate.

    Use as ``PeacemanRachford(step=DiagonalStep())``, the same for ForwardBackward and DouglasRachford. Not for weights
    that change in every step of a training: the exact factors cost several eigendecompositions.
    """

    def bind(self, problem: EquilibriumProblem, kind: SplittingFlow) -> BoundSplitting:
        """The flow of a splitting with the best step, and its factor as ``prediction``.

        Raises:
            PreconditionError: if Condition 1 is not certified.
        """
        step, factor = self.choose(problem, kind)
        known = StepChoice(step=math.nan if isinstance(step, Tensor) else step, factor=factor)
        return kind(step=step).bind(problem, known)

    def choose(self, problem: EquilibriumProblem, kind: SplittingFlow) -> tuple[float | Tensor, float | None]:
        """D (a number, or one per neuron of shape (n,)) and the contraction factor in ‖·‖_{ΛD⁻¹}.

        Raises:
            PreconditionError: if Condition 1 is not certified.
        """
        operator = problem.require_operator("a diagonal step")
        values = problem.linear.detached

        def search() -> tuple[float | Tensor, float | None]:
            found = min(_candidates(operator, kind), key=lambda candidate: candidate[1])
            return (found[0].to(problem.q) if isinstance(found[0], Tensor) else found[0]), found[1]

        return values.remember(f"diagonal step of {kind.__name__}", problem.metric, search)


def _candidates(operator: MonotoneOperator, kind: SplittingFlow) -> list[tuple[float | Tensor, float]]:
    choice = _best(operator, kind)
    found: list[tuple[float | Tensor, float]] = [(choice.step, _known(choice))]
    A = operator.matrix
    if A is None:
        return found
    norms = torch.linalg.vector_norm(A, dim=0) * torch.linalg.vector_norm(A, dim=1)
    for scale in (1 / A.diagonal(), norms.rsqrt()):
        root = scale.sqrt()
        scaled = MonotoneOperator((root[:, None] * A * root)[None])
        choice = _best(scaled, kind)
        found.append((choice.step * scale, _known(choice)))
    return found


def _best(operator: MonotoneOperator, kind: SplittingFlow) -> StepChoice:
    return operator.best_forward if kind is ForwardBackwardFlow else operator.best_reflected


def _known(choice: StepChoice) -> float:
    assert choice.factor is not None
    return choice.factor

