"""The largest of many eigenvalues, against decomposing every matrix."""

from __future__ import annotations

import pytest
import torch

from contracting.maps.eigenvalues import largest_eigenvalue


def hermitian(count: int, k: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    M = torch.randn(count, k, k, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return (M + M.mH) / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize(("count", "k"), [(1, 5), (3, 2), (40, 1), (200, 6), (60, 12)])
def test_it_is_the_largest_of_all(count: int, k: int, dtype: torch.dtype) -> None:
    for seed in range(10):
        M = hermitian(count, k, seed, dtype)
        for matrices in (M, -M, M - 20 * torch.eye(k), M @ M, 1e-8 * M, 0 * M):
            value, index = largest_eigenvalue(matrices)
            all_values = torch.linalg.eigvalsh(matrices)[:, -1]
            assert value == pytest.approx(float(all_values.max()), rel=1e-11, abs=1e-20)
            assert float(all_values[index]) == pytest.approx(value, rel=1e-11, abs=1e-20)


def test_a_needle_that_power_iterations_overlook_is_found() -> None:
    """One matrix has the largest eigenvalue along a direction that the starting vectors hardly see."""
    M = torch.diag(torch.tensor([1.0, -9.0], dtype=torch.float64)).repeat(50, 1, 1)
    M[:, 0, 0] += torch.linspace(0, 1, 50, dtype=torch.float64)
    M[17] = torch.diag(torch.tensor([-9.0, 2.5], dtype=torch.float64))
    assert largest_eigenvalue(M) == (pytest.approx(2.5), 17)
