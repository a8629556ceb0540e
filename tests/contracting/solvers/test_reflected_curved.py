"""Peaceman–Rachford for a curved σ follows tangents: the same equilibria in as many steps, σ evaluated in a third."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from contracting import DouglasRachford, EquilibriumProblem, PeacemanRachford, Status, Stop, Trace, WeightedL2, solve
from contracting.activations.base import Activation, Curved
from contracting.activations.catalogue import ELU, Arctan, ReLU, Sigmoid, Softplus, Softsign, Tanh
from contracting.activations.sheared import Sheared
from contracting.activations.warm import WarmReflection, error
from contracting.loop.method import Method
from contracting.maps.dense import Dense
from contracting.solvers import reflected_curved
from contracting.solvers.reflected_curved import CurvedIteration, Led
from contracting.types import UNIT_SLOPES
from tests.problems import monotone_weight, planted

F64 = torch.float64
CURVED: tuple[Curved, ...] = (
    Tanh(), Sigmoid(), Softplus(), Softplus(beta=5.0), ELU(), ELU(alpha=0.3), Softsign(), Arctan(),
    Sheared(function="gelu"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sharp(Curved):
    """tanh(40v)/40, whose bend is far narrower than the stride that it is said to have."""

    slopes = UNIT_SLOPES
    stride = math.inf

    def value(self, v: Tensor) -> Tensor:
        return torch.tanh(40 * v) / 40

    def slope(self, v: Tensor) -> Tensor:
        return 1 - torch.tanh(40 * v) ** 2


@pytest.mark.parametrize("activation", CURVED, ids=repr)
def test_value_and_slope_are_those_of_sigma(activation: Curved) -> None:
    few = torch.tensor([-200.0, -30.0, -3.0, -1e-3, -1e-6, 0.0, 1e-6, 1e-3, 0.7, 3.0, 30.0, 200.0], dtype=F64)
    for v in (few, few.repeat(1000)):
        for shift in (0.4, -1.5):
            value, slope = activation.value_and_slope(v, shift)
            assert (value - activation(v)).abs().max() <= 1e-14 * (1 + v.abs().max())
            assert ((value - activation(v)).abs() <= 1e-13 * activation(v).abs()).all()  # relative, for small entries
            assert (slope - shift - activation.derivative(v)).abs().max() <= 1e-13


@pytest.mark.parametrize("step", [0.02, 0.3, 0.9, 4.0])
@pytest.mark.parametrize("activation", [*CURVED, Sharp()], ids=repr)
def test_the_equilibrium_is_the_planted_one(activation: Curved, step: float) -> None:
    W, lam = monotone_weight(9, seed=3, skew=1.5, spread=0.4)
    problem, z = planted(activation, W, lam, batch=5, seed=4)
    method = PeacemanRachford(step=step)
    assert isinstance(method.bind(problem, Stop().resolved(problem)), CurvedIteration)
    solution = solve(problem, method, stop=Stop(rtol=1e-11))
    assert (solution.z - z).abs().max() <= 1e-8 * (1 + z.abs().max())
    assert (problem.residual(solution.z).norm(dim=-1) <= 1.01e-11 * z.norm(dim=-1) + 1e-12).all()


@pytest.mark.parametrize("method", [PeacemanRachford(), DouglasRachford(relaxation=1.6)], ids=["PR", "DR"])
@pytest.mark.parametrize("activation", [Tanh(), Softplus(), ELU(), Sigmoid()], ids=repr)
def test_as_many_steps_as_with_proxes_from_scratch(
    activation: Curved, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    W, lam = monotone_weight(30, seed=5, skew=4.0, scale=20.0)
    problem = planted(activation, W, lam, batch=200, seed=6)[0]
    calls, evaluate = [], type(activation).value_and_slope

    def counted(self: Curved, v: Tensor, shift: float) -> tuple[Tensor, Tensor]:
        calls.append(v.shape)
        return evaluate(self, v, shift)

    monkeypatch.setattr(type(activation), "value_and_slope", counted)
    led = solve(problem, method, stop=Stop(check_every=1))
    steps = int(led.steps.max())
    renewed = [step for step in range(1, steps) if reflected_curved._renewed_after(step)]
    assert renewed == [2, 3, 4, 6, 9, 13, 19, 28, 42, 63][: len(renewed)] and len(calls) == 1 + len(renewed)
    calls.clear()
    solve(problem, method)  # with fewer looks, between which the steps are fused
    assert 7 <= len(calls) <= 11
    monkeypatch.setattr("contracting.solvers.splitting.leads", lambda activation, step: False)
    fresh = problem.rows(slice(None)).with_tensors([t.clone() for t in problem.tensors()])
    scratch = solve(fresh, method, stop=Stop(check_every=1))
    assert steps <= int(scratch.steps.max()) + 1 and (led.z - scratch.z).abs().max() <= 1e-6


def test_a_tangent_that_is_never_renewed_is_no_prox(monkeypatch: pytest.MonkeyPatch) -> None:
    W, lam = monotone_weight(30, seed=5, skew=4.0, scale=20.0)
    problem, z = planted(Tanh(), W, lam, batch=20, seed=6)
    stop = Stop(max_steps=200)
    assert (solve(problem, PeacemanRachford(), stop=stop).z - z).abs().max() <= 1e-6
    monkeypatch.setattr(reflected_curved, "_renewed_after", lambda taken: False)
    assert (solve(problem, PeacemanRachford(), stop=stop).z - z).abs().max() <= 1e-6  # the lag is noticed
    monkeypatch.setattr(reflected_curved, "_LAG", math.inf)
    never = solve(problem, PeacemanRachford(), stop=stop, throw=False)
    assert not never.converged.any() and (never.relative_residual > 1e-3).all()


def test_a_trace_changes_no_bit_and_a_start_may_be_given() -> None:
    W, lam = monotone_weight(8, seed=7, skew=2.0)
    problem, z = planted(Tanh(), W, lam, batch=6, seed=8)
    plain, trace = solve(problem, PeacemanRachford()), Trace()
    seen = solve(problem, PeacemanRachford(), trace=trace)
    assert torch.equal(plain.z, seen.z) and torch.equal(plain.steps, seen.steps) and len(trace) > 2
    near = solve(problem, PeacemanRachford(), z0=z + 1e-6)
    assert int(near.steps.max()) < int(plain.steps.max()) and (near.z - z).abs().max() <= 1e-7


def test_a_row_that_is_not_finite_fails_alone() -> None:
    W, lam = monotone_weight(8, seed=7, skew=2.0)
    problem, z = planted(Softplus(), W, lam, batch=6, seed=8)
    q = problem.q.clone()
    q[2, 3] = torch.nan
    solution = solve(problem.with_tensors([q, W]), PeacemanRachford(), throw=False)
    assert solution.status[2] == Status.NONFINITE and int(solution.converged.sum()) == 5
    others = torch.tensor([0, 1, 3, 4, 5])
    assert (solution.z[others] - z[others]).abs().max() <= 1e-6


def test_newtons_method_would_cycle_without_its_stride() -> None:
    """From one flat part of tanh to the other and back: at α = 0.05 the prox of zero, from s = 3."""
    x, s = torch.zeros(1, 1, dtype=F64), torch.full((1, 1), 3.0, dtype=F64)
    held, free = (WarmReflection(Tanh(), 0.05, s) for _ in range(2))
    free.stride = math.inf
    found, lost = s, s
    for _ in range(12):
        found, lost = held.preimage(held.tangent(found), x), free.preimage(free.tangent(lost), x)
    assert error(Tanh(), 0.05, found, x).abs() <= 1e-15
    assert error(Tanh(), 0.05, lost, x).abs() > 1


def test_a_lead_that_is_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton's method cycles for tanh(40v)/40 without a stride: such rows get their proxes from scratch, as all did."""
    W, lam = monotone_weight(12, seed=9, skew=8.0, scale=20.0)
    v = 3 * torch.randn(40, 12, generator=torch.Generator().manual_seed(1), dtype=F64)
    z = Sharp()(v)
    problem = EquilibriumProblem(linear=Dense(W), q=v - z @ W.mT, activation=Sharp(), metric=WeightedL2(lam))
    method, stop = PeacemanRachford(step=0.03), Stop(rtol=1e-8, max_steps=1000)
    iteration = method.bind(problem, stop.resolved(problem))
    state, taken = iteration.cold(), 0
    while taken < 1000 and not (isinstance(state, Led) and state.exact is not None):
        state, taken = iteration.advance(state, taken, 25), taken + 25
        state = iteration.resume(state, problem.preactivation(iteration.read(state)), taken)
    assert isinstance(state, Led) and state.exact is not None and 0 < int(state.exact.sum()) < 40
    solution = solve(problem, method, stop=stop)
    assert (solution.z - z).abs().max() <= 1e-7
    monkeypatch.setattr(reflected_curved, "_LAG", math.inf)  # nobody looks
    blind = solve(problem, method, stop=stop, throw=False)
    assert not blind.converged.all() and torch.equal(blind.converged, blind.relative_residual <= 1e-8)


def test_only_a_curved_prox_has_a_lead() -> None:
    W, lam = monotone_weight(5, seed=1, skew=1.0)
    per_neuron = torch.linspace(0.2, 2.0, 5, dtype=F64)
    plain: list[tuple[Activation, float | Tensor]] = [(ReLU(), 0.3), (Tanh(), 1.0), (Tanh(), per_neuron)]
    for activation, step in plain:
        problem = EquilibriumProblem(
            linear=Dense(W), q=torch.ones(2, 5, dtype=F64), activation=activation, metric=WeightedL2(lam)
        )
        assert not isinstance(PeacemanRachford(step=step).bind(problem, Stop().resolved(problem)), CurvedIteration)
        assert solve(problem, PeacemanRachford(step=step)).converged.all()
