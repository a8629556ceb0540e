r"""What is promised of inputs and outputs: gain and passivity, as supply rates of one form.

A storage V = ΔsᵀPΔs with V' + 2cV ≤ r|Δu|² + 2s⟨Δu, Δy⟩ − q|Δy|² along every two trajectories, q ≥ 0:

* q = 1/γ, s = 0, r = γ: the incremental L2 gain is at most γ; without a state, the Lipschitz constant;
* q = 2ρ, s = 1, r = −2ν: incrementally passive, with excess ν of input and ρ of output passivity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.lure.checker import Supply
from contracting.errors import InputError
from contracting.modules.ball import into_unit_ball


@dataclass(frozen=True, kw_only=True)
class Passive:
    """⟨Δu, Δy⟩ ≥ ½V' + cV + ν|Δu|² + ρ|Δy|² with V = ΔsᵀPΔs: as many outputs as inputs, no more energy out than in.

    Args:
        input: ν ≥ 0, excess of input passivity; ν > 0 needs a feedthrough, as there is none without one.
        output: ρ ≥ 0, excess of output passivity; ρ > 0 bounds the gain by 1/ρ as well. 4νρ < 1.

    Raises:
        InputError: if a number is negative or infinite, or 4νρ ≥ 1, which no system has.
    """

    input: float = 0.0
    output: float = 0.0

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            checks.number(name, getattr(self, name), low=0, high=math.inf, high_open=True)
        if 4 * self.input * self.output >= 1:
            raise InputError(
                f"input and output must satisfy 4·input·output < 1, got {self.input:g} and {self.output:g}"
            )


def feedthrough_of(supply: Supply, ball: Tensor, root: Tensor | None, epsilon: float) -> Tensor:
    """A D with rI + s(D + Dᵀ) − qDᵀD ≻ 0, from any matrices of its shape: in a ball, or a half-space where q = 0.

    Args:
        supply: r|u|² + 2s⟨u, y⟩ − q|y|².
        ball: (p, k).
        root: (k, k), which counts where q = 0 only.
        epsilon: how definite it is at least, where q = 0.
    """
    q, s, r = -supply.output, supply.cross, supply.input
    identity = torch.eye(*ball.shape, dtype=ball.dtype, device=ball.device)
    if q > 0:
        return s / q * identity + math.sqrt((r + s**2 / q) / q) * into_unit_ball(ball)
    assert root is not None
    return (root.mT @ root + (epsilon - r) * identity) / (2 * s) + (ball - ball.mT)


def roots_of(supply: Supply, B: Tensor, C: Tensor, D: Tensor | None) -> list[Tensor]:
    r"""X₁, … such that −M ⪰ Σ XᵀX makes the system obey a supply rate.

    That is [[−M − qCᵀC, −(B − Cᵀ(s − qD))], [·, rI + s(D + Dᵀ) − qDᵀD]] ⪰ 0, by a Schur complement. Without D and with
    r = 0 the corner is zero, and B = sCᵀ.

    Args:
        supply: r|u|² + 2s⟨u, y⟩ − q|y|².
        B: from the input to the state and the neurons, times P and Λ: (n + m, k).
        C: from both to the output, (p, n + m).
        D: (p, k), or None.
    """
    q, s, r = -supply.output, supply.cross, supply.input
    output = [math.sqrt(q) * C] if q else []
    if D is None:
        coupled = B - s * C.mT if s else B
        return [*output, coupled.mT / math.sqrt(r)] if r > 0 else output
    identity = torch.eye(*D.shape, dtype=D.dtype, device=D.device)
    corner = r * torch.eye(D.shape[1], dtype=D.dtype, device=D.device) - q * (D.mT @ D)
    if s:
        corner = corner + s * (D + D.mT)
    coupled = B - C.mT @ (s * identity - q * D)
    return [*output, torch.linalg.solve_triangular(torch.linalg.cholesky(corner), coupled.mT, upper=False)]
