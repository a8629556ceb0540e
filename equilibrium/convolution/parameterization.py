r"""Free parameters → explicit weights of an equilibrium network on images: any values give the certificate asked for.

W = I − Ψ( εI + g ÂᵀÂ + h(B̂ᵀ − B̂) + Q_γ + Q_c ),   Â = A/‖A‖_F, B̂ = B/‖B‖_F, g = exp(log g), h = exp(log h),

with circular convolutions A and B, transposes as their adjoints, and Ψ = diag(exp ψ). This is the form of the reference
code of arXiv 2010.01732 and 2006.08591, with ε and the two gains kept positive without projection. Q_γ and Q_c are
*upper bounds* that are convolutions, of terms that are none, so that everything stays one block per frequency:

* Q_γ ⪰ ((W_oP)ᵀW_oP + Ψ⁻¹UUᵀΨ⁻¹)/(2γ) makes x ↦ y γ-Lipschitz (the inequality of arXiv 2010.01732, Theorem 5; it only
  asks for ⪰). Its two parts are

  - readout: the cells of the average pooling P do not overlap, so PPᵀ = I/p with p positions per cell, and for every
    diagonal D > 0 with one entry per channel (equal at all positions, so that D commutes with P)
    ‖W_oPz‖² = ‖W_oD^−½ P D^½z‖² ≤ λmax(W_oD⁻¹W_oᵀ)/p · zᵀDz. Any D is valid; taken is D_c = ‖W_o restricted to c‖_F.
  - input: U = SCE is zero padding E, circular convolution C and sampling S. EEᵀ ⪯ I, so UUᵀ ⪯ SCCᵀSᵀ, a convolution on
    the grid of the state: the kernel of CCᵀ at multiples of the stride. With Ψ one number per channel Ψ⁻¹UUᵀΨ⁻¹
    follows. With a Ψ that varies over the image, write Ψ⁻¹ = NT, N = the largest of Ψ⁻¹ in each channel, 0 < T ≤ I;
    then Ψ⁻¹UUᵀΨ⁻¹ = T(NUUᵀN)T ⪯ ‖NSC‖²T² ⪯ ‖NSC‖²I, a norm found per frequency.

  A border held at zero by the activation needs nothing: its slope 0 is one of those in [0, 1].
* Q_c = cΨ⁻¹ + S̃ᵀΨS̃/(4(1 − c)), S̃ = h(B̂ᵀ − B̂): the firing-rate and Hopfield flows contract at rate ≥ c, as in
  ``equilibrium.parameterizations``; for Ψ constant over the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.errors import InputError
from contracting.maps.base import LinearMap
from contracting.maps.convolution import CircularConvolution
from contracting.maps.frequencies import (
    centred_sum,
    diagonal_kernel,
    gram,
    identity_kernel,
    over_space,
    symbol_of,
    transposed,
)
from contracting.maps.per_neuron import Scaled
from equilibrium.convolution.base import ImageParameterization, ImageParameterOptions
from equilibrium.convolution.geometry import Geometry
from equilibrium.convolution.weights import ConvolutionalWeights
from equilibrium.parameterizations import metric_of
from equilibrium.weights import survives_rounding


class MetricShape(Enum):
    """Which entries of the metric Ψ⁻¹ are learnt apart: (channels?, positions?)."""

    IDENTITY = "identity"
    SCALAR = "scalar"
    CHANNEL = "per channel"
    POSITION = "per position"
    FULL = "full"

    def of(self, geometry: Geometry) -> tuple[int, ...] | None:
        """The shape of ψ, (C or 1, *grid or 1 …); None for the identity."""
        if self is MetricShape.IDENTITY:
            return None
        channels = geometry.channels if self in (MetricShape.CHANNEL, MetricShape.FULL) else 1
        varies = self in (MetricShape.POSITION, MetricShape.FULL)
        return (channels, *(geometry.grid if varies else [1] * len(geometry.grid)))

    @property
    def varies_over_space(self) -> bool:
        """Whether positions have entries of their own."""
        return self in (MetricShape.POSITION, MetricShape.FULL)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """What the weights are made of, on the grid of the state.

    Attributes:
        U: of the input, (C, in channels, side, …).
        bias: (C,).
        A: (C, C, side, …), not yet normalised.
        B: (C, C, side, …), not yet normalised.
        psi: log Ψ, of the shape of the metric; None for the identity.
    """

    U: Tensor
    bias: Tensor
    A: Tensor
    B: Tensor
    psi: Tensor | None


class ConvolutionalOptions(ImageParameterOptions, total=False):
    """The keyword arguments of ``ConvolutionalMonotone``, for all that pass them on."""

    epsilon: float
    metric: MetricShape


class ConvolutionalMonotone(ImageParameterization):
    """The LBEN parameterisation on images: well-posed for every value, on request γ-Lipschitz and contracting.

    Args:
        geometry: sizes, border, stride, cells of the readout.
        out_features: size of y.
        kernel_size: side of the kernels A and B, odd.
        input_kernel_size: side of the input kernel, odd; None takes ``kernel_size``.
        lipschitz: γ > 0, or None for no bound.
        contraction_rate: c in [0, 1), or None; needs a metric that is constant over the image.
        epsilon: ε > 0. The authors train with 1 (monDEQ) and 0.1 (other convolutional models).
        metric: which entries of ψ are learnt; MetricShape.IDENTITY gives a monDEQ.
        device: device of the parameters.
        dtype: floating-point type of the parameters.

    Raises:
        InputError: on even sides, γ ≤ 0, c outside [0, 1), ε ≤ 0, or c with a metric that varies over the image.
    """

    def __init__(
        self,
        geometry: Geometry,
        out_features: int,
        *,
        epsilon: float = 1.0,
        metric: MetricShape = MetricShape.CHANNEL,
        **options: Unpack[ImageParameterOptions],
    ):
        self.epsilon = checks.positive_number("epsilon", epsilon)
        if not isinstance(metric, MetricShape):
            raise InputError(f"metric must be one of {', '.join(map(str, MetricShape))}, got {metric!r}")
        if options.get("contraction_rate") is not None and metric.varies_over_space:
            raise InputError("contraction_rate needs a metric that is constant over the image: MetricShape.CHANNEL")
        self.metric = metric
        super().__init__(geometry, out_features, **options)
        self.log_g = self.new_parameter()
        self.log_h = self.new_parameter()
        self.reset_parameters()

    def _make_kernels(self) -> None:
        super()._make_kernels()
        geometry = self.geometry
        C, dims = geometry.channels, len(geometry.grid)
        self.A = self.new_parameter(C, C, *[self.kernel_size] * dims)
        self.B = self.new_parameter(C, C, *[self.kernel_size] * dims)
        shape = self.metric.of(geometry)
        self.psi = None if shape is None else self.new_parameter(*shape)

    def _reset_kernels(self) -> None:
        nn.init.normal_(self.A)
        nn.init.normal_(self.B)

    def _kernels(self) -> Kernels:
        """What the weights are made of; for a network of several resolutions, what it makes of its parameters."""
        return Kernels(U=self.U, bias=self.bias, A=self.A, B=self.B, psi=self.psi)

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "epsilon": self.epsilon, "metric": self.metric.value}

    def reset_parameters(self) -> None:
        """Draw new values, for input and output as torch's layers do, smaller for small γ."""
        with torch.no_grad():
            super().reset_parameters()
            self._reset_kernels()
            for logarithm in (self.log_g, self.log_h, self.psi):
                if logarithm is not None:
                    nn.init.zeros_(logarithm)
            if self.lipschitz is not None:
                # keep Q_γ of the size of the other terms however small γ is
                scale = min(1.0, math.sqrt(self.lipschitz))
                self.U.mul_(scale)
                self.output.mul_(scale)

    def explicit(self) -> ConvolutionalWeights:
        geometry, c, free = self.geometry, self.contraction_rate, self._kernels()
        dims = len(geometry.grid)
        weights, per_channel = self._metric_weights(free.psi)
        skew = self.log_h.exp() * _normalised(free.B)
        skew = transposed(skew) - skew  # S̃ inside the bracket
        symmetric = [self.epsilon * identity_kernel(skew), self.log_g.exp() * gram(_normalised(free.A))]
        if self.lipschitz is not None:
            symmetric += self._lipschitz_terms(self.lipschitz, free.U, weights, per_channel)
        if c is not None:
            assert per_channel is not None
            scaled = skew / as_rows(per_channel.sqrt(), dims)
            symmetric += [diagonal_kernel(c * per_channel, dims), gram(scaled) / (4 * (1 - c))]
        state, contraction_map = self._state(centred_sum(symmetric), skew, weights, per_channel)
        found = ConvolutionalWeights(
            geometry=geometry,
            state=state,
            input_kernel=free.U,
            bias=free.bias,
            output=self.output,
            output_bias=self.output_bias,
            metric=metric_of(weights, free.psi),
            lipschitz=None if self.lipschitz is None else self.bias.new_tensor(self.lipschitz),
            contraction_rate=c,
            contraction_map=contraction_map,
        )
        if self._survives_rounding(found, free, skew):
            return found
        return replace(found, lipschitz=None, contraction_rate=None, contraction_map=None)

    def _metric_weights(self, psi: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Λ = Ψ⁻¹, (n,), and its number in each channel, (C,), where that is the same at every position."""
        channels, grid = self.geometry.channels, self.geometry.grid
        lam = self.bias.new_ones(1) if psi is None else (-psi).exp()  # (C or 1, *grid or 1 …)
        if self.metric.varies_over_space:
            return lam.expand(channels, *grid).flatten(), None
        per_channel = lam.flatten().expand(channels)
        return over_space(per_channel, grid), per_channel

    @torch.no_grad()
    def _survives_rounding(self, weights: ConvolutionalWeights, free: Kernels, skew: Tensor) -> bool:
        """Whether rounding is proved to leave what is certified: Σ_taps‖K_tap‖_F bounds the norm of a convolution."""
        c, assumed = self.contraction_rate, weights.metric
        if (c is None and self.lipschitz is None) or assumed is None:
            return True
        geometry, low, high = self.geometry, *assumed.weights.aminmax()
        size = self.epsilon + self.log_g.exp() * _taps(_normalised(free.A)).square()
        if self.lipschitz is not None:
            readout = geometry.channels**0.5 * self.output.square().sum() / geometry.cell_size
            size = size + (readout + (high * _taps(free.U)).square()) / (2 * self.lipschitz)
        if c is not None:
            size = size + c * high + _taps(skew).square() / (4 * (1 - c) * low)
        products = len(free.A) * max(free.A[0, 0].numel(), free.U[0, 0].numel())
        # an eigenvalue, where one is in the weights, is rounded like so many products
        roundings = 16 + products + 16 * (geometry.channels + self.out_features)
        return survives_rounding(roundings * size, _taps(skew), assumed.weights, self.epsilon, c)

    def _state(
        self, symmetric: Tensor, skew: Tensor, weights: Tensor, per_channel: Tensor | None
    ) -> tuple[LinearMap, LinearMap | None]:
        """W, and the map P in which the flows contract where a rate is asked for."""
        grid, c = self.geometry.grid, self.contraction_rate
        identity, bracket = identity_kernel(symmetric), centred_sum([symmetric, skew])
        if per_channel is None:
            inner = CircularConvolution(centred_sum([identity, -bracket]), grid=grid)
            return Scaled(inner, 1 / weights, torch.ones_like(weights)), None
        dims = len(grid)
        kernel = centred_sum([identity, -bracket / as_rows(per_channel, dims)])
        P = None
        if c is not None:
            start = diagonal_kernel((1 - 2 * c) * per_channel, dims)
            P = CircularConvolution(centred_sum([start, symmetric]).detach(), grid=grid)
        return CircularConvolution(kernel, grid=grid), P

    def _lipschitz_terms(
        self, gamma: float, U: Tensor, weights: Tensor, per_channel: Tensor | None
    ) -> list[Tensor]:
        """Kernels of the two upper bounds in Q_γ; see the module."""
        geometry, dims = self.geometry, len(self.geometry.grid)
        readout = diagonal_kernel(readout_bound(self.output, geometry), dims)
        if per_channel is not None:
            seen = sampled_gram(as_rows(per_channel, dims) * U, geometry)
        else:
            largest = weights.reshape(geometry.channels, -1).amax(1)
            seen = input_norm(as_rows(largest, dims) * U, geometry) * identity_kernel(U)
        return [readout / (2 * gamma), seen / (2 * gamma)]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, epsilon={self.epsilon:g}, metric={self.metric.value}"


def readout_bound(output: Tensor, geometry: Geometry) -> Tensor:
    """d with ‖W_oPz‖² ≤ Σ_c d_c‖z_c‖² for every z, z_c the image of channel c: (out, C · cells) -> (C,)."""
    table = output.reshape(output.shape[0], geometry.channels, -1)
    squares = table.square().sum((0, 2))
    D = (squares + 1e-6 * squares.mean() + torch.finfo(output.dtype).tiny).sqrt()
    scaled = (table / D[:, None].sqrt()).flatten(1)
    return torch.linalg.eigvalsh(scaled @ scaled.mT)[-1] * D / geometry.cell_size


def input_norm(kernel: Tensor, geometry: Geometry) -> Tensor:
    """‖SC‖₂², C the convolution on the torus and S the sampling, exact: (C, in channels, *sides) -> ()."""
    if geometry.stride == 1:  # the smaller of the two products
        product = symbol_of(gram(kernel), geometry.torus)
    else:
        product = symbol_of(sampled_gram(kernel, geometry), geometry.grid)
    return torch.linalg.eigvalsh(product)[:, -1].amax()


def sampled_gram(kernel: Tensor, geometry: Geometry) -> Tensor:
    """The kernel of SCCᵀSᵀ on the grid of the state, C the convolution on the torus and S the sampling.

    C and S commute with shifts of the grid, so entry d is that of CCᵀ at stride · d. Lags of CCᵀ are those modulo the
    torus, whose sides are multiples of the stride: also a kernel that wraps around is sampled correctly.
    """
    full = gram(transposed(kernel))
    for axis in range(2, full.ndim):
        reach = (full.shape[axis] // 2) // geometry.stride
        middle = full.shape[axis] // 2
        lags = middle + geometry.stride * torch.arange(-reach, reach + 1, device=full.device)
        full = full.index_select(axis, lags)
    return full


def _normalised(kernel: Tensor) -> Tensor:
    return kernel / torch.linalg.vector_norm(kernel).clamp_min(torch.finfo(kernel.dtype).tiny)


def _taps(kernel: Tensor) -> Tensor:
    return torch.linalg.vector_norm(kernel, dim=(0, 1)).sum()


def as_rows(values: Tensor, dims: int) -> Tensor:
    """One number per output channel of a kernel."""
    return values.reshape(-1, *[1] * (1 + dims))
