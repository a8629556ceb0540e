"""A network at explicit inputs: its matrices in float64, and the equilibria that local statements are anchored at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.activations.base import Activation
from contracting.errors import InputError, PreconditionError
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz.composite import parts
from equilibrium.lipschitz.system import LipschitzSystem, system_of_all
from equilibrium.local.coupled import CoupledNetwork, Enclosure
from equilibrium.local.relaxation import Matrices
from equilibrium.local.surroundings import Rows, Surroundings

_LARGEST = 1500  # neurons; every row takes matrices of this size, at 1,500 a quarter of a second for each factorisation


@dataclass(frozen=True, kw_only=True, eq=False)
class Anchors:
    """What is known of the network at each input x₀.

    Attributes:
        state: z, (batch, n).
        inner: v = Wz + Ux + b, (batch, n).
        inner_error: how far each entry can be from the exact one, (batch, n).
        outputs: y, (batch, out).
        output_error: ‖z − z*‖_Λ, of which ``reach`` makes errors of outputs, (batch,).
    """

    state: Tensor
    inner: Tensor
    inner_error: Tensor
    outputs: Tensor
    output_error: Tensor

    def rows(self, index: Rows) -> Self:
        """Those of some rows."""
        return type(self)(**{name: part[index] for name, part in vars(self).items()})


class LocalNetwork:
    """Explicit matrices of a model, and its equilibria.

    Args:
        model: an equilibrium layer, float64, or an nn.Sequential of linear modules around one.

    Raises:
        InputError: on another model, another dtype, or one with too many neurons.
        PreconditionError: if no metric is claimed for it in which its equilibria are certified.
    """

    def __init__(self, model: EquilibriumLayer | nn.Sequential):
        self.before, layer, self.after = parts(model)
        if not isinstance(layer, EquilibriumLayer):
            raise InputError(f"model must be an EquilibriumLayer or contain one, got {type(layer).__name__}")
        self.layer = layer
        weights = layer.weights()
        if weights.state.size > _LARGEST:
            raise InputError(
                f"model has {weights.state.size} neurons, local constants take at most {_LARGEST}; "
                "certified_lipschitz(model) serves larger ones, with one constant for all inputs"
            )
        if weights.metric is None:
            raise PreconditionError(
                "nothing is certified without Condition 1, and no metric is claimed for this model: "
                "from_weights(explicit_weights(W, …, metric=find_metric(W).metric.weights)) claims one, where there is"
            )
        self.system: LipschitzSystem = system_of_all(model)
        self.metric = weights.metric.weights.detach().to("cpu", torch.float64)

    @property
    def activation(self) -> Activation:
        """σ."""
        return self.layer.activation

    @property
    def size(self) -> int:
        """n."""
        return self.system.size

    @property
    def outputs(self) -> int:
        """Entries of y."""
        return len(self.system.C)

    @cached_property
    def matrices(self) -> Matrices:
        """W, and U = FR with orthonormal rows of R: no more of them than neurons that see the input."""
        fed = self.system.U.any(-1)
        fed[0] |= ~fed.any()
        Q, triangle = torch.linalg.qr(self.system.U[fed].mT)
        F = self.system.U.new_zeros(self.size, len(triangle))
        F[fed] = triangle.mT
        return Matrices(self.system.W, F, Q.mT.contiguous())

    @cached_property
    def feedthrough(self) -> Tensor | None:
        """D, (out, in), or None for zero."""
        return self.system.D if bool(self.system.D.any()) else None

    @cached_property
    def coupled(self) -> CoupledNetwork | None:
        """The coupled system for boxes of inputs, or None where it is not well-posed."""
        zero = torch.zeros(1, self.system.U.shape[1], dtype=torch.float64)
        with torch.no_grad():
            inside = nn.Sequential(*self.before)(zero)
            q = self.layer.weights().problem(inside, self.activation).q
        return CoupledNetwork.of(self.system.W, self.system.U, q[0], self.activation)

    @torch.no_grad()
    def anchors(self, x: Tensor) -> Anchors:
        """The network at inputs, (batch, in).

        Raises:
            InputError: if they are not float64 rows of the right size.
            PreconditionError: if the equilibria of the model are not certified.
            SolveError: if a row does not converge.
        """
        checks.finite("inputs", checks.floating_tensor("inputs", x))
        if x.dtype != torch.float64:
            raise InputError(
                f"inputs must be float64, got {x.dtype}: rounding of the network is not accounted for; take "
                "model.double() and inputs.double()"
            )
        inside = nn.Sequential(*self.before)(x)
        solution = self.layer.solve(inside)
        error = solution.error_bound
        if error is None:
            raise PreconditionError(
                "Condition 1 does not hold for the metric of this model, so its equilibria are not certified: "
                "find_metric(W) may know a better one"
            )
        weights = self.layer.weights()
        outputs = nn.Sequential(*self.after)(weights.readout(solution.z, inside))
        inner = weights.problem(inside, self.activation).preactivation(solution.z).reshape(len(x), -1)
        reach = torch.linalg.vector_norm(self.system.W / self.metric.sqrt(), dim=-1)
        return Anchors(
            state=solution.z.reshape(len(x), -1),
            inner=inner,
            inner_error=error.reshape(-1, 1) * reach,
            outputs=outputs.reshape(len(x), -1),
            output_error=error.reshape(-1),
        )

    def enclosure(self, x: Tensor, around: Surroundings) -> Enclosure | None:
        """Boxes of the equilibria all over surroundings that are cut, where the coupled system is well-posed."""
        if around.low is None or around.high is None or self.coupled is None:
            return None
        return self.coupled.enclosure(x + around.low, x + around.high)

    def reach(self, rows: Tensor) -> Tensor:
        """How far an error of 1 in ‖z‖_Λ moves the linear functions ``rows`` of y, (..., out) -> (...)."""
        return torch.linalg.vector_norm((rows @ self.system.C) / self.metric.sqrt(), dim=-1)
