r"""Rates seen on samples, for any neural ODE: the matrix measure of the Jacobian at points, and the worst point found.

Everything here is *sampled*: it says what happens at the points looked at, so the true rate over all states is at most
the sampled one. Nothing here is a certificate, and the results are records of another type than certificates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.fitting import Family, fitted_metric
from contracting.certificates.lmi import common_metric
from contracting.certificates.records import PER_TIME
from contracting.display import Displayed
from contracting.errors import InputError
from contracting.flows.fields import VectorField
from contracting.metrics import FullP, Metric, WeightedL1, WeightedL2, WeightedLinf
from contracting.simulation.trajectories import Trajectory, checked_states
from contracting.types import Time


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SampledRate(Displayed):
    r"""A contraction rate seen on samples: an upper bound of the true rate in this metric, and no certificate.

    Attributes:
        rate: −max μ(∂f/∂s) over the samples.
        metric: the norm of the measure.
        measures: μ at each sample, (samples,).
        worst_point: the state with the largest measure, (n,).
        worst_time: the time at which it was looked at.
        method: how the samples were chosen.
    """

    _units = {"rate": PER_TIME}

    rate: float
    metric: Metric
    measures: Tensor
    worst_point: Tensor
    worst_time: float
    method: str

    @property
    def certified(self) -> bool:
        """False: a finite number of samples proves nothing about the states between them."""
        return False

    def __str__(self) -> str:
        return (
            f"sampled, not certified: rate ≤ {self.rate:.6g} in {type(self.metric).__name__}, worst of "
            f"{len(self.measures)} points ({self.method})"
        )


def measure(flow: VectorField, points: Tensor, metric: Metric, *, t: Time = 0.0) -> Tensor:
    """μ(∂f/∂s), the local rate of separation: (batch, n) -> (batch,), differentiable.

    Raises:
        InputError: on shapes or numbers of rows that do not fit, no points at all, or points or a Jacobian that are not
            finite.
    """
    checks.last_size("points", _check_points(flow, points), metric.size)
    return metric.matrix_measure(_jacobian(flow, points, t))


def sampled_rate(flow: VectorField, points: Tensor, metric: Metric, *, t: float = 0.0) -> SampledRate:
    """The rate seen at given states.

    Args:
        flow: any vector field. A flow of a problem needs as many rows of input as there are points, or a single one.
        points: (batch, n).
        metric: the norm.
        t: the time at which a time-varying field is looked at.

    Raises:
        InputError: as ``measure``.
    """
    with torch.no_grad():
        measures = measure(flow, points, metric, t=t)
    return _record(measures, points, metric, [t] * len(points), "given points")


def sampled_rate_along(flow: VectorField, trajectory: Trajectory, metric: Metric) -> SampledRate:
    """The rate seen at every state of every row of a trajectory, at the time it was there; arguments as above."""
    states, times = trajectory.states.detach(), trajectory.times
    moments = times if times.ndim == 1 else times[:, :, None]
    with torch.no_grad():
        measures = [measure(flow, state, metric, t=time) for time, state in zip(moments, states, strict=True)]
    each = times.reshape(len(times), -1).expand(states.shape[:2]).flatten().tolist()
    return _record(torch.cat(measures), states.flatten(0, 1), metric, each, "along trajectories")


@torch.inference_mode(False)  # the ascent needs a graph
def worst_point(
    flow: VectorField,
    start: Tensor,
    metric: Metric,
    *,
    radius: float,
    steps: int = 100,
    learning_rate: float | None = None,
    t: float = 0.0,
) -> SampledRate:
    """Climb to states where the field contracts least: projected gradient ascent on μ(∂f/∂s) from every row.

    Finds local maxima only. Where the Jacobian is piecewise constant (ReLU) the measure has no slope to climb, and the
    result is that of the starting points: use many of them.

    Args:
        flow: any vector field with a differentiable Jacobian.
        start: (batch, n), one ascent from each.
        metric: the norm.
        radius: no row leaves the box of this half width around its start.
        steps: gradient steps.
        learning_rate: first step length of Adam, decaying to zero; None means a tenth of the radius.
        t: the time at which a time-varying field is looked at.

    Returns:
        The record of the best point of every row, the starting points included.

    Raises:
        InputError: as ``measure``, also where the Jacobian is not finite at a point that the ascent comes to; and on a
            radius, steps or learning rate out of range.
    """
    checks.positive_number("radius", radius)
    checks.whole_number("steps", steps)
    length = checks.positive_number("learning_rate", radius / 10 if learning_rate is None else learning_rate)
    point = _check_points(flow, start).detach().clone().requires_grad_()
    best_point, best = start.detach().clone(), start.new_full((len(start),), -float("inf"))
    optimiser = torch.optim.Adam([point], lr=length)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps + 1):
        with torch.enable_grad():
            value = measure(flow, point, metric, t=t)
            better = value.detach() > best
            best = torch.where(better, value.detach(), best)
            best_point = torch.where(better[:, None], point.detach(), best_point)
            if step == steps or not value.requires_grad:
                break
            (gradient,) = torch.autograd.grad(-value.sum(), point, allow_unused=True)
        if gradient is None:
            break
        point.grad = gradient.nan_to_num(0.0)
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            point.copy_(torch.minimum(torch.maximum(point, start - radius), start + radius))
    return _record(best, best_point, metric, [t] * len(start), "gradient ascent")


def fit_metric(
    flow: VectorField,
    points: Tensor,
    *,
    family: Family = FullP,
    steps: int = 500,
    learning_rate: float = 0.05,
    t: float = 0.0,
) -> SampledRate:
    """Train a constant metric in which a flow contracts as fast as possible at given samples.

    Minimises the largest measure, smoothed less and less, by Adam; the best metric met is returned. Test it on *other*
    points: on its own samples the rate is too good.

    Args:
        flow: any vector field.
        points: (batch, n) samples; the Jacobians there are computed once.
        family: ``FullP``, ``WeightedL2``, ``WeightedL1`` or ``WeightedLinf``.
        steps: gradient steps.
        learning_rate: of Adam on the logarithms of the weights (and the off-diagonal entries of a factor of P).
        t: the time at which a time-varying field is looked at.

    Raises:
        InputError: if the family is none of these, the steps or the learning rate are out of range, there are no
            points, or the Jacobians are not finite.
    """
    families = (FullP, WeightedL2, WeightedL1, WeightedLinf)
    if family not in families:
        raise InputError(f"family must be one of {', '.join(f.__name__ for f in families)}, got {family!r}")
    checks.whole_number("steps", steps)
    checks.positive_number("learning_rate", learning_rate)
    jacobians = _jacobians(flow, points, t)
    found = fitted_metric(jacobians, family=family, steps=steps, learning_rate=learning_rate)
    return _record(found.matrix_measure(jacobians), points, found, [t] * len(points), "metric trained on the samples")


def fit_metric_by_inequalities(
    flow: VectorField, points: Tensor, *, family: type[FullP] | type[WeightedL2] = FullP, tolerance: float = 1e-4,
    t: float = 0.0,
) -> SampledRate:
    r"""The best quadratic metric at given samples, by semidefinite programs: JᵀP + PJ ⪯ −2cP at each, largest c.

    What ``fit_metric`` approaches by gradients, here up to a tolerance; for tens of neurons and thousands of samples.
    It is as little a certificate: test it on *other* points.

    Args:
        flow: any vector field.
        points: (batch, n) samples; the Jacobians there are computed once.
        family: ``FullP`` or ``WeightedL2``.
        tolerance: of the rate, relative to the largest norm of a Jacobian, or to 1 if that is larger.
        t: the time at which a time-varying field is looked at.

    Raises:
        InputError: if the family is neither, there are no points, or the Jacobians are not finite.
        MissingExtraError: without cvxpy and clarabel, the extra ``certificates``.
    """
    if family not in (FullP, WeightedL2):
        raise InputError(f"family must be FullP or WeightedL2, got {family!r}; fit_metric has the others")
    checks.number("tolerance", tolerance, low=0, high=1, low_open=True)
    jacobians = _jacobians(flow, points, t)
    metric = common_metric(jacobians, diagonal=family is WeightedL2, tolerance=tolerance)
    measures = metric.matrix_measure(jacobians)
    return _record(measures, points, metric, [t] * len(points), "metric by matrix inequalities on the samples")


def _jacobians(flow: VectorField, points: Tensor, t: float) -> Tensor:
    """At the samples, float64 on the CPU: (batch, n, n)."""
    _check_points(flow, points)
    with torch.no_grad():
        return _jacobian(flow, points.detach(), t).detach().to("cpu", torch.float64)


def _jacobian(flow: VectorField, points: Tensor, t: Time) -> Tensor:
    jacobian, expected = flow.jacobian(points, t), (*points.shape, points.shape[1])
    if tuple(jacobian.shape) != expected:
        raise InputError(
            f"points have shape {tuple(points.shape)}, but the Jacobian of the flow has shape "
            f"{tuple(jacobian.shape)} in place of {expected}; pass points that fit the flow"
        )
    return checks.finite("the Jacobian", jacobian)


def _check_points(flow: VectorField, points: Tensor) -> Tensor:
    if not len(checked_states("points", flow, points)):
        raise InputError(f"points must have shape (batch, n) with at least one row, got {tuple(points.shape)}")
    return points


def _record(measures: Tensor, points: Tensor, metric: Metric, times: list[float], method: str) -> SampledRate:
    worst = int(measures.argmax())
    return SampledRate(
        rate=-float(measures[worst]),
        metric=metric,
        measures=measures,
        worst_point=points[worst].detach(),
        worst_time=times[worst],
        method=method,
    )
