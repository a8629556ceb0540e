"""Local constants against what moves really do, against exact linear pieces, and against bounds that do not hold."""

from __future__ import annotations

import itertools

import mpmath
import pytest
import torch
from torch import nn

from contracting import Activation, HardTanh, InputError, LeakyReLU, PreconditionError, ReLU, Softplus
from contracting.activations.mirrored import Mirrored
from contracting.contracts import ActivationContract
from equilibrium import (
    EquilibriumLayer,
    Stop,
    Unconstrained,
    certified_lipschitz,
    explicit_weights,
    from_sequential,
    from_weights,
    pairwise_lipschitz,
)
from equilibrium.layers import EquilibriumLayer as Layer
from equilibrium.lipschitz import Norm
from equilibrium.local import certified_radius, certified_within, checker, passes
from equilibrium.local.constants import LocalLipschitz, local_lipschitz
from equilibrium.local.coupled import CoupledNetwork
from equilibrium.local.finder import Effort
from equilibrium.local.network import LocalNetwork
from equilibrium.local.relaxation import Forms, middles, moves
from equilibrium.local.surroundings import Surroundings
from tests.equilibrium.local.instances import drawn, largest_drops, random_layer

F64 = torch.float64


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_no_move_is_larger_than_its_bound(bounds: tuple[float, float] | None) -> None:
    ratios = []
    for seed in range(4):
        layer = random_layer(seed)
        x = drawn(seed + 50, 1, 4).clamp(-1, 1)
        for radius in (0.1, 1.0):
            found = local_lipschitz(layer, x, radius, bounds=bounds, functionals=torch.eye(3, dtype=F64)[:2])
            attained = largest_drops(layer, x, radius, bounds, found.functionals)
            assert bool((attained <= found.drops[0] + 1e-9).all())
            ratios.append(float((attained / found.drops[0]).max()))
    assert max(ratios) > 0.99 and sorted(ratios)[len(ratios) // 2] > 0.5  # not vacuous


def test_where_every_neuron_is_decided_the_bound_is_the_slope() -> None:
    layer, x = random_layer(3), drawn(9, 5, 4)
    found = local_lipschitz(layer, x, 1e-7)
    assert bool(found.exact.all())
    slopes = torch.stack([torch.autograd.functional.jacobian(lambda row: layer(row[None])[0], row) for row in x])
    exact = (found.functionals @ slopes).norm(dim=-1)
    assert torch.allclose(found.constants, exact, rtol=1e-6)


def test_never_above_the_global_constant() -> None:
    layer, x = random_layer(1), drawn(2, 6, 4)
    certified = certified_lipschitz(layer).bound
    found = local_lipschitz(layer, x, 0.5, effort=Effort(steps=60))
    assert bool((found.constants <= 2**0.5 * certified * (1 + 1e-3)).all())
    assert float(found.constants.mean()) < 0.8 * 2**0.5 * certified


def test_more_passes_and_a_smaller_ball_prove_more() -> None:
    layer, x = random_layer(4), drawn(3, 4, 4)
    drops = [local_lipschitz(layer, x, 0.3, passes=k).drops.sum() for k in (0, 1, 3)]
    assert drops[0] > drops[1] >= drops[2]
    assert bool((local_lipschitz(layer, x, 0.1).constants <= 1.001 * local_lipschitz(layer, x, 0.3).constants).all())


def test_a_cut_ball_proves_more_than_a_whole_one() -> None:
    layer, x = random_layer(5), torch.zeros(3, 4, dtype=F64)
    whole, cut = (local_lipschitz(layer, x, 0.8, bounds=bounds).drops for bounds in (None, (0.0, 1.0)))
    assert bool((cut <= whole * 1.02).all()) and float(cut.mean()) < 0.9 * float(whole.mean())


def test_against_all_slope_patterns() -> None:
    """For a whole ball the drop is r times the largest norm over the vertices of the proved slopes, or more."""
    for seed in range(20):
        layer, x, radius = random_layer(seed, neurons=5), drawn(seed, 1, 4), 0.5
        network = LocalNetwork(layer)
        narrowing = passes.Narrowing(network, network.anchors(x), Surroundings.of(x, radius, None), Effort(steps=40))
        narrowing.step()
        low, high = narrowing.slopes.low[0], narrowing.slopes.high[0]
        c = torch.tensor([[1.0, -1.0, 0.0]], dtype=F64)
        bound = narrowing.drop(torch.tensor([0]), c)[0] / radius
        largest = 0.0
        for corner in itertools.product((0, 1), repeat=5):
            J = torch.diag(torch.where(torch.tensor(corner) == 1, high, low))
            gain = c @ network.system.C @ torch.linalg.solve(torch.eye(5) - J @ network.system.W, J @ network.system.U)
            largest = max(largest, float(gain.norm()))
        assert largest <= bound * (1 + 1e-9)
        assert bound <= 1.6 * largest


def kept(layer: Layer, x: torch.Tensor, radius: float, *, shrink: float = 1.0, used_at: float | None = None) -> float:
    """How much of the bound an attack reaches, with slopes for ``shrink`` times the proved moves, used at a radius."""
    network = LocalNetwork(layer)
    around = Surroundings.of(x, radius * shrink, None)
    narrowing = passes.Narrowing(network, network.anchors(x), around, Effort(steps=40))
    for _ in range(4):
        narrowing.step()
    radius = radius if used_at is None else used_at
    narrowing.around = Surroundings.of(x, radius, None)
    c = torch.eye(3, dtype=F64)[:1]
    bound = narrowing.drop(torch.tensor([0]), c)
    return float(largest_drops(layer, x, radius, None, c)[0] / bound[0])


def test_slopes_for_a_smaller_ball_are_refuted_by_an_attack() -> None:
    cases = [(random_layer(seed), drawn(seed + 20, 1, 4)) for seed in range(6)]
    assert max(kept(layer, x, 0.8) for layer, x in cases) <= 1 + 1e-9
    assert max(kept(layer, x, 0.8, shrink=0.8) for layer, x in cases) > 1
    assert max(kept(layer, x, 0.4, used_at=0.8) for layer, x in cases) > 1


def test_a_sign_of_w_is_caught() -> None:
    """Moves of z = σ(0.8z + x) are five times those of x, and the bounds of −W are broken by them."""
    W, eye = torch.tensor([[0.8, 0.0], [0.0, -0.5]], dtype=F64), torch.eye(2, dtype=F64)
    layer = from_weights(explicit_weights(W, eye, eye, metric=torch.ones(2, dtype=F64)), activation=ReLU())
    x, c = torch.full((1, 2), 3.0, dtype=F64), torch.eye(2, dtype=F64)
    attained = largest_drops(layer, x, 1.0, None, c)
    assert attained.tolist() == pytest.approx([5.0, 1 / 1.5], rel=1e-3)
    for sign, kept in ((1, True), (-1, False)):
        network = LocalNetwork(layer)
        network.__dict__["matrices"] = network.matrices._replace(W=sign * W)
        narrowing = passes.Narrowing(network, network.anchors(x), Surroundings.of(x, 1.0, None), Effort(steps=40))
        narrowing.step()
        assert bool((attained <= narrowing.drop(torch.tensor([0, 0]), c)).all()) is kept


def test_the_checker_believes_nothing() -> None:
    layer, x = random_layer(2), drawn(1, 2, 4)
    network = LocalNetwork(layer)
    around = Surroundings.of(x, 1.0, None)
    zero, one = torch.zeros(2, 6, dtype=F64), torch.ones(2, 6, dtype=F64)
    forms = Forms(state=torch.ones(2, 1, 6, dtype=F64))
    for multiplier in (0 * one, -one, 1e9 * one, torch.nan * one):
        assert bool(checker.bounds(network.matrices, zero, one, multiplier, forms, None, around).isinf().all())
    loop = torch.diag(torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=F64))  # 1 − Ws = 0 at the slope 1
    singular = network.matrices._replace(W=loop)
    assert bool(checker.bounds(singular, one, one, one, forms, None, around).isinf().all())


def test_the_room_for_rounding_is_ample() -> None:
    """Bounds evaluated in 50 digits from the same slopes and multipliers."""
    mpmath.mp.dps = 50
    for seed in range(4):
        layer, x = random_layer(seed, neurons=4), drawn(seed, 1, 4)
        network = LocalNetwork(layer)
        around = Surroundings.of(x, 1.0, None)
        low, high = torch.zeros(1, 4, dtype=F64), torch.tensor([[1.0, 1.0, 0.7, 0.3]], dtype=F64)
        slopes = passes.Slopes(low=low, high=high, multiplier=network.metric[None], shift=torch.zeros_like(low))
        forms = Forms(state=drawn(seed, 1, 1, 4))
        (multiplier, *_), _ = passes.bounded(network, slopes, forms, torch.ones(1, 1, dtype=F64), around, Effort())
        lam = multiplier * (high / 2) ** 2
        bound = checker.bounds(network.matrices, low, high, lam, forms, None, around)[0, 0]
        exact = lambda tensor: mpmath.matrix(tensor.tolist())  # noqa: E731
        W, F = exact(network.matrices.W), exact(network.matrices.F)
        m, L = exact(torch.diag(high[0] / 2)), exact(torch.diag(lam[0]))
        T = mpmath.inverse(mpmath.eye(4) - W * m)
        rows = mpmath.matrix(4, 8)
        right = mpmath.matrix(4, 8)
        for i, j in itertools.product(range(4), range(4)):
            right[i, j], right[i, 4 + j] = (W * m)[i, j], F[i, j]
        rows = T * right
        M = mpmath.eye(8) - rows.T * L * rows
        for i in range(4):
            M[i, i] += lam[0, i].item() - 1
        c = exact(forms.state[0])
        e = c * m * rows
        for i in range(4):
            e[0, i] += c[0, i] * m[i, i]
        truth = mpmath.sqrt((e * mpmath.inverse(M) * e.T)[0, 0])
        assert truth <= bound.item() and bound.item() <= truth * (1 + 3e-8)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh()])
def test_a_perceptron_is_bounded_too(activation: nn.Module) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(3, 8), activation, nn.Linear(8, 6), activation, nn.Linear(6, 2)).double()
    layer, x = from_sequential(network), drawn(4, 1, 3)
    for radius in (0.01, 0.5):
        found = local_lipschitz(layer, x, radius)
        attained = largest_drops(network, x, radius, None, found.functionals)
        assert bool((attained <= found.drops[0] + 1e-9).all())
        assert float((attained / found.drops[0]).max()) > 0.5


def test_linear_maps_around_a_layer_and_a_feedthrough_are_part_of_it() -> None:
    layer = random_layer(7, inputs=5, outputs=4)
    weights = layer.weights()
    fed = explicit_weights(
        weights.state.to_dense(), weights.input, weights.output, bias=weights.bias, output_bias=weights.output_bias,
        feedthrough=drawn(8, 4, 5), metric=weights.metric.weights,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(2)
        norm = nn.BatchNorm1d(5).double().eval()
        norm.running_var.fill_(0.3)
        model = nn.Sequential(nn.Linear(3, 5), norm, from_weights(fed, activation=ReLU()), nn.Linear(4, 2)).double()
    x = drawn(1, 1, 3)
    found = local_lipschitz(model, x, 0.4, bounds=(-3.0, 3.0))
    attained = largest_drops(model, x, 0.4, (-3.0, 3.0), found.functionals)
    assert bool((attained <= found.drops[0] + 1e-9).all()) and float((attained / found.drops[0]).max()) > 0.6


def test_a_record_says_what_it_assumed() -> None:
    found = local_lipschitz(random_layer(0), drawn(0, 2, 4), torch.tensor([0.1, 0.2]), bounds=(-9.0, 9.0))
    assert isinstance(found, LocalLipschitz) and "range" in found.assumption and found.drops.shape == (2, 6)
    assert len(repr(found)) < 300


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"inputs": torch.zeros(2, 4)}, "inputs"),
        ({"inputs": torch.zeros(4, dtype=F64)}, "inputs"),
        ({"inputs": torch.full((2, 4), torch.nan, dtype=F64)}, "inputs"),
        ({"radius": 0.0}, "radius"),
        ({"radius": torch.tensor([1.0, -1.0])}, "radius"),
        ({"bounds": (0.5, 1.0)}, "bounds"),
        ({"functionals": torch.zeros(2, 5, dtype=F64)}, "functionals"),
        ({"passes": -1}, "passes"),
        ({"model": nn.Linear(4, 3).double()}, "model"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, object], name: str) -> None:
    good: dict[str, object] = {"model": random_layer(0), "inputs": torch.zeros(2, 4, dtype=F64), "radius": 1.0}
    with pytest.raises(InputError, match=name):
        local_lipschitz(**{**good, **changes})  # type: ignore[arg-type]


def test_a_model_without_a_certificate_is_refused() -> None:
    layer = EquilibriumLayer(Unconstrained(4, 5, 3, dtype=F64), activation=LeakyReLU(negative_slope=0.1))
    with pytest.raises(PreconditionError):
        local_lipschitz(layer, torch.zeros(1, 4, dtype=F64), 1.0)


def test_decided_neurons_take_no_part() -> None:
    layer = random_layer(0)
    W, F, R = LocalNetwork(layer).matrices
    low = torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0, 0.2]], dtype=F64)
    high = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.9]], dtype=F64)
    move = moves(LocalNetwork(layer).matrices, *middles(low, high))
    assert move.places.tolist() == [[2, 5]] and bool(move.undecided.all())
    assert move.T.shape == (1, 6, 7) and R.shape == (4, 4) and F.shape == (6, 4) and len(W) == 6


def test_only_what_neurons_see_of_the_input_takes_part() -> None:
    torch.manual_seed(0)
    modules = nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)
    network = LocalNetwork(from_sequential(nn.Sequential(*modules).double()))
    _, F, R = network.matrices
    assert R.shape == (4, 9) and torch.allclose(R @ R.mT, torch.eye(4, dtype=F64))
    assert torch.allclose(F @ R, network.system.U) and network.system.U.shape == (9, 9)


class TestMirrored(ActivationContract):
    def activation(self) -> Activation:
        return Mirrored(base=Softplus())


def test_a_mirror_image_is_what_it_says() -> None:
    v = drawn(0, 5, 4)
    assert torch.equal(Mirrored(base=ReLU())(v), v.clamp_max(0))
    with pytest.raises(InputError, match="base"):
        Mirrored(base=nn.ReLU())


def dominant_layer(seed: int, activation: nn.Module | None = None) -> Layer:
    """W with α(⌈W⌉) < 1 and entries of both signs."""
    W = drawn(seed, 6, 6)
    W = W / (1.3 * W.abs().sum(1, keepdim=True))
    W.diagonal().sub_(0.5)
    weights = explicit_weights(
        W, drawn(seed + 1, 6, 4), drawn(seed + 2, 3, 6), bias=drawn(seed + 3, 6), metric=torch.ones(6, dtype=F64)
    )
    return from_weights(weights, activation=activation or ReLU())


@pytest.mark.parametrize("activation", [ReLU(), Softplus(), HardTanh()])
def test_a_box_of_inputs_has_its_equilibria_in_the_box(activation: Activation) -> None:
    for seed in range(4):
        layer = dominant_layer(seed, activation)
        network = LocalNetwork(layer)
        low = drawn(seed + 9, 1, 4)
        high = low + torch.tensor([0.0, 0.5, 1.0, 0.1], dtype=F64)
        found = network.coupled.enclosure(low, high)
        x = low + torch.rand(400, 4, dtype=F64).round(decimals=0 if seed else 3) * (high - low)
        z = layer.equilibrium(x)
        v = layer.weights().problem(x, layer.activation).preactivation(z)
        assert bool(((z >= found.low) & (z <= found.high)).all())
        assert bool(((v >= found.inner_low) & (v <= found.inner_high)).all())
        spread = (z.amax(0) - z.amin(0)).sum() / (found.high - found.low).sum()
        assert 0.2 < float(spread) <= 1
        still = network.coupled.enclosure(low, low)
        assert torch.allclose(still.low, still.high, atol=1e-6)


def test_a_network_without_a_coupled_equilibrium_refuses_boxes_only_there() -> None:
    W = torch.tensor([[0.0, 3.0], [-3.0, 0.0]], dtype=F64)
    eye = torch.eye(2, dtype=F64)
    layer = from_weights(explicit_weights(W, eye, eye, metric=torch.ones(2, dtype=F64)), activation=ReLU())
    with pytest.raises(PreconditionError, match="α"):
        CoupledNetwork(W, eye, torch.zeros(2, dtype=F64), ReLU())
    x = torch.tensor([[1.0, 1.0]], dtype=F64)
    found = local_lipschitz(layer, x, 0.1, norm=Norm.LINF)
    corners = x + 0.1 * torch.tensor(list(itertools.product((-1, 1), repeat=2)), dtype=F64)
    attained = ((layer(corners) - layer(x)) @ found.functionals.mT).amax(0)
    assert bool((attained <= found.drops[0] + 1e-9).all()) and float((attained / found.drops[0]).max()) > 0.9


@torch.no_grad()
@pytest.mark.parametrize("bounds", [None, (-1.5, 1.5)])
def test_no_corner_of_a_box_is_worse_than_its_bound(bounds: tuple[float, float] | None) -> None:
    ratios = []
    for seed in range(4):
        for layer in (dominant_layer(seed), random_layer(seed)):
            x = drawn(seed + 30, 1, 4).clamp(-1.5, 1.5)
            found = local_lipschitz(layer, x, 0.3, norm=Norm.LINF, bounds=bounds)
            corners = x + 0.3 * torch.tensor(list(itertools.product((-1, 1, 0.3), repeat=4)), dtype=F64)
            corners = corners if bounds is None else corners.clamp(*bounds)
            attained = ((layer(corners) - layer(x)) @ found.functionals.mT).amax(0)
            assert bool((attained <= found.drops[0] + 1e-9).all())
            ratios.append(float((attained / found.drops[0]).max()))
    assert sorted(ratios)[len(ratios) // 2] > 0.7


def test_classes_are_proved_where_no_attack_succeeds_and_radii_grow() -> None:
    layer = random_layer(3, outputs=4)
    x = drawn(11, 40, 4).clamp(-2, 2)
    with torch.no_grad():
        labels = layer(x).argmax(-1)
    constants = pairwise_lipschitz(layer)
    radius = certified_radius(layer, x, labels, constants)
    local = certified_radius(layer, x, labels, constants, local=True, bounds=(-2.0, 2.0))
    assert bool((local >= radius).all()) and float((local / radius).median()) > 1.2
    directions = torch.nn.functional.normalize(drawn(12, 300, 1, 4), dim=-1)
    with torch.no_grad():
        moved = (x + 0.999 * local[:, None] * directions).clamp(-2, 2)
        assert bool((layer(moved).argmax(-1) == labels).all())
        further = (x + 3 * local[:, None] * directions).clamp(-2, 2)
        assert bool((layer(further).argmax(-1) != labels).any())  # the radii are not tiny
    proof = certified_within(layer, x, labels, local.clamp_min(1e-3), bounds=(-2.0, 2.0), constants=constants)
    assert float(proof.proved.double().mean()) > 0.9
    wrong = certified_within(layer, x, (labels + 1) % 4, 0.01)
    assert not bool(wrong.proved.any())
    # constants are believed for the weights they were proved for, and a number is proved first
    for other in (pairwise_lipschitz(random_layer(4, outputs=4)), 0.5 * constants.whole.bound, constants.bounds):
        with pytest.raises(InputError, match="constants"):
            certified_within(layer, x, labels, 0.01, constants=other)  # type: ignore[arg-type]


def test_classes_within_a_box() -> None:
    layer = dominant_layer(1)
    x = drawn(5, 30, 4)
    with torch.no_grad():
        labels = layer(x).argmax(-1)
        proof = certified_within(layer, x, labels, 0.1, norm=Norm.LINF)
        corners = torch.tensor(list(itertools.product((-0.1, 0.1), repeat=4)), dtype=F64)
        stays = (layer(x[:, None] + corners).argmax(-1) == labels[:, None]).all(-1)
    assert bool((stays | ~proof.proved).all()) and float(proof.proved.double().mean()) > 0.5


@torch.no_grad()
def test_a_rough_solve_is_paid_for() -> None:
    """Anchors that are solved to 5 % only: what is proved is about the exact network all the same."""
    for seed in range(6):
        exact, rough = dominant_layer(seed), dominant_layer(seed)
        rough.stop = Stop(rtol=5e-2, atol=0.0)
        x = drawn(seed + 70, 1, 4)
        for norm, corner in ((Norm.LINF, 1.0), (Norm.L2, 0.5)):
            found = local_lipschitz(rough, x, 0.02, norm=norm)
            corners = x + 0.02 * corner * torch.tensor(list(itertools.product((-1, 1), repeat=4)), dtype=F64)
            attained = ((exact(corners) - exact(x)) @ found.functionals.mT).amax(0)
            assert bool((attained <= found.drops[0] + 1e-9).all())
        network = LocalNetwork(rough)
        anchors, around = network.anchors(x), Surroundings.of(x, 0.02, None, Norm.LINF)
        box = network.enclosure(x, around)
        slopes = passes.Narrowing(network, anchors, around, Effort(), enclosure=box).slopes
        v0, v = (exact.weights().problem(rows, ReLU()).preactivation(exact.equilibrium(rows)) for rows in (x, corners))
        secants = (v.clamp_min(0) - v0.clamp_min(0)) / (v - v0)
        assert bool(((secants >= slopes.low - 1e-9) & (secants <= slopes.high + 1e-9)).all())
