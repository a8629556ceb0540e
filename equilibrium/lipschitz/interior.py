r"""The optimal multiplier by Newton's method on the barrier.

A step costs a few products of matrices of size n + out, where a general semidefinite solver factorises a matrix of the
size of the square of that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from contracting import checks
from equilibrium.lipschitz.barrier import Barrier
from equilibrium.lipschitz.finder import LipschitzFinder
from equilibrium.lipschitz.gain import gain
from equilibrium.lipschitz.start import prepared
from equilibrium.lipschitz.system import LipschitzSystem

_FACTOR = 3.0  # growth of the weight t of the objective
_ZERO = 1e-24  # of γ² relative to the start: the map is constant
# Newton steps per value of t. Where the path bends some centres need more than a hundred; one that is left before it is
# found makes the gap a wrong one (7 % too large a constant was seen, of two pairs of outputs of 45, after 40 steps).
_MOST_NEWTON = 400


@dataclass(frozen=True, kw_only=True, eq=False)
class InteriorPoint(LipschitzFinder):
    r"""min γ over diagonal Λ, the same optimum as ``MatrixInequality`` finds, without a semidefinite solver.

    Args:
        tolerance: relative duality gap of γ² at which it stops.
        start: Λ in which Condition 1 holds, (n,), up to a factor; None takes the metric of the system or looks for one.
    """

    tolerance: float = 1e-6
    start: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        checks.number("tolerance", self.tolerance, low=1e-10, high=1)

    name = "interior point on Λ"

    def find(self, system: LipschitzSystem) -> Tensor:
        """The optimal Λ and, because rounding may hide the optimum, the one it started from: (2, n)."""
        small, lam = prepared(system, self.start)
        return torch.stack([self.optimum(small, lam), lam])

    def optimum(self, system: LipschitzSystem, lam: Tensor) -> Tensor:
        """The optimal Λ of a system as ``prepared`` makes it, from a Λ at its best multiple; never worse than that."""
        value = gain(system, lam)
        if not 0 < value < float("inf") or system.slopes[0] == system.slopes[1]:
            return lam
        barrier = Barrier(system, lam, value)
        point = least(barrier, self.tolerance)
        solved = barrier.multiplier(point)
        return solved if gain(system, solved) < value else lam


class Centred(Protocol):
    """A barrier of points whose last coordinate ρ is to be small."""

    @property
    def parameter(self) -> float:
        """The duality gap of a centre where ρ weighs 1."""

    def first_point(self) -> Tensor:
        """A point strictly inside."""

    def value(self, point: Tensor) -> tuple[float, Tensor | None]:
        """The barrier and a factor of its matrix; infinite and None outside."""

    def gradient(self, point: Tensor, R: Tensor) -> tuple[Tensor, Any]:
        """The gradient, and what ``hessian`` needs of its computation."""

    def hessian(self, point: Tensor, parts: Any) -> Tensor:
        """From the second result of ``gradient`` at the same point."""


def least(barrier: Centred, tolerance: float) -> Tensor:
    """A point of about the least ρ, within a relative duality gap, strictly inside."""
    point = before = barrier.first_point()
    t = barrier.parameter
    while True:
        # the path of centres is about linear in 1/t
        before, point = point, _centre(barrier, (point, point + (point - before) / _FACTOR), t)
        rho = float(point[-1])
        if barrier.parameter / t <= tolerance * rho or rho < _ZERO:
            return point
        t *= _FACTOR


def _centre(barrier: Centred, guesses: tuple[Tensor, Tensor], t: float) -> Tensor:
    """Damped Newton on tρ + barrier from the better guess until the decrement is small; it never leaves the inside."""
    rated = [(*barrier.value(guess), guess) for guess in guesses]
    value, R, point = min(rated, key=lambda entry: entry[0] + t * float(entry[2][-1]))
    if R is None:
        return point
    value += t * float(point[-1])
    for _ in range(_MOST_NEWTON):
        gradient, parts = barrier.gradient(point, R)
        gradient[-1] += t
        hessian = barrier.hessian(point, parts)
        scale = hessian.diagonal().rsqrt()
        factor, info = torch.linalg.cholesky_ex(hessian * scale[:, None] * scale)
        if int(info) != 0:
            return point
        step = -scale * torch.cholesky_solve((scale * gradient)[:, None], factor)[:, 0]
        decrement = float(-(gradient @ step))
        if not decrement > 1e-3:
            return point
        length, best = 1.0, (value, point, R)
        while length > 1e-8:
            # the first admissible length may end next to the boundary, from where Newton takes hundreds of steps
            candidate = point + length * step
            new_value, new_R = barrier.value(candidate)
            new_value += t * float(candidate[-1])
            if new_R is not None and new_value < best[0]:
                best = (new_value, candidate, new_R)
            elif best[2] is not R:
                break
            length /= 2
        if best[2] is R:
            return point
        value, point, R = best
    return point
