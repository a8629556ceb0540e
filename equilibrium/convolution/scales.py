r"""Equilibrium networks with several resolutions, coupled by strided convolutions, as monDEQ's multi-tier network.

The state has resolutions i = 0 (finest) … k − 1, each half as fine as the one before. In
I − W = Ψ(εI + g AᵀA + Bᵀ − B + Q), A has a convolution of each resolution on its diagonal and below it convolutions of
stride two from each resolution to the next, and B is block diagonal; AᵀA then couples neighbours both ways. Seen on the
coarsest grid as phases (``contracting.maps.polyphase``) it is one convolution with Σ Cᵢ·4^(k−1−i) channels. So nothing
else is needed: certified monotonicity for all parameters, γ, contraction rate, bounds and factors are those of
``ConvolutionalMonotone``, exact per frequency, and its resolvent is cheap as long as those channels are a few hundred.
With more of them the inverse of every frequency costs too much; ``Tseng()`` and ``ForwardBackward()`` need none.

The images are injected into the finest resolution; the readout sees the averages of every phase over its cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.errors import InputError
from contracting.maps.polyphase import blocks, joined, phases
from equilibrium.convolution.geometry import Geometry
from equilibrium.convolution.layer import ConvolutionalLayer, ImageOptions
from equilibrium.convolution.parameterization import (
    ConvolutionalMonotone,
    ConvolutionalOptions,
    Kernels,
    MetricShape,
)
from equilibrium.layers import of_the_layer


class MultiScaleMonotone(ConvolutionalMonotone):
    """The parameterisation with several resolutions; its weights are those of one convolution of all phases.

    Arguments as for ``MultiScaleConv2d``. The metric is constant over the image: IDENTITY, SCALAR, or CHANNEL, with one
    entry per channel of every resolution.

    Raises:
        InputError: on no channels, a metric that varies over the image, or as ``ConvolutionalMonotone``.
    """

    def __init__(
        self,
        channels: Sequence[int],
        in_channels: int,
        image: tuple[int, ...],
        out_features: int,
        *,
        border: int = 1,
        stride: int = 1,
        pool: int = 1,
        **options: Unpack[ConvolutionalOptions],
    ):
        if not channels:
            raise InputError("channels must name at least one resolution, such as (16, 32)")
        for count in channels:
            checks.whole_number("an entry of channels", count)
        metric = options.get("metric", MetricShape.CHANNEL)
        if not isinstance(metric, MetricShape) or metric.varies_over_space:
            raise InputError(f"metric must be constant over the image, such as MetricShape.CHANNEL, got {metric!r}")
        self.channels = tuple(channels)
        self.input_stride = checks.whole_number("stride", stride)
        self.factors = tuple(2 ** (len(channels) - 1 - level) for level in range(len(channels)))
        dims = len(image)
        self.counts = tuple(C * factor**dims for C, factor in zip(channels, self.factors, strict=True))
        geometry = Geometry(
            in_channels=in_channels,
            channels=sum(self.counts),
            image=image,
            border=border,
            stride=stride * self.factors[0],
            pool=pool,
        )
        super().__init__(geometry, out_features, **options)

    def _make_kernels(self) -> None:
        dims, side = len(self.geometry.grid), self.kernel_size
        self.U = self.new_parameter(self.channels[0], self.geometry.in_channels, *[self.input_kernel_size] * dims)
        self.bias = self.new_parameter(sum(self.channels))
        self.own = nn.ParameterList([self.new_parameter(C, C, *[side] * dims) for C in self.channels])
        self.skew = nn.ParameterList([self.new_parameter(C, C, *[side] * dims) for C in self.channels])
        pairs = zip(self.channels[1:], self.channels[:-1], strict=True)
        self.couplings = nn.ParameterList([self.new_parameter(out, into, *[side] * dims) for out, into in pairs])
        self.psi = None
        if self.metric is not MetricShape.IDENTITY:
            self.psi = self.new_parameter(1 if self.metric is MetricShape.SCALAR else sum(self.channels))

    @property
    def settings(self) -> dict[str, Any]:
        """Those of ``ConvolutionalMonotone``, and the resolutions."""
        return {**super().settings, "resolutions": self.channels}

    def _reset_kernels(self) -> None:
        for kernel in (*self.own, *self.skew, *self.couplings):
            nn.init.normal_(kernel)

    def _kernels(self) -> Kernels:
        dims, levels = len(self.geometry.grid), range(len(self.channels))
        A: list[list[Tensor | None]] = [[None for _ in levels] for _ in levels]
        B: list[list[Tensor | None]] = [[None for _ in levels] for _ in levels]
        for level, factor in enumerate(self.factors):
            A[level][level] = phases(self.own[level], out=factor, into=factor, stride=1)
            B[level][level] = phases(self.skew[level], out=factor, into=factor, stride=1)
            if level:
                A[level][level - 1] = phases(self.couplings[level - 1], out=factor, into=2 * factor, stride=2)
        injected = phases(self.U, out=self.factors[0], into=1, stride=self.input_stride)
        elsewhere = injected.new_zeros(sum(self.counts[1:]), *injected.shape[1:])
        psi: Tensor | None = None
        if self.psi is not None:
            psi = self._of_phases(self.psi.expand(sum(self.channels))).reshape(-1, *[1] * dims)
        return Kernels(
            U=torch.cat([injected, elsewhere]),
            bias=self._of_phases(self.bias),
            A=blocks(A, self.counts, self.counts),
            B=blocks(B, self.counts, self.counts),
            psi=psi,
        )

    def _of_phases(self, values: Tensor) -> Tensor:
        """The number of each channel for each of its phases: (Σ Cᵢ,) -> (Σ Cᵢ·phases,)."""
        dims = len(self.geometry.grid)
        counts = [factor**dims for C, factor in zip(self.channels, self.factors, strict=True) for _ in range(C)]
        return values.repeat_interleave(torch.tensor(counts, device=values.device))


class MultiScaleConv2d(ConvolutionalLayer):
    """An equilibrium network with several resolutions, coupled by strided convolutions; otherwise as ``LBENConv2d``.

    Args:
        in_channels: channels of the image.
        channels: of every resolution, the finest first; each is half as fine as the one before.
        out_features: size of y.
        image: (height, width) of the image; a multiple of stride · 2^(resolutions − 1).
        border: width of the border that is held at zero, on the coarsest grid.
        stride: of the input convolution.
        pool: side of the cells of the readout, on the coarsest grid.
        options: as for ``LBENConv2d``; the metric is MetricShape.IDENTITY, SCALAR or CHANNEL.

    Raises:
        InputError: on any argument out of range.

    Example:
        >>> layer = MultiScaleConv2d(1, (8, 16), 10, image=(28, 28), stride=2, pool=3, lipschitz=1.0)
        >>> y = layer(torch.randn(32, 1, 28, 28))
    """

    parameterization: MultiScaleMonotone

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        out_features: int,
        *,
        image: tuple[int, ...],
        border: int = 1,
        stride: int = 1,
        pool: int = 1,
        **options: Unpack[ImageOptions],
    ):
        free, own = of_the_layer(options)
        super().__init__(
            MultiScaleMonotone(
                channels, in_channels, image, out_features, border=border, stride=stride, pool=pool, **free
            ),
            **own,
        )

    def as_images(self, z: Tensor) -> tuple[Tensor, ...]:
        """The state of every resolution, the finest first: (..., n) -> (..., Cᵢ, *grid · 2^(k − 1 − i)) each."""
        free = self.parameterization
        dims = len(self.geometry.grid)
        parts = torch.split(self.as_image(z), list(free.counts), -dims - 1)
        return tuple(joined(part, factor, dims) for part, factor in zip(parts, free.factors, strict=True))
