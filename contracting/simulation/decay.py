r"""Measured rates: an exponential fitted to distances, with its uncertainty and with what it was fitted to."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.display import Displayed
from contracting.errors import InputError
from contracting.simulation.times import elapsed_times, time_grid

_NOISE = 1e4  # A distance is not believed below so many units of rounding of the largest one.


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DecayFit(Displayed):
    r"""d(t) ≈ d₀e^{−ct}, fitted by least squares to log d; one entry per row.

    Attributes:
        rate: c; negative where the distance grows, NaN with fewer than two usable points.
        uncertainty: standard error of c; infinite with fewer than three usable points. It is that of independent
            scatter about a straight line: a distance that does not fall exponentially shows as a larger value.
        slowest: the smallest average rate −log(d(t)/d(0))/(t − t₀) over the window; no certified rate may exceed it.
        points: how many distances were used.
    """

    rate: Tensor
    uncertainty: Tensor
    slowest: Tensor
    points: Tensor


def decay_rate(times: Tensor, distances: Tensor, *, skip: float = 0.0, floor: float | None = None) -> DecayFit:
    """Fit the exponential rate at which distances decay (or grow, as a negative rate).

    Args:
        times: (T,), or (T, batch) with a grid for each row, as of a trajectory; a repeated time counts once.
        distances: (T,) or (T, batch), ≥ 0; NaN from where a row could not be continued, and not used from there on.
        skip: the fit leaves out this much time at the beginning, to measure the late rate; ``slowest`` does not.
        floor: distances from the first one below this on are rounding noise and are not used; None means 1e4 units of
            rounding relative to the largest distance of the row. Pass 1e4·eps·‖s‖ if the states are much larger
            than their distance.

    Raises:
        InputError: on shapes that do not fit, times that go back and forth, or distances that are negative or begin
            with NaN or have it between numbers.
    """
    checks.floating_tensor("distances", distances)
    checks.number("skip", skip, low=0)
    if floor is not None:
        checks.number("floor", floor, low=0, high=math.inf, high_open=True)
    grid = time_grid(times, distances.shape[1] if distances.ndim == 2 else None)
    if distances.ndim not in (1, 2) or len(grid) != len(distances):
        raise InputError(
            f"distances must have shape (T,) or (T, batch) for {len(grid)} times, got {tuple(distances.shape)}"
        )
    if bool((distances.detach() < 0).any()):
        raise InputError("distances must not be negative; pass norms, such as distance(pair, metric)")
    missing = torch.isnan(distances.detach())
    if bool(missing[0].any() or (missing[:-1] & ~missing[1:]).any()):
        raise InputError("distances must be numbers up to where a row ends: they begin with NaN, or go on after it")
    d = distances.reshape(len(times), -1)
    t = elapsed_times(grid.to(d.device), d).expand_as(d)
    repeated = torch.cat([torch.zeros_like(t[:1]), t.diff(dim=0) == 0]).bool()
    noise = _NOISE * torch.finfo(d.dtype).eps * d.detach().nan_to_num(0.0, posinf=0.0).amax(0)
    limit = noise.clamp_min(torch.finfo(d.dtype).tiny) if floor is None else noise.new_full(noise.shape, floor)
    # once below the noise, always below: what comes back up is noise too
    usable = (torch.isfinite(d) & (d > limit)).cumprod(0).bool()
    log = torch.where(usable, d, 1.0).log()
    average = torch.where(usable & (t != 0), (log[0] - log) / torch.where(t == 0, 1.0, t), float("inf"))
    slowest = average.amin(0)
    weight = (usable & ~repeated & (t.abs() >= skip)).to(d)
    points = weight.sum(0)
    t_mean, log_mean = (weight * t).sum(0) / points, (weight * log).sum(0) / points
    spread = (weight * (t - t_mean) ** 2).sum(0)
    slope = (weight * (t - t_mean) * (log - log_mean)).sum(0) / spread
    scatter = (weight * (log - log_mean - slope * (t - t_mean)) ** 2).sum(0)
    error = (scatter / ((points - 2).clamp_min(1) * spread)).sqrt()
    shape = distances.shape[1:]
    return DecayFit(
        rate=torch.where(points >= 2, -slope, float("nan")).reshape(shape),
        uncertainty=torch.where(points >= 3, error, float("inf")).reshape(shape),
        slowest=torch.where(torch.isfinite(slowest), slowest, float("nan")).reshape(shape),
        points=points.to(torch.int64).reshape(shape),
    )
