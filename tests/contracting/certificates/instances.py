"""Weights, flows and brute-force rates that the certificates are compared with."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.activations.catalogue import (
    ELU,
    Arctan,
    HardTanh,
    LeakyReLU,
    ReLU,
    Sigmoid,
    Softplus,
    Softshrink,
    Tanh,
)
from contracting.certificates import DiagonalMetric, forward_backward_system, peaceman_rachford_system
from equilibrium import Monotone, Weights

ACTIVATIONS: tuple[Activation, ...] = (
    ReLU(), Tanh(), Sigmoid(), Softplus(), LeakyReLU(negative_slope=0.2), ELU(alpha=0.5), Arctan(), HardTanh(),
    Softshrink(),
)  # fmt: skip


def rotation(k: float) -> Tensor:
    """k[[0, 1], [−1, 0]]: Condition 1 holds for every k with m = 1, contraction of the firing-rate flow fails."""
    return k * torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)


def gaussian(n: int, seed: int, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(n, n, generator=generator, dtype=torch.float64) / n**0.5


def random_lben(
    n: int,
    seed: int,
    *,
    skew: float,
    spread: float,
    contraction_rate: float | None = None,
    lipschitz: float | None = None,
) -> Weights:
    """An LBEN with random free parameters: size of the skew part and spread of ψ are chosen."""
    torch.manual_seed(seed)
    free = Monotone(
        3, n, 2, lipschitz=lipschitz, contraction_rate=contraction_rate, epsilon=0.1, dtype=torch.float64
    )
    with torch.no_grad():
        for parameter in free.parameters():
            parameter.copy_(torch.randn_like(parameter) / n**0.5)
        free.S.mul_(skew)
        assert free.psi is not None
        free.psi.copy_(spread * torch.randn(n, dtype=torch.float64))
        return free.explicit()


def corners(slopes: tuple[float, float], n: int) -> Tensor:
    return torch.tensor(list(itertools.product(slopes, repeat=n)), dtype=torch.float64)


def quadratic_rate(P: Tensor, W: Tensor, *, slopes: tuple[float, float] = (0.0, 1.0), hopfield: bool = False) -> float:
    """Best c with P F + FᵀP ⪯ −2cP at every vertex, by the square root of P."""
    values, basis = torch.linalg.eigh(P)
    root, inverse = basis * values.sqrt() @ basis.mT, basis / values.sqrt() @ basis.mT
    D = corners(slopes, W.shape[0])
    DW = W * D[:, None, :] if hopfield else D[:, :, None] * W
    M = root @ DW @ inverse
    return 1 - float(torch.linalg.eigvalsh((M + M.mT) / 2).max())


def constant_slope_bound(W: Tensor, slopes: tuple[float, float] = (0.0, 1.0)) -> float:
    """1 − the largest spectral abscissa over all vertices: no rate may exceed it."""
    return 1 - float(torch.linalg.eigvals(corners(slopes, W.shape[0])[:, :, None] * W).real.max())


def swept_reach(M: Tensor, *, points: int = 512) -> tuple[float, float]:
    """Bounds on max g over the numerical range by a uniform grid of angles, whose error is at most ‖M‖Δθ/2."""
    angles = torch.linspace(0, math.pi / 2, points + 1, dtype=torch.float64)
    rotated = torch.polar(torch.ones_like(angles), -angles)[:, None, None] * M
    top = torch.linalg.eigvalsh((rotated + rotated.mH) / 2)[:, -1]
    lower = max(0.0, float((angles.cos() * top).max()))
    return lower, lower + float(torch.linalg.matrix_norm(M, 2)) * math.pi / 4 / points + 1e-12


def splitting_rates(W: Tensor, lam: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Certified rates in Λ of the forward–backward and Peaceman–Rachford flows over steps α: (k,) -> (k,), (k,)."""
    forward, reflected = (
        [DiagonalMetric().certify(build(W, step=step, hint=lam)).rate for step in steps.tolist()]
        for build in (forward_backward_system, peaceman_rachford_system)
    )
    return torch.tensor(forward, dtype=torch.float64), torch.tensor(reflected, dtype=torch.float64)
