r"""Convolutions between images of different resolutions as one convolution on the coarsest grid.

An image on a grid that is s times finer is s·s images on the coarse one, its *phases* z_ρ(P) = z(sP + ρ). That only
sorts the entries: it is an isometry. A circular convolution between two resolutions, also one with a stride, becomes a
circular convolution of the phases,

    y(o, p) = Σ_d k[o, c, d] z(c, tp + d),  p = s_y P + ρ  ⟹  K[(o, ρ), (c, ρ'), D] = k[o, c, d],
    tρ + d = s_z D + ρ',  t = s_z/s_y,

so that an operator with several resolutions has symbols, bounds and a resolvent like every other convolution; only its
channels are more: C·s² for a resolution with C channels, s times finer than the coarsest.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from contracting.maps.frequencies import centred_sum


def phases(kernel: Tensor, *, out: int, into: int, stride: int) -> Tensor:
    """The kernel K of the phases: (C', C, *sides) -> (C'·outᵈ, C·intoᵈ, *odd sides), phases innermost.

    Args:
        kernel: k with odd sides, of y(p) = Σ_d k[d] z(stride·p + d).
        out: phases of y along each axis.
        into: phases of z along each axis; 1 leaves z on its own grid, in whose positions K then counts.
        stride: positions of z per position of y.
    """
    sides = tuple(kernel.shape[2:])
    taps, places, wide = _places(sides, out, into, stride)
    dims, (C_out, C_in) = len(sides), kernel.shape[:2]
    count = out**dims * into**dims
    spread = kernel.flatten(2).index_select(2, taps.to(kernel.device))
    blank = kernel.new_zeros(C_out, C_in, count * wide**dims)
    table = blank.index_copy(2, places.to(kernel.device), spread).reshape(C_out, C_in, out**dims, into**dims, -1)
    return table.transpose(1, 2).reshape(C_out * out**dims, C_in * into**dims, *[wide] * dims)


def from_phases(kernel: Tensor, factor: int) -> Tensor:
    """The kernel with these phases of z, the inverse of ``phases`` for stride = into = factor and out = 1.

    (C', C·factorᵈ, *sides) -> (C', C, *odd sides).
    """
    dims = kernel.ndim - 2
    return torch.nn.functional.pad(joined(kernel, factor, dims), (factor - 1, 0) * dims)


@functools.lru_cache(maxsize=64)
def _places(sides: tuple[int, ...], out: int, into: int, stride: int) -> tuple[Tensor, Tensor, int]:
    """Which tap goes to which entry of (phase of y, phase of z, coarse tap), and the coarse side."""
    dims = len(sides)
    radius = max(side // 2 for side in sides)
    reach = max(-(-radius // into), (stride * (out - 1) + radius) // into)
    wide = 2 * reach + 1
    taps, places = [], []
    for phase in itertools.product(range(out), repeat=dims):
        for tap, offset in enumerate(itertools.product(*[range(-(side // 2), side // 2 + 1) for side in sides])):
            moved = [divmod(stride * rho + d, into) for rho, d in zip(phase, offset, strict=True)]
            place = 0
            for size, digits in ((out, phase), (into, [m[1] for m in moved]), (wide, [m[0] + reach for m in moved])):
                for digit in digits:
                    place = place * size + digit
            taps.append(tap)
            places.append(place)
    return torch.tensor(taps), torch.tensor(places), wide


def blocks(table: Sequence[Sequence[Tensor | None]], rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """One kernel from a table of kernels, None for none: rows and columns are the channels of each part."""
    given = [kernel for line in table for kernel in line if kernel is not None]
    sides = [max(kernel.shape[axis] for kernel in given) for axis in range(2, given[0].ndim)]

    def filled(kernel: Tensor | None, out: int, into: int) -> Tensor:
        blank = given[0].new_zeros(out, into, *sides)
        return blank if kernel is None else centred_sum([kernel, blank])

    return torch.cat(
        [
            torch.cat([filled(k, out, into) for k, into in zip(line, columns, strict=True)], 1)
            for line, out in zip(table, rows, strict=True)
        ]
    )


def joined(images: Tensor, factor: int, dims: int) -> Tensor:
    """The images of phases: (..., C·factorᵈ, *grid) -> (..., C, *grid · factor)."""
    lead, sizes = images.shape[: -dims - 1], images.shape[-dims:]
    parts = images.reshape(*lead, -1, *[factor] * dims, *sizes)
    first = len(lead) + 1
    order = [*range(first), *[place for axis in range(dims) for place in (first + dims + axis, first + axis)]]
    return parts.permute(order).reshape(*lead, -1, *[size * factor for size in sizes])


def separated(images: Tensor, factor: int, dims: int) -> Tensor:
    """The phases of images, the inverse of ``joined``: (..., C, *grid · factor) -> (..., C·factorᵈ, *grid)."""
    lead, sizes = images.shape[: -dims - 1], [size // factor for size in images.shape[-dims:]]
    parts = images.reshape(*lead, -1, *[side for size in sizes for side in (size, factor)])
    first = len(lead) + 1
    places = [first + 2 * axis for axis in range(dims)]
    order = [*range(first), *[place + 1 for place in places], *places]
    return parts.permute(order).reshape(*lead, -1, *sizes)
