r"""Couplings of slopes: what one diagonal multiplier loses is won back by inequalities between pairs of neurons.

‖C(I − JW)⁻¹JU + D‖ is largest where every slope is at an end of its interval. There, of p = Δz − aΔv and r = bΔv − Δz,
one is zero in every neuron, and

    q = Σ h_x²x² + Σ h_y²y² − 2 Σ s_xy h_x h_y xy,   x ∈ {pᵢ, rᵢ}, y ∈ {pⱼ, rⱼ},

is the square (h_x x − s_xy h_y y)² of the two that are left. Such forms are subtracted beside the diagonal ones. Which
h and signs s tell most is read off the dual matrix Z of the best multipliers so far: with Z at unit diagonal q has the
mean 2 − 2σ in it, σ the norm of the 2×2 matrix |Z_xy|: negative for many pairs as long as the bound is not attained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.finder import Finder
from contracting.certificates.records import CertificateError
from contracting.errors import PreconditionError
from equilibrium.lipschitz.barrier import with_unit_slopes
from equilibrium.lipschitz.certificate import Couplings, LipschitzCertificate, Norm
from equilibrium.lipschitz.checker import checked
from equilibrium.lipschitz.gain import gain
from equilibrium.lipschitz.interior import InteriorPoint, least
from equilibrium.lipschitz.start import prepared
from equilibrium.lipschitz.system import LipschitzSystem, in_power

_ACCURACY = 1e-4  # relative duality gap of γ² at which a round ends; the next round changes it by more
_VIOLATED = 1.02  # least σ of a pair that is coupled: less wins less than a round is accurate to
_IDLE = 1e-3  # weight, relative to the largest, below which a coupling is dropped before the next round
_ENTRIES = 2**22  # numbers that a block of the Hessian may hold while it is formed: 32 MB
_ROOM = (1e-9, 1e-7, 1e-5, 1e-4)  # The bound grows by these shares until the checker accepts it.

Proposal = tuple[float, Tensor, Tensor, Couplings]  # γ, Λ of Condition 1, Λ of the proof and its couplings


@dataclass(frozen=True, kw_only=True, eq=False)
class Coupled(Finder[LipschitzSystem, Proposal, LipschitzCertificate]):
    """The bound of ``InteriorPoint``, lowered by couplings of pairs of slopes.

    A round costs Newton steps of (k + n)³ + (k + n)n² operations for k couplings. It wins most where the dual matrix of
    the diagonal multiplier has a small rank, as in trained networks, which is when many pairs are violated.

    Args:
        rounds: how often the multiplier is optimised again with couplings of the pairs that are violated most.
        pairs: couplings that a round adds at most; None for twice the number of neurons.
    """

    rounds: int = 3
    pairs: int | None = None

    def __post_init__(self) -> None:
        checks.whole_number("rounds", self.rounds)
        if self.pairs is not None:
            checks.whole_number("pairs", self.pairs)

    name = "coupled slopes"

    def find(self, system: LipschitzSystem) -> Proposal:
        """γ, Λ of Condition 1, and Λ and the couplings of the proof, in the units of the system.

        Raises:
            PreconditionError: if no Λ is found in which Condition 1 holds, or there is nothing to couple.
        """
        small, start = prepared(system, None)
        lam = InteriorPoint().optimum(small, start)
        value = gain(small, lam)
        if system.constant or not 0 < value < float("inf") or system.slopes.low == system.slopes.high:
            raise PreconditionError("a map that is constant or linear has no slopes to couple: use InteriorPoint")
        barrier = CoupledBarrier(small, lam, value)
        point = least(barrier, _ACCURACY)
        for _ in range(self.rounds):
            if not barrier.couple(point, self.pairs or 2 * system.size):
                break
            point = least(barrier, _ACCURACY)
        return value * float(point[-1]) ** 0.5, value * lam, *barrier.multipliers(point)

    def judge(self, system: LipschitzSystem, proposal: Proposal) -> LipschitzCertificate:
        """The first certificate that the checker accepts, with ever more room for rounding."""
        value, root, lam, couplings = proposal
        for share in _ROOM:
            certificate = LipschitzCertificate(
                bound=in_power(value * (1 + share), sum(system.units)),
                norm=Norm.L2,
                method=self.name,
                slopes=system.slopes,
                margin=0.0,
                multiplier=root,
                branches=(torch.full((1, system.size), -1.0, dtype=torch.float64), lam[None]),
                couplings=couplings,
                units=system.units,
            )
            try:
                return checked(certificate, system)
            except CertificateError:
                continue
        raise CertificateError(f"{self.name}: what is found is proved within rounding only")


class CoupledBarrier:
    r"""−log det M − Σ log θₖ at points (θ, ρ) of M = ρE − YᵀY − Σₖ θₖ SₖᵀqₖSₖ, forms in (Δz, Δx).

    S has the rows p and r of all neurons; each form q, 4×4, is about the four rows ``index``, (k, 4). The first n are
    2pr of the neurons. All is scaled so that θ = 1 for these and ρ = 1 is the start.

    Args:
        system: a compressed one, its slopes not all equal.
        lam: Λ in which Condition 1 holds, (n,).
        value: γ(Λ), positive and finite.
    """

    def __init__(self, system: LipschitzSystem, lam: Tensor, value: float):
        W, U, C, D = with_unit_slopes(system)
        n, inputs = U.shape
        self.lam, self.size = value * lam, n
        root = self.lam.sqrt() * (system.slopes.high - system.slopes.low)
        V = torch.cat([root[:, None] * W / root, root[:, None] * U / value], 1)
        states = torch.eye(n, n + inputs, dtype=torch.float64)
        Y = torch.cat([C / root, D / value], 1)
        self.S, self.YY = torch.cat([states, V - states]), Y.mT @ Y
        self.E = torch.diag(torch.cat([torch.zeros(n), torch.ones(inputs)]).double())
        own = torch.arange(n)
        self.index = torch.stack([own, own + n, own, own + n], 1)
        self.forms = torch.zeros(n, 4, 4, dtype=torch.float64)
        self.forms[:, 0, 1] = self.forms[:, 1, 0] = 1.0
        self.weights = torch.zeros(0, 4, dtype=torch.float64)
        self.signs = torch.zeros(0, 2, 2, dtype=torch.float64)

    @property
    def parameter(self) -> float:
        """What the duality gap is when the objective weighs 1."""
        return float(len(self.E) + len(self.forms))

    def first_point(self) -> Tensor:
        """A point strictly inside, (k + 1,): the couplings begin with what leaves M definite."""
        point = torch.ones(len(self.forms) + 1, dtype=torch.float64)
        point[: self.size], point[-1] = 1.5, 2.25
        while self.value(point)[1] is None:
            point[self.size : -1] /= 3
        return point

    def value(self, point: Tensor) -> tuple[float, Tensor | None]:
        """The barrier and the Cholesky factor of M; infinite and None outside."""
        if not bool((point > 0).all()):
            return float("inf"), None
        R, info = torch.linalg.cholesky_ex(point[-1] * self.E - self.YY - self.S.mT @ self._sum(point) @ self.S)
        if int(info) != 0:
            return float("inf"), None
        return -float(2 * R.diagonal().log().sum() + point[:-1].log().sum()), R

    def _sum(self, point: Tensor) -> Tensor:
        """Σθₖqₖ as a form of all rows of S, (2n, 2n)."""
        rows = len(self.S)
        total = torch.zeros(rows * rows, dtype=torch.float64)
        weighted = point[:-1, None, None] * self.forms
        return total.index_add_(0, self._places().flatten(), weighted.flatten()).reshape(rows, rows)

    def _places(self) -> Tensor:
        return (self.index[:, :, None] * len(self.S) + self.index[:, None]).flatten(1)

    def gradient(self, point: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient, (k + 1,), and M⁻¹."""
        Z = torch.cholesky_inverse(R)
        N = self.S @ Z @ self.S.mT
        inner = (N[self.index[:, :, None], self.index[:, None]] * self.forms).sum((1, 2))
        return torch.cat([inner - 1 / point[:-1], -(Z * self.E).sum()[None]]), Z

    def hessian(self, point: Tensor, parts: Tensor) -> Tensor:
        """(k + 1, k + 1), from the second result of ``gradient`` at the same point."""
        Z, k = parts, len(self.forms)
        N, places = self.S @ Z @ self.S.mT, self._places().flatten()
        full = torch.empty(k + 1, k + 1, dtype=torch.float64)
        block = max(1, _ENTRIES // len(self.S) ** 2)
        for first in range(0, k, block):
            some = slice(first, min(first + block, k))
            near = N[self.index[some]]  # (block, 4, 2n)
            moved = (near.mT @ (self.forms[some] @ near)).flatten(1)  # NqN
            full[some, :k] = (moved[:, places].reshape(-1, k, 16) * self.forms.flatten(1)).sum(2)
        full.diagonal()[:k] += 1 / point[:-1].square()
        inputs = Z @ self.E
        moved = self.S @ inputs @ Z @ self.S.mT
        full[:k, k] = full[k, :k] = -(moved.flatten()[places].reshape(k, 16) * self.forms.flatten(1)).sum(1)
        full[k, k] = (inputs * inputs.mT).sum()
        return full

    def couple(self, point: Tensor, most: int) -> bool:
        """Add couplings of the pairs that M⁻¹ violates most, and drop idle ones; whether there were any to add."""
        _, R = self.value(point)
        assert R is not None
        n = self.size
        N = self.S @ torch.cholesky_inverse(R) @ self.S.mT
        scale = N.diagonal().rsqrt()
        N = scale[:, None] * N * scale
        blocks = N.reshape(2, n, 2, n).permute(1, 3, 0, 2)  # (n, n, 2, 2): of pᵢ, rᵢ with pⱼ, rⱼ
        left, sigma, right = torch.linalg.svd(blocks.abs())
        violated, pairs = torch.triu(sigma[..., 0], 1).flatten().topk(min(most, n * n))
        pairs = pairs[violated > _VIOLATED]
        i, j = pairs // n, pairs % n
        index = torch.stack([i, i + n, j, j + n], 1)
        weights = torch.cat([left[i, j, :, 0], right[i, j, 0]], 1).abs() * scale[index]
        weights = weights / weights.amax(1, keepdim=True)
        used = point[n:-1] > _IDLE * point[n:-1].max() if len(self.weights) else point.new_zeros(0).bool()
        self.weights = torch.cat([self.weights[used], weights])
        self.signs = torch.cat([self.signs[used], torch.where(blocks[i, j] < 0, -1.0, 1.0)])
        self.index = torch.cat([self.index[:n], self.index[n:][used], index])
        outer = self.weights[:, :, None] * self.weights[:, None]
        kept = torch.zeros_like(outer)
        kept.diagonal(dim1=1, dim2=2).copy_(self.weights.square())
        kept[:, :2, 2:] = -self.signs * outer[:, :2, 2:]
        kept[:, 2:, :2] = kept[:, :2, 2:].mT
        self.forms = torch.cat([self.forms[:n], kept])
        return len(pairs) > 0

    def multipliers(self, point: Tensor) -> tuple[Tensor, Couplings]:
        """Λ and the couplings of a point, about p and r in the units of the system."""
        n, pairs = self.size, self.index[self.size :, [0, 2]]
        root = self.lam.sqrt()[pairs].repeat_interleave(2, 1)
        weights = point[n:-1, None].sqrt() * self.weights * root
        return self.lam * point[:n], Couplings(neurons=pairs, weights=weights, signs=self.signs)
