"""Approximate gradients are the partial sums they claim to be, within their bound, and say what they cannot do."""

from __future__ import annotations

import math

import pytest
import torch

from contracting import (
    Dense,
    EquilibriumProblem,
    Implicit,
    InputError,
    JacobianFree,
    NeumannSeries,
    PreconditionError,
    ReLU,
    Stop,
    Tanh,
    WeightedL2,
)
from contracting.solvers.automatic import Automatic
from equilibrium import LBEN

TIGHT = Stop(rtol=1e-13, atol=0.0)
EXACT = Implicit(stop=TIGHT)


def problem(norm: float, *, activation=None, seed: int = 0) -> EquilibriumProblem:
    """z = σ(Wz + q) with ‖W‖₂ = ``norm`` and gradients in W and q."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(5, 5, dtype=torch.float64, generator=generator)
    W = norm * W / torch.linalg.matrix_norm(W, 2)
    q = torch.randn(7, 5, dtype=torch.float64, generator=generator)
    return EquilibriumProblem(
        linear=Dense(W.requires_grad_()), q=q.requires_grad_(), activation=activation or ReLU()
    )


def adjoints(of: EquilibriumProblem, backward) -> tuple[torch.Tensor, ...]:
    z = backward.equilibrium(of, Automatic(), TIGHT)
    weights = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).reshape(z.shape)
    return torch.autograd.grad((weights * z).sum(), [of.q, *of.linear.tensors()])


@pytest.mark.parametrize("terms", [0, 1, 4])
def test_the_series_is_the_partial_sum_written_out(terms):
    of = problem(0.9, activation=Tanh())
    (found, _) = adjoints(of, NeumannSeries(terms=terms))
    z = EXACT.equilibrium(of.detach(), Automatic(), TIGHT)
    W, slopes = of.linear.to_dense().detach(), of.detach().slopes(z)
    g = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).reshape(z.shape)
    for k in range(len(z)):
        J = torch.diag(slopes[k])
        expected = sum(torch.linalg.matrix_power(J @ W.mT, power) @ J @ g[k] for power in range(terms + 1))
        assert torch.allclose(found[k], expected, atol=1e-12)


def test_the_gradient_of_the_weight_follows_from_that_of_q():
    of = problem(0.9)
    by_q, by_weight = adjoints(of, NeumannSeries(terms=2))
    z = EXACT.equilibrium(of.detach(), Automatic(), TIGHT)
    assert torch.allclose(by_weight, by_q.mT @ z, atol=1e-12)


@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_the_error_is_within_its_bound_and_goes_to_zero(damping):
    """Negative control: half the bound is exceeded by some network."""
    nearest = 0.0
    for seed in range(20):
        of = problem(0.9, seed=seed)
        exact, _ = adjoints(of, EXACT)
        for terms in (0, 1, 3, 200):
            way = NeumannSeries(terms=terms, damping=damping)
            found, _ = adjoints(of, way)
            error = ((found - exact).norm(dim=-1) / exact.norm(dim=-1)).nan_to_num()  # 0/0 where no unit is active
            share = float((error / way.error_bound(of)).max())
            assert share <= 1 + 1e-9 or float(error.max()) < 1e-11
            nearest = max(nearest, share) if terms < 200 else nearest
            assert terms < 200 or float(error.max()) < 1e-3
    assert nearest > 0.5


def test_a_network_that_meets_condition_1_may_have_a_series_that_diverges_and_the_bound_says_so():
    # W = [[0, 3], [-3, 0]]: I − W is strongly monotone, and the series doubles at least in every term
    W = torch.tensor([[0.0, 3.0], [-3.0, 0.0]], dtype=torch.float64)
    q = torch.tensor([[4.0, 20.0]], dtype=torch.float64).requires_grad_()
    of = EquilibriumProblem(linear=Dense(W), q=q, activation=ReLU(), metric=WeightedL2.identity(2))
    z = EXACT.equilibrium(of.detach(), Automatic(), TIGHT)
    assert bool((z > 0).all())
    (exact,) = torch.autograd.grad(EXACT.equilibrium(of, Automatic(), TIGHT).sum(), of.q)
    errors = []
    for terms in (0, 2, 4):
        way = NeumannSeries(terms=terms)
        (found,) = torch.autograd.grad(way.equilibrium(of, Automatic(), TIGHT).sum(), of.q)
        errors.append(float((found - exact).norm()))
        assert way.error_bound(of) == math.inf
    assert errors[0] < errors[1] < errors[2]


def test_jacobian_free_is_the_series_of_one_term():
    of = problem(0.7, activation=Tanh())
    for found, expected in zip(adjoints(of, JacobianFree()), adjoints(of, NeumannSeries(terms=0)), strict=True):
        assert torch.equal(found, expected)


def test_a_second_derivative_is_refused_and_the_exact_way_named():
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    layer = LBEN(2, 4, 1, backward=JacobianFree(), dtype=torch.float64)
    with pytest.raises(PreconditionError, match="Implicit"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"terms": -1}, "terms"), ({"terms": 1.5}, "terms"), ({"terms": 1, "damping": 0}, "damping")],
)
def test_values_out_of_range_are_refused(settings, named):
    with pytest.raises(InputError, match=named):
        NeumannSeries(**settings)


def test_a_layer_trains_with_approximate_gradients():
    torch.manual_seed(0)
    layer = LBEN(2, 8, 1, lipschitz=2.0, backward=NeumannSeries(terms=3))
    x = torch.rand(64, 2)
    target = x[:, :1] * x[:, 1:]
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
