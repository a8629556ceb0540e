r"""Read the convolutional checkpoints of the reference code of arXiv 2010.01732 and arXiv 2006.08591.

One circular convolution each way on a grid, Wz = z − Ψ(εz + g AᵀAz − Bz + Bᵀz), A and B divided by their Frobenius
norms and B multiplied by h, Ψ = exp psi of shape (1, 1, 1, 1), (1, C, 1, 1), (1, 1, H, W) or (1, C, H, W), or Ψ = I
where there is no psi, ReLU with
its border held at zero, average pooling, a linear readout. Image, border and pooling are not stored; they follow from
the readout where the image is square, or from psi.

With a Lipschitz bound γ, the readout is stored with the rest, and

  Wz = z − Ψ(εz + a AᵀAz − Bz + Bᵀz + Pᵀ GᵀG Pz/(2γ)) − V Vᵀ Ψ⁻¹z/(2γ),   y = G Pz + b_o,

P the averages, V the input convolution U without padding, from an image one pixel larger on every side. It comes in two
spellings (names as in the public repository of the authors, mrevay/LipschitzBoundedEquilibriumModels, lben.py):

* ``LBEN_Lip_Conv``: gains a = g and h, G = Wout and U as they are; psi is (C, H, W).
* ``LBEN_Lip_Conv_V2``: gains a, and b for B; G = √g·Wout/‖Wout‖_F and √u·U/‖U‖_F; psi of any of the four shapes.

Early revisions of the reference code used A and B as they are, and stored gains g = h = 1 that nothing trained. So
where both are exactly 1, A and B are taken as they are in the file, that is with g = ‖A‖² and h = ‖B‖.

What is applied to the image is not V but the convolution after zero padding, by one
pixel, and circular padding. What wraps around is zero, so that it is V on the image with zeros around it, and what
the code certifies for V holds for it. Here V Vᵀ is replaced by the convolution on the torus, which differs from it in
the couplings of opposite borders only; the border is held at zero, so that the equilibria are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError
from equilibrium.convolution.geometry import Geometry
from equilibrium.convolution.layer import ConvolutionalLayer
from equilibrium.convolution.parameterization import ConvolutionalMonotone, MetricShape
from equilibrium.convolution.readout import ReadoutMonotone

_KERNELS = {"U.weight", "U.bias", "A.weight", "B.weight", "Wout.weight", "Wout.bias"}
_GAINS = {"single": {"g", "h"}, "normalised": {"a", "b", "g", "u"}}


def is_convolutional(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these look like the tensors of a single convolution, their prefix removed."""
    return "A.weight" in tensors and tensors["A.weight"].ndim == 4


def _checked_names(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether input and readout are stored with gains of their own.

    Raises:
        InputError: if names are missing or unknown.
    """
    normalised = bool({"a", "b", "u"} & set(tensors))
    expected = _KERNELS | _GAINS["normalised" if normalised else "single"]
    missing, unknown = sorted(expected - set(tensors)), sorted(set(tensors) - expected - {"psi"})
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has the unknown {', '.join(unknown)}"] if unknown else []
        raise InputError(
            f"{name} looks like a single convolution of the reference code, but {' and '.join(parts)}: pass a "
            "state dict of its model, with all of its tensors and nothing else"
        )
    return normalised


def convolutional_layer(
    name: str,
    tensors: Mapping[str, Tensor],
    *,
    image: tuple[int, int],
    epsilon: float,
    lipschitz: float | None = None,
    pool: int | None = None,
    dtype: torch.dtype | None = None,
) -> ConvolutionalLayer:
    """The layer of a convolutional layout.

    Args:
        name: of the file, for messages.
        tensors: as ``is_convolutional`` wants them.
        image: (height, width) of the images, without the border of one pixel that the reference code pads with zeros.
        epsilon: ε the model was trained with.
        lipschitz: γ the model was trained with, if its readout is part of W; None if it is not.
        pool: side of the cells of the readout; None finds it from the shape of the readout.
        dtype: floating-point type of the layer; None keeps that of the file.

    Raises:
        InputError: if a shape or a value does not fit.
    """
    normalised = _checked_names(name, tensors)
    for key, value in tensors.items():
        checks.finite(f"{key} in {name}", checks.floating_tensor(f"{key} in {name}", value))
    for key, dims in (("U.weight", 4), ("A.weight", 4), ("B.weight", 4), ("Wout.weight", 2)):
        if tensors[key].ndim != dims:
            raise InputError(f"{key} in {name} must have {dims} axes, got shape {tuple(tensors[key].shape)}")
    for key in _GAINS["normalised" if normalised else "single"]:
        checks.shape(f"{key} in {name}", tensors[key], ())
    channels, in_channels, side, _ = tensors["U.weight"].shape
    border = side // 2
    out_features, cell_features = tensors["Wout.weight"].shape
    grid = tuple(size + 2 * border for size in image)
    pool = _pool_of(name, cell_features, channels, grid) if pool is None else pool
    geometry = Geometry(in_channels=in_channels, channels=channels, image=image, border=border, stride=1, pool=pool)
    psi, shape = tensors.get("psi"), MetricShape.IDENTITY
    if psi is not None:
        psi = psi[0] if psi.ndim == 4 and len(psi) == 1 else psi
        kinds = (MetricShape.SCALAR, MetricShape.CHANNEL, MetricShape.POSITION, MetricShape.FULL)
        fitting = [kind for kind in kinds if kind.of(geometry) == tuple(psi.shape)]
        if not fitting:
            raise InputError(
                f"psi in {name} has shape {tuple(psi.shape)}, which is no metric on {channels} channels, {grid}: pass "
                "the image=(height, width) that the model was trained on"
            )
        shape = fitting[0]
    options: dict[str, Any] = {
        "kernel_size": tensors["A.weight"].shape[-1],
        "input_kernel_size": side,
        "epsilon": epsilon,
        "metric": shape,
        "dtype": dtype or tensors["A.weight"].dtype,
    }
    free: ConvolutionalMonotone
    if lipschitz is None:
        free = ConvolutionalMonotone(geometry, out_features, **options)
    else:
        free = ReadoutMonotone(geometry, out_features, lipschitz=lipschitz, **options)
    of_A, of_B = ("a", "b") if normalised else ("g", "h")
    g, h = (tensors[key].double() for key in (of_A, of_B))
    if not normalised and g == 1 and h == 1:
        g, h = (torch.linalg.vector_norm(tensors[key].double()) for key in ("A.weight", "B.weight"))
        g = g.square()
    values = {
        "U": _with_gain(name, tensors, "U.weight", "u" if normalised else None),
        "bias": tensors["U.bias"],
        "A": tensors["A.weight"],
        "B": tensors["B.weight"] * h.sign(),  # our gain is positive
        "log_g": checks.positive_tensor(f"{of_A} in {name}", g).log(),
        "log_h": checks.positive_tensor(f"the absolute value of {of_B} in {name}", h.abs()).log(),
        "output": _with_gain(name, tensors, "Wout.weight", "g" if normalised else None),
        "output_bias": tensors["Wout.bias"],
    }
    if psi is not None:
        values["psi"] = psi
    with torch.no_grad():
        for key, value in values.items():
            target = getattr(free, key)
            target.copy_(checks.shape(f"{key} in {name}", value, tuple(target.shape)))
    return ConvolutionalLayer(free)


def _pool_of(name: str, cell_features: int, channels: int, grid: tuple[int, ...]) -> int:
    """The side of cells of which the grid holds as many, whole ones, as the readout sees."""
    sides = range(1, min(grid) + 1)
    fitting = [side for side in sides if channels * math.prod(size // side for size in grid) == cell_features]
    tiling = [side for side in fitting if all(size % side == 0 for size in grid)]
    if len(tiling or fitting) == 1:
        return (tiling or fitting)[0]
    if fitting:
        raise InputError(
            f"the readout in {name} sees {cell_features} entries, which cells of side {', '.join(map(str, fitting))} "
            f"on a grid {grid} all give: pass pool=… as the model was trained"
        )
    raise InputError(
        f"the readout in {name} sees {cell_features} entries, which are no cells of {channels} channels on a grid "
        f"{grid}: pass the image=(height, width) that the model was trained on"
    )


def _with_gain(name: str, tensors: Mapping[str, Tensor], key: str, gain: str | None) -> Tensor:
    """√gain · tensor/‖tensor‖, in double precision, or the tensor as it is."""
    if gain is None:
        return tensors[key]
    if not bool(tensors[gain] >= 0):
        raise InputError(f"{gain} in {name} must not be negative, got {float(tensors[gain]):g}")
    exact = tensors[key].double()
    return tensors[gain].double().sqrt() * exact / torch.linalg.vector_norm(exact).clamp_min(1e-300)
