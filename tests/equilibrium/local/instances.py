"""Small random networks with equilibria, for what is proved around an input."""

from __future__ import annotations

import torch

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
