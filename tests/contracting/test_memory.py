"""What is remembered of tensors: computed once, never beyond a change in place, and not without end."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from contracting.activations.catalogue import Slope
from contracting.maps.base import LinearMap
from contracting.maps.convolution import CircularConvolution, Spectral
from contracting.maps.dense import Dense
from contracting.maps.per_neuron import Scaled
from contracting.memory import Lineage, Memory
from contracting.metrics import FullP, Metric, WeightedL2
from tests.contracting.maps.test_per_neuron import GRID, make, monotone_kernel
from tests.problems import monotone_weight


def test_values_are_kept_by_kind_and_owner() -> None:
    memory, tensor, owner = Memory(), torch.zeros(2), torch.ones(2)

    def recall(what: str, key: object = None) -> object:
        return memory.recall(what, (tensor,), object, key)

    assert recall("a") is recall("a") and recall("a") is not recall("b")
    assert recall("a", 0.5) is recall("a", 0.5) and recall("a", 0.5) is not recall("a", 0.25)
    assert recall("a", owner) is recall("a", owner)
    assert recall("a", owner) is not recall("a", owner.clone())  # by identity
    for kept in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert kept.recall("a", (tensor,), object) is not recall("a")


def test_a_change_in_place_is_noticed() -> None:
    memory, tensor, metric = Memory(), torch.zeros(2), WeightedL2(torch.ones(2))

    def recall(key: object = None) -> object:
        return memory.recall("a", (tensor,), object, key)

    before, by_metric, by_step = recall(), recall(metric), recall(metric.weights)
    metric.weights.mul_(2)
    assert recall() is before
    assert recall(metric) is not by_metric and recall(metric.weights) is not by_step
    tensor.add_(1)
    assert recall() is not before
    with torch.inference_mode():  # counts no changes
        tensor = torch.zeros(2)
        assert recall() is recall()


def test_a_sweep_keeps_only_the_latest_and_the_used() -> None:
    memory, tensor, computed = Memory(), torch.zeros(2), []

    def recall(step: float) -> None:
        memory.recall("a", (tensor,), lambda: computed.append(step), step)

    for step in range(100):
        recall(float(step))
        recall(-1.0)
    assert computed.count(-1.0) == 1  # it was used all the time
    recall(99.0)
    assert len(computed) == 101
    recall(50.0)  # forgotten long ago
    assert len(computed) == 102
    assert sum(len(values) for values in memory._kinds.values()) <= 8


def fresh(linear: LinearMap) -> LinearMap:
    return linear.with_tensors([tensor.clone() for tensor in linear.tensors()])


def dense() -> tuple[LinearMap, Metric, list[Tensor]]:
    W, lam = monotone_weight(6, seed=1, skew=2.0, spread=0.5)
    return Dense(W), WeightedL2(lam), [W, lam]


def convolution() -> tuple[LinearMap, Metric, list[Tensor]]:
    kernel = monotone_kernel(0)
    inner = CircularConvolution(kernel, grid=GRID)
    metric = WeightedL2.identity(inner.size, dtype=torch.float64)
    return inner, metric, [kernel, metric.weights]


@pytest.mark.parametrize("build", [dense, convolution])
def test_analyses_follow_an_owner_that_is_changed_in_place(
    build: Callable[[], tuple[LinearMap, Metric, list[Tensor]]],
) -> None:
    linear, metric, (weight, lam) = build()
    step = torch.full((linear.size,), 0.5, dtype=torch.float64)
    z = torch.randn(3, linear.size, dtype=torch.float64)

    def seen(linear: LinearMap, metric: Metric, step: Tensor) -> list[float]:
        found = [float(linear.operator(metric).bounds.lipschitz), float(metric.norm(z).sum())]
        found += [float(metric.dual().norm(z).sum())]
        return found + [float(linear.resolvent(step).apply(z).sum()), float(linear.resolvent(0.3).apply(z).sum())]

    for change in (lambda: step.mul_(3), lambda: lam.mul_(2), lambda: weight.mul_(0.5)):
        before = seen(linear, metric, step)
        change()
        after = seen(linear, metric, step)
        assert after != before
        assert after == pytest.approx(seen(fresh(linear), WeightedL2(lam.clone()), step.clone()), rel=1e-12)


def small_kernel() -> tuple[LinearMap, Tensor]:
    kernel = 0.1 * torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return CircularConvolution(kernel, grid=(9,)), kernel  # which is applied tap by tap


def scaled_small_kernel() -> tuple[LinearMap, Tensor]:
    inner, kernel = small_kernel()
    scale = torch.linspace(0.5, 2.0, 9, dtype=torch.float64)
    return Scaled(inner, scale, 1 / scale), kernel


@pytest.mark.parametrize(
    "build", [lambda: dense()[::2], lambda: convolution()[::2], small_kernel, scaled_small_kernel]
)
def test_an_adjoint_in_hand_follows_its_map(build: Callable[[], tuple[LinearMap, Any]]) -> None:
    """It may hold a copy, such as a mirrored kernel."""
    linear, changed = build()
    weight = changed[0] if isinstance(changed, list) else changed
    adjoint, z = linear.adjoint, torch.randn(2, linear.size, dtype=torch.float64)
    assert adjoint.adjoint is linear
    for _ in range(2):
        for held in (adjoint, linear.adjoint):
            assert torch.allclose(held.apply(z), z @ linear.to_dense(), atol=1e-12)
            assert torch.allclose(held.resolvent(0.3).apply(z), z @ linear.resolvent(0.3).to_dense(), atol=1e-12)
            assert torch.allclose(held.reflection(0.3).apply(z), z @ linear.reflection(0.3).to_dense(), atol=1e-12)
        weight.mul_(-0.5)


def test_norms_follow_their_tensors() -> None:
    P = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    metric, x = FullP(P), torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    assert metric.dual().dual() is metric
    assert metric.norm(x).square() == pytest.approx(8.0)
    P.mul_(4)
    assert metric.norm(x).square() == pytest.approx(32.0)
    assert metric.dual().norm(x).square() == pytest.approx(float(x @ torch.linalg.inv(P) @ x.mT))


def test_the_root_of_a_learned_metric_keeps_its_graph() -> None:
    weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
    metric, x = WeightedL2(weights), torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    with torch.no_grad():
        metric.norm(x)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(metric.norm(x).sum(), weights)
        assert torch.allclose(gradient, x[0].square() / (2 * 5**0.5))


def test_slopes_changed_in_place_are_the_slopes_that_act() -> None:
    values, x = torch.tensor([[0.2, 0.8]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    activation = Slope(slopes=values)
    activation.prox(x, 0.5)
    values.mul_(0.5)
    assert torch.equal(activation.prox(x, 0.5), Slope(slopes=values.clone()).prox(x, 0.5))


def test_the_adjoint_of_a_spectral_map_follows_it_and_copies_its_symbol_once() -> None:
    linear = CircularConvolution(monotone_kernel(2), grid=GRID)
    resolvent = linear.resolvent(0.5)
    assert isinstance(resolvent, Spectral)
    adjoint, z = resolvent.adjoint, torch.randn(2, linear.size, dtype=torch.float64)
    assert torch.allclose(adjoint.apply(z), z @ resolvent.to_dense(), atol=1e-12)
    assert adjoint.tensors()[0].data_ptr() == adjoint.tensors()[0].data_ptr() == adjoint.symbol.data_ptr()
    resolvent.values.mul_(2)
    assert torch.allclose(adjoint.apply(z), z @ resolvent.to_dense(), atol=1e-12)
    assert torch.allclose(fresh(adjoint).apply(z), z @ resolvent.to_dense(), atol=1e-12)


def test_the_adjoint_of_a_spectral_map_keeps_the_graph() -> None:
    values = CircularConvolution(monotone_kernel(2), grid=GRID).symbol.clone().requires_grad_()
    z = torch.randn(2, make()[0].size, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(Spectral(values, grid=GRID).adjoint.apply(z).square().sum(), values)
    assert float(gradient.abs().sum()) > 0


def test_a_lineage_serves_ten_generations_of_one_key_until_it_is_forgotten() -> None:
    lineage = Lineage()
    assert lineage.guess("kind", 0.5) is None
    lineage.keep("kind", 0.5, "value")
    seen = []
    for _ in range(11):
        seen.append(lineage.guess("kind", 0.5))
        lineage.next_generation()
    assert seen == ["value"] * 10 + [None]
    lineage.keep("kind", 0.5, "value")
    assert lineage.guess("kind", 0.25) is None and lineage.guess("other", 0.5) is None
    lineage.forget()
    assert lineage.guess("kind", 0.5) is None
    lineage.keep("kind", 0.5, "value")
    for twin in (copy.deepcopy(lineage), pickle.loads(pickle.dumps(lineage))):
        assert twin.guess("kind", 0.5) is None
