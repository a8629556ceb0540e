"""Equilibrium layers on images: the same interface as the dense layer, analysed frequency by frequency."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor

from contracting import checks
from contracting.activations.catalogue import ReLU
from contracting.activations.clamped import zero_border
from contracting.activations.names import as_activation
from equilibrium.convolution.base import ImageParameterization
from equilibrium.convolution.contractive import ConvolutionalContractive
from equilibrium.convolution.geometry import Geometry
from equilibrium.convolution.parameterization import ConvolutionalMonotone, ConvolutionalOptions
from equilibrium.convolution.weights import ConvolutionalWeights
from equilibrium.layers import EquilibriumLayer, LayerOptions, of_the_layer


class ImageOptions(ConvolutionalOptions, LayerOptions, total=False):
    """The keyword arguments that all layers on images take, beside those of their geometry."""


class ConvolutionalLayer(EquilibriumLayer):
    r"""z = σ(Wz + Ux + b), y = W_o P z + b_o on images, with σ = 0 on the border of the state, for any weights.

    Inputs are images (..., channels, height, width), or rows (..., in_features) of their entries; states are rows of n
    = channels · positions entries, ``as_image`` reshapes them.

    Args:
        parameterization: free parameters with ``explicit() -> ConvolutionalWeights``.
        options: as for ``EquilibriumLayer``; the activation is the one inside the border.
    """

    parameterization: ImageParameterization

    def __init__(self, parameterization: ImageParameterization, **options: Unpack[LayerOptions]):
        geometry, activation = parameterization.geometry, options.get("activation")
        inner = ReLU() if activation is None else as_activation(activation)
        options["activation"] = zero_border(
            inner, channels=geometry.channels, grid=geometry.grid, border=geometry.border
        )
        super().__init__(parameterization, **options)

    @property
    def geometry(self) -> Geometry:
        """Sizes, border, stride and cells."""
        return self.parameterization.geometry

    def weights(self) -> ConvolutionalWeights:
        """The explicit weights of the present parameters; equal ones are recalled, as in ``EquilibriumLayer``."""
        weights = super().weights()
        assert isinstance(weights, ConvolutionalWeights)
        return weights

    def as_image(self, z: Tensor) -> Tensor:
        """States as images: (..., n) -> (..., channels, *grid), border included."""
        checks.last_size("z", z, self.hidden_features)
        return z.reshape(*z.shape[:-1], self.geometry.channels, *self.geometry.grid)

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """An image, or the row of its entries."""
        return (self.geometry.in_channels, *self.geometry.image), (self.in_features,)

    def extra_repr(self) -> str:
        return f"{self.geometry}, {super().extra_repr()}"


class LBENConv2d(ConvolutionalLayer):
    r"""Lipschitz-bounded equilibrium network on images: circular convolutions, zero border (arXiv 2010.01732).

    For every value of the parameters the equilibrium exists and is unique; with ``lipschitz`` the whole map from the
    image to y — padding, input convolution, equilibrium, border, average pooling and readout — has that ℓ2 Lipschitz
    constant. A convolutional classifier is this layer: y are the logits.

    Args:
        in_channels: channels of the image.
        channels: channels of the state.
        out_features: size of y, such as the number of classes.
        image: (height, width) of the image.
        border: width of the border that is held at zero; 0 leaves a torus.
        stride: of the input convolution.
        pool: side of the cells that the readout averages.
        options: kernel_size, input_kernel_size, lipschitz, contraction_rate, epsilon, metric, device and dtype as for
            ``ConvolutionalMonotone``; activation, solver, stop, backward and failed_rows as for ``LBEN``.

    Raises:
        InputError: on any argument out of range.

    Example:
        >>> layer = LBENConv2d(1, 16, 10, image=(28, 28), stride=2, pool=4, lipschitz=1.0)
        >>> y = layer(torch.randn(32, 1, 28, 28))
    """

    made_of: ClassVar[type[ImageParameterization]] = ConvolutionalMonotone

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_features: int,
        *,
        image: tuple[int, int],
        border: int = 1,
        stride: int = 1,
        pool: int = 1,
        **options: Unpack[ImageOptions],
    ):
        free, own = of_the_layer(options)
        geometry = Geometry(
            in_channels=in_channels, channels=channels, image=image, border=border, stride=stride, pool=pool
        )
        super().__init__(self.made_of(geometry, out_features, **free), **own)


class ContractiveConv2d(LBENConv2d):
    r"""Equilibrium network on images whose flows contract, with a γ of which the readout wastes nothing.

    As ``LBENConv2d``, with the parameters of ``ConvolutionalContractive``: they reach every network that one number per
    channel in Λ and a convolution P certify. The weight and, with ``lipschitz``, the input kernel reach over the image.

    Args:
        in_channels: channels of the image.
        channels: channels of the state.
        out_features: size of y.
        options: contraction_rate, 0 if left out, and the others as for ``LBENConv2d``, without epsilon and metric.

    Raises:
        InputError: on any argument out of range.

    Example:
        >>> layer = ContractiveConv2d(1, 16, 10, image=(28, 28), stride=2, pool=4, lipschitz=1.0, contraction_rate=0.2)
        >>> y = layer(torch.randn(32, 1, 28, 28))
    """

    made_of = ConvolutionalContractive
