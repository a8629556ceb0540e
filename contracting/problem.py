"""What the one loop solves: any system, one per row, and the equilibrium problem z = σ(Wz + q) above all.

A problem is the only thing that says what "solved" means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from contracting import checks
from contracting.activations.base import Activation, Curved
from contracting.activations.catalogue import Slope
from contracting.display import Displayed
from contracting.errors import InputError, PreconditionError
from contracting.linear_systems import solve_rows
from contracting.maps.base import LinearMap
from contracting.maps.estimates import Estimates
from contracting.maps.operator import MonotoneOperator, StepChoice
from contracting.metrics import Metric

_MATMUL_SAFETY = 8  # A product of n terms is rounded by about 8√n·eps times their size, and by n·eps at worst.
_LARGEST_POLISHED = 200  # Up to here Newton steps of a bound cost less than the solve did: 2n³/3 products for each row.
_POLISHING = 2  # Of a float32 solve the first step leaves rounding in float64 unless a kink lies between z and z*.
_NEGLIGIBLE = 0.02  # What is left after a step may be this share of the step, by which the bound is then too large.
_FEW = 16  # Rows up to which the number of operations counts more than what is copied.
_POLISHED_BYTES = 2**26  # The matrices of so many rows are held at a time.


class Problem(ABC):
    """What the loop, the integrators, Newton's methods and Anderson's ask of what they solve: one system per row.

    ``EquilibriumProblem`` is z = σ(Wz + q), with weights that splittings need; ``FieldProblem`` is f(s) = 0.

    Attributes:
        metric: a norm in which something is claimed of the problem, or None.
        separable: whether the rows of a smaller problem cost less, so that finished rows may leave the batch.
        costly: whether a look costs several times what one evaluation of the residual does.
        tolerances: (rtol, atol) that a stop gets which leaves them out, for double precision and for single.
    """

    metric: Metric | None = None
    separable: bool = True
    costly: bool = False
    tolerances: tuple[tuple[float, float], tuple[float, float]] = ((1e-8, 1e-12), (1e-5, 1e-7))

    @property
    @abstractmethod
    def template(self) -> Tensor:
        """Some tensor of the shape (batch, n), the dtype and the device of the unknown, finite where a row can be."""

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.template.shape[0]

    @property
    def size(self) -> int:
        """Dimension n of the unknown."""
        return self.template.shape[1]

    @property
    def well_posed(self) -> bool:
        """Whether a splitting is known to solve it."""
        return False

    @property
    def magnification(self) -> float:
        """How many times eps the residual may be off by rounding, relative to its scale, in rough numbers."""
        return 1.0

    def magnified_beyond(self, limit: float) -> bool:
        """Whether ``magnification`` is larger, which may be known without it."""
        return self.magnification > limit

    @abstractmethod
    def look(self, z: Tensor, norm: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Norms of the residual and of its scale, (2, batch), the residual, (batch, n), and what was computed for it.

        The last is a tensor with one leading entry per row, which an iteration may make use of.
        """

    @abstractmethod
    def compared(self, computed: Tensor, rows: Tensor) -> Tensor:
        """The rows whose norm is the scale, for some rows of what ``look`` has computed: (rows, n)."""

    @abstractmethod
    def residual(self, z: Tensor) -> Tensor:
        """What vanishes at a solution, in whatever sign: (batch, n) -> (batch, n)."""

    def usual_scale(self, z: Tensor) -> Tensor:
        """About the scale of the residual at z, (batch,)."""
        return self.look(z, lambda rows: torch.linalg.vector_norm(rows, dim=-1))[0][1]

    @abstractmethod
    def rows(self, index: Tensor | slice) -> Problem:
        """The problem of some rows only."""

    @abstractmethod
    def double(self) -> Problem:
        """The same problem in float64."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Tensors by which it can be differentiated through the steps of a method."""
        return ()

    def detach(self) -> Problem:
        """The same problem cut from the autograd graph."""
        return self

    def start_anew(self) -> bool:
        """Whether rows may have failed because of what was remembered of earlier problems, now forgotten."""
        return False

    def error_bound(self, z: Tensor) -> Tensor | None:
        """A certified bound on the distance of z from the solution in the metric, (batch,); None without a proof."""
        return None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EquilibriumProblem(Problem, Displayed):
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
    _in_no_graph: ClassVar[bool] = False  # True of a problem that was cut from one

    def __post_init__(self) -> None:
        if not isinstance(self.linear, LinearMap):
            raise InputError(f"linear must be a map such as Dense(W), got {type(self.linear).__name__}")
        if not isinstance(self.activation, Activation):
            raise InputError(f"activation must be an Activation such as ReLU(), got {self.activation!r}")
        if not (self.metric is None or isinstance(self.metric, Metric)):
            raise InputError(f"metric must be a Metric such as WeightedL2(weights), or None, got {self.metric!r}")
        self._check_inputs(self.q)
        if self.metric is not None and self.metric.size != self.linear.size:
            raise InputError(f"metric must act on {self.linear.size} entries, got {self.metric.size}")

    def _check_inputs(self, q: Tensor) -> None:
        if checks.floating_tensor("q", q).ndim != 2 or q.shape[1] != self.linear.size:
            raise InputError(f"q must have shape (batch, {self.linear.size}), got {tuple(q.shape)}; flatten the others")
        for tensor in self.linear.tensors():
            checks.same_kind("q", q, "the weight", tensor)
        if q.dtype not in (torch.float32, torch.float64):
            raise InputError(f"q must be float32 or float64, got {q.dtype}: solving needs full precision")
        if not self.linear.finite:
            for tensor in self.linear.tensors():
                checks.finite("the weight", tensor)

    def of_inputs(self, q: Tensor) -> Self:
        """The problem of other rows with the same weights and activation, (batch, n)."""
        self._check_inputs(q)
        return self._with(q=q)

    @property
    def template(self) -> Tensor:
        """q."""
        return self.q

    @property
    def magnification(self) -> float:
        """2(1 + ‖W‖)."""
        return 2 * (1 + self.linear.rough_norm)

    def magnified_beyond(self, limit: float) -> bool:
        return 2 * (1 + self.linear.norm_bound) > limit and super().magnified_beyond(limit)

    def look(self, z: Tensor, norm: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Norms of z − σ(Wz + q) and σ(Wz + q), (2, batch), σ(Wz + q) − z and Wz + q."""
        preactivation = self.preactivation(z)
        image = self.activation.value(preactivation)
        if z.shape[0] <= _FEW:  # where the norms of both at once take less time than a copy costs
            error = image - z
            return norm(torch.stack((error, image))), error, preactivation
        scale = norm(image)
        shared = image.data_ptr() == preactivation.data_ptr()  # as where σ is the identity
        error = image - z if shared else image.sub_(z)  # in place, while it is in cache
        return torch.stack((norm(error), scale)), error, preactivation

    def compared(self, computed: Tensor, rows: Tensor) -> Tensor:
        """σ(Wz + q) of some rows."""
        return self.activation.rows(rows).value(computed[rows])

    def usual_scale(self, z: Tensor) -> Tensor:
        """‖z‖, which near a solution is that of its image."""
        return torch.linalg.vector_norm(z, dim=-1)

    def preactivation(self, z: Tensor) -> Tensor:
        """Wz + q: (batch, n) -> (batch, n)."""
        return self.linear.affine(z, self.q) if z.shape == self.q.shape else self.linear.apply(z) + self.q

    def map(self, z: Tensor) -> Tensor:
        """σ(Wz + q), whose fixed point is the equilibrium: (batch, n) -> (batch, n)."""
        return self.activation.value(self.preactivation(z))

    def residual(self, z: Tensor) -> Tensor:
        """z − σ(Wz + q): (batch, n) -> (batch, n)."""
        return z - self.map(z)

    def slopes(self, z: Tensor) -> Tensor:
        """J = σ'(Wz + q), taken at the pre-activation: (batch, n) -> (batch, n)."""
        return self.activation.slope(self.preactivation(z))

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
        return self.analysed_exactly and self.operator is not None or self._estimates is not None

    def reflected_step(self, method: str, *, usual: bool = False) -> StepChoice:
        """The step of Peaceman–Rachford: of the smallest factor for weights that stay, otherwise from estimates.

        Args:
            method: who asks, for the error.
            usual: the step for usual inputs instead of the best in the worst case.

        Raises:
            PreconditionError: as ``require_operator``.
        """
        choice = self.reflected_choice(usual=usual)
        if choice is None:
            raise self._refusal(method)
        return choice

    def reflected_choice(self, *, usual: bool = False) -> StepChoice | None:
        """``reflected_step``, or None where Condition 1 does not hold in the claimed metric."""
        if self.analysed_exactly:
            operator = self.operator
            return None if operator is None else operator.usual_reflected if usual else operator.best_reflected
        estimates = self._estimates
        if usual and estimates is not None and not isinstance(self.activation, Curved):  # which one number leads
            estimates = estimates.balanced or estimates
        return None if estimates is None else estimates.reflected_choice

    def reflected_factor(self, step: float) -> float | None:
        """The contraction factor of Peaceman–Rachford with a given step, where its computation is worth while."""
        operator = self.operator if self.analysed_exactly else None
        return None if operator is None else operator.reflected_factor(step)

    @property
    def analysed_exactly(self) -> bool:
        """Whether bounds and factors are exact: where a metric is claimed and W, of moderate size, stays."""
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

    def double(self) -> EquilibriumProblem:
        """The same problem in float64."""
        return self.with_tensors([tensor.double() for tensor in self.tensors()])

    def start_anew(self) -> bool:
        """Whether rows may have failed because of a guess from earlier weights, which W has now forgotten."""
        return self.linear.start_anew()

    def error_bound(self, z: Tensor) -> Tensor | None:
        r"""Certified bound on ‖z − z*‖_Λ in the metric, (batch,), float64; None without Condition 1.

        With r = z − σ(Wz + q), σ(Wz + q) = z − r solves the inclusion with q perturbed by Wr, and the inclusion is
        m-strongly monotone: ‖z − z*‖_Λ ≤ ‖r‖_Λ + ‖Wr‖_Λ/m. All is computed in float64, also of a float32 solve; its
        rounding is added. Of a W that is a matrix, up to n = 200, the same is asked of z⁺, a Newton step from z with
        the slopes there: ‖z − z*‖_Λ ≤ ‖z − z⁺‖_Λ + what is left at z⁺, which is nearly the distance itself.
        """
        operator = self.operator
        if operator is None or self.metric is None:
            return None
        exact, start = self.double(), z.double()
        bound = exact._left(start, operator)
        if self.linear.has_matrix and self.size <= _LARGEST_POLISHED and len(z):
            metric, point = self.metric.to(start), start
            for _ in range(_POLISHING):
                point = exact._polished(point)
                moved, left = metric.norm(start - point), exact._left(point, operator)
                bound = torch.fmin(bound, moved + left)
                if bool((left <= _NEGLIGIBLE * moved).all()):
                    break
        return bound

    def _left(self, z: Tensor, operator: MonotoneOperator) -> Tensor:
        """‖r‖_Λ + ‖Wr‖_Λ/m with the rounding of r."""
        assert self.metric is not None
        metric, residual = self.metric.to(z), self.residual(z)
        m, gain = operator.bounds.monotonicity, operator.bounds.gain
        eps = torch.finfo(z.dtype).eps
        rounding = _MATMUL_SAFETY * eps * self.size**0.5 * ((1 + gain) * metric.norm(z) + metric.norm(self.q))
        return metric.norm(residual) + metric.norm(self.linear.apply(residual)) / m + (1 + gain / m) * rounding

    def _polished(self, z: Tensor) -> Tensor:
        """z after a Newton step on z − σ(Wz + q), whatever it may be worth; NaN where the matrix is singular."""
        count = max(1, _POLISHED_BYTES // (z.element_size() * self.size**2))
        identity, steps = torch.eye(self.size, dtype=z.dtype, device=z.device), []
        for first in range(0, len(z), count):
            here, point = self.rows(slice(first, first + count)), z[first : first + count]
            steps.append(solve_rows(identity - here.jacobian(point), here.residual(point)))
        return z - torch.cat(steps)

    def detach(self) -> EquilibriumProblem:
        """The same problem cut from the autograd graph; remembered analyses of W are kept where W needs no gradient."""
        if self._in_no_graph or not any(t.requires_grad for t in self.tensors()):
            return self
        activation = self.activation.with_tensors([t.detach() for t in self.activation.tensors()])
        return self._with(q=self.q.detach(), linear=self.linear.detached, activation=activation, _in_no_graph=True)

    def rows(self, index: Tensor | slice) -> EquilibriumProblem:
        """The problem of some rows only."""
        return self._with(q=self.q[index], activation=self.activation.rows(index))

    def _with(self, **others: Any) -> Self:
        """This problem with others of its parts, made from its own: they need not be checked again."""
        problem = object.__new__(type(self))
        parts = {"linear": self.linear, "q": self.q, "activation": self.activation, "metric": self.metric}
        problem.__dict__.update(parts, **others)
        return problem

    def adjoint(self, slopes: Tensor, cotangent: Tensor) -> EquilibriumProblem:
        r"""The problem whose solution is the gradient with respect to q.

        With J = diag(slopes) at the equilibrium, dz = (I − JW)⁻¹J(dW z + dq), so the gradient of ⟨g, z⟩ in q is
        w = J(Wᵀw + g): an equilibrium problem again, with Wᵀ, slopes J and the dual metric, well-posed where this is.

        Args:
            slopes: J, shape (batch, n), entries in [0, 1].
            cotangent: g, shape (batch, n).

        Raises:
            InputError: if the cotangent is not like q.
        """
        checks.same_kind("cotangent", checks.shape("cotangent", cotangent, tuple(self.q.shape)), "q", self.q)
        return self._with(
            linear=self.linear.adjoint,
            q=self.linear.laid_out(cotangent),
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
    """Return ``value`` if it is an equilibrium problem, else raise InputError."""
    if not isinstance(value, EquilibriumProblem):
        raise InputError(f"problem must be an EquilibriumProblem, such as layer.problem(x), got {type(value).__name__}")
    return value


def with_weights(problem: Problem, method: str) -> EquilibriumProblem:
    """The problem for a method that works with W, q or σ; a PreconditionError for one without them, as f(s) = 0."""
    if isinstance(problem, EquilibriumProblem):
        return problem
    raise PreconditionError(
        f"{method} works with the weight of z = σ(Wz + q), and a field f(s) has none: use an integrator such as "
        "PseudoTransient() or DormandPrince(), or Newton's method, SemismoothNewton() or NewtonKrylov()"
    )
