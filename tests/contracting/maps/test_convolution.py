"""Circular convolutions against dense matrices that are built here, entry by entry."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from contracting.errors import InputError, PreconditionError
from contracting.maps.convolution import CircularConvolution
from contracting.maps.dense import Dense
from contracting.maps.frequencies import (
    convolve_by_symbol,
    convolve_directly,
    gram,
    kernel_of,
    over_space,
    symbol_of,
    transposed,
)
from contracting.metrics import WeightedL1, WeightedL2

# grid, sides of the kernel: one and two dimensions, odd and even, kernels larger than the grid
SHAPES = [
    ((7,), (3,)),
    ((8,), (5,)),
    ((4,), (7,)),
    ((1,), (3,)),
    ((5, 4), (3, 3)),
    ((4, 6), (3, 5)),
    ((3, 3), (5, 5)),
    ((2, 5), (1, 1)),
]


def make(grid: tuple[int, ...], sides: tuple[int, ...], *, seed: int = 0, channels: int = 3) -> CircularConvolution:
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(channels, channels, *sides, generator=generator, dtype=torch.float64)
    return CircularConvolution(kernel / math.sqrt(kernel[0].numel()), grid=grid)


def by_definition(kernel: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
    """The matrix with the entries of the formula in the documentation."""
    out, into = kernel.shape[:2]
    positions = list(itertools.product(*[range(size) for size in grid]))
    matrix = torch.zeros(out, len(positions), into, len(positions), dtype=kernel.dtype)
    for row, p in enumerate(positions):
        for tap in itertools.product(*[range(side) for side in kernel.shape[2:]]):
            moved = tuple(
                (x + d - side // 2) % size for x, d, side, size in zip(p, tap, kernel.shape[2:], grid, strict=True)
            )
            matrix[:, row, :, positions.index(moved)] += kernel[(..., *tap)]
    return matrix.reshape(out * len(positions), -1)


@pytest.mark.parametrize(("grid", "sides"), SHAPES)
def test_apply_adjoint_and_resolvent_are_those_of_the_matrix(grid: tuple[int, ...], sides: tuple[int, ...]) -> None:
    conv = make(grid, sides)
    W = by_definition(conv.kernel, grid)
    z = torch.randn(6, conv.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    identity = torch.eye(conv.size, dtype=torch.float64)

    def worst(found: torch.Tensor, expected: torch.Tensor) -> float:
        return float((found - expected).norm(dim=-1).max())

    assert worst(conv.to_dense(), W) <= 1e-10
    assert worst(conv.apply(z), z @ W.mT) <= 1e-10
    assert worst(conv.adjoint.apply(z), z @ W) <= 1e-10
    assert worst(convolve_by_symbol(z, symbol_of(conv.kernel, grid), grid), z @ W.mT) <= 1e-10
    assert conv.adjoint.adjoint is conv
    step = over_space(torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64), grid)
    for alpha, diagonal in ((0.7, 0.7 * identity), (step, torch.diag(step))):
        for linear, matrix in ((conv, W), (conv.adjoint, W.mT)):
            K = torch.linalg.inv(identity + diagonal @ (identity - matrix))
            assert worst(linear.resolvent(alpha).apply(z), z @ K.mT) <= 1e-10 * max(1.0, float(K.norm()))
            assert worst(linear.resolvent(alpha).adjoint.apply(z), z @ K) <= 1e-10 * max(1.0, float(K.norm()))


@pytest.mark.parametrize(("grid", "sides"), SHAPES)
def test_both_ways_to_apply_agree(grid: tuple[int, ...], sides: tuple[int, ...]) -> None:
    if any(side > size for side, size in zip(sides, grid, strict=True)):
        pytest.skip("only the transform can wrap a kernel around")
    kernel = torch.randn(4, 2, *sides, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    z = torch.randn(3, 2 * math.prod(grid), dtype=torch.float64)
    by_symbol = convolve_by_symbol(z, symbol_of(kernel, grid), grid)
    assert torch.allclose(convolve_directly(z, kernel, grid), by_symbol, atol=1e-12)


@pytest.mark.parametrize(("grid", "sides"), SHAPES)
def test_bounds_and_factors_are_those_of_the_dense_matrix(grid: tuple[int, ...], sides: tuple[int, ...]) -> None:
    conv = make(grid, sides, seed=3)
    # monotone: I − W has symmetric part ⪰ (1 − ‖W‖)I
    conv = CircularConvolution(conv.kernel * 0.9 / conv.rough_norm, grid=grid)
    metric = WeightedL2(over_space(torch.tensor([0.9, 1.0, 1.1], dtype=torch.float64), grid))
    found, expected = conv.operator(metric), Dense(by_definition(conv.kernel, grid)).operator(metric)
    assert found.blocks.shape[1:] == (3, 3)
    for name, value in vars(expected.bounds).items():
        assert getattr(found.bounds, name) == pytest.approx(value, abs=1e-8), name
    for step in (0.1, 0.7, 3.0):
        for factor in ("forward_factor", "reflected_factor", "euler_factor"):
            assert getattr(found, factor)(step) == pytest.approx(getattr(expected, factor)(step), abs=1e-8)
    for choice in ("best_forward", "best_reflected", "best_euler"):
        assert getattr(found, choice).factor == pytest.approx(getattr(expected, choice).factor, abs=1e-3)
    assert conv.adjoint.operator(metric.dual()) is conv.operator(metric)


def test_the_gram_kernel_is_that_of_the_product_with_the_adjoint() -> None:
    for grid, sides in (((9,), (5,)), ((4, 5), (3, 3)), ((3, 4), (3, 5))):
        kernel = torch.randn(4, 2, *sides, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        K = by_definition(kernel, grid)
        assert torch.allclose(by_definition(gram(kernel), grid), K.mT @ K, atol=1e-12)
        assert torch.allclose(by_definition(transposed(kernel), grid), K.mT, atol=1e-12)


def test_gradients_of_the_kernel_and_of_the_resolvent() -> None:
    for grid, sides in (((5,), (3,)), ((3, 4), (3, 3))):
        conv = make(grid, sides, channels=2)
        z = torch.randn(2, conv.size, dtype=torch.float64, requires_grad=True)
        kernel = conv.kernel.clone().requires_grad_()

        def through(kernel: torch.Tensor, z: torch.Tensor, grid: tuple[int, ...] = grid) -> torch.Tensor:
            linear = CircularConvolution(kernel, grid=grid)
            transform = convolve_by_symbol(z, linear.symbol, grid)
            return linear.apply(z) + linear.adjoint.apply(z) + linear.resolvent(0.5).apply(z) + transform

        assert torch.autograd.gradcheck(through, (kernel, z))
        assert torch.autograd.gradgradcheck(through, (kernel, z))
        cotangent = torch.randn(2, conv.size, dtype=torch.float64)
        (pulled,) = conv.pullback(z.detach(), cotangent)
        (expected,) = torch.autograd.grad((CircularConvolution(kernel, grid=grid).apply(z) * cotangent).sum(), kernel)
        assert torch.allclose(pulled, expected, atol=1e-12)


def test_float32_is_kept_and_the_bounds_are_those_of_the_rounded_kernel() -> None:
    conv = make((6, 6), (3, 3))
    single = CircularConvolution(conv.kernel.float(), grid=(6, 6))
    z = torch.randn(2, conv.size)
    assert single.apply(z).dtype == torch.float32
    assert single.resolvent(0.5).apply(z).dtype == torch.float32
    metric = WeightedL2.identity(conv.size, dtype=torch.float32)
    exact = CircularConvolution(conv.kernel.float().double(), grid=(6, 6))
    wide = WeightedL2.identity(conv.size, dtype=torch.float64)
    assert single.operator(metric).bounds == exact.operator(wide).bounds


@pytest.mark.parametrize("sides", [(3, 3), (5, 5)])  # tap by tap, and through the transform
def test_rows_of_another_size_are_not_cut_into_images(sides: tuple[int, ...]) -> None:
    conv = make((4, 4), sides)
    K, n = conv.to_dense(), conv.size
    for lead in ((3,), (2, 3), ()):
        z = torch.randn(*lead, n, dtype=torch.float64)
        assert torch.allclose(conv.apply(z), z @ K.mT) and torch.allclose(conv.adjoint.apply(z), z @ K)
    for entries in (2 * n, n // 2, n + 1):
        z = torch.randn(4, entries, dtype=torch.float64)
        for linear in (conv, conv.adjoint, conv.resolvent(0.3)):
            for call in (linear.apply, lambda z, linear=linear: linear.affine(z, z)):
                with pytest.raises(InputError, match=r"\bz\b"):
                    call(z)


def test_what_does_not_fit_is_refused_with_a_remedy() -> None:
    conv = make((4, 4), (3, 3))
    varying = torch.rand(conv.size, dtype=torch.float64) + 0.5
    with pytest.raises(PreconditionError, match=r"\bScaled\b"):
        conv.blocks(WeightedL2(varying))
    with pytest.raises(PreconditionError, match=r"\bWeightedL2\b"):
        conv.blocks(WeightedL1(torch.ones(conv.size, dtype=torch.float64)))
    with pytest.raises(PreconditionError, match=r"\bForwardBackward\b"):
        conv.resolvent(varying)
    with pytest.raises(InputError, match=r"\bkernel\b"):
        CircularConvolution(torch.zeros(2, 2, 2, 3), grid=(4, 4))
    with pytest.raises(InputError, match=r"\bkernel\b"):
        CircularConvolution(torch.zeros(2, 3, 3, 3), grid=(4, 4))
    with pytest.raises(InputError, match=r"\bgrid\b"):
        CircularConvolution(torch.zeros(2, 2, 3, 3), grid=(4, 4, 4))
    singular = CircularConvolution(torch.full((1, 1, 1, 1), 3.0, dtype=torch.float64), grid=(3, 3))
    with pytest.raises(PreconditionError, match=r"\bsingular\b"):
        singular.resolvent(0.5)


@pytest.mark.parametrize(("grid", "sides"), SHAPES)
def test_a_kernel_over_the_grid_is_found_from_its_symbol(grid: tuple[int, ...], sides: tuple[int, ...]) -> None:
    """And acts as the one that the symbol came from, whether that was smaller than the grid or wraps around."""
    kernel = torch.randn(2, 3, *sides, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = kernel_of(symbol_of(kernel, grid), grid)
    assert all(side % 2 and side in (size, size + 1) for side, size in zip(found.shape[2:], grid, strict=True))
    assert torch.allclose(by_definition(found, grid), by_definition(kernel, grid), atol=1e-12)
    assert torch.allclose(symbol_of(found, grid), symbol_of(kernel, grid), atol=1e-12)
