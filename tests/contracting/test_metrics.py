"""Metrics: norms, induced norms and matrix measures against their definitions."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from contracting.contracts import MetricContract
from contracting.errors import InputError
from contracting.metrics import FullP, Metric, WeightedL1, WeightedL2, WeightedLinf, euclidean

N = 4


def metrics() -> list[Metric]:
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(N, generator=generator, dtype=torch.float64) + 0.2
    R = torch.randn(N, N, generator=generator, dtype=torch.float64)
    P = R @ R.mT + 0.1 * torch.eye(N, dtype=torch.float64)
    return [WeightedL1(weights), WeightedL2(weights), WeightedLinf(weights), FullP((P + P.mT) / 2)]


each_metric = pytest.mark.parametrize("metric", metrics(), ids=lambda m: type(m).__name__)


class TestWeightedL1(MetricContract):
    def metric(self) -> Metric:
        return metrics()[0]


class TestWeightedL2(MetricContract):
    def metric(self) -> Metric:
        return metrics()[1]


class TestWeightedLinf(MetricContract):
    def metric(self) -> Metric:
        return metrics()[2]


class TestFullP(MetricContract):
    def metric(self) -> Metric:
        return metrics()[3]


@dataclass(frozen=True, eq=False)
class Sheared(Metric):
    """A metric of a user's own, ‖x‖ = max |Tx| for an invertible T: it brings what the base class lists."""

    T: Tensor

    @property
    def size(self) -> int:
        return len(self.T)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.T,)

    def _seen(self, matrices: Tensor) -> Tensor:
        return self.T @ matrices @ torch.linalg.inv(self.T)

    def vector_norm(self, vectors: Tensor) -> Tensor:
        return (vectors @ self.T.mT).abs().amax(-1)

    def induced_norm(self, matrices: Tensor) -> Tensor:
        return self._seen(matrices).abs().sum(-1).amax(-1)

    def log_norm(self, matrices: Tensor) -> Tensor:
        M = self._seen(matrices)
        diagonal = M.diagonal(dim1=-2, dim2=-1)
        return (M.abs().sum(-1) - diagonal.abs() + diagonal).amax(-1)

    def make_dual(self) -> Metric:
        return ShearedSum(torch.linalg.inv(self.T).mT)

    def rescaled(self, scale: Tensor) -> Metric:
        return type(self)(self.T / scale)

    def to(self, like: Tensor) -> Metric:
        return type(self)(self.T.to(like))


class ShearedSum(Sheared):
    """Its dual, ‖x‖ = Σ|Tx|."""

    def vector_norm(self, vectors: Tensor) -> Tensor:
        return (vectors @ self.T.mT).abs().sum(-1)

    def induced_norm(self, matrices: Tensor) -> Tensor:
        return self._seen(matrices).abs().sum(-2).amax(-1)

    def log_norm(self, matrices: Tensor) -> Tensor:
        M = self._seen(matrices)
        diagonal = M.diagonal(dim1=-2, dim2=-1)
        return (M.abs().sum(-2) - diagonal.abs() + diagonal).amax(-1)

    def make_dual(self) -> Metric:
        return Sheared(torch.linalg.inv(self.T).mT)


class TestAMetricOfYourOwn(MetricContract):
    def metric(self) -> Metric:
        return Sheared(torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64))


def test_a_metric_that_breaks_the_contract_fails_it() -> None:
    class Wrong(WeightedL2):
        def log_norm(self, matrices: Tensor) -> Tensor:
            return self.induced_norm(matrices)  # a bound, and not the measure

    class Suite(MetricContract):
        def metric(self) -> Metric:
            return Wrong(torch.ones(3, dtype=torch.float64))

    with pytest.raises(AssertionError, match=r"\blimit\b"):
        Suite().test_the_matrix_measure_is_the_limit_that_defines_it()


@each_metric
def test_induced_norm_bounds_and_is_attained(metric: Metric) -> None:
    M = torch.randn(20, N, N, dtype=torch.float64)
    norm = metric.operator_norm(M)
    x = torch.randn(2000, 1, N, dtype=torch.float64)
    gain = metric.norm((x[..., None, :] @ M.mT).squeeze(-2)) / metric.norm(x)
    assert (gain <= norm + 1e-12).all()
    extremes = _extreme_points(metric)
    best = (metric.norm((extremes[:, None, None, :] @ M.mT).squeeze(-2)) / metric.norm(extremes)[:, None]).amax(0)
    assert torch.allclose(torch.maximum(best, gain.amax(0)), norm, rtol=0.1)
    if not isinstance(metric, (WeightedL2, FullP)):
        assert torch.allclose(best, norm)


def _extreme_points(metric: Metric) -> Tensor:
    """Where a linear map attains its norm: the vertices of the unit ball for ℓ1 and ℓ∞, else random directions."""
    if isinstance(metric, WeightedL1):
        return torch.eye(N, dtype=torch.float64)
    if isinstance(metric, WeightedLinf):
        signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=N)), dtype=torch.float64)
        return signs / metric.weights
    return torch.randn(5000, N, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squares_beyond_the_dtype_spoil_no_norm(dtype: torch.dtype) -> None:
    """3-4-5 triangles of every size; the norm of the others keeps every bit, and the gradient is x/‖x‖."""
    high = 120 if dtype == torch.float32 else 1000
    sizes = 2.0 ** torch.arange(-high, high, dtype=torch.float64)
    x = (sizes[:, None] * torch.tensor([3.0, 4.0], dtype=torch.float64)).to(dtype).requires_grad_()
    for metric in (WeightedL2.identity(2, dtype=dtype), FullP(torch.eye(2, dtype=dtype))):
        norm = metric.norm(x)
        assert torch.equal(norm, (5 * sizes).to(dtype))
        (gradient,) = torch.autograd.grad(norm.sum(), x)
        assert torch.allclose(gradient, torch.tensor([0.6, 0.8], dtype=dtype).expand_as(gradient))
    y = torch.randn(50, 7, generator=torch.Generator().manual_seed(1), dtype=dtype)
    assert torch.equal(euclidean(y), torch.linalg.vector_norm(y, dim=-1))
    odd = torch.tensor([[0.0, 0.0], [math.inf, 1.0], [math.nan, 1.0], [math.inf, math.nan]], dtype=dtype)
    assert euclidean(odd).tolist()[:2] == [0.0, math.inf] and euclidean(odd)[2:].isnan().all()
    assert euclidean(torch.zeros(3, 0)).tolist() == [0.0] * 3 and euclidean(torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize("kind", [WeightedL1, WeightedL2, WeightedLinf, FullP])
@pytest.mark.parametrize("size", [1, 3])
def test_vectors_and_matrices_of_another_size_are_refused(kind: type[Metric], size: int) -> None:
    """A metric of one entry would broadcast, and measure what nobody asked for."""
    metric: Metric = kind(torch.eye(size) if kind is FullP else torch.ones(size))  # type: ignore[call-arg]
    assert metric.norm(2 * torch.eye(size)).tolist() == [2.0] * size
    assert float(metric.matrix_measure(-torch.eye(size))) == pytest.approx(-1.0)
    for other in (2, 4):
        with pytest.raises(InputError, match=r"\bvectors\b"):
            metric.norm(torch.ones(5, other))
        for shape in ((other, other), (5, other, size), (size, other)):
            M = torch.ones(shape)
            for call in (metric.operator_norm, metric.matrix_measure, getattr(metric, "whiten", metric.operator_norm)):
                with pytest.raises(InputError, match=r"\bmatrices\b"):
                    call(M)


def test_a_norm_on_no_entries_is_refused() -> None:
    with pytest.raises(InputError, match=r"\bsize\b"):
        WeightedL2.identity(0)
    with pytest.raises(InputError, match=r"\bmatrix\b"):
        FullP(torch.ones(0, 0))


@pytest.mark.parametrize("kind", [WeightedL1, WeightedL2, WeightedLinf])
@pytest.mark.parametrize(
    "weights",
    [
        torch.tensor([1.0, 0.0]),
        torch.tensor([1.0, -2.0]),
        torch.tensor([1.0, float("nan")]),
        torch.ones(2, 2),
        torch.ones(2, dtype=torch.int64),
        [1.0, 2.0],
    ],
    ids=str,
)
def test_bad_weights_are_refused(kind: type, weights: object) -> None:
    with pytest.raises(InputError, match=r"\bweights\b"):
        kind(weights)


def test_the_symmetry_of_p_is_judged_in_its_own_units() -> None:
    """A skew block beside entries a million times as large is no rounding, and has no norm."""
    P = torch.diag(torch.tensor([1e16, 1.0, 1.0], dtype=torch.float64))
    P[1, 2] = 0.9
    with pytest.raises(InputError, match=r"\bmatrix\b"):
        FullP(P)
    graded = torch.tensor([1e8, 1.0, 1e-8], dtype=torch.float64)
    X = graded[:, None] * (torch.eye(3, dtype=torch.float64) + 0.3) * graded
    X[0, 2] *= 1 + 1e-15
    assert FullP(X).size == 3


@pytest.mark.parametrize(
    "matrix",
    [
        torch.ones(2, 3),
        torch.tensor([[1.0, 0.5], [0.0, 1.0]]),
        torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
        torch.tensor([[1.0, float("inf")], [0.0, 1.0]]),
    ],
    ids=["not square", "not symmetric", "not positive definite", "not finite"],
)
def test_bad_p_is_refused(matrix: Tensor) -> None:
    with pytest.raises(InputError, match=r"\bmatrix\b"):
        FullP(matrix)
