r"""The optimal multiplier by a barrier method that knows the structure of the inequality.

M(Λ, ρ) = Σᵢ λᵢAᵢ + ρF − YᵀY with Aᵢ = eᵢgᵢᵀ + gᵢeᵢᵀ + 2ab vᵢvᵢᵀ of rank two (three): the Hessian of −log det M, whose
entries are tr(M⁻¹AᵢM⁻¹Aⱼ), is a few entrywise products of n×n matrices. A Newton step costs one inverse of size n + in,
where a general semidefinite solver factorises a matrix of the size of the square of that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.records import CertificateError
from equilibrium.lipschitz.certificate import LipschitzCertificate
from equilibrium.lipschitz.first_order import best_scale, starting_multiplier
from equilibrium.lipschitz.gain import certified_by, compressed, gain
from equilibrium.lipschitz.system import LipschitzSystem

_FACTOR = 3.0  # growth of the barrier's weight t
_MOST_NEWTON = 40  # Newton steps per value of t


@dataclass(frozen=True, kw_only=True)
class InteriorPoint:
    r"""min γ over diagonal Λ, the same optimum as ``MatrixInequality`` finds, without a semidefinite solver.

    Args:
        tolerance: relative duality gap of γ² at which it stops.
    """

    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        checks.number("tolerance", self.tolerance, low=1e-10, high=1)

    def bound(self, system: LipschitzSystem, *, start: Tensor | None = None) -> LipschitzCertificate:
        """The checked certificate at the optimal Λ.

        Args:
            system: the map.
            start: Λ in which Condition 1 holds, (n,); None takes the metric of the system or looks for one.

        Raises:
            PreconditionError: if no Λ is found in which Condition 1 holds.
        """
        start = starting_multiplier(system) if start is None else start
        try:
            return certified_by(system, self.multiplier(compressed(system), start), "interior point on Λ")
        except CertificateError:  # the optimum may lie where rounding hides it
            return certified_by(system, start, "interior point on Λ")

    def multiplier(self, system: LipschitzSystem, start: Tensor) -> Tensor:
        """The optimal Λ of a compressed system, (n,); Condition 1 holds in ``start``."""
        lam = best_scale(system, start[None])[0]
        value = float(gain(system, lam))
        if not 0 < value < float("inf"):
            return lam
        barrier = _Barrier(system, lam, value)
        point = torch.cat([torch.full_like(lam, 1.5), torch.tensor([2.25], dtype=torch.float64)])
        count = barrier.parameter
        t = count
        while True:
            point = _centre(barrier, point, t)
            if count / t <= self.tolerance * float(point[-1]):
                break
            t *= _FACTOR
        solved = barrier.multiplier(point)
        return solved if float(gain(system, solved)) < value else lam


class _Barrier:
    """tρ − log det M − Σ log sᵢ in coordinates where the start is s = 1, ρ = 1."""

    def __init__(self, system: LipschitzSystem, lam: Tensor, value: float):
        low, high = system.slopes
        self.start, self.value = lam, value
        root = (value * lam).sqrt()
        n = system.size
        self.size = n
        self.V = torch.cat([root[:, None] * system.W / root, root[:, None] * system.U / value], 1)
        Y = torch.cat([system.C / root, system.D / value], 1)
        total = self.V.shape[1]
        self.constant = Y.mT @ Y
        self.G = torch.eye(n, total, dtype=torch.float64) - (low + high) * self.V
        self.curved = 2 * low * high
        self.parameter = float(total + n)

    def multiplier(self, point: Tensor) -> Tensor:
        """Λ in the normalisation of γ(Λ)."""
        return self.start * point[:-1] / point[-1].sqrt()

    def factor(self, point: Tensor) -> Tensor | None:
        """The Cholesky factor of M, or None outside."""
        s, n = point[:-1], self.size
        if not bool((s > 0).all()):
            return None
        half = torch.zeros_like(self.constant)
        half[:n] = s[:, None] * self.G
        M = half + half.mT - self.constant
        M.diagonal()[n:] += point[-1]
        if self.curved:
            M = M + self.curved * self.V.mT @ (s[:, None] * self.V)
        R, info = torch.linalg.cholesky_ex(M)
        return R if int(info) == 0 else None

    def cost(self, point: Tensor, t: float) -> tuple[float, Tensor | None]:
        """The barrier's value and the factor of M; infinite outside."""
        R = self.factor(point)
        if R is None:
            return float("inf"), None
        return float(t * point[-1] - 2 * R.diagonal().log().sum() - point[:-1].log().sum()), R

    def derivatives(self, point: Tensor, t: float, R: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (n + 1,) and Hessian (n + 1, n + 1)."""
        n, s = self.size, point[:-1]
        inverse = torch.cholesky_inverse(R)
        left = self.G @ inverse  # rows gᵢᵀM⁻¹
        ee, ge, gg = inverse[:n, :n], left[:, :n], left @ self.G.mT
        trace = 2 * ge.diagonal()
        hessian = 2 * (ee * gg + ge * ge.mT)
        border = 2 * (inverse[:n, n:] * left[:, n:]).sum(1)
        if self.curved:
            right = self.V @ inverse
            ve, vg, vv = right[:, :n], right @ self.G.mT, right @ self.V.mT
            trace = trace + self.curved * vv.diagonal()
            mixed = 2 * self.curved * ve * vg
            hessian = hessian + mixed + mixed.mT + self.curved**2 * vv.square()
            border = border + self.curved * right[:, n:].square().sum(1)
        corner = inverse[n:, n:]
        gradient = torch.cat([-trace - 1 / s, (t - corner.diagonal().sum())[None]])
        full = torch.zeros(n + 1, n + 1, dtype=torch.float64)
        full[:n, :n] = hessian + torch.diag(1 / s.square())
        full[:n, n] = full[n, :n] = border
        full[n, n] = corner.square().sum()
        return gradient, full


def _centre(barrier: _Barrier, point: Tensor, t: float) -> Tensor:
    """Damped Newton until the decrement is small; every point it visits is strictly inside."""
    cost, R = barrier.cost(point, t)
    if R is None:
        return point
    for _ in range(_MOST_NEWTON):
        gradient, hessian = barrier.derivatives(point, t, R)
        scale = hessian.diagonal().rsqrt()
        factor, info = torch.linalg.cholesky_ex(hessian * scale[:, None] * scale)
        if int(info) != 0:
            return point
        step = -scale * torch.cholesky_solve((scale * gradient)[:, None], factor)[:, 0]
        decrement = float(-(gradient @ step))
        if not decrement > 1e-3:
            return point
        length, best = 1.0, (cost, point, R)
        while length > 1e-8:
            # the first admissible length may end next to the boundary, from where Newton takes hundreds of steps
            candidate = point + length * step
            new_cost, new_R = barrier.cost(candidate, t)
            if new_R is not None and new_cost < best[0]:
                best = (new_cost, candidate, new_R)
            elif best[2] is not R:
                break
            length /= 2
        if best[2] is R:
            return point
        cost, point, R = best
    return point
