"""A contracting neural ODE: what holds for every value of the parameters, seen in trajectories and in the matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracting import AdaptiveStep, ContractingODE, FixedStep, ReLU

DOUBLE = torch.float64
TIMES = torch.linspace(0, 2, 9, dtype=DOUBLE)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def made(*sizes: int | None, seed: int = 0, scale: float | None = None, **options: object) -> ContractingODE:
    """A module with the parameters it starts with, or with others of a scale."""
    torch.manual_seed(seed)
    options = {"dtype": DOUBLE, "activation": ReLU(), "integrator": FixedStep(step=0.05), **options}
    layer = ContractingODE(*sizes, **options)  # type: ignore[arg-type]
    if scale is not None:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(scale * torch.randn_like(parameter))
            layer.parameterization.log_multiplier.clamp_(-3, 3)
    return layer


@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3, 2.0])
def test_trajectories_approach_at_the_promised_rate(feedback: bool, scale: float | None) -> None:
    rate = 0.4
    layer = made(2, 3, 6, 2, contraction_rate=rate, feedback=feedback, scale=scale)
    metric = layer.weights().metric
    assert metric is not None
    one, other, u = drawn(4, 3, seed=1), drawn(4, 3, seed=2), drawn(9, 4, 2, seed=3)
    layer.integrator = AdaptiveStep(rtol=1e-7)  # as some of the random systems are stiff
    times = TIMES / 10
    with torch.no_grad():
        gap = metric.norm(layer.response(one, times, u).states - layer.response(other, times, u).states)
    bound = (-rate * times).exp()[:, None] * gap[0]
    assert bool((gap <= bound * (1 + 1e-5) + 1e-6).all())


def test_it_rests_where_it_is_told_to() -> None:
    goal = drawn(2, seed=4)
    layer = made(1, 2, 8, None, contraction_rate=1.0, rest=goal)
    y = layer(10 * drawn(5, 2), torch.tensor([0.0, 25.0], dtype=DOUBLE))
    assert torch.allclose(y[-1], goal.expand(5, 2), atol=1e-7)
    assert not torch.allclose(layer(None, TIMES, torch.ones(1, dtype=DOUBLE))[-1, 0], goal, atol=1e-3)
