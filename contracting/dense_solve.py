"""One dense linear system per row, solved so that a bad row spoils no other."""

from __future__ import annotations

import torch
from torch import Tensor


def solve_rows(matrices: Tensor, right: Tensor) -> Tensor:
    """x with Mx = r for each row: (batch, n, n), (batch, n) -> (batch, n); NaN where M is singular or not finite."""
    # LAPACK may loop or raise on NaN, so such rows get the identity and their answer is thrown away
    usable = torch.isfinite(matrices).flatten(1).all(1) & torch.isfinite(right).all(1)
    if not bool(usable.all()):
        identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
        matrices = torch.where(usable[:, None, None], matrices, identity)
        right = torch.where(usable[:, None], right, 0.0)
    solution, info = torch.linalg.solve_ex(matrices, right)
    usable = usable & (info == 0)
    return torch.where(usable[:, None], solution, float("nan"))
