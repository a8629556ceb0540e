"""The contract of linear maps: all of the library's keep it, a small one of one's own does, and broken ones do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from contracting.activations.catalogue import ReLU
from contracting.contracts import LinearMapContract
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.base import LinearMap
from contracting.maps.bounded import BoundedOperator
from contracting.maps.convolution import CircularConvolution, Spectral
from contracting.maps.counting import Count, counting
from contracting.maps.dense import Dense
from contracting.maps.minus_gram import MinusGram, Rows
from contracting.maps.operator import Bounds, MonotoneOperator
from contracting.maps.per_neuron import Scaled
from contracting.metrics import Metric, WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers.automatic import Automatic
from tests.contracting.maps.test_per_neuron import monotone_kernel


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolution_matrix(kernel: Tensor, grid: tuple[int, int]) -> Tensor:
    """Entry by entry: (k ∗ z)[o, p] = Σ k[o, c, d + r] z[c, p + d]."""
    (C, _, *sides), (H, W) = kernel.shape, grid
    matrix = torch.zeros(C, H, W, C, H, W, dtype=kernel.dtype)
    for i in range(sides[0]):
        for j in range(sides[1]):
            for y in range(H):
                for x in range(W):
                    at = (y + i - sides[0] // 2) % H, (x + j - sides[1] // 2) % W
                    matrix[:, y, x, :, at[0], at[1]] += kernel[:, :, i, j]
    return matrix.reshape(C * H * W, C * H * W)


def suite(
    linear: Callable[[], LinearMap], matrix: Callable[[], Tensor], **others: object
) -> type[LinearMapContract]:
    members = {"linear": lambda self: linear(), "matrix": lambda self: matrix()}
    return type("TestMap", (LinearMapContract,), members | {k: lambda self, v=v: v for k, v in others.items()})


KERNEL, GRID = monotone_kernel(1), (3, 4)
PSI = (0.4 * draw(24, seed=2)).exp()
T = draw(3, 24, seed=3) / 4
IDENTITY = torch.eye(24, dtype=torch.float64)
CONVOLVED = convolution_matrix(KERNEL, GRID)
SKEWED = 0.3 * (draw(6, 6, seed=4) - draw(6, 6, seed=4).mT)


def convolution() -> CircularConvolution:
    return CircularConvolution(KERNEL.clone(), grid=GRID)


def less(exact_up_to: int) -> MinusGram:
    return MinusGram(convolution(), Rows(T.clone()), exact_up_to=exact_up_to)


TestDense = suite(lambda: Dense(SKEWED.clone()), lambda: SKEWED)
TestCircularConvolution = suite(convolution, lambda: CONVOLVED)
TestSpectral = suite(lambda: Spectral(convolution().symbol.clone(), grid=GRID), lambda: CONVOLVED)
TestMinusGram = suite(lambda: less(300), lambda: CONVOLVED - T.mT @ T)
TestMinusGramByBounds = suite(lambda: less(0), lambda: CONVOLVED - T.mT @ T)
TestScaled = suite(
    lambda: Scaled(convolution(), PSI.clone(), torch.ones_like(PSI)),
    lambda: IDENTITY - PSI[:, None] * (IDENTITY - CONVOLVED),
    metric=WeightedL2(1 / PSI),
    step=0.7 / PSI,
)
TestScaledMinusGram = suite(
    lambda: Scaled(less(0), PSI.clone(), torch.ones_like(PSI)),
    lambda: IDENTITY - PSI[:, None] * (IDENTITY - CONVOLVED + T.mT @ T),
    metric=WeightedL2(1 / PSI),
    step=0.7 / PSI,
)


@dataclass(frozen=True, eq=False)
class Cycle(LinearMap):
    """The least that a map may bring: (Wz)ᵢ = wᵢ z_{i+1}."""

    values: Tensor
    shift: int = 1

    @property
    def size(self) -> int:
        return len(self.values)

    def apply(self, z: Tensor) -> Tensor:
        return self.values * z.roll(-self.shift, -1)

    def make_adjoint(self) -> LinearMap:
        return type(self)(self.values.roll(self.shift), -self.shift)


CYCLE = 0.8 * torch.rand(7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def cycle_matrix() -> Tensor:
    return torch.diag(CYCLE) @ torch.eye(7, dtype=torch.float64).roll(1, 1)


class Unpaired(Cycle):
    def make_adjoint(self) -> LinearMap:
        return type(self)(self.values, -self.shift)


class Deaf(Cycle):
    def with_tensors(self, tensors: Sequence[Tensor]) -> Cycle:
        return self


class Boastful(Cycle):
    def make_operator(self, metric: Metric) -> MonotoneOperator:
        exact = super().make_operator(metric)
        return Claimed(exact.blocks, exact.bounds)


@dataclass(frozen=True, eq=False)
class Claimed(BoundedOperator):
    exact: Bounds

    @property
    def bounds(self) -> Bounds:  # type: ignore[override]
        return Bounds(monotonicity=1.0, symmetric=1.0, skew=0.0, lipschitz=1.0, gain=0.5)


class Inverted(Cycle):
    def make_resolvent(self, step: object) -> LinearMap:
        return Dense(torch.eye(self.size, dtype=torch.float64))


TestTheLeast = suite(lambda: Cycle(CYCLE.clone()), cycle_matrix, step=None)

BROKEN = {
    Unpaired: (LinearMapContract.test_products_are_those_of_the_matrix, None),
    Deaf: (LinearMapContract.test_other_tensors_make_the_same_map_of_other_values, None),
    Boastful: (LinearMapContract.test_bounds_are_on_the_safe_side, None),
    Inverted: (LinearMapContract.test_the_resolvent_is_the_inverse, 0.7),
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_promise_is_seen(kind: type[Cycle]) -> None:
    """The negative control of each test."""
    promise, step = BROKEN[kind]
    with pytest.raises(AssertionError):
        promise(suite(lambda: kind(CYCLE.clone()), cycle_matrix, step=step)())


def test_a_large_map_without_a_resolvent_is_solved_by_products() -> None:
    """With an m so small that Newton's method is chosen, too."""
    for top in (0.5, 1 - 1e-6):
        linear = Cycle(torch.full((600,), top, dtype=torch.float64))
        v = draw(2, 600, seed=6)
        problem = EquilibriumProblem(
            linear=linear,
            q=v - linear.apply(torch.relu(v)),
            activation=ReLU(),
            metric=WeightedL2.identity(600, dtype=torch.float64),
        )
        assert float((solve(problem, Automatic(), stop=Stop(rtol=1e-9)).z - torch.relu(v)).abs().max()) <= 1e-6


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
@pytest.mark.parametrize("h", [torch.abs, partial(torch.mul, torch.tensor(-0.5))], ids=["abs", "multiple"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_of_few_and_of_many_rows_are_those_of_the_formula(
    rows: int, h: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    """u ← W h(u) + q, whoever takes the steps; neither u nor q is changed, and every row of a step is counted."""
    W, u, q = 0.1 * torch.randn(9, 9, dtype=dtype), torch.randn(rows, 9, dtype=dtype), torch.randn(rows, 9, dtype=dtype)
    W = W.mT if rows % 2 else W  # either layout
    expected, given = u.double(), (u.clone(), q.clone())
    for _ in range(5):
        expected = h(expected) @ W.double().mT + q.double()
    count = Count()
    with counting(count):
        found = Dense(W).iterated(h, q, u, 5)
    assert found.dtype == dtype and torch.allclose(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(u, given[0]) and torch.equal(q, given[1]) and count.rows == 5 * rows
    assert Dense(W).iterated(h, q, u, 0) is u
