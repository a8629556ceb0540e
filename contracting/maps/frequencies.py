r"""Circular convolution on an image seen frequency by frequency: one small matrix per frequency, its *symbol*.

A kernel k of odd side 2r + 1 acts as torch's convolution with circular padding does,
(k ∗ z)[o, p] = Σ_{c,d} k[o, c, d + r] z[c, p + d], d ∈ {−r … r}, positions modulo the grid. The discrete Fourier
transform makes it a product per frequency, ŷ(f) = K̂(f)ẑ(f) with K̂(f) = Σ_d k[·, ·, d + r] e^{2πi f·d/N}. For real
images half of the frequencies say it all, the others being their conjugates: those that
``contracting.maps.transform.distinct`` lists.

Images travel as rows, (batch, channels · positions), row-major as ``Tensor.flatten`` makes them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError
from contracting.maps import transform

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


def symbol_of(kernel: Tensor, grid: Grid) -> Tensor:
    """K̂ of a kernel: (out, in, *sides) -> (frequencies, out, in), complex and differentiable.

    Sides may exceed the grid; the kernel then wraps around.
    """
    if all(side >= size for side, size in zip(kernel.shape[2:], grid, strict=True)):
        return _symbol_of_image(kernel, grid)
    make = _waves.__wrapped__ if torch.compiler.is_compiling() else _waves  # a cache would keep symbols of a graph
    waves = make(tuple(kernel.shape[2:]), grid, kernel.dtype, kernel.device)
    taps = kernel.flatten(2).permute(2, 0, 1)
    parts = (waves @ taps.flatten(1)).reshape(2, -1, *kernel.shape[:2])
    return torch.complex(parts[0], parts[1])


def _symbol_of_image(kernel: Tensor, grid: Grid) -> Tensor:
    """The symbol of a kernel over the whole grid, by the library's transform."""
    for axis, size in enumerate(grid, 2):
        side = kernel.shape[axis]
        shape = [*kernel.shape[:axis], size, *kernel.shape[axis + 1 :]]
        places = (torch.arange(side, device=kernel.device) - side // 2) % size
        kernel = kernel.new_zeros(shape).index_add(axis, places, kernel)
    # the first axis is the one of the real transform, which is the last that is named
    values = torch.fft.rfftn(kernel, dim=tuple(range(kernel.ndim - 1, 1, -1))).flatten(2)
    k, m = transform.distinct(grid).to(kernel.device).unbind(1)
    return values.index_select(2, k * transform.sides(grid)[1] + m).movedim(2, 0).conj().resolve_conj()


def kernel_of(symbol: Tensor, grid: Grid) -> Tensor:
    """The real kernel with this symbol, over the whole grid: (frequencies, out, in) -> (out, in, *odd sides).

    Offsets run from −N//2 to (N − 1)//2 on each axis; a zero at the end makes an even side odd.
    """
    height, width = transform.sides(grid)
    index, mirrored = (part.to(symbol.device) for part in transform.half_plane(grid))
    values = symbol.index_select(0, index)
    values = torch.where(mirrored[:, None, None], values, values.conj()).reshape(-1, width, *symbol.shape[1:])
    taps = torch.fft.irfftn(values, s=(width, height), dim=(1, 0))
    taps = taps.roll((height // 2, width // 2), (0, 1)).permute(2, 3, 0, 1)
    taps = torch.nn.functional.pad(taps, (0, 1 - width % 2, 0, 1 - height % 2))
    return taps if len(grid) == 2 else taps.squeeze(-1)


@functools.lru_cache(maxsize=64)
def _waves(sides: tuple[int, ...], grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    """cos over sin of 2πf·d/N, (2 · frequencies, taps)."""
    offsets = torch.cartesian_prod(*[torch.arange(side) - side // 2 for side in sides]).reshape(-1, len(sides))
    # f·d/N, (frequencies, taps), reduced in whole numbers on each axis, so that no phase loses digits
    turns = torch.zeros(1, 1, dtype=torch.float64)
    for size, f, d in zip(grid, transform.distinct(grid).mT, offsets.mT, strict=False):
        turns = turns + (f[:, None] * d % size).to(torch.float64) / size
    phase = 2 * math.pi * turns
    return torch.cat([phase.cos(), phase.sin()]).to(device, dtype)


def kernel_gradient(z: Tensor, cotangent: Tensor, sides: tuple[int, ...], grid: Grid) -> Tensor:
    """Gradient of ⟨cotangent, k ∗ z⟩ in k, itself differentiable: two (batch, C · positions) -> (C, C, *sides)."""
    C = z.shape[-1] // math.prod(grid)
    left, right = (transform.analysed(rows, C, grid) for rows in (cotangent, z))
    # ⟨w, y⟩ = Σ share·(w_c·y_c + w_s·y_s) of cosine and sine sums, with y_c = Rz_c + Iz_s, y_s = Rz_s − Iz_c
    gram = left @ right.mT * transform.shares(grid).to(z)[:, None, None]
    of_real = gram[:, :C, :C] + gram[:, C:, C:]
    of_imaginary = gram[:, :C, C:] - gram[:, C:, :C]
    waves = _waves(sides, grid, z.dtype, z.device)
    taps = waves.mT @ torch.cat([of_real, of_imaginary]).flatten(1)
    return taps.mT.reshape(C, C, *sides)


def convolve_by_symbol(z: Tensor, symbol: Tensor, grid: Grid) -> Tensor:
    """Rows of the image that has K̂ẑ at every frequency: (batch, in · positions) -> (batch, out · positions)."""
    images = transform.product(z, transform.real_form(symbol), grid)
    return in_rows(images, like=z)


def in_rows(images: Tensor, *, like: Tensor) -> Tensor:
    """Images as rows, laid out in memory as ``like`` is: (batch, channels, *grid) -> (batch, channels · positions)."""
    if transform.is_by_neuron(like):
        return images.movedim(0, -1).flatten(0, -2).mT
    return images.flatten(1)


def convolve_directly(z: Tensor, kernel: Tensor, grid: Grid, *, stride: int = 1) -> Tensor:
    """Rows of k ∗ z tap by tap, at every ``stride``-th position of each axis; sides at most the grid's.

    (batch, in · positions) -> (batch, out · positions / strideᵈ) for d axes.
    """
    images = z.reshape(-1, kernel.shape[1], *grid)
    radii = [side // 2 for side in reversed(kernel.shape[2:]) for _ in range(2)]
    padded = torch.nn.functional.pad(images, radii, mode="circular") if any(radii) else images
    convolution = torch.nn.functional.conv1d if len(grid) == 1 else torch.nn.functional.conv2d
    return convolution(padded, kernel, stride=stride).flatten(1)


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


def diagonal_kernel(factors: Tensor, dimensions: int) -> Tensor:
    """One factor per channel, the same at every position, as a kernel: (C,) -> (C, C, 1, …)."""
    return torch.diag(factors).reshape(len(factors), len(factors), *[1] * dimensions)


def identity_kernel(like: Tensor) -> Tensor:
    """The kernel of the identity on the channels that a kernel leads to: (C, …, *sides) -> (C, C, 1, …)."""
    return diagonal_kernel(like.new_ones(like.shape[0]), like.ndim - 2)


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
