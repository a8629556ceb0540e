"""Fields read as Lur'e systems: what is read is the field, and what cannot be read is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracting import (
    Dense,
    EquilibriumProblem,
    FiringRate,
    HardTanh,
    Hopfield,
    InputError,
    InputFlow,
    LinearFlow,
    LureFlow,
    NeuralFlow,
    Tanh,
    lure_of,
    register_reader,
)  # fmt: skip
from contracting.flows.fields import VectorField
from contracting.lure.tracing import neurons

N = 3
Field = Callable[[Tensor, Tensor], Tensor]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(size_in: int, size_out: int, seed: int = 0) -> nn.Linear:
    made = nn.Linear(size_in, size_out, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(drawn(size_out, size_in, seed=seed) / size_in**0.5)
        made.bias.copy_(drawn(size_out, seed=seed + 1))
    return made


def mlp(*between: nn.Module, seed: int = 0) -> nn.Sequential:
    """Linear layers with these modules between them, 3 → 5 → … → 3."""
    widths = [N, *[5] * len(between), N]
    layers = [linear(a, b, seed=seed + 2 * k) for k, (a, b) in enumerate(zip(widths, widths[1:], strict=False))]
    parts = [module for pair in zip(layers, between, strict=False) for module in pair]
    return nn.Sequential(*parts, layers[-1])


class Residual(nn.Module):
    """x ← x + Gσ(Hx), three times, as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.H = nn.ModuleList(linear(N, 4, seed=k) for k in range(3))
        self.G = nn.ModuleList(linear(4, N, seed=k + 9) for k in range(3))

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        x = s
        for H, G in zip(self.H, self.G, strict=True):
            x = x + G(torch.relu(H(x)))
        return x - 2 * s


class Densely(nn.Module):
    """Every layer sees all before it, and the time beside the state, as torchdiffeq's examples write it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = linear(N + 1, 4), linear(N + 5, 4, seed=2), linear(N + 8, N, seed=4)

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        x = torch.cat([s, torch.ones_like(s[:, :1]) * t], 1)
        a = F.softplus(self.first(x))
        b = self.second(torch.cat([x, a], 1)).sigmoid()
        return self.last(torch.cat((s, a, b), -1)) - s


class ByHand(nn.Module):
    """Entries named one by one."""

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        x, y, z = s.unbind(-1)
        pull = torch.tanh(x - 2 * y) / 3
        return torch.stack([pull - x, -0.5 * y + torch.cos(t), (y + z).clamp(-1, 1) - z + pull], dim=-1)


class Assigning(nn.Module):
    """Entries written one by one, and sums in place."""

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        ds = torch.zeros_like(s)
        ds[:, 0] = -s[:, 0] + torch.tanh(s[:, 1])
        ds[:, 1:] = 2 * torch.ones_like(s[:, 1:]) * s[:, [2, 0]]
        h = s @ torch.eye(N).to(s)
        h += torch.sin(t)
        h *= 0.5
        return ds.sub_(F.relu_(h)) - F.elu(s - 1, inplace=True)


class Normalised(nn.Module):
    """Dropout and batch normalisation, which in evaluation mode are affine."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            linear(N, 4), nn.BatchNorm1d(4, dtype=torch.float64), nn.ReLU(inplace=True), nn.Dropout(0.5),
            nn.Identity(), nn.Sequential(linear(4, 4, seed=2), nn.ELU(0.5)), nn.LeakyReLU(0.3), linear(4, N, seed=4),
        )  # fmt: skip
        bn = self.net[1]
        assert isinstance(bn.running_mean, Tensor) and isinstance(bn.running_var, Tensor)
        bn.running_mean.copy_(drawn(4, seed=7))
        bn.running_var.copy_(drawn(4, seed=8) ** 2)

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        return self.net(s)


class Looping(nn.Module):
    """Weights made of parameters, products from the left, control flow that depends on no value."""

    def __init__(self) -> None:
        super().__init__()
        self.S = nn.Parameter(drawn(N, N))

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        A = self.S - self.S.T - self.S @ self.S.T
        for k in range(len(s.shape)):
            s = s + (A @ torch.tanh(s + k).T).T if s.dim() == 2 else s
        return torch.addmm(torch.ones(N).double(), s, A) - torch.einsum("ij,bj->bi", A, s)


CELL = nn.RNNCell(2, N, dtype=torch.float64)
RELU_CELL = nn.RNNCell(2, N, nonlinearity="relu", dtype=torch.float64)
X = drawn(4, 2, seed=3)
TWO, MIXED = mlp(nn.Tanh(), nn.Tanh()), mlp(nn.ReLU(), nn.Softsign(), nn.Hardtanh(-0.5, 2.0))
SMOOTH = mlp(nn.GELU(), nn.SiLU(), nn.Mish(), nn.GELU("tanh"))
OTHERS = mlp(nn.Hardswish(), nn.SELU(), nn.CELU(0.5), nn.LogSigmoid(), nn.Tanhshrink(), nn.PReLU(dtype=torch.float64))
PHASE = linear(1, N, seed=5)

FIELDS: dict[str, Field] = {
    "MLP": lambda t, s: TWO(s),
    "MLP with a leak": lambda t, s: -1.5 * s + TWO(s),
    "different activations": lambda t, s: MIXED(s) - s / 2,
    "smooth activations that are not monotone": lambda t, s: SMOOTH(s) - s,
    "other activations": lambda t, s: OTHERS(s) - s,
    "sines": lambda t, s: torch.sin(TWO(s)) - s.cos() + s.atan() + torch.erf(s) - s,
    "maxima": lambda t, s: torch.maximum(s, TWO(s)) - s.abs() + s.clamp(min=0.5) - s.clamp(max=1) - torch.relu(-s),
    "residual": Residual(),
    "dense": Densely(),
    "by hand": ByHand(),
    "entry by entry": Assigning(),
    "normalised": Normalised().eval(),
    "weights of weights": Looping(),
    "recurrent": lambda t, s: CELL(X[:1].expand(len(s), 2), s) - s,
    "recurrent ReLU": lambda t, s: RELU_CELL(X[:1].expand(len(s), 2), s) - s,
    "forced": lambda t, s: torch.tanh(TWO(s) + PHASE(torch.sin(3 * t).reshape(1, 1))) - s + torch.exp(-t),
    "linear": lambda t, s: s @ drawn(N, N) + t,
    "constant": lambda t, s: torch.zeros_like(s) + 1.0,
}


@pytest.mark.parametrize("name", FIELDS)
def test_what_is_read_is_the_field(name: str) -> None:
    field, s = NeuralFlow(FIELDS[name]), 2 * drawn(4, N, seed=1)
    found = lure_of(field, state=s if name in ("constant", "by hand", "entry by entry") else None)
    for t in (0.0, 0.7):
        assert torch.allclose(found(t, s), field(t, s), atol=1e-12, rtol=1e-12)
        assert torch.allclose(found.jacobian(s, t), field.jacobian(s, t), atol=1e-12, rtol=1e-12)
    times = drawn(4, 1, seed=9)
    each = torch.cat([field(t, row[None]) for t, row in zip(times[:, 0], s, strict=True)])
    assert torch.allclose(found(times, s), each, atol=1e-12)
    low, high = found.system().slopes
    assert bool((low >= 0).all() and (high <= 1).all())


def test_the_matrices_are_those_of_the_modules() -> None:
    first, second, third = (module for module in TWO if isinstance(module, nn.Linear))
    found = lure_of(NeuralFlow(lambda t, s: TWO(s) - 2 * s))
    assert found.layers == (5, 5) and torch.equal(found.A, -2 * torch.eye(N).double())
    assert found.D is not None and torch.equal(found.D[5:, :5], second.weight) and not bool(found.D[:5].any())
    assert torch.equal(found.C, torch.cat([first.weight, torch.zeros(5, N)]))
    assert torch.equal(found.B, torch.cat([torch.zeros(N, 5), third.weight], 1))
    assert torch.equal(found.q[0], torch.cat([first.bias, second.bias])) and torch.equal(found.e[0], third.bias)
    one = lure_of(NeuralFlow(lambda t, s: torch.tanh(s) + torch.relu(s) - s + 0 * torch.sigmoid(s)), state=drawn(N))
    assert one.D is None and one.neurons == 9  # side by side: one layer
    unused = lure_of(NeuralFlow(lambda t, s: (torch.tanh(s), -s)[1]), state=drawn(N))
    assert unused.neurons == 0


def test_gradients_reach_the_parameters() -> None:
    s, module = drawn(4, N, seed=1), FIELDS["weights of weights"]
    assert isinstance(module, nn.Module)
    (expected,) = torch.autograd.grad(module(torch.zeros(()), s).square().sum(), module.parameters())
    (found,) = torch.autograd.grad(lure_of(module)(0.0, s).square().sum(), module.parameters())
    assert torch.allclose(found, expected)
    with torch.no_grad():
        assert not lure_of(module).A.requires_grad


def test_an_input_is_an_input() -> None:
    net, s = mlp(nn.Tanh()), drawn(4, N, seed=1)
    inject = linear(2, N, seed=6)
    flow = InputFlow(lambda s, x: net(s) + inject(x), X, leak=0.7)
    found = lure_of(flow)
    assert isinstance(found.u, Tensor) and torch.equal(found.u, X) and torch.equal(found.B2, inject.weight)
    assert torch.allclose(found(0.0, s), flow(0.0, s), atol=1e-13)
    squared = InputFlow(lambda s, x: CELL(x * x, s), X)
    found = lure_of(squared)
    assert isinstance(found.u, Tensor) and torch.allclose(found.u, X * X)  # whatever is made of an input is one
    assert torch.allclose(found(0.0, s), squared(0.0, s), atol=1e-13)
    assert torch.allclose(found.jacobian(s), squared.jacobian(s), atol=1e-13)
    with pytest.raises(InputError, match="mul"):
        lure_of(InputFlow(lambda s, x: s * x[:, :1], X), state=s)


def test_a_time_for_each_row_with_an_input_for_each_row() -> None:
    class Both(InputFlow):
        def __call__(self, t: Any, state: Tensor) -> Tensor:
            return torch.tanh(state @ drawn(N, N)) + torch.sin(self.x[:, :1] + torch.as_tensor(t)) - state

    flow, s, times = Both(lambda s, x: s, X), drawn(4, N, seed=1), drawn(4, 1, seed=2)
    assert torch.allclose(lure_of(flow, state=s)(times, s), flow(times, s), atol=1e-13)


def test_other_vector_fields_are_read_as_well() -> None:
    W, q, s = drawn(N, N), drawn(N, seed=1), drawn(4, N, seed=2)
    problem = EquilibriumProblem(linear=Dense(W), q=q[None], activation=Tanh())
    for flow in (LinearFlow(W, q), FiringRate().bind(problem), Hopfield().bind(problem)):
        assert torch.allclose(lure_of(flow, state=s)(0.0, s), flow(0.0, s), atol=1e-13)
    made = LureFlow(A=W, B=W, C=W, activation=Tanh())
    assert lure_of(made) is made and lure_of(made, dtype=torch.float32).A.dtype == torch.float32


def test_single_precision_is_read_exactly() -> None:
    net = mlp(nn.Tanh(), nn.ReLU()).float()
    found = lure_of(NeuralFlow(lambda t, s: net(s) - s / 3))
    exact = lure_of(NeuralFlow(lambda t, s: net(s) - s / 3), dtype=torch.float64)
    assert found.A.dtype == torch.float32 and exact.A.dtype == torch.float64
    twin, s = net.double(), drawn(4, N)
    assert torch.allclose(exact(0.0, s), twin(s) - s / 3, atol=1e-14)
    assert torch.allclose(found(0.0, s.float()).double(), twin(s) - s / 3, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
def test_a_compiled_module_is_read_as_it_was_written() -> None:
    net, s = mlp(nn.Tanh()), drawn(4, N)
    compiled = torch.compile(net)
    assert torch.allclose(lure_of(compiled)(0.0, s), net(s), atol=1e-13)
    assert torch.allclose(lure_of(lambda t, s: compiled(s) - s)(0.0, s), net(s) - s, atol=1e-13)


def test_the_size_of_the_state_is_found_or_asked_for() -> None:
    assert lure_of(lambda t, s: mlp(nn.Tanh())(s)).size == lure_of(NeuralFlow(mlp(nn.Tanh()))).size == N
    with pytest.raises(InputError, match="state"):
        lure_of(lambda t, s: -s)
    with pytest.raises(InputError, match="state"):
        lure_of(lambda t, s: s @ torch.ones(2, 3))
    assert lure_of(lambda t, s: -s, state=drawn(7)).size == 7


GRU, LSTM = nn.GRUCell(N, N, dtype=torch.float64), nn.LSTMCell(N, N, dtype=torch.float64)
REFUSED: dict[str, tuple[Field, str]] = {
    "gates": (lambda t, s: GRU(s, s), "gru_cell"),
    "long memory": (lambda t, s: LSTM(s, (s, s))[0], "lstm_cell"),
    "a product of states": (lambda t, s: s * s, "mul"),
    "a power": (lambda t, s: s**3, "pow"),
    "a quotient": (lambda t, s: 1 / (1 + s.abs()), "rdiv|reciprocal"),
    "matrices that move": (lambda t, s: torch.sin(t) * s, "mul"),
    "an exponential": (lambda t, s: torch.exp(-s), "exp"),
    "pooling": (lambda t, s: F.max_pool1d(s[:, None], 3, 1, 1)[:, 0], "max_pool1d"),
    "normalised layers": (lambda t, s: F.layer_norm(s, (N,)), "layer_norm"),
    "softmax": (lambda t, s: torch.softmax(s, -1), "softmax"),
    "a norm": (lambda t, s: s * s.norm(dim=-1, keepdim=True), "norm"),
    "training": (lambda t, s: F.dropout(s, 0.5, training=True), "dropout"),
    "batches": (lambda t, s: F.batch_norm(torch.cat([s, -s]), None, None, training=True)[: len(s)], "batch_norm"),
    "assignment": (lambda t, s: torch.zeros_like(s).index_put_((torch.tensor([0]),), s[:1]), "index_put"),
    "writing into a constant": (lambda t, s: torch.zeros(1, N).double().add_(s), "add_"),
    "writing into a given one": (lambda t, s: torch.add(s, s, out=torch.zeros_like(s)), "add"),
    "a square in place": (lambda t, s: s.clone().mul_(s), "mul"),
    "attention": (lambda t, s: F.scaled_dot_product_attention(s[None], s[None], s[None])[0], "attention"),
    "a branch": (lambda t, s: s if s.sum() > 0 else -s, "gt|bool"),
    "a branch in time": (lambda t, s: s if t > 0.5 else -s, "bool|gt"),
    "a number": (lambda t, s: s * float(s[0, 0]), "float"),
    "a cut graph": (lambda t, s: s.detach(), "detach"),
    "a hidden cut": (lambda t, s: torch.tanh(s.data), "data"),
    "steep": (lambda t, s: F.elu(s, 3.0), "elu|ELU"),
    "limits that move": (lambda t, s: torch.clamp(s, max=t), "clamp"),
    "rows that see each other": (lambda t, s: s - s.mean(0), "rows"),
    "chance": (lambda t, s: -s + torch.rand(1), "random"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(name: str) -> None:
    field, word = REFUSED[name]
    with pytest.raises(InputError, match=word):
        lure_of(field, state=drawn(2, N))


def test_a_reader_of_ones_own() -> None:
    def ramp(v: Tensor) -> Tensor:
        if torch.overrides.has_torch_function_unary(v):
            return torch.overrides.handle_torch_function(ramp, (v,), v)
        return torch.where(v > 1, 1.0, torch.where(v < -1, -1.0, v))

    field, s = lambda t, s: ramp(2 * s) - s, drawn(4, N)
    with pytest.raises(InputError, match="ramp"):
        lure_of(field, state=s)
    register_reader(ramp, lambda v: neurons(v, HardTanh()))
    assert torch.allclose(lure_of(field, state=s)(0.0, s), field(torch.zeros(()), s))
    register_reader(ramp, lambda v: neurons(v, Tanh()))  # a reader that lies is noticed
    with pytest.raises(InputError, match="differs"):
        lure_of(field, state=s)
    for given in ((3, ramp), (ramp, 3)):
        with pytest.raises(InputError, match="function|reader"):
            register_reader(*given)  # type: ignore[arg-type]


def test_a_field_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="module"):
        lure_of(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="state"):
        lure_of(FIELDS["MLP"], state=[1.0])  # type: ignore[arg-type]

    class Wide(VectorField):
        def __call__(self, t: Any, state: Tensor) -> Tensor:
            return torch.cat([state, state], -1)

    with pytest.raises(InputError, match="f|state|shape"):
        lure_of(Wide(), state=drawn(N))
