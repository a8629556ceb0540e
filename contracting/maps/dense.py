"""A dense weight as a linear map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError, PreconditionError
from contracting.maps.base import LinearMap
from contracting.maps.counting import report
from contracting.maps.estimates import Estimates, balanced, estimate
from contracting.metrics import Metric
from contracting.types import Step

# Rows up to which numpy takes the steps: a call of it takes a third of the time of torch's, and its products of so few
# rows 0.5 to 0.9 of torch's (measured in float32 and float64 for n = 10 to 500 on an AMD processor).
_FEW = 16


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

    # Of the one tensor, as the base class has them of any number; both are asked for ten times in a solve.
    @property
    def _in_graph(self) -> bool:
        return self.weight.requires_grad and not (self._transposed_from or self)._momentary

    @property
    def watched(self) -> tuple[Tensor, ...]:
        return (self.weight,) if self._transposed_from is None else self._transposed_from.watched

    def apply(self, z: Tensor) -> Tensor:
        return z @ self.weight.mT

    def affine(self, z: Tensor, offset: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.addmm(offset, z, self.weight.mT, out=out) if z.ndim == 2 else self.apply(z) + offset

    def iterated(self, h: Callable[..., Tensor], offset: Tensor, u: Tensor, steps: int) -> Tensor:
        count = u.shape[0]  # len() would set the number of rows in an export
        report(steps * count)
        if not torch.compiler.is_compiling() and u.device.type == "cpu" and count <= _FEW:
            return _iterated_on_host(self.weight.mT, h, offset, u, steps)
        between, out, transposed, product = torch.empty_like(u), None, self.weight.mT, torch.addmm
        for _ in range(steps):
            h(u, out=between)
            u = out = product(offset, between, transposed, out=out)
        return u

    def combined(self, scale: float, shift: float) -> Dense:
        matrix = scale * self.weight
        return Dense(matrix + shift * torch.eye(self.size, dtype=matrix.dtype, device=matrix.device))

    def make_adjoint(self) -> Dense:
        return Dense(self.weight.mT)

    def reflection(self, step: Step) -> LinearMap:
        owner = self._transposed_from
        if owner is None or self._in_graph:
            return super().reflection(step)

        def transposed() -> Dense:
            matrix = owner.reflection(step).to_dense()
            if isinstance(step, Tensor) and step.ndim:  # (I + DAᵀ)⁻¹ is D times the transpose of (I + DA)⁻¹ times D⁻¹
                matrix = matrix * step / step[:, None]
            return Dense(matrix.contiguous().mT)  # a copy in the layout that products with rows read fastest

        return owner.remember("adjoint reflection", step, transposed)

    def make_reflection(self, step: Step) -> LinearMap:
        return super().make_reflection(step) if self._in_graph else Dense(_reflected_inverse(self.weight, step))

    def pullback(self, z: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        return (cotangent.mT @ z,)

    def make_estimates(self, metric: Metric) -> Estimates | None:
        blocks, single = self.blocks(metric), self.dtype == torch.float32
        found = estimate(blocks, single=single)
        return None if found is None else balanced(found, blocks[0], single=single, like=self.weight.detach())

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


def _iterated_on_host(
    transposed: Tensor, h: Callable[..., Tensor], offset: Tensor, u: Tensor, steps: int
) -> Tensor:
    """``iterated`` for few rows, by numpy on the memory of the tensors."""
    if not steps:
        return u
    matrix, shift, add = transposed.numpy(), offset.numpy(), np.add
    mapped, reflected = np.empty_like(shift), np.empty_like(shift)
    dot = reflected.dot  # the method takes a fifth less time than np.dot, which looks for overloads
    result = torch.from_numpy(mapped)
    with np.errstate(all="ignore"):  # of rows that blow up, which the loop finds out
        if h is torch.abs:  # as ReLU's reflection is
            size = np.abs
            size(u.numpy(), reflected)
            dot(matrix, mapped)
            add(mapped, shift, mapped)
            for _ in range(steps - 1):
                size(mapped, reflected)
                dot(matrix, mapped)
                add(mapped, shift, mapped)
            return result
        between = torch.from_numpy(reflected)
        for step in range(steps):
            h(result if step else u, out=between)
            dot(matrix, mapped)
            add(mapped, shift, mapped)
    return result


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

