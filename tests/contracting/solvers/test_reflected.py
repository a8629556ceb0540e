"""Peaceman–Rachford in its folded form is the same iteration."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from contracting import EquilibriumProblem, Stop, WeightedL2, solve
from contracting.activations.base import Activation
from contracting.activations.catalogue import ADMISSIBLE, ReLU, Slope
from contracting.errors import Status
from contracting.maps.counting import Count, counting
from contracting.maps.dense import Dense
from contracting.maps.estimates import estimate
from contracting.solvers import reflected as folded
from contracting.solvers.reflected import FoldedIteration
from equilibrium import LBEN, DouglasRachford, PeacemanRachford
from tests.problems import monotone_weight

F64 = torch.float64


def problem(activation: Activation | None = None, *, batch: int = 20, seed: int = 1) -> EquilibriumProblem:
    W, lam = monotone_weight(7, seed=seed, skew=3.0, spread=0.5)
    q = 3 * torch.randn(batch, 7, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return EquilibriumProblem(linear=Dense(W), q=q, activation=activation or ReLU(), metric=WeightedL2(lam))


SLOPES = Slope(slopes=torch.rand(20, 7, generator=torch.Generator().manual_seed(0), dtype=F64).round(decimals=1))


@pytest.mark.parametrize("activation", [*ADMISSIBLE, SLOPES], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("step", [0.3, torch.linspace(0.2, 2.0, 7, dtype=F64)], ids=["scalar", "diagonal"])
def test_reflection_is_twice_the_prox_less_the_point(activation: Activation, step: float) -> None:
    x = 2 * torch.randn(20, 7, generator=torch.Generator().manual_seed(2), dtype=F64)
    expected, out = 2 * activation.prox(x, step) - x, torch.empty_like(x)
    reflect = activation.reflection(step)
    assert (reflect(x) - expected).abs().max() <= 1e-14
    assert reflect(x, out=out) is out and torch.equal(out, reflect(x))


@pytest.mark.parametrize("activation", [ReLU(), ADMISSIBLE[4], SLOPES], ids=["ReLU", "Tanh", "Slope"])
@pytest.mark.parametrize(
    "method",
    [PeacemanRachford(mixed_precision=False), DouglasRachford(mixed_precision=False, relaxation=1.6)],
    ids=["PR", "DR"],
)
def test_fused_steps_are_the_steps_of_the_flow(
    activation: Activation, method: PeacemanRachford, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folded, "_BLOCK_BYTES", 64)  # many blocks of the smallest size
    if not activation.piecewise_linear:
        method = replace(method, step=1.0)  # with another one they follow the proxes: test_reflected_curved.py
    whole = problem(activation, batch=20)
    many = whole.rows(torch.arange(20).repeat(10))
    for case in (whole, many):
        iteration = method.bind(case, Stop().resolved(case))
        assert isinstance(iteration, FoldedIteration)
        state = one_by_one = iteration.init(case.zeros())
        for _ in range(6):
            one_by_one = iteration.step(one_by_one)
        count = Count()
        with counting(count):
            fused = iteration.advance(state, 0, 6)
        assert count.rows == 7 * case.batch  # with what q adds to each
        assert (fused[0] - one_by_one[0]).abs().max() <= 1e-13


def test_a_slow_solve_is_looked_at_long_before_it_is_thought_to_be_done() -> None:
    W = torch.diag(torch.tensor([1 - 1e-7, 0.0], dtype=F64))
    slow = EquilibriumProblem(
        linear=Dense(W), q=torch.ones(3, 2, dtype=F64), activation=ReLU(), metric=WeightedL2(torch.ones(2, dtype=F64))
    )
    iteration = PeacemanRachford(step=1e-3).bind(slow, Stop(rtol=1e-10).resolved(slow))
    state = iteration.cold()
    assert iteration.check_after(state, 0) <= 100 and iteration.check_after(state, 1200) <= 120


def test_a_row_that_blows_up_before_the_first_look_keeps_its_start() -> None:
    far = EquilibriumProblem(
        linear=Dense(torch.diag(torch.tensor([-1.0, 3.0], dtype=F64))),
        q=torch.tensor([[1.0, 0.0], [1.0, 1e100]], dtype=F64),
        activation=ReLU(),
    )
    solution = solve(far, PeacemanRachford(step=0.45), stop=Stop(check_every=4000), throw=False)
    assert solution.status.tolist() == [Status.CONVERGED, Status.NONFINITE]
    assert torch.isfinite(solution.z).all() and torch.isfinite(solution.residual).all()
    assert torch.equal(solution.residual[1], far.residual(solution.z)[1].norm())


@pytest.mark.parametrize("seed", range(6))
def test_estimates_are_close_and_one_sided(seed: int) -> None:
    W, lam = monotone_weight(30, seed=seed, skew=1.0 + seed, spread=0.6)
    operator = Dense(W).operator(WeightedL2(lam))
    found = estimate(operator.blocks)
    assert found is not None
    m, L = operator.bounds.monotonicity, operator.bounds.lipschitz
    assert m * (1 - 1e-9) <= found.monotonicity <= 1.25 * m
    assert 0.85 * L <= found.lipschitz <= L * (1 + 1e-9)


def test_no_estimate_without_monotonicity() -> None:
    W = torch.diag(torch.tensor([0.5, 1.0 + 1e-6], dtype=F64))
    assert estimate(Dense(W).operator(WeightedL2(torch.ones(2, dtype=F64))).blocks) is None


def test_weights_that_change_are_not_analysed_exactly_and_take_hardly_more_steps() -> None:
    torch.manual_seed(0)
    layer = LBEN(12, 40, 5, lipschitz=1.0, stop=Stop(rtol=1e-8)).double()
    x = torch.randn(30, 12, dtype=F64)
    training = layer.problem(x)
    assert training.linear.changing and training.detach().linear.changing and training.linear.adjoint.changing
    with torch.no_grad():
        lasting = layer.problem(x)
    assert not lasting.linear.changing
    rough, best = (PeacemanRachford().bind(p, layer.stop.resolved(p)) for p in (training.detach(), lasting))
    assert rough.factor is None and best.factor is not None
    steps = [int(solve(p.detach(), PeacemanRachford(), stop=layer.stop).steps.max()) for p in (training, lasting)]
    assert steps[0] <= 1.5 * steps[1] + 5


def test_evaluation_remembers_equal_weights_and_never_stale_ones() -> None:
    torch.manual_seed(0)
    layer = LBEN(6, 10, 3, lipschitz=1.0).double()
    x = torch.randn(4, 6, dtype=F64)

    def state():
        with torch.no_grad():
            return layer.problem(x.to(layer.parameterization.V.dtype)).linear

    first = state()
    assert state() is first
    for change in (
        lambda: layer.parameterization.V.data.mul_(1.5),  # which leaves no trace in the version of the tensor
        lambda: layer.load_state_dict(LBEN(6, 10, 3, lipschitz=1.0).double().state_dict()),
        lambda: setattr(layer.parameterization, "epsilon", 2.0),
        lambda: layer.to(torch.float32),
    ):
        before = state()
        change()
        after = state()
        assert after is not before and state() is after
        fresh = copy.deepcopy(layer)
        inputs = x.to(layer.parameterization.V.dtype)
        assert torch.equal(layer.solve(inputs).z, fresh.solve(inputs).z)
    assert pickle.loads(pickle.dumps(layer))._known is None
