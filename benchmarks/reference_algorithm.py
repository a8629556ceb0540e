"""The algorithm of the reference code of arXiv 2006.08591 and arXiv 2010.01732, written again for comparison.

Peaceman–Rachford splitting for z = ReLU(Wz + q) with one scalar step α, found by trial halving, which stops when the
whole batch's step ‖z⁺ − z‖/(1e-6 + ‖z⁺‖) is small. The backward pass is the same iteration on the adjoint equation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

MOST_ITERATIONS = 5_000  # A setting that needs more is given up.
_SMALLEST_STEP = 1e-4  # The step α is halved no further.
_TIGHTEST = 1e-6  # The tightest tolerance of the step that is tried, in units of the target residual.


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the reference algorithm is run with; ``iterations`` is what that took where it was found.

    ``applied``: whether the map is applied once more at the end, as the reference does, which multiplies the residual
    by up to ‖W‖; the oracle may leave it out.
    """

    alpha: float
    tolerance: float
    iterations: int
    applied: bool = True


def inverse(W: Tensor, alpha: float) -> Tensor:
    """((1 + α)I − αW)⁻¹."""
    return torch.linalg.inv((1 + alpha) * torch.eye(len(W), dtype=W.dtype) - alpha * W)


@torch.no_grad()
def equilibrium(
    W: Tensor, q: Tensor, resolvent: Tensor, setting: Setting, *, most: int = MOST_ITERATIONS
) -> tuple[Tensor, int]:
    """z and the number of iterations."""
    z, iterations = _fixed_point(q, resolvent, setting, most)
    return torch.relu(z @ W.mT + q) if setting.applied else z, iterations


def _fixed_point(q: Tensor, resolvent: Tensor, setting: Setting, most: int) -> tuple[Tensor, int]:
    iterates = _iterates(q, resolvent, setting.alpha)
    z, error, iterations = torch.zeros_like(q), 1.0, 0
    while error > setting.tolerance and iterations < most:
        z, error = next(iterates)
        iterations += 1
    return z, iterations


def _iterates(q: Tensor, resolvent: Tensor, alpha: float) -> Iterator[tuple[Tensor, float]]:
    """z and its step norm after each iteration."""
    z, u = torch.zeros_like(q), torch.zeros_like(q)
    while True:
        half = 2 * z - u
        inner = (half + alpha * q) @ resolvent.mT
        u = 2 * inner - half
        new = torch.relu(u)
        step, z = _step_norm(new, z), new
        yield z, step


def _step_norm(new: Tensor, old: Tensor) -> float:
    return (new - old).norm().item() / (1e-6 + new.norm().item())


def halved(W: Tensor, q: Tensor, tolerance: float, *, start: float = 1.0) -> Setting:
    """The step by trial halving: from ``start``, halved for as long as the number of iterations does not grow."""

    def tried(alpha: float) -> Setting:
        setting = Setting(alpha=alpha, tolerance=tolerance, iterations=0)
        return replace(setting, iterations=equilibrium(W, q, inverse(W, alpha), setting)[1])

    best = tried(start)
    while best.alpha > _SMALLEST_STEP:
        following = tried(best.alpha / 2)
        if following.iterations > best.iterations:
            break
        best = following
    return best


@torch.no_grad()
def best_step(W: Tensor, q: Tensor, target: float, alphas: list[float]) -> Setting | None:
    """The step of the fewest iterations, each with the largest power of ten below ``target`` that reaches it.

    That is the algorithm as its user would run it, if the best step were known. None where none reaches the target.
    """
    return _best(_tightened, W, q, target, alphas)


@torch.no_grad()
def oracle(W: Tensor, q: Tensor, target: float, alphas: list[float]) -> Setting | None:
    """The cheapest step, stopping tolerance and ending with which every row reaches the true residual ``target``.

    No user of the reference algorithm can know them beforehand. None where no step of the list reaches the target.
    """
    return _best(_cheapest, W, q, target, alphas)


Search = Callable[[Tensor, Tensor, float, float, int], Setting | None]


def _best(search: Search, W: Tensor, q: Tensor, target: float, alphas: list[float]) -> Setting | None:
    best: Setting | None = None
    for alpha in alphas:
        best = search(W, q, target, alpha, MOST_ITERATIONS if best is None else best.iterations - 1) or best
    return best


def _tightened(W: Tensor, q: Tensor, target: float, alpha: float, most: int) -> Setting | None:
    tolerance = target
    for iteration, (z, step) in enumerate(itertools.islice(_iterates(q, inverse(W, alpha), alpha), most), 1):
        while step <= tolerance:
            answer = torch.relu(z @ W.mT + q)
            if _solved(answer, torch.relu(answer @ W.mT + q), target):
                return Setting(alpha=alpha, tolerance=tolerance, iterations=iteration)
            tolerance /= 10
            if tolerance < _TIGHTEST * target:
                return None
    return None


def _cheapest(W: Tensor, q: Tensor, target: float, alpha: float, most: int) -> Setting | None:
    lowest = float("inf")
    solved = applied = False
    for iteration, (z, step) in enumerate(itertools.islice(_iterates(q, inverse(W, alpha), alpha), most), 1):
        # a tolerance stops the iteration where the step norm first gets that low
        first = step < lowest
        lowest = min(lowest, step)
        if not solved:
            answer = torch.relu(z @ W.mT + q)
            applied = not _solved(z, answer, target)
            solved = not applied or _solved(answer, torch.relu(answer @ W.mT + q), target)
        if solved and first:
            return Setting(alpha=alpha, tolerance=step, iterations=iteration, applied=applied)
        if step == 0:
            return None
    return None


def _solved(z: Tensor, image: Tensor, target: float) -> bool:
    residual = torch.linalg.vector_norm(z - image, dim=-1)
    return bool((residual <= target * torch.linalg.vector_norm(image, dim=-1)).all())


class ReferenceLayer(nn.Module):
    """A dense layer trained as the reference code does: W made explicit, α and the tolerances set from outside.

    Args:
        parameterization: as for ``equilibrium.EquilibriumLayer``, with dense weights; the activation is ReLU.
        forward: α, and the stopping tolerance of the forward iteration.
        backward_tolerance: that of the backward iteration; α is shared, as in the reference.
    """

    def __init__(self, parameterization: Any, forward: Setting, backward_tolerance: float):
        super().__init__()
        self.parameterization = parameterization
        self.setting, self.backward_tolerance = forward, backward_tolerance
        self.iterations = self.backward_iterations = 0

    def forward(self, x: Tensor) -> Tensor:
        weights = self.parameterization.explicit()
        W = weights.state.to_dense()
        q = nn.functional.linear(x, weights.input, weights.bias)
        with torch.no_grad():
            resolvent = inverse(W, self.setting.alpha)
            z, self.iterations = _fixed_point(q, resolvent, self.setting, MOST_ITERATIONS)
        z = torch.relu(nn.functional.linear(z, W) + q)
        z = _Adjoint.apply(z, W.detach(), resolvent, self)
        return weights.readout(z, x)


class _Adjoint(torch.autograd.Function):
    """z ↦ z, whose cotangent g becomes g + Wᵀw with w = J(Wᵀw + g), by Peaceman–Rachford with d = (1 − j)/j."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, W: Tensor, resolvent: Tensor, layer: ReferenceLayer) -> Tensor:
        ctx.save_for_backward(z, W, resolvent)
        ctx.layer = layer
        return z.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, W, resolvent = ctx.saved_tensors
        layer: ReferenceLayer = ctx.layer
        setting = replace(layer.setting, tolerance=layer.backward_tolerance)
        w, layer.backward_iterations = adjoint(g, (z > 0).to(z.dtype), resolvent, setting)
        return g + w @ W, None, None, None


def adjoint(
    g: Tensor, slopes: Tensor, resolvent: Tensor, setting: Setting, *, most: int = MOST_ITERATIONS
) -> tuple[Tensor, int]:
    """w with w = J(Wᵀw + g), and the number of iterations."""
    inactive = slopes == 0
    d = (1 - slopes) / slopes
    v = slopes * g
    z, u = torch.zeros_like(g), torch.zeros_like(g)
    error, iterations = 1.0, 0
    while error > setting.tolerance and iterations < most:
        half = 2 * z - u
        inner = half @ resolvent
        u = 2 * inner - half
        new = (u + setting.alpha * (1 + d) * v) / (1 + setting.alpha * d)
        new[inactive] = v[inactive]
        error = _step_norm(new, z)
        z = new
        iterations += 1
    return z, iterations
