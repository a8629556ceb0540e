"""Perceptrons and residual networks as equilibrium layers: the same map, and LipSDP-Neuron's constant."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from contracting.errors import InputError, PreconditionError
from equilibrium import LBEN, EquilibriumLayer
from equilibrium.convert import from_residual, from_sequential, from_weights
from equilibrium.lipschitz import MatrixInequality, attained_lipschitz, certified_lipschitz, lipschitz_system
from equilibrium.lipschitz.lower import PatternSearch
from equilibrium.weights import explicit_weights

ACTIVATIONS = [nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.1)]
ACTIVATIONS += [nn.Softplus(threshold=40), nn.ELU(), nn.Hardtanh(), nn.Sigmoid()]


def norm(linear: nn.Linear) -> float:
    return float(torch.linalg.matrix_norm(linear.weight.detach().double(), 2))


def norm_product(network: nn.Sequential) -> float:
    """Π‖W_k‖₂: the bound that everyone has."""
    return math.prod(norm(module) for module in network if isinstance(module, nn.Linear))


def residual_norm_product(blocks: list[tuple[nn.Linear, nn.Linear]]) -> float:
    """Π(1 + ‖G_k‖₂‖H_k‖₂)."""
    return math.prod(1 + norm(G) * norm(H) for H, G in blocks)


def perceptron(sizes: list[int], activation: nn.Module, *, end: bool = False, scale: float = 1.0) -> nn.Sequential:
    modules: list[nn.Module] = []
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        modules += [nn.Linear(inputs, outputs, dtype=torch.float64), activation]
    network = nn.Sequential(*(modules if end else modules[:-1]))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale)
    return network


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("sizes", [[3, 5, 2], [4, 7, 6, 5, 3], [2, 3, 3, 3, 3, 3, 3, 1]], ids=str)
def test_a_perceptron_is_reproduced_exactly(activation: nn.Module, end: bool, sizes: list[int]) -> None:
    network = perceptron(sizes, activation, end=end, scale=3.0)
    layer = from_sequential(network)
    x = 3 * torch.randn(50, sizes[0], dtype=torch.float64)
    expected = network(x)
    assert float((layer(x) - expected).detach().abs().max() / expected.detach().abs().max()) < 1e-12
    problem = layer.problem(x)
    assert problem.operator is not None  # Condition 1 holds in the Λ that was found
    assert layer.solve(x, stop=layer.stop).converged.all()


def test_any_network_that_can_be_read_is_reproduced() -> None:
    """Layers of different activations, one that is not monotone, nested parts, one activation first, a skip."""

    class Skip(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.inner(x)

    first, second = perceptron([3, 4, 3], nn.ReLU(), end=True), perceptron([3, 4, 3], nn.GELU())
    third = perceptron([3, 2, 3], nn.ELU())
    network = nn.Sequential(nn.Tanh(), first, nn.Identity(), Skip(second), nn.Tanh(), Skip(third))
    layer, x = from_sequential(network), 3 * torch.randn(50, 3, dtype=torch.float64)
    assert torch.allclose(layer(x), network(x), atol=1e-12)
    assert layer.problem(x).operator is not None
    certificate = certified_lipschitz(layer)
    assert attained_lipschitz(layer, searches=[PatternSearch(restarts=20, rounds=2)]).ratio <= certificate.bound


def test_equilibrium_layers_and_what_stands_between_them_become_one_layer() -> None:
    layers = LBEN(4, 6, 5, activation=nn.Tanh()), LBEN(3, 7, 4, epsilon=0.2)
    norm_layer = nn.BatchNorm1d(5)
    norm_layer.running_var.fill_(0.3)
    between = nn.Sequential(norm_layer, nn.Linear(5, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3))
    network = nn.Sequential(nn.Linear(3, 4), layers[0], between, layers[1], nn.Linear(4, 2)).double().eval()
    layer, x = from_sequential(network), 3 * torch.randn(50, 3, dtype=torch.float64)
    assert torch.allclose(layer(x), network(x), atol=1e-8)
    with torch.no_grad():
        own, *others = (each.weights() for each in (layer, *layers))
        measures = [float(each.metric.matrix_measure(each.state.to_dense())) for each in (own, *others)]
    assert measures[0] <= (1 + max(*measures[1:], 0.0)) / 2 + 1e-9
    bound, W = certified_lipschitz(layer).bound, own.state.to_dense()
    J = torch.diag_embed(torch.randint(0, 2, (6000, len(W))).double())
    gains = own.output @ torch.linalg.solve(torch.eye(len(W)).double() - J @ W, J @ own.input)
    assert 0.6 * bound < float(torch.linalg.matrix_norm(gains, 2).max()) <= bound
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    product = math.prod([certified_lipschitz(each).bound for each in layers] + [norm(each) for each in linear])
    assert bound < 0.5 * product * (0.3 + norm_layer.eps) ** -0.5  # the bound of the parts, one by one
    alone = nn.Sequential(nn.Linear(3, 4), layers[0]).double()
    expected = certified_lipschitz(alone).bound
    assert certified_lipschitz(from_sequential(alone)).bound == pytest.approx(expected, rel=1e-4)


def test_an_equilibrium_layer_without_condition_1_is_refused() -> None:
    W = torch.tensor([[1.5, 0.0], [0.0, 0.0]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    layer = from_weights(explicit_weights(W, eye, eye, metric=torch.ones(2, dtype=torch.float64)))
    with pytest.raises(PreconditionError, match="Condition 1"):
        from_sequential(nn.Sequential(layer, nn.Linear(2, 2, dtype=torch.float64)))


def test_convolutions_and_average_pooling_are_affine() -> None:
    network = nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(8, 3),
    ).double()  # fmt: skip
    layer, x = from_sequential(network), torch.randn(20, 16, dtype=torch.float64)
    assert layer.hidden_features == 32 and torch.allclose(layer(x), network(x), atol=1e-12)


def residual_blocks(width: int, sizes: list[int], bias: bool = True) -> list[tuple[nn.Linear, nn.Linear]]:
    return [
        (nn.Linear(width, m, dtype=torch.float64, bias=bias), nn.Linear(m, width, dtype=torch.float64, bias=bias))
        for m in sizes
    ]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [[4], [4, 6], [5, 5, 5, 5, 5]], ids=str)
def test_a_residual_network_is_reproduced_exactly(sizes: list[int], bias: bool) -> None:
    blocks = residual_blocks(3, sizes, bias)
    layer = from_residual(blocks, activation=nn.Tanh())
    x = torch.randn(20, 3, dtype=torch.float64)
    expected = x
    for H, G in blocks:
        expected = expected + G(torch.tanh(H(expected)))
    assert float((layer(x) - expected).detach().abs().max()) < 1e-12
    assert layer.problem(x).operator is not None


def lipsdp_neuron(network: nn.Sequential) -> float:
    """LipSDP-Neuron as its authors write it (arXiv 1906.04893, theorem 2), with slopes in [0, 1]."""
    cp = pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    weights = [module.weight.detach().numpy() for module in network if isinstance(module, nn.Linear)]
    sizes = [weights[0].shape[1]] + [w.shape[0] for w in weights[:-1]]
    total, hidden = sum(sizes), sum(sizes[1:])
    A, B = np.zeros((hidden, total)), np.zeros((hidden, total))
    row = column = 0
    for k, w in enumerate(weights[:-1]):
        A[row : row + sizes[k + 1], column : column + sizes[k]] = w
        B[row : row + sizes[k + 1], column + sizes[k] : column + sizes[k] + sizes[k + 1]] = np.eye(sizes[k + 1])
        row, column = row + sizes[k + 1], column + sizes[k]
    t, rho = cp.Variable(hidden, nonneg=True), cp.Variable()
    T = cp.diag(t)
    first = np.eye(sizes[0], total)
    last = np.zeros((weights[-1].shape[0], total))
    last[:, total - sizes[-1] :] = weights[-1]
    M = A.T @ T @ B + B.T @ T @ A - 2 * B.T @ T @ B - rho * first.T @ first + last.T @ last
    cp.Problem(cp.Minimize(rho), [M << 0]).solve(solver=cp.CLARABEL)
    return float(rho.value) ** 0.5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sizes", [[3, 6, 2], [4, 8, 8, 3], [2, 5, 5, 5, 2]], ids=str)
def test_the_certified_constant_is_that_of_lipsdp_neuron(sizes: list[int]) -> None:
    network = perceptron(sizes, nn.ReLU(), scale=2.0)
    layer = from_sequential(network)
    certificate = certified_lipschitz(layer)
    assert certificate.bound == pytest.approx(lipsdp_neuron(network), rel=1e-3)
    assert MatrixInequality().certify(lipschitz_system(layer)).bound == pytest.approx(certificate.bound, rel=1e-3)
    assert certificate.bound < norm_product(network)
    assert attained_lipschitz(layer, searches=[PatternSearch()]).ratio <= certificate.bound * (1 + 1e-9)


def test_a_deep_network_with_large_norms_gets_a_metric() -> None:
    network = perceptron([3] + 12 * [10] + [2], nn.ReLU(), scale=6.0)
    layer = from_sequential(network)
    assert layer.problem(torch.randn(2, 3, dtype=torch.float64)).operator is not None
    assert certified_lipschitz(layer).bound < norm_product(network)


def test_the_residual_bound_beats_the_product_of_norms() -> None:
    blocks = residual_blocks(4, [6, 6, 6])
    layer = from_residual(blocks)
    certificate = certified_lipschitz(layer)
    attained = attained_lipschitz(layer, searches=[PatternSearch()])
    assert attained.ratio <= certificate.bound < residual_norm_product(blocks)
    assert attained.ratio > 0.6 * certificate.bound


def test_a_contracting_gradient_step_is_certified_below_the_triangle_inequality() -> None:
    """x − Hᵀσ(Hx) with ‖H‖ ≤ 1 is non-expansive: only a bound that couples D and W_o can see it."""
    H = torch.randn(6, 4, dtype=torch.float64)
    H /= torch.linalg.matrix_norm(H, 2)
    first, second = nn.Linear(4, 6, bias=False, dtype=torch.float64), nn.Linear(6, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        first.weight.copy_(H)
        second.weight.copy_(-H.mT)
    assert certified_lipschitz(from_residual([(first, second)])).bound == pytest.approx(1, abs=1e-4)
    assert residual_norm_product([(first, second)]) == pytest.approx(2)


def test_the_layer_is_fixed_and_can_be_copied_saved_and_differentiated_in_its_input() -> None:
    layer = from_sequential(perceptron([3, 5, 2], nn.Tanh()))
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    other = from_sequential(perceptron([3, 5, 2], nn.Tanh(), scale=2.0))
    other.load_state_dict(layer.state_dict())
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(other(x), layer(x)) and torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert torch.autograd.gradcheck(layer, (x,))
    assert from_weights(layer.weights(), activation=nn.Tanh())(x).allclose(layer(x))
    with pytest.raises(PreconditionError, match=r"\bgiven\b"):
        layer.parameterization.reset_parameters()  # type: ignore[operator]


def bad_networks() -> list[tuple[nn.Module, str]]:
    return [
        (nn.Linear(3, 2), "nn.Sequential"),
        (nn.Sequential(), "nn.Sequential"),
        (nn.Sequential(nn.Linear(3, 2)), "hidden layer"),
        (nn.Sequential(nn.ReLU(), nn.Tanh()), "hidden layer"),
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), "hidden layer"),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(4, 2)), "3 entries"),
        (nn.Sequential(nn.Linear(3, 2), nn.Softmax(-1), nn.Linear(2, 2)), "softmax"),
        (nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2)), "max_pool2d"),
    ]


@pytest.mark.parametrize(("network", "named"), bad_networks(), ids=lambda value: str(value)[:20])
def test_other_networks_are_refused(network: nn.Sequential, named: str) -> None:
    with pytest.raises(InputError, match=rf"\b{named}\b"):
        from_sequential(network)


def test_bad_residual_blocks_are_refused() -> None:
    with pytest.raises(InputError, match=r"\bblocks\b"):
        from_residual([])
    with pytest.raises(InputError, match=r"\bblock 0\b"):
        from_residual([(nn.Linear(3, 4), nn.Linear(4, 2))])
    with pytest.raises(InputError, match=r"\bblock 0\b"):
        from_residual([(nn.Linear(3, 4),)])  # type: ignore[list-item]




@pytest.mark.parametrize("inside", [torch.no_grad, torch.enable_grad])
def test_weights_replaced_through_data_are_analysed_anew(inside) -> None:  # type: ignore[no-untyped-def]
    """Torch counts no change through .data: the layer compares values."""
    torch.manual_seed(0)
    W = [0.5 * torch.randn(4, 4, dtype=torch.float64) for _ in range(2)]
    W = [w - 2 * torch.eye(4, dtype=torch.float64) for w in W]
    U, C, x = (torch.randn(size, dtype=torch.float64) for size in ((4, 3), (2, 4), (5, 3)))

    def layer_of(W: torch.Tensor) -> EquilibriumLayer:
        return from_weights(explicit_weights(W, U, C, metric=torch.ones(4, dtype=torch.float64)))

    with inside():
        layer = layer_of(W[0])
        layer.solve(x)
        layer.parameterization.W.data.copy_(W[1])  # type: ignore[operator,union-attr]
        fresh = layer_of(W[1])
        ours, theirs = layer.problem(x).operator, fresh.problem(x).operator
        assert ours is not None and theirs is not None
        assert ours.bounds == theirs.bounds
        assert torch.equal(layer.solve(x).z, fresh.solve(x).z)
