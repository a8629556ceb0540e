r"""ℓ∞ and ℓ1 norms of Lur'e systems, from the entries of the matrices alone: what is proved, and Perron weights.

In the norm max ηᵢ|sᵢ| every neuron is bounded by ζⱼ times the norm of the state, where

    ζ ≥ g(|C|η⁻¹ + |D'|ζ),   g the largest |J/(1 − Jdⱼⱼ)|, D' = D without its diagonal;

row i of the field then grows by at most aᵢᵢ + Σ|aᵢₖ|ηᵢ/ηₖ plus what each neuron adds at the worse end of its slopes,
where its own part bᵢⱼcⱼᵢ keeps its sign. The ℓ1 norm is the ℓ∞ norm of the transposed system, (Aᵀ, Cᵀ, Bᵀ, Dᵀ) with the
same slopes. All is done with slopes counted from 0 and from the middles of their intervals; a row keeps the better.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.certificates.definite import UNIT, sizes
from contracting.certificates.enclosures import Enclosure, solved
from contracting.certificates.lure.checker import middle, neuron_units
from contracting.certificates.multipliers import perron_weights
from contracting.lure.system import LureSystem
from contracting.metrics import WeightedL1, WeightedLinf

_INFLATED = 1 + 1e-12  # ζ is computed with this factor of room, so that rounding cannot spoil the inequality for it.


@dataclass(frozen=True, eq=False)
class _Loop:
    """A system, its slopes counted from other points, within bounds of rounding; J/(1 − Jdⱼⱼ) is in [low, high]."""

    A: Enclosure
    B: Enclosure
    C: Enclosure
    between: Tensor  # |D| without its diagonal, (m, m)
    low: Tensor
    high: Tensor

    @property
    def largest(self) -> Tensor:
        """g, (m,)."""
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def paths(self) -> Tensor | None:
        """(I − g|D'|)⁻¹g|C|: how much a neuron moves with an entry of the state, (m, n); None if unbounded."""
        loop = torch.eye(len(self.low), dtype=torch.float64) - self.largest[:, None] * self.between
        found, info = torch.linalg.solve_ex(loop, self.largest[:, None] * self.C.size)
        return None if int(info) or not bool((found >= 0).all()) else found


def polyhedral_margin(system: LureSystem, metric: WeightedL1 | WeightedLinf, rate: float) -> float:
    """−(worst measure of a Jacobian) − rate, bounded as above, less an allowance for rounding."""
    if isinstance(metric, WeightedL1):
        system, metric = _transposed(system), metric.dual()  # type: ignore[assignment]
    eta = metric.weights.detach().to("cpu", torch.float64)
    units = torch.ldexp(torch.ones_like(eta), torch.frexp(eta)[1] - 1)
    system, eta = system.rescaled(units, neuron_units(system)), eta / units
    rows = [_row_margins(loop, eta, rate) for loop in _loops(system)]
    return float(torch.stack(rows).amax(0).min())


def polyhedral_candidates(
    system: LureSystem, norm: type[WeightedL1] | type[WeightedLinf]
) -> list[WeightedL1 | WeightedLinf]:
    """Norms with the Perron vectors of the comparison matrices as weights, the system being balanced."""
    columns = norm is WeightedL1
    found: list[WeightedL1 | WeightedLinf] = []
    for loop in _loops(_transposed(system) if columns else system):
        if (paths := loop.paths) is None:
            continue
        own, through = loop.B.value * loop.C.value.mT, loop.B.size @ paths
        by_others = loop.B.size * (loop.largest[:, None] * (loop.between @ paths)).mT
        matrix = loop.A.value.abs() + through
        # the own parts at the worse end each, or all at the high end, where a row has one neuron only
        for part in (torch.maximum(own * loop.low, own * loop.high), own * loop.high):
            diagonal = loop.A.value.diagonal() + (part + by_others).sum(1)
            _, right = perron_weights(matrix - torch.diag(matrix.diagonal()) + torch.diag(diagonal))
            found.append(WeightedL1(right) if columns else WeightedLinf(1 / right))
    return found


def _loops(system: LureSystem) -> list[_Loop]:
    """With slopes counted from zero, and from their middles where there are any."""
    K, half = middle(system)
    plain = [Enclosure.exact(matrix) for matrix in (system.A, system.B, system.C, system.D)]
    loops = [_loop(plain[0], plain[1], plain[2], plain[3], system.low, system.high)]
    identity = Enclosure.exact(torch.eye(system.neurons, dtype=torch.float64))
    inside = solved(identity - Enclosure.exact(system.D) * K, torch.cat([system.C, system.D], 1))
    if bool(K.any()) and inside is not None:
        C, D = inside[:, : system.size], inside[:, system.size :]
        drive = Enclosure.exact(system.B) * K
        loops.append(_loop(plain[0] + drive @ C, plain[1] + drive @ D, C, D, -half, half))
    return [loop for loop in loops if loop is not None]


def _loop(A: Enclosure, B: Enclosure, C: Enclosure, D: Enclosure, low: Tensor, high: Tensor) -> _Loop | None:
    """None where a neuron alone may be ill-posed, 1 − Jdⱼⱼ ≤ 0."""
    own, error = D.value.diagonal(), D.radius.diagonal()
    ends = []
    for J in (low, high):
        room, blur = 1 - J * own, J.abs() * error + 4 * UNIT * (1 + J.abs() * own.abs())
        ends += [(J, room - blur), (J, room + blur)]
    if not all(bool((room > 0).all()) for _, room in ends):
        return None
    slopes = torch.stack([J / room for J, room in ends])
    wider = 4 * UNIT * slopes.abs().amax(0)
    between = D.size - torch.diag(D.size.diagonal())
    return _Loop(A, B, C, between, slopes.amin(0) - wider, slopes.amax(0) + wider)


def _row_margins(loop: _Loop, eta: Tensor, rate: float) -> Tensor:
    """Of each row, (n,)."""
    n, m = loop.B.value.shape
    inverse = 1 / eta
    direct, largest = sizes(loop.C.value) + loop.C.radius, loop.largest
    paths = loop.paths
    if paths is None:
        return torch.full((n,), -torch.inf, dtype=torch.float64)
    count = (n + m + 12) * UNIT
    bound = (paths @ inverse) * _INFLATED + 1e-290
    needed = largest * (direct @ inverse + loop.between @ bound) * (1 + count)
    if not bool((needed <= bound).all()):
        return torch.full((n,), -torch.inf, dtype=torch.float64)
    driving = sizes(loop.B.value) + loop.B.radius
    rest = (direct @ inverse)[None, :] - direct.mT * inverse[:, None] + (loop.between @ bound)[None, :]
    own, blur = loop.B.value * loop.C.value.mT, driving * direct.mT - (loop.B.value * loop.C.value.mT).abs()
    rest = driving * rest.clamp_min(0) * eta[:, None] + blur.clamp_min(0)
    added = torch.maximum(loop.low * own + loop.low.abs() * rest, loop.high * own + loop.high.abs() * rest).sum(1)
    scaled = loop.A.size * eta[:, None] * inverse
    off = scaled.sum(1) - scaled.diagonal()
    everything = (largest * driving * (direct @ inverse + loop.between @ bound)).sum(1) * eta
    allowance = 2 * count * (off + 2 * loop.A.size.diagonal() + everything + abs(rate))
    return -(loop.A.value + loop.A.radius).diagonal() - off - added - rate - allowance


def _transposed(system: LureSystem) -> LureSystem:
    """The system whose Jacobians are transposed; it has no inputs and outputs."""
    return LureSystem(A=system.A.mT, B=system.C.mT, C=system.B.mT, D=system.D.mT, slopes=system.slopes)
