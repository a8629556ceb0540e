r"""The matrices a Lipschitz bound is about: Δz = J(WΔz + UΔx), Δy = CΔz + DΔx, slopes J in [a, b], in float64.

Whatever is computed from a network before it gets here (its weights in float32, say) is converted exactly; the products
with preceding and following linear maps carry a bound of their rounding errors, which the checker takes into account.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.activations.base import Activation
from contracting.certificates.definite import SMALLEST, UNIT
from contracting.display import Displayed
from contracting.errors import InputError
from contracting.types import UNIT_SLOPES, Slopes
from equilibrium.convolution.weights import ConvolutionalWeights
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz.composite import Core, Model, matrix_of, parts
from equilibrium.lipschitz.images import Known, image_matrices
from equilibrium.weights import NetworkWeights

Units = tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LipschitzSystem(Displayed):
    """One map x ↦ y as matrices, float64 on the CPU.

    Attributes:
        W: (n, n).
        U: (n, in).
        C: (out, n).
        D: (out, in).
        slopes: [a, b] with 0 ≤ a ≤ b ≤ 1, the slopes of the activation.
        errors: entrywise bounds of the errors of U, C and D.
        metric: a diagonal Λ to start searches from, (n,), or None.
        claimed: the ℓ2 constant the parameterisation certifies, or None; with a composition it is not claimed.
        state_error: an entrywise bound of the errors of W, (n, n), or None where it is exact.
    """

    W: Tensor
    U: Tensor
    C: Tensor
    D: Tensor
    slopes: Slopes
    errors: tuple[Tensor, Tensor, Tensor]
    metric: Tensor | None = None
    claimed: float | None = None
    state_error: Tensor | None = None

    @property
    def size(self) -> int:
        """n."""
        return self.W.shape[0]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of W, U, C, D and the slopes: what a certificate carries to say which map it is about."""
        return fingerprint(self.slopes, self.W, self.U, self.C, self.D)

    @property
    def constant(self) -> bool:
        """Whether y does not depend on x at all, whatever W is."""
        U, C, D = (
            bool(matrix.any() or error.any())
            for matrix, error in zip((self.U, self.C, self.D), self.errors, strict=True)
        )
        return not D and not (U and C)

    @property
    def units(self) -> Units:
        """Exponents (p, q) with which no entry of U·2⁻ᵖ, C·2⁻ᑫ and D·2⁻ᵖ⁻ᑫ exceeds one, and the largest are near it."""
        tops = (_exponent(m + e) for m, e in zip((self.U.abs(), self.C.abs(), self.D.abs()), self.errors, strict=True))
        u, c, d = tops
        if u is None:
            u = 0 if c is None or d is None else d - c
        return u, max((top for top in (c, None if d is None else d - u) if top is not None), default=0)

    def in_units(self, units: Units) -> LipschitzSystem:
        """The map x ↦ 2⁻ᵖ⁻ᑫ·y(x) written with U·2⁻ᵖ, C·2⁻ᑫ and D·2⁻ᵖ⁻ᑫ; what underflows is charged to the errors."""
        p, q = units
        parts = tuple(zip((self.U, self.C, self.D), self.errors, (-p, -q, -p - q), strict=True))
        U, C, D = (times_power(matrix, exponent) for matrix, _, exponent in parts)
        U_error, C_error, D_error = (
            times_power(error, exponent) + SMALLEST * ((matrix != 0) | (error != 0))
            for matrix, error, exponent in parts
        )
        return replace(
            self,
            U=U,
            C=C,
            D=D,
            errors=(U_error, C_error, D_error),
            metric=None if self.metric is None else times_power(self.metric, p - q),
            claimed=None if self.claimed is None else in_power(self.claimed, -p - q),
        )

    def with_output(self, rows: Tensor, rows_error: Tensor | None = None) -> LipschitzSystem:
        """The map followed by the matrix ``rows``, (k, out), each entry wrong by up to ``rows_error``."""
        C, C_error = product(rows, rows_error, self.C, self.errors[1])
        D, D_error = product(rows, rows_error, self.D, self.errors[2])
        return replace(self, C=C, D=D, errors=(self.errors[0], C_error, D_error), claimed=None)

    def with_input(self, columns: Tensor, columns_error: Tensor | None = None) -> LipschitzSystem:
        """The map preceded by the matrix ``columns``, (in, k), each entry wrong by up to ``columns_error``."""
        error = None if columns_error is None else columns_error.mT
        U, U_error = product(columns.mT, error, self.U.mT, self.errors[0].mT)
        D, D_error = product(columns.mT, error, self.D.mT, self.errors[2].mT)
        return replace(self, U=U.mT, D=D.mT, errors=(U_error.mT, self.errors[1], D_error.mT), claimed=None)

    def without(self, held: Tensor) -> LipschitzSystem:
        """The same map, without neurons whose states never move, (n,) bool."""
        free = ~held
        U_error, C_error, D_error = self.errors
        return replace(
            self,
            W=self.W[free][:, free],
            U=self.U[free],
            C=self.C[:, free],
            errors=(U_error[free], C_error[:, free], D_error),
            metric=None if self.metric is None else self.metric[free],
            state_error=None if self.state_error is None else self.state_error[free][:, free],
        )

    def difference(self, i: int, j: int) -> LipschitzSystem:
        """The map x ↦ yᵢ − yⱼ; a difference rounds once, and not at all where it is zero."""
        C, D = (matrix[i : i + 1] - matrix[j : j + 1] for matrix in (self.C, self.D))
        C_error, D_error = (
            UNIT * matrix.abs() + (1 + UNIT) * (error[i : i + 1] + error[j : j + 1])
            for matrix, error in ((C, self.errors[1]), (D, self.errors[2]))
        )
        return replace(self, C=C, D=D, errors=(self.errors[0], C_error, D_error), claimed=None)


def lipschitz_system(
    model: Model,
    *,
    preceding: Tensor | nn.Linear | None = None,
    following: Tensor | nn.Linear | None = None,
    activation: Activation | None = None,
) -> LipschitzSystem:
    """The matrices of ``following ∘ model ∘ preceding``, without the neurons that the activation holds.

    A neuron of slope zero, such as one on the border of an image, adds a constant to the others and to y.

    Args:
        model: a layer, explicit weights, or an nn.Sequential of linear modules (nn.Linear, batch normalisation and
            dropout in evaluation mode, reshaping) around one layer.
        preceding: linear map applied to the input first, (in, k) or nn.Linear(k, in); its bias does not matter.
        following: linear map applied to the output, (m, out) or nn.Linear(out, m).
        activation: σ of explicit weights; None assumes slopes in [0, 1]. A layer knows its own.

    Raises:
        InputError: if a map does not fit, or an entry is not finite.
    """
    system = system_of_all(model, preceding=preceding, following=following, activation=activation)
    _, core, _ = parts(model)
    held, slopes = moving(core, activation)
    return replace(system.without(held), slopes=slopes)


def system_of_all(
    model: Model,
    *,
    preceding: Tensor | nn.Linear | None = None,
    following: Tensor | nn.Linear | None = None,
    activation: Activation | None = None,
) -> LipschitzSystem:
    """``lipschitz_system`` with a row of W for every neuron, also for those that the activation holds."""
    before, core, after = parts(model)
    slopes = UNIT_SLOPES if (known := activation_of(core, activation)) is None else known.slopes
    with torch.no_grad():
        weights = core.weights() if isinstance(core, EquilibriumLayer) else core
    (W, W_error), (U, U_error), (C, C_error), D = _matrices(weights)
    system = LipschitzSystem(
        W=checks.finite("W", W),
        U=checks.finite("U", U),
        C=checks.finite("W_o", C),
        D=checks.finite("D", D),
        slopes=slopes,
        errors=(U_error, C_error, torch.zeros_like(D)),
        state_error=W_error if bool(W_error.any()) else None,
        metric=None if weights.metric is None else as_double(weights.metric.weights),
        claimed=None if weights.lipschitz is None else float(torch.as_tensor(weights.lipschitz).detach()),
    )
    for module in reversed(before):
        if (linear := matrix_of(module, system.U.shape[1])) is not None:
            system = _preceded(f"the weight of {type(module).__name__}", system, linear)
    for module in after:
        if (linear := matrix_of(module, system.C.shape[0])) is not None:
            system = _followed(f"the weight of {type(module).__name__}", system, linear)
    if following is not None:
        system = _followed("following", system, linear_map("following", following))
    if preceding is not None:
        system = _preceded("preceding", system, linear_map("preceding", preceding))
    return system


@torch.no_grad()
def _matrices(weights: NetworkWeights) -> tuple[Known, Known, Known, Tensor]:
    """W, U and C, each with the errors of its entries, and D."""
    if isinstance(weights, ConvolutionalWeights):
        W, U, C = image_matrices(weights.double())
        return W, U, C, torch.zeros(len(C[0]), U[0].shape[1], dtype=torch.float64)
    dense = weights.dense()
    exact = (as_double(matrix) for matrix in (dense.state.to_dense(), dense.input, dense.output))
    W, U, C = ((matrix, torch.zeros_like(matrix)) for matrix in exact)
    D = torch.zeros(len(C[0]), U[0].shape[1], dtype=torch.float64)
    return W, U, C, D if dense.feedthrough is None else as_double(dense.feedthrough)


def activation_of(core: Core, activation: Activation | None) -> Activation | None:
    """σ of a layer, or what is given for explicit weights.

    Raises:
        InputError: if one is given for a layer.
    """
    if not isinstance(core, EquilibriumLayer):
        return activation
    if activation is not None:
        raise InputError("activation must be left out for a layer, which has its own")
    return core.activation


def moving(core: Core, activation: Activation | None) -> tuple[Tensor, Slopes]:
    """Which neurons are held because their slope is zero, (n,) bool, and an interval with the slopes of the others."""
    known = activation_of(core, activation)
    if known is None:
        return torch.zeros(core.hidden_features, dtype=torch.bool), UNIT_SLOPES
    low, high = (end.to("cpu", torch.float64) for end in known.slope_intervals(core.hidden_features))
    held = (low == 0) & (high == 0)
    if bool(held.all()):
        return ~held, Slopes(0.0, 0.0)  # a map needs a neuron, and slopes of zero say that it is constant
    return held, Slopes(float(low[~held].min()), float(high[~held].max()))


def _followed(name: str, system: LipschitzSystem, linear: tuple[Tensor, Tensor]) -> LipschitzSystem:
    checks.last_size(name, checks.finite(name, linear[0]), system.C.shape[0])
    return system.with_output(*linear)


def _preceded(name: str, system: LipschitzSystem, linear: tuple[Tensor, Tensor]) -> LipschitzSystem:
    checks.shape(name, checks.finite(name, linear[0]), (system.U.shape[1], linear[0].shape[1]))
    return system.with_input(*linear)


def as_double(tensor: Tensor) -> Tensor:
    """The same numbers in float64 on the CPU, without history."""
    return tensor.detach().to("cpu", torch.float64)


def linear_map(name: str, value: Any) -> tuple[Tensor, Tensor]:
    """A matrix or the weight of an nn.Linear, float64, and its errors: none.

    Raises:
        InputError: if it is something else, or an entry is not finite.
    """
    matrix = value.weight if isinstance(value, nn.Linear) else checks.floating_tensor(name, value)
    if matrix.ndim != 2:
        raise InputError(f"{name} must be a matrix or an nn.Linear, got shape {tuple(matrix.shape)}")
    matrix = checks.finite(name, as_double(matrix))
    return matrix, torch.zeros_like(matrix)


def product(
    left: Tensor, left_error: Tensor | None, right: Tensor, right_error: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A product of two matrices known up to errors, and an entrywise bound of what it is wrong by."""
    inner = 1.01 * (left.shape[1] + 2) * UNIT
    wrong = torch.zeros_like(right) if right_error is None else right_error
    error = left.abs() @ (inner * right.abs() + (1 + inner) * wrong)
    if left_error is not None:
        error = error + (1 + inner) * (left_error @ (right.abs() + wrong))
    return left @ right, error


def fingerprint(*parts: object) -> str:
    """A hash of what is given, of tensors by their values and shapes: equal values in another dtype are equal."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(repr(tuple(part.shape)).encode())
            digest.update((as_double(part) + 0.0).contiguous().numpy().tobytes())  # −0 becomes 0
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def _exponent(matrix: Tensor) -> int | None:
    """e with 2ᵉ⁻¹ ≤ largest entry < 2ᵉ; None if there is none but zeros."""
    largest = float(matrix.max()) if matrix.numel() else 0.0
    return math.frexp(largest)[1] if largest > 0 else None


def times_power(matrix: Tensor, exponent: int) -> Tensor:
    """M·2ᵉ, exact but where it underflows, for exponents that 2ᵉ itself has no number for."""
    while exponent:
        step = max(-1000, min(1000, exponent))
        matrix, exponent = matrix * 2.0**step, exponent - step
    return matrix


def in_power(value: float, exponent: int) -> float:
    """value·2ᵉ ≥ 0, not rounded down: the next larger number where it underflows, infinite where it overflows."""
    scaled = float(times_power(torch.tensor(value, dtype=torch.float64), exponent))
    return math.nextafter(scaled, math.inf) if 0 < value and scaled < torch.finfo(torch.float64).tiny else scaled
