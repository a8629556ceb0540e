"""Matrices of norm below one without constraints, for parameterisations that need such."""

from __future__ import annotations

import torch
from torch import Tensor


def into_unit_ball(matrix: Tensor) -> Tensor:
    """X ↦ X/√(1 + ‖X‖_F²), onto the matrices of Frobenius norm below one: smooth, and free of constraints."""
    return matrix / torch.sqrt(1 + matrix.square().sum())
