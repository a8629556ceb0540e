r"""Circular convolutions as linear maps: every analysis of a network on images without its n×n matrix.

In the Fourier basis, which is unitary, I − W is block diagonal with one channels × channels block per frequency
(``contracting.maps.frequencies``). Resolvents, bounds, contraction factors and steps are those of the blocks, exact,
as long as metric and step are the same at every position; a metric that varies over space mixes frequencies, see
``per_neuron``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError, PreconditionError
from contracting.maps.base import LinearMap
from contracting.maps.counting import report
from contracting.maps.frequencies import (
    Grid,
    centred_sum,
    checked_grid,
    checked_kernel,
    convolve_directly,
    identity_kernel,
    in_rows,
    kernel_gradient,
    per_channel,
    symbol_of,
    transposed,
)
from contracting.maps.transform import Work, by_neuron, frequencies, is_by_neuron, product, real_form, sides
from contracting.metrics import Metric
from contracting.types import Step

# Rows of which a product takes so many at a time need no more memory than these, and are as fast as all together.
_ROWS = 64


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TranslationInvariant(LinearMap):
    """A map on images, (batch, channels · positions), that commutes with circular shifts."""

    grid: Grid

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of channels C; n = C · positions."""

    @abstractmethod
    def make_symbol(self) -> Tensor:
        """Ŵ from the tensors."""

    @property
    def size(self) -> int:
        return self.channels * math.prod(self.grid)

    @property
    def symbol(self) -> Tensor:
        """Ŵ, one matrix per frequency of the real transform: (frequencies, C, C), complex."""
        if any(tensor.requires_grad for tensor in self.watched):
            return self.make_symbol()  # part of a graph, which must not outlive its backward pass
        source = self._transposed_from
        if isinstance(source, TranslationInvariant):
            return self.remember("symbol", None, lambda: source.symbol.mH.resolve_conj().contiguous())
        return self.remember("symbol", None, self.make_symbol)

    @property
    def _form(self) -> Tensor:
        """The symbol in real numbers, as products take it."""
        if self._in_graph:
            return real_form(self.symbol)
        if isinstance(self._transposed_from, TranslationInvariant):
            return self._transposed_from._form.mT
        return self.remember("real form", None, lambda: real_form(self.symbol))

    def apply(self, z: Tensor) -> Tensor:
        checks.last_size("z", z, self.size)  # other rows could be cut into images just as well
        return in_rows(product(z.reshape(-1, self.size), self._form, self.grid), like=z).reshape(z.shape)

    def affine(self, z: Tensor, offset: Tensor, out: Tensor | None = None) -> Tensor:
        graph = torch.is_grad_enabled() and any(t.requires_grad for t in (z, offset, *self.tensors()))
        if graph or torch.compiler.is_compiling() or z.ndim != 2 or not is_by_neuron(z) or not is_by_neuron(offset):
            return super().affine(z, offset, out)
        out = torch.empty_like(z) if out is None else out
        work, form = self._work(z[:_ROWS]), self._form
        for start in range(0, len(z), _ROWS):
            rows = slice(start, start + _ROWS)
            if len(z) - start < _ROWS < len(z):
                work = self._work(z[rows])
            self._into(out[rows], form, z[rows], offset[rows], work)
        return out

    def iterated(self, h: Callable[..., Tensor], offset: Tensor, u: Tensor, steps: int) -> Tensor:
        if not (steps and is_by_neuron(u) and is_by_neuron(offset)):
            return super().iterated(h, offset, u, steps)
        work, form, out = self._work(u), self._form, torch.empty_like(u)
        between = work.rows(*u.shape)
        for _ in range(steps):
            u = self._into(out, form, h(u, out=between), offset, work)
        report(steps * u.shape[0])
        return u

    def _work(self, like: Tensor) -> Work:
        return Work(like, self.channels, self.grid, like.shape[0])

    def _into(self, out: Tensor, form: Tensor, z: Tensor, offset: Tensor, work: Work) -> Tensor:
        """Wz + offset, whose sum puts the images back into rows, in one pass."""
        images = product(z, form, self.grid, work=work)
        torch.add(images, offset.view(images.shape), out=out.view(images.shape))
        return out

    def laid_out(self, rows: Tensor) -> Tensor:
        return by_neuron(rows)

    @property
    def block_size(self) -> int:
        return self.channels

    def make_resolvent(self, step: Step) -> Spectral:
        symbol = self.symbol
        identity = torch.eye(self.channels, dtype=symbol.dtype, device=symbol.device)
        scale: Step = step
        if isinstance(step, Tensor) and step.ndim:
            values = per_channel(checks.shape("step", step, (self.size,)), self.channels)
            if values is None:
                raise PreconditionError(
                    "a convolution has no resolvent for a step that varies over the image: pass one step, or one per "
                    "channel repeated at every position, or use ForwardBackward(), which needs no resolvent"
                )
            scale = values[:, None]
        inverse, info = torch.linalg.inv_ex(identity + scale * (identity - symbol))
        if bool((info != 0).any()):
            raise PreconditionError(f"I + step·(I − W) is singular for step = {step}: I − W is not monotone")
        return Spectral(inverse, grid=self.grid)

    def blocks(self, metric: Metric) -> Tensor:
        weights = per_channel(self.weights_of(metric), self.channels)
        if weights is None:
            raise PreconditionError(
                "in a metric that varies over the image a convolution has no blocks per frequency; write the weight "
                "as Scaled(…), whose metric may vary, or take one metric weight per channel"
            )
        root = weights.sqrt()
        symbol = self._double_symbol()
        return torch.eye(self.channels, dtype=torch.complex128) - root[:, None] * symbol / root[None, :]

    def _double_symbol(self) -> Tensor:
        """Ŵ in double precision on the CPU."""
        return self.symbol.detach().to("cpu", torch.complex128)


@dataclass(frozen=True, eq=False, repr=False)
class CircularConvolution(TranslationInvariant):
    r"""W z = k ∗ z on a torus, as torch's convolution with circular padding, in one or two dimensions.

    Applied tap by tap or through the transform, whichever takes fewer operations.

    Args:
        kernel: k, (C, C, side) or (C, C, side, side) with odd sides, which may exceed the grid.
        grid: (width,) or (height, width) of the image.

    Raises:
        InputError: on other shapes.
    """

    kernel: Tensor
    grid: Grid = field(kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", checked_grid(self.grid))
        checked_kernel("kernel", self.kernel, self.grid)
        if self.kernel.shape[0] != self.kernel.shape[1]:
            raise InputError(f"kernel must map C channels to C channels, got shape {tuple(self.kernel.shape)}")

    @property
    def channels(self) -> int:
        return self.kernel.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.kernel,)  # asked for in every product

    def combined(self, scale: float, shift: float) -> CircularConvolution:
        kernel = centred_sum([scale * self.kernel, shift * identity_kernel(self.kernel)])
        return CircularConvolution(kernel, grid=self.grid)

    def make_symbol(self) -> Tensor:
        return symbol_of(self.kernel, self.grid)

    def _double_symbol(self) -> Tensor:
        # transformed in double precision: the bounds are those of the kernel, not of its rounded transform
        return symbol_of(self.kernel.detach().to("cpu", torch.float64), self.grid)

    @property
    def _taps(self) -> Tensor:
        """The kernel, also where this map is the adjoint of one whose kernel has changed in place."""
        source = self._transposed_from
        if self._in_graph or not isinstance(source, CircularConvolution):
            return self.kernel
        return self.remember("taps", None, lambda: transposed(source.kernel))

    def pullback(self, z: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        return (kernel_gradient(z, cotangent, tuple(self.kernel.shape[2:]), self.grid),)

    def make_adjoint(self) -> CircularConvolution:
        return CircularConvolution(transposed(self.kernel), grid=self.grid)

    def apply(self, z: Tensor) -> Tensor:
        taps = math.prod(self.kernel.shape[2:])
        fits = all(side <= size for side, size in zip(self.kernel.shape[2:], self.grid, strict=True))
        # multiply-adds per entry: of the taps, and of the product per frequency with the transforms there and back
        height, width = sides(self.grid)
        if fits and taps * self.channels <= 2 * self.channels + 2 * height + 4 * width:
            checks.last_size("z", z, self.size)
            return convolve_directly(z, self._taps, self.grid).reshape(z.shape)
        return super().apply(z)


@dataclass(frozen=True, eq=False, repr=False)
class Spectral(TranslationInvariant):
    """A map given by its symbol, such as the resolvent of a convolution, which has no small kernel.

    Args:
        values: Ŵ, (frequencies, C, C), complex, the transform of a real map.
        grid: (width,) or (height, width) of the image.

    Raises:
        InputError: on other shapes.
    """

    values: Tensor
    grid: Grid = field(kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", checked_grid(self.grid))
        expected = (frequencies(self.grid), *2 * self.values.shape[-1:])
        if not self.values.is_complex() or tuple(self.values.shape) != expected:
            raise InputError(f"values must be complex of shape {expected}, got {tuple(self.values.shape)}")

    @property
    def channels(self) -> int:
        return self.values.shape[-1]

    @property
    def watched(self) -> tuple[Tensor, ...]:
        return (self.values,)  # which shares its count of changes with that of an adjoint

    def tensors(self) -> tuple[Tensor, ...]:
        # the values of an adjoint are conjugated lazily, and a copy for each use would cost more than its product
        values = self.symbol if self.values.is_conj() else self.values
        return (torch.view_as_real(values.resolve_conj()),)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Spectral:
        (values,) = tensors
        return Spectral(torch.view_as_complex(values.contiguous()), grid=self.grid)

    def combined(self, scale: float, shift: float) -> Spectral:
        identity = torch.eye(self.channels, dtype=self.values.dtype, device=self.device)
        return Spectral(scale * self.values + shift * identity, grid=self.grid)

    def make_symbol(self) -> Tensor:
        return self.values

    def make_adjoint(self) -> Spectral:
        return Spectral(self.values.mH, grid=self.grid)
