"""The equilibrium problem z = σ(Wz + q): the only place that says what "solved" means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from contracting import checks
from contracting.activations.base import Activation
from contracting.activations.catalogue import Slope
from contracting.display import Displayed
from contracting.errors import InputError, PreconditionError
from contracting.maps.base import LinearMap
from contracting.maps.estimates import Estimates
from contracting.maps.operator import MonotoneOperator, StepChoice
from contracting.metrics import Metric


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EquilibriumProblem(Displayed):
    r"""Find z with z = σ(Wz + q), one problem per row of q.

    Args:
        linear: W as a map on Rⁿ.
        q: the input term Ux + b, shape (batch, n); a row may be non-finite, it then fails alone.
        activation: σ, elementwise.
        metric: a norm in which I − W is claimed to be strongly monotone, or None where nothing is claimed. The claim is
            verified by whoever relies on it (see ``operator``).

    Raises:
        InputError: on arguments of a wrong kind, wrong shapes, dtypes, devices or non-finite weights.
    """

    linear: LinearMap
    q: Tensor
    activation: Activation
    metric: Metric | None = None

    def __post_init__(self) -> None:
        self._check_kinds()
        if self.q.ndim != 2:
            raise InputError(f"q must have shape (batch, n), got {tuple(self.q.shape)}; flatten leading dimensions")
        checks.last_size("q", self.q, self.linear.size)
        for tensor in self.linear.tensors():
            checks.same_kind("q", self.q, "the weight", tensor)
        if self.q.dtype not in (torch.float32, torch.float64):
            raise InputError(f"q must be float32 or float64, got {self.q.dtype}: solving needs full precision")
        if not self.linear.finite:
            for tensor in self.linear.tensors():
                checks.finite("the weight", tensor)
        if self.metric is not None and self.metric.size != self.linear.size:
            raise InputError(f"metric must act on {self.linear.size} entries, got {self.metric.size}")

    def _check_kinds(self) -> None:
        if not isinstance(self.linear, LinearMap):
            raise InputError(f"linear must be a map such as Dense(W), got {type(self.linear).__name__}")
        if not isinstance(self.activation, Activation):
            raise InputError(f"activation must be an Activation such as ReLU(), got {self.activation!r}")
        if not (self.metric is None or isinstance(self.metric, Metric)):
            raise InputError(f"metric must be a Metric such as WeightedL2(weights), or None, got {self.metric!r}")
        checks.floating_tensor("q", self.q)

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.q.shape[0]

    @property
    def size(self) -> int:
        """Dimension n of the state."""
        return self.linear.size

    def preactivation(self, z: Tensor) -> Tensor:
        """Wz + q: (batch, n) -> (batch, n)."""
        return self.linear.affine(z, self.q) if z.shape == self.q.shape else self.linear.apply(z) + self.q

    def map(self, z: Tensor) -> Tensor:
        """σ(Wz + q), whose fixed point is the equilibrium: (batch, n) -> (batch, n)."""
        return self.activation(self.preactivation(z))

    def residual(self, z: Tensor) -> Tensor:
        """z − σ(Wz + q): (batch, n) -> (batch, n)."""
        return z - self.map(z)

    def slopes(self, z: Tensor) -> Tensor:
        """J = σ'(Wz + q), taken at the pre-activation: (batch, n) -> (batch, n)."""
        return self.activation.derivative(self.preactivation(z))

    @property
    def operator(self) -> MonotoneOperator | None:
        """I − W in the claimed metric if it really is strongly monotone there, else None."""
        if self.metric is None:
            return None
        try:
            operator = self.linear.operator(self.metric)
        except PreconditionError:
            return None
        return operator if operator.bounds.strongly_monotone else None

    @property
    def well_posed(self) -> bool:
        """Whether Condition 1 holds in the claimed metric: exactly where W stays, by a Cholesky where it changes."""
        return self._analysed_exactly and self.operator is not None or self._estimates is not None

    def reflected_step(self, method: str, *, usual: bool = False) -> StepChoice:
        """The step of Peaceman–Rachford: of the smallest factor for weights that stay, otherwise from estimates.

        Args:
            method: who asks, for the error.
            usual: the step for usual inputs instead of the best in the worst case.

        Raises:
            PreconditionError: as ``require_operator``.
        """
        if self._analysed_exactly:
            operator = self.require_operator(method)
            return operator.usual_reflected if usual else operator.best_reflected
        estimates = self._estimates
        if estimates is None:
            raise self._refusal(method)
        return StepChoice(step=estimates.reflected_step, factor=None, expected=estimates.slowest_decay)

    def reflected_factor(self, step: float) -> float | None:
        """The contraction factor of Peaceman–Rachford with a given step, where its computation is worth while."""
        operator = self.operator if self._analysed_exactly else None
        return None if operator is None else operator.reflected_factor(step)

    @property
    def _analysed_exactly(self) -> bool:
        return self.metric is not None and self.linear.exactly_analysed(self.metric)

    @property
    def _estimates(self) -> Estimates | None:
        try:
            return None if self.metric is None else self.linear.estimates(self.metric)
        except PreconditionError:
            return None

    def require_operator(self, method: str) -> MonotoneOperator:
        """The verified operator, or a refusal that names ``method``.

        Raises:
            PreconditionError: if I − W is not strongly monotone in the metric, or no metric is claimed.
        """
        operator = self.operator
        if operator is None:
            raise self._refusal(method)
        return operator

    def _refusal(self, method: str) -> PreconditionError:
        if self.metric is None:
            reason = (
                "no metric is claimed for this weight (Condition 1 is not certified; find_metric(W) of "
                "contracting.certificates looks for one)"
            )
        else:
            reason = "I − W is not strongly monotone in the metric of this problem (Condition 1 fails)"
        return PreconditionError(
            f"{method} cannot choose its step: {reason}. Use a well-posed parameterisation, pass an explicit step, "
            "or use SemismoothNewton(), which needs no metric"
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor the equilibrium depends on: q, then those of W, then those of σ."""
        return (self.q, *self.linear.tensors(), *self.activation.tensors())

    def with_tensors(self, tensors: Sequence[Tensor]) -> EquilibriumProblem:
        """The same problem on other tensors, in the order of ``tensors()``."""
        count = len(self.linear.tensors())
        return replace(
            self,
            q=tensors[0],
            linear=self.linear.with_tensors(tensors[1 : 1 + count]),
            activation=self.activation.with_tensors(tensors[1 + count :]),
        )

    def detach(self) -> EquilibriumProblem:
        """The same problem cut from the autograd graph; remembered analyses of W are kept where W needs no gradient."""
        if not any(t.requires_grad for t in self.tensors()):
            return self
        linear = self.linear.detached
        return replace(
            self,
            q=self.q.detach(),
            linear=linear,
            activation=self.activation.with_tensors([t.detach() for t in self.activation.tensors()]),
        )

    def rows(self, index: Tensor | slice) -> EquilibriumProblem:
        """The problem of some rows only."""
        return replace(self, q=self.q[index], activation=self.activation.rows(index))

    def adjoint(self, slopes: Tensor, cotangent: Tensor) -> EquilibriumProblem:
        r"""The problem whose solution is the gradient with respect to q.

        With J = diag(slopes) at the equilibrium, dz = (I − JW)⁻¹J(dW z + dq), so the gradient of ⟨g, z⟩ with respect
        to q is w = J(I − WᵀJ)⁻¹g, that is w = J(Wᵀw + g): an equilibrium problem again, with the transposed weight, the
        linear activation of slopes J and the dual metric. It is well-posed wherever this one is.

        Args:
            slopes: J, shape (batch, n), entries in [0, 1].
            cotangent: g, shape (batch, n).
        """
        return EquilibriumProblem(
            linear=self.linear.adjoint,
            q=cotangent,
            activation=Slope.trusted(slopes),
            metric=None if self.metric is None else self.metric.dual(),
        )

    def jacobian(self, z: Tensor) -> Tensor:
        """JW, the Jacobian of the map at z: (batch, n) -> (batch, n, n)."""
        return self.slopes(z)[:, :, None] * self.linear.to_dense()

    def zeros(self) -> Tensor:
        """The starting point z = 0, shape (batch, n)."""
        return torch.zeros_like(self.q)


def checked_problem(value: Any) -> EquilibriumProblem:
    """Return ``value`` if it is a problem, else raise InputError."""
    if not isinstance(value, EquilibriumProblem):
        raise InputError(f"problem must be an EquilibriumProblem, such as layer.problem(x), got {type(value).__name__}")
    return value
