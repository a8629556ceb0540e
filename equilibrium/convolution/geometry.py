"""Where the pixels are: images, the grid of the state with its border, and the cells of the readout."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError
from contracting.maps.frequencies import Grid, convolve_by_symbol, convolve_directly, symbol_of, transposed
from contracting.maps.polyphase import joined, phases, separated
from contracting.maps.transform import by_neuron


@dataclass(frozen=True, kw_only=True)
class Geometry:
    r"""The linear maps around an equilibrium on images that are not learnt: padding, sampling, pooling.

    An image is padded with zeros by ``border`` · ``stride`` on every side, convolved *circularly* on that torus, and
    every ``stride``-th position of the result is kept: the grid of the state, with a border of ``border``. The readout
    sees the averages over cells of side ``pool``; positions beyond the last whole cell are not seen, as in torch.

    Args:
        in_channels: channels of the image.
        channels: channels C of the state.
        image: (height, width) of the image, or (width,).
        border: width of the border of the state's grid.
        stride: of the input convolution.
        pool: side of the cells of the readout.

    Raises:
        InputError: if the stride does not divide the image, or a cell is larger than the grid.
    """

    in_channels: int
    channels: int
    image: Grid
    border: int = 1
    stride: int = 1
    pool: int = 1

    def __post_init__(self) -> None:
        for name in ("in_channels", "channels", "stride", "pool"):
            checks.whole_number(name, getattr(self, name))
        checks.whole_number("border", self.border, low=0)
        if not isinstance(self.image, tuple) or len(self.image) not in (1, 2):
            raise InputError(f"image must be (height, width) or (width,), got {self.image!r}")
        for size in self.image:
            if checks.whole_number("an entry of image", size) % self.stride:
                raise InputError(f"stride must divide the image {self.image}, got {self.stride}")
        if self.pool > min(self.grid):
            raise InputError(
                f"pool must fit into the grid {self.grid} (the image over the stride, with its border), got {self.pool}"
            )

    @property
    def grid(self) -> Grid:
        """Positions of the state, border included."""
        return tuple(size // self.stride + 2 * self.border for size in self.image)

    @property
    def torus(self) -> Grid:
        """Positions of the padded image, on which the input is convolved circularly."""
        return tuple(size * self.stride for size in self.grid)

    @property
    def cells(self) -> Grid:
        """Cells of the readout."""
        return tuple(size // self.pool for size in self.grid)

    @property
    def in_features(self) -> int:
        """Entries of an image."""
        return self.in_channels * math.prod(self.image)

    @property
    def hidden_features(self) -> int:
        """Entries n of the state."""
        return self.channels * math.prod(self.grid)

    @property
    def cell_features(self) -> int:
        """Entries that the readout sees."""
        return self.channels * math.prod(self.cells)

    @property
    def cell_size(self) -> int:
        """Positions per cell."""
        return int(self.pool ** len(self.grid))

    def inject(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Rows of the input convolution, without bias: (batch, in) -> (batch, n)."""
        images = x.reshape(-1, self.in_channels, *self.image)
        margin = self.border * self.stride
        padded = torch.nn.functional.pad(images, [margin] * 2 * len(self.image)).flatten(1)
        return self.convolve(padded, kernel)

    def convolve(self, padded: Tensor, kernel: Tensor) -> Tensor:
        """Rows of the input convolution of images on the torus: (batch, in channels · torus) -> (batch, n)."""
        if self._fits(kernel):
            return convolve_directly(padded, kernel, self.torus, stride=self.stride)
        images = padded.reshape(-1, kernel.shape[1], *self.torus)
        seen = by_neuron(separated(images, self.stride, len(self.grid)).flatten(1))
        return convolve_by_symbol(seen, self.symbol(kernel), self.grid)

    def symbol(self, kernel: Tensor) -> Tensor:
        """Û from the phases of the padded image: (C, in channels, side, …) -> (frequencies, C, in · phases)."""
        return symbol_of(phases(kernel, out=1, into=self.stride, stride=self.stride), self.grid)

    def convolve_adjoint(self, z: Tensor, kernel: Tensor) -> Tensor:
        """The transpose of ``convolve``: (batch, n) -> (batch, in channels · torus)."""
        if not self._fits(kernel):
            seen = convolve_by_symbol(z, self.symbol(kernel).mH, self.grid).reshape(len(z), -1, *self.grid)
            return joined(seen, self.stride, len(self.grid)).flatten(1)
        images = z.reshape(-1, kernel.shape[0], *self.grid)
        if self.stride > 1:  # zeros between the samples
            fine = images.new_zeros(*images.shape[:2], *self.torus)
            fine[self._sampled] = images
            images = fine
        return convolve_directly(images.flatten(1), transposed(kernel), self.torus)

    def _fits(self, kernel: Tensor) -> bool:
        return all(side <= size for side, size in zip(kernel.shape[2:], self.torus, strict=True))

    @property
    def _sampled(self) -> tuple[Any, ...]:
        """Every ``stride``-th position of the torus."""
        return (..., *[slice(None, None, self.stride)] * len(self.grid))

    def average(self, z: Tensor) -> Tensor:
        """Averages over the cells: (..., n) -> (..., cell features)."""
        images = z.reshape(-1, self.channels, *self.grid)
        # torch's pooling would first move rows that lie by neuron; sums take them as they are
        for axis, cells in enumerate(self.cells, 2):
            shape = *images.shape[:axis], cells, self.pool, *images.shape[axis + 1 :]
            parts = images.narrow(axis, 0, cells * self.pool).reshape(shape).unbind(axis + 1)
            images = functools.reduce(torch.add, parts)
        return images.reshape(*z.shape[:-1], self.cell_features) / self.cell_size

    def average_adjoint(self, cells: Tensor) -> Tensor:
        """The transpose of ``average``: (..., cell features) -> (..., n)."""
        images = cells.reshape(*cells.shape[:-1], self.channels, *self.cells)
        for axis in range(-len(self.grid), 0):
            images = images.repeat_interleave(self.pool, axis)
        rest = [size % self.pool for size in reversed(self.grid)]
        if any(rest):
            images = torch.nn.functional.pad(images, [side for end in rest for side in (0, end)])
        return images.flatten(-1 - len(self.grid)) / self.cell_size
