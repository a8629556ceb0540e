r"""All contracting networks on images of one certificate, with a γ of the whole map, for any parameter values.

W is a convolution on a torus, and so are P and Λ, a number per channel. Then the inequalities of
``equilibrium.parameterizations.contractive`` are those of one small matrix per frequency f: in coordinates with Λ = I

    M = 2√(1−c) SV − V*V,  any V(f), any ‖S(f)‖ ≤ 1,

are all convolutions that contract at rate c in a P = V*V that is one. Of a real kernel X the map X ↦ XL⁻*,
LL* = I + X*X, onto the ball makes a real kernel again, over the whole torus.

γ asks for W_oᵀW_o + ΛUUᵀΛ ⪯ γR, R = 2Λ − ΛW − WᵀΛ, of the map as it is applied:

* Input. U = SCE is zero padding E, a convolution C and sampling S. EEᵀ ⪯ I, and SC is a convolution of the phases of
  the padded image on the grid of the state. With a free kernel B and R = KK*,

      ΛU = √γ K T,  T = XF⁻*, X = K⁻¹B, FF* = I + X*X,

  where F is a small matrix of the phases of the pixels: all U with ΛUU*Λ ≺ γR.
* Readout. It is no convolution, but has few rows. What R leaves is R − ΛUU*Λ/γ = K(I − TT*)K*, whose inverse is
  K⁻*(I + XX*)K⁻¹, without a subtraction. Of a free readout G, with the average pooling in it, the matrix

      H = G K⁻*(I + XX*)K⁻¹ Gᵀ,  summed over the frequencies,  outputs × outputs,

  is exact, and W_o = √γ E⁻¹G, EEᵀ = I + H, are all readouts with W_oᵀW_o ≺ γR − ΛUU*Λ.

So what is given up are the zeros around the image, and what ``room`` keeps for rounding; nothing at the readout.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from contracting.errors import InputError
from contracting.maps.convolution import CircularConvolution, Spectral
from contracting.maps.frequencies import kernel_of, over_space, symbol_of
from contracting.maps.polyphase import from_phases
from contracting.maps.transform import shares, spectrum
from contracting.metrics import WeightedL2
from equilibrium.convolution.base import ImageParameterization, ImageParameterOptions
from equilibrium.convolution.geometry import Geometry
from equilibrium.convolution.weights import ConvolutionalWeights
from equilibrium.parameterizations.contractive import START, squashed
from equilibrium.parameterizations.room import Room, within

_UNIT = 2.0**-53  # the largest relative error of one rounding in float64
# A readout drawn as torch draws one would use little of γ, and grow slowly. This factor, and the root of the positions
# of a cell, which an average takes away, make H of order one (1.3 to 1.8 with 24 channels, 10 classes and γ = 1).
_LOUDER = 4.0


class ConvolutionalContractive(ImageParameterization):
    r"""Every contracting network on images with a γ of the whole map: rate c, and on request γ, for each value.

    Args:
        geometry: sizes, border, stride, cells of the readout.
        out_features: size of y.
        options: contraction_rate c, 0 if it is None, and the others as for ``ImageParameterization``. ``kernel_size``
            is the side of V and of the kernel that is mapped to the ball; from the side of the torus on all of them are
            reached.

    Raises:
        InputError: as ``ImageParameterization``, and on a c too close to one for the dtype.
    """

    contraction_rate: float

    def __init__(self, geometry: Geometry, out_features: int, **options: Unpack[ImageParameterOptions]):
        options = {**options, "contraction_rate": options.get("contraction_rate") or 0.0}
        super().__init__(geometry, out_features, **options)
        if self._room().largest_V < 1:
            raise InputError(f"contraction_rate = {self.contraction_rate!r} is too close to 1 for {self.example.dtype}")
        self.reset_parameters()

    def _make_kernels(self) -> None:
        super()._make_kernels()
        C, sides = self.geometry.channels, [self.kernel_size] * len(self.geometry.grid)
        self.V = self.new_parameter(C, C, *sides)
        self.S = self.new_parameter(C, C, *sides)
        self.psi = self.new_parameter(C)

    def reset_parameters(self) -> None:
        """Draw new values: V and S as those of ``Contractive``; outputs of the order of γ."""
        super().reset_parameters()
        spread = START / math.sqrt(self.V[0].numel())
        nn.init.normal_(self.V, std=spread)
        nn.init.normal_(self.S, std=spread)
        nn.init.zeros_(self.psi)
        with torch.no_grad():
            taps = self.V.flatten(2)
            taps[..., taps.shape[2] // 2].diagonal().add_(math.sqrt(1 - self.contraction_rate))
            if self.lipschitz is not None:
                self.output.mul_(_LOUDER * self.geometry.cell_size**0.5)

    def _room(self) -> Room:
        positions = math.prod(self.geometry.grid) + self.out_features
        return Room.of(
            size=self.geometry.channels,
            rate=self.contraction_rate,
            dtype=self.example.dtype,
            feedthrough=False,
            positions=positions,
        )

    def explicit(self) -> ConvolutionalWeights:
        geometry, c, dtype, room = self.geometry, self.contraction_rate, self.example.dtype, self._room()
        grid = geometry.grid
        identity = torch.eye(geometry.channels, dtype=torch.complex128, device=self.example.device)
        lam = (-squashed(self.psi)).exp()
        root = lam.double().sqrt()
        V = within(symbol_of(self.V.double(), grid), room.largest_V)
        square = torch.view_as_real(V).square().sum((1, 2, 3)).amax()
        P = V.mH @ V + room.floor(square) * identity
        M = 2 * math.sqrt(1 - c) * room.ball(symbol_of(self.S.double(), grid)) @ V - P
        scales = root / root[:, None]  # of real numbers: a division of complex ones costs several times a product
        kernel = kernel_of(M * scales, grid).to(dtype)
        U: Tensor = self.U
        output: Tensor = self.output
        if self.lipschitz is not None:
            # γ is that of the numbers that are stored, whose rounding has no gradient
            stored = symbol_of(kernel.detach().double(), grid) * scales.detach().mT
            U, output = self._bounded(M + (stored - M).detach(), root, room)
        return ConvolutionalWeights(
            geometry=geometry,
            state=CircularConvolution(kernel, grid=grid),
            input_kernel=U,
            bias=self.bias,
            output=output,
            output_bias=self.output_bias,
            metric=WeightedL2(over_space(lam.detach(), grid)),
            lipschitz=None if self.lipschitz is None else self.bias.new_tensor(self.lipschitz),
            contraction_rate=c,
            contraction_map=Spectral((P * (root[:, None] * root)).detach().to(dtype.to_complex()), grid=grid),
        )

    def _bounded(self, M: Tensor, root: Tensor, room: Room) -> tuple[Tensor, Tensor]:
        """The kernel of U and W_o."""
        geometry, gamma = self.geometry, self.lipschitz
        assert gamma is not None
        K = torch.linalg.cholesky(2 * torch.eye(len(root), dtype=M.dtype, device=M.device) - M - M.mH)
        B = geometry.symbol(self.U.double())
        X = within(torch.linalg.solve_triangular(K, B, upper=False), room.largest_X)
        inputs = math.sqrt(gamma) * K @ room.ball(X)
        U = from_phases(kernel_of(inputs * (1 / root)[:, None], geometry.grid), geometry.stride)
        output = self._bounded_output(K, X, root, room)
        return U.to(self.example.dtype), (math.sqrt(gamma) * output).to(self.example.dtype)

    def _bounded_output(self, K: Tensor, X: Tensor, root: Tensor, room: Room) -> Tensor:
        """W_o/√γ from what the inputs leave of R."""
        geometry, output = self.geometry, self.output.double()
        images = geometry.average_adjoint(output).reshape(-1, geometry.channels, *geometry.grid)
        G = spectrum(images, geometry.grid) * (1 / root)[:, None]
        Y = torch.linalg.solve_triangular(K, G, upper=False)
        seen = torch.cat([Y, X.mH @ Y], 1)
        weighted = seen * shares(geometry.grid).to(root).sqrt()[:, None, None]
        rows = torch.view_as_real(weighted).permute(2, 0, 1, 3).flatten(1)  # HHᵀ of which is H
        # so much that the rounding of a sum over all frequencies stays below δ/2
        largest = math.sqrt(room.edge / (2 * rows.shape[1] * _UNIT))
        scale = largest / torch.linalg.vector_norm(rows).clamp_min(largest)
        H = scale.square() * rows @ rows.mT
        factor = torch.linalg.cholesky(torch.eye(len(H), dtype=H.dtype, device=H.device) + H)
        return (1 - 2 * room.edge) * scale * torch.linalg.solve_triangular(factor, output, upper=False)
