r"""Read the convolutional checkpoints of the reference code of arXiv 2010.01732 and arXiv 2006.08591.

One circular convolution each way on a grid, Wz = z − Ψ(εz + g AᵀAz − Bz + Bᵀz), A and B divided by their Frobenius
norms and B multiplied by h, Ψ = exp psi of shape (1, 1, 1, 1), (1, C, 1, 1), (1, 1, H, W) or (1, C, H, W), ReLU with
its border held at zero, average pooling, a linear readout. Image, border and pooling are not stored; they follow from
the readout where the image is square, or from psi.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError
from equilibrium.convolution.geometry import Geometry
from equilibrium.convolution.layer import ConvolutionalLayer
from equilibrium.convolution.parameterization import ConvolutionalMonotone, MetricShape

_KEYS = {"g", "h", "psi", "U.weight", "U.bias", "A.weight", "B.weight", "Wout.weight", "Wout.bias"}


def is_convolutional(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a convolutional layout, their prefix removed."""
    return set(tensors) == _KEYS and tensors["A.weight"].ndim == 4


def convolutional_layer(
    name: str,
    tensors: Mapping[str, Tensor],
    *,
    image: tuple[int, int],
    epsilon: float,
    dtype: torch.dtype | None = None,
) -> ConvolutionalLayer:
    """The layer of a convolutional layout.

    Args:
        name: of the file, for messages.
        tensors: as ``is_convolutional`` wants them.
        image: (height, width) of the images, without the border of one pixel that the reference code pads with zeros.
        epsilon: ε the model was trained with.
        dtype: floating-point type of the layer; None keeps that of the file.

    Raises:
        InputError: if a shape or a value does not fit.
    """
    for key, value in tensors.items():
        checks.finite(f"{key} in {name}", checks.floating_tensor(f"{key} in {name}", value))
    channels, in_channels, side, _ = tensors["U.weight"].shape
    border = side // 2
    out_features, cell_features = tensors["Wout.weight"].shape
    grid = tuple(size + 2 * border for size in image)
    cell_size = channels * math.prod(grid) / cell_features
    pool = round(math.sqrt(cell_size))
    if pool**2 != cell_size:
        raise InputError(
            f"the readout in {name} sees {cell_features} entries, which are no cells of {channels} channels on a grid "
            f"{grid}; pass the image=(height, width) that the model was trained on"
        )
    geometry = Geometry(in_channels=in_channels, channels=channels, image=image, border=border, stride=1, pool=pool)
    psi = tensors["psi"].reshape(tensors["psi"].shape[-3:])
    kinds = (MetricShape.SCALAR, MetricShape.CHANNEL, MetricShape.POSITION, MetricShape.FULL)
    shape = next((kind for kind in kinds if kind.of(geometry) == tuple(psi.shape)), None)
    if shape is None:
        raise InputError(
            f"psi in {name} has shape {tuple(psi.shape)}, which is no metric on {channels} channels, {grid}"
        )
    free = ConvolutionalMonotone(
        geometry,
        out_features,
        kernel_size=tensors["A.weight"].shape[-1],
        input_kernel_size=side,
        epsilon=epsilon,
        metric=shape,
        dtype=dtype or tensors["A.weight"].dtype,
    )
    h = tensors["h"]
    values = {
        "U": tensors["U.weight"],
        "bias": tensors["U.bias"],
        "A": tensors["A.weight"],
        "B": tensors["B.weight"] * h.sign(),  # our gain is positive
        "log_g": checks.positive_tensor(f"g in {name}", tensors["g"]).log(),
        "log_h": checks.positive_tensor(f"the absolute value of h in {name}", h.abs()).log(),
        "output": tensors["Wout.weight"],
        "output_bias": tensors["Wout.bias"],
        "psi": psi,
    }
    with torch.no_grad():
        for key, value in values.items():
            target = getattr(free, key)
            target.copy_(checks.shape(f"{key} in {name}", value, tuple(target.shape)))
    return ConvolutionalLayer(free)
