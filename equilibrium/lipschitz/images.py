r"""The matrices of a network on images, entry by entry from its kernels, and what each entry may be wrong by.

An entry of a circular convolution is the sum of the kernel's at all offsets that are equal on the torus: one, unless
the kernel is wider than that, and then nothing is rounded. So a certificate of these matrices is one of the network as
it is written, not of products with its maps that were rounded before.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contracting.certificates.definite import UNIT
from contracting.maps.base import LinearMap
from contracting.maps.convolution import CircularConvolution
from contracting.maps.frequencies import Grid
from contracting.maps.per_neuron import Scaled
from equilibrium.convolution.weights import ConvolutionalWeights

Known = tuple[Tensor, Tensor]  # numbers, and an entrywise bound of their errors


def convolution_of(state: LinearMap) -> CircularConvolution | None:
    """V where W = V or W = I − Ψ(I − V) is made of a convolution V, else None."""
    if isinstance(state, Scaled) and bool((state.right == 1).all()):
        state = state.inner
    return state if isinstance(state, CircularConvolution) else None


def image_matrices(weights: ConvolutionalWeights) -> tuple[Known, Known, Known]:
    """W, U and W_oP of weights in float64, each with its errors.

    Where W is made of no convolution, its products with the unit vectors are taken as they are.
    """
    geometry, state = weights.geometry, weights.state
    positions = _positions(geometry.grid)
    pixels = _positions(geometry.image) + geometry.border * geometry.stride
    convolution = convolution_of(state)
    if convolution is None:
        W = state.to_dense()
        W_error = torch.zeros_like(W)
    else:
        W, W_error = _placed(convolution.kernel, geometry.grid, positions, positions)
        if isinstance(state, Scaled):
            identity = torch.eye(len(W), dtype=torch.float64)
            inner, scale = identity - W, state.left[:, None]
            W, W_error = identity - scale * inner, scale * (W_error + 3 * UNIT * inner.abs())
            W_error += 2 * UNIT * (identity + W.abs())
    U, U_error = _placed(weights.input_kernel, geometry.torus, geometry.stride * positions, pixels)
    C = weights.output_matrix
    return (W, W_error), (U, U_error), (C, UNIT * C.abs())


def _positions(grid: Grid) -> Tensor:
    """The coordinates of all positions, row-major: (positions, axes)."""
    return torch.cartesian_prod(*(torch.arange(size) for size in grid)).reshape(-1, len(grid))


def _placed(kernel: Tensor, torus: Grid, rows: Tensor, columns: Tensor) -> Known:
    """The convolution from places ``columns`` of the torus to places ``rows``: (out · rows, in · columns)."""
    taps = _flat(_positions(tuple(kernel.shape[2:])) - torch.tensor(kernel.shape[2:]) // 2, torus)
    offsets = _flat(columns - rows[:, None], torus)
    shared = math.prod(math.ceil(side / size) for side, size in zip(kernel.shape[2:], torus, strict=True)) - 1
    found = []
    for values in (kernel, kernel.abs()):
        wrapped = kernel.new_zeros(*kernel.shape[:2], math.prod(torus)).index_add_(2, taps, values.flatten(2))
        found.append(wrapped[:, :, offsets].transpose(1, 2).flatten(2).flatten(0, 1))
    return found[0], 1.01 * shared * UNIT * found[1]


def _flat(offsets: Tensor, torus: Grid) -> Tensor:
    """The row-major index of offsets on the torus, (..., axes) -> (...)."""
    index = torch.zeros(offsets.shape[:-1], dtype=torch.int64)
    for axis, size in enumerate(torus):
        index = index * size + offsets[..., axis] % size
    return index
