"""Explicit weights of an equilibrium network on images, with every map as it is applied."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracting.maps.base import LinearMap
from contracting.maps.dense import Dense
from contracting.maps.frequencies import over_space
from contracting.maps.per_neuron import Scaled
from contracting.metrics import WeightedL2
from equilibrium.convolution.geometry import Geometry
from equilibrium.weights import NetworkWeights, Weights


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ConvolutionalWeights(NetworkWeights):
    r"""z = σ(Wz + Ux + b), y = W_o P z + b_o on images, as rows (batch, channels · positions).

    U is zero padding, circular convolution on the padded image and sampling; P averages over cells.

    Attributes:
        geometry: sizes, border, stride, cells.
        state: W as a map on Rⁿ.
        input_kernel: kernel of U, (C, in channels, side, …) with odd sides.
        bias: b, one per channel, (C,).
        output: W_o, (out, C · cells).
        output_bias: b_o, (out,).
        metric: Λ, as for ``NetworkWeights``.
        lipschitz: γ, as for ``NetworkWeights``.
        contraction_rate: c, as for ``NetworkWeights``.
        contraction_map: P, in which the firing-rate flow contracts at rate c, or None.
    """

    geometry: Geometry
    state: LinearMap
    input_kernel: Tensor
    bias: Tensor
    output: Tensor
    output_bias: Tensor
    metric: WeightedL2 | None = None
    lipschitz: Tensor | None = None
    contraction_rate: float | None = None
    contraction_map: LinearMap | None = None

    @property
    def in_features(self) -> int:
        return self.geometry.in_features

    @property
    def out_features(self) -> int:
        return self.output.shape[0]

    def input_term(self, x: Tensor) -> Tensor:
        # everything a solve computes is then laid out as products with W are fastest
        return self.state.laid_out(self.geometry.inject(x, self.input_kernel)) + over_space(
            self.bias, self.geometry.grid
        )

    def readout(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(self.geometry.average(z), self.output, self.output_bias)

    @property
    def output_matrix(self) -> Tensor:
        return self.geometry.average_adjoint(self.output)

    def double(self) -> ConvolutionalWeights:
        """The same numbers in float64 on the CPU, without history."""

        def exact(tensor: Tensor) -> Tensor:
            return tensor.detach().to("cpu", torch.float64)

        state = self.state.with_tensors([exact(tensor) for tensor in self.state.tensors()])
        metric = None if self.metric is None else exact(self.metric.weights)
        if metric is not None and isinstance(state, Scaled):
            metric = state.right / state.left * (metric * state.left / state.right).mean()  # not its rounded inverse
        return replace(
            self,
            state=state,
            input_kernel=exact(self.input_kernel),
            bias=exact(self.bias),
            output=exact(self.output),
            output_bias=exact(self.output_bias),
            metric=None if metric is None else WeightedL2(metric),
            lipschitz=None if self.lipschitz is None else exact(self.lipschitz),
            contraction_map=None,
            contraction_rate=None,
        )

    def dense(self) -> Weights:
        like = self.input_kernel
        unit_inputs = torch.eye(self.in_features, dtype=like.dtype, device=like.device)
        unit_states = torch.eye(self.hidden_features, dtype=like.dtype, device=like.device)
        P = self.contraction_map
        return Weights(
            state=Dense(self.state.to_dense()),
            input=self.geometry.inject(unit_inputs, like).mT,
            bias=over_space(self.bias, self.geometry.grid),
            output=self.output @ self.geometry.average(unit_states).mT,
            output_bias=self.output_bias,
            metric=self.metric,
            lipschitz=self.lipschitz,
            contraction_rate=self.contraction_rate,
            contraction_matrix=None if P is None else P.to_dense(),
        )
