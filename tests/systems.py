"""Weights of every temper for property tests: balanced and graded, tiny and huge, nilpotent, near-singular, n = 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

EXAMPLES = settings(max_examples=300, derandomize=True, deadline=None, database=None)
"""The same examples in every run."""


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def _plain(n: int, seed: int) -> Tensor:
    return normal(n, n, seed=seed) / n**0.5


def _skewed(n: int, seed: int) -> Tensor:
    G = 2 * normal(n, n, seed=seed)
    return G - G.mT + 0.3 * _plain(n, seed + 1)


def _self_adjoint(n: int, seed: int) -> Tensor:
    G = _plain(n, seed)
    return (G + G.mT) / 2


def _nilpotent(n: int, seed: int) -> Tensor:
    """Integers, in an order that hides the triangle."""
    order = torch.randperm(n, generator=seeded(seed))
    return normal(n, n, seed=seed).mul(3).round().triu(1)[order][:, order]


def _sparse(n: int, seed: int) -> Tensor:
    return _plain(n, seed) * (torch.rand(n, n, generator=seeded(seed + 1)) < 0.4)


def _near_singular(n: int, seed: int) -> Tensor:
    """I − W is singular up to 1e-9."""
    A = torch.eye(n, dtype=torch.float64) - _plain(n, seed)
    u, s, v = torch.linalg.svd(A)
    s[-1] = 1e-9
    return torch.eye(n, dtype=torch.float64) - u * s @ v


def _monotone(n: int, seed: int) -> Tensor:
    """Condition 1 holds in Λ = I with m = 0.3."""
    X, S = _plain(n, seed), normal(n, n, seed=seed + 1)
    return 0.7 * torch.eye(n, dtype=torch.float64) - X @ X.mT - S + S.mT


KINDS = {
    "plain": _plain,
    "skewed": _skewed,
    "self-adjoint": _self_adjoint,
    "nilpotent": _nilpotent,
    "sparse": _sparse,
    "near singular": _near_singular,
    "monotone": _monotone,
    "tiny": lambda n, seed: 1e-150 * _plain(n, seed),
    "subnormal": lambda n, seed: 1e-320 * _plain(n, seed),
    "huge": lambda n, seed: 1e6 * _plain(n, seed),
    "zero": lambda n, seed: torch.zeros(n, n, dtype=torch.float64),
}


def _steep(n: int, seed: int) -> Tensor:
    """Condition 1 holds in Λ = I with m = 3e5, and W has entries of 1e6."""
    return torch.eye(n, dtype=torch.float64) - 1e6 * (torch.eye(n, dtype=torch.float64) - _monotone(n, seed))


def _barely_monotone(n: int, seed: int) -> Tensor:
    """Condition 1 holds in Λ = I with m between 1e-9 and 1e-8, beside a skew part of size 1."""
    X, S = _plain(n, seed), normal(n, n, seed=seed + 1)
    return (1 - 1e-9) * torch.eye(n, dtype=torch.float64) - 1e-9 * X @ X.mT - S + S.mT


EVERY_KIND = {**KINDS, "steep": _steep, "barely monotone": _barely_monotone}
"""With two that only Lipschitz constants are tried on: huge weights and nearly singular ones that are well posed."""


@dataclass(frozen=True)
class Drawn:
    """A weight, and a change of coordinates x' = d·x, which turns W to DWD⁻¹ and a metric Λ to ΛD⁻²."""

    kind: str
    seed: int
    W: Tensor
    d: Tensor

    @property
    def rescaled(self) -> Tensor:
        return self.W * self.d[:, None] / self.d[None, :]

    def __repr__(self) -> str:
        return f"{self.kind}, n = {len(self.W)}, seed {self.seed}, d = {self.d.tolist()}"


@st.composite
def systems(draw: st.DrawFn, *, largest: int = 4, kinds: tuple[str, ...] = tuple(KINDS), decades: float = 8) -> Drawn:
    """A weight of some kind with a graded change of coordinates: powers of two, or any numbers."""
    kind, n, seed = draw(st.sampled_from(kinds)), draw(st.integers(1, largest)), draw(st.integers(0, 10**6))
    exponents = (torch.rand(n, generator=seeded(seed + 7), dtype=torch.float64) * 2 - 1) * draw(
        st.sampled_from([0.5, 2.0, decades])
    )
    if kind == "subnormal":  # whose digits would be lost
        exponents = torch.zeros_like(exponents)
    d = torch.exp2(torch.round(exponents / 0.30103)) if draw(st.booleans()) else 10**exponents
    return Drawn(kind, seed, EVERY_KIND[kind](n, seed), d)
