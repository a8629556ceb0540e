r"""A Lur'e system that runs: a neural ODE whose activations may feed back on themselves within an instant.

s' = As + Bw + B₂u + e,  w = σ(v),  v = Cs + Dw + D₁₂u + q,  y = C₂s + D₂₁w + D₂₂u.

For D strictly block lower triangular w is found layer by layer, as in any network. Otherwise w is the equilibrium of a
problem with the weight D, which the library's own methods solve and differentiate.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from contracting import checks
from contracting.activations.base import Activation
from contracting.activations.names import as_activation
from contracting.errors import InputError, PreconditionError
from contracting.flows.driven import Input, input_at, tensors_of
from contracting.flows.fields import VectorField
from contracting.gradients.implicit import Backward, Implicit
from contracting.loop.method import Method, checked_method
from contracting.loop.records import Stop
from contracting.lure.system import LureSystem, steady_gain
from contracting.maps.dense import Dense
from contracting.memory import Memory
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.solvers.automatic import Automatic
from contracting.types import Time

_MATRICES = ("A", "B", "C", "D", "B2", "D12", "C2", "D21", "D22")
_OFFSETS = ("e", "q")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LureFlow(VectorField):
    r"""s' = As + Bw + B₂u + e with w = σ(v), v = Cs + Dw + D₁₂u + q, and the output y = C₂s + D₂₁w + D₂₂u.

    Every tensor may be part of a graph. All are of one dtype, on one device.

    Args:
        A: (n, n).
        B: (n, m).
        C: (m, n).
        D: (m, m), for which the equation of w must be well-posed (Condition 1); None means zero.
        activation: σ, whatever ``as_activation`` takes; ``Blockwise`` where layers have different ones.
        e: (n,), or (batch, n) with one for each row; None means zero.
        q: (m,) or (batch, m); None means zero.
        B2: (n, k); None means zero, and so for the matrices that follow.
        D12: (m, k).
        C2: (p, n); where all of C2, D21 and D22 are None, the output is the state.
        D21: (p, m).
        D22: (p, k).
        u: the input, (k,), (1, k) or (batch, k), or a function of time as for ``DrivenFlow``; None means zero.
        layers: sizes of consecutive layers of neurons, such that D is zero above its blocks of these sizes. A block on
            the diagonal that is zero costs nothing, any other is solved for. Gradients flow to no block above, nor to
            one on the diagonal that is zero. None: found from D where that is strictly lower triangular and needs no
            gradient, otherwise one layer.
        metric: Λ, diagonal, in which I − D is strongly monotone; None tries Λ = I. It is verified.
        solver: the method that finds w; None takes ``Automatic()``.
        stop: when w counts as found; None takes the defaults.
        backward: how w is differentiated.

    Raises:
        InputError: if shapes, dtypes or devices do not fit, an entry is not finite, or D has entries above its layers.
        PreconditionError: if Condition 1 fails for D in the metric.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    activation: Activation
    e: Tensor | None = None
    q: Tensor | None = None
    B2: Tensor | None = None
    D12: Tensor | None = None
    C2: Tensor | None = None
    D21: Tensor | None = None
    D22: Tensor | None = None
    u: Tensor | Input | None = None
    layers: Sequence[int] | None = None
    metric: WeightedL2 | None = None
    solver: Method | None = None
    stop: Stop | None = None
    backward: Backward = field(default_factory=Implicit)

    def __post_init__(self) -> None:
        n, m = _columns("A", self.A), _columns("B", self.B)
        k = next((_columns(name, value) for name, value in self._given("B2", "D12", "D22")), 0)
        p = next((len(value) for _, value in self._given("C2", "D21", "D22")), n)
        rows = {"A": n, "B": n, "B2": n, "C": m, "D": m, "D12": m, "C2": p, "D21": p, "D22": p}
        columns = {"A": n, "C": n, "C2": n, "B": m, "D": m, "D21": m, "B2": k, "D12": k, "D22": k}
        for name, value in self._given(*_MATRICES):
            checks.shape(name, checks.floating_tensor(name, value), (rows[name], columns[name]))
            checks.finite(name, checks.same_kind(name, value, "A", self.A))
        for name, value in self._given(*_OFFSETS):
            object.__setattr__(self, name, self._in_rows(name, value, n if name == "e" else m))
        if not (self.u is None or callable(self.u)):
            object.__setattr__(self, "u", self._in_rows("u", self.u, k))
        object.__setattr__(self, "activation", as_activation(self.activation))
        if self.solver is not None:
            checked_method("solver", self.solver)
        if not (self.metric is None or isinstance(self.metric, WeightedL2)):
            raise InputError(f"metric must be a WeightedL2, or None, got {self.metric!r}")
        if self.metric is not None and self.metric.size != m:
            raise InputError(f"metric must act on the {m} activations, got {self.metric.size}")
        _ = self._plan

    def _given(self, *names: str) -> list[tuple[str, Any]]:
        return [(name, value) for name in names if (value := getattr(self, name)) is not None]

    def _in_rows(self, name: str, value: Any, size: int) -> Tensor:
        tensor = checks.last_size(name, checks.floating_tensor(name, value), size)
        if tensor.ndim not in (1, 2):
            raise InputError(f"{name} must have shape ({size},), (1, {size}) or (batch, {size}), got {tensor.shape}")
        checks.same_kind(name, tensor, "A", self.A)
        return tensor[None] if tensor.ndim == 1 else tensor

    @property
    def size(self) -> int:
        """n, entries of the state."""
        return self.A.shape[0]

    @property
    def neurons(self) -> int:
        """m, activations."""
        return self.B.shape[1]

    @property
    def inputs(self) -> int:
        """k, entries of the input."""
        return next((value.shape[1] for _, value in self._given("B2", "D12", "D22")), 0)

    def tensors(self) -> tuple[Tensor, ...]:
        own = [value for _, value in self._given(*_MATRICES, *_OFFSETS)]
        u = () if self.u is None else (self.u,) if isinstance(self.u, Tensor) else tensors_of(self.u)
        return (*own, *u, *self.activation.tensors())

    def with_input(self, u: Tensor | Input | None) -> Self:
        """The same flow under another input; what is known of D is kept.

        Raises:
            InputError: if it is of another size, dtype or device.
        """
        flow = copy.copy(self)
        given = u if u is None or callable(u) else self._in_rows("u", u, self.inputs)
        object.__setattr__(flow, "u", given)
        return flow

    def to(self, like: Tensor) -> LureFlow:
        """The same flow in the dtype and on the device of ``like``; an input that is a function stays as it is."""
        moved = {name: value.to(like) for name, value in self._given(*_MATRICES, *_OFFSETS)}
        if isinstance(self.u, Tensor):
            moved["u"] = self.u.to(like)
        if self.metric is not None:
            moved["metric"] = self.metric.to(like)
        activation = self.activation.with_tensors([tensor.to(like) for tensor in self.activation.tensors()])
        return replace(self, activation=activation, **moved)

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        u = self._input(t, state)
        value = state @ self.A.mT + self._solved(self._feed(state, u)) @ self.B.mT
        return _plus(value, u, self.B2, self.e)

    def output(self, state: Tensor, t: Time = 0.0) -> Tensor:
        """y = C₂s + D₂₁w + D₂₂u: (batch, n) -> (batch, p)."""
        u = self._input(t, state)
        if self.C2 is None and self.D21 is None and self.D22 is None:
            return state
        value = self.A.new_zeros(()) if self.C2 is None else state @ self.C2.mT
        if self.D21 is not None:
            value = value + self._solved(self._feed(state, u)) @ self.D21.mT
        value = _plus(value, u, self.D22, None)
        return value if value.ndim == 2 else value.expand(len(state), len(self._given("D22")[0][1]))

    def activations(self, state: Tensor, t: Time = 0.0) -> Tensor:
        """w: (batch, n) -> (batch, m)."""
        return self._solved(self._feed(state, self._input(t, state)))

    def preactivations(self, state: Tensor, t: Time = 0.0) -> Tensor:
        """v = Cs + Dw + D₁₂u + q: (batch, n) -> (batch, m)."""
        feed = self._feed(state, self._input(t, state))
        return feed if self.D is None else feed + self._solved(feed) @ self.D.mT

    def jacobian(self, state: Tensor, t: Time = 0.0) -> Tensor:
        """A + BJ(I − DJ)⁻¹C with the slopes J at the pre-activation: (batch, n) -> (batch, n, n), differentiable."""
        slopes = self.activation.derivative(self.preactivations(state, t))
        return self.A + self.B @ self._moved(slopes, self.C)

    def jvp(self, state: Tensor, direction: Tensor, t: Time = 0.0) -> Tensor:
        """The Jacobian times a direction: (batch, n) -> (batch, n)."""
        checks.shape("direction", direction, tuple(state.shape))
        slopes = self.activation.derivative(self.preactivations(state, t))
        moved = self._moved(slopes, (direction @ self.C.mT)[..., None])[..., 0]
        return direction @ self.A.mT + moved @ self.B.mT

    def system(self) -> LureSystem:
        """The matrices, with the slopes of each activation: what a certificate is about."""
        zero = self.A.new_zeros(self.neurons, self.neurons)
        matrices = {name: getattr(self, name) for name in _MATRICES}
        matrices["D"] = zero if self.D is None else self.D
        hint = None if self.metric is None else self.metric.weights
        return LureSystem(**matrices, slopes=self.activation.slope_intervals(self.neurons), hint=hint)

    def equilibrium_problem(self, *, metric: WeightedL2 | None = None) -> EquilibriumProblem:
        r"""The problem whose solution is w at rest: w = σ(Gw + q − CA⁻¹e + (D₁₂ − CA⁻¹B₂)u), G = D − CA⁻¹B.

        Any method finds it that finds equilibria; ``steady_state`` gives the state.

        Args:
            metric: in which I − G is claimed to be strongly monotone, as methods that are splittings need. The Λ of a
                certificate that the flow contracts is one.

        Raises:
            PreconditionError: if A is singular, or the input is a function of time.
        """
        u = self._constant_input()
        right = torch.cat([self.B, *(value.mT for value in self._drive(u))], 1)
        moved = self.C @ steady_gain(self.A, right)
        weight, drift = moved[:, : self.neurons], moved[:, self.neurons :].mT
        feed = _plus(drift if drift.numel() else self.A.new_zeros(1, self.neurons), u, self.D12, self.q)
        return EquilibriumProblem(
            linear=Dense(weight if self.D is None else self.D + weight),
            q=feed,
            activation=self.activation,
            metric=metric,
        )

    def steady_state(self, w: Tensor) -> Tensor:
        """s = −A⁻¹(Bw + B₂u + e), the state at rest whose activations are w: (batch, m) -> (batch, n).

        Raises:
            InputError: if w does not fit.
            PreconditionError: as ``equilibrium_problem``.
        """
        w = checks.last_size("w", checks.same_kind("w", checks.floating_tensor("w", w), "A", self.A), self.neurons)
        u = self._constant_input()
        return steady_gain(self.A, sum(self._drive(u), w @ self.B.mT).mT).mT

    def _drive(self, u: Tensor | None) -> list[Tensor]:
        """e + B₂u as a list, (batch, n), which is empty where there is none."""
        parts = [] if self.e is None else [self.e]
        if u is not None and self.B2 is not None:
            parts.append(u @ self.B2.mT)
        return [sum(parts[1:], parts[0])] if parts else []

    def _constant_input(self) -> Tensor | None:
        if self.u is None or isinstance(self.u, Tensor):
            return self.u
        raise PreconditionError(
            "the input u(t) moves, so there is no steady state; take flow.with_input(u) with the value of one moment"
        )

    def _input(self, t: Time, state: Tensor) -> Tensor | None:
        checks.same_kind("state", checks.last_size("state", state, self.size), "A", self.A)
        if self.u is None or isinstance(self.u, Tensor):
            return self.u
        return input_at(self.u, t, size=self.inputs, like=self.A, name="u", rows=len(state))

    def _feed(self, state: Tensor, u: Tensor | None) -> Tensor:
        """Cs + D₁₂u + q."""
        return _plus(state @ self.C.mT, u, self.D12, self.q)

    @cached_property
    def _memory(self) -> Memory:
        return Memory()

    @property
    def _plan(self) -> list[_Layer]:
        """The layers, made anew where D was changed in place."""
        if self.D is None:
            return [_Layer(0, self.neurons, self.activation, None)] if self.neurons else []
        return self._memory.recall("layers", (self.D,), self._make_plan)

    def _make_plan(self) -> list[_Layer]:
        assert self.D is not None
        values = self.D.detach()
        sizes = _layer_sizes(self.D) if self.layers is None else [int(size) for size in self.layers]
        if sum(sizes) != self.neurons or any(size < 1 for size in sizes):
            raise InputError(f"layers must be sizes whose sum is the {self.neurons} activations, got {sizes}")
        ends = list(itertools.accumulate(sizes))
        plan = []
        for start, stop in zip([0, *ends[:-1]], ends, strict=True):
            if bool(values[start:stop, stop:].any()):
                raise InputError(f"D must be zero above its layers {sizes}, and is not in rows {start} … {stop - 1}")
            activation = self.activation if len(sizes) == 1 else self.activation.neurons(start, stop)
            problem = self._problem(start, stop, activation) if bool(values[start:stop, start:stop].any()) else None
            plan.append(_Layer(start, stop, activation, problem))
        return plan

    def _problem(self, start: int, stop: int, activation: Activation) -> EquilibriumProblem:
        """The equation of the activations of one layer."""
        assert self.D is not None
        lam = self.D.new_ones(stop - start) if self.metric is None else self.metric.weights[start:stop].to(self.D)
        problem = EquilibriumProblem(
            linear=Dense(self.D[start:stop, start:stop]),
            q=self.D.new_zeros(1, stop - start),
            activation=activation,
            metric=WeightedL2(lam),
        )
        if not problem.well_posed:
            where = "Λ = I, which was tried as no metric is given," if self.metric is None else "the metric"
            raise PreconditionError(
                f"D is not known to be well-posed: 2Λ − ΛD − DᵀΛ ≻ 0 fails for {where} so that w = σ(Cs + Dw + q) may "
                "have no or many solutions; pass metric=find_metric(D).metric, or a D for which it finds one"
            )
        return problem

    def _solved(self, feed: Tensor) -> Tensor:
        """w = σ(Dw + feed): (batch, m) -> (batch, m)."""
        found: list[Tensor] = []
        for layer in self._plan:
            v = feed[:, layer.start : layer.stop]
            if found:
                assert self.D is not None
                before = found[0] if len(found) == 1 else torch.cat(found, -1)
                v = v + before @ self.D[layer.start : layer.stop, : layer.start].mT
            if layer.problem is None:
                found.append(layer.activation(v))
            else:
                problem, solver = replace(layer.problem, q=v), self.solver or Automatic()
                found.append(self.backward.equilibrium(problem, solver, self.stop or Stop()))
        return torch.cat(found, -1) if found else feed

    def _moved(self, slopes: Tensor, right: Tensor) -> Tensor:
        """x with x = J(Dx + right): slopes (batch, m), right (m, k) or (batch, m, k) -> (batch, m, k)."""
        found: list[Tensor] = []
        for layer in self._plan:
            own, J = right[..., layer.start : layer.stop, :], slopes[..., layer.start : layer.stop, None]
            if found:
                assert self.D is not None
                own = own + self.D[layer.start : layer.stop, : layer.start] @ torch.cat(found, -2)
            own = J * own
            if layer.problem is not None:
                loop = J * layer.problem.linear.to_dense()
                own = torch.linalg.solve(torch.eye(loop.shape[-1], dtype=loop.dtype, device=loop.device) - loop, own)
            found.append(own)
        return torch.cat(found, -2) if found else slopes[..., None] * right


@dataclass(frozen=True)
class _Layer:
    """Neurons start … stop − 1; ``problem`` is their own equation, None where they do not see each other."""

    start: int
    stop: int
    activation: Activation
    problem: EquilibriumProblem | None


def _layer_sizes(D: Tensor) -> list[int]:
    """Sizes of the fewest layers in which no neuron sees its own layer or a later one; one layer where some must."""
    values = D.detach()
    if D.requires_grad or bool(values.triu().any()):
        return [len(D)] if len(D) else []
    index = torch.arange(len(D), device=D.device)
    last = torch.where(values != 0, index, -1).amax(1).tolist() if len(D) else []
    starts: list[int] = []
    for neuron, seen in enumerate(last):
        if not starts or seen >= starts[-1]:
            starts.append(neuron)
    return [stop - start for start, stop in itertools.pairwise([*starts, len(D)])]


def _plus(value: Tensor, u: Tensor | None, matrix: Tensor | None, offset: Tensor | None) -> Tensor:
    if u is not None and matrix is not None:
        value = value + u @ matrix.mT
    return value if offset is None else value + offset


def _columns(name: str, value: Any) -> int:
    if checks.floating_tensor(name, value).ndim != 2:
        raise InputError(f"{name} must be a matrix, got shape {tuple(value.shape)}")
    return int(value.shape[1])
