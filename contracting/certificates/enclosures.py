r"""Matrices with a bound of their error: what a checker computes with where a formula has more than one product.

An enclosure is a matrix as float64 computed it and, entry by entry, how far the exact one may be. The roundings of the
bounds themselves are covered by whoever uses them, as ``definite`` does with one part in a hundred.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.certificates.definite import UNIT, sizes


@dataclass(frozen=True, eq=False)
class Enclosure:
    """All matrices within ``radius`` of ``value``, entry by entry: (..., n, m) both."""

    value: Tensor
    radius: Tensor

    @classmethod
    def exact(cls, value: Tensor) -> Enclosure:
        """A matrix that is known as it stands."""
        return cls(value, torch.zeros_like(value))

    @property
    def size(self) -> Tensor:
        """A bound of the absolute values."""
        return self.value.abs() + self.radius

    @property
    def mT(self) -> Enclosure:
        """The transposed matrix."""
        return Enclosure(self.value.mT, self.radius.mT)

    def __add__(self, other: Enclosure) -> Enclosure:
        value = self.value + other.value
        return Enclosure(value, self.radius + other.radius + UNIT * value.abs())

    def __neg__(self) -> Enclosure:
        return Enclosure(-self.value, self.radius)

    def __sub__(self, other: Enclosure) -> Enclosure:
        return self + -other

    def __matmul__(self, other: Enclosure) -> Enclosure:
        value = self.value @ other.value
        # sums of k products of rounded numbers: k roundings at most on each, and one more for good measure
        rounding = (self.value.shape[-1] + 1) * UNIT * (sizes(self.value) @ sizes(other.value))
        return Enclosure(value, self.radius @ other.size + self.value.abs() @ other.radius + rounding)

    def __mul__(self, scale: Tensor | float) -> Enclosure:
        """Entry by entry with exact numbers, broadcast: ``lam[:, None]`` scales rows."""
        value = self.value * scale
        return Enclosure(value, (self.radius * scale).abs() + UNIT * sizes(value))

    def __getitem__(self, index: object) -> Enclosure:
        return Enclosure(self.value[index], self.radius[index])  # type: ignore[index]


def solved(matrix: Enclosure, right: Tensor) -> Enclosure | None:
    """X with matrix @ X = right, for every matrix within the bounds, or None where one may be singular.

    With Y about the inverse, G = I − Y·matrix and ρ = ‖G‖∞ < 1, the exact X is within (I − |G|)⁻¹|Y||right − matrix·X̃|
    of a computed X̃, and the first factor exceeds the identity by at most ρ/(1 − ρ) of the largest entry of a column.

    Args:
        matrix: (..., m, m).
        right: (..., m, k).
    """
    if not matrix.value.shape[-1]:
        return Enclosure.exact(right)
    inverse, info = torch.linalg.inv_ex(matrix.value)
    if bool(info.any()) or not bool(torch.isfinite(inverse).all()):
        return None
    identity, Y = torch.eye(inverse.shape[-1], dtype=inverse.dtype), Enclosure.exact(inverse)
    rho = (Enclosure.exact(identity) - Y @ matrix).size.sum(-1, keepdim=True).amax(-2, keepdim=True)
    if not bool((rho < 0.5).all()):
        return None
    X = inverse @ right
    defect = (Y @ (Enclosure.exact(right) - matrix @ Enclosure.exact(X))).size
    return Enclosure(X, defect + 2 * rho * defect.amax(-2, keepdim=True))
