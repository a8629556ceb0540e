"""Lipschitz certificates: a number, the norm it is about, and what anyone needs to prove it again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from contracting.display import Displayed


class Norm(Enum):
    """The vector norm, the same for inputs and outputs."""

    L1 = "ℓ1"
    L2 = "ℓ2"
    LINF = "ℓ∞"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Couplings(Displayed):
    r"""Forms Σ h_x²x² + Σ h_y²y² − 2Σ s_xy h_x h_y xy, x ∈ {pᵢ, rᵢ}, y ∈ {pⱼ, rⱼ}, p = Δz − aΔv and r = bΔv − Δz.

    Where a slope is a, p = 0, and where it is b, r = 0: with every slope at an end they are squares.

    Attributes:
        neurons: i ≠ j of each, (k, 2).
        weights: h of pᵢ, rᵢ, pⱼ and rⱼ, (k, 4).
        signs: s = ±1 of x and y, (k, 2, 2).
    """

    neurons: Tensor
    weights: Tensor
    signs: Tensor


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LipschitzCertificate(Displayed):
    r"""‖y(x) − y(x')‖ ≤ bound · ‖x − x'‖ for all inputs x, x', with the data that proves it.

    Attributes:
        bound: the certified constant.
        norm: of inputs and outputs.
        method: how the proof was found; how it was found does not matter for its truth.
        slopes: the slopes [a, b] of the activation for which it holds.
        margin: what is left of the inequality after the allowance for rounding, > 0; see the checker.
        multiplier: ℓ2: diagonal Λ of [[2Λ − ΛW − WᵀΛ − CᵀC, ·], [·, bound²·I − DᵀD]] ≻ 0, (n,), in ``units``, or None.
        branches: of a proof by cases: which ends of slopes each case fixes, 0 the low, 1 the high and −1 none, and its
            multiplier, (cases, n) each, in ``units``; ``multiplier`` is then for Condition 1 alone. Or None.
        couplings: forms that stand beside the multipliers in every case of ``branches``, in ``units``, or None.
        state_gains: elementwise: X ≥ 0 with |Δz| ≤ X|Δx|, (n, in), in ``units``, or None.
        entrywise: elementwise: |Δyᵢ| ≤ Σⱼ entrywiseᵢⱼ|Δxⱼ|, (out, in), or None.
        rows: ℓ∞: a certificate in ℓ2 for every single output as a map of ξ, x = u∘ξ; ℓ1: those of the transposed map.
        input_units: u of each row, (rows, in), or None.
        units: (p, q): the two above are those of U·2⁻ᵖ, C·2⁻ᑫ, D·2⁻ᵖ⁻ᑫ and bound·2⁻ᵖ⁻ᑫ, so that neither weights of
            1e-160 nor of 1e+160 leave the range of float64. In the units of the weights they are 4ᑫΛ and 2ᵖX.
        about: a hash of the weights it was proved for, or None.
    """

    bound: float
    norm: Norm
    method: str
    slopes: tuple[float, float]
    margin: float
    multiplier: Tensor | None = None
    branches: tuple[Tensor, Tensor] | None = None
    couplings: Couplings | None = None
    state_gains: Tensor | None = None
    entrywise: Tensor | None = None
    rows: tuple[LipschitzCertificate, ...] | None = None
    input_units: Tensor | None = None
    units: tuple[int, int] = (0, 0)
    about: str | None = None

    @property
    def assumption(self) -> str:
        """What is assumed, in words."""
        return (
            f"elementwise activation with slopes in [{self.slopes[0]:g}, {self.slopes[1]:g}], the explicit weights as "
            "they are, equilibria in exact arithmetic"
        )

    def __str__(self) -> str:
        return f"{self.norm.value} Lipschitz constant ≤ {self.bound:.6g} ({self.method}); {self.assumption}"
