r"""What is asked of a Lur'e system for a given multiplier, exactly: its best rate, gain or index of passivity.

For slopes in [0, 1] every one of these is an inequality of one kind,

    [[AᵀP + PA + Q, PB + S], [·, −R]] ≺ 0 for a P ≻ 0,

whose data depend on a level t: the larger t, the more is asked. By the Kalman–Yakubovich–Popov lemma there is a P iff A
is Hurwitz, R ≻ 0 and a Hamiltonian matrix has no imaginary eigenvalue. In terms of frequencies it is the criterion

    He(Λ'(I − G(jω))) ≻ 0 for all ω,

in which inputs and outputs stand beside the neurons, with multipliers Λ' that are known: what searches over Λ lower is
the largest eigenvalue of the symmetric part of Λ'^½ G Λ'^−½.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from contracting.certificates.lure.checker import Supply, gain_supply, passivity_supply
from contracting.certificates.riccati import riccati_inequality
from contracting.certificates.spectra import eigenvalues
from contracting.lure.system import LureSystem

# A pair of eigenvalues this near to the imaginary axis, relative to the geometric mean of its size and the matrix's,
# counts as imaginary: pairs leave the axis like a square root, so that rounding moves them by the root of 1e-16.
_IMAGINARY = 1e-8
_FARTHEST = 2.0**60  # In units of the first step: what is not bracketed by then is taken for infinite.


@dataclass(frozen=True, kw_only=True, eq=False)
class Inequality:
    r"""[[AᵀP + PA + Q, PB + S], [·, −R]] ≺ 0 with Q ⪰ 0: A (n, n), B and S (n, m), Q (n, n), R (m, m)."""

    A: Tensor
    B: Tensor
    Q: Tensor
    S: Tensor
    R: Tensor

    def riccati(self) -> tuple[Tensor, Tensor, Tensor, float] | None:
        """F, G and H of FᵀP + PF + PGP + H ≺ 0 for P times a unit in which G and H are alike, and the unit.

        None if R is not positive definite.
        """
        root, info = torch.linalg.cholesky_ex(self.R)
        if int(info):
            return None
        B, S = (torch.linalg.solve_triangular(root, part.mT, upper=False) for part in (self.B, self.S))
        G, H = B.mT @ B, self.Q + S.mT @ S
        unit = float(torch.linalg.matrix_norm(G)) / max(float(torch.linalg.matrix_norm(H)), 1e-300)
        unit = math.sqrt(unit) if 0 < unit < math.inf else 1.0
        return self.A + B.mT @ S, G / unit, H * unit, unit

    def imaginary(self) -> Tensor | None:
        """Frequencies ω ≥ 0 at which it is about to fail; None where R forbids it. A is taken to be Hurwitz."""
        parts = self.riccati()
        if parts is None or not bool(torch.isfinite(torch.cat([*parts[:3]])).all()):
            return None
        if not len(self.A):
            return self.A.new_zeros(0)
        F, G, H, _ = parts
        matrix = torch.cat([torch.cat([F, G], 1), torch.cat([-H, -F.mT], 1)])
        values = eigenvalues(matrix)
        size = torch.linalg.matrix_norm(matrix, 1)
        near = values.real.abs() <= _IMAGINARY * (size * (values.abs() + 1e-14 * size)).sqrt()
        found = values.imag[near]
        return found[found >= 0].sort().values

    def solvable(self) -> bool:
        """Whether there is a P, up to rounding, where A is Hurwitz."""
        frequencies = self.imaginary()
        return frequencies is not None and not len(frequencies)

    def metric(self, room: float) -> Tensor | None:
        """A P, with G and H enlarged by about ``room`` so that extreme solutions exist; None if none is found."""
        parts = self.riccati()
        if parts is None:
            return None
        F, G, H, unit = parts
        if not len(F):
            return F
        extra = room * torch.eye(len(F), dtype=F.dtype)
        P = riccati_inequality(F, G + extra, H + extra)
        return None if P is None else P / unit


@dataclass(frozen=True, kw_only=True, eq=False)
class Question(ABC):
    """What is asked of a system with slopes in [0, 1].

    Attributes:
        system: in balanced coordinates.
    """

    system: LureSystem

    @abstractmethod
    def asked(self, level: float) -> tuple[float, Supply | None]:
        """The rate and the supply rate at a level."""

    @property
    @abstractmethod
    def start(self) -> tuple[float, float]:
        """A level to start from, and a step that is neither tiny nor huge."""

    @property
    @abstractmethod
    def most(self) -> float:
        """What no level reaches, as A must stay Hurwitz."""

    @cached_property
    def stability(self) -> float:
        """−α(A), which is +∞ without a state."""
        return -float(eigenvalues(self.system.A).real.max()) if self.system.size else math.inf

    @cached_property
    def scale(self) -> float:
        """The size of the Jacobian at low and at middle slopes: the unit of rates."""
        of = self.system
        if not of.size:
            return 1.0
        half = torch.full((of.neurons,), 0.5, dtype=torch.float64)
        sizes = [float(torch.linalg.matrix_norm(F, 2)) for F in (of.A, of.jacobians(half))]
        return max(*sizes, 1e-300)

    def precision(self, level: float) -> float:
        """What a tolerance is multiplied with at a level."""
        return 1.0

    def inequality(self, level: float, multiplier: Tensor) -> Inequality:
        """The inequality at a level, Λ given, (m,)."""
        of, (rate, supply) = self.system, self.asked(level)
        A = of.A + rate * torch.eye(of.size, dtype=torch.float64)
        loop = multiplier[:, None] * of.D
        R, S = torch.diag(2 * multiplier) - loop - loop.mT, of.C.mT * multiplier
        if supply is None:
            return Inequality(A=A, B=of.B, Q=torch.zeros_like(A), S=S, R=R)
        assert of.B2 is not None and of.D12 is not None and of.C2 is not None
        assert of.D21 is not None and of.D22 is not None
        # of −q(u, y) = −output·|y|² − 2·cross·yᵀu − input·|u|²
        y, (cross, output) = torch.cat([of.D21, of.D22], 1), (supply.cross, supply.output)
        m, k = of.D12.shape
        through = torch.cat([torch.cat([R, -multiplier[:, None] * of.D12], 1), torch.zeros(k, m + k).double()])
        through[m:, m:] = supply.input * torch.eye(k, dtype=torch.float64)
        through[m:, :m] = through[:m, m:].mT
        R = through + output * (y.mT @ y)
        S = torch.cat([S, torch.zeros(of.size, k).double()], 1) - output * (of.C2.mT @ y)
        if cross:
            R[m:] += cross * y
            R[:, m:] += cross * y.mT
            S[:, m:] -= cross * of.C2.mT
        return Inequality(A=A, B=torch.cat([of.B, of.B2], 1), Q=-output * (of.C2.mT @ of.C2), S=S, R=R)

    def best(self, multiplier: Tensor, tolerance: float, *, above: float = -math.inf) -> float:
        """The highest level at which there is a P, by bisection; −∞ if there is none.

        Args:
            multiplier: Λ, (m,).
            tolerance: absolute.
            above: a level below which the answer does not matter; then any lower level may come back.
        """

        def solvable(level: float) -> bool:
            return level < self.most and self.inequality(level, multiplier).solvable()

        level, step = self.start
        if above > -math.inf:
            level, step = above, max(10 * tolerance, 1e-6 * step)
        up, gap = solvable(level), step
        if not up and above > -math.inf:
            return -math.inf
        bottom, top = (level, level + gap) if up else (level - gap, level)
        while solvable(top) if up else not solvable(bottom):
            gap *= 2
            bottom, top = (top, min(top + gap, self.most)) if up else (bottom - gap, bottom)
            if gap > _FARTHEST * step:
                return bottom if up else -math.inf
        while top - bottom > tolerance * self.precision(bottom):
            middle = (top + bottom) / 2
            if not bottom < middle < top:
                break
            bottom, top = (middle, top) if solvable(middle) else (bottom, middle)
        return bottom

    def transfer(self, rate: float, frequencies: Tensor, *, ports: bool) -> Tensor:
        """What goes from (w, u) to (v, y) at jω − c: (k, m + p, m + inputs) complex, (k, m, m) without ``ports``.

        An infinite frequency gives what goes through at once.
        """
        of = self.system
        into, out, through = of.B, of.C, of.D
        if ports:
            assert of.B2 is not None and of.D12 is not None and of.C2 is not None
            assert of.D21 is not None and of.D22 is not None
            into, out = torch.cat([of.B, of.B2], 1), torch.cat([of.C, of.C2])
            through = torch.cat([torch.cat([of.D, of.D12], 1), torch.cat([of.D21, of.D22], 1)])
        finite = torch.isfinite(frequencies)
        shift = torch.complex(torch.full_like(frequencies, -rate), torch.where(finite, frequencies, 0.0))
        matrices = shift[:, None, None] * torch.eye(of.size) - of.A
        resolved = torch.linalg.solve(matrices, into.to(shift.dtype).expand(len(shift), -1, -1))
        return through + torch.where(finite[:, None, None], out.to(shift.dtype) @ resolved, 0.0)

    def loops(self, level: float, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """G(jω), (k, m', m') complex, and the multipliers of what stands beside the neurons, (m' − m,)."""
        rate, supply = self.asked(level)
        transfer = self.transfer(rate, frequencies, ports=supply is not None)
        if supply is None:
            return transfer, frequencies.new_zeros(0)
        assert self.system.D22 is not None
        (p, k), m, count = self.system.D22.shape, self.system.neurons, len(frequencies)
        of_inputs = 1.0 if supply.cross else supply.input / 2
        gains, outputs = transfer[:, :m], transfer[:, m:]  # rows of v and of y, columns of w and of u
        weight = -2 * math.sqrt(max(0.0, -supply.output))
        inputs = -supply.cross / of_inputs * outputs if supply.cross else outputs.new_zeros(count, k, m + k)
        inputs[:, :, m:] += (1 - supply.input / (2 * of_inputs)) * torch.eye(k)
        rows = torch.cat([gains, inputs, weight * outputs], 1)
        loop = torch.cat([rows, rows.new_zeros(count, m + k + p, p)], 2)
        return loop, torch.cat([loop.real.new_full((k,), of_inputs), loop.real.new_full((p,), 0.5)])


@dataclass(frozen=True, kw_only=True, eq=False)
class RateQuestion(Question):
    """How fast does it contract? The level is the rate c."""

    def precision(self, level: float) -> float:
        """A rate far below the size of the Jacobian, as of a stiff field, is wanted to its own precision."""
        return min(1.0, max(abs(level) / self.scale, 1e-9))

    def asked(self, level: float) -> tuple[float, None]:
        """The rate itself."""
        return level, None

    @property
    def start(self) -> tuple[float, float]:
        return self.most - self.scale, self.scale

    @property
    def most(self) -> float:
        return self.stability


@dataclass(frozen=True, kw_only=True, eq=False)
class GainQuestion(Question):
    """How little gain has it from input to output? The level is −log γ.

    Attributes:
        rate: at which it must contract as well.
    """

    rate: float = 0.0

    @property
    def most(self) -> float:
        return math.inf if self.stability > self.rate else -math.inf

    def asked(self, level: float) -> tuple[float, Supply]:
        """The rate, and (−1/γ, 0, γ)."""
        return self.rate, gain_supply(math.exp(-level))

    @property
    def start(self) -> tuple[float, float]:
        return 0.0, 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class PassivityQuestion(Question):
    """How much of its input does it dissipate? The level is the index ν of the input.

    Attributes:
        rate: at which it must contract as well.
        output_index: ρ, how much of its output it dissipates besides.
    """

    rate: float = 0.0
    output_index: float = 0.0

    @property
    def most(self) -> float:
        return math.inf if self.stability > self.rate else -math.inf

    def asked(self, level: float) -> tuple[float, Supply]:
        """The rate, and (−2ρ, 1, −2ν)."""
        return self.rate, passivity_supply(level, self.output_index)

    @property
    def start(self) -> tuple[float, float]:
        return 0.0, 1.0
