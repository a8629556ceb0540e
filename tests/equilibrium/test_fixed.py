"""A number of iterations set in advance: enough by the bound, and nothing that a compiler stumbles over."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from contracting import InputError, PreconditionError, Stop
from equilibrium import LBEN, EquilibriumLayer, FixedIterations, Implicit, SemismoothNewton, Unconstrained

F64 = torch.float64


def layer_of(seed: int = 0, *, hidden: int = 12, epsilon: float = 1.0, **options: object) -> LBEN:
    torch.manual_seed(seed)
    return LBEN(6, hidden, 3, epsilon=epsilon, stop=Stop(rtol=1e-13, atol=0.0), **options).double()  # type: ignore[arg-type]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 6, dtype=F64, generator=torch.Generator().manual_seed(1))


def test_agrees_with_the_layer_and_its_implicit_gradient(x: torch.Tensor) -> None:
    layer = layer_of(lipschitz=1.0)
    layer.backward = Implicit(stop=Stop(rtol=1e-13, atol=0.0))
    fixed = FixedIterations(layer, tolerance=1e-12)
    x.requires_grad_()
    outputs = [model(x) for model in (fixed, layer)]
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-11
    gradients = [torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]) for y in outputs]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-9 * (1 + theirs.abs().max())


def test_derivatives_of_every_order(x: torch.Tensor) -> None:
    fixed = FixedIterations(layer_of(lipschitz=1.0, hidden=3), iterations=60)
    start = x[:2].clone().requires_grad_()
    assert gradcheck(fixed, start)
    assert gradgradcheck(lambda x: fixed(x).sin(), start)
    parameters = dict(fixed.named_parameters())
    values = tuple(v.detach().clone().requires_grad_() for v in parameters.values())

    def output(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(fixed, dict(zip(parameters, values, strict=True)), (x[:2],)).sin()

    assert gradcheck(output, values) and gradgradcheck(output, values)


def test_bound_holds_on_ten_thousand_random_problems_and_is_not_vacuous() -> None:
    tightest = 0.0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        hidden, iterations = int(torch.randint(2, 14, (), generator=generator)), 1 + seed % 12
        layer = layer_of(seed, hidden=hidden, epsilon=0.05 + float(torch.rand((), generator=generator)))
        with torch.no_grad():
            layer.parameterization.psi.normal_(std=0.5, generator=generator)
            layer.parameterization.S.mul_(6 * torch.rand((), generator=generator, dtype=F64))
        fixed = FixedIterations(layer, iterations=iterations)
        inputs = 10 ** float(torch.randn((), generator=generator)) * torch.randn(50, 6, dtype=F64, generator=generator)
        exact = layer.solve(inputs, SemismoothNewton()).z
        with torch.no_grad():
            error = layer.weights().metric.norm(fixed.equilibrium(inputs) - exact)
        ratio = error / fixed.error_bound(inputs)
        assert ratio.max() <= 1 + 1e-9, seed
        tightest = max(tightest, float(ratio.max()))
    assert tightest > 0.1


def test_tolerance_sets_the_number_of_iterations(x: torch.Tensor) -> None:
    layer = layer_of(epsilon=0.1)
    few, many = (FixedIterations(layer, tolerance=tolerance) for tolerance in (1e-2, 1e-10))
    assert few.iterations < many.iterations
    norm = layer.weights().metric.norm
    for fixed in (few, many):
        assert (fixed.error_bound(x) <= fixed.tolerance * norm(layer.problem(x).q) * (1 + 1e-9)).all()
    exact = layer.solve(x).z
    with torch.no_grad():
        assert (norm(few.equilibrium(x) - exact) > many.error_bound(x)).any()  # so few would break the tighter promise


def test_refresh_follows_the_weights() -> None:
    layer = layer_of()
    fixed = FixedIterations(layer, tolerance=1e-6)
    before = fixed.iterations
    with torch.no_grad():
        layer.parameterization.S.mul_(20)
    fixed.refresh()
    assert fixed.iterations > before


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, of its own tracing
@pytest.mark.parametrize("activation", [torch.nn.ReLU(), torch.nn.Hardtanh(), torch.nn.LeakyReLU(0.3)])
def test_traces_without_a_break(x: torch.Tensor, activation: torch.nn.Module) -> None:
    torch._dynamo.reset()
    fixed = FixedIterations(layer_of(lipschitz=1.0, activation=activation), tolerance=1e-8)
    x.requires_grad_()
    eager = fixed(x)
    compiled = torch.compile(fixed, fullgraph=True, backend="aot_eager")(x)
    assert (compiled - eager).abs().max() <= 1e-12
    gradients = [torch.autograd.grad(y.sum(), [x, *fixed.parameters()]) for y in (eager, compiled)]
    assert all((a - b).abs().max() <= 1e-12 for a, b in zip(*gradients, strict=True))
    exported = torch.export.export(fixed, (x.detach(),)).module()
    assert (exported(x.detach()) - eager).abs().max() <= 1e-12


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_compiles(x: torch.Tensor) -> None:
    torch._dynamo.reset()
    fixed = FixedIterations(layer_of(lipschitz=1.0), tolerance=1e-8)
    assert (torch.compile(fixed, fullgraph=True)(x) - fixed(x)).abs().max() <= 1e-6


def test_is_a_function_for_torch_func(x: torch.Tensor) -> None:
    fixed = FixedIterations(layer_of(lipschitz=1.0), tolerance=1e-12)
    assert (torch.func.vmap(fixed)(x) - fixed(x)).abs().max() <= 1e-12
    jacobians = torch.func.vmap(torch.func.jacrev(fixed))(x)
    for row, jacobian in zip(x, jacobians, strict=True):
        assert (torch.autograd.functional.jacobian(fixed.layer, row) - jacobian).abs().max() <= 1e-9
        assert torch.linalg.matrix_norm(jacobian, 2) <= 1 + 1e-9


def test_refuses_what_it_cannot_promise() -> None:
    layer = layer_of()
    for options in ({}, {"tolerance": 1e-6, "iterations": 3}, {"tolerance": -1.0}, {"iterations": 0}):
        with pytest.raises(InputError):
            FixedIterations(layer, **options)  # type: ignore[arg-type]
    with pytest.raises(PreconditionError, match="piecewise-linear"):
        FixedIterations(layer_of(activation=torch.nn.Tanh()), iterations=3)
    with pytest.raises(PreconditionError, match="FixedIterations cannot choose"):
        FixedIterations(EquilibriumLayer(Unconstrained(6, 8, 3)), iterations=3)


def test_autocast_costs_no_digits() -> None:
    """In y, z and the gradient of z in b, which only the adjoint steps lie before."""
    layer = layer_of(lipschitz=1.0).float()
    fixed, x = FixedIterations(layer, tolerance=1e-6), torch.randn(5, 6)

    def results() -> list[torch.Tensor]:
        z = fixed.equilibrium(x)
        return [fixed(x), z, *torch.autograd.grad(z.square().sum(), layer.parameterization.bias)]

    expected = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_input_of_another_precision_is_refused() -> None:
    with pytest.raises(InputError, match="x has dtype torch.float32 but"):
        FixedIterations(layer_of(lipschitz=1.0), iterations=10)(torch.randn(2, 6))


def test_a_tolerance_below_rounding_is_refused() -> None:
    layer = layer_of(lipschitz=1.0)
    assert FixedIterations(layer, tolerance=1e-12).iterations > 1
    with pytest.raises(PreconditionError, match=r"float32.*layer.double\(\)"):
        FixedIterations(layer.float(), tolerance=1e-12)
