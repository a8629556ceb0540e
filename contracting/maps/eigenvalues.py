"""The largest eigenvalue of many Hermitian matrices at once, without decomposing each of them."""

from __future__ import annotations

import torch
from torch import Tensor

# Up to this many matrices are simply decomposed; of more, this many of the most promising at a time.
_FEW, _CHUNK = 4, 8
# λ is raised by this share of the largest row sum before a Cholesky factorisation is asked, because λI − M is singular
# otherwise. It is some ten times what rounding can do in float64 to matrices of a hundred rows.
_RELATIVE = 1e-13


@torch.no_grad()
def largest_eigenvalue(matrices: Tensor) -> tuple[float, int]:
    """The largest eigenvalue of a batch of Hermitian matrices, and which one has it: (count, k, k) -> λ, index.

    Only the promising ones are decomposed. That no other exceeds λ is proved for each by a Cholesky factorisation of
    λI − M, which is many times cheaper; λ is exact up to a relative 1e-13 of the largest row sum.
    """
    if len(matrices) <= _FEW:
        values = torch.linalg.eigvalsh(matrices)[:, -1]
        index = int(values.argmax())
        return float(values[index]), index
    size = matrices.abs().sum(-1).amax()
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    slack = _RELATIVE * float(size)
    guess = _rayleigh_quotients(matrices, float(size))
    open_ = torch.arange(len(matrices))
    best, index = -float("inf"), 0
    while len(open_):
        first = open_[guess[open_].topk(min(_CHUNK, len(open_))).indices]
        values = torch.linalg.eigvalsh(matrices[first])[:, -1]
        if float(values.max()) > best:
            best, index = float(values.max()), int(first[values.argmax()])
        guess[first] = -float("inf")
        open_ = open_[torch.isfinite(guess[open_])]
        if len(open_):
            failed = torch.linalg.cholesky_ex((best + slack) * identity - matrices[open_])[1] != 0
            open_ = open_[failed]
    return best, index


def _rayleigh_quotients(matrices: Tensor, size: float, steps: int = 4) -> Tensor:
    """λmax of each matrix from below, by power iterations on M + size·I: only an order in which to look."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(matrices.shape[-1], 4, generator=generator, dtype=torch.float64).to(matrices)
    x = x.expand(len(matrices), *x.shape)
    for _ in range(steps):
        x = matrices @ x + size * x
        x = x / torch.linalg.vector_norm(x, dim=-2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.einsum("bik,bik->bk", x.conj(), matrices @ x).real.amax(-1)
