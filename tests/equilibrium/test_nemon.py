"""The non-Euclidean monotone operator network: its measure, what it reaches, and the monDEQ that it is for the ReLU."""

from __future__ import annotations

import pytest
import torch

from contracting import InputError
from equilibrium import NEMON, EquilibriumLayer, explicit_weights, from_weights
from equilibrium.lipschitz import Norm, certified_lipschitz
from equilibrium.local.coupled import CoupledNetwork

F64 = torch.float64


def drawn(seed: int, scale: float = 1.0, **options: object) -> NEMON:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        free = NEMON(4, 6, 3, dtype=F64, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            for parameter in free.parameters():
                parameter.copy_(scale * torch.randn_like(parameter))
    return free


def comparison(W: torch.Tensor) -> torch.Tensor:
    """⌈W⌉: |W| beside the diagonal, W on it."""
    return W.abs() - torch.diag(W.diagonal().abs()) + torch.diag(W.diagonal())


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("learn_metric", [True, False])
def test_boxes_have_equilibria_for_every_parameter_value(scale: float, learn_metric: bool) -> None:
    for seed in range(5):
        free = drawn(seed, scale, epsilon=0.3, learn_metric=learn_metric)
        weights = free.explicit()
        W = weights.state.to_dense()
        assert torch.linalg.eigvals(comparison(W)).real.max() <= 0.7 + 1e-9
        eta = torch.ones(6, dtype=F64) if free.psi is None else free.psi.exp()
        assert torch.all(comparison(W) @ eta <= 0.7 * eta + 1e-9 * (W.abs() @ eta))
        CoupledNetwork(W, weights.input, weights.bias, EquilibriumLayer(free).activation)  # which refuses others
        assert weights.metric is not None
        bracket = weights.metric.weights[:, None] * (torch.eye(6, dtype=F64) - W)
        unit = torch.diag(weights.metric.weights.rsqrt())
        assert torch.linalg.eigvalsh(unit @ (bracket + bracket.mT) @ unit).min() > 0


def test_every_weight_of_the_kind_is_reached() -> None:
    torch.manual_seed(0)
    W = torch.randn(6, 6, dtype=F64)
    W = W - torch.diag(W.diagonal()) - torch.diag(torch.rand(6, dtype=F64) - 2.0)
    W = 0.55 * W / torch.linalg.eigvals(comparison(W)).real.max()
    loop = torch.eye(6, dtype=F64) - comparison(W)
    eta = torch.linalg.solve(loop, torch.ones(6, dtype=F64))  # ⌈W⌉η = η − 1 ≤ (1 − ε)η for ε = 1/max η
    free = NEMON(4, 6, 3, epsilon=float(1 / eta.max()) * 0.999, dtype=F64)
    T = W * (eta / eta[:, None])
    beside = T - torch.diag(T.diagonal())
    with torch.no_grad():
        own = 1 - free.epsilon - beside.abs().sum(-1) - T.diagonal()
        assert bool((own > 0).all())
        free.A.copy_(6 * beside + torch.diag(own.sqrt()))
        free.psi.copy_(eta.log())
    assert torch.allclose(free.explicit().state.to_dense(), W, rtol=1e-12, atol=1e-13)


def test_a_relu_network_is_a_mondeq_of_scaled_neurons() -> None:
    layer = EquilibriumLayer(drawn(3))
    weights = layer.weights()
    root = weights.metric.weights.sqrt()
    W = root[:, None] * weights.state.to_dense() / root
    scaled = explicit_weights(
        W, root[:, None] * weights.input, weights.output / root, bias=root * weights.bias,
        output_bias=weights.output_bias, metric=torch.ones(6, dtype=F64),
    )  # fmt: skip
    assert torch.linalg.eigvalsh(2 * torch.eye(6, dtype=F64) - W - W.mT).min() > 0  # Condition 1 with Λ = I: a monDEQ
    x = torch.randn(7, 4, dtype=F64)
    assert torch.allclose(from_weights(scaled)(x), layer(x), rtol=1e-7, atol=1e-8)


def test_the_entrywise_bound_always_exists() -> None:
    layer = EquilibriumLayer(drawn(4, 2.0))
    assert certified_lipschitz(layer, norm=Norm.LINF).bound < float("inf")


def test_without_room_for_rounding_nothing_is_claimed() -> None:
    free = NEMON(4, 6, 3, epsilon=1e-3)
    with torch.no_grad():
        free.A.fill_(1e4)
    assert free.explicit().metric is None
    assert free.double().explicit().metric is not None


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_epsilon_is_positive(epsilon: float) -> None:
    with pytest.raises(InputError, match="epsilon"):
        NEMON(4, 6, 3, epsilon=epsilon)
