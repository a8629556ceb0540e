r"""The convex functions f behind the activations σ = prox_f, in closed form.

f is fixed up to a constant by f'(σ(v)) = v − σ(v): with F' = σ it is f(z) = sup_v(zv − F(v)) − ½z², and here f(0) = 0
wherever 0 is in its domain and nothing more natural offers itself. Outside the closure of the range of σ it is +∞.
An activation of one's own joins by ``@potential.register``.
"""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.activations.catalogue import (
    ELU,
    Arctan,
    HardSigmoid,
    HardTanh,
    Identity,
    LeakyReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    Slope,
    Softplus,
    Softshrink,
    Softsign,
    Tanh,
)
from contracting.activations.clamped import Clamped
from contracting.errors import InputError


@singledispatch
def potential(activation: Activation, z: Tensor) -> Tensor:
    """f(z) entry by entry, +∞ outside the domain: (..., n) -> (..., n).

    Raises:
        InputError: if no closed form is known for the activation.
    """
    raise InputError(
        f"no potential is known for {activation!r}; provide one with @potential.register: f(z) with f'(σ(v)) = v − σ(v)"
    )


def _inside(z: Tensor, low: float, high: float, value: Tensor) -> Tensor:
    return torch.where((z >= low) & (z <= high), value, math.inf)


@potential.register
def _(activation: Identity, z: Tensor) -> Tensor:
    return torch.zeros_like(z)


@potential.register
def _(activation: ReLU, z: Tensor) -> Tensor:
    return _inside(z, 0.0, math.inf, torch.zeros_like(z))


@potential.register
def _(activation: ReLU6, z: Tensor) -> Tensor:
    return _inside(z, 0.0, 6.0, torch.zeros_like(z))


@potential.register
def _(activation: HardTanh, z: Tensor) -> Tensor:
    return _inside(z, activation.low, activation.high, torch.zeros_like(z))


@potential.register
def _(activation: LeakyReLU, z: Tensor) -> Tensor:
    a = activation.negative_slope
    if a == 0:
        return _inside(z, 0.0, math.inf, torch.zeros_like(z))
    return (1 / a - 1) / 2 * z.clamp(max=0).square()


@potential.register
def _(activation: HardSigmoid, z: Tensor) -> Tensor:
    # v = 6z − 3 on the ramp
    return _inside(z, 0.0, 1.0, 2.5 * z.square() - 3 * z)


@potential.register
def _(activation: Softshrink, z: Tensor) -> Tensor:
    return activation.threshold * z.abs()


@potential.register
def _(activation: Slope, z: Tensor) -> Tensor:
    s = activation.values
    quadratic = (1 / torch.where(s > 0, s, 1.0) - 1) / 2 * z.square()
    return torch.where(s > 0, quadratic, torch.where(z == 0, 0.0, math.inf))


@potential.register
def _(activation: Clamped, z: Tensor) -> Tensor:
    held = torch.where(z == 0, torch.zeros_like(z), math.inf)
    return torch.where(activation.free.to(z.device), potential(activation.inner, z), held)


@potential.register
def _(activation: Tanh, z: Tensor) -> Tensor:
    # the integral of artanh, written so that the ends ±1 are finite
    return _inside(z, -1.0, 1.0, (torch.xlogy(1 + z, 1 + z) + torch.xlogy(1 - z, 1 - z) - z.square()) / 2)


@potential.register
def _(activation: Sigmoid, z: Tensor) -> Tensor:
    return _inside(z, 0.0, 1.0, torch.xlogy(z, z) + torch.xlogy(1 - z, 1 - z) - z.square() / 2)


@potential.register
def _(activation: Arctan, z: Tensor) -> Tensor:
    # the float32 next to π/2 lies beyond it; the clamp is cos σ(v) of the smallest v that is rounded there, up to 7 %
    cosine = torch.cos(z).clamp_min(torch.finfo(z.dtype).eps / 8)
    return _inside(z, -math.pi / 2, math.pi / 2, -torch.log(cosine) - z.square() / 2)


@potential.register
def _(activation: Softsign, z: Tensor) -> Tensor:
    return _inside(z, -1.0, 1.0, -z.abs() - torch.log1p(-z.abs()) - z.square() / 2)


@potential.register
def _(activation: ELU, z: Tensor) -> Tensor:
    a = activation.alpha
    below = torch.xlogy(a + z, 1 + z / a) - z - z.square() / 2
    return _inside(z, -a, math.inf, torch.where(z < 0, below, torch.zeros_like(z)))


@potential.register
def _(activation: Softplus, z: Tensor) -> Tensor:
    # f' = log(1 − e^{−βz})/β, whose integral from z to ∞ is a dilogarithm
    beta = activation.beta
    return _inside(z, 0.0, math.inf, dilogarithm(torch.exp(-beta * z.clamp(min=0))) / beta**2)


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
