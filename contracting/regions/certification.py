r"""Contraction proved over a region of any field: interval Jacobians, matrix measures over boxes, branch and bound."""

from __future__ import annotations

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.fitting import fitted_metric
from contracting.errors import PreconditionError
from contracting.flows.fields import VectorField
from contracting.metrics import FullP, Metric
from contracting.regions.branch import supremum
from contracting.regions.field import FieldOnBoxes, Times
from contracting.regions.records import RegionCertificate
from contracting.regions.rest import invariant_ball, invariant_box, resting_point
from contracting.regions.sets import Ball, Box, Region, checked_region, fitting_metric

METHOD = "interval Jacobians, branch and bound"
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
    bound. All rounding is counted; the field is meant in exact arithmetic, with its weights as they are stored.

    Args:
        flow: any vector field, such as ``NeuralFlow(module)``.
        region: a ``Box`` or a ``Ball``, of the size of the state.
        metric: in which to prove; None takes that of a ball, and for a box one trained on samples of it.
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
    if metric is None:
        metric = region.metric if isinstance(region, Ball) else _trained_metric(field, region)
    metric = fitting_metric(metric, region.size)
    found = supremum(field.measures(region, metric), field.cover(region), budget=budget, tolerance=tolerance)
    rate, sampled = -found.upper, -found.lower
    rest = _rest_in(field, region, metric, rate, given)
    if given is not None and rest is None:
        raise PreconditionError(
            f"the field is not proved to rest in {region} near the equilibrium that was given: the rate proved is "
            f"{rate:.3g}, and |f| there is {float(field.value(given[None]).norm()):.3g}; take a smaller region, "
            "another metric, or a point where the field rests"
        )
    return RegionCertificate(
        rate=rate,
        metric=metric,
        region=region,
        invariant=None if rest is None else rest[0],
        equilibrium=None if rest is None else rest[1],
        sampled=sampled,
        method=METHOD,
        flow=field.name,
        boxes=found.boxes,
        complete=found.upper - found.lower <= tolerance * abs(found.lower),
        times=times,
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
    cover = field.cover(region)
    unit = torch.rand(_SAMPLES, cover.lo.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobians = field.jacobian(cover.lo + unit * (cover.hi - cover.lo))
    good = torch.isfinite(jacobians).all(-1).all(-1)
    if field.size == 1 or not bool(good.any()):
        return FullP(torch.eye(field.size, dtype=torch.float64))
    return fitted_metric(jacobians[good], steps=_TRAINING)
