r"""The matrices a Lipschitz bound is about: Δz = J(WΔz + UΔx), Δy = CΔz + DΔx, slopes J in [a, b], in float64.

Whatever is computed from a network before it gets here (its weights in float32, say) is converted exactly; the products
with preceding and following linear maps carry a bound of their rounding errors, which the checker takes into account.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.activations.base import Activation
from contracting.certificates.definite import UNIT
from contracting.errors import InputError
from contracting.types import UNIT_SLOPES, Slopes
from equilibrium.layers import EquilibriumLayer
from equilibrium.weights import NetworkWeights

Model = EquilibriumLayer | NetworkWeights


@dataclass(frozen=True, kw_only=True, eq=False)
class LipschitzSystem:
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
    """

    W: Tensor
    U: Tensor
    C: Tensor
    D: Tensor
    slopes: Slopes
    errors: tuple[Tensor, Tensor, Tensor]
    metric: Tensor | None = None
    claimed: float | None = None

    @property
    def size(self) -> int:
        """n."""
        return self.W.shape[0]

    def with_output(self, rows: Tensor) -> LipschitzSystem:
        """The map followed by the matrix ``rows``, (k, out)."""
        C, C_error = _product(rows, self.C, self.errors[1])
        D, D_error = _product(rows, self.D, self.errors[2])
        return replace(self, C=C, D=D, errors=(self.errors[0], C_error, D_error), claimed=None)

    def with_input(self, columns: Tensor) -> LipschitzSystem:
        """The map preceded by the matrix ``columns``, (in, k)."""
        U, U_error = _product_right(self.U, self.errors[0], columns)
        D, D_error = _product_right(self.D, self.errors[2], columns)
        return replace(self, U=U, D=D, errors=(U_error, self.errors[1], D_error), claimed=None)


def lipschitz_system(
    model: Model,
    *,
    preceding: Tensor | nn.Linear | None = None,
    following: Tensor | nn.Linear | None = None,
    activation: Activation | None = None,
) -> LipschitzSystem:
    """The matrices of ``following ∘ model ∘ preceding``.

    Args:
        model: a layer, or explicit weights.
        preceding: linear map applied to the input first, (in, k) or nn.Linear(k, in); its bias does not matter.
        following: linear map applied to the output, (m, out) or nn.Linear(out, m).
        activation: σ of explicit weights; None assumes slopes in [0, 1]. A layer knows its own.

    Raises:
        InputError: if a map does not fit, or an entry is not finite.
    """
    if isinstance(model, EquilibriumLayer):
        if activation is not None:
            raise InputError("activation must be left out for a layer, which has its own")
        with torch.no_grad():
            weights = model.weights().dense()
        slopes = model.activation.slopes
    elif isinstance(model, NetworkWeights):
        weights, slopes = model.dense(), UNIT_SLOPES if activation is None else activation.slopes
    else:
        raise InputError(f"model must be an EquilibriumLayer or Weights, got {type(model).__name__}")
    W = checks.finite("W", as_double(weights.state.to_dense()))
    U, C = checks.finite("U", as_double(weights.input)), checks.finite("W_o", as_double(weights.output))
    D = torch.zeros(C.shape[0], U.shape[1], dtype=torch.float64)
    if weights.feedthrough is not None:
        D = checks.finite("D", as_double(weights.feedthrough))
    system = LipschitzSystem(
        W=W,
        U=U,
        C=C,
        D=D,
        slopes=slopes,
        errors=(torch.zeros_like(U), torch.zeros_like(C), torch.zeros_like(D)),
        metric=None if weights.metric is None else as_double(weights.metric.weights),
        claimed=None if weights.lipschitz is None else float(torch.as_tensor(weights.lipschitz).detach()),
    )
    if following is not None:
        rows = _matrix("following", following)
        checks.last_size("following", rows, system.C.shape[0])
        system = system.with_output(rows)
    if preceding is not None:
        columns = _matrix("preceding", preceding)
        checks.shape("preceding", columns, (system.U.shape[1], columns.shape[1]))
        system = system.with_input(columns)
    return system


def as_double(tensor: Tensor) -> Tensor:
    """The same numbers in float64 on the CPU, without history."""
    return tensor.detach().to("cpu", torch.float64)


def _matrix(name: str, value: Any) -> Tensor:
    matrix = value.weight if isinstance(value, nn.Linear) else checks.floating_tensor(name, value)
    if matrix.ndim != 2:
        raise InputError(f"{name} must be a matrix or an nn.Linear, got shape {tuple(matrix.shape)}")
    return checks.finite(name, as_double(matrix))


def _product(left: Tensor, right: Tensor, right_error: Tensor) -> tuple[Tensor, Tensor]:
    inner = 1.01 * (left.shape[1] + 2) * UNIT
    return left @ right, left.abs() @ (inner * right.abs() + (1 + inner) * right_error)


def _product_right(left: Tensor, left_error: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    product, error = _product(right.mT, left.mT, left_error.mT)
    return product.mT, error.mT
