"""Certified radii against closed forms and attacks; attacks against closed forms, and against foolbox itself."""

from __future__ import annotations

import copy
import math
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from contracting import Stop
from contracting.errors import InputError, MissingExtraError, PreconditionError
from equilibrium import LBEN, EquilibriumLayer, Unconstrained
from equilibrium.attacks import fast_gradient, fooled_in_boxes, smallest_perturbation
from equilibrium.convert import from_sequential
from equilibrium.lipschitz import Norm, pairwise_lipschitz
from equilibrium.local.margins import accuracy_within, attacks_inside, margins
from equilibrium.local.radius import certified_radius
from equilibrium.training.data import digits, subset
from equilibrium.training.loop import train

F64 = torch.float64


def linear_classifier() -> nn.Sequential:
    """Two classes, y = ±x₁ near the data: a perceptron that is linear there, of Lipschitz constant √2."""
    network = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 0.0]]))
        network[0].bias.fill_(10.0)
        network[2].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        network[2].bias.copy_(torch.tensor([-10.0, 10.0]))
    return network


@pytest.fixture(scope="module")
def trained():
    images = subset(digits(), train=600, test=120)
    torch.manual_seed(0)
    layer = LBEN(64, 12, 10, lipschitz=1.0, epsilon=0.1, stop=Stop(rtol=1e-4))
    train(layer, images, epochs=4, batch_size=32)
    exact = copy.deepcopy(layer).double()
    exact.stop = Stop(rtol=1e-9)
    inputs = images.test_inputs.double()
    bounds = (float(inputs.min()), float(inputs.max()))
    return SimpleNamespace(layer=layer, exact=exact, inputs=inputs, labels=images.test_labels, bounds=bounds)


@pytest.fixture(scope="module")
def pairs(trained):
    return pairwise_lipschitz(trained.exact)


@pytest.fixture(scope="module")
def attacked(trained):
    return smallest_perturbation(
        trained.layer, trained.inputs, trained.labels, bounds=trained.bounds, verify=trained.exact, steps=30
    )


def test_radius_of_a_linear_classifier_is_the_distance_to_the_boundary():
    layer = from_sequential(linear_classifier())
    x = torch.tensor([[0.5, 3.0], [-2.0, 1.0], [0.25, 0.0]], dtype=F64)
    labels = torch.tensor([0, 1, 1])
    radius = certified_radius(layer, x, labels, pairwise_lipschitz(layer))
    assert radius == pytest.approx(torch.tensor([0.5, 2.0, 0.0], dtype=F64), rel=1e-4)
    assert bool((radius <= torch.tensor([0.5, 2.0, 0.0], dtype=F64)).all())
    # ‖W_o‖ = √2, so that √2 γ is the constant of the pair too
    assert certified_radius(layer, x, labels, math.sqrt(2) * (1 + 1e-6)) == pytest.approx(radius, rel=1e-4)


def test_attacks_on_a_linear_classifier_find_the_distance_to_the_boundary():
    network = linear_classifier()
    x = torch.tensor([[0.5, 3.0], [-2.0, 1.0], [0.25, 0.0]], dtype=F64)
    labels = torch.tensor([0, 1, 1])
    found = smallest_perturbation(network, x, labels, bounds=(-5.0, 5.0), steps=100)
    assert found.sizes == pytest.approx(torch.tensor([0.5, 2.0, 0.0], dtype=F64), rel=0.02)
    assert bool((found.sizes[:2] >= torch.tensor([0.5, 2.0], dtype=F64)).all())
    fast = fast_gradient(network, x, labels, [0.0, 0.4, 0.6, 1.9, 2.1], bounds=(-5.0, 5.0))
    assert fast.fooled.T.tolist() == [[False, False, True, True, True], [False] * 4 + [True], [True] * 5]
    assert fast.smallest.tolist() == pytest.approx([0.6, 2.1, 0.0])
    assert fast.error_percent.tolist() == pytest.approx([100 / 3, 100 / 3, 200 / 3, 200 / 3, 100])


def test_attacks_in_boxes_on_a_linear_classifier_need_the_distance_in_the_maximum_norm():
    network = linear_classifier()
    x = torch.tensor([[0.5, 3.0], [-2.0, 1.0], [0.25, 0.0]], dtype=F64)
    labels = torch.tensor([0, 1, 1])  # the last one is wrong
    distance = torch.tensor([0.5, 2.0, 0.0], dtype=F64)  # |x₁|, of a class that is right
    for radius in (0.45, 0.55, 2.2):
        found = fooled_in_boxes(network, x, labels, radius, bounds=(-9.0, 9.0), steps=10)
        assert torch.isfinite(found.sizes).tolist() == (distance < radius).tolist()
        assert bool(((found.inputs - x).abs() <= radius * (1 + 1e-12)).all()) and found.sizes[2] == 0
        hit = torch.isfinite(found.sizes)
        assert bool((network(found.inputs).argmax(-1) != labels)[hit].all())
    kept = fooled_in_boxes(network, x, labels, 100.0, bounds=(-2.0, 3.0), steps=5)
    assert bool((kept.inputs >= -2).all() and (kept.inputs <= 3).all())


def test_fast_gradient_is_that_of_foolbox_at_every_size(trained):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
    sizes = [0.3, 1.5, 4.0]
    ours = fast_gradient(trained.exact, trained.inputs, trained.labels, sizes, bounds=trained.bounds)
    frozen = copy.deepcopy(trained.exact).eval()
    model = foolbox.PyTorchModel(frozen, bounds=trained.bounds)
    _, clipped, success = foolbox.attacks.L2FastGradientAttack()(model, trained.inputs, trained.labels, epsilons=sizes)
    assert torch.equal(ours.fooled, success)
    for k in range(len(sizes)):
        size = torch.linalg.vector_norm(clipped[k] - trained.inputs, dim=-1)
        assert ours.sizes[k] == pytest.approx(size.detach(), rel=1e-9)


def test_no_attack_succeeds_inside_a_certified_radius(trained, attacked, pairs):
    radius = certified_radius(trained.exact, trained.inputs, trained.labels, pairs)
    fast = fast_gradient(trained.exact, trained.inputs, trained.labels, [0.2, 0.5, 1, 2, 4], bounds=trained.bounds)
    assert int(torch.isfinite(attacked.sizes).sum()) > 100
    for sizes in (attacked.sizes, fast.smallest):
        assert len(attacks_inside(radius, sizes)) == 0
    # the negative control: at four times the radius, that of a constant too small, the check must find attacks
    assert len(attacks_inside(4 * radius, attacked.sizes)) > 10
    with pytest.raises(InputError, match=r"\bconstants\b"):
        certified_radius(trained.exact, trained.inputs, trained.labels, 0.25 * pairs.whole.bound)


def test_constants_of_other_weights_are_refused(trained, pairs):
    """A radius from the constants of earlier weights contained attacks after fine-tuning."""
    tuned = copy.deepcopy(trained.exact)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=F64))
    rows = trained.inputs[:5], trained.labels[:5]
    for constants in (pairs, pairs.whole):
        with pytest.raises(InputError, match=r"\bconstants\b"):
            certified_radius(tuned, *rows, constants)
        assert bool(torch.isfinite(certified_radius(copy.deepcopy(trained.exact), *rows, constants)).all())
    with torch.no_grad():  # no constant depends on a bias
        trained_bias = copy.deepcopy(trained.exact)
        trained_bias.parameterization.bias.add_(0.1)
    assert bool((certified_radius(trained_bias, *rows, pairs) >= 0).all())


def test_a_sequential_around_a_layer_gets_the_radius_of_the_whole_map(trained):
    """Normalisation inside the model: inputs are divided by two, and so the radius is doubled."""
    halved = nn.Sequential(nn.Flatten(), nn.Linear(64, 64, bias=False), trained.exact, nn.Linear(10, 3)).double().eval()
    with torch.no_grad():
        halved[1].weight.copy_(0.5 * torch.eye(64))
        halved[3].weight.copy_(torch.eye(3, 10))
        halved[3].bias.zero_()
    keep = trained.labels < 3
    x, y = trained.inputs[keep], trained.labels[keep]
    short = nn.Sequential(trained.exact, halved[3]).eval()
    radius = certified_radius(halved, 2 * x, y, pairwise_lipschitz(halved))
    assert radius == pytest.approx(2 * certified_radius(short, x, y, pairwise_lipschitz(short)), rel=1e-3)
    assert float(radius.max()) > 0


def test_perturbations_are_as_large_as_they_say_and_fool_the_exact_model(trained, attacked):
    found = torch.isfinite(attacked.sizes)
    with torch.no_grad():
        wrong = trained.exact(attacked.inputs).argmax(-1) != trained.labels
    assert torch.equal(wrong[found], torch.ones_like(wrong[found]))
    size = torch.linalg.vector_norm(attacked.inputs - trained.inputs, dim=-1)
    assert size[found] == pytest.approx(attacked.sizes[found])
    low, high = trained.bounds
    assert float(attacked.inputs.min()) >= low and float(attacked.inputs.max()) <= high


def test_strong_attack_beats_the_fast_one(trained, attacked):
    sizes = [0.05 * k for k in range(80)]
    fast = fast_gradient(trained.exact, trained.inputs, trained.labels, sizes, bounds=trained.bounds)
    finite = torch.isfinite(fast.smallest) & (attacked.sizes > 0)
    assert float((attacked.sizes / fast.smallest)[finite].median()) < 0.98


def test_pairs_of_classes_give_larger_radii_than_one_constant(trained, pairs):
    data = trained.exact, trained.inputs, trained.labels
    by_pairs, plain = (certified_radius(*data, constants) for constants in (pairs, pairs.whole))
    assert bool((by_pairs >= plain * (1 - 1e-9)).all())
    assert float(by_pairs.sum()) > 1.02 * float(plain.sum())
    by_number = certified_radius(trained.exact, trained.inputs, trained.labels, pairs.whole.bound)
    assert torch.equal(by_number, plain)


def test_an_inexact_solve_costs_radius(trained):
    rough = copy.deepcopy(trained.exact)
    rough.stop = Stop(rtol=1e-2)
    loose, tight = (certified_radius(m, trained.inputs, trained.labels, 1.0) for m in (rough, trained.exact))
    assert bool((loose <= tight * (1 + 1e-6)).all()) and float(loose.sum()) < 0.999 * float(tight.sum())


def test_batches_and_seeds_do_not_matter_to_the_certificate(trained):
    data = trained.exact, trained.inputs, trained.labels
    whole, parts = (certified_radius(*data, 1.0, batch_size=size) for size in (1000, 7))
    assert parts == pytest.approx(whole, rel=1e-6)


def test_the_sizes_of_perturbations_do_not_depend_on_the_batch_size():
    torch.manual_seed(2)  # the temperature of the first batch alone moved a size by an eighth here
    network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 6)).double()
    with torch.no_grad():  # leads of very different sizes: the temperature must be that of all rows
        x = torch.randn(12, 4, dtype=F64) * torch.logspace(-1, 0.5, 12, dtype=F64)[:, None]
        labels = network(x).argmax(-1)
    whole, parts = (
        smallest_perturbation(network, x, labels, bounds=(-20.0, 20.0), steps=20, batch_size=size).sizes
        for size in (1000, 3)
    )
    assert bool(torch.isfinite(whole).any())
    assert parts == pytest.approx(whole, rel=1e-9)


def test_attacks_leave_the_model_and_the_random_numbers_alone(trained):
    layer = copy.deepcopy(trained.layer).train()
    state = torch.get_rng_state()
    rows = slice(0, 5)
    for _ in range(2):
        smallest_perturbation(layer, trained.inputs[rows], trained.labels[rows], bounds=trained.bounds, steps=2)
    fast_gradient(layer, trained.inputs[rows].float(), trained.labels[rows], [1.0], bounds=(-9.0, 9.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert layer.training and all(p.requires_grad and p.grad is None for p in layer.parameters())


def test_curves_and_margins():
    outputs = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]])
    assert margins(outputs, torch.tensor([0, 2])).tolist() == [[0.0, 2.0, 1.0], [1.0, -4.0, 0.0]]
    shares = accuracy_within(torch.tensor([0.0, 1.0, 2.0, math.inf]), torch.tensor([0.0, 1.0, 1.5]))
    assert shares.tolist() == [75.0, 50.0, 50.0]
    inside = attacks_inside(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.99, 1.0, 0.0]))
    assert inside.tolist() == [0]


def test_refusals_name_what_is_wrong(trained, pairs, monkeypatch):
    x, y = trained.inputs[:3], trained.labels[:3]
    with pytest.raises(PreconditionError, match="Condition 1"):
        certified_radius(EquilibriumLayer(Unconstrained(64, 5, 10, dtype=F64)), x, y, 1.0)
    with pytest.raises(InputError, match=r"\bconstants\b"):
        certified_radius(trained.exact, x, y, replace(pairs.whole, norm=Norm.LINF))
    with pytest.raises(InputError, match=r"\blabels\b"):
        certified_radius(trained.exact, x, y[:2], 1.0)
    with pytest.raises(InputError, match=r"\bbounds\b"):
        fast_gradient(trained.exact, x, y, [1.0], bounds=(0.0, 1.0))
    with pytest.raises(InputError, match=r"\bsteps\b"):
        smallest_perturbation(trained.exact, x, y, bounds=trained.bounds, steps=0)
    with pytest.raises(InputError, match=r"\bseed\b"):
        smallest_perturbation(trained.exact, x, y, bounds=trained.bounds, seed=2**64)
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(MissingExtraError, match=r"contracting-equilibria\[attacks\]"):
        fast_gradient(trained.exact, x, y, [1.0], bounds=trained.bounds)



def test_labels_that_are_no_classes_are_refused_everywhere(trained):
    x, bounds = trained.inputs[:3], trained.bounds
    for labels in (torch.tensor([0, 1, 10]), torch.tensor([0, 1, -1]), torch.tensor([0.0, 1.0, 2.0])):
        for call in (
            lambda labels=labels: certified_radius(trained.exact, x, labels, 1.0),
            lambda labels=labels: fast_gradient(trained.exact, x, labels, [1.0], bounds=bounds),
            lambda labels=labels: smallest_perturbation(trained.exact, x, labels, bounds=bounds),
        ):
            with pytest.raises(InputError, match=r"\blabels\b"):
                call()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"inputs": 1.0}, "inputs"),
        ({"inputs": torch.tensor(1.0, dtype=F64)}, "inputs"),
        ({"inputs": torch.zeros(64, dtype=F64)}, "inputs"),
        ({"labels": [0, 1, 2]}, "labels"),
        ({"labels": torch.tensor(1)}, "labels"),
        ({"bounds": 9.0}, "bounds"),
        ({"bounds": (-9.0, torch.tensor(9.0))}, "bounds"),
        ({"allowed": 0.5}, "allowed"),
        ({"allowed": torch.tensor([0.5, 1.0])}, "allowed"),
        ({"constants": torch.tensor(1.0)}, "constants"),
    ],
)
def test_what_is_no_tensor_or_no_list_is_named(trained, changed, named):
    own = {
        certified_radius: {"constants": 1.0},
        fast_gradient: {"allowed": [0.5], "bounds": trained.bounds},
        smallest_perturbation: {"bounds": trained.bounds},
    }
    rows = {"inputs": trained.inputs[:3], "labels": trained.labels[:3]}
    concerned = [call for call, options in own.items() if changed.keys() <= rows.keys() | options.keys()]
    assert concerned
    for call in concerned:
        with pytest.raises(InputError, match=rf"\b{named}\b"):
            call(trained.exact, **rows | own[call] | changed)


def test_curves_need_tensors_and_a_radius_a_layer_of_ours(trained):
    values = torch.ones(3)
    for call in (lambda x: attacks_inside(x, values), lambda x: attacks_inside(values, x)):
        with pytest.raises(InputError, match=r"\b(radius|sizes)\b"):
            call(1.0)
    with pytest.raises(InputError, match=r"\bsizes\b"):
        accuracy_within(values, torch.tensor(1.0))
    with pytest.raises(InputError, match=r"\boutputs\b"):
        margins(1.0, torch.tensor([0]))
    with pytest.raises(InputError, match=r"\bmodel\b"):
        certified_radius(nn.Linear(64, 10).double(), trained.inputs[:3], trained.labels[:3], 1.0)


def test_a_radius_is_not_certified_in_float32(trained):
    with pytest.raises(InputError, match=r"\bfloat64\b"):
        certified_radius(trained.layer, trained.inputs.float(), trained.labels, 1.0)


def test_an_attack_needs_a_size_and_two_classes(trained):
    rows = slice(0, 2)
    with pytest.raises(InputError, match=r"\ballowed\b"):
        fast_gradient(trained.exact, trained.inputs[rows], trained.labels[rows], [], bounds=trained.bounds)
    single = nn.Linear(64, 1).double()
    with pytest.raises(InputError, match=r"\bmodel\b"):
        smallest_perturbation(single, trained.inputs[rows], 0 * trained.labels[rows], bounds=trained.bounds)


def test_an_attack_leaves_every_mode_and_every_gradient_as_it_was(trained):
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 10)).double()
    model.train()
    model[1].eval()  # frozen statistics
    model[0].weight.requires_grad_(False)
    before = [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]
    state = copy.deepcopy(model.state_dict())
    first = smallest_perturbation(model, trained.inputs[:4], trained.labels[:4], bounds=trained.bounds, steps=3)
    again = smallest_perturbation(model, trained.inputs[:4], trained.labels[:4], bounds=trained.bounds, steps=3)
    assert before == ([module.training for module in model.modules()], [p.requires_grad for p in model.parameters()])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(first.sizes, again.sizes)  # the automatic temperature too is taken without dropout


def test_a_model_without_parameters_can_be_attacked():
    class Sides(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack((x[:, 0], -x[:, 0]), -1)

    x = torch.tensor([[1.0, 0.0], [-2.0, 0.5]], dtype=torch.float64)
    found = smallest_perturbation(Sides(), x, torch.tensor([0, 1]), bounds=(-5.0, 5.0), steps=100)
    assert torch.allclose(found.sizes, torch.tensor([1.0, 2.0], dtype=found.sizes.dtype), rtol=0.02)
