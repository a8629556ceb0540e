r"""What the numbers of a computer add to the error of a tracked state, bounded for every order of summation.

The steps apply M̂, the rounded reflection, to h = 2prox_{αf}(u) − u and add ô, the rounded 2K(αq), K = (I + αA)⁻¹. With
the unit roundoff ε and γₖ = kε/(1 − kε), a product of k terms is wrong by at most γₖ times the sum of their sizes,
whatever the order. In the norm of the certificate one step is then wrong by at most

    c(‖u‖ + ‖h(0)‖) + d,   c = γₙ₊₁‖|M̂|‖ + ‖M̂ − M‖ + 8ε,

where d holds what is the same in all steps of a frame, the rounding of ô and of q = Ux + b. ‖M̂ − M‖ is at most that of
(I + αA)M̂ − (I − αA), which is computed in float64 with its own rounding, because (I + αA)⁻¹ does not expand where I −
W is monotone. What is assumed is that h is evaluated to within 8ε of |u| + |h(0)|.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.certificates.definite import UNIT, sizes
from equilibrium.lipschitz.system import as_double
from equilibrium.tracking.certificate import TrackingCertificate
from equilibrium.weights import Weights

_ELEMENT = 8  # roundings that the evaluation of h is charged, relative to |u| + |h(0)|
_ROOM = 1 + 1e-6  # for the rounding, in float64, of the formulas of this file themselves


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Bounds of errors in one precision, in the norm of the certificate, and of the output in ℓ2.

    A step from u is wrong by at most ``state``·(‖u‖ + ``origin``) + ``input``·‖x‖₂ + ``constant``; an output that is
    read from u by at most ``out_state``·(‖u‖ + ``origin``) + ``out_input``·‖x‖₂ + ``out_constant``.

    Attributes:
        unit: the unit roundoff ε.
        origin: ‖2prox(0)‖.
        reading: of reading z and bringing it to the precision of the layer, relative to ‖u‖ + ``origin``.
        norms: by what a computed norm is multiplied to be no smaller than the true one.
        readout: ‖W_o r⁻¹‖₂, by which an error of the state reaches the output.
    """

    unit: float
    state: float
    input: float
    constant: float
    origin: float
    norms: float
    reading: float
    readout: float
    out_state: float
    out_input: float
    out_constant: float


def rounding_of(
    certificate: TrackingCertificate, weights: Weights, activation: Activation, M: Tensor, answered: torch.dtype
) -> Rounding:
    """The bounds for steps with M̂, in its precision.

    Args:
        certificate: of the exact steps.
        weights: of the network.
        activation: σ.
        M: M̂, (n, n), as the steps use it.
        answered: precision of z and the output, which may be lower.
    """
    root, step = certificate.root, certificate.step
    n, inputs = len(root), weights.in_features
    unit, last = torch.finfo(M.dtype).eps / 2, torch.finfo(answered).eps / 2
    U, b, C, c0 = (as_double(t) for t in (weights.input, weights.bias, weights.output, weights.output_bias))
    D = torch.zeros(len(C), inputs) if weights.feedthrough is None else weights.feedthrough
    many, wrong = _norm(_whitened(as_double(M).abs(), root)), _deviation(weights, root, step, as_double(M))
    product = _gamma(n + 1, unit)
    drive = step * (2 * product * (many + 1) + wrong + 2 * unit)  # of ô and of adding it, for each unit of ‖q‖
    q_input, q_bias = _norm(root[:, None] * U.abs()), float((root * b).norm())
    drive = (drive + 2 * step * _gamma(inputs + 1, unit)) * (1 + 4 * _gamma(n + inputs, unit))
    floor = 8 * math.sqrt(torch.finfo(M.dtype).tiny * max(n, inputs))  # squares that underflow in a norm
    reading = (_gamma(n + inputs + 2, unit) + 2 * last) * (1 + 4 * last)
    through = _norm(C.abs() / root)
    zero = 2 * float((root * as_double(activation.prox_value(torch.zeros(n, dtype=M.dtype), step))).norm())
    return Rounding(
        unit=unit,
        state=_ROOM * (product * many + wrong + _ELEMENT * unit) * (1 + _ELEMENT * unit),
        input=_ROOM * drive * q_input,
        constant=_ROOM * drive * q_bias + floor * (1 + certificate.speed),
        origin=_ROOM * zero,
        norms=1 + 4 * (max(n, inputs) + 8) * unit,
        reading=_ROOM * (_ELEMENT * unit + last),
        readout=_ROOM * _norm(C / root),
        out_state=_ROOM * through * (reading + _ELEMENT * unit),
        out_input=_ROOM * reading * _norm(as_double(D).abs()),
        out_constant=_ROOM * reading * float(c0.norm()),
    )


def _gamma(roundings: int, unit: float) -> float:
    return roundings * unit / (1 - roundings * unit)


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2)) if matrix.numel() else 0.0


def _whitened(matrix: Tensor, root: Tensor) -> Tensor:
    return root[:, None] * matrix / root


def _deviation(weights: Weights, root: Tensor, step: float, M: Tensor) -> float:
    """A bound on ‖M̂ − M‖."""
    W = as_double(weights.state.to_dense())
    identity = torch.eye(len(W), dtype=torch.float64)
    A = step * (identity - W)
    rest = (identity + A) @ M - (identity - A)
    size = identity + step * (identity + W.abs())
    error = (len(W) + 8) * UNIT * (sizes(size) @ sizes(M) + sizes(size))
    return float(torch.linalg.matrix_norm(_whitened(rest.abs() + error, root)))
