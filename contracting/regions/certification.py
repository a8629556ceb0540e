r"""Contraction proved over a region of any field: interval Jacobians, matrix measures over boxes, branch and bound."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.fitting import fitted_metric
from contracting.certificates.records import CertificateError
from contracting.errors import InputError, PreconditionError
from contracting.flows.fields import VectorField
from contracting.metrics import FullP, Metric
from contracting.regions.branch import supremum
from contracting.regions.field import FieldOnBoxes, Times
from contracting.regions.records import RateProfile, RegionCertificate
from contracting.regions.rest import invariant_ball, invariant_box, resting_point
from contracting.regions.sets import Ball, Box, Region, checked_region, fitting_metric
from contracting.regions.slopes import certify_slopes_over

METHOD = "interval Jacobians, branch and bound"
_FEW = 3  # In so many coordinates a region is cut into boxes first; in more their number grows beyond any budget.
_SAMPLES, _TRAINING = 256, 200  # A metric is trained at so many points in so many steps; no proof rests on them.


def certify_region(
    flow: VectorField,
    region: Region,
    metric: Metric | None = None,
    *,
    times: Times | None = None,
    equilibrium: Tensor | None = None,
    budget: int = 20_000,
    tolerance: float = 0.02,
) -> RegionCertificate:
    r"""A contraction rate proved over a box or a ball, for any field made of torch operations.

    The largest matrix measure of ∂f/∂s over the region is enclosed by branch and bound: the rate is minus its upper
    bound. All rounding is counted; the field is meant in exact arithmetic, with its weights as they are stored. A
    network in many coordinates is read as a Lur'e system and certified with the slopes that the region leaves to its
    neurons.

    Args:
        flow: any vector field, such as ``NeuralFlow(module)``.
        region: a ``Box`` or a ``Ball``, of the size of the state.
        metric: in which to prove, by boxes; None takes that of a ball, for a box one trained on samples of it, and with
            more than three coordinates, or where boxes fail, what the certificate of the Lur'e system finds.
        times: the interval of time (first, last) of a field that depends on time.
        equilibrium: about where the field rests in the region, (n,); None looks for it by Newton's method.
        budget: so many boxes are bounded at most.
        tolerance: stop when the rate is so close to the sampled one, relative to it.

    Returns:
        The record, whose ``invariant`` and ``claim`` say what was proved of trajectories. Where the measure is positive
        somewhere the rate is negative.

    Raises:
        InputError: if shapes do not fit, or an operation of the field has no inclusion function; it is named.
        PreconditionError: if ``equilibrium`` is given and the field is not proved to have one in the region.
    """
    region = checked_region(region)
    checks.whole_number("budget", budget, low=2)
    checks.number("tolerance", tolerance, low=0.0, high=1.0)
    given = None
    if equilibrium is not None:
        given = checks.shape("equilibrium", checks.floating_tensor("equilibrium", equilibrium), (region.size,))
        given = checks.finite("equilibrium", given).detach().to("cpu", torch.float64)
    field = FieldOnBoxes(flow, region.size, times)
    if metric is not None:
        records = [_by_boxes(field, region, fitting_metric(metric, region.size), given, budget, tolerance)]
    else:
        records = list(_by_any_means(flow, field, region, given, budget, tolerance))
    best = max(records, key=lambda record: record.rate)
    if given is not None and best.invariant is None:
        raise PreconditionError(
            f"the field is not proved to rest in {region} near the equilibrium that was given: the rate proved is "
            f"{best.rate:.3g}, and |f| there is {float(field.value(given[None]).norm()):.3g}; take a smaller region, "
            "another metric, or a point where the field rests"
        )
    return best


def _by_any_means(
    flow: VectorField, field: FieldOnBoxes, region: Region, given: Tensor | None, budget: int, tolerance: float
) -> Iterator[RegionCertificate]:
    """Records by boxes in few coordinates, and by slopes in many, until one contracts."""
    few = region.size <= _FEW
    for boxes in (few, not few):
        if boxes:
            metric = region.metric if isinstance(region, Ball) else _trained_metric(field, region)
            record: RegionCertificate | None = _by_boxes(field, region, metric, given, budget, tolerance)
        else:
            record = _by_slopes(flow, field, region, given, tolerance)
        if record is not None:
            yield record
            if record.contracting:
                return


def _by_boxes(
    field: FieldOnBoxes, region: Region, metric: Metric, given: Tensor | None, budget: int, tolerance: float
) -> RegionCertificate:
    found = supremum(field.measures(region, metric), field.cover(region), budget=budget, tolerance=tolerance)
    return _record(field, region, metric, -found.upper, -found.lower, given, tolerance, METHOD, found.boxes)


def _by_slopes(
    flow: VectorField, field: FieldOnBoxes, region: Region, given: Tensor | None, tolerance: float
) -> RegionCertificate | None:
    """A record of a field that is read as a Lur'e system, None of any other."""
    try:
        proved = certify_slopes_over(flow, field, region)
    except (InputError, CertificateError, PreconditionError):
        return None
    metric = fitting_metric(proved.metric, region.size)
    method = f"slopes of the neurons over the region, {proved.method}"
    measures = metric.matrix_measure(_jacobians(field, region))
    return _record(field, region, metric, proved.rate, -float(measures.max()), given, tolerance, method, 1)


def _record(
    field: FieldOnBoxes,
    region: Region,
    metric: Metric,
    rate: float,
    sampled: float,
    given: Tensor | None,
    tolerance: float,
    method: str,
    boxes: int,
) -> RegionCertificate:
    rest = _rest_in(field, region, metric, rate, given)
    return RegionCertificate(
        rate=rate,
        metric=metric,
        region=region,
        invariant=None if rest is None else rest[0],
        equilibrium=None if rest is None else rest[1],
        sampled=sampled,
        method=method,
        flow=field.name,
        boxes=boxes,
        complete=sampled - rate <= tolerance * abs(sampled),
        times=field.times,
    )


def rate_against_radius(
    flow: VectorField, centre: Tensor, radii: Tensor, metric: Metric, *, budget: int = 20_000, tolerance: float = 0.02
) -> RateProfile:
    """Rates over balls of growing radius around a point, each proved for itself.

    Args:
        flow: any vector field made of torch operations, without time.
        centre: (n,).
        radii: (k,), positive.
        metric: of the balls and of the rates.
        budget: so many boxes are bounded at most for each ball.
        tolerance: stop when the rate is so close to the sampled one, relative to it.

    Raises:
        InputError: as ``certify_region``, and if the radii are no positive vector.
    """
    if checks.positive_tensor("radii", checks.floating_tensor("radii", radii)).ndim != 1:
        raise InputError(f"radii must have shape (k,), got {tuple(radii.shape)}")
    balls = [Ball(centre, float(radius), metric) for radius in radii]
    field = FieldOnBoxes(flow, centre.shape[0])
    found = [
        supremum(field.measures(ball, ball.metric), field.cover(ball), budget=budget, tolerance=tolerance)
        for ball in balls
    ]
    return RateProfile(
        radii=torch.tensor([ball.radius for ball in balls], dtype=torch.float64),
        certified=torch.tensor([-each.upper for each in found], dtype=torch.float64),
        sampled=torch.tensor([-each.lower for each in found], dtype=torch.float64),
        metric=metric,
        flow=field.name,
    )


def _rest_in(
    field: FieldOnBoxes, region: Region, metric: Metric, rate: float, given: Tensor | None
) -> tuple[Region, Ball | None] | None:
    """A part of the region that no trajectory leaves, and the equilibrium in it."""
    if rate <= 0:
        return None
    start = region.centre if given is None else given
    points = [start] if given is None else []
    rest = resting_point(field, start)
    points += [] if rest is None else [rest]
    for point in points[::-1] if isinstance(region, Box) else points:
        found: tuple[Region, Ball | None] | None = None
        if isinstance(region, Box):
            inside = bool(((point >= region.lower) & (point <= region.upper)).all())
            found = invariant_box(field, region, metric, rate, point) if inside else None
        found = found or invariant_ball(field, region, metric, rate, point)
        if found is not None:
            return found
    return None


def _trained_metric(field: FieldOnBoxes, region: Box) -> Metric:
    """A full metric trained on points of the box."""
    if field.size == 1:
        return FullP(torch.eye(1, dtype=torch.float64))
    return fitted_metric(_jacobians(field, region), steps=_TRAINING)


def _jacobians(field: FieldOnBoxes, region: Region) -> Tensor:
    """At random points of the region, zero where they are not finite: (samples, n, n)."""
    cover = field.cover(region)
    unit = torch.rand(_SAMPLES, cover.lo.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = cover.lo + unit * (cover.hi - cover.lo)
    if isinstance(region, Ball):
        apart = points[:, : region.size] - region.centre
        shrunk = apart * (region.radius / region.metric.norm(apart).clamp_min(region.radius))[:, None]
        points = torch.cat([region.centre + shrunk, points[:, region.size :]], 1)
    return field.jacobian(points).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
