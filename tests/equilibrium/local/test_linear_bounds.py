"""Bounds by lines against what moves really do, against known answers, and against lines that do not hold."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from contracting import LeakyReLU, ReLU, Tanh
from equilibrium import explicit_weights, from_sequential, from_weights
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz import Norm
from equilibrium.local import linear
from equilibrium.local.finder import Effort
from equilibrium.local.linear import LinearBounds, highest, layers_of
from equilibrium.local.network import Anchors, LocalNetwork
from equilibrium.local.passes import Narrowing
from equilibrium.local.relaxation import Forms
from equilibrium.local.surroundings import Surroundings

F64 = torch.float64


def perceptron(seed: int, activation: nn.Module | None = None, sizes: tuple[int, ...] = (3, 8, 6, 2)) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules: list[nn.Module] = []
        for i, o in itertools.pairwise(sizes):
            modules += [nn.Linear(i, o), activation or nn.ReLU()]
        return nn.Sequential(*modules[:-1]).double()


def bounded(layer: EquilibriumLayer, x: torch.Tensor, around: Surroundings, rows: torch.Tensor) -> torch.Tensor:
    """Bounds of rows·Δy by lines alone, (batch, k)."""
    network = LocalNetwork(layer)
    found = LinearBounds.of(network, network.anchors(x), around)
    assert found is not None
    found.tightened(torch.full_like(found.down, torch.inf))
    return found.bounds(Forms(state=(rows @ network.system.C).expand(len(x), -1, -1)))


def moves(seed: int, x: torch.Tensor, radius: float, bounds: tuple[float, float] | None, norm: Norm) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    move = torch.randn(3000, x.shape[1], generator=draws, dtype=F64)
    move = radius * (nn.functional.normalize(move, dim=-1) if norm is Norm.L2 else move.sign())
    return move if bounds is None else (x + move).clamp(*bounds) - x


@torch.no_grad()
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh(), nn.Softplus()])
@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_no_move_is_larger_than_its_bound(activation: nn.Module, bounds: tuple[float, float] | None) -> None:
    eye, ratios = torch.cat([torch.eye(2, dtype=F64), -torch.eye(2, dtype=F64)]), []
    for seed, norm, radius in itertools.product(range(2), (Norm.L2, Norm.LINF), (0.05, 0.6)):
        network = perceptron(seed, activation)
        x = torch.rand(1, 3, generator=torch.Generator().manual_seed(seed), dtype=F64) - 0.2
        found = bounded(from_sequential(network), x, Surroundings.of(x, radius, bounds, norm), eye)[0]
        attained = ((network(x + moves(seed, x, radius, bounds, norm)) - network(x)) @ eye.mT).amax(0)
        assert bool((attained <= found + 1e-12).all())
        ratios.append(float((attained / found).max()))
    assert max(ratios) > 0.8 and sorted(ratios)[len(ratios) // 2] > 0.5  # not vacuous


@torch.no_grad()
def test_known_bounds_of_one_hidden_layer() -> None:
    """v = Ux + b moves by exactly r‖Uᵢ‖; the chord of a ReLU from −1 to 3 has the slope 3/4 and reaches 3/4 at 0."""
    U = torch.tensor([[3.0, 4.0], [1.2, 1.6]], dtype=F64)
    weights = explicit_weights(
        torch.zeros(2, 2, dtype=F64), U, torch.tensor([[0.0, 1.0]], dtype=F64),
        bias=torch.tensor([20.0, 1.0], dtype=F64), metric=torch.ones(2, dtype=F64),
    )  # fmt: skip
    layer, x = from_weights(weights, activation=nn.ReLU()), torch.zeros(1, 2, dtype=F64)
    network, around = LocalNetwork(layer), Surroundings.of(x, 1.0, None)
    found = LinearBounds.of(network, network.anchors(x), around)
    assert found is not None
    reach = found.tightened(torch.full((1, 2), torch.inf, dtype=F64))
    assert reach[0].tolist() == pytest.approx([5.0, 2.0], rel=1e-9)
    held = linear.lines(network.activation, network.anchors(x), found.down, found.up)
    assert held.over[0].tolist() == pytest.approx([1.0, 0.75], rel=1e-9) and float(held.depth[0, 0]) == 0
    # Δz ≤ ¾Δv + ¾ − ¼, and at the upper end that is 2: y rises by ¾·2 + ½ = 2, and falls along Δz ≥ Δv by 2
    rows = torch.tensor([[1.0], [-1.0]], dtype=F64)
    assert bounded(layer, x, around, rows)[0].tolist() == pytest.approx([2.0, 2.0], rel=1e-9)


def test_layers_in_any_order_and_none_with_feedback() -> None:
    W = torch.tensor([[0.0, 0, 2], [0, 0, 0], [0, 1, 0]], dtype=F64)
    assert [layer.tolist() for layer in layers_of(W) or []] == [[1], [2], [0]]
    assert layers_of(W + torch.diag(torch.tensor([0.0, 0.1, 0]))) is None
    assert layers_of(W.T + W) is None


@torch.no_grad()
def test_the_largest_value_over_a_cut_ball() -> None:
    slope, x = torch.tensor([[[3.0, -4.0], [1.0, 0.0], [0.0, 0.0]]], dtype=F64), torch.zeros(1, 2, dtype=F64)
    assert highest(slope, Surroundings.of(x, 2.0, None))[0].tolist() == pytest.approx([10.0, 2.0, 0.0])
    assert highest(slope, Surroundings.of(x, 9.0, (-1.0, 1.0)))[0].tolist() == pytest.approx([7.0, 1.0, 0.0], abs=1e-9)
    # the ball of radius 1 cut at ±¾: the second entry ends at −¾, and the first at √(1 − 9/16)
    found = highest(slope, Surroundings.of(x, 1.0, (-0.75, 0.75)))[0]
    largest = torch.tensor([3 * 0.4375**0.5 + 3, 0.75, 0.0], dtype=F64)
    assert bool((found >= largest - 1e-12).all()) and bool((found <= largest * (1 + 1e-4)).all())


@torch.no_grad()
@pytest.mark.parametrize("radius", [0.3, 2.0, 6.0])
def test_the_largest_value_over_a_cut_ball_of_many_inputs(radius: float) -> None:
    """Between what a move of the surroundings attains and what a fine grid of multipliers proves."""
    x = torch.rand(3, 50, generator=torch.Generator().manual_seed(1), dtype=F64).sub(0.5).clamp_min(0)
    slope = torch.randn(3, 4, 50, generator=torch.Generator().manual_seed(2), dtype=F64)
    around = Surroundings.of(x, radius, (0.0, 0.6))
    assert around.low is not None and around.high is not None
    found, low, high = highest(slope, around), around.low[:, None], around.high[:, None]
    attained, proved = torch.zeros_like(found), torch.full_like(found, torch.inf)
    for mu in torch.logspace(-6, 3, 4000, dtype=F64):
        move = (slope / mu).clamp(low, high)
        size = torch.linalg.vector_norm(move, dim=-1)
        attained = torch.maximum(attained, (slope * move).sum(-1).where(size <= radius, 0.0))
        rest = slope - mu * move
        ends = torch.where(rest > 0, rest * high, rest * low).sum(-1)
        proved = torch.minimum(proved, radius * mu * size + ends)
    assert bool((attained <= found).all()) and bool((found <= proved * (1 + 1e-9)).all())
    assert bool((proved < 1.01 * attained).all())


@torch.no_grad()
@pytest.mark.parametrize(("activation", "some"), [(nn.ReLU(), True), (nn.Tanh(), False)])
def test_neurons_beside_their_kink_are_left_out_and_nothing_is_lost(activation: nn.Module, some: bool) -> None:
    layer = from_sequential(perceptron(0, activation, (5, 12, 9, 7, 2)))
    network, x = LocalNetwork(layer), torch.rand(3, 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    around = Surroundings.of(x, 0.05, (-1.0, 1.5))
    found, every = (LinearBounds.of(network, network.anchors(x), around) for _ in range(2))
    assert found is not None and every is not None
    # every other neuron is known from elsewhere to stay on its side
    v = found.anchors.inner
    reach = torch.where(torch.arange(network.size) % 2 == 0, 0.9 * v.abs(), torch.inf)
    found.tightened(reach)
    every.down = torch.where((v > 0) | ~torch.tensor(some), reach, torch.inf)
    every.up = torch.where((v <= 0) | ~torch.tensor(some), reach, torch.inf)
    eye = torch.eye(network.size, dtype=F64)
    for rows in every.layers:
        ends = every.bounds(Forms(inner=torch.cat([-eye[rows], eye[rows]]).expand(3, -1, -1))).chunk(2, -1)
        for known, new in zip((every.down, every.up), ends, strict=True):
            known[:, rows] = torch.minimum(known[:, rows], new)
    assert bool((found.down.isinf() | found.up.isinf()).any()) == some
    forms = Forms(state=network.system.C.expand(3, -1, -1))
    assert every.bounds(forms).tolist() == [pytest.approx(row, rel=1e-9) for row in found.bounds(forms).tolist()]


@torch.no_grad()
@pytest.mark.parametrize("wrong", [None, "depth", "height", "down", "up", "activation"])
def test_lines_that_do_not_hold_are_refuted(wrong: str | None) -> None:
    """Moves of single neurons leave lines without their offset, of a shorter stretch or of another activation."""
    excess = 0.0
    for activation in (ReLU(), LeakyReLU(negative_slope=0.2), Tanh()):
        v = torch.linspace(-2, 2, 15, dtype=F64)[None]
        zero = torch.zeros_like(v)
        anchors = Anchors(state=zero, inner=v, inner_error=zero, outputs=v, output_error=zero[:, 0])
        for down, up in itertools.product((0.3, 1.5, 4.0), repeat=2):
            stretch = (0.5 * down if wrong == "down" else down, 0.5 * up if wrong == "up" else up)
            believed = LeakyReLU(negative_slope=0.9) if wrong == "activation" else activation
            held = linear.lines(believed, anchors, *(torch.full_like(v, size) for size in stretch))
            if wrong in ("depth", "height"):
                held = held._replace(**{wrong: zero})
            move = torch.linspace(-down, up, 41, dtype=F64)[:, None]
            change = activation(v + move) - activation(v)
            above, below = change - held.over * move - held.height, held.under * move - held.depth - change
            excess = max(excess, float(above.max()), float(below.max()))
    assert (excess <= 1e-12) if wrong is None else (excess > 0.1)


@torch.no_grad()
def test_lines_and_one_inequality_prove_more_together_than_either_alone() -> None:
    """A network with random weights, of whose neurons nearly all are undecided."""
    layer = from_sequential(perceptron(0, sizes=(16, 30, 30, 3)))
    x = torch.rand(4, 16, generator=torch.Generator().manual_seed(0), dtype=F64)
    network, around, rows = LocalNetwork(layer), Surroundings.of(x, 1.0, None), torch.eye(3, dtype=F64)
    lines = bounded(layer, x, around, rows)
    index, each = torch.arange(4).repeat_interleave(3), rows.repeat(4, 1)
    drops = []
    for together in (True, False):
        narrowing = Narrowing(network, network.anchors(x), around, Effort())
        if not together:
            n = network.size
            low, high = (end.expand(4, n) for end in network.activation.slope_intervals(n))
            narrowing.linear, narrowing.slopes = None, replace(narrowing.slopes, low=low, high=high)
        for _ in range(3):
            narrowing.step()
        drops.append(narrowing.drop(index, each).reshape(4, 3))
    both, inequality = drops
    assert bool((both <= lines * (1 + 1e-12)).all())
    assert float(both.mean()) < 0.97 * min(float(lines.mean()), float(inequality.mean()))
