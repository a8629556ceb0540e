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

    Every sum carries its own rounding errors along; the result is then wrong by one rounding and γ²|A||B|, γ = ku for k
    terms (Ogita, Rump and Oishi, "Accurate sum and dot product", SIAM J. Sci. Comput. 26, 2005, Algorithm 5.3).
    """

    @staticmethod
    def product(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        terms = A.shape[-1]
        value = torch.zeros_like(A @ B)
        lost = torch.zeros_like(value)
        for k in range(terms):
            a, b = A[..., :, k, None], B[..., k, None, :]
            term = a * b
            (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
            lost = lost + (a_low * b_low - (term - a_high * b_high - a_low * b_high - a_high * b_low))
            total = value + term
            part = total - value
            lost = lost + ((value - (total - part)) + (term - part))
            value = total
        value = value + lost
        squared = 2 * ((terms + 2) * UNIT) ** 2 * (A.abs() @ B.abs())
        # of numbers that underflow the square of a unit says nothing; SMALLEST covers each of them
        return value, 2 * UNIT * value.abs() + squared + (terms + 1) * SMALLEST


def _halves(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The upper and the lower 26 digits of each, whose products are exact (Veltkamp)."""
    large = (2.0**27 + 1) * numbers
    high = large - (large - numbers)
    return high, numbers - high


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
