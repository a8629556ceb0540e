"""The loss by local constants: a true bound, the one of the checker, with the gradient of the smallest bound."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from contracting import Implicit, InputError, PreconditionError, Tanh
from equilibrium import (
    LBEN,
    CertifiedMargin,
    EquilibriumLayer,
    LocalMargin,
    Stop,
    Unconstrained,
    local_lipschitz,
    train,
)
from equilibrium.local import checker
from equilibrium.local.differentiable import bound
from equilibrium.local.finder import Effort
from equilibrium.local.network import LocalNetwork
from equilibrium.local.relaxation import Forms, middles
from equilibrium.local.surroundings import Surroundings
from equilibrium.training.data import digits, subset
from tests.equilibrium.local.instances import drawn, largest_drops, random_layer

F64 = torch.float64
LABELS = torch.tensor([0, 1, 2, 0])


def slopes_of(seed: int, batch: int, n: int) -> tuple[Tensor, Tensor]:
    """Random intervals of slopes, those of the first two neurons points."""
    ends = torch.rand(2, batch, n, generator=torch.Generator().manual_seed(seed), dtype=F64).sort(0).values
    ends[1, :, :2] = ends[0, :, :2]
    return ends[0], ends[1]


def test_the_bound_is_that_of_the_checker() -> None:
    """By independent code, which takes a factor of another size in other coordinates."""
    network = LocalNetwork(random_layer(1, neurons=8))
    (low, high), W, U = slopes_of(0, 5, 8), network.system.W, network.system.U
    forms = Forms(state=network.system.C.expand(5, -1, -1), inner=drawn(3, 5, 3, 8), direct=drawn(4, 5, 3, 4))
    multiplier = network.metric * torch.tensor([[0.3], [1.0], [1.5], [0.1], [1e9]], dtype=F64)
    found = bound(W, U, low, high, multiplier, forms, 0.7)
    around = Surroundings(radius=torch.full((5,), 0.7, dtype=F64))
    full = multiplier * middles(low, high)[1].square()
    proved = checker.bounds(network.matrices, low, high, full, forms, None, around)
    assert bool(found[:4].isfinite().all()) and bool(torch.isinf(found[4]).all())  # of the last one S is not definite
    assert torch.allclose(found, proved, rtol=1e-7)


def test_the_gradient_of_the_bound_at_a_multiplier() -> None:
    network = LocalNetwork(random_layer(1))
    (low, high), system = slopes_of(0, 2, 6), network.system
    multiplier, width = 0.2 * network.metric.expand(2, 6), high - low

    def value(W: Tensor, U: Tensor, C: Tensor, low: Tensor, share: Tensor) -> Tensor:
        forms = Forms(state=C.expand(2, -1, -1))
        return bound(W, U, low, low + share * width, multiplier, forms, 0.7)

    given = (system.W, system.U, system.C, low, torch.ones(2, 6, dtype=F64))
    moved = tuple(each.clone().requires_grad_() for each in given)
    assert torch.autograd.gradcheck(value, moved, fast_mode=True)
    assert torch.autograd.gradgradcheck(value, moved, fast_mode=True)


def test_the_gradient_is_that_of_the_smallest_bound() -> None:
    """Multipliers are searched anew at every shifted weight, and hardly move the bound: the envelope theorem."""
    layer, x = random_layer(2), drawn(2, 4, 4)
    layer.stop = Stop(rtol=1e-12, atol=1e-12, max_steps=5000)
    layer.backward = Implicit(stop=layer.stop)
    loss = LocalMargin(radius=0.5, share=1.0, effort=Effort(steps=150))
    parameters = tuple(layer.parameters())
    gradient = torch.autograd.grad(loss.of(layer, x, LABELS).value, parameters)
    way = tuple(drawn(k, *part.shape) for k, part in enumerate(parameters))
    ends = []
    for step in (-1e-3, 1e-3):
        with torch.no_grad():
            for part, along in zip(parameters, way, strict=True):
                part.add_(step * along)
            ends.append(float(loss.of(layer, x, LABELS).value))
            for part, along in zip(parameters, way, strict=True):
                part.sub_(step * along)
    slope = sum(float((g * along).sum()) for g, along in zip(gradient, way, strict=True))
    assert slope == pytest.approx((ends[1] - ends[0]) / 2e-3, rel=0.01)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("around", [False, True])
def test_no_input_of_the_ball_exceeds_the_leads(passes: int, around: bool) -> None:
    broken = 0
    for seed, radius in ((0, 0.6), (1, 0.6), (2, 0.05), (3, 0.05)):
        model: nn.Module = random_layer(seed, outputs=3)
        if around:
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(5, 4, dtype=F64), model, nn.Linear(3, 3, dtype=F64))
        x, rows = drawn(seed + 50, 1, 5 if around else 4), torch.eye(3, dtype=F64)
        own = (model(x) - model(x)[:, :1])[0].detach()
        loss = LocalMargin(radius=radius, passes=passes)
        leads = loss.leads(model, x, LABELS[:1], model(x))[0].detach()
        attained = own[1:] + largest_drops(model, x, radius, None, rows[1:] - rows[0])
        assert leads[0] == 0 and bool((attained <= leads[1:] + 1e-9).all())
        plain = CertifiedMargin(radius=radius).leads(model, x, LABELS[:1], model(x))[0]
        assert bool((leads <= plain + 1e-9).all())
        broken += int((attained > own[1:] + 0.8 * (leads - own)[1:]).sum())
    assert broken  # constants that are a fifth smaller are refuted by the attack


def test_the_rises_are_nearly_those_that_are_proved() -> None:
    layer, x, rows = random_layer(4), drawn(3, 4, 4), torch.eye(3, dtype=F64)
    y = layer(x).detach()
    loss = LocalMargin(radius=0.4, passes=3, effort=Effort(steps=16))
    leads = loss.leads(layer, x, LABELS, y).detach()
    rises = leads - (y - y.gather(-1, LABELS[:, None]))
    proved = local_lipschitz(layer, x, 0.4, functionals=rows - rows[LABELS][:, None], passes=3).drops
    others = rows[LABELS] == 0
    # a proof has one multiplier for each pair, the loss has one for all pairs of a row
    ratios = (rises / proved)[others]
    assert bool((ratios > 0.98).all()) and float(ratios.median()) < 1.1 and float(ratios.max()) < 1.4
    assert torch.equal(loss.unproved(layer, x, LABELS), ((leads >= 0) & others).any(-1))


def test_other_activations_and_some_rows() -> None:
    layer = EquilibriumLayer(LBEN(4, 6, 3, dtype=F64).parameterization, activation=Tanh())
    x = drawn(1, 4, 4)
    y = layer(x)
    whole, some, none = (
        loss.leads(layer, x, LABELS, y)
        for loss in (LocalMargin(radius=0.5), LocalMargin(radius=0.5, rows=2), CertifiedMargin(radius=0.5))
    )
    assert torch.equal(some[2:], none[2:]) and torch.allclose(some[:2], whole[:2], rtol=1e-3)
    assert bool(whole.sum() < some.sum()) and bool(some.sum() < none.sum())
    assert torch.equal(
        LocalMargin(radius=0.5, rows=1).unproved(layer, x, LABELS), LocalMargin(radius=0.5).unproved(layer, x, LABELS)
    )
    for gradient in torch.autograd.grad(whole.sum(), tuple(layer.parameters()), allow_unused=True):
        assert gradient is None or bool(gradient.isfinite().all())
    assert torch.equal(
        LocalMargin(radius=0.0).leads(layer, x, LABELS, y), CertifiedMargin(radius=0.0).leads(layer, x, LABELS, y)
    )


def test_training_proves_more() -> None:
    dataset = subset(digits(), train=200, test=100)
    loss, open_rows = LocalMargin(radius=1.5, temperature=0.3, share=0.8), {}
    for way, chosen in (("usual", None), ("local", loss)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = LBEN(64, 12, 10)
        options = {} if chosen is None else {"loss": chosen}
        train(layer, dataset, epochs=6, batch_size=25, **options)  # type: ignore[arg-type]
        open_rows[way] = float(loss.unproved(layer, dataset.test_inputs, dataset.test_labels).double().mean())
    assert open_rows["local"] < open_rows["usual"] - 0.1


def test_what_it_refuses() -> None:
    x = drawn(1, 4, 4)
    with pytest.raises(PreconditionError, match="γ"):
        LocalMargin(radius=0.1).of(EquilibriumLayer(Unconstrained(4, 2, 3, dtype=F64)), x, LABELS)
    for option in ({"passes": 0}, {"rows": 0}, {"radius": -1.0}):
        with pytest.raises(InputError, match=next(iter(option))):
            LocalMargin(**{"radius": 0.1, **option})  # type: ignore[arg-type]
