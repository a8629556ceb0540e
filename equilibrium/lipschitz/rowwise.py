r"""Constants in ℓ∞ and ℓ1 from one inequality for every output, or for every input.

With d > 0, Σdⱼ = 1, ‖√d∘Δx‖₂ ≤ ‖Δx‖∞. A constant in ℓ2 of the single output yᵢ as a map of √d∘x is therefore one of its
constants in ℓ∞; the best Λ and d together are a semidefinite program, min Σdⱼ over

    [[P(s), −sU, cᵀ], [·, diag(d), Dᵀ], [·, ·, 1]] ≻ 0,  P(s) = sA + Aᵀs,  A = I − W,

for slopes in [0, 1]; equal dⱼ give √in times the constant in ℓ2. The constant of all outputs is the largest of theirs.
In ℓ1 it is that of the transposed map in ℓ∞: Δy = JΔx with secant slopes S, J = D + C(I − SW)⁻¹SU, and Jᵀ is that of
Wᵀ, Cᵀ, Uᵀ and Dᵀ with the same S.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.finder import Finder
from contracting.certificates.records import CertificateError
from contracting.errors import InputError
from equilibrium.lipschitz.barrier import with_unit_slopes
from equilibrium.lipschitz.certificate import LipschitzCertificate, Norm
from equilibrium.lipschitz.checker import checked, single_output, turned
from equilibrium.lipschitz.finder import LipschitzFinder
from equilibrium.lipschitz.gain import gain
from equilibrium.lipschitz.start import best_scale, prepared
from equilibrium.lipschitz.system import LipschitzSystem, in_power

_FACTOR = 10.0  # growth of the weight t of the objective
_MOST_NEWTON = 30  # Newton steps per value of t
_LARGEST = 1500  # neurons and inputs together; a Newton step on more of them takes seconds, for every row anew
_LEAST = 1e-10  # No share dⱼ is less than so much of the mean: an input that does nothing keeps a finite unit.


@dataclass(frozen=True, kw_only=True)
class RowByRow(Finder[LipschitzSystem, Tensor, LipschitzCertificate]):
    """A Lipschitz constant in ℓ∞ or ℓ1 by multipliers, where Condition 1 is known to hold.

    It proposes for every output (in ℓ1: every input) Λ and the units 1/√dⱼ of the inputs, (rows, n + in).

    Args:
        norm: of inputs and outputs.
        tolerance: relative duality gap of Σdⱼ at which it stops.
    """

    norm: Norm = Norm.LINF
    tolerance: float = 1e-3

    name = "row by row"

    def __post_init__(self) -> None:
        if self.norm not in (Norm.L1, Norm.LINF):
            raise InputError(f"norm must be Norm.L1 or Norm.LINF, got {self.norm!r}")
        checks.number("tolerance", self.tolerance, low=1e-8, high=1)

    def find(self, system: LipschitzSystem) -> Tensor:
        """Λ and the units of the inputs; a row that cannot be the worst, or is too large, keeps equal units.

        Raises:
            PreconditionError: if no Λ is found in which Condition 1 holds.
        """
        system = turned(system.in_units(system.units), self.norm)
        start = torch.ones(system.size, dtype=torch.float64) if system.constant else prepared(system, None)[1]
        inputs = system.U.shape[1]
        equal = torch.full((inputs,), math.sqrt(inputs), dtype=torch.float64)
        found, values = [], []
        for i in range(len(system.C)):
            row = single_output(system, i, equal)
            small = row.in_units(row.units)
            lam = start if row.constant else best_scale(small, start)
            found.append((lam, equal))
            values.append(0.0 if row.constant else in_power(gain(small, lam), sum(row.units)))
        worst = 0.0
        for i in sorted(range(len(values)), key=values.__getitem__, reverse=True):
            if values[i] > worst:
                value, *better = self._optimum(system, i, *found[i], values[i])
                found[i], worst = (better[0], better[1]), max(worst, value)
        return torch.stack([torch.cat(pair) for pair in found])

    def _optimum(
        self, system: LipschitzSystem, i: int, lam: Tensor, equal: Tensor, value: float
    ) -> tuple[float, Tensor, Tensor]:
        row = single_output(system, i, equal)
        size = sum(row.U.shape)
        if not 0 < value < math.inf or row.slopes[0] == row.slopes[1] or size > _LARGEST:
            return value, lam, equal
        program = _Program(row.in_units(row.units), lam)
        point = program.solved(self.tolerance)
        units = equal / program.shares(point).sqrt()
        row = single_output(system, i, units)
        small = row.in_units(row.units)
        better = best_scale(small, program.multiplier(point))
        found = in_power(gain(small, better), sum(row.units))
        return (found, better, units) if found < value else (value, lam, equal)

    def judge(self, system: LipschitzSystem, proposal: Tensor) -> LipschitzCertificate:
        """The certificate of all rows, each of which the checker accepts by itself."""
        original, system = system, turned(system, self.norm)
        n = system.size
        rows = tuple(
            _Given().judge(single_output(system, i, units), lam)
            for i, (lam, units) in enumerate((row[:n], row[n:]) for row in proposal)
        )
        units = proposal[:, n:]
        reach = torch.linalg.vector_norm(1 / units, dim=-1)
        bound = max((row.bound * float(size) for row, size in zip(rows, reach, strict=True)), default=0.0)
        certificate = LipschitzCertificate(
            bound=bound * (1 + 1e-12),
            norm=self.norm,
            method=self.name,
            slopes=original.slopes,
            margin=0.0,
            rows=rows,
            input_units=units,
        )
        return checked(certificate, original)


class _Given(LipschitzFinder):
    """One Λ for one output."""

    name = "multiplier of a row"

    def find(self, system: LipschitzSystem) -> Tensor:
        raise CertificateError("its multiplier is given")


class _Program:
    """The barrier −log det − Σ log s of the matrix above, at points (s₁ … s_n, d₁ … d_in); all 1 is the start."""

    def __init__(self, row: LipschitzSystem, lam: Tensor):
        value = gain(row, lam)
        W, U, C, D = with_unit_slopes(row)
        low, high = row.slopes
        self.start, self.n, self.inputs = lam, row.size, U.shape[1]
        root = (value * lam).sqrt() * (high - low)
        rows = [torch.eye(self.n, dtype=torch.float64) - root[:, None] * W / root, -root[:, None] * U / value]
        self.B = torch.cat([*rows, lam.new_zeros(self.n, 1)], 1)
        self.last = torch.cat([C[0] / root, D[0] / value])

    def matrix(self, point: Tensor) -> Tensor:
        """(n + in + 1, ·)."""
        n = self.n
        Z = torch.zeros(len(point) + 1, len(point) + 1, dtype=torch.float64)
        Z[:n] = point[:n, None] * self.B
        Z = Z + Z.mT
        Z.diagonal()[n:-1] += point[n:]
        Z[-1, :-1] = Z[:-1, -1] = self.last
        Z[-1, -1] = 1.0
        return Z

    def value(self, point: Tensor, t: float) -> tuple[float, Tensor | None]:
        """t Σd + barrier and the Cholesky factor; infinite and None outside."""
        if not bool((point > 0).all()):
            return math.inf, None
        factor, info = torch.linalg.cholesky_ex(self.matrix(point))
        if int(info) != 0:
            return math.inf, None
        logarithms = 2 * factor.diagonal().log().sum() + point[: self.n].log().sum()
        return float(t * point[self.n :].sum() - logarithms), factor

    def step(self, point: Tensor, factor: Tensor, t: float) -> tuple[Tensor, float]:
        """Newton's step and its decrement."""
        n, s = self.n, point[: self.n]
        T = torch.cholesky_inverse(factor)
        BT = self.B @ T
        gradient = torch.cat([-2 * BT.diagonal() - 1 / s, t - T.diagonal()[n:-1]])
        hessian = torch.empty(len(point), len(point), dtype=torch.float64)
        hessian[:n, :n] = 2 * (T[:n, :n] * (BT @ self.B.mT) + BT[:, :n] * BT[:, :n].mT)
        hessian.diagonal()[:n] += 1 / s.square()
        hessian[:n, n:] = 2 * T[:n, n:-1] * BT[:, n:-1]
        hessian[n:, :n] = hessian[:n, n:].mT
        hessian[n:, n:] = T[n:-1, n:-1].square()
        scale = hessian.diagonal().rsqrt()
        lower, info = torch.linalg.cholesky_ex(hessian * scale[:, None] * scale)
        if int(info) != 0:
            return torch.zeros_like(point), 0.0
        found = -scale * torch.cholesky_solve((scale * gradient)[:, None], lower)[:, 0]
        return found, -float(gradient @ found)

    def solved(self, tolerance: float) -> Tensor:
        """A point near the optimum."""
        point = torch.cat([torch.full((self.n,), 1.5), torch.full((self.inputs,), 2.25)]).to(torch.float64)
        parameter = 2.0 * self.n + self.inputs + 1
        t = parameter / float(point[self.n :].sum())
        while True:
            point = self._centre(point, t)
            if parameter / t <= tolerance * float(point[self.n :].sum()):
                return point
            t *= _FACTOR

    def _centre(self, point: Tensor, t: float) -> Tensor:
        value, factor = self.value(point, t)
        for _ in range(_MOST_NEWTON):
            if factor is None:
                break
            step, decrement = self.step(point, factor, t)
            if not decrement > 1e-2:
                break
            length = 1.0
            while length > 1e-8:
                new, new_factor = self.value(point + length * step, t)
                if new < value - 0.1 * length * decrement:
                    break
                length /= 2
            else:
                break
            point, value, factor = point + length * step, new, new_factor
        return point

    def shares(self, point: Tensor) -> Tensor:
        """dⱼ in units of their mean, (in,)."""
        d = point[self.n :]
        return (d / d.mean()).clamp_min(_LEAST)

    def multiplier(self, point: Tensor) -> Tensor:
        """Λ up to a factor, (n,)."""
        return self.start * point[: self.n]
