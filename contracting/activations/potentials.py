r"""What the closed forms of potentials are made of.

The convex f behind σ = prox_f is fixed up to a constant by f'(σ(v)) = v − σ(v): with F' = σ it is
f(z) = sup_v(zv − F(v)) − ½z². Here f(0) = 0 wherever 0 is in its domain and nothing more natural offers itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inside(z: Tensor, low: float, high: float, value: Tensor) -> Tensor:
    """The value where z lies in [low, high], the closure of the range of σ, and +∞ elsewhere."""
    return torch.where((z >= low) & (z <= high), value, math.inf)


# B_k/(k + 1)! for the even k ≥ 2
_BERNOULLI = (
    1 / 36, -1 / 3600, 1 / 211680, -1 / 10886400, 1 / 526901760, -691 / 16999766784000, 1 / 1120863744000,
    -3617 / 181400588328960000,
)  # fmt: skip


def dilogarithm(x: Tensor) -> Tensor:
    r"""Li₂(x) = Σ xᵏ/k² on [0, 1], to rounding.

    With u = −log(1 − x), Li₂(x) = u − u²/4 + Σ B_k u^{k+1}/(k+1)!, used for x ≤ ½ where u ≤ log 2; above ½ by
    Li₂(x) = π²/6 − log x·log(1 − x) − Li₂(1 − x).
    """
    # the clamp keeps the gradient of the branch that is not taken finite
    small = torch.where(x <= 0.5, x, 1 - x).clamp_min(torch.finfo(x.dtype).tiny)
    u = -torch.log1p(-small)
    square, power, total = u * u, u, u - u * u / 4
    for coefficient in _BERNOULLI:
        power = power * square
        total = total + coefficient * power
    reflected = math.pi**2 / 6 - torch.log(small) * torch.log1p(-small) - total
    return torch.where(x <= 0.5, total, reflected)
