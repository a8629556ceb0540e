"""The scalable bound: gradients of the barrier only. Whatever point it stops at is a certificate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from equilibrium.lipschitz.barrier import Barrier
from equilibrium.lipschitz.certificate import LipschitzCertificate
from equilibrium.lipschitz.gain import certified_by, compressed, gain
from equilibrium.lipschitz.start import best_scale, starting_multiplier
from equilibrium.lipschitz.system import LipschitzSystem

_FACTOR = 3.0  # first value and growth of the weight t of the objective
_MEMORY = 30  # pairs of steps and changes of the gradient that are kept
_LONGEST = 2.0  # of one step in log Λ
_CENTRED = 1e-2  # predicted decrease at which t grows


@dataclass(frozen=True, kw_only=True)
class FirstOrder:
    r"""Limited-memory BFGS on log Λ, a few Cholesky factorisations per step and no Hessian.

    It minimises tN log ρ(Λ) − log det S + Σ log λᵢ for growing t, where ρ is the best one for Λ and t, so that every
    point lies strictly inside the set of certificates. Without log det S, the way to the optimum runs along the
    boundary of Condition 1 and any descent stalls. The diagonal of the Hessian is the preconditioner.

    ``InteriorPoint`` takes fewer steps and is usually the faster one; both end at the same optimum.

    Args:
        steps: most evaluations of the gradient.
        tolerance: 1/t at which it stops: about the relative gap of γ² to the optimum.
    """

    steps: int = 500
    tolerance: float = 1.5e-3

    def __post_init__(self) -> None:
        checks.whole_number("steps", self.steps, low=0)
        checks.number("tolerance", self.tolerance, low=1e-8, high=1)

    def bound(self, system: LipschitzSystem, *, start: Tensor | None = None) -> LipschitzCertificate:
        """The checked certificate at the best Λ.

        Args:
            system: the map.
            start: Λ in which Condition 1 holds, (n,); None takes the metric of the system, or looks for one.

        Raises:
            PreconditionError: if no Λ is found in which Condition 1 holds.
        """
        start = starting_multiplier(system) if start is None else start
        return certified_by(system, self.multiplier(system, start), "first-order descent on Λ")

    def multiplier(self, system: LipschitzSystem, start: Tensor) -> Tensor:
        """The best Λ found, (n,), in the normalisation of γ(Λ); Condition 1 holds in ``start``."""
        system = compressed(system)
        lam = best_scale(system, start)
        value = float(gain(system, lam))
        if not 0 < value < float("inf") or system.slopes[0] == system.slopes[1] or self.steps == 0:
            return lam
        barrier = Barrier(system, lam, value)
        log_s, left, t = torch.full_like(lam, 0.2), self.steps, _FACTOR
        while True:
            here = _Inside.at(barrier, log_s, t)
            if here is None:
                return lam
            here, used = _descend(barrier, here, t, left)
            log_s, left = here.log_s, left - used
            if left <= 0 or 1 / t <= self.tolerance:
                break
            t *= _FACTOR
        solved = barrier.multiplier(here.point)
        return solved if float(gain(system, solved)) < value else lam


@dataclass(frozen=True, kw_only=True, eq=False)
class _Inside:
    """log s, its point (s, ρ), and the objective with its gradient and the reciprocal diagonal of its curvature."""

    log_s: Tensor
    point: Tensor
    value: float
    slope: Tensor
    scale: Tensor

    @classmethod
    def at(cls, barrier: Barrier, log_s: Tensor, t: float) -> _Inside | None:
        """The objective at log s, or None outside."""
        s = log_s.exp()
        weight = t * (barrier.size + len(barrier.identity))
        rho = barrier.best_rho(s, weight)
        if rho is None:
            return None
        point = torch.cat([s, rho[None]])
        R = barrier.factor(point)
        if R is None:
            return None
        gradient, parts = barrier.gradient(point, R)
        return cls(
            log_s=log_s,
            point=point,
            value=float(weight * rho.log() - 2 * R.diagonal().log().sum() + log_s.sum()),
            slope=s * gradient[:-1] + 2,  # the gradient has −Σ log s, the objective +Σ log s
            scale=1 / (s.square() * barrier.curvature(point, parts)),
        )


def _descend(barrier: Barrier, here: _Inside, t: float, most: int) -> tuple[_Inside, int]:
    """Minimise the objective of weight t; where it ends, and the number of evaluations."""
    pairs: list[tuple[Tensor, Tensor]] = []
    used = 1
    while used < most:
        step = _quasi_newton(pairs, here.slope, here.scale)
        descent = float(step @ here.slope)
        if not descent < -_CENTRED:
            break
        length = min(1.0, _LONGEST / float(step.abs().max()))
        there = None
        while used < most and length > 1e-8:
            there = _Inside.at(barrier, here.log_s + length * step, t)
            used += 1
            if there is not None and there.value <= here.value + 1e-4 * length * descent:
                break
            there, length = None, length / 2.5
        if there is None:
            break
        moved, change = there.log_s - here.log_s, there.slope - here.slope
        if float(moved @ change) > 1e-12 * float(change.square().sum()):
            pairs = [*pairs[1 - _MEMORY :], (moved, change)]
        here = there
    return here, used


def _quasi_newton(pairs: list[tuple[Tensor, Tensor]], slope: Tensor, scale: Tensor) -> Tensor:
    """The step −Hg of L-BFGS by the two-loop recursion, from a diagonal inverse Hessian."""
    result = -slope
    shares = []
    for moved, change in reversed(pairs):
        share = (moved @ result) / (moved @ change)
        shares.append(share)
        result = result - share * change
    if pairs:
        moved, change = pairs[-1]
        result = result * scale * ((moved @ change) / (change @ (scale * change)))
    else:
        result = 0.3 * result * scale
    for (moved, change), share in zip(pairs, reversed(shares), strict=True):
        result = result + (share - (change @ result) / (moved @ change)) * moved
    return result
