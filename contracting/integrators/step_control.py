"""The step control of adaptive integrators, row by row: the first step, and the PI controller of the others."""

from __future__ import annotations

import torch
from torch import Tensor

# A step is planned to make nine tenths of the error that is allowed, so that few are rejected, and changes at most
# fivefold at once: the error of a step says little about one of quite another length.
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
# The exponents of the present error ratio and of the last one, over the order of the error: k_I + k_P and k_P.
# Source: Gustafsson, ACM TOMS 17 (1991); Hairer and Wanner, Solving Ordinary Differential Equations II, section IV.2.
_PRESENT, _LAST = 0.7, 0.4


def row_rms(rows: Tensor) -> Tensor:
    """Root mean square of each row: (batch, n) -> (batch,)."""
    return rows.square().mean(-1).sqrt()


def first_step(state: Tensor, slope: Tensor, longest: float) -> Tensor:
    """A step that moves each row by about a hundredth of its scale, between 1e-6 and ``longest``: (batch,)."""
    size, speed = row_rms(state), row_rms(slope)
    step = torch.where(size > 1e-5, 0.01 * size / speed.clamp_min(1e-30), 1e-3)
    return step.clamp(1e-6, longest).nan_to_num(1e-3)


def judge(ratio: Tensor, last: Tensor, order: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whether to accept a step, by how much to change its length, and the error ratio to remember; each (batch,).

    Args:
        ratio: error of the step over what is allowed; what is not a number is rejected.
        last: error ratio of the last accepted step.
        order: the power of the step length that the error is proportional to.
    """
    accept = ratio <= 1
    usable = ratio.nan_to_num(torch.inf, posinf=torch.inf).clamp_min(1e-10)
    growth = _SAFETY * usable ** (-_PRESENT / order) * torch.where(accept, last ** (_LAST / order), 1.0)
    return accept, growth.clamp(_SHRINK, _GROW), torch.where(accept, usable, last)
