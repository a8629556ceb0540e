"""Lur'e systems that certificates are tried on, and the vertices of their slopes."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from contracting.lure.system import LureSystem


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def firing_rate(W: Tensor) -> LureSystem:
    identity = torch.eye(len(W), dtype=torch.float64)
    return LureSystem(A=-identity, B=identity, C=W, D=torch.zeros_like(W))


def hopfield(W: Tensor) -> LureSystem:
    identity = torch.eye(len(W), dtype=torch.float64)
    return LureSystem(A=-identity, B=W, C=identity, D=torch.zeros_like(W))


def random_system(seed: int, *, n: int = 3, m: int = 4, inputs: int = 0, intervals: str = "unit") -> LureSystem:
    """Full matrices, a well-posed loop, and slopes in [0, 1], in random intervals or in single points."""
    g = seeded(seed)
    A = normal(n, n, generator=g) - 2 * torch.eye(n, dtype=torch.float64)
    B, C = normal(n, m, generator=g), normal(m, n, generator=g)
    D = 0.5 * normal(m, m, generator=g) / m**0.5
    low, high = torch.zeros(m).double(), torch.ones(m).double()
    if intervals != "unit":
        low = 2 * torch.rand(m, generator=g, dtype=torch.float64) - 1
        high = low + (1 - low) * torch.rand(m, generator=g, dtype=torch.float64)
    if intervals == "points":
        high = low.clone()
    more = {}
    if inputs:
        more = {
            "B2": normal(n, inputs, generator=g), "D12": normal(m, inputs, generator=g),
            "C2": normal(2, n, generator=g), "D21": normal(2, m, generator=g),
            "D22": 0.3 * normal(2, inputs, generator=g),
        }  # fmt: skip
    return LureSystem(A=A, B=B, C=C, D=D, slopes=(low, high), **more)


def corners(system: LureSystem) -> Tensor:
    """All vertices of the slopes, (2ᵐ, m)."""
    ends = zip(system.low.tolist(), system.high.tolist(), strict=True)
    return torch.tensor(list(itertools.product(*ends)), dtype=torch.float64).reshape(-1, system.neurons)
