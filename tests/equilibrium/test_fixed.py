"""A number of iterations set in advance: enough by the bound, and nothing that a compiler stumbles over."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from contracting import InputError, PreconditionError, Stop
from equilibrium import (
    LBEN,
    EquilibriumLayer,
    FixedIterations,
    Implicit,
    LBENConv2d,
    Parameterization,
    SemismoothNewton,
    Unconstrained,
    Weights,
    explicit_weights,
)
from equilibrium.convolution.parameterization import MetricShape

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
    fixed = FixedIterations(layer_of(lipschitz=1.0, hidden=3), iterations=30)
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
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        hidden, iterations = int(torch.randint(2, 14, (), generator=generator)), 1 + seed % 12
        layer = layer_of(seed, hidden=hidden, epsilon=0.05 + float(torch.rand((), generator=generator)))
        with torch.no_grad():
            layer.parameterization.psi.normal_(std=0.5, generator=generator)
            layer.parameterization.S.mul_(6 * torch.rand((), generator=generator, dtype=F64))
        fixed = FixedIterations(layer, iterations=iterations)
        inputs = 10 ** float(torch.randn((), generator=generator)) * torch.randn(100, 6, dtype=F64, generator=generator)
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


LAYERS = {
    "leaky": lambda: layer_of(lipschitz=1.0, hidden=4, activation=torch.nn.LeakyReLU(0.3)),
    "curved": lambda: layer_of(hidden=4, feedthrough=True, activation=torch.nn.Sigmoid()),
    "image": lambda: image_layer(),
    "curved image": lambda: image_layer(stride=2, activation=torch.nn.Tanh()),
    "metric over the image": lambda: image_layer(metric=MetricShape.FULL),
}


def image_layer(**options: object) -> LBENConv2d:
    torch.manual_seed(0)
    stop = Stop(rtol=1e-13, atol=0.0)
    return LBENConv2d(1, 2, 3, image=(4, 2), stop=stop, dtype=F64, **options)  # type: ignore[arg-type]


def perturbed(layer: EquilibriumLayer) -> EquilibriumLayer:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


def input_of(layer: EquilibriumLayer, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *layer.input_shapes[0], dtype=F64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_and_its_constants_agree_with_the_solve(kind: str) -> None:
    layer = perturbed(LAYERS[kind]())
    layer.backward = Implicit(stop=Stop(rtol=1e-13, atol=0.0))
    fixed = FixedIterations(layer, tolerance=1e-11)
    frozen = fixed.frozen()
    x = input_of(layer).requires_grad_()
    expected = layer(x)
    gradients = torch.autograd.grad(expected.sin().sum(), [x, *layer.parameters()])
    for model in (fixed, frozen):
        y = model(x)
        assert (y - expected).abs().max() <= 1e-10
        wanted = [x] if model is frozen else [x, *layer.parameters()]
        for ours, theirs in zip(torch.autograd.grad(y.sin().sum(), wanted), gradients, strict=False):
            assert (ours - theirs).abs().max() <= 1e-9 * (1 + theirs.abs().max())
        with torch.no_grad():
            norm = layer.weights().metric.norm
            assert (norm(model.equilibrium(x) - layer.equilibrium(x)) <= model.error_bound(x)).all()
    assert not list(frozen.parameters()) and not frozen.state_dict()
    assert (copy.deepcopy(frozen)(x) - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("kind", ["curved", "curved image"])
def test_second_derivatives_follow_the_slopes(kind: str) -> None:
    layer = LAYERS[kind]()
    fixed, start = FixedIterations(layer, iterations=150), input_of(layer, 1).requires_grad_()
    assert gradgradcheck(lambda x: fixed(x).sin(), start)


@pytest.mark.parametrize("activation", ["ReLU", "Tanh", "Sigmoid"])
@pytest.mark.parametrize("monotonicity", [1e-1, 1e-3])
def test_no_float32_result_is_farther_off_than_promised(activation: str, monotonicity: float) -> None:
    """In graded metrics and along the directions in which I − W is small, where rounding is amplified the most."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        n = 3 + 12 * seed
        X, S = torch.randn(2, n, n, dtype=F64, generator=generator)
        H = X @ X.mT / torch.linalg.matrix_norm(X @ X.mT, 2)
        root = 10 ** (0.5 * (seed % 2) * torch.randn(n, dtype=F64, generator=generator))
        A = (H + monotonicity * torch.eye(n) + 0.3 * (S - S.mT) / n**0.5) * root / root[:, None]
        weak = torch.linalg.eigh(H)[1].mT / root
        single = Given((torch.eye(n) - A).float(), (root**2).float())
        double = Given(single.W.double(), single.lam.double())
        layer, exact = (EquilibriumLayer(g, activation=getattr(torch.nn, activation)()) for g in (single, double))
        with pytest.raises(PreconditionError, match=r"\btolerance\b"):
            FixedIterations(layer, tolerance=1e-4 if monotonicity < 1e-2 else 1e-6)
        q = torch.cat([weak, -weak, torch.randn(9, n, dtype=F64, generator=generator)]).float()
        z = exact.solve(q.double(), SemismoothNewton(), stop=Stop(rtol=1e-12, atol=0.0)).z
        norm = exact.weights().metric.norm
        fixed = FixedIterations(layer, iterations=500)
        for model in (fixed, fixed.frozen()):
            error = norm(model.equilibrium(q).double() - z)
            assert (error <= model.error_bound(q)).all()


class Given(Parameterization):
    """Weights as they are, q the input itself."""

    def __init__(self, W: torch.Tensor, lam: torch.Tensor) -> None:
        super().__init__(len(W), len(W), 1, dtype=W.dtype)
        self.W, self.lam, self.bias = W, lam, torch.nn.Parameter(torch.zeros_like(lam))

    def explicit(self) -> Weights:
        identity = torch.eye(len(self.W), dtype=self.W.dtype)
        return explicit_weights(self.W, identity, identity[:1], bias=self.bias, metric=self.lam)


@pytest.mark.parametrize("way", ["load_state_dict", "step", "data"])
def test_the_bound_is_that_of_the_present_weights(way: str, x: torch.Tensor) -> None:
    layer = layer_of(epsilon=0.5)
    fixed = FixedIterations(layer, tolerance=1e-7)
    frozen, before = fixed.frozen(), fixed.error_bound(x)
    other = layer_of(1, epsilon=0.5)
    with torch.no_grad():
        other.parameterization.S.mul_(30)
    if way == "load_state_dict":
        layer.load_state_dict(other.state_dict())
    elif way == "data":
        for mine, theirs in zip(layer.parameters(), other.parameters(), strict=True):
            mine.data.copy_(theirs)
    else:
        optimiser = torch.optim.SGD(layer.parameters(), lr=3.0)
        layer(x).sum().backward()
        optimiser.step()
    exact = layer.solve(x).z
    with torch.no_grad():
        error = layer.weights().metric.norm(fixed.equilibrium(x) - exact)
    assert (error <= fixed.error_bound(x)).all()
    assert (error > before).any()  # what was said of the old weights
    assert torch.equal(frozen.error_bound(x), before)  # of its own, which have not changed
    fixed.refresh()
    with torch.no_grad():
        norm = layer.weights().metric.norm
        assert (norm(fixed.equilibrium(x) - exact) <= 1e-7 * norm(layer.problem(x).q)).all()


@pytest.mark.filterwarnings("ignore")  # torch's own, of its own tracing
@pytest.mark.parametrize(
    ("kind", "mode"),
    [("leaky", torch.enable_grad), ("leaky", torch.inference_mode), ("image", torch.no_grad)],
)
def test_traces_without_a_break(kind: str, mode: Any) -> None:
    """Compiled with no break and exported, live and frozen, whatever records gradients."""
    torch._dynamo.reset()
    layer = LAYERS[kind]()
    fixed, x = FixedIterations(layer, iterations=1), input_of(layer)
    models = (fixed,) if mode is torch.enable_grad else (fixed.requires_grad_(False), fixed.frozen())
    with mode():
        for model in models:
            eager = model(x)
            compiled = torch.compile(model, fullgraph=True, backend="aot_eager" if model is fixed else "eager")(x)
            exported = torch.export.export(model, (x,)).module()(x)
            assert (compiled - eager).abs().max() <= 1e-12 and (exported - eager).abs().max() <= 1e-12
            if mode is torch.enable_grad:
                gradients = [torch.autograd.grad(y.sum(), list(model.parameters())) for y in (eager, compiled)]
                assert all((a - b).abs().max() <= 1e-12 for a, b in zip(*gradients, strict=True))


@pytest.mark.filterwarnings("ignore")  # torch's own, of its own tracing
@pytest.mark.parametrize("kind", ["curved", "image"])
def test_runs_in_onnxruntime(kind: str, tmp_path: Path) -> None:
    """The constants of a layer as an ONNX model, for any number of rows."""
    onnxruntime = pytest.importorskip("onnxruntime")
    layer = perturbed(LAYERS[kind]()).float()
    frozen, x = FixedIterations(layer, iterations=4).frozen(), input_of(layer).float()
    rows = ({0: torch.export.Dim("rows")},)
    torch.onnx.export(frozen, (x,), tmp_path / "layer.onnx", dynamo=True, dynamic_shapes=rows, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx")
    for batch in (1, 5):
        x = input_of(layer, batch).float()
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert (torch.from_numpy(y) - frozen(x)).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", ["leaky", "image"])
def test_vmap_over_the_parameters_of_an_ensemble(kind: str) -> None:
    members = [FixedIterations(perturbed(LAYERS[kind]()), iterations=30) for _ in range(3)]
    for member in members:
        member.layer.parameterization.bias.data.normal_()
    x = input_of(members[0].layer)
    parameters, buffers = torch.func.stack_module_state(members)
    stacked = torch.func.vmap(lambda p, b: torch.func.functional_call(members[0], (p, b), (x,)))(parameters, buffers)
    step = members[0].step
    for member, y in zip(members, stacked, strict=True):
        assert (member(x) - y).abs().max() <= 1e-6 and step > 0


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, of its forward mode
def test_a_hessian_that_is_refused_leaves_no_trace(x: torch.Tensor) -> None:
    fixed = FixedIterations(layer_of(), iterations=30)

    def output(x: torch.Tensor) -> torch.Tensor:
        return fixed(x).square().sum()

    hessian = torch.func.hessian(output)
    for forward_mode in (hessian, torch.func.jacfwd(output), torch.func.vmap(hessian)):
        with pytest.raises(PreconditionError, match=r"\bjacrev\b"):
            forward_mode(x)
        gradients = torch.func.vmap(torch.func.grad(output))(x)
        start = x.clone().requires_grad_()
        assert (gradients - torch.autograd.grad(output(start), start)[0]).abs().max() <= 1e-12
    matrix = torch.func.jacrev(torch.func.jacrev(output))(x[0])
    assert (matrix - torch.autograd.functional.hessian(output, x[0])).abs().max() <= 1e-10


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
    with pytest.raises(PreconditionError, match=r"\bFixedIterations\b"):
        FixedIterations(EquilibriumLayer(Unconstrained(6, 8, 3)), iterations=3)


def test_autocast_costs_no_digits() -> None:
    """In y, z and the gradient of z in b, which only the adjoint steps lie before."""
    layer = layer_of(lipschitz=1.0).float()
    fixed, x = FixedIterations(layer, tolerance=1e-4), torch.randn(5, 6)

    def results() -> list[torch.Tensor]:
        z = fixed.equilibrium(x)
        return [fixed(x), z, *torch.autograd.grad(z.square().sum(), layer.parameterization.bias)]

    expected = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_an_input_of_another_precision_is_refused() -> None:
    with pytest.raises(InputError, match=r"\bx\b"):
        FixedIterations(layer_of(lipschitz=1.0), iterations=10)(torch.randn(2, 6))


def test_a_tolerance_below_rounding_is_refused() -> None:
    layer = layer_of(lipschitz=1.0)
    assert FixedIterations(layer, tolerance=1e-12).iterations > 1
    with pytest.raises(PreconditionError, match=r"\btolerance\b"):
        FixedIterations(layer.float(), tolerance=1e-12)
