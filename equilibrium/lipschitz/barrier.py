r"""The logarithmic barrier of the matrix inequality for ‖Δy‖ ≤ √ρ‖Δx‖, with the inputs eliminated.

For slopes [0, 1], P(s) = sA + Aᵀs, A = I − W, s = diag(s₁ … s_n), the inequality is, with one more row for the outputs,

    [[P, −sU, Cᵀ], [·, ρI, Dᵀ], [·, ·, I]] ≻ 0   ⟺   S = [[P − sUUᵀs/ρ, Cᵀ + sUDᵀ/ρ], [·, I − DDᵀ/ρ]] ≻ 0, ρ > 0,

so that a network with many inputs costs no more than one with few: one Cholesky factorisation of size n + out gives the
value, its inverse the gradient, two more products the Hessian (the derivative in sᵢ has rank two). Other slopes [a, b]
are reduced to these: with z = av + (b − a)w, v = Wz + Ux, the slopes of v ↦ w are [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from equilibrium.lipschitz.system import LipschitzSystem

Matrices = tuple[Tensor, Tensor, Tensor, Tensor]


class Barrier:
    r"""−log det − Σ log sᵢ at points (s₁ … s_n, ρ), scaled so that s = 1, ρ = 1 is the start.

    Args:
        system: a compressed one, its slopes not all equal.
        lam: Λ in which Condition 1 holds, (n,).
        value: γ(Λ), positive and finite.
    """

    def __init__(self, system: LipschitzSystem, lam: Tensor, value: float):
        W, U, C, D = with_unit_slopes(system)
        low, high = system.slopes
        root = (value * lam).sqrt() * (high - low)
        U, D = root[:, None] * U / value, D / value
        n, outputs = system.size, C.shape[0]
        self.start, self.size, self.inputs = lam, n, U.shape[1]
        self.A = torch.eye(n, dtype=torch.float64) - root[:, None] * W / root
        self.C = C / root
        self.UU, self.UD, self.DD = U @ U.mT, U @ D.mT, D @ D.mT
        self.identity = torch.eye(outputs, dtype=torch.float64)
        self.parameter = float(2 * n + outputs + self.inputs)

    def first_point(self) -> Tensor:
        """A point strictly inside, (n + 1,)."""
        return torch.cat([torch.full_like(self.start, 1.5), torch.tensor([2.25], dtype=torch.float64)])

    def multiplier(self, point: Tensor) -> Tensor:
        """Λ of a point, in the normalisation of γ(Λ)."""
        return self.start * point[:-1] / point[-1].sqrt()

    def factor(self, point: Tensor) -> Tensor | None:
        """The Cholesky factor of S, or None outside."""
        n, s, rho = self.size, point[:-1], point[-1]
        if not bool((point > 0).all()):
            return None
        S = self._without_inputs(s)
        S[:n, :n] -= s[:, None] * self.UU * (s / rho)
        S[n:, :n] += self.UD.mT * (s / rho)
        S[n:, n:] -= self.DD / rho
        R, info = torch.linalg.cholesky_ex(S)
        return R if int(info) == 0 else None

    def value(self, point: Tensor) -> tuple[float, Tensor | None]:
        """The barrier and the Cholesky factor of S; infinite and None outside."""
        R = self.factor(point)
        if R is None:
            return float("inf"), None
        logarithms = 2 * R.diagonal().log().sum() + point[:-1].log().sum() + self.inputs * point[-1].log()
        return -float(logarithms), R

    def _without_inputs(self, s: Tensor) -> Tensor:
        """[[P, ·], [C, I]]; only the lower triangle is meant to be read."""
        n, outputs = self.size, len(self.C)
        half = s[:, None] * self.A
        S = s.new_zeros(n + outputs, n + outputs)
        S[:n, :n] = half + half.mT
        S[n:, :n] = self.C
        S[n:, n:] = self.identity
        return S

    def _input_gram(self, s: Tensor) -> Tensor:
        """H, the Gram matrix of the eliminated column [−sU; D]."""
        crossed = s[:, None] * self.UD
        above = torch.cat([s[:, None] * self.UU * s, -crossed], 1)
        return torch.cat([above, torch.cat([-crossed.mT, self.DD], 1)])

    def gradient(self, point: Tensor, R: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The gradient, (n + 1,), and what ``hessian`` needs of its computation."""
        n, s, rho = self.size, point[:-1], point[-1]
        T = torch.cholesky_inverse(R)
        B = torch.cat([self.A - self.UU * (s / rho), self.UD / rho], 1)
        H = self._input_gram(s)
        inner = (T * H).sum() / rho.square() + self.inputs / rho
        return torch.cat([-2 * (B * T[:n]).sum(1) - 1 / s, -inner[None]]), (T, B, H)

    def curvature(self, point: Tensor, parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The diagonal of the Hessian of −log det S in (s, ρ), (n + 1,)."""
        (T, B, H), rho = parts, point[-1]
        BT, TH = B @ T, T @ H
        inside = (BT * B).sum(1) + self.UU.diagonal() / rho
        last = (2 * TH.diagonal().sum() / rho + (TH * TH.mT).sum() / rho.square()) / rho.square()
        return torch.cat([2 * (T.diagonal()[: self.size] * inside + BT.diagonal().square()), last[None]])

    def hessian(self, point: Tensor, parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """(n + 1, n + 1), from the second result of ``gradient`` at the same point."""
        (T, B, H), n, s, rho = parts, self.size, point[:-1], point[-1]
        BT, TH = B @ T, T @ H
        mixed = torch.cat([-self.UU * s, self.UD], 1)  # the transpose of −sUUᵀ above DUᵀ
        full = torch.empty(n + 1, n + 1, dtype=torch.float64)
        full[:n, :n] = 2 * (T[:n, :n] * (BT @ B.mT + self.UU / rho) + BT[:, :n] * BT[:, :n].mT)
        full.diagonal()[:n] += 1 / s.square()
        full[:n, n] = full[n, :n] = 2 * ((TH[:n] * BT).sum(1) + (T[:n] * mixed).sum(1)) / rho.square()
        full[n, n] = (self.inputs + 2 * TH.diagonal().sum() / rho + (TH * TH.mT).sum() / rho.square()) / rho.square()
        return full


def with_unit_slopes(system: LipschitzSystem) -> Matrices:
    """W, U, C, D of the same map written with a nonlinearity of slopes [0, 1]: Λ of slopes [a, b] becomes (b − a)²Λ."""
    low, high = system.slopes
    W, U, C, D = system.W, system.U, system.C, system.D
    if low > 0:
        n = system.size
        solved = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - low * W, torch.cat([W, U], 1))
        W, U = solved[:, :n], solved[:, n:]
        C, D = C + low * C @ W, D + low * C @ U
    return (high - low) * W, U, (high - low) * C, D
