r"""Lipschitz-bounded networks on images whose weight contains its readout itself, as in the code of arXiv 2010.01732.

W = I − Ψ( εI + g ÂᵀÂ + h(B̂ᵀ − B̂) + ((W_oP)ᵀW_oP + Ψ⁻¹CCᵀΨ⁻¹)/(2γ) )

with the readout W_o of the averages P, and the input convolution C on the torus, in place of the convolutions that
dominate them in ``ConvolutionalMonotone``. So W is a convolution less TᵀT (``contracting.maps.minus_gram``), scaled by
Ψ: T = W_oP/√(2γ), and where Ψ varies over the image, so that Ψ⁻¹CCᵀΨ⁻¹ is no convolution either, CᵀΨ⁻¹/√(2γ) below it.
T is applied as it is written, by pooling, a small matrix, a convolution and a product with Ψ⁻¹.

γ holds for the map as it is applied: U = SCE is zero padding E, circular convolution C and sampling S (written above
for stride 1), EEᵀ ⪯ I, so UUᵀ ⪯ SCCᵀSᵀ, and the inequality of arXiv 2010.01732, Theorem 5, holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
from torch import Tensor

from contracting.errors import InputError
from contracting.maps.base import LinearMap
from contracting.maps.convolution import CircularConvolution
from contracting.maps.frequencies import centred_sum, identity_kernel
from contracting.maps.minus_gram import ROUNDING, Factor, MinusGram, largest_square
from contracting.maps.per_neuron import Scaled
from equilibrium.convolution.geometry import Geometry
from equilibrium.convolution.parameterization import (
    ConvolutionalMonotone,
    ConvolutionalOptions,
    as_rows,
    input_norm,
    sampled_gram,
)


class ReadoutMonotone(ConvolutionalMonotone):
    """The parameterisation of the reference code with a Lipschitz bound: the readout is part of W, exactly.

    Arguments as for ``ConvolutionalMonotone``, with a γ and without c.

    Raises:
        InputError: without γ, with c, or as ``ConvolutionalMonotone``.
    """

    lipschitz: float

    def __init__(self, geometry: Geometry, out_features: int, **options: Unpack[ConvolutionalOptions]):
        if options.get("lipschitz") is None or options.get("contraction_rate") is not None:
            raise InputError("lipschitz must be given, for example lipschitz=1.0, and no contraction_rate")
        super().__init__(geometry, out_features, **options)

    @property
    def settings(self) -> dict[str, Any]:
        """Those of ``ConvolutionalMonotone``, and that the readout is part of W itself."""
        return {**super().settings, "readout": "in W"}

    def _lipschitz_terms(
        self, gamma: float, U: Tensor, weights: Tensor, per_channel: Tensor | None
    ) -> list[Tensor]:
        if per_channel is None:
            return []  # no convolution: a part of T
        kernel = as_rows(per_channel, len(self.geometry.grid)) * U
        return [sampled_gram(kernel, self.geometry) / (2 * gamma)]

    def _state(
        self, symmetric: Tensor, skew: Tensor, weights: Tensor, per_channel: Tensor | None
    ) -> tuple[LinearMap, LinearMap | None]:
        convolution = CircularConvolution(
            centred_sum([identity_kernel(symmetric), -symmetric, -skew]), grid=self.geometry.grid
        )
        root = math.sqrt(2 * self.lipschitz)
        factor = Seen(self.geometry, self.output / root)
        if per_channel is None:
            factor = replace(factor, kernel=self.U / root, weights=weights)
        return Scaled(MinusGram(convolution, factor), 1 / weights, torch.ones_like(weights)), None


@dataclass(frozen=True, eq=False)
class Seen(Factor):
    """T: what the readout sees of a state and, where ``kernel`` is given, what the input convolution puts into it.

    Args:
        geometry: sizes, stride, cells.
        output: G of the rows GPz, (out, C · cells).
        kernel: C of the rows CᵀΛz, (C, in channels, side, …); None for the readout alone.
        weights: Λ, (n,); with ``kernel`` only.
    """

    geometry: Geometry
    output: Tensor
    kernel: Tensor | None = None
    weights: Tensor | None = None

    @property
    def rank(self) -> int:
        pixels = 0 if self.kernel is None else self.geometry.in_channels * math.prod(self.geometry.torus)
        return len(self.output) + pixels

    def apply(self, z: Tensor) -> Tensor:
        read = self.geometry.average(z) @ self.output.mT
        if self.kernel is None or self.weights is None:
            return read
        return torch.cat([read, self.geometry.convolve_adjoint(self.weights * z, self.kernel)], 1)

    def adjoint(self, c: Tensor) -> Tensor:
        image = self.geometry.average_adjoint(c[:, : len(self.output)] @ self.output)
        if self.kernel is None or self.weights is None:
            return image
        return image + self.weights * self.geometry.convolve(c[:, len(self.output) :], self.kernel)

    def square_norm(self) -> float:
        square = largest_square(self.output) / self.geometry.cell_size
        if self.kernel is not None and self.weights is not None:
            weights, kernel = (t.detach().to("cpu", torch.float64) for t in (self.weights, self.kernel))
            largest = weights.reshape(self.geometry.channels, -1).amax(1)
            norm = float(input_norm(as_rows(largest, len(self.geometry.grid)) * kernel, self.geometry))
            square += norm * (1 + ROUNDING * kernel.numel())
        return square

    def square_sum(self) -> float:
        total = self.output.detach().double().square().sum() / self.geometry.cell_size
        if self.kernel is not None and self.weights is not None:  # every row of C holds the kernel once
            of_channel = self.weights.detach().double().square().reshape(self.geometry.channels, -1).sum(1)
            total = total + of_channel @ self.kernel.detach().double().flatten(1).square().sum(1)
        return float(total)
