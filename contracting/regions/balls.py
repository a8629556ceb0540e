r"""The largest ball around an equilibrium over which contraction could be proved, and a metric that makes it large."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.riccati import lyapunov_metric
from contracting.errors import PreconditionError
from contracting.flows.fields import VectorField
from contracting.metrics import FullP, Metric
from contracting.regions.branch import reach
from contracting.regions.certification import METHOD
from contracting.regions.field import FieldOnBoxes
from contracting.regions.measures import half_widths
from contracting.regions.records import LargestBall, RegionCertificate
from contracting.regions.rest import invariant_ball, resting_point
from contracting.regions.sets import Ball, fitting_metric

_RAYS, _RADII = 256, 64  # Points that are sampled lie on so many rays from the equilibrium, so many on each.
_SMALLEST = 1e-6  # The nearest of them, in shares of the farthest.
_TRIALS = 40  # Metrics that are tried in each of two rounds: 150 gained van der Pol's oscillator 0.4 % of the area.
_WIDER = 8.0  # In the second round samples reach so many times as far as the best ball of the first.


def largest_contracting_ball(
    flow: VectorField,
    equilibrium: Tensor,
    metric: Metric | None = None,
    *,
    rate: float = 0.0,
    limit: float | None = None,
    budget: int = 40_000,
    tolerance: float = 0.02,
) -> LargestBall:
    """The largest ball around an equilibrium over which a rate could be proved; every trajectory from it converges.

    Boxes nearest to the equilibrium are looked at first and the others wait, so one search gives the radius that is
    proved and the smallest radius at which the proof must fail.

    Args:
        flow: any vector field made of torch operations, without time.
        equilibrium: about where it rests, (n,); Newton's method corrects it.
        metric: of the ball; None takes a Lyapunov metric of the linearisation that makes the ball large.
        rate: the smallest rate that is good enough; the one proved is larger.
        limit: no ball with a half width beyond this is looked for; None means a thousand times the size of the
            equilibrium, and at least a thousand.
        budget: so many boxes are bounded at most.
        tolerance: stop when the radius is this close to the one at which the proof must fail, relative to it.

    Raises:
        InputError: if shapes do not fit, or an operation of the field has no inclusion function; it is named.
        PreconditionError: if the field does not rest there, does not contract there, or no ball could be proved.
    """
    start = checks.finite("equilibrium", checks.floating_tensor("equilibrium", equilibrium)).detach()
    if start.ndim != 1 or not len(start):
        checks.shape("equilibrium", start, (max(1, start.numel()),))
    checks.number("rate", rate, low=0.0)
    checks.whole_number("budget", budget, low=2)
    checks.number("tolerance", tolerance, low=0.0, high=1.0, high_open=True)
    start = start.to("cpu", torch.float64)
    field = FieldOnBoxes(flow, len(start))
    point = resting_point(field, start)
    if point is None or float((point - start).norm()) > 0.1 * (1 + float(start.norm())):
        raise PreconditionError(
            f"the field does not rest at the equilibrium that was given, nor next to it: |f| there is "
            f"{float(field.value(start[None]).norm()):.3g}; look for a steady state first"
        )
    largest = 1e3 * max(1.0, float(point.abs().max())) if limit is None else checks.positive_number("limit", limit)
    if metric is None:
        metric = ball_metric(field, point, rate, largest)
    metric = fitting_metric(metric, field.size)
    at_rest = float(metric.matrix_measure(field.jacobian(point[None])))
    if not at_rest < -rate:
        raise PreconditionError(
            f"at its equilibrium the field contracts at rate {-at_rest:.3g} in this metric, which is not more than the "
            f"{rate:.3g} asked for, so no ball around it can be proved; ask for less, or take another metric"
        )
    seen, where = _seen_to_fail(field, point, metric, rate, largest)
    cover = Ball(point, seen, metric)
    search = field.measures(cover, metric)

    def far(points: Tensor) -> Tensor:
        return metric.norm(points - point)

    found = reach(search, field.cover(cover), far=far, limit=-rate, budget=budget, tolerance=tolerance)
    proved = -found.bound
    if not (found.radius > 0 and proved > 0):
        raise PreconditionError(
            f"no ball around the equilibrium was proved within the budget of {budget} boxes; allow more, or take a "
            "metric in which the field contracts faster there"
        )
    ball = Ball(point, found.radius, metric)
    rest = invariant_ball(field, ball, metric, proved, point)
    if rest is None:
        raise PreconditionError(
            "the ball that contracts is too small for its equilibrium to be proved beside the rounding of the field"
        )
    certificate = RegionCertificate(
        rate=proved,
        metric=metric,
        region=ball,
        invariant=ball,
        equilibrium=rest[1],
        sampled=-float(search.value(_cloud(ball, _RAYS, _RADII)).nan_to_num(nan=-math.inf).max()),
        method=METHOD,
        flow=field.name,
        boxes=found.boxes,
        complete=found.radius >= (1 - tolerance) * found.broken,
    )
    at = where if found.at is None else found.at
    return LargestBall(certificate=certificate, radius=found.radius, broken=found.broken, at=at)




def _cloud(ball: Ball, rays: int, radii: int, *, smallest: float = 0.05, even: bool = True) -> Tensor:
    """Points of a ball on rays from its centre, nearest first: (radii·rays, n)."""
    n = ball.size
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(rays, n, generator=generator, dtype=torch.float64)
    if n == 2:
        angle = torch.linspace(0, 2 * math.pi, rays + 1, dtype=torch.float64)[:-1]
        directions = torch.stack([angle.cos(), angle.sin()], -1)
    if isinstance(ball.metric, FullP):  # even in the coordinates in which the ball is round
        upper = torch.linalg.cholesky(ball.metric.matrix).mT
        directions = torch.linalg.solve_triangular(upper, directions.mT, upper=True).mT
    directions = directions / ball.metric.norm(directions)[:, None]
    steps = torch.linspace(smallest if even else math.log(smallest), 1.0 if even else 0.0, radii, dtype=torch.float64)
    lengths = ball.radius * (steps if even else steps.exp())
    return (ball.centre + lengths[:, None, None] * directions).flatten(0, 1)


def _seen_to_fail(
    field: FieldOnBoxes, point: Tensor, metric: Metric, rate: float, limit: float
) -> tuple[float, Tensor | None]:
    """The radius of the nearest sample at which the field does not contract at the rate, and that sample."""
    radius, found = limit / float(half_widths(metric, 1.0).max()), None
    for even in (False, True):  # far and wide first, then evenly up to what was found
        points = _cloud(Ball(point, radius, metric), _RAYS, _RADII, smallest=_SMALLEST if not even else 0.05, even=even)
        measures = metric.matrix_measure(field.jacobian(points).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
        lengths = torch.where(measures >= -rate, metric.norm(points - point), math.inf)
        nearest = int(lengths.argmin())
        if not math.isfinite(float(lengths[nearest])):
            return radius, found
        radius, found = float(lengths[nearest]), points[nearest]
    return radius, found


def ball_metric(field: FieldOnBoxes, point: Tensor, rate: float, limit: float) -> Metric:
    """A full metric with a large ball: AᵀP + PA = −Q at the equilibrium, with Q = LLᵀ changed at random while it helps.

    How large: the volume of the largest ball in which no sample contracts at less than the rate.

    Raises:
        PreconditionError: if the equilibrium is not stable.
    """
    A = field.jacobian(point[None])[0]
    abscissa = float(torch.linalg.eigvals(A).real.max())
    if not abscissa < -rate:
        raise PreconditionError(
            f"the equilibrium is not stable enough: the linearisation has an eigenvalue with real part {abscissa:.3g}, "
            f"and only below {-rate:g} is there a metric in which a ball around it contracts"
        )
    n = len(A)
    shifted = A + rate * torch.eye(n, dtype=A.dtype)
    generator = torch.Generator().manual_seed(0)
    L = torch.eye(n, dtype=torch.float64)
    P = _lyapunov(shifted, L)
    if P is None:
        raise PreconditionError("no Lyapunov metric of the linearisation was found; give a metric")
    for _ in range(2):
        metric = FullP(P)
        reached, _at = _seen_to_fail(field, point, metric, rate, limit)
        widest = limit / float(half_widths(metric, 1.0).max())
        cloud = _cloud(Ball(point, min(_WIDER * reached, widest), metric), 64, 32)
        apart, jacobians = cloud - point, field.jacobian(cloud).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        best = _volume(P, apart, jacobians, rate)
        step = 0.5
        for _trial in range(_TRIALS):
            other = L + step * torch.randn(n, n, generator=generator, dtype=torch.float64) * L.abs().max()
            candidate = _lyapunov(shifted, other)
            volume = -math.inf if candidate is None else _volume(candidate, apart, jacobians, rate)
            if volume > best and candidate is not None:
                L, P, best, step = other / other.abs().max(), candidate, volume, min(0.5, 1.5 * step)
            else:
                step = max(0.01, 0.93 * step)
    return FullP(P)


def _lyapunov(A: Tensor, L: Tensor) -> Tensor | None:
    """P with AᵀP + PA = −LLᵀ, at unit trace; None if it is not found or hardly definite."""
    if float(torch.linalg.cond(L)) > 1e6:
        return None
    P = lyapunov_metric(torch.linalg.solve(L, A.mT @ L).mT)
    if P is None:
        return None
    P = L @ P @ L.mT
    P = (P + P.mT) / (2 * P.trace())
    return P if float(torch.linalg.cond(P)) < 1e8 else None


def _volume(P: Tensor, apart: Tensor, jacobians: Tensor, rate: float) -> float:
    """The logarithm of the volume of the largest ball of P without a sample that contracts at less than the rate."""
    metric = FullP(P)
    lengths = metric.norm(apart)
    broken = lengths[metric.matrix_measure(jacobians) >= -rate]
    # a ball that reaches beyond the samples is not known to be larger than they reach
    radius = float(torch.cat([broken, lengths.reshape(32, -1)[-1]]).min())
    return len(P) * math.log(max(radius, 1e-300)) - 0.5 * float(torch.logdet(P))
