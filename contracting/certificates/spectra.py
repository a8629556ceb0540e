"""Eigenvalues that bounds rest on: found in spite of a failing LAPACK, and bounded from below in spite of rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contracting.certificates.definite import UNIT


def eigenvalues(matrices: Tensor) -> Tensor:
    """Eigenvalues of real matrices, NaN for those where no way to compute them converges: (..., n, n) -> (..., n)."""
    try:
        return torch.linalg.eigvals(matrices)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        pass
    if matrices.ndim > 2:
        return torch.stack([eigenvalues(matrix) for matrix in matrices])
    n = matrices.shape[-1]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):  # the iteration fails at single matrices; in other orthonormal coordinates it hardly ever does
        basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=matrices.dtype)).Q
        try:
            return torch.linalg.eigvals(basis.mT @ matrices @ basis)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            continue
    return torch.full((n,), math.nan, dtype=torch.complex128)


def eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and right eigenvectors of a real matrix: (n, n) -> (n,), (n, n).

    As those of a complex one: where the iteration for real matrices does not converge, the eigenvectors that torch
    forms of its pairs of columns are written beyond the end of the array (torch 2.13), and the process may die.

    Raises:
        torch.linalg.LinAlgError: if the iteration does not converge.
    """
    values, vectors = torch.linalg.eig(matrix.to(torch.complex128))
    return values, vectors


def schur(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """U unitary and T upper triangular with M = UTUᴴ, complex, by deflating one eigenvector at a time: O(n⁴).

    Each eigenpair has a small residual, however ill-conditioned its eigenvalue is, so that what is dropped below the
    diagonal is rounding, also of nilpotent matrices.

    Raises:
        torch.linalg.LinAlgError: if an eigenvalue iteration does not converge.
    """
    T = matrix.to(torch.complex128).clone()
    U = torch.eye(len(T), dtype=T.dtype)
    for k in range(len(T) - 1):
        rest = torch.eye(len(T) - k, dtype=T.dtype)
        vector = torch.linalg.eig(T[k:, k:])[1][:, :1]
        basis = torch.linalg.qr(torch.cat([vector, rest], 1)).Q
        T[:, k:], U[:, k:] = T[:, k:] @ basis, U[:, k:] @ basis
        T[k:, k:] = basis.mH @ T[k:, k:]
    return U, T.triu()


def abscissa_from_below(M: Tensor, error: float = 0.0) -> float:
    """A number that the largest real part of an eigenvalue is proved to reach, the rounding of all steps included.

    Args:
        M: (n, n).
        error: by how much the norm of the matrix that is meant may differ.
    """
    n, diagonal = M.shape[-1], M.diagonal()
    mean = float(diagonal.mean()) - 2 * n * UNIT * float(diagonal.abs().mean()) - error
    values, radius = _enclosure(M, error)
    return max(mean, float(values.real.max()) - 2 * n * radius)


def abscissa_from_above(M: Tensor) -> float:
    """A number that no real part of an eigenvalue is proved to exceed; ∞ where rounding decides what they are."""
    if not len(M):
        return -math.inf
    values, radius = _enclosure(M, 0.0)
    return float(values.real.max()) + radius


def radius_from_below(M: Tensor, error: float) -> float:
    """A number that the largest absolute value of an eigenvalue is proved to reach; 0 says nothing.

    Args:
        M: (n, n).
        error: by how much the norm of the matrix that is meant may differ.
    """
    n, diagonal = M.shape[-1], M.diagonal()
    mean = abs(float(diagonal.mean())) - 2 * n * UNIT * float(diagonal.abs().mean()) - error
    values, radius = _enclosure(M, error)
    return max(mean, float(values.abs().max()) - 2 * n * radius, 0.0)


def _enclosure(M: Tensor, error: float) -> tuple[Tensor, float]:
    """Numbers and a radius r: discs of radius r around the numbers hold all eigenvalues, a part of k discs k of them.

    With computed eigenvectors X and Y ≈ X⁻¹, the matrix X⁻¹MX = Λ + X⁻¹(MX − XΛ) has its eigenvalues in Gershgorin
    discs around Λ; at most n overlap, so one lies within 2n·r of each number. r = ∞ where the eigenvectors are close to
    dependent, as those of a nilpotent matrix are: then rounding has decided what the numbers are.
    """
    n = M.shape[-1]
    try:
        values, X = eigenvectors(M)
        Y = torch.linalg.inv(X)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return torch.full((n,), -math.inf, dtype=torch.complex128), math.inf
    rounding = 3 * (n + 4) * UNIT
    size, span = X.abs(), Y.abs()
    residual = (M.to(X.dtype) @ X - X * values).abs() + rounding * (M.abs() @ size + size * values.abs())
    residual = residual + error * torch.linalg.vector_norm(size, dim=0)
    defect = (Y @ X - torch.eye(n, dtype=X.dtype)).abs() + rounding * (span @ size)
    room = 1 - float(defect.sum(1).max())
    radius = float((span @ residual).sum(1).max())
    return values, radius * (1 + rounding) / room if room > 0 and math.isfinite(radius) else math.inf
