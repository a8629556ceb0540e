r"""The room that rounding needs: how far a contractive network stays from the edge of its certificate.

In coordinates with Λ = I the network is M = 2√(1−c) SV − VᵀV − pI with P = VᵀV + pI and ‖S‖ ≤ 1 − δ; M' and P' are what
is stored of them. With u the unit of float64, in which all is computed, and e the spacing of the dtype in which it is
stored, inner products of N terms and the final rounding leave ‖M' − M‖, ‖P' − P‖ ≤ η(m + p), where η = e + (N + 8)√N u
and m = 1 + 2‖V‖_F² ≥ 2√(1−c)‖V‖_F + ‖V‖_F².

* Rate. P' + M' = 2√(1−c) SV + E with ‖E‖ ≤ 2η(m + p), so (P' + M')ᵀ(P' + M') ⪯ 4(1−c)VᵀV + (2/δ)‖E‖²I, which is to
  be at most 4(1−c)P'. It is if p ≥ 8η‖V‖_F² + Cm², C = 6η²/(δ(1−c)), as long as Cm ≤ ¼, which bounds ‖V‖_F.
* Condition 1. 2I − M − Mᵀ ⪰ 2(1 − (1−c)(1−δ)² + p)I, of which R = 2I − M' − M'ᵀ keeps half: R ⪰ (δ + p)I.
* γ. Inputs and outputs √γKT, KKᵀ = R, ‖T‖ ≤ 1 − δ, are computed from the M' that is stored. Their rounding and that of
  K take (2/δ)η²tr R + (N + 2)u tr R, with tr R ≤ 4N + 4‖V‖_F² + 2Np, and δR is left for it: enough if δ³ ≥ 16Nη²,
  δ ≥ 4(N + 1)√u and p ≥ (32η²/δ² + 16(N + 2)u/δ)‖V‖_F². With a feedthrough D, whose I − DᵀD/γ² ⪰ ½δI the inputs are
  divided by, η² becomes 18η²/δ there.
* The ball. A computed S of X has norm ≤ 1 + N√N u√(N + ‖X‖_F²) ≤ 1 + δ for ‖X‖_F² ≤ N/δ, and is scaled by 1 − 2δ.

For a convolution all of it holds frequency by frequency, with V of the frequency at which it is largest. What is stored
are kernels: at one frequency the roundings of N' positions add up, to √N' times that of a matrix, as Σ_taps‖K_tap‖_F ≤
√N' max_f‖K̂(f)‖_F. Rows of a readout, which see all frequencies, count as positions in addition.

So no value of the parameters is without its certificate. What is given up are networks that come within δ of the edge:
4e-4 of it for 100 neurons in float32, 5e-6 in float64, where the factorisation of R is what needs δ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.modules.ball import from_unit_ball, onto_unit_ball

_UNIT = 2.0**-53  # the largest relative error of one rounding in float64, in which all is computed


@dataclass(frozen=True, kw_only=True)
class Room:
    """The numbers of this page.

    Attributes:
        error: η.
        edge: δ.
        linear: what p has of ‖V‖_F².
        quadratic: C, what p has of m².
        largest_V: to which ‖V‖_F is reduced.
        largest_X: to which ‖X‖_F is reduced before it is mapped to the ball.
    """

    error: float
    edge: float
    linear: float
    quadratic: float
    largest_V: float
    largest_X: float

    @classmethod
    def of(cls, *, size: int, rate: float, dtype: torch.dtype, feedthrough: bool, positions: int = 1) -> Room:
        """The room of a network.

        Args:
            size: N: neurons; with a feedthrough, inputs and outputs as well. Of a convolution, its channels.
            rate: c.
            dtype: in which the weights are stored.
            feedthrough: whether there is one that takes part in γ.
            positions: N': of a convolution, with the rows of its readout.
        """
        error = torch.finfo(dtype).eps + (size + 7 + positions) * math.sqrt(size) * _UNIT
        error *= math.sqrt(positions)
        stored = 5 * (size * error**2) ** 0.25 if feedthrough else 3 * (size * error**2) ** (1 / 3)
        edge = stored + 4 * (size + 1) * math.sqrt(_UNIT)
        in_gamma = 18 / edge if feedthrough else 1.0
        quadratic = 6 * error**2 / (edge * (1 - rate))
        return cls(
            error=error,
            edge=edge,
            linear=8 * error + 32 * in_gamma * (error / edge) ** 2 + 16 * (size + 2) * _UNIT / edge,
            quadratic=quadratic,
            largest_V=math.sqrt(max(0.0, 1 / (4 * quadratic) - 1) / 2),
            largest_X=math.sqrt(size / edge),
        )

    def floor(self, square: Tensor) -> Tensor:
        """p of ‖V‖_F², the largest one of a convolution, 0-dim."""
        return self.error + self.linear * square + self.quadratic * (1 + 2 * square) ** 2

    def ball(self, X: Tensor) -> Tensor:
        """X in float64, mapped onto the matrices of spectral norm below 1 − δ: (..., k, n) -> (..., k, n)."""
        return (1 - 2 * self.edge) * onto_unit_ball(within(X, self.largest_X))

    def out_of_ball(self, S: Tensor) -> Tensor:
        """The X that ``ball`` maps to S.

        Raises:
            torch.linalg.LinAlgError: if there is none.
        """
        X = from_unit_ball(S / (1 - 2 * self.edge))
        if not float(torch.linalg.vector_norm(X)) <= self.largest_X:
            raise torch.linalg.LinAlgError("too close to the edge of the ball")  # type: ignore[attr-defined]
        return X


def within(matrix: Tensor, largest: float) -> Tensor:
    """The matrix, (..., k, n), in double precision, scaled to Frobenius norm ``largest`` where it has more."""
    wide = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    parts = torch.view_as_real(wide.resolve_conj()).flatten(-2) if wide.is_complex() else wide  # a complex norm is slow
    sizes = torch.linalg.vector_norm(parts, dim=(-2, -1), keepdim=True)
    return wide * (largest / sizes.clamp_min(largest))
