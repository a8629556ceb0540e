r"""Lur'e systems over a region: what pre-activations can be there, the slopes that this leaves, and their certificate.

On a convex region any two states have pre-activations in an interval [vᵢ, v̄ᵢ] for each neuron, so every secant of σ
that matters has a slope in the range of σ′ over it. With these slopes the inequalities are the same and much weaker
than with those of all numbers; what they prove holds as long as both trajectories stay inside. The cost does not grow
with the number of boxes that a region of many coordinates would be cut into.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contracting.certificates.certification import certificates, certify
from contracting.certificates.finders import RateFinder
from contracting.certificates.lifted.form import LiftedForm
from contracting.certificates.records import Certificate, CertificateError
from contracting.errors import InputError
from contracting.flows.fields import VectorField
from contracting.lure.flow import LureFlow
from contracting.lure.reading import lure_of
from contracting.metrics import FullP, WeightedL2
from contracting.regions import intervals as iv
from contracting.regions.field import FieldOnBoxes, state_like
from contracting.regions.intervals import Interval
from contracting.regions.measures import norm_over, quadratic
from contracting.regions.sets import Ball, Region
from contracting.regions.tracing import Inclusion


def slopes_over(flow: LureFlow, field: FieldOnBoxes, region: Region) -> tuple[Tensor, Tensor]:
    """The smallest and the largest slope of every neuron over a region, (m,) each.

    Args:
        flow: the system.
        field: the same field on boxes, which knows the times.
        region: of the states.

    Raises:
        InputError: if its neurons are found by a solver, which cannot be followed operation by operation.
    """
    n, cover = flow.size, field.cover(region)
    states, times = cover.map(lambda x: x[:, :n]), None if field.times is None else cover.map(lambda x: x[:, n:])
    like = state_like(flow)
    try:
        inclusion = Inclusion(lambda t, s: flow.preactivations(s, t), like, n)
    except InputError as error:
        raise InputError(f"the pre-activations of this field cannot be bounded over a region: {error}") from error
    found = inclusion(states, times)
    apart = iv.subtract(states, iv.exactly(region.centre))
    at_centre = inclusion(iv.exactly(region.centre[None]), times).value
    rows = found.slopes(n).map(lambda x: x.permute(1, 2, 0))  # (1, m, n)
    if isinstance(region, Ball) and isinstance(region.metric, (FullP, WeightedL2)):
        reach = _reach(rows, region, region.metric)
    else:
        reach = iv.matmul(rows, apart.map(lambda x: x[:, :, None])).map(lambda x: x[..., 0])
    linear = iv.add(at_centre, reach)
    value = Interval(torch.maximum(found.value.lo, linear.lo), torch.minimum(found.value.hi, linear.hi))
    own = Inclusion(lambda t, v: flow.activation(v), like, flow.neurons)(value).slopes(flow.neurons)
    low, high = (end[:, 0].diagonal() for end in (own.lo, own.hi))
    system = flow.system()
    return torch.maximum(low, system.low), torch.minimum(high, system.high)


def _reach(rows: Interval, ball: Ball, metric: FullP | WeightedL2) -> Interval:
    """How far Js moves from the centre of a ball: (1, m, n) -> (1, m); s = Yy with ‖y‖₂ hardly more than the radius."""
    P, Y = quadratic(metric)
    unit = iv.matmul(Y.map(lambda x: x.mT), iv.matmul(P, Y))
    defect = norm_over(iv.subtract(unit, iv.exactly(torch.eye(metric.size, dtype=torch.float64))))
    squares = iv.total(iv.square(iv.matmul(rows, Y)), (2,)).hi
    reach = squares.sqrt() * ball.radius / (1 - defect).sqrt() * (1 + 1e-14)
    return Interval(-reach, reach)


def certify_slopes_over(
    flow: VectorField, field: FieldOnBoxes, region: Region, finder: RateFinder | None = None
) -> Certificate:
    """The best certificate of a field that is read as a Lur'e system, with the slopes that a region leaves.

    Raises:
        InputError: if the field cannot be read so, or its pre-activations cannot be bounded.
        CertificateError: if no certificate was found.
    """
    lure = lure_of(flow, state=torch.zeros(field.size, dtype=state_like(flow).dtype), dtype=torch.float64)
    system = lure.system().with_slopes(slopes_over(lure, field, region))
    if finder is not None:
        return certify(system, finder)
    # the part of a region that is invariant is known of balls that are ellipsoids or boxes
    found = [proved for proved in certificates(system) if not isinstance(proved.metric, LiftedForm)]
    if not found:
        raise CertificateError("no certificate was found in a norm whose balls are ellipsoids or boxes")
    return max(found, key=lambda proved: proved.rate)
