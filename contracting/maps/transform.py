r"""The discrete Fourier transform of small images as matrix products, in the layout of products per frequency.

A symbol acts on the channels at one frequency, for all rows at once. Transforms of a library leave the frequencies of
one row side by side, so that rows have to be moved there and back in every product; for small images that costs more
than the transform. Here images are (width, height, channels, rows) and spectra (frequencies, 2 · channels, rows),
cosine sums over sine sums, so that everything is a product of real arrays with the rows innermost. Sides above
``_LONGEST``, where n log n wins, go through the library's transform.

Along each axis the transform has real cosines and sines, which cost half of a complex one. What belongs to the
frequencies (k, m) and (k, −m) are sums and differences of its four products,

    cos(a ± b) = cos a cos b ∓ sin a sin b,    sin(a ± b) = sin a cos b ± cos a sin b.

Of a real image a frequency and its negative are conjugates, and ``distinct`` lists one of them.
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


class _Axis(NamedTuple):
    """The rows of the real transform of an axis, in the order in which they come."""

    alone: slice  # cosines of 0 and, for even N, of N/2, the frequencies that are their own negatives
    paired: slice  # cosines of the others, up to N/2
    sines: slice


def _axis(size: int) -> _Axis:
    pairs = (size - 1) // 2
    return _Axis(slice(0, size - 2 * pairs), slice(size - 2 * pairs, size - pairs), slice(size - pairs, size))


def _frequencies(size: int) -> tuple[range, range]:
    """The frequencies of an axis, those alone and those in pairs, one of each pair."""
    return range(0, size // 2 + 1, (size + 1) // 2), range(1, (size + 1) // 2)


@functools.lru_cache(maxsize=64)
def _parts(grid: Grid) -> list[tuple[range, range]]:
    """The frequencies of a spectrum as products of ranges, (k, m): paired on both axes, with −m, on one, on none."""
    (k_alone, k), (m_alone, m) = (_frequencies(side) for side in sides(grid))
    negative = range(sides(grid)[1] - 1, sides(grid)[1] - 1 - len(m), -1)
    return [(k, m), (k, negative), (k_alone, m), (k, m_alone), (k_alone, m_alone)]


@functools.lru_cache(maxsize=64)
def frequencies(grid: Grid) -> int:
    """Number of frequencies of a spectrum."""
    return sum(len(k) * len(m) for k, m in _parts(grid))


@functools.lru_cache(maxsize=64)
def distinct(grid: Grid) -> Tensor:
    """The frequencies (k, m) of a spectrum, one of each pair of conjugates, 0 ≤ k ≤ H/2: (frequencies, 2)."""
    return torch.tensor([(i, j) for k, m in _parts(grid) for i in k for j in m])


@functools.lru_cache(maxsize=64)
def shares(grid: Grid) -> Tensor:
    """What each frequency counts for in an inner product of real images, (frequencies,), float64.

    ⟨x, y⟩ = Σ share · Re⟨x̂, ŷ⟩: those that differ from their negatives stand for two.
    """
    alone = (2 * distinct(grid) % torch.tensor(sides(grid)) == 0).all(1)
    return torch.where(alone, 1.0, 2.0).to(torch.float64) / math.prod(grid)


@functools.lru_cache(maxsize=64)
def half_plane(grid: Grid) -> tuple[Tensor, Tensor]:
    """Where each frequency of the library's real transform, 0 ≤ k ≤ H/2 and all m, is found in a spectrum.

    Its index and whether it is the conjugate: two of (H/2 + 1) · W entries.
    """
    height, width = sides(grid)
    places = {(k, m): place for place, (k, m) in enumerate(distinct(grid).tolist())}
    table = [(k, m) for k in range(height // 2 + 1) for m in range(width)]
    found = [places.get(pair, -1) for pair in table]
    mirrored = [place < 0 for place in found]
    index = [
        places[-k % height, -m % width] if mirror else place
        for (k, m), place, mirror in zip(table, found, mirrored, strict=True)
    ]
    return torch.tensor(index), torch.tensor(mirrored)


def spectrum(images: Tensor, grid: Grid) -> Tensor:
    """x̂(f) = Σ_p x(p) e^{−2πi f·p/N}: (rows, channels, *grid) -> (frequencies, channels, rows), complex."""
    cosines, sines = analysed(images.flatten(1), images.shape[1], grid).chunk(2, 1)
    return torch.complex(cosines, -sines)


def real_form(symbol: Tensor) -> Tensor:
    """A symbol as it acts on cosine sums over sine sums: (frequencies, out, in), complex -> (…, 2 · out, 2 · in)."""
    real, imaginary = symbol.real, symbol.imag
    return torch.cat([torch.cat([real, imaginary], 2), torch.cat([-imaginary, real], 2)], 1)


def product(z: Tensor, form: Tensor, grid: Grid, given: Waves | None = None, work: Work | None = None) -> Tensor:
    """Images whose spectrum is K̂ẑ: rows (batch, in · positions) -> (batch, out, *grid), a view of (*grid, out, batch).

    Args:
        z: rows of images; fastest where the entries of one neuron lie side by side, as ``by_neuron`` makes them.
        form: ``real_form`` of K̂.
        grid: (width,) or (height, width) of the image.
        given: ``waves`` of the grid, where the caller holds them; then no transform of a library is used.
        work: where to work, and where the result is until the next product; for as many channels out as in.
    """
    values = analysed(z, form.shape[2] // 2, grid, given, work)
    values = torch.bmm(form, values, out=None if work is None else work.array(0, *values.shape))
    images = _synthesised(values, grid, given, work)
    images = images if len(grid) == 2 else images.squeeze(0)
    return images.permute(*reversed(range(images.ndim)))


def by_neuron(rows: Tensor) -> Tensor:
    """The same (batch, n), with the entries of one neuron side by side in memory."""
    return rows.mT.contiguous().mT


def is_by_neuron(rows: Tensor) -> bool:
    """Whether rows lie in memory as ``by_neuron`` makes them."""
    return rows.ndim == 2 and rows.mT.is_contiguous()


def analysed(
    z: Tensor, channels: int, grid: Grid, given: Waves | None = None, work: Work | None = None
) -> Tensor:
    """Rows of images as cosine sums over sine sums: (batch, C · positions) -> (frequencies, 2 · C, batch)."""
    (height, width), batch = sides(grid), z.shape[0]  # len() would set the number of rows in an export
    images = z.view(batch, channels, height, width).permute(3, 2, 1, 0)
    if given is None and _long(grid):
        table = torch.fft.rfftn(images, dim=(0, 1)).transpose(0, 1).flatten(0, 1)
        k, m = distinct(grid).to(z.device).unbind(1)
        values = table.index_select(0, k * width + m)
        return torch.cat([values.real, -values.imag], 1)
    matrices, columns = given or waves(grid, z.dtype, z.device), channels * batch
    if work is None:
        stack = torch.bmm(matrices.down.expand(width, -1, -1), images.reshape(width, height, columns))
        table = torch.bmm(matrices.across.expand(height, -1, -1), stack.transpose(0, 1))
        return _exchanged(table, grid).view(frequencies(grid), 2 * channels, batch)
    stack = work.array(0, width, height, columns)
    stack.view(images.shape).copy_(images)
    stack = torch.bmm(matrices.down.expand(width, -1, -1), stack, out=work.array(1, width, height, columns))
    torch.bmm(matrices.across.expand(height, -1, -1), stack.transpose(0, 1), out=work.array(0, height, width, columns))
    work.exchange()
    return work.array(1, frequencies(grid), 2 * channels, batch)


def _synthesised(values: Tensor, grid: Grid, given: Waves | None, work: Work | None) -> Tensor:
    """(frequencies, 2 · channels, batch) -> (width, height, channels, batch)."""
    height, width = sides(grid)
    channels, batch = values.shape[1] // 2, values.shape[2]
    if given is None and _long(grid):
        index, mirrored = (part.to(values.device) for part in half_plane(grid))
        cosines, sines = values.index_select(0, index).chunk(2, 1)
        table = torch.complex(cosines, torch.where(mirrored[:, None, None], sines, -sines))
        table = table.reshape(height // 2 + 1, width, channels, batch)
        return torch.fft.irfftn(table, s=(width, height), dim=(1, 0)).transpose(0, 1)
    matrices, columns = given or waves(grid, values.dtype, values.device), channels * batch
    if work is None:
        table = _exchanged_back(values.reshape(frequencies(grid), 2, columns), grid)
        stack = torch.bmm(matrices.across_back.expand(height, -1, -1), table)
        images = torch.bmm(matrices.down_back.expand(width, -1, -1), stack.transpose(0, 1))
    else:
        work.exchange_back()
        table, stack = work.array(1, height, width, columns), work.array(0, height, width, columns)
        torch.bmm(matrices.across_back.expand(height, -1, -1), table, out=stack)
        images = work.array(1, width, height, columns)
        torch.bmm(matrices.down_back.expand(width, -1, -1), stack.transpose(0, 1), out=images)
    return images.view(width, height, channels, batch)


def _long(grid: Grid) -> bool:
    return max(grid) > _LONGEST


class Waves(NamedTuple):
    """The matrices of the transform of each axis, and back."""

    down: Tensor  # (height, height): frequencies, positions
    across: Tensor  # (width, width)
    across_back: Tensor
    down_back: Tensor


def waves(grid: Grid, dtype: torch.dtype, device: torch.device) -> Waves:
    """The matrices of the transform of a grid; those made while a graph is traced are part of it, and not kept."""
    make = _make_waves.__wrapped__ if torch.compiler.is_compiling() else _make_waves
    return make(*sides(grid), dtype, device)


@functools.lru_cache(maxsize=64)
def _make_waves(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Waves:
    down, across = _cosines_and_sines(height), _cosines_and_sines(width)
    # back it is the transpose times the shares, 2/N but for what ``_exchanged_back`` halves
    matrices = down, across, across.mT / width, down.mT * (2 / height)
    return Waves(*(m.to(device, dtype).contiguous() for m in matrices))


def _cosines_and_sines(size: int) -> Tensor:
    """The rows of ``_Axis``, (size, size), float64; phases are reduced in whole numbers, so that none loses digits."""
    alone, paired = (torch.tensor(list(k))[:, None] for k in _frequencies(size))
    phases = [(k * torch.arange(size) % size).to(torch.float64) * (2 * math.pi / size) for k in (alone, paired)]
    return torch.cat([phases[0].cos(), phases[1].cos(), phases[1].sin()])


def _of_table(table: Tensor, grid: Grid) -> list[list[Tensor]]:
    """The blocks of what the real transforms of both axes give, (height, width, columns)."""
    down, across = (_axis(side) for side in sides(grid))
    return [[table[rows, columns] for columns in across] for rows in down]


def _of_spectrum(values: Tensor, grid: Grid) -> list[tuple[Tensor, Tensor]]:
    """Cosine and sine sums of each part of a spectrum, (frequencies, 2, columns)."""
    parts, start = [], 0
    for k, m in _parts(grid):
        part = values.narrow(0, start, len(k) * len(m)).view(len(k), len(m), 2, values.shape[2])
        parts.append((part.select(2, 0), part.select(2, 1)))
        start += len(k) * len(m)
    return parts


def _exchanged(table: Tensor, grid: Grid) -> Tensor:
    """The spectrum of a table, in a graph."""
    (corner, *top), (left, cc, cs), (below, sc, ss) = _of_table(table, grid)
    pairs = (cc - ss, sc + cs), (cc + ss, sc - cs), top, (left, below), (corner, torch.zeros_like(corner))
    return torch.cat([torch.stack([*pair], 2).flatten(0, 1) for pair in pairs])


def _exchanged_back(values: Tensor, grid: Grid) -> Tensor:
    """The table of a spectrum by the transpose, with half of what is its own negative on both axes, in a graph."""
    plus, minus, top, (left, below), (corner, _) = _of_spectrum(values, grid)
    lines = (
        [corner / 2, *top],
        [left, plus[0] + minus[0], plus[1] - minus[1]],
        [below, plus[1] + minus[1], minus[0] - plus[0]],
    )
    return torch.cat([torch.cat(line, 1) for line in lines])


class _Exchange:
    """``_exchanged`` and ``_exchanged_back`` between two given arrays, written where they belong."""

    def __init__(self, table: Tensor, values: Tensor, grid: Grid):
        (self.corner, *top), (left, cc, cs), (below, sc, ss) = _of_table(table, grid)
        plus, minus, on_top, on_left, (self.alone, self.zero) = _of_spectrum(values, grid)
        # x = a − b and y = a + b
        crossed = [(plus[0], minus[0], cc, ss), (minus[1], plus[1], sc, cs)]
        copied = zip((*on_top, *on_left), (*top, left, below), strict=True)
        self.crossed = crossed if cc.shape[0] and cc.shape[1] else []
        self.copied = [pair for pair in copied if pair[0].shape[0] and pair[0].shape[1]]

    def there(self) -> None:
        """Fill the spectrum."""
        for x, y, a, b in self.crossed:
            torch.sub(a, b, out=x)
            torch.add(a, b, out=y)
        for value, entry in self.copied:
            value.copy_(entry)
        self.alone.copy_(self.corner)
        self.zero.zero_()

    def back(self) -> None:
        """Fill the table."""
        for x, y, a, b in self.crossed:
            torch.add(x, y, out=a)
            torch.sub(y, x, out=b)
        for value, entry in self.copied:
            entry.copy_(value)
        torch.mul(self.alone, 0.5, out=self.corner)


class Work:
    """Two arrays into which the stages of a product write in turn, for any number of products with as many rows.

    Fresh ones in every stage cost about as much as the arithmetic, since the system hands them out page by page. What
    is written there can be part of no graph.

    Args:
        like: a tensor of the dtype and device.
        channels: of the images.
        grid: of the images.
        batch: number of rows.
    """

    def __init__(self, like: Tensor, channels: int, grid: Grid, batch: int):
        (height, width), columns = sides(grid), channels * batch
        self._arrays = like.new_empty(2, 2 * frequencies(grid) * columns)
        spectra = self._arrays.view(2, frequencies(grid), 2, columns)
        tables = [self.array(which, height, width, columns) for which in (0, 1)]
        self._there, self._back = _Exchange(tables[0], spectra[1], grid), _Exchange(tables[1], spectra[0], grid)

    def array(self, which: int, *shape: int) -> Tensor:
        """The beginning of one of the two."""
        return self._arrays[which, : math.prod(shape)].view(shape)

    def exchange(self) -> None:
        """Fill the spectrum at the beginning of the second array from the table at that of the first."""
        self._there.there()

    def exchange_back(self) -> None:
        """Fill the table at the beginning of the second array from the spectrum at that of the first."""
        self._back.back()

    def rows(self, batch: int, size: int) -> Tensor:
        """Where rows may wait for their product, (batch, n), by neuron."""
        return self.array(1, size, batch).mT
