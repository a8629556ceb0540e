r"""Matrices with a bound of their error: what a checker computes with where a formula has more than one product.

An enclosure is a matrix as float64 computed it and, entry by entry, how far the exact one may be. The roundings of the
bounds themselves are covered by whoever uses them, as ``definite`` does with one part in a hundred.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from contracting.certificates.definite import SMALLEST, UNIT, definite_margins, sizes

_SLICES = 4  # So many slices of some 23 digits each hold more digits than two numbers of float64 side by side need.


@dataclass(frozen=True, eq=False)
class Enclosure:
    """All matrices within ``radius`` of ``value``, entry by entry: (..., n, m) both."""

    value: Tensor
    radius: Tensor

    @classmethod
    def exact(cls, value: Tensor) -> Self:
        """A matrix that is known as it stands."""
        return cls(value, torch.zeros_like(value))

    @property
    def size(self) -> Tensor:
        """A bound of the absolute values."""
        return self.value.abs() + self.radius

    @property
    def mT(self) -> Self:
        """The transposed matrix."""
        return type(self)(self.value.mT, self.radius.mT)

    def __add__(self, other: Enclosure) -> Self:
        value = self.value + other.value
        return type(self)(value, self.radius + other.radius + UNIT * value.abs())

    def __neg__(self) -> Self:
        return type(self)(-self.value, self.radius)

    def __sub__(self, other: Enclosure) -> Self:
        return self + -other

    def __matmul__(self, other: Enclosure) -> Self:
        value, rounding = self.product(self.value, other.value)
        return type(self)(value, self.radius @ other.size + self.value.abs() @ other.radius + rounding)

    @staticmethod
    def product(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """AB and a bound of its rounding: sums of k products, k roundings at most on each, and one for good measure."""
        return A @ B, (A.shape[-1] + 1) * UNIT * (sizes(A) @ sizes(B))

    def __mul__(self, scale: Tensor | float) -> Self:
        """Entry by entry with exact numbers, broadcast: ``lam[:, None]`` scales rows."""
        value = self.value * scale
        return type(self)(value, (self.radius * scale).abs() + UNIT * sizes(value))

    def __getitem__(self, index: object) -> Self:
        return type(self)(self.value[index], self.radius[index])  # type: ignore[index]


class Compensated(Enclosure):
    """Enclosures whose products are as if float64 had twice as many digits: for those much smaller than their terms.

    Both factors are cut into slices of so few digits that products of slices are exact in float64, in any order of
    their sums (Ozaki, Ogita, Oishi and Rump, "Error-free transformations of matrix multiplication", Numer. Algorithms
    59, 2012); what is cut off after four, and the sum of the products, are bounded.
    """

    @staticmethod
    def product(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        if not (terms := A.shape[-1]):
            return Enclosure.product(A, B)
        digits = (53 - math.ceil(math.log2(terms))) // 2
        left, right = _slices(A, digits), [part.mT for part in _slices(B.mT, digits)]
        value = lost = torch.zeros_like(A @ B)
        for i, part in enumerate(left):
            for other in right[: _SLICES - i]:
                term = part @ other
                total = value + term
                share = total - value
                lost = lost + ((value - (total - share)) + (term - share))
                value = total
        value = value + lost
        largest = A.abs().amax(-1, keepdim=True) * B.abs().amax(-2, keepdim=True)
        # five pairs of the order of the last slice are left out, and smaller ones; SMALLEST covers what underflows
        cut = 16 * terms * 2.0 ** (-_SLICES * digits) * largest
        return value, 4 * UNIT * value.abs() + 200 * UNIT**2 * terms * largest + cut + (terms + 1) * SMALLEST


def _slices(matrix: Tensor, digits: int) -> list[Tensor]:
    """Matrices that add up to this one but for 2^(−4·digits) of a row, and have at most 2^digits whole units each."""
    slices = []
    for _ in range(_SLICES):
        largest = matrix.abs().amax(-1, keepdim=True)
        unit = torch.ldexp(torch.ones_like(largest), torch.frexp(largest)[1] - digits)
        slices.append(torch.round(matrix / unit) * unit)
        matrix = matrix - slices[-1]
    return slices


def definite_form(form: Callable[[type[Enclosure]], Enclosure]) -> float:
    """The least margin of all matrices of a form, or −∞ if one of them is not proved positive definite.

    Where only the allowance for rounding is in the way of a proof, as it is where large matrices have a small product,
    the form is computed again with twice as many digits.

    Args:
        form: computes it, (..., n, n), in enclosures of the kind that it is given.
    """
    whole = form(Enclosure)
    if not whole.value.numel():
        return math.inf
    margin = float(definite_margins(whole.value, whole.radius).min())
    if margin > 0 or not float(definite_margins(whole.value, torch.zeros_like(whole.radius)).min()) > 0:
        return margin
    whole = form(Compensated)
    return float(definite_margins(whole.value, whole.radius).min())


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
