"""The contract of a metric: subclass ``MetricContract``, bring the metric, inherit the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from contracting.errors import InputError
from contracting.metrics import Metric

_POINTS = 4000  # random directions; in up to five dimensions some come within a tenth of the worst one
_SMALL = 1e-7  # h of the quotient (‖I + hM‖ − 1)/h, whose limit is the measure


class MetricContract:
    """What every metric promises: that it is a norm, and that it measures matrices as that norm does.

    Bring ``metric``.
    """

    def metric(self) -> Metric:
        """A metric on two to five entries, in float64."""
        raise NotImplementedError("bring metric(), which returns your metric on two to five entries in float64")

    def _random(self, *shape: int, seed: int = 0) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def test_it_is_a_norm(self) -> None:
        """Positive, homogeneous, subadditive, for any number of leading dimensions."""
        metric = self.metric()
        x, y = self._random(2, 50, metric.size)
        assert bool((metric.norm(x) > 0).all()), "the norm of a vector that is not zero must be positive"
        assert float(metric.norm(torch.zeros(metric.size, dtype=x.dtype))) == 0, "the norm of zero must be zero"
        _close(metric.norm(-3 * x), 3 * metric.norm(x), "norm(−3x) must be 3 norm(x)")
        assert bool((metric.norm(x + y) <= metric.norm(x) + metric.norm(y) + 1e-12).all()), "‖x + y‖ ≤ ‖x‖ + ‖y‖"
        _close(metric.norm(x.reshape(5, 10, -1)).flatten(), metric.norm(x), "leading dimensions must only be kept")

    def test_the_operator_norm_is_the_largest_gain(self) -> None:
        """No direction exceeds it, and one among many comes near."""
        metric = self.metric()
        M = self._random(6, metric.size, metric.size)
        x = torch.cat([self._random(_POINTS, metric.size, seed=1), torch.eye(metric.size, dtype=M.dtype)])[:, None]
        norm = metric.operator_norm(M)
        gains = metric.norm((M @ x[..., None]).squeeze(-1)) / metric.norm(x)
        assert bool((gains <= norm * (1 + 1e-12)).all()), "no vector may grow by more than the operator norm"
        assert bool((gains.amax(0) >= 0.8 * norm).all()), "the operator norm must be the largest gain, no bound"
        _close(metric.operator_norm(M[0])[None], norm[:1], "one matrix must give what it gives in a batch")

    def test_the_matrix_measure_is_the_limit_that_defines_it(self) -> None:
        """(‖I + hM‖ − 1)/h for small h, and so no matrix exponential grows faster."""
        metric = self.metric()
        M, identity = self._random(10, metric.size, metric.size), torch.eye(metric.size, dtype=torch.float64)
        measure = metric.matrix_measure(M)
        limit = (metric.operator_norm(identity + _SMALL * M) - 1) / _SMALL
        assert bool(((measure - limit).abs() < 1e-4).all()), "the measure must be the limit of (‖I + hM‖ − 1)/h"
        growth = metric.operator_norm(torch.linalg.matrix_exp(0.7 * M))
        assert bool((growth <= torch.exp(0.7 * measure) * (1 + 1e-10)).all()), "‖e^{Mt}‖ ≤ e^{μ(M)t}"

    def test_the_dual_is_the_dual(self) -> None:
        """⟨x, y⟩ ≤ ‖x‖‖y‖*, attained; the transpose has the same norm and measure; the dual of the dual is this one."""
        metric, dual = self.metric(), self.metric().dual()
        x, y = self._random(2, _POINTS, metric.size)
        share = (x * y).sum(-1) / (metric.norm(x) * dual.norm(y))
        assert bool((share <= 1 + 1e-12).all()) and float(share.max()) > 0.8, "the dual must be max ⟨x, y⟩ over ‖y‖ ≤ 1"
        M = self._random(5, metric.size, metric.size, seed=1)
        _close(dual.operator_norm(M.mT), metric.operator_norm(M), "Mᵀ must have in the dual the norm that M has")
        _close(dual.matrix_measure(M.mT), metric.matrix_measure(M), "Mᵀ must have in the dual the measure that M has")
        assert metric.dual().dual() is metric, "the dual of the dual must be this object; bring make_dual, not dual"

    def test_other_coordinates_change_nothing(self) -> None:
        """``rescaled`` measures scale∘x as the metric measures x, over sixteen orders of magnitude."""
        metric = self.metric()
        scale = torch.logspace(-8, 8, metric.size, dtype=torch.float64)
        moved, x = metric.rescaled(scale), self._random(50, metric.size)
        M = self._random(5, metric.size, metric.size, seed=1)
        there = M * scale[:, None] / scale
        _close(moved.norm(x * scale), metric.norm(x), "rescaled(s).norm(s∘x) must be norm(x)")
        _close(moved.operator_norm(there), metric.operator_norm(M), "the operator norm must not depend on coordinates")
        _close(moved.matrix_measure(there), metric.matrix_measure(M), "the measure must not depend on coordinates")

    def test_other_sizes_are_refused(self) -> None:
        """Also where the arithmetic would broadcast."""
        metric = self.metric()
        for size in (1, metric.size + 1):
            _refuses(lambda x: metric.norm(x), torch.ones(3, size, dtype=torch.float64))
            for shape in ((size, size), (metric.size, size)):
                _refuses(lambda M: metric.operator_norm(M), torch.ones(shape, dtype=torch.float64))
                _refuses(lambda M: metric.matrix_measure(M), torch.ones(shape, dtype=torch.float64))

    def test_it_follows_a_dtype(self) -> None:
        """``to`` gives the same metric in another precision; ``tensors`` are what it depends on."""
        metric = self.metric()
        single, x = metric.to(torch.zeros(1)), self._random(20, metric.size)
        assert single.norm(x.float()).dtype == torch.float32, "to(float32) must give a metric in float32"
        assert all(t.dtype == torch.float32 for t in single.tensors()), "tensors() must be those of the metric itself"
        _close(single.norm(x.float()).double(), metric.norm(x), "to(float32) must give the same metric", 1e-5)


def _close(found: Tensor, expected: Tensor, sentence: str, tolerance: float = 1e-9) -> None:
    assert found.shape == expected.shape, f"{sentence}: shape {tuple(found.shape)} in place of {tuple(expected.shape)}"
    worst = float(((found - expected).abs() / (1 + expected.abs())).max())
    assert worst <= tolerance, f"{sentence}; differs by {worst:.2g}"


def _refuses(call: object, argument: Tensor) -> None:
    assert callable(call)
    try:
        call(argument)
    except InputError:
        return
    raise AssertionError(f"what has shape {tuple(argument.shape)} must be refused by an InputError")
