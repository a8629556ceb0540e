r"""W = I − LMR with positive diagonal L and R: weights whose metric differs from neuron to neuron.

A network that is monotone in Λ = Ψ⁻¹ by construction has I − W = ΨM with M monotone in the Euclidean norm. Where M is a
convolution and Ψ varies over the image, ΨM is no convolution and has no blocks. But the methods do not need them: with
*one step per neuron*, D = α(LR)⁻¹, the product D(I − W) = R⁻¹(αM)R is similar to αM. So

* the resolvent is (I + D(I − W))⁻¹ = R⁻¹(I + αM)⁻¹R, as cheap as that of M;
* D^½ÃD^½ = αM where the metric is Euclidean, so that every worst-case factor is that of M with the number α, exact, in
  the metric ΛD⁻¹; the best α is the best one for M;
* the prox is elementwise and takes one step per neuron as easily as one for all.

The bounds in Λ itself, which error bounds use, follow from those of M: with S = RΛ^−½ (and ΛLR⁻¹ constant, = t)
Ã = tSMS, so m ≥ t·min(S²)·m_M, L ≤ t·max(S²)·L_M and so on. They are bounds, not exact values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import PreconditionError
from contracting.maps.base import Around, LinearMap
from contracting.maps.bounded import BoundedOperator, gain_bound
from contracting.maps.estimates import Estimates, ScaledEstimates
from contracting.maps.operator import Bounds, MonotoneOperator, StepChoice
from contracting.memory import Lineage
from contracting.metrics import Metric, WeightedL2
from contracting.types import Step


@dataclass(frozen=True, eq=False, repr=False)
class Scaled(Around):
    r"""W = I − diag(left)·(I − V)·diag(right), V any map with bounds of its own, such as a convolution.

    Args:
        inner: V.
        left: (n,), positive.
        right: (n,), positive.

    Raises:
        InputError: on wrong shapes, or entries that are not positive.
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            value = checks.floating_tensor(name, getattr(self, name))
            checks.shape(name, value, (self.inner.size,))
            checks.same_kind(name, value, "inner", self.inner.tensors()[0])
            checks.positive_tensor(name, value)

    def apply(self, z: Tensor) -> Tensor:
        scaled = self.right * z
        return z - self.left * (scaled - self.inner.apply(scaled))

    def make_adjoint(self) -> Scaled:
        return Scaled(self.inner.adjoint, self.right, self.left)

    @property
    def resolvent_products(self) -> float:
        return self.inner.resolvent_products

    def make_resolvent(self, step: Step) -> LinearMap:
        # D L M R = R⁻¹(EM)R with E = DLR, and E is one number where D was chosen for it
        product = step * self.left * self.right
        low, high = float(product.detach().min()), float(product.detach().max())
        if high - low <= 16 * torch.finfo(product.dtype).eps * high:
            inverse = self.inner.resolvent(
                float(product.detach().mean()) if not product.requires_grad else product.mean()
            )
        else:
            inverse = self.inner.resolvent(product)
        return _Similar(inverse, self.right)

    def combined(self, scale: float, shift: float) -> Scaled:
        # sI − sLMR + tI = (s + t)I − L(sM)R, and only s + t = 1 leaves the form
        if scale + shift != 1:
            raise PreconditionError("of a weight with a metric of its own for every neuron, only sW + (1 − s)I is one")
        return Scaled(self.inner.combined(scale, shift), self.left, self.right)

    @property
    def block_size(self) -> int:
        return self.inner.block_size

    def descend_from(self, lineage: Lineage) -> None:
        """Nothing: the step per neuron that the estimates suggest has to be that of these very weights."""

    def make_estimates(self, metric: Metric) -> Estimates | None:
        squares, unit_step = self._congruence(metric)
        found = self.inner.estimates(WeightedL2.identity(self.size, dtype=torch.float64))
        if found is None:
            return None
        return ScaledEstimates(
            monotonicity=found.monotonicity, lipschitz=found.lipschitz, mean=found.mean, unit_step=unit_step
        )

    def blocks(self, metric: Metric) -> Tensor:
        raise PreconditionError(
            "a weight with a metric of its own for every neuron has no blocks; operator(metric) gives bounds in the "
            "metric it was made for, and factors for one step per neuron"
        )

    def make_operator(self, metric: Metric) -> MonotoneOperator:
        squares, unit_step = self._congruence(metric)
        operator = self.inner.operator(WeightedL2.identity(self.size, dtype=torch.float64))
        tolerance = 2 * self._tolerance
        return ScaledOperator(
            blocks=operator.blocks,
            inner=operator,
            smallest=float(squares.min()) * (1 - tolerance),
            largest=float(squares.max()) * (1 + tolerance),
            unit_step=unit_step,
        )

    @property
    def _tolerance(self) -> float:
        """What the weights of a metric may be off from its own: the rounding of two products."""
        return 64 * torch.finfo(self.dtype).eps

    def _congruence(self, metric: Metric) -> tuple[Tensor, Tensor]:
        """TS² in float64, the spread of T being rounding, and the step (LR)⁻¹ that stands for α = 1."""
        left, right = (t.detach().to("cpu", torch.float64) for t in (self.left, self.right))
        ratio = None
        if isinstance(metric, WeightedL2):
            weights = metric.weights.detach().to("cpu", torch.float64)
            ratio = weights * left / right
        if ratio is None or float(ratio.max() - ratio.min()) > self._tolerance * float(ratio.max()):
            raise PreconditionError(
                "bounds of this weight are known only in the metric it was made for: WeightedL2 with weights "
                "proportional to right/left"
            )
        return ratio * right.square() / weights, (1 / (left * right)).to(self.left.detach())


@dataclass(frozen=True, eq=False, repr=False)
class _Similar(Around):
    """R⁻¹KR with a positive diagonal R."""

    scale: Tensor

    def apply(self, z: Tensor) -> Tensor:
        return self.inner.apply(self.scale * z) / self.scale

    def make_adjoint(self) -> _Similar:
        return _Similar(self.inner.adjoint, 1 / self.scale)

    def make_resolvent(self, step: Step) -> LinearMap:
        if isinstance(step, Tensor) and step.ndim:
            raise PreconditionError("a resolvent has no resolvent for one step per neuron; pass a number")
        return _Similar(self.inner.resolvent(step), self.scale)

    def combined(self, scale: float, shift: float) -> _Similar:
        return _Similar(self.inner.combined(scale, shift), self.scale)

    def blocks(self, metric: Metric) -> Tensor:
        raise PreconditionError("a resolvent in a metric of its own for every neuron has no blocks")


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaledOperator(BoundedOperator):
    """Ã = tSMS, known through M: its best steps are one per neuron, bounds and factors for one number are estimates.

    Args:
        blocks: those of M, which are not those of Ã.
        inner: M in the Euclidean norm.
        smallest: lower bound of tS².
        largest: upper bound of tS².
        unit_step: (LR)⁻¹, the step per neuron that stands for α = 1.
    """

    inner: MonotoneOperator
    smallest: float
    largest: float
    unit_step: Tensor = field(repr=False)

    @cached_property
    def bounds(self) -> Bounds:
        inner = self.inner.bounds
        m = inner.monotonicity * (self.smallest if inner.monotonicity > 0 else self.largest)
        L = self.largest * inner.lipschitz
        return Bounds(
            monotonicity=m,
            symmetric=inner.symmetric * (self.largest if inner.symmetric > 0 else self.smallest),
            skew=self.largest * inner.skew,
            lipschitz=L,
            gain=gain_bound(m, L),
        )

    @cached_property
    def best_forward(self) -> StepChoice:
        """The step αD per neuron with the smallest ‖I − αM‖; its factor holds in the metric ΛD⁻¹."""
        return self._per_neuron(self.inner.best_forward)

    @cached_property
    def best_reflected(self) -> StepChoice:
        """The step αD per neuron with the smallest factor for M; it holds in the metric ΛD⁻¹."""
        return self._per_neuron(self.inner.best_reflected)

    @cached_property
    def usual_reflected(self) -> StepChoice:
        return self._per_neuron(self.inner.usual_reflected)

    @cached_property
    def best_tseng(self) -> StepChoice:
        """The step αD per neuron with the smallest factor that is proved for M; it holds in the metric ΛD⁻¹."""
        return self._per_neuron(self.inner.best_tseng)

    def _per_neuron(self, choice: StepChoice) -> StepChoice:
        return StepChoice(step=choice.step * self.unit_step, factor=choice.factor, expected=choice.expected)
