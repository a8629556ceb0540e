"""Matrices of norm below one without constraints, for parameterisations that need such."""

from __future__ import annotations

import torch
from torch import Tensor


def into_unit_ball(matrix: Tensor) -> Tensor:
    """X ↦ X/√(1 + ‖X‖_F²), onto the matrices of Frobenius norm below one: smooth, and free of constraints."""
    return matrix / torch.sqrt(1 + matrix.square().sum())


def onto_unit_ball(matrix: Tensor) -> Tensor:
    """X ↦ XL⁻ᵀ, LLᵀ = I + XᵀX: all of (k, n) one to one onto the matrices S of spectral norm below one, smoothly.

    SᵀS = L⁻¹XᵀXL⁻ᵀ = I − L⁻¹L⁻ᵀ ≺ I. One factorisation and no singular values, which would have no gradient where two
    of them meet. Batches (..., k, n) of real or complex matrices, whose transposes are then the conjugate ones.
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor = torch.linalg.cholesky(identity + matrix.mH @ matrix)
    return torch.linalg.solve_triangular(factor, matrix.mH, upper=False).mH


def from_unit_ball(matrix: Tensor) -> Tensor:
    """S ↦ SE⁻ᵀ, EEᵀ = I − SᵀS: the X that ``onto_unit_ball`` maps to S, since E = L⁻¹.

    Raises:
        torch.linalg.LinAlgError: if the spectral norm of S, (..., k, n), is not below one.
    """
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor = torch.linalg.cholesky(identity - matrix.mH @ matrix)
    return torch.linalg.solve_triangular(factor, matrix.mH, upper=False).mH
