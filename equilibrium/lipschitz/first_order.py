"""The scalable bound: gradients of the barrier only. Whatever point it stops at is a certificate."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from contracting import checks
from equilibrium.lipschitz.barrier import Barrier
from equilibrium.lipschitz.finder import LipschitzFinder
from equilibrium.lipschitz.gain import gain
from equilibrium.lipschitz.start import prepared
from equilibrium.lipschitz.system import LipschitzSystem

_FACTOR = 3.0  # first value and growth of the weight t of the objective
_LARGEST = 1e7  # t beyond which rounding decides
_MEMORY = 30  # pairs of steps and changes of the gradient that are kept
_LONGEST = 2.0  # of one step in the logarithms
_CENTRED = 0.03  # predicted decrease at which t grows


@dataclass(frozen=True, kw_only=True, eq=False)
class FirstOrder(LipschitzFinder):
    r"""Limited-memory BFGS on log Λ and log ρ: a Cholesky factorisation rates a point, its inverse gives the gradient.

    It minimises tN log ρ − log det S + Σ log λᵢ for growing t, S ≻ 0 the inequality for ‖Δy‖ ≤ √ρ‖Δx‖, so that every
    point lies strictly inside the set of certificates. Without log det S, the way to the optimum runs along the
    boundary of Condition 1 and any descent stalls. In log ρ the first term is linear: what one t teaches about the
    curvature is kept for the next. The preconditioner is the diagonal of the Hessian, once per t.

    The gap of ρ to the optimum falls about like 1/t, so that two values of t tell how large it is. ``InteriorPoint``
    is the one for gaps below 1e-5.

    Args:
        steps: most evaluations of the gradient.
        tolerance: estimated relative gap of γ to the optimum at which it stops.
        start: Λ in which Condition 1 holds, (n,), up to a factor; None takes the metric of the system or looks for one.
    """

    steps: int = 500
    tolerance: float = 3e-4
    start: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        checks.whole_number("steps", self.steps, low=0)
        checks.number("tolerance", self.tolerance, low=1e-5, high=1)

    name = "first-order descent on Λ"

    def find(self, system: LipschitzSystem) -> Tensor:
        """The best Λ found, and the one it started from: (2, n)."""
        small, lam = prepared(system, self.start)
        return torch.stack([self._descended(small, lam), lam])

    def _descended(self, system: LipschitzSystem, lam: Tensor) -> Tensor:
        value = gain(system, lam)
        if not 0 < value < float("inf") or system.slopes[0] == system.slopes[1] or self.steps == 0:
            return lam
        barrier = Barrier(system, lam, value)
        here = _Inside.at(barrier, 0.5 * barrier.first_point().log())
        if here is None:
            return lam
        descent, t, before = _Descent(barrier, here, self.steps), _FACTOR, float("inf")
        while True:
            descent.centre(t * (barrier.size + len(barrier.identity)))
            log_rho = float(descent.here.place[-1])
            gap = 0.5 * (before - log_rho) / (_FACTOR - 1)  # γ is the root of ρ
            if gap <= self.tolerance or descent.left <= 0 or t > _LARGEST:
                break
            t, before = t * _FACTOR, log_rho
        solved = barrier.multiplier(descent.here.place.exp())
        return solved if gain(system, solved) < value else lam


@dataclass(frozen=True, kw_only=True, eq=False)
class _Inside:
    """A point strictly inside: its logarithms (log s, log ρ), −log det S + Σ log s there, and the Cholesky factor."""

    place: Tensor
    value: float
    factor: Tensor

    @classmethod
    def at(cls, barrier: Barrier, place: Tensor) -> _Inside | None:
        """The point with these logarithms, or None outside."""
        R = barrier.factor(place.exp())
        if R is None:
            return None
        return cls(place=place, value=float(place[:-1].sum() - 2 * R.diagonal().log().sum()), factor=R)

    def objective(self, weight: float) -> float:
        """The value with weight·log ρ."""
        return self.value + weight * float(self.place[-1])


class _Descent:
    """Descent on weight·log ρ − log det S + Σ log s for one weight after another; it never leaves the inside."""

    def __init__(self, barrier: Barrier, here: _Inside, steps: int):
        self.barrier, self.left = barrier, steps
        self.pairs: deque[tuple[Tensor, Tensor]] = deque(maxlen=_MEMORY)
        self._stand_at(here)

    def _stand_at(self, here: _Inside) -> None:
        point = here.place.exp()
        gradient, self.parts = self.barrier.gradient(point, here.factor)
        gradient = point * gradient
        gradient[:-1] += 2  # it has −Σ log s, the objective +Σ log s
        gradient[-1] += self.barrier.inputs  # and −inputs·log ρ, which the objective has not
        self.here, self.slope = here, gradient
        self.left -= 1

    def centre(self, weight: float) -> None:
        """Go where the objective of this weight is about smallest, or as near as the steps suffice for."""
        point = self.here.place.exp()
        scale = 1 / (point.square() * self.barrier.curvature(point, self.parts))
        while self.left > 0:
            slope = self.slope.clone()
            slope[-1] += weight
            step = _quasi_newton(self.pairs, slope, scale)
            decrease = -float(step @ slope)
            if not decrease > _CENTRED:
                return
            there = self._along(step, weight, decrease)
            if there is None:
                if not self.pairs:
                    return
                self.pairs.clear()  # they may be from where the curvature was another one
                continue
            place, slope = self.here.place, self.slope
            self._stand_at(there)
            moved, change = self.here.place - place, self.slope - slope
            if float(moved @ change) > 1e-12 * float(change.square().sum()):
                self.pairs.append((moved, change))

    def _along(self, step: Tensor, weight: float, decrease: float) -> _Inside | None:
        """The first of ever shorter steps that ends inside and keeps a share of the decrease it predicts."""
        length = min(1.0, _LONGEST / float(step.abs().max()))
        while length > 1e-8:
            there = _Inside.at(self.barrier, self.here.place + length * step)
            if there is not None and there.objective(weight) <= self.here.objective(weight) - 1e-4 * length * decrease:
                return there
            length /= 2.5
        return None


def _quasi_newton(pairs: deque[tuple[Tensor, Tensor]], slope: Tensor, scale: Tensor) -> Tensor:
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
