"""A dense weight as a linear map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError, PreconditionError
from contracting.maps.base import LinearMap
from contracting.types import Step


@dataclass(frozen=True, eq=False, repr=False)
class Dense(LinearMap):
    """A dense weight W.

    Args:
        weight: W, shape (n, n), finite.

    Raises:
        InputError: if W is not a finite square floating-point matrix.
    """

    weight: Tensor

    def __post_init__(self) -> None:
        W = checks.floating_tensor("weight", self.weight)
        if W.ndim != 2 or W.shape[0] != W.shape[1]:
            raise InputError(f"weight must have shape (n, n), got {tuple(W.shape)}")

    @property
    def size(self) -> int:
        return self.weight.shape[0]

    @property
    def has_matrix(self) -> bool:
        return True

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Dense:
        (weight,) = tensors
        return Dense(weight)

    def apply(self, z: Tensor) -> Tensor:
        return z @ self.weight.mT

    def affine(self, z: Tensor, offset: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.addmm(offset, z, self.weight.mT, out=out) if z.ndim == 2 else self.apply(z) + offset

    def steps_with(self, offset: Tensor) -> Callable[[Tensor, Tensor | None], Tensor]:
        transposed, product = self.weight.mT, torch.addmm
        return lambda z, out: product(offset, z, transposed, out=out)

    def combined(self, scale: float, shift: float) -> Dense:
        matrix = scale * self.weight
        return Dense(matrix + shift * torch.eye(self.size, dtype=matrix.dtype, device=matrix.device))

    def make_adjoint(self) -> Dense:
        return Dense(self.weight.mT)

    def reflection(self, step: Step) -> LinearMap:
        owner = self._transposed_from
        if owner is None or isinstance(step, Tensor) or self._in_graph:
            return super().reflection(step)
        # a copy in the layout that products with rows read fastest
        return owner.remember(
            "adjoint reflection", step, lambda: Dense(owner.reflection(step).to_dense().contiguous().mT)
        )

    def make_reflection(self, step: Step) -> LinearMap:
        return super().make_reflection(step) if self._in_graph else Dense(_reflected_inverse(self.weight, step))

    def pullback(self, z: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        return (cotangent.mT @ z,)

    @property
    def resolvent_products(self) -> float:
        """n, of 2n² operations each."""
        return self.size

    def make_resolvent(self, step: Step) -> Dense:
        return Dense(_inverse(self.weight, step))

    def to_dense(self) -> Tensor:
        return self.weight

    @property
    def norm_bound(self) -> float:
        """‖W‖_F."""
        values = self.untransposed

        def compute() -> float:
            (weight,) = values.tensors()
            return float(torch.linalg.vector_norm(weight.detach()))

        return values.remember("norm bound", None, compute)


def _inverse(W: Tensor, step: Step) -> Tensor:
    """(I + α(I − W))⁻¹, differentiable."""
    inverse, info = torch.linalg.inv_ex(_shifted(W, step))
    _refuse_singular(info, step)
    return inverse


def _reflected_inverse(W: Tensor, step: Step) -> Tensor:
    """2(I + α(I − W))⁻¹ − I, laid out so that its transpose, which products with rows read, is contiguous."""
    factor, pivots, info = torch.linalg.lu_factor_ex(_shifted(W, step))
    _refuse_singular(info, step)
    twice = torch.diag(W.new_full((len(W),), 2.0))
    reflected = torch.linalg.lu_solve(factor, pivots, twice, left=False)  # from the right takes less time
    reflected.diagonal().sub_(1)
    return reflected.mT.contiguous().mT


def _shifted(W: Tensor, step: Step) -> Tensor:
    scale = step[:, None] if isinstance(step, Tensor) and step.ndim else step
    shifted = -scale * W
    shifted.diagonal().add_(1 + step)
    return shifted


def _refuse_singular(info: Tensor, step: Step) -> None:
    if bool((info != 0).any()):
        raise PreconditionError(f"I + step·(I − W) is singular for step = {step}: I − W is not monotone")

