r"""Branches over slopes: what one diagonal multiplier loses is won back by cases, each with a multiplier of its own.

The gain G(J) = C(I − JW)⁻¹JU + D is a Möbius function of each slope, G₀ + τ(s)uvᵀ with a monotone τ, so that ‖G‖ is
largest where a slope is at an end of its interval. A neuron whose slope is fixed is eliminated, or, in the proof, an
equality with any multiplier. All patterns of ends of some neurons are a tree; the worst leaf is the bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.records import CertificateError
from equilibrium.lipschitz.certificate import LipschitzCertificate
from equilibrium.lipschitz.checker import checked
from equilibrium.lipschitz.finder import LipschitzFinder
from equilibrium.lipschitz.gain import compressed, gain
from equilibrium.lipschitz.interior import InteriorPoint
from equilibrium.lipschitz.start import best_scale
from equilibrium.lipschitz.system import LipschitzSystem, in_power

_ACCURACY = 1e-4  # Of γ² in a leaf: the optimum of one case, which the next split changes by more.
_EQUALITY = (1e6, 1e4)  # Multipliers of fixed neurons, in units of free ones: large is tight, small rounds little.
_ROOM = (1e-6, 1e-5, 1e-4, 1e-3)  # The bound grows by these shares until the checker accepts every leaf.


@dataclass(frozen=True, kw_only=True, eq=False)
class Branches(LipschitzFinder):
    """The bound of ``InteriorPoint``, lowered by cases: the leaf with the largest bound is split, again and again.

    Each leaf costs about what ``InteriorPoint`` does. How much is won depends on the network: neurons interact, and to
    reach the largest gain of a pattern of slopes may take a number of leaves that is exponential in n.

    Args:
        leaves: cases at most.
        tolerance: relative duality gap of γ² at the root.
    """

    leaves: int = 32
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        checks.whole_number("leaves", self.leaves)
        checks.number("tolerance", self.tolerance, low=1e-10, high=1)

    name = "branches over slopes"

    def find(self, system: LipschitzSystem) -> Tensor:
        """Patterns of the leaves and their multipliers, the root first: (2, leaves + 1, n).

        A pattern is −1 where a neuron is free, and 0 or 1 where its slope is at the low or the high end.
        """
        root = InteriorPoint(tolerance=self.tolerance).find(system)[0]
        small = _exact(compressed(system.in_units(system.units)))
        free = torch.full((system.size,), -1.0, dtype=torch.float64)
        leaves = [(gain(small, root), free, root)]
        order = _most_telling(small, root) if system.slopes.low < system.slopes.high and not system.constant else []
        while len(leaves) < self.leaves and order:
            worst = max(range(len(leaves)), key=lambda index: leaves[index][0])
            _, pattern, lam = leaves[worst]
            neuron = next((index for index in order if pattern[index] < 0), None)
            if neuron is None:
                break
            leaves[worst : worst + 1] = [_child(small, pattern, lam, neuron, end) for end in (0.0, 1.0)]
        return torch.stack(
            [torch.stack([free, *(leaf[1] for leaf in leaves)]), torch.stack([root, *(leaf[2] for leaf in leaves)])]
        )

    def judge(self, system: LipschitzSystem, proposal: Tensor) -> LipschitzCertificate:
        """The first certificate that the checker accepts, with ever more room for rounding."""
        patterns, multipliers = proposal
        plain = super().judge(system, multipliers[:1])
        small = _exact(compressed(system.in_units(system.units)))
        value = max(_leaf_gain(small, *leaf) for leaf in zip(patterns[1:], multipliers[1:], strict=True))
        for share in _ROOM:
            for weight in _EQUALITY:
                bound = value * (1 + share)
                leaves = torch.where(patterns[1:] < 0, multipliers[1:], weight * multipliers[:1]) * bound
                certificate = replace(
                    plain,
                    bound=in_power(bound, sum(system.units)),
                    method=self.name,
                    branches=(patterns[1:], leaves),
                )
                try:
                    return min(checked(certificate, system), plain, key=lambda found: found.bound)
                except CertificateError:
                    continue
        return plain


def _exact(system: LipschitzSystem) -> LipschitzSystem:
    """Without errors: for finders."""
    zeros = (torch.zeros_like(system.U), torch.zeros_like(system.C), torch.zeros_like(system.D))
    return replace(system, errors=zeros)


def _eliminated(system: LipschitzSystem, pattern: Tensor) -> tuple[LipschitzSystem, Tensor]:
    """The map of the free neurons alone, and which these are."""
    low, high = system.slopes
    free, fixed = torch.nonzero(pattern < 0)[:, 0], torch.nonzero(pattern >= 0)[:, 0]
    slope = torch.where(pattern[fixed] > 0, high, low)[:, None]
    both = slope * torch.cat([system.W[fixed][:, free], system.U[fixed]], 1)
    inner = torch.eye(len(fixed), dtype=torch.float64) - slope * system.W[fixed][:, fixed]
    solved = torch.linalg.solve(inner, both)
    state, entry = solved[:, : len(free)], solved[:, len(free) :]
    across, out = system.W[free][:, fixed], system.C[:, fixed]
    reduced = replace(
        system,
        W=system.W[free][:, free] + across @ state,
        U=system.U[free] + across @ entry,
        C=system.C[:, free] + out @ state,
        D=system.D + out @ entry,
        metric=None,
        claimed=None,
    )
    return _exact(compressed(_exact(reduced))), free


def _leaf_gain(system: LipschitzSystem, pattern: Tensor, lam: Tensor) -> float:
    reduced, free = _eliminated(system, pattern)
    return gain(reduced, lam[free])


def _child(
    system: LipschitzSystem, pattern: Tensor, lam: Tensor, neuron: int, end: float
) -> tuple[float, Tensor, Tensor]:
    """The bound, the pattern and the multiplier of a case of a leaf."""
    pattern, lam = pattern.clone(), lam.clone()
    pattern[neuron] = end
    reduced, free = _eliminated(system, pattern)
    start = best_scale(reduced, lam[free])
    found = InteriorPoint(tolerance=_ACCURACY).optimum(reduced, start)
    lam[free] = found
    return gain(reduced, found), pattern, lam


def _most_telling(system: LipschitzSystem, root: Tensor) -> list[int]:
    """Neurons by how far both their cases lie below the root in its own multiplier, the farthest first."""
    values = []
    for neuron in range(system.size):
        cases = []
        for end in (0.0, 1.0):
            pattern = torch.full((system.size,), -1.0, dtype=torch.float64)
            pattern[neuron] = end
            cases.append(_leaf_gain(system, pattern, root))
        values.append(max(cases) + 0.1 * min(cases))
    return sorted(range(system.size), key=lambda neuron: values[neuron])
