"""The contract of a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

import torch

from contracting.contracts.base import DOUBLE, close, draw, refused, require
from contracting.errors import InputError
from contracting.metrics import Metric

_POINTS = 4000  # random directions; in up to five dimensions some come within a tenth of the worst one
_SMALL = 1e-7  # h of the quotient (‖I + hM‖ − 1)/h, whose limit is the measure


class MetricContract(ABC):
    """What every metric promises: to be a norm, and to measure matrices as that norm does. Bring ``metric``."""

    @abstractmethod
    def metric(self) -> Metric:
        """The metric to be tested, on two to five entries, in float64."""

    def test_it_is_a_norm(self) -> None:
        metric = self.metric()
        x, y = draw(2, 50, metric.size)
        require(metric.norm(x) > 0, "the norm of a vector that is not zero must be positive")
        close(metric.norm(-3 * x), 3 * metric.norm(x), "norm(−3x) must be 3 norm(x)")
        require(metric.norm(0 * x) == 0, "the norm of zero must be zero")
        require(metric.norm(x + y) <= metric.norm(x) + metric.norm(y) + 1e-12, "norm(x + y) ≤ norm(x) + norm(y)")
        close(metric.norm(x.reshape(5, 10, -1)).flatten(), metric.norm(x), "leading dimensions must only be kept")
        single = metric.to(torch.zeros(1))
        require({t.dtype for t in single.tensors()} == {torch.float32}, "to must give a metric of that dtype")
        close(single.norm(x.float()), metric.norm(x).float(), "to(float32) must give the same metric", 1e-5)

    def test_the_operator_norm_is_the_largest_gain(self) -> None:
        metric = self.metric()
        M = draw(6, metric.size, metric.size)
        x = torch.cat([draw(_POINTS, metric.size, seed=1), torch.eye(metric.size, dtype=DOUBLE)])
        norm, gains = metric.operator_norm(M), metric.norm(x @ M.mT) / metric.norm(x)
        require(gains <= norm[:, None] * (1 + 1e-12), "no vector may grow by more than the operator norm")
        require(gains.amax(1) >= 0.8 * norm, "the operator norm must be the largest gain, no bound")
        close(metric.operator_norm(M[0])[None], norm[:1], "one matrix must give what it gives in a batch")

    def test_the_matrix_measure_is_the_limit_that_defines_it(self) -> None:
        metric = self.metric()
        M, identity = draw(10, metric.size, metric.size), torch.eye(metric.size, dtype=DOUBLE)
        measure = metric.matrix_measure(M)
        limit = (metric.operator_norm(identity + _SMALL * M) - 1) / _SMALL
        require((measure - limit).abs() < 1e-4, "the measure must be the limit of (‖I + hM‖ − 1)/h")
        growth = metric.operator_norm(torch.linalg.matrix_exp(0.7 * M))
        require(growth <= torch.exp(0.7 * measure) * (1 + 1e-10), "‖exp(Mt)‖ ≤ exp(μ(M)t)")

    def test_the_dual_is_the_dual(self) -> None:
        metric, dual = self.metric(), self.metric().dual()
        (x, y), M = draw(2, _POINTS, metric.size), draw(5, metric.size, metric.size, seed=1)
        share = (x * y).sum(-1) / (metric.norm(x) * dual.norm(y))
        require(0.8 < float(share.max()) <= 1 + 1e-12, "the dual must be max ⟨x, y⟩ over norm(y) ≤ 1")
        close(dual.operator_norm(M.mT), metric.operator_norm(M), "Mᵀ must have in the dual the norm that M has")
        close(dual.matrix_measure(M.mT), metric.matrix_measure(M), "Mᵀ must have in the dual the measure that M has")
        require(metric.dual().dual() is metric, "the dual of the dual must be this object: bring make_dual, not dual")

    def test_other_coordinates_change_nothing(self) -> None:
        metric = self.metric()
        scale, x = torch.logspace(-8, 8, metric.size, dtype=DOUBLE), draw(50, metric.size)
        moved, M = metric.rescaled(scale), draw(5, metric.size, metric.size, seed=1)
        there = M * scale[:, None] / scale
        close(moved.norm(x * scale), metric.norm(x), "rescaled(s).norm(s∘x) must be norm(x)")
        close(moved.operator_norm(there), metric.operator_norm(M), "the operator norm must not depend on coordinates")
        close(moved.matrix_measure(there), metric.matrix_measure(M), "the measure must not depend on coordinates")

    def test_other_sizes_are_refused(self) -> None:
        metric = self.metric()
        for size in (1, metric.size + 1):
            refused(InputError, partial(metric.norm, draw(3, size)), "vectors of another size must be refused")
            for of in (metric.operator_norm, metric.matrix_measure):
                for rows in (size, metric.size):
                    refused(InputError, partial(of, draw(rows, size)), "matrices of another size must be refused")
