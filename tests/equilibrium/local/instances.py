"""Networks and ascents that the tests of local constants share."""

from __future__ import annotations

import torch
from torch import nn

from equilibrium import LBEN
from equilibrium.layers import EquilibriumLayer as Layer

F64 = torch.float64


def random_layer(seed: int, inputs: int = 4, neurons: int = 6, outputs: int = 3, scale: float = 1.0) -> Layer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = LBEN(inputs, neurons, outputs, epsilon=0.3, dtype=F64)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(scale * torch.randn_like(parameter) / max(1, parameter.shape[-1]) ** 0.5)
    return layer


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def largest_drops(
    layer: nn.Module, x: torch.Tensor, radius: float, bounds: tuple[float, float] | None, c: torch.Tensor
) -> torch.Tensor:
    """The largest drop that samples and a projected ascent reach, (k,), for one anchor (1, in)."""
    start = torch.nn.functional.normalize(drawn(5, 30, x.shape[1]), dim=-1) * radius

    def project(move: torch.Tensor) -> torch.Tensor:
        if bounds is not None:
            move = (x + move).clamp(*bounds) - x
        return move * (radius / move.norm(dim=-1, keepdim=True).clamp_min(1e-300)).clamp_max(1)

    rows, here = c.repeat_interleave(len(start), 0), layer(x).detach()
    move, best = project(start.repeat(len(c), 1)).requires_grad_(), torch.full((len(rows),), -torch.inf, dtype=F64)
    for _ in range(10):
        value = ((layer(x + move) - here) * rows).sum(-1)
        best = torch.maximum(best, value.detach())
        (gradient,) = torch.autograd.grad(value.sum(), move)
        step = torch.nn.functional.normalize(gradient, dim=-1) * radius
        move = project((0.5 * move + step).detach()).requires_grad_()
    return best.reshape(len(c), -1).amax(-1)
