"""Losses of worst outputs: bounds that hold, gradients of the first and second order, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from contracting import Implicit, InputError, PreconditionError
from equilibrium import (
    LBEN,
    NEMON,
    CertifiedMargin,
    EquilibriumLayer,
    IntervalMargin,
    Stop,
    Unconstrained,
    certified_within,
    pairwise_lipschitz,
    train,
)
from equilibrium.lipschitz import Norm
from equilibrium.local.boxes import box_leads
from equilibrium.training.certified import LOSSES, Explicit, WorstCase, margin_constants
from equilibrium.training.data import digits, subset
from equilibrium.training.losses import CrossEntropy
from equilibrium.training.records import TrainingError

F64 = torch.float64
TIGHT = Stop(rtol=1e-13, atol=1e-13, max_steps=5000)


def exact(parameterization: nn.Module, seed: int = 0) -> EquilibriumLayer:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in parameterization.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    return EquilibriumLayer(parameterization, stop=TIGHT, backward=Implicit(stop=TIGHT))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def reached(model: nn.Module, x: Tensor, labels: Tensor, moves: Tensor) -> Tensor:
    """The largest lead of every class over the label at x + moves: (k, batch, in) -> (batch, classes)."""
    y = model((x + moves).flatten(0, 1)).unflatten(0, moves.shape[:2])
    return (y - y.gather(-1, labels.expand(len(moves), -1)[..., None])).amax(0).detach()


def corners(seed: int, radius: float, *shape: int) -> Tensor:
    return radius * drawn(seed, *shape).sign()


@pytest.mark.parametrize("feedthrough", [False, True])
@pytest.mark.parametrize("around", [False, True])
def test_no_input_of_the_box_exceeds_the_leads(feedthrough: bool, around: bool) -> None:
    layer = exact(NEMON(4, 6, 3, feedthrough=feedthrough, dtype=F64))
    model: nn.Module = layer
    if around:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 4, dtype=F64), layer, nn.Linear(3, 4, dtype=F64))
    inputs = 5 if around else 4
    x, labels = drawn(1, 6, inputs), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = IntervalMargin(radius=0.3, bounds=(-1.5, 1.5))
    leads = loss.leads(model, x.clamp(-1.5, 1.5), labels, model(x)).detach()
    moves = torch.cat([corners(2, 0.3, 300, 6, inputs), corners(3, 0.3, 30, 6, inputs) * torch.rand(30, 6, inputs)])
    moved = (x.clamp(-1.5, 1.5) + moves).clamp(-1.5, 1.5) - x
    assert bool((reached(model, x, labels, moved) <= leads + 1e-9).all())
    assert torch.equal(leads.gather(-1, labels[:, None]), torch.zeros(6, 1, dtype=F64))
    twice = reached(model, x, labels, 2 * moves)  # a box of twice the size is another statement
    assert bool((twice > leads).any())


def test_the_leads_are_those_of_the_enclosure() -> None:
    """By independent code: the coupled boxes that ``certified_within`` proves with."""
    layer = exact(NEMON(4, 6, 3, dtype=F64))
    x, labels = drawn(1, 5, 4), torch.tensor([0, 1, 2, 0, 1])
    leads = IntervalMargin(radius=0.05).leads(layer, x, labels, layer(x)).detach()
    proof = certified_within(layer, x, labels, 0.05, norm=Norm.LINF)
    others = torch.nn.functional.one_hot(labels, 3) == 0
    assert bool((proof.leads[others] >= -leads[others] - 1e-7)[proof.leads[others].isfinite()].all())
    boxes = box_leads(layer, x, labels, 0.05)
    assert torch.allclose(boxes, -leads, atol=1e-6) and bool((boxes <= proof.leads + 1e-6).all())
    single = IntervalMargin(radius=0.0).leads(layer, x, labels, layer(x))
    y = layer(x)
    assert torch.allclose(single, y - y.gather(-1, labels[:, None]), atol=1e-9)


def test_a_linear_network_has_the_exact_leads() -> None:
    """W = 0 and all neurons at work: y_j − y_label is linear, and so its maximum over a box or a ball is known."""
    layer = exact(NEMON(4, 6, 3, epsilon=1.0, dtype=F64))
    with torch.no_grad():
        layer.parameterization.A.zero_()
        layer.parameterization.bias.fill_(50.0)
    weights, x, labels = layer.weights(), drawn(1, 5, 4), torch.tensor([0, 1, 2, 0, 1])
    G = weights.output @ weights.input
    difference = G - G[labels][:, None]
    y = layer(x)
    own = y - y.gather(-1, labels[:, None])
    box = IntervalMargin(radius=0.2).leads(layer, x, labels, y)
    by_boxes = (weights.output - weights.output[labels][:, None]).abs() @ weights.input.abs().sum(-1)
    assert torch.allclose(box, own + 0.2 * by_boxes, atol=1e-9)
    assert bool((box >= own + 0.2 * difference.abs().sum(-1) - 1e-9).all())
    ball = CertifiedMargin(radius=0.2).leads(layer, x, labels, y)
    assert bool((ball >= own + 0.2 * torch.linalg.vector_norm(difference, dim=-1) - 1e-9).all())


@pytest.mark.parametrize("options", [{"lipschitz": 0.8}, {}, {"feedthrough": True}])
def test_constants_of_margins_are_bounds(options: dict[str, object]) -> None:
    layer = exact(LBEN(4, 6, 3, dtype=F64, **options).parameterization, seed=2)  # type: ignore[arg-type]
    if layer.parameterization.log_gamma is not None:
        with torch.no_grad():
            layer.parameterization.log_gamma.fill_(math.log(0.8))
    constants = margin_constants(Explicit.of(layer))
    tight = pairwise_lipschitz(layer).bounds
    apart = ~torch.eye(3, dtype=torch.bool)
    assert bool((constants[apart] >= tight[apart] * (1 - 1e-3)).all())  # found by a search, to 3e-4
    assert bool((constants[apart] <= 3 * tight[apart]).all()) and not bool(constants[~apart].any())
    x, labels = drawn(1, 6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    leads = CertifiedMargin(radius=0.5).leads(layer, x, labels, layer(x)).detach()
    moves = 0.5 * torch.nn.functional.normalize(drawn(3, 300, 6, 4), dim=-1)
    assert bool((reached(layer, x, labels, moves) <= leads + 1e-9).all())
    assert bool((reached(layer, x, labels, 20 * moves) > leads).any())


def losses_along(loss: WorstCase, layer: EquilibriumLayer, x: Tensor, labels: Tensor):
    """The loss as a function of all parameters, for gradcheck."""
    names, values = zip(*layer.named_parameters(), strict=True)

    def value(*moved: Tensor) -> Tensor:
        class Bound(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = layer

            def forward(self) -> Tensor:
                return loss.of(self.inner, x, labels).value

        bound = Bound()
        swapped = {f"inner.{name}": tensor for name, tensor in zip(names, moved, strict=True)}
        return torch.func.functional_call(bound, swapped)

    return value, tuple(v.detach().clone().requires_grad_() for v in values)


@pytest.mark.parametrize("made", ["interval", "margin", "margin with γ"])
def test_gradients_of_the_first_and_second_order(made: str) -> None:
    x, labels = drawn(1, 2, 2), torch.tensor([0, 1])
    if made == "interval":
        layer, loss = exact(NEMON(2, 3, 2, dtype=F64)), IntervalMargin(radius=0.2, share=0.7)
    else:
        gamma = {"lipschitz": 0.5, "learn_lipschitz": True} if made.endswith("γ") else {}
        layer = exact(LBEN(2, 3, 2, dtype=F64, learn_metric=False, **gamma).parameterization)  # Λ = I is not moved
        loss = CertifiedMargin(radius=0.2, share=0.7)
    function, values = losses_along(loss, layer, x, labels)
    assert torch.autograd.gradcheck(function, values, eps=1e-6, atol=1e-5, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, values, eps=1e-6, atol=1e-4, fast_mode=True)


def test_networks_without_boxes_of_equilibria_are_refused() -> None:
    layer = LBEN(4, 2, 3, epsilon=0.1, dtype=F64)
    with torch.no_grad():
        layer.parameterization.S.copy_(torch.tensor([[0.0, 3.0], [0.0, 0.0]]))
    x, labels = drawn(1, 5, 4), torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises(PreconditionError, match="NEMON"):
        IntervalMargin(radius=0.1).of(layer, x, labels)
    dataset = subset(digits(), train=10, test=10)
    wide = LBEN(64, 4, 10, epsilon=0.1)
    nn.init.normal_(wide.parameterization.S, std=3.0)
    with pytest.raises(TrainingError, match="NEMON"):
        train(wide, dataset, epochs=1, loss=IntervalMargin(radius=0.1, warm_up=0.0))
    with pytest.raises(PreconditionError, match="γ"):
        CertifiedMargin(radius=0.1).of(EquilibriumLayer(Unconstrained(4, 2, 3, dtype=F64)), x, labels)
    with pytest.raises(InputError, match="model"):
        IntervalMargin(radius=0.1).of(nn.Linear(4, 3, dtype=F64), x, labels)


@pytest.mark.parametrize("name", ["certified-margin", "interval-margin"])
def test_training_proves_more(name: str) -> None:
    dataset = subset(digits(), train=200, test=100)
    radius = {"certified-margin": 1.5, "interval-margin": 0.05}[name]
    loss = LOSSES[name](radius=radius, temperature=0.3, share=0.8)
    found = {}
    for way, chosen in (("usual", CrossEntropy()), (name, loss)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = EquilibriumLayer(NEMON(64, 12, 10)) if name == "interval-margin" else LBEN(64, 12, 10)
        record = train(layer, dataset, epochs=5, batch_size=40, loss=chosen)
        open_rows = loss.unproved(layer, dataset.test_inputs, dataset.test_labels)
        found[way] = float(open_rows.double().mean())
        if way != "usual":
            assert record.epochs[-1].unproved == pytest.approx(100 * found[way])
            assert record.epochs[-1].unproved >= record.test_error
        else:
            assert record.epochs[-1].unproved is None
    assert found[name] < found["usual"] - 0.05


def test_the_radius_rises_while_it_warms_up() -> None:
    loss = IntervalMargin(radius=0.4, warm_up=0.5)
    assert [loss.at(p).radius for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.0, 0.2, 0.4, 0.4])
    assert IntervalMargin(radius=0.4, warm_up=0.0).at(0.0).radius == 0.4


@pytest.mark.parametrize(
    "option", [{"radius": -1.0}, {"share": 0.0}, {"warm_up": 2.0}, {"temperature": 0.0}, {"bounds": (1.0, 0.0)}]
)
def test_settings_out_of_range_are_named(option: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        IntervalMargin(**{"radius": 0.1, **option})  # type: ignore[arg-type]
