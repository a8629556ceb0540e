r"""The discrete Fourier transform of small images as matrix products, in the layout of products per frequency.

A symbol acts on the channels at one frequency, for all rows at once. Transforms of a library leave the frequencies of
one row side by side, so that rows have to be moved there and back in every product; for small images that costs more
than the transform. Here images are (height, width, channels, rows) and spectra (frequencies,
2 · channels, rows), real parts over imaginary parts: both transforms and the product are then plain matrix products of
contiguous real arrays. Sides above ``_LONGEST``, where n log n wins, go through the library's transform.

The first axis is the one of the real transform: half of its frequencies say it all.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

Grid = tuple[int, ...]

# Up to this side, in positions, a transform by matrix products takes no longer than the library's, on one CPU thread.
_LONGEST = 64


def sides(grid: Grid) -> tuple[int, int]:
    """Height and width; an image of one dimension has width one."""
    return (grid[0], 1) if len(grid) == 1 else (grid[0], grid[1])


def frequencies(grid: Grid) -> int:
    """Number of frequencies of the real transform."""
    return (grid[0] // 2 + 1) * math.prod(grid[1:])


def shares(grid: Grid) -> Tensor:
    """What each frequency counts for in an inner product of real images, (frequencies,), float64.

    ⟨x, y⟩ = Σ share · Re⟨x̂, ŷ⟩: all but the first and, for even heights, the last stand for their conjugates too.
    """
    height, width = sides(grid)
    rows = torch.arange(height // 2 + 1)
    once = (rows == 0) | (2 * rows == height)
    return torch.where(once, 1.0, 2.0).to(torch.float64).repeat_interleave(width) / (height * width)


def spectrum(images: Tensor, grid: Grid) -> Tensor:
    """x̂(f) = Σ_p x(p) e^{−2πi f·p/N}: (rows, channels, *grid) -> (frequencies, channels, rows), complex."""
    real, imaginary = analysed(images.flatten(1), images.shape[1], grid).chunk(2, 1)
    return torch.complex(real, imaginary)


def real_form(symbol: Tensor) -> Tensor:
    """[[Re, −Im], [Im, Re]]: (frequencies, out, in), complex -> (frequencies, 2 · out, 2 · in)."""
    real, imaginary = symbol.real, symbol.imag
    return torch.cat([torch.cat([real, -imaginary], 2), torch.cat([imaginary, real], 2)], 1)


def product(z: Tensor, form: Tensor, grid: Grid, given: Waves | None = None) -> Tensor:
    """Images whose spectrum is K̂ẑ: rows (batch, in · positions) -> (batch, out, *grid), a view of (*grid, out, batch).

    Args:
        z: rows of images; fastest where the entries of one neuron lie side by side, as ``by_neuron`` makes them.
        form: ``real_form`` of K̂.
        grid: (width,) or (height, width) of the image.
        given: ``waves`` of the grid, where the caller holds them; then no transform of a library is used.
    """
    images = _synthesised(form @ analysed(z, form.shape[2] // 2, grid, given), grid, given)
    images = images if len(grid) == 2 else images.squeeze(1)
    return images.movedim((-1, -2), (0, 1))


def by_neuron(rows: Tensor) -> Tensor:
    """The same (batch, n), with the entries of one neuron side by side in memory."""
    return rows.mT.contiguous().mT


def is_by_neuron(rows: Tensor) -> bool:
    """Whether rows lie in memory as ``by_neuron`` makes them."""
    return not rows.is_contiguous() and rows.mT.is_contiguous()


def analysed(z: Tensor, channels: int, grid: Grid, given: Waves | None = None) -> Tensor:
    """ẑ of rows of images, real parts over imaginary: (batch, C · positions) -> (frequencies, 2 · C, batch)."""
    (height, width), batch = sides(grid), z.shape[0]  # len() would set the number of rows in an export
    images = z.view(batch, channels, height, width).permute(2, 3, 1, 0).contiguous()
    if given is None and max(height, width) > _LONGEST:
        values = torch.fft.rfftn(images, dim=(1, 0)).flatten(0, 1)
        return torch.cat([values.real, values.imag], 1)
    matrices = given or waves(grid, images.dtype, images.device)
    half, columns = height // 2 + 1, channels * batch
    down = matrices.down @ images.reshape(height, width * columns)
    if width == 1:
        return down.reshape(half, 2 * channels, batch)
    across = matrices.across.expand(half, -1, -1) @ down.reshape(half, 2 * width, columns)
    return across.reshape(half * width, 2 * channels, batch)


class Waves(NamedTuple):
    """The matrices of the transform; real and imaginary parts are rows of their own."""

    down: Tensor  # (2 · half, height): real transform of the columns, real parts first
    across: Tensor  # (width · 2, 2 · width): complex transform of the rows, frequencies outermost
    across_back: Tensor
    down_back: Tensor


def waves(grid: Grid, dtype: torch.dtype, device: torch.device) -> Waves:
    """The matrices of the transform of a grid; those made while a graph is traced are part of it, and not kept."""
    make = _make_waves.__wrapped__ if torch.compiler.is_compiling() else _make_waves
    return make(*sides(grid), dtype, device)


@functools.lru_cache(maxsize=64)
def _make_waves(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Waves:
    half = height // 2 + 1
    cos, sin = _turns(half, height)
    down = torch.stack([cos, -sin], 1).flatten(0, 1)  # rows: (frequency, part)
    rows = torch.arange(half)
    weight = torch.where((rows == 0) | (2 * rows == height), 1.0, 2.0).to(torch.float64)[:, None] / height
    down_back = torch.stack([weight * cos, -weight * sin], 1).flatten(0, 1).mT
    cos, sin = _turns(width, width)
    # (a + ib)e^{−iφ}: rows (part, frequency), columns (part, position)
    across = torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)])
    across = across.reshape(2, width, -1).transpose(0, 1).flatten(0, 1)  # rows (frequency, part)
    across_back = across.mT / width
    return Waves(*(m.to(device, dtype).contiguous() for m in (down, across, across_back, down_back)))


def _turns(count: int, size: int) -> tuple[Tensor, Tensor]:
    """cos and sin of 2πfp/size, (count, size), reduced in whole numbers so that no phase loses digits."""
    phase = (torch.arange(count)[:, None] * torch.arange(size) % size).to(torch.float64) * (2 * math.pi / size)
    return phase.cos(), phase.sin()


def _synthesised(values: Tensor, grid: Grid, given: Waves | None = None) -> Tensor:
    """(frequencies, 2 · channels, batch) -> (height, width, channels, batch)."""
    height, width = sides(grid)
    half, channels, batch = height // 2 + 1, values.shape[1] // 2, values.shape[2]
    if given is None and max(height, width) > _LONGEST:
        real, imaginary = values.chunk(2, 1)
        table = torch.complex(real, imaginary).reshape(half, width, channels, batch)
        return torch.fft.irfftn(table, s=(width, height), dim=(1, 0))
    matrices = given or waves(grid, values.dtype, values.device)
    columns = channels * batch
    across = values.reshape(half, 2 * width, columns)
    if width > 1:
        across = matrices.across_back.expand(half, -1, -1) @ across
    down = matrices.down_back @ across.reshape(2 * half, width * columns)
    return down.reshape(height, width, channels, batch)
