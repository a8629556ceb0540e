"""The contract of a linear map."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from functools import partial

import torch
from torch import Tensor

from contracting.activations.catalogue import ReLU
from contracting.contracts.base import DOUBLE, close, draw, refused, require
from contracting.errors import PreconditionError
from contracting.flows.network import FiringRate
from contracting.loop.method import Method
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.base import LinearMap
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers.automatic import Automatic
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.newton_krylov import NewtonKrylov
from contracting.solvers.splitting import PeacemanRachford


class LinearMapContract(ABC):
    """What every linear map promises, against the matrix that it is.

    Bring ``linear`` and ``matrix``; ``metric``, if I − W is strongly monotone in another than the Euclidean one; and
    ``step``, if the map has no resolvent, or one for special steps only.
    """

    @abstractmethod
    def linear(self) -> LinearMap:
        """A small map (n ≤ 50) in float64 with I − W strongly monotone, on new tensors in each call."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """The same W as a matrix, (n, n), written entry by entry and not by ``to_dense``."""

    def metric(self) -> WeightedL2:
        """A metric in which I − W is strongly monotone."""
        return WeightedL2.identity(self.linear().size, dtype=DOUBLE)

    def step(self) -> float | Tensor | None:
        """A step for which the map has a resolvent; None where it has none."""
        return 0.7

    def _parts(self) -> tuple[LinearMap, Tensor, Tensor]:
        """The map, its matrix, and rows to apply it to."""
        linear = self.linear()
        return linear, self.matrix(), draw(4, linear.size, seed=1)

    def test_products_are_those_of_the_matrix(self) -> None:
        linear, W, z = self._parts()
        require(tuple(W.shape) == (linear.size, linear.size), "size must be n")
        require(linear.adjoint.adjoint is linear, "the adjoint of the adjoint must be the map itself")
        for of, matrix in ((linear, W), (linear.adjoint, W.mT)):
            close(of.to_dense(), matrix, "to_dense() must be the matrix of W")
            for rows in (z, of.laid_out(z), z[:0], z.reshape(2, 2, -1), z[0]):
                close(of.apply(rows), rows @ matrix.mT, "apply(z) must give the rows of Wz")
            for rows in (z, of.laid_out(z)):
                expected, out = z @ matrix.mT + 2 * z, torch.empty_like(rows)
                of.affine(rows, 2 * rows, out)
                for found in (of.affine(rows, 2 * rows), out):
                    close(found, expected, "affine(z, q) and affine(z, q, out) must give Wz + q")
                twice = (z.abs() @ matrix.mT + 2 * z).abs() @ matrix.mT + 2 * z
                found = of.iterated(torch.abs, 2 * rows, rows, 2)
                close(found, twice, "iterated(h, q, u, 2) must take two steps u ← W h(u) + q")
                close(rows, z, "iterated must leave the u that it is given as it is")

    def test_other_tensors_make_the_same_map_of_other_values(self) -> None:
        linear, W, z = self._parts()
        single, twin = linear.to(torch.float32), copy.deepcopy(linear)
        require(single.dtype == torch.float32, "with_tensors must follow the dtype of the tensors")
        close(single.apply(z.float()).double(), z @ W.mT, "the map in float32 must be W rounded", 1e-3)
        close(linear.with_tensors(linear.tensors()).apply(z), z @ W.mT, "with_tensors(tensors()) must be W")
        _scale(linear, 0.5)
        close(twin.apply(z), z @ W.mT, "a deep copy must not share tensors")

    def test_gradients_reach_the_tensors(self) -> None:
        linear, _, z = self._parts()
        leaves = [t.detach().clone().requires_grad_() for t in linear.tensors()]
        held, cotangent = linear.with_tensors(leaves), z.flip(0)
        expected = torch.autograd.grad((held.apply(z) * cotangent).sum(), leaves, allow_unused=True)
        for found, gradient in zip(held.pullback(z, cotangent), expected, strict=True):
            wanted = torch.zeros_like(found) if gradient is None else gradient
            close(found, wanted, "pullback must be the gradient of ⟨c, Wz⟩", 1e-7)
        require(held.changing and held.detached.changing and not linear.changing, "weights in a graph are changing")

    def test_the_resolvent_is_the_inverse(self) -> None:
        linear, W, z = self._parts()
        step, identity = self.step(), torch.eye(linear.size, dtype=DOUBLE)
        if step is None:
            refused(PreconditionError, partial(linear.resolvent, 0.7), "a resolvent that is not there must be refused")
            return
        K = torch.linalg.inv(identity + torch.as_tensor(step, dtype=DOUBLE).reshape(-1, 1) * (identity - W))
        for found, matrix in (
            (linear.resolvent(step), K),
            (linear.resolvent(step).adjoint, K.mT),
            (linear.reflection(step), 2 * K - identity),
            (linear.resolvent(step).combined(0.5, 0.25), 0.5 * K + 0.25 * identity),
        ):
            close(found.apply(z), z @ matrix.mT, "resolvent(α) must be (I + α(I − W))⁻¹, and so on")
        require(linear.resolvent(step) is linear.resolvent(step), "a resolvent must be made once")

    def test_bounds_are_on_the_safe_side(self) -> None:
        linear, W, _ = self._parts()
        metric = self.metric()
        exact = Dense(W).operator(metric)
        slack = 1e-9 * exact.bounds.lipschitz
        for found in (linear.operator(metric), linear.adjoint.operator(metric.dual())):
            m, truth = found.bounds.monotonicity, exact.bounds.monotonicity
            require(0 < m <= truth + slack, f"m must be proved from below: it is {truth}, and {m} is claimed")
            for name in ("symmetric", "skew", "lipschitz", "gain"):
                above = getattr(found.bounds, name) >= getattr(exact.bounds, name) - slack
                require(above, f"{name} must be proved from above")
            for step in (0.1, 1.0):
                for name in ("forward_factor", "reflected_factor"):
                    proved, true = (getattr(of, name)(step / exact.bounds.lipschitz) for of in (found, exact))
                    require(proved >= true - 1e-9, f"{name} must be an upper bound")
        seen = linear.estimates(metric)
        require(seen and 0 < seen.monotonicity <= seen.mean <= seen.lipschitz, "0 < m ≤ mean ≤ L must be estimated")

    def test_a_change_in_place_is_noticed(self) -> None:
        linear, _, z = self._parts()
        step = self.step()

        def made(of: LinearMap) -> list[LinearMap]:
            return [of, of.adjoint, *([] if step is None else [of.resolvent(step)])]

        made(linear)
        _scale(linear, 0.9)
        fresh = linear.with_tensors([t.clone() for t in linear.tensors()])
        for old, new in zip(made(linear), made(fresh), strict=True):
            close(old.apply(z), new.apply(z), "W, Wᵀ and resolvents must see a change in place")

    def test_it_can_be_solved(self) -> None:
        linear, W, v = self._parts()
        z = torch.relu(v)
        problem = EquilibriumProblem(linear=linear, q=v - z @ W.mT, activation=ReLU(), metric=self.metric())
        inverting: list[Method] = [] if self.step() is None else [PeacemanRachford()]
        for method in (NewtonKrylov(flow=FiringRate()), SemismoothNewton(), Automatic(), *inverting):
            close(solve(problem, method, stop=Stop(rtol=1e-9)).z, z, f"{method} must find its equilibrium", 1e-5)


def _scale(linear: LinearMap, factor: float) -> None:
    with torch.no_grad():
        for tensor in linear.tensors():
            tensor.mul_(factor)
