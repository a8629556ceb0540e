"""The implicit gradient: derivatives of every order, independence of the solver, repeated backward, checked status."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.activations.catalogue import ReLU, Softplus, Tanh
from contracting.errors import PreconditionError
from contracting.integrators import DormandPrince, PseudoTransient, RungeKuttaChebyshev
from contracting.loop.method import Method
from contracting.loop.records import SolveError, Stop
from contracting.solvers.anderson import Anderson
from contracting.solvers.automatic import Automatic
from contracting.solvers.catalogue import default_solvers
from contracting.solvers.diagonal_step import DiagonalStep
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.newton_krylov import NewtonKrylov
from contracting.solvers.splitting import ForwardBackward, PeacemanRachford
from contracting.solvers.tseng import Tseng
from equilibrium import LBEN, EquilibriumLayer, Implicit, MonDEQ, Unconstrained, Unrolled

TIGHT = Stop(rtol=1e-13, atol=0.0)
BACKWARD = Implicit(stop=Stop(rtol=1e-13, atol=0.0))


def make_layer(activation: Activation, kind: str = "lipschitz", solver: Method | None = None) -> EquilibriumLayer:
    torch.manual_seed(7)
    settings = {"activation": activation, "solver": solver, "stop": TIGHT, "backward": BACKWARD}
    double = {"dtype": torch.float64}
    if kind == "lipschitz":
        layer: EquilibriumLayer = LBEN(2, 3, 2, lipschitz=1.5, learn_lipschitz=True, **settings, **double)
    elif kind == "contracting":
        layer = LBEN(2, 3, 2, lipschitz=2.0, contraction_rate=0.3, feedthrough=True, **settings, **double)
    elif kind == "monDEQ":
        layer = EquilibriumLayer(MonDEQ(2, 3, 2, **double), **settings)
    else:
        layer = EquilibriumLayer(Unconstrained(2, 3, 2, **double), **settings)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def as_function(layer: EquilibriumLayer):  # type: ignore[no-untyped-def]
    names = [name for name, _ in layer.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    inputs = [torch.randn(2, 2, dtype=torch.float64, requires_grad=True)]
    inputs += [p.detach().clone().requires_grad_() for p in layer.parameters()]
    return function, inputs


@pytest.mark.parametrize("kind", ["lipschitz", "contracting", "monDEQ", "unconstrained"])
@pytest.mark.parametrize("activation", [ReLU(), Tanh(), Softplus()], ids=lambda a: type(a).__name__)
def test_first_and_second_derivatives_in_every_parameter(activation: Activation, kind: str) -> None:
    function, inputs = as_function(make_layer(activation, kind, SemismoothNewton()))
    fast = kind != "lipschitz" or activation != Tanh()  # random directions instead of every entry
    assert torch.autograd.gradcheck(function, inputs, fast_mode=fast)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=fast)


def test_third_derivative() -> None:
    """d³z/dx³ of one neuron, against finite differences of the second derivative."""
    layer = make_layer(Tanh())

    def second(x: Tensor, *, create_graph: bool) -> Tensor:
        y = layer(x)[0, 0]
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        (result,) = torch.autograd.grad(first[0, 0], x, create_graph=create_graph)
        return result[0, 0]

    x = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
    (third,) = torch.autograd.grad(second(x, create_graph=True), x)
    h = 1e-4
    shift = torch.zeros_like(x)
    shift[0, 0] = h
    plus = second((x + shift).detach().requires_grad_(), create_graph=False)
    minus = second((x - shift).detach().requires_grad_(), create_graph=False)
    assert float(third[0, 0]) == pytest.approx(float((plus - minus) / (2 * h)), rel=1e-5)


@pytest.mark.parametrize(
    "solver",
    [
        ForwardBackward(),
        SemismoothNewton(),
        DormandPrince(),
        PseudoTransient(),
        Tseng(),
        NewtonKrylov(),
        Anderson(PeacemanRachford()),
        PeacemanRachford(step=DiagonalStep()),
        RungeKuttaChebyshev(),
        Automatic(),
    ],
    ids=lambda s: type(s).__name__,
)
def test_the_gradient_does_not_depend_on_the_solver(solver: Method) -> None:
    x = torch.randn(5, 2, dtype=torch.float64)
    gradients = []
    for method in (PeacemanRachford(), solver):
        layer = make_layer(Tanh(), solver=method)
        layer(x).square().sum().backward()
        gradients.append([p.grad for p in layer.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", [PeacemanRachford(), ForwardBackward()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=lambda a: type(a).__name__)
def test_implicit_equals_unrolled(activation: Activation, solver: Method) -> None:
    x = torch.randn(5, 2, dtype=torch.float64)
    implicit, unrolled = make_layer(activation, solver=solver), make_layer(activation, solver=solver)
    unrolled.backward = Unrolled()
    implicit(x).square().sum().backward()
    unrolled(x).square().sum().backward()
    for one, other in zip(implicit.parameters(), unrolled.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-8, atol=1e-10)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", default_solvers())
def test_every_method_can_be_unrolled_or_says_that_it_cannot(name: str) -> None:
    if "BDF" in name:
        pytest.importorskip("scipy")

    def gradients(backward: Implicit | Unrolled) -> tuple[Tensor, ...]:
        layer = make_layer(Tanh(), solver=default_solvers()[name])
        layer.backward = backward
        y = layer(torch.ones(3, 2, dtype=torch.float64))
        return torch.autograd.grad(y.square().sum(), list(layer.parameters()))

    refused = {"FISTA": r"\bPeacemanRachford\(\)", "torchdiffeq-BDF": r"\bImplicit\(\)"}
    refused |= {name: r"\bImplicit\(\)" for name in default_solvers() if "NewtonKrylov" in name}
    if name in refused:
        with pytest.raises(PreconditionError, match=refused[name]):
            gradients(Unrolled())
    else:
        for one, other in zip(gradients(BACKWARD), gradients(Unrolled()), strict=True):
            assert torch.allclose(one, other, rtol=1e-7, atol=1e-9)


def test_against_the_closed_form_row_by_row() -> None:
    """The largest deviation over rows, not a sum in which errors could cancel."""
    layer = make_layer(Tanh())
    x = torch.randn(6, 2, dtype=torch.float64)
    problem = layer.problem(x)
    q = problem.q.detach().requires_grad_()
    problem = problem.detach().with_tensors([q, *problem.linear.detached.tensors()])
    z = BACKWARD.equilibrium(problem, PeacemanRachford(), TIGHT)
    g = torch.randn_like(z)
    (gradient,) = torch.autograd.grad(z, q, g)
    W, J = problem.linear.to_dense(), problem.slopes(z.detach())
    for row in range(6):
        exact = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - W.mT * J[row], g[row]) * J[row]
        assert (gradient[row] - exact).abs().max() < 1e-11


def test_backward_may_be_repeated_and_summed_gradients_are_right_twice() -> None:
    layer = make_layer(Tanh())
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    y = layer(x).sum()
    (one,) = torch.autograd.grad(y, x, retain_graph=True)
    (two,) = torch.autograd.grad(y, x, retain_graph=True)
    assert torch.equal(one, two)
    # the pattern that returns wrong second derivatives where double backward is merely forbidden
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    (curvature,) = torch.autograd.grad(first.sum(), x)
    h = 1e-5
    up, down = ((x + s * h).detach().requires_grad_() for s in (1, -1))
    gradients = [torch.autograd.grad(layer(p).sum(), p)[0] for p in (up, down)]
    assert torch.allclose(curvature, (gradients[0] - gradients[1]) / (2 * h), rtol=1e-5, atol=1e-8)


def test_tiny_cotangents_keep_their_relative_accuracy() -> None:
    layer = make_layer(Tanh())
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    (unit,) = torch.autograd.grad(layer(x).sum(), x)
    (tiny,) = torch.autograd.grad(layer(x).sum() * 1e-30, x)
    assert torch.allclose(tiny * 1e30, unit, rtol=1e-10, atol=0)


def test_a_failed_adjoint_solve_is_not_silent() -> None:
    layer = make_layer(Tanh())
    layer.backward = Implicit(solver=ForwardBackward(), stop=Stop(rtol=1e-12, max_steps=1))
    with pytest.raises(SolveError, match=r"\bbackward\b.*\bMAX_STEPS\b"):
        layer(torch.randn(2, 2, dtype=torch.float64)).sum().backward()


def test_only_what_needs_a_gradient_gets_one() -> None:
    layer = make_layer(ReLU())
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    layer(torch.randn(2, 2, dtype=torch.float64)).sum().backward()
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is not None) == name.endswith("bias")


@pytest.mark.parametrize(("order", "accuracy"), [(1, 1e-4), (2, 1e-2)])
def test_backward_inside_autocast_is_backward_outside(order: int, accuracy: float) -> None:
    """With respect to b, which only the adjoint solve lies before; what torch records itself it takes in half there."""
    torch.manual_seed(0)
    layer, x = LBEN(4, 6, 3, lipschitz=2.0, activation=Tanh()), torch.randn(5, 4)
    bias = layer.parameterization.bias

    def gradient() -> Tensor:
        (found,) = torch.autograd.grad(layer.equilibrium(x).square().sum(), bias, create_graph=order > 1)
        return found if order == 1 else torch.autograd.grad(found.square().sum(), bias)[0]

    expected = gradient()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradient()
    assert float(expected.abs().max()) > 0.1
    assert torch.allclose(found, expected, atol=accuracy * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # forward mode's own
@pytest.mark.parametrize(
    "transform", [torch.func.jacrev, torch.func.vmap, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))]
)
def test_function_transforms_are_told_what_to_use(transform) -> None:  # type: ignore[no-untyped-def]
    layer, x = make_layer(ReLU()), torch.randn(4, 2, dtype=torch.float64)
    with pytest.raises(PreconditionError, match=r"\bFixedIterations\b"):
        transform(layer)(x)
