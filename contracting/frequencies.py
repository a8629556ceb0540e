r"""Circular convolution on an image seen frequency by frequency: one small matrix per frequency, its *symbol*.

A kernel k of odd side 2r + 1 acts as torch's convolution with circular padding does,
(k ∗ z)[o, p] = Σ_{c,d} k[o, c, d + r] z[c, p + d], d ∈ {−r … r}, positions modulo the grid. The discrete Fourier
transform makes it a product per frequency, ŷ(f) = K̂(f)ẑ(f) with K̂(f) = Σ_d k[·, ·, d + r] e^{2πi f·d/N}. For real
images half of the frequencies say it all (the others are their conjugates): those of the real transform, here flattened
to one axis.

Images travel as rows, (batch, channels · positions), row-major as ``Tensor.flatten`` makes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError

Grid = tuple[int, ...]


def checked_grid(grid: Any) -> Grid:
    """The grid as a tuple of one or two whole numbers.

    Raises:
        InputError: if it is something else.
    """
    if not isinstance(grid, Sequence) or len(grid) not in (1, 2):
        raise InputError(f"grid must be (width,) or (height, width), got {grid!r}")
    return tuple(checks.whole_number("an entry of grid", size) for size in grid)


def checked_kernel(name: str, kernel: Tensor, grid: Grid) -> Tensor:
    """The kernel, (out, in, k) or (out, in, k, l) with odd sides, as many as the grid has.

    Raises:
        InputError: on another shape.
    """
    checks.floating_tensor(name, kernel)
    if kernel.ndim != 2 + len(grid) or any(side % 2 == 0 for side in kernel.shape[2:]):
        sides = ", ".join("kl"[: len(grid)])
        raise InputError(f"{name} must have shape (out, in, {sides}) with odd sides, got {tuple(kernel.shape)}")
    return kernel


def frequencies(grid: Grid) -> int:
    """Number of frequencies of the real transform."""
    return math.prod(grid[:-1]) * (grid[-1] // 2 + 1)


def symbol_of(kernel: Tensor, grid: Grid) -> Tensor:
    """K̂ of a kernel: (out, in, *sides) -> (frequencies, out, in), complex and differentiable.

    Sides may exceed the grid; the kernel then wraps around.
    """
    double = torch.float64 if kernel.dtype == torch.float64 else torch.float32
    turns = torch.zeros(1, 1, dtype=torch.float64)  # f·d/N, (frequencies, taps)
    for axis, (size, side) in enumerate(zip(grid, kernel.shape[2:], strict=True)):
        count = size // 2 + 1 if axis == len(grid) - 1 else size
        offset = torch.arange(side) - side // 2
        # reduced in whole numbers, so that no phase loses digits
        turn = (torch.arange(count)[:, None] * offset % size).to(torch.float64) / size
        turns = (turns[:, None, :, None] + turn[None, :, None, :]).flatten(2).flatten(0, 1)
    phase = (2 * math.pi * turns).to(kernel.device)
    waves = torch.cat([phase.cos(), phase.sin()]).to(double)
    taps = kernel.flatten(2).permute(2, 0, 1)
    parts = (waves @ taps.flatten(1)).reshape(2, -1, *kernel.shape[:2])
    return torch.complex(parts[0], parts[1])


def convolve_by_symbol(z: Tensor, symbol: Tensor, grid: Grid) -> Tensor:
    """Rows of the image that has K̂ẑ at every frequency: (batch, in · positions) -> (batch, out · positions)."""
    dims = tuple(range(-len(grid), 0))
    spectrum = torch.fft.rfftn(z.reshape(-1, symbol.shape[2], *grid), dim=dims)
    product = symbol @ spectrum.flatten(2).permute(2, 1, 0)
    back = product.permute(2, 1, 0).reshape(-1, symbol.shape[1], *spectrum.shape[2:])
    return torch.fft.irfftn(back, s=grid, dim=dims).flatten(1)


def convolve_directly(z: Tensor, kernel: Tensor, grid: Grid) -> Tensor:
    """Rows of k ∗ z tap by tap: (batch, in · positions) -> (batch, out · positions); sides at most the grid's."""
    images = z.reshape(-1, kernel.shape[1], *grid)
    radii = [side // 2 for side in reversed(kernel.shape[2:]) for _ in range(2)]
    padded = torch.nn.functional.pad(images, radii, mode="circular") if any(radii) else images
    convolution = torch.nn.functional.conv1d if len(grid) == 1 else torch.nn.functional.conv2d
    return convolution(padded, kernel).flatten(1)


def transposed(kernel: Tensor) -> Tensor:
    """The kernel of the adjoint: mirrored in space, in and out exchanged."""
    return kernel.flip(tuple(range(2, kernel.ndim))).transpose(0, 1)


def gram(kernel: Tensor) -> Tensor:
    r"""The kernel of kᵀ ∗ k, (in, in, 2k − 1, …): Σ_{o,e} k[o, a, e] k[o, b, e + d], positive semidefinite as a map."""
    radii = [side - 1 for side in kernel.shape[2:]]
    convolution = torch.nn.functional.conv1d if kernel.ndim == 3 else torch.nn.functional.conv2d
    # as images: (in, out, sides) correlated with (in, out, sides); entry [b, a, d] = Σ k[o, b, e + d] k[o, a, e]
    swapped = kernel.transpose(0, 1)
    return convolution(swapped, swapped, padding=radii).transpose(0, 1)


def centred_sum(kernels: Sequence[Tensor]) -> Tensor:
    """The sum of kernels of different odd sides, centre on centre: (out, in, largest sides)."""
    sides = [max(kernel.shape[axis] for kernel in kernels) for axis in range(2, kernels[0].ndim)]
    total: Tensor | None = None
    for kernel in kernels:
        margins = [(side - own) // 2 for side, own in zip(sides, kernel.shape[2:], strict=True)]
        padded = torch.nn.functional.pad(kernel, [margin for margin in reversed(margins) for _ in range(2)])
        total = padded if total is None else total + padded
    assert total is not None
    return total


def pointwise(matrix: Tensor, dimensions: int) -> Tensor:
    """A matrix acting on the channels of every position alike, as a kernel: (out, in) -> (out, in, 1, …)."""
    return matrix.reshape(*matrix.shape, *[1] * dimensions)


def over_space(values: Tensor, grid: Grid) -> Tensor:
    """One number per channel, repeated at every position: (channels,) -> (channels · positions,)."""
    return values.repeat_interleave(math.prod(grid))


def per_channel(values: Tensor, channels: int) -> Tensor | None:
    """The number of each channel if it is the same at every position up to rounding, else None: (n,) -> (channels,)."""
    table = values.reshape(channels, -1)
    low, high = table.amin(1), table.amax(1)
    tolerance = 8 * torch.finfo(values.dtype).eps
    if bool((high - low > tolerance * torch.maximum(high.abs(), low.abs())).any()):
        return None
    return table[:, 0]
