"""Loop shifts: the same Lur'e system with slopes in [0, 1]."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from contracting.errors import PreconditionError
from contracting.lure.system import LureSystem


def shifted(system: LureSystem, width: Tensor) -> LureSystem:
    """The system in w̃ = (w − low∘v)/width, with slopes of [0, 1].

    Raises:
        PreconditionError: if I − D·low is singular, so that the loop is ill-posed.
    """
    if not bool(system.low.any()) and bool((width == 1).all()):
        return replace(system, slopes=(torch.zeros_like(width), torch.ones_like(width)))
    m, low = system.neurons, system.low
    assert system.B2 is not None and system.D12 is not None and system.C2 is not None and system.D21 is not None
    right = torch.cat([system.C, system.D * width, system.D12], 1)
    solved, info = torch.linalg.solve_ex(torch.eye(m, dtype=torch.float64) - system.D * low, right)
    if int(info) or not bool(torch.isfinite(solved).all()):
        raise PreconditionError("I − D·low is singular: the loop v = Cs + Dσ(v) is ill-posed for these slopes; scale D")
    n = system.size
    C, D, D12 = solved[:, :n], solved[:, n : n + m], solved[:, n + m :]
    lowest = system.B * low
    return replace(
        system,
        A=system.A + lowest @ C,
        B=system.B * width + lowest @ D,
        C=C,
        D=D,
        B2=system.B2 + lowest @ D12,
        D12=D12,
        C2=system.C2 + (system.D21 * low) @ C,
        D21=system.D21 * width + (system.D21 * low) @ D,
        D22=system.D22 + (system.D21 * low) @ D12,
        slopes=(torch.zeros_like(low), torch.ones_like(low)),
        hint=None if system.hint is None else system.hint * width.square(),
    )
