"""Networks and moving inputs to track, and their exact equilibria."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from contracting import Activation, Dense, EquilibriumProblem, Stop, solve
from equilibrium import LBEN, EquilibriumLayer, SemismoothNewton, explicit_weights, from_weights

F64 = torch.float64


def layer_of(seed: int = 0, *, hidden: int = 12, dtype: torch.dtype = F64, **options: Any) -> LBEN:
    """An LBEN with six inputs and weights that are skewed and of different sizes."""
    torch.manual_seed(seed)
    layer = LBEN(6, hidden, 3, epsilon=0.3, dtype=dtype, **options)
    with torch.no_grad():
        layer.parameterization.psi.normal_(std=0.3)
        layer.parameterization.S.mul_(3)
        layer.parameterization.bias.normal_()
    return layer.requires_grad_(False)


def known_layer(activation: Activation) -> EquilibriumLayer:
    """Where σ is the identity, z = x/a with a = (1, 9): ρ = ½ at α = ⅓, and u* moves as far as the first of x does."""
    W = torch.diag(1 - torch.tensor([1.0, 9.0], dtype=F64))
    identity, ones = torch.eye(2, dtype=F64), torch.ones(2, dtype=F64)
    return from_weights(explicit_weights(W, identity, identity, metric=ones), activation=activation)


def walk(frames: int, streams: int, *, stride: float, seed: int = 1, jump: int | None = None) -> Iterator[Tensor]:
    """Inputs of six entries on winding paths, which now and then are elsewhere at once: (streams, 6) each."""
    generator = torch.Generator().manual_seed(seed)
    x, way = torch.randn(2, streams, 6, dtype=F64, generator=generator)
    for frame in range(frames):
        yield x
        way = 0.9 * way + 0.4 * torch.randn(streams, 6, dtype=F64, generator=generator)
        far = jump is not None and frame % jump == jump - 1
        x = x + (3.0 if far else stride) * way / way.norm(dim=-1, keepdim=True)


def exact(layer: EquilibriumLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """z and y of the weights as they are, in float64 from the first product on."""
    weights, x = layer.weights().dense(), x.double().flatten(0, -1 - len(layer.input_shapes[0])).flatten(1)
    assert weights.metric is not None
    problem = EquilibriumProblem(
        linear=Dense(weights.state.to_dense().double()),
        q=torch.nn.functional.linear(x, weights.input.double(), weights.bias.double()),
        activation=layer.activation,
        metric=weights.metric.to(x),
    )
    z = solve(problem, SemismoothNewton(), stop=Stop(rtol=1e-13, atol=1e-14)).z
    y = torch.nn.functional.linear(z, weights.output.double(), weights.output_bias.double())
    return z, y if weights.feedthrough is None else y + x @ weights.feedthrough.double().mT


def distances(layer: EquilibriumLayer, x: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """‖z − z*‖ in the metric and ‖y − y*‖₂, (streams,) each."""
    weights = layer.weights().dense()
    true_z, true_y = exact(layer, x)
    assert weights.metric is not None
    root = weights.metric.weights.double().sqrt()
    return ((z.double() - true_z) * root).norm(dim=-1), (y.double() - true_y).norm(dim=-1)
