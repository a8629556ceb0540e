"""Certificates as records: a contraction rate and a convergence rate are different things and different types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from contracting import checks
from contracting.display import Displayed
from contracting.errors import ContractingError, PreconditionError
from contracting.metrics import Metric
from contracting.types import Slopes

if TYPE_CHECKING:
    from contracting.flows.base import BoundFlow

PER_TIME = "per unit of the flow's time"
"""The unit of every rate."""
ANY_SLOPE = Slopes(0.0, float("inf"))  # the inclusion: any monotone activation
NO_SLOPE = Slopes(1.0, 1.0)  # a linear flow: no activation at all


class CertificateError(ContractingError, ArithmeticError):
    """A certificate does not hold for the system it is said to be about, or rounding hides whether it does."""


def assumption(slopes: Slopes | tuple[Tensor, Tensor]) -> str:
    """What is assumed of the activation, in words."""
    low, high = slopes
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        if not low.numel():
            return "no activation"
        each = "" if bool((low == low[0]).all() & (high == high[0]).all()) else ", one interval for each neuron"
        return f"slopes in [{float(low.min()):g}, {float(high.max()):g}]{each}"
    if slopes == ANY_SLOPE:
        return "any monotone activation, slopes in [0, 1]"
    return "no activation" if slopes == NO_SLOPE else f"slopes in [{low:g}, {high:g}]"


def require_norm(metric: Metric) -> None:
    """Refuse a gauge, for what adds up displacements and therefore needs the triangle inequality.

    Raises:
        PreconditionError: if its balls are not proved to be convex.
    """
    if not metric.convex:
        raise PreconditionError(
            f"this needs the triangle inequality, and the {type(metric).__name__} is not proved to be a norm: take a "
            "certificate by LiftedInequality(norm=True), or in another metric"
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Certificate(Displayed):
    r"""Contraction: any two trajectories under the *same* input q(t), constant or not, approach each other.

    ‖z₁(t) − z₂(t)‖ ≤ e^{−ct}‖z₁(0) − z₂(0)‖ in the norm ``metric``; where that is a ``LiftedForm`` which is not proved
    convex, the statement is a decay all the same, and of Euclidean distances one with its ``overshoot``.

    Attributes:
        rate: c, per unit of the flow's time. A negative rate bounds how fast trajectories can separate.
        metric: the norm, float64 on the CPU.
        slopes: the slopes [a, β] of the activation for which it holds, of a Lur'e system (low, high) of each neuron.
        method: how the metric was found.
        flow: the flow it is about, in words.
        margin: by how much the inequality that proves it holds, after the allowance for rounding; > 0. For a matrix
            inequality: its smallest eigenvalue when scaled to unit diagonal; for ℓ1 and ℓ∞: in units of the rate.
        multiplier: diagonal Q > 0 of the sector inequality, one entry per neuron; for a ``LiftedForm`` the relations
            between its monomials at every vertex, (2ⁿ, N, N); or None where the proof needs none.
    """

    _units = {"rate": PER_TIME}

    rate: float
    metric: Metric
    slopes: Slopes | tuple[Tensor, Tensor]
    method: str
    flow: str
    margin: float
    multiplier: Tensor | None = None

    @property
    def assumption(self) -> str:
        """What is assumed of the activation, in words."""
        return assumption(self.slopes)

    @property
    def contracting(self) -> bool:
        """Whether the rate is positive."""
        return self.rate > 0

    def error_bound(self, flow: BoundFlow, state: Tensor) -> Tensor:
        r"""‖F(z)‖/c ≥ ‖z − z*‖ in the metric, for the field F of a flow with constant input: (batch, n) -> (batch,).

        Along the trajectory from z the field itself decays, ‖F(z(t))‖ ≤ e^{−ct}‖F(z)‖, and z* − z is its integral.
        The rounding of evaluating F is not included.

        Raises:
            PreconditionError: if the rate is not positive, or the metric is not proved to be a norm.
        """
        require_norm(self.metric)
        if not self.contracting:
            raise PreconditionError(f"an error bound needs a positive contraction rate, got {self.rate:.3g}")
        checks.last_size("state", state, self.metric.size)
        return self.metric.to(state).norm(flow(0.0, state)) / self.rate

    def __str__(self) -> str:
        return (
            f"{self.flow}: contracts at rate ≥ {self.rate:.6g} in {self.metric.words}, {self.assumption} "
            f"({self.method})"
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Convergence(Displayed):
    r"""Convergence for *constant* input only: ‖s(t) − s*‖ ≤ C e^{−ct}‖s(0) − s*‖ in the norm ``metric``.

    It is weaker than contraction: nothing is said of two trajectories under a time-varying input, which may diverge.

    Attributes:
        rate: c.
        overshoot: C ≥ 1.
        metric: the norm.
        slopes: the slopes [a, β] of the activation for which it holds.
        method: where the bound comes from.
        flow: the flow it is about, in words.
        margin: by how much the inequalities that prove it hold at unit diagonal, after the allowance for rounding; > 0.
        integrals: K of the Lur'e–Postnikov function, (n,), or None where the flow contracts in the metric.
        multiplier: diagonal of the sector inequality, (n,); without ``integrals`` as in a ``Certificate``.
    """

    _units = {"rate": PER_TIME}

    rate: float
    overshoot: float
    metric: Metric
    slopes: Slopes
    method: str
    flow: str
    margin: float
    integrals: Tensor | None = None
    multiplier: Tensor | None = None

    @property
    def assumption(self) -> str:
        """What is assumed of the activation and of the input, in words."""
        return f"slopes in [{self.slopes[0]:g}, {self.slopes[1]:g}], constant input"

    def __str__(self) -> str:
        return (
            f"{self.flow}: converges at rate {self.rate:.6g} with overshoot {self.overshoot:.4g} in "
            f"{type(self.metric).__name__}, {self.assumption} ({self.method})"
        )
