"""What free parameters of networks on images have in common: input kernel, bias, readout, and what may be asked for."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import asdict
from typing import Any, TypedDict

import torch
from torch import nn

from contracting import checks
from contracting.errors import InputError
from equilibrium.convolution.geometry import Geometry
from equilibrium.convolution.weights import ConvolutionalWeights
from equilibrium.parameterizations import Parameterization, checked_lipschitz


class ImageParameterOptions(TypedDict, total=False):
    """The keyword arguments of ``ImageParameterization``, for all that pass them on."""

    kernel_size: int
    input_kernel_size: int | None
    lipschitz: float | None
    contraction_rate: float | None
    device: torch.device | str | None
    dtype: torch.dtype | None


class ImageParameterization(Parameterization):
    """Free parameters of a network on images.

    Args:
        geometry: sizes, border, stride, cells of the readout.
        out_features: size of y.
        kernel_size: side of the kernels that W is made of, odd.
        input_kernel_size: side of the input kernel, odd; None takes ``kernel_size``.
        lipschitz: γ > 0, or None for no bound.
        contraction_rate: c in [0, 1), or None.
        device: device of the parameters.
        dtype: floating-point type of the parameters.

    Raises:
        InputError: on even sides, γ ≤ 0, or c outside [0, 1).
    """

    def __init__(
        self,
        geometry: Geometry,
        out_features: int,
        *,
        kernel_size: int = 3,
        input_kernel_size: int | None = None,
        lipschitz: float | None = None,
        contraction_rate: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if lipschitz is not None:
            checked_lipschitz(lipschitz, dtype)
        if contraction_rate is not None:
            contraction_rate = checks.number("contraction_rate", contraction_rate, low=0, high=1, high_open=True)
        input_kernel_size = kernel_size if input_kernel_size is None else input_kernel_size
        for name, side in (("kernel_size", kernel_size), ("input_kernel_size", input_kernel_size)):
            if checks.whole_number(name, side) % 2 == 0:
                raise InputError(f"{name} must be odd, got {side}")
        super().__init__(geometry.in_features, geometry.hidden_features, out_features, device=device, dtype=dtype)
        self.geometry, self.lipschitz, self.contraction_rate = geometry, lipschitz, contraction_rate
        self.kernel_size, self.input_kernel_size = kernel_size, input_kernel_size
        self._make_kernels()
        self.output = self.new_parameter(out_features, geometry.cell_features)
        self.output_bias = self.new_parameter(out_features)

    def _make_kernels(self) -> None:
        """Kernels, bias and metric; here those of the input alone."""
        geometry = self.geometry
        self.U = self.new_parameter(
            geometry.channels, geometry.in_channels, *[self.input_kernel_size] * len(geometry.grid)
        )
        self.bias = self.new_parameter(geometry.channels)

    @abstractmethod
    def explicit(self) -> ConvolutionalWeights: ...

    def reset_parameters(self) -> None:
        """Draw new values, for input and output as torch's layers do."""
        for weight, bias in ((self.U, self.bias), (self.output, self.output_bias)):
            bound = 1 / math.sqrt(weight[0].numel())
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    @property
    def settings(self) -> dict[str, Any]:
        """What the formula of the weights depends on."""
        asked = {"contraction_rate": self.contraction_rate, "lipschitz": self.lipschitz}
        return {**asdict(self.geometry), **asked}

    def extra_repr(self) -> str:
        """Sizes and settings."""
        parts = [super().extra_repr(), f"kernel_size={self.kernel_size}"]
        if self.lipschitz is not None:
            parts.append(f"lipschitz={self.lipschitz:.4g}")
        if self.contraction_rate is not None:
            parts.append(f"contraction_rate={self.contraction_rate:g}")
        return ", ".join(parts)
