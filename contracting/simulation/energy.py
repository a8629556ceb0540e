r"""The convex view: where ΛW is symmetric, the equilibrium minimises an energy, and flows and iterations descend it.

E(z) = ½⟨z, (I − W)z⟩_Λ − ⟨q, z⟩_Λ + Σ λᵢ f(zᵢ), with ⟨x, y⟩_Λ = xᵀΛy and the convex f of σ = prox_f. In the metric Λ
the first two terms have the gradient (I − W)z − q, so forward–backward splitting is the proximal-gradient method on E.
With a skew part in ΛW no such function exists, and it is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import PreconditionError
from contracting.maps.operator import self_adjoint
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem, checked_problem


class Energy:
    """The energy of a problem with ΛW symmetric, one value per row.

    Args:
        problem: its metric must be a ``WeightedL2``, in which W is self-adjoint.
        tolerance: what counts as rounding in an entry of Ã − Ãᵀ, Ã = Λ^½(I − W)Λ^−½, relative to the largest entries
            of its row and column; None means 100 units of rounding.

    Raises:
        InputError: if it is no problem, or the tolerance no number.
        PreconditionError: if the problem has no diagonal metric, or W is not self-adjoint in it.
    """

    def __init__(self, problem: EquilibriumProblem, *, tolerance: float | None = None):
        metric = checked_problem(problem).metric
        if not isinstance(metric, WeightedL2):
            raise PreconditionError("an energy needs a problem with a diagonal metric: metric=WeightedL2(...)")
        weights = metric.to(problem.q)
        assert isinstance(weights, WeightedL2)
        W = problem.linear.to_dense().detach()
        A = torch.eye(W.shape[0], dtype=W.dtype, device=W.device) - weights.whiten(W)
        limit = 100 * torch.finfo(W.dtype).eps if tolerance is None else checks.number("tolerance", tolerance)
        if not self_adjoint(A[None], limit):
            raise PreconditionError(
                "there is no energy: ΛW is not symmetric, as the convex view and accelerated proximal gradients need; "
                "PeacemanRachford() solves this problem"
            )
        self.problem, self.metric = problem, weights

    def __call__(self, z: Tensor) -> Tensor:
        """E(z), +∞ where an entry leaves the range of σ: (batch, n) -> (batch,)."""
        lam, q = self.metric.weights, self.problem.q
        smooth = z * (0.5 * (z - self.problem.linear.apply(z)) - q)
        return (lam * (smooth + self.problem.activation.potential(z))).sum(-1)

    def smooth_gradient(self, z: Tensor) -> Tensor:
        """(I − W)z − q, the gradient in ⟨·,·⟩_Λ of all but the potentials: (batch, n) -> (batch, n)."""
        return z - self.problem.preactivation(z)

    @property
    def strong_convexity(self) -> float:
        """m = λmin(Ã): E(z) ≥ E(z*) + ½m‖z − z*‖²_Λ.

        Raises:
            PreconditionError: if I − W is not positive definite.
        """
        return self.problem.require_operator("the strong convexity of the energy").bounds.monotonicity

    @property
    def smoothness(self) -> float:
        """L = λmax(Ã): a forward–backward step α < 2/L lowers the energy.

        Raises:
            PreconditionError: if I − W is not positive definite.
        """
        return self.problem.require_operator("the smoothness of the energy").bounds.symmetric

    def guaranteed_decrease(self, before: Tensor, after: Tensor, step: float) -> Tensor:
        """(1/α − L/2)‖z⁺ − z‖²_Λ, by which a forward–backward step α lowers the energy at least: (batch,).

        Along the forward–backward flow itself, E falls at a rate of at least ‖z'‖²_Λ/α for every α.
        """
        checks.number("step", step, low=0, low_open=True)
        return (1 / step - self.smoothness / 2) * self.metric.norm(after - before).square()

    def guaranteed_factor(self, step: float) -> float:
        """1 − αm for 0 < α ≤ 1/L: a forward–backward step brings E − E* down by it at least, whatever the start.

        E(z⁺) is at most the value at any y of E's model with the term ‖y − z‖²_Λ/(2α), and y = z + αm(z* − z) shows it.
        By convexity E − E* therefore falls at least like e^{−mt} along z' = (T(z) − z)/α, in particular along the
        firing-rate flow where L ≤ 1.

        Raises:
            PreconditionError: if the step is longer than 1/L, or I − W is not positive definite.
        """
        checks.number("step", step, low=0, low_open=True)
        if step > (1 + 1e-12) / self.smoothness:
            raise PreconditionError(
                f"the energy is proved to fall by a factor for steps up to 1/L = {1 / self.smoothness:.3g}, "
                f"got {step:.3g}"
            )
        return 1 - step * self.strong_convexity
