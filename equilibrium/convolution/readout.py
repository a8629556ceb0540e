r"""Lipschitz-bounded networks on images whose weight contains its readout itself, as in the code of arXiv 2010.01732.

W = I − Ψ( εI + g ÂᵀÂ + h(B̂ᵀ − B̂) + ((W_oP)ᵀW_oP + Ψ⁻¹CCᵀΨ⁻¹)/(2γ) )

with the readout W_o of the averages P, and the input convolution C on the torus, in place of the convolutions that
dominate them in ``ConvolutionalMonotone``. So W is a convolution plus a term of few columns
(``contracting.maps.low_rank``): the rows of W_oP, and, where Ψ varies over the image so that Ψ⁻¹CCᵀΨ⁻¹ is no
convolution either, the columns of Ψ⁻¹C, one for each entry of the padded image: 900 columns of 49,000 entries for
54 channels on MNIST.

γ holds for the map as it is applied: U = SCE is zero padding E, circular convolution C and sampling S (written above
for stride 1), EEᵀ ⪯ I, so UUᵀ ⪯ SCCᵀSᵀ, and the inequality of arXiv 2010.01732, Theorem 5, holds.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from contracting.maps.base import LinearMap
from contracting.maps.convolution import CircularConvolution
from contracting.maps.frequencies import centred_sum, over_space, pointwise
from contracting.maps.low_rank import LowRank
from contracting.maps.per_neuron import Scaled
from equilibrium.convolution.geometry import Geometry
from equilibrium.convolution.parameterization import (
    ConvolutionalMonotone,
    Initialization,
    MetricShape,
    as_rows,
    sampled_gram,
)


class ReadoutMonotone(ConvolutionalMonotone):
    """The parameterisation of the reference code with a Lipschitz bound: the readout is part of W, exactly.

    Args:
        geometry: sizes, border, stride, cells of the readout.
        out_features: size of y.
        lipschitz: γ > 0.
        kernel_size: side of the kernels A and B, odd.
        input_kernel_size: side of the input kernel, odd; None takes ``kernel_size``.
        epsilon: ε > 0.
        metric: which entries of ψ are learnt.
        initialization: where training starts.
        device: device of the parameters.
        dtype: floating-point type of the parameters.

    Raises:
        InputError: on even sides, γ ≤ 0 or ε ≤ 0.
    """

    lipschitz: float

    def __init__(
        self,
        geometry: Geometry,
        out_features: int,
        *,
        lipschitz: float,
        kernel_size: int = 3,
        input_kernel_size: int | None = None,
        epsilon: float = 1.0,
        metric: MetricShape = MetricShape.CHANNEL,
        initialization: Initialization = Initialization.DEFAULT,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(
            geometry,
            out_features,
            kernel_size=kernel_size,
            input_kernel_size=input_kernel_size,
            lipschitz=lipschitz,
            epsilon=epsilon,
            metric=metric,
            initialization=initialization,
            device=device,
            dtype=dtype,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Those of ``ConvolutionalMonotone``, and that the readout is part of W itself."""
        return {**super().settings, "readout": "in W"}

    def _lipschitz_terms(
        self, gamma: float, U: Tensor, lam: Tensor | None, per_channel: Tensor | None
    ) -> list[Tensor]:
        if per_channel is None:
            return []  # no convolution: among the columns
        kernel = as_rows(per_channel, len(self.geometry.grid)) * U
        return [sampled_gram(kernel, self.geometry) / (2 * gamma)]

    def _state(
        self, symmetric: Tensor, skew: Tensor, lam: Tensor | None, per_channel: Tensor | None
    ) -> tuple[LinearMap, LinearMap | None]:
        geometry = self.geometry
        identity = torch.eye(geometry.channels, dtype=symmetric.dtype, device=symmetric.device)
        kernel = centred_sum([pointwise(identity, len(geometry.grid)), -symmetric, -skew])
        rows = [geometry.average_adjoint(self.output)]
        if per_channel is not None:
            weights = over_space(per_channel, geometry.grid)
        else:
            assert lam is not None
            weights = lam.expand(geometry.channels, *geometry.grid).flatten()
            pixels = torch.eye(geometry.in_channels * math.prod(geometry.torus)).to(identity)
            rows.append(geometry.convolve(pixels, self.U) * weights)
        columns = torch.cat(rows).mT / math.sqrt(2 * self.lipschitz)
        psi = 1 / weights
        inner = LowRank(CircularConvolution(kernel, grid=geometry.grid), -columns, columns)
        return Scaled(inner, psi, torch.ones_like(psi)), None
