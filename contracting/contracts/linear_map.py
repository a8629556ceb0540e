"""The contract of a linear map: subclass ``LinearMapContract``, bring two factories, inherit the tests."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor

from contracting.activations.catalogue import ReLU
from contracting.errors import PreconditionError
from contracting.flows.network import FiringRate
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.base import LinearMap
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers.automatic import Automatic
from contracting.solvers.newton_krylov import NewtonKrylov
from contracting.solvers.splitting import PeacemanRachford

_ROUNDING = 1e-9  # relative to ‖W‖, of products in float64 and of an inverse of moderate condition


class LinearMapContract:
    """What every linear map promises, against the matrix that it is.

    * ``linear()``: a small map (n ≤ 50) in float64 with I − W strongly monotone, new tensors in each call.
    * ``matrix()``: the same W as a matrix, written entry by entry and not by ``to_dense``.

    ``metric`` (the Euclidean one) is where I − W is strongly monotone; ``step`` (0.7) the step of its resolvent, or
    None where the map brings none.

    >>> class TestMine(LinearMapContract):
    ...     def linear(self):
    ...         return Mine(torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    ...
    ...     def matrix(self):
    ...         ...
    """

    def linear(self) -> LinearMap:
        """The map."""
        raise NotImplementedError("bring linear(), which returns a small map in float64")

    def matrix(self) -> Tensor:
        """Its matrix, (n, n)."""
        raise NotImplementedError("bring matrix(), which returns W as a matrix, not by to_dense()")

    def metric(self) -> WeightedL2:
        """A metric in which I − W is strongly monotone."""
        return WeightedL2.identity(self.linear().size, dtype=torch.float64)

    def step(self) -> float | Tensor | None:
        """A step for which the map has a resolvent; None where it has none."""
        return 0.7

    def _parts(self, rows: int = 4) -> tuple[LinearMap, Tensor, Tensor]:
        """The map, its matrix, and rows to apply it to."""
        linear, W = self.linear(), self.matrix()
        generator = torch.Generator().manual_seed(1)
        return linear, W, torch.randn(rows, linear.size, generator=generator, dtype=torch.float64)

    def test_products_are_those_of_the_matrix(self) -> None:
        """Wz, Wᵀz, Wz + q, in every layout and batch shape, and the matrix itself."""
        linear, W, z = self._parts()
        assert tuple(W.shape) == (linear.size, linear.size), "size must be n"
        assert linear.dtype == torch.float64 and all(isinstance(t, Tensor) for t in linear.tensors())
        for of, matrix in ((linear, W), (linear.adjoint, W.mT)):
            for rows in (z, of.laid_out(z), z[:0], z.reshape(2, 2, -1), z[0]):
                _close(of.apply(rows), rows @ matrix.mT, W, "apply(z) must give the rows of Wz")
            _close(of.to_dense(), matrix, W, "to_dense() must be the matrix of W")
            for rows in (z, of.laid_out(z)):
                expected, out = z @ matrix.mT + 2 * z, torch.empty_like(rows)
                _close(of.affine(rows, 2 * rows), expected, W, "affine(z, q) must be Wz + q")
                of.affine(rows, 2 * rows, out)
                _close(out, expected, W, "affine(z, q, out) must write into out")
                of.steps_with(2 * rows)(rows, out)
                _close(out, expected, W, "steps_with(q)(z, out) must write Wz + q into out")
        assert linear.adjoint.adjoint is linear, "the adjoint of the adjoint must be the map itself"

    def test_other_tensors_make_the_same_map_of_other_values(self) -> None:
        """with_tensors(tensors()) is W, float32 is W rounded, and a deep copy is independent."""
        linear, W, z = self._parts()
        _close(linear.with_tensors(linear.tensors()).apply(z), z @ W.mT, W, "with_tensors(tensors()) must be W")
        single = linear.to(torch.float32)
        assert single.dtype == torch.float32, "with_tensors must follow the dtype of the tensors"
        assert torch.allclose(single.apply(z.float()).double(), z @ W.mT, rtol=1e-3, atol=1e-3 * float(W.abs().max()))
        twin = copy.deepcopy(linear)
        with torch.no_grad():
            for tensor in linear.tensors():
                tensor.mul_(0.5)
        _close(twin.apply(z), z @ W.mT, W, "a deep copy must not share tensors")

    def test_gradients_reach_the_tensors(self) -> None:
        """``pullback`` and autograd agree, with the matrix as a function of the tensors in between."""
        linear, _, z = self._parts()
        leaves = [t.detach().clone().requires_grad_() for t in linear.tensors()]
        held, cotangent = linear.with_tensors(leaves), z.flip(0)
        expected = torch.autograd.grad((held.apply(z) * cotangent).sum(), leaves, allow_unused=True)
        for found, gradient in zip(held.pullback(z, cotangent), expected, strict=True):
            wanted = torch.zeros_like(found) if gradient is None else gradient
            assert torch.allclose(found, wanted, rtol=1e-7, atol=1e-9), "pullback must be the gradient of ⟨c, Wz⟩"
        assert held.changing and held.detached.changing and not linear.changing

    def test_the_resolvent_is_the_inverse(self) -> None:
        """(I + α(I − W))⁻¹, its reflection, their adjoints and multiples; made once."""
        linear, W, z = self._parts()
        step = self.step()
        if step is None:
            _refuses(linear)
            return
        identity = torch.eye(linear.size, dtype=torch.float64)
        D = step[:, None] if isinstance(step, Tensor) and step.ndim else step
        K = torch.linalg.inv(identity + D * (identity - W))
        for found, matrix in (
            (linear.resolvent(step), K),
            (linear.resolvent(step).adjoint, K.mT),
            (linear.reflection(step), 2 * K - identity),
            (linear.resolvent(step).combined(0.5, 0.25), 0.5 * K + 0.25 * identity),
        ):
            _close(found.apply(z), z @ matrix.mT, K, "resolvent(α) must be (I + α(I − W))⁻¹, and so on")
        assert linear.resolvent(step) is linear.resolvent(step), "what is remembered must be found again"

    def test_bounds_are_on_the_safe_side(self) -> None:
        """m from below and the rest from above, for W and Wᵀ, and factors that hold; estimates are near."""
        linear, W, _ = self._parts()
        metric = self.metric()
        exact = Dense(W).operator(metric)
        assert exact.bounds.strongly_monotone, "matrix() must be strongly monotone in metric()"
        for found in (linear.operator(metric), linear.adjoint.operator(metric.dual())):
            slack = _ROUNDING * exact.bounds.lipschitz
            assert 0 < found.bounds.monotonicity <= exact.bounds.monotonicity + slack, "m must be proved from below"
            for name in ("symmetric", "skew", "lipschitz", "gain"):
                low, high = getattr(exact.bounds, name), getattr(found.bounds, name)
                assert high >= low - slack, f"{name} must be proved from above"
            for step in (0.1, 1.0):
                for name in ("forward_factor", "reflected_factor"):
                    proved, true = (getattr(of, name)(step / exact.bounds.lipschitz) for of in (found, exact))
                    assert proved >= true - 1e-9, f"{name} must be an upper bound"
        estimates = linear.estimates(metric)
        assert estimates is not None and 0 < estimates.monotonicity <= estimates.mean <= estimates.lipschitz

    def test_a_change_in_place_is_noticed(self) -> None:
        """What was remembered of other values is computed again."""
        linear, _, z = self._parts()
        _, step = linear.operator(self.metric()), self.step()
        kept = None if step is None else linear.resolvent(step)
        with torch.no_grad():
            for tensor in linear.tensors():
                tensor.mul_(0.99)
        fresh = linear.with_tensors([t.clone() for t in linear.tensors()])
        _close(linear.apply(z), fresh.apply(z), fresh.to_dense(), "apply must see a change in place")
        _close(linear.adjoint.apply(z), fresh.adjoint.apply(z), fresh.to_dense(), "and so must the adjoint")
        if step is not None:
            assert linear.resolvent(step) is not kept, "and so must the resolvent"
            _close(linear.resolvent(step).apply(z), fresh.resolvent(step).apply(z), fresh.to_dense(), "of its values")

    def test_it_can_be_solved(self) -> None:
        """The equilibrium of a planted problem, by products alone and, where there is one, by the resolvent."""
        linear, W, v = self._parts()
        z = torch.relu(v)
        problem = EquilibriumProblem(linear=linear, q=v - z @ W.mT, activation=ReLU(), metric=self.metric())
        inverting = [] if self.step() is None else [PeacemanRachford()]
        for method in (NewtonKrylov(flow=FiringRate()), Automatic(), *inverting):
            solution = solve(problem, method, stop=Stop(rtol=1e-9))
            assert float((solution.z - z).norm(dim=-1).max()) <= 1e-5 * float(z.norm()), "the equilibrium is planted"
        assert dataclasses.replace(problem, q=problem.q).size == linear.size


def _refuses(linear: LinearMap) -> None:
    try:
        linear.resolvent(0.7)
    except PreconditionError:
        return
    raise AssertionError("a map without a resolvent must refuse it with a PreconditionError")


def _close(found: Tensor, expected: Tensor, scale: Tensor, promise: str) -> None:
    assert found.shape == expected.shape, f"{promise}: its shape is {tuple(found.shape)}, not {tuple(expected.shape)}"
    if expected.numel():
        miss = float((found - expected).abs().max())
        assert miss <= _ROUNDING * (1 + float(scale.abs().sum(-1).max())), f"{promise}: it is off by {miss:.1e}"
