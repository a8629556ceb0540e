"""Stop, Trace, Solution and Status: settings are checked, records are honest."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import replace

import pytest
import torch

from contracting import checks
from contracting.activations.base import Activation
from contracting.activations.catalogue import ReLU, Tanh
from contracting.errors import InputError, MissingExtraError, PreconditionError, Status
from contracting.flows.network import FiringRate
from contracting.flows.splitting import PeacemanRachfordFlow
from contracting.loop.records import SolveError, Stop, Trace
from contracting.loop.run import solve
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.simulation.energy import Energy
from contracting.solvers.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from tests.problems import monotone_weight, planted


@pytest.mark.parametrize(
    "settings",
    [
        {"rtol": -1e-3},
        {"rtol": float("nan")},
        {"rtol": 2.0},
        {"atol": -1.0},
        {"atol": "small"},
        {"max_steps": -1},
        {"max_steps": 1.5},
        {"patience": 0},
        {"check_every": 0},
    ],
)
def test_bad_stops_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=rf"\bStop\.{next(iter(settings))}\b"):
        Stop(**settings)  # type: ignore[arg-type]


def test_every_status_has_advice() -> None:
    assert all(len(status.advice) > 20 for status in Status)


def test_trace_holds_every_step_and_only_real_entries() -> None:
    W, lam = monotone_weight(5, seed=1, skew=2.0)
    problem, _ = planted(ReLU(), W, lam, batch=3, seed=2)
    trace = Trace()
    with pytest.raises(InputError, match=r"\bkeep_z\b"):
        _ = trace.z
    solution = solve(problem, PeacemanRachford(), trace=trace)
    assert len(trace) == int(solution.steps.max()) + 1
    assert trace.steps.tolist() == list(range(len(trace)))
    assert (trace.seconds.diff() >= 0).all() and trace.seconds[-1] <= solution.seconds
    for row in range(3):
        assert int(trace.active[:, row].sum()) == int(solution.steps[row]) + 1
        assert trace.residual[-1, row] == solution.residual[row]
    again = solve(problem, PeacemanRachford(), trace=trace)
    assert len(trace) == int(again.steps.max()) + 1
    with pytest.raises(InputError, match=r"\bTrace\.every\b"):
        Trace(every=0)


def test_error_bound_is_valid_at_every_iterate_and_not_absurd() -> None:
    W, lam = monotone_weight(8, seed=3, skew=2.0, spread=1.0)
    problem, exact = planted(ReLU(), W, lam, batch=20, seed=4)
    assert problem.metric is not None
    for steps in (0, 1, 3, 10, 30):
        for method in (ForwardBackward(), DouglasRachford()):
            solution = solve(problem, method, stop=Stop(max_steps=steps), throw=False)
            error = problem.metric.norm(solution.z - exact)
            assert solution.error_bound is not None
            assert (error <= solution.error_bound).all()
            if steps <= 10:
                assert (solution.error_bound <= 20 * error).all()


def test_error_bound_covers_rounding() -> None:
    """In float32, at a z that looks exact, the error against float64 is still within the bound."""
    W, lam = monotone_weight(30, seed=5, skew=5.0, spread=1.0)
    wide, exact = planted(ReLU(), W, lam, batch=10, seed=6)
    narrow = EquilibriumProblem(
        linear=Dense(W.float()), q=wide.q.float(), activation=ReLU(), metric=WeightedL2(lam.float())
    )
    same = EquilibriumProblem(
        linear=Dense(W.float().double()), q=wide.q.float().double(), activation=ReLU(), metric=wide.metric
    )
    solution = solve(narrow, PeacemanRachford(), stop=Stop(rtol=1e-6, max_steps=300), throw=False)
    truth = solve(same, PeacemanRachford(), stop=Stop(rtol=1e-12)).z
    assert solution.error_bound is not None and wide.metric is not None
    assert (wide.metric.norm(solution.z.double() - truth) <= solution.error_bound.double()).all()
    assert exact.shape == truth.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [ReLU(), Tanh()], ids=str)
def test_error_bound_is_nearly_the_error(dtype: torch.dtype, activation: Activation) -> None:
    """A float32 solve is judged in float64: nothing is charged for rounding that did not happen."""
    W, lam = monotone_weight(30, seed=5, skew=5.0, spread=1.0)
    wide, _ = planted(activation, W, lam, batch=10, seed=6)
    problem = EquilibriumProblem(
        linear=Dense(W.to(dtype)), q=wide.q.to(dtype), activation=activation, metric=WeightedL2(lam.to(dtype))
    )
    solution = solve(problem, PeacemanRachford(), stop=Stop(rtol=1e-4))
    truth = solve(problem.double(), PeacemanRachford(), stop=Stop(rtol=1e-13, atol=0)).z
    assert problem.metric is not None and solution.error_bound is not None
    error = problem.metric.norm(solution.z.double() - truth)
    assert (error <= solution.error_bound * (1 + 1e-9)).all() and (solution.error_bound <= 1.05 * error).all()
    # a proof about other weights does not hold: what is bounded is the error, not the size of the residual
    other = replace(problem, q=1.01 * problem.q)
    moved = other.error_bound(solution.z)
    assert moved is not None and (moved > 5 * error).all()


def test_error_bound_of_a_large_problem_has_the_product_with_the_residual_itself() -> None:
    """n > 200 is not polished; ‖Wr‖ is far below ‖W‖‖r‖ where the residual lies where W is small."""
    gains = torch.cat([torch.full((1,), -40.0), torch.full((299,), 0.1)]).double()
    metric = WeightedL2.identity(300, dtype=torch.float64)
    problem = EquilibriumProblem(
        linear=Dense(torch.diag(gains)), q=torch.ones(1, 300).double(), activation=ReLU(), metric=metric
    )
    exact = 1 / (1 - gains)
    off = torch.cat([torch.zeros(1), torch.full((299,), 1e-3)]).double()
    bound = problem.error_bound((exact + off)[None])
    assert bound is not None
    assert 1.0 <= float(bound) / float(metric.norm(off)) <= 1.1  # with ‖W‖ in the place of W it is 40


def test_records_are_frozen() -> None:
    W, lam = monotone_weight(3, seed=7)
    problem, _ = planted(ReLU(), W, lam, batch=1, seed=8)
    solution = solve(problem, PeacemanRachford())
    with pytest.raises(dataclasses.FrozenInstanceError):
        solution.z = torch.zeros(1)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        PeacemanRachford().step = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        Stop(1e-3)  # type: ignore[misc]


def test_failure_carries_advice_and_the_partial_solution() -> None:
    W, lam = monotone_weight(5, seed=9, skew=4.0)
    problem, _ = planted(ReLU(), W, lam, batch=7, seed=10)
    with pytest.raises(SolveError, match=r"\bMAX_STEPS\b.*\bmax_steps\b.*\bthrow=False\b") as caught:
        solve(problem, ForwardBackward(), stop=Stop(max_steps=2))
    assert caught.value.solution is not None
    assert caught.value.solution.z.shape == (7, 5)
    assert "7 MAX_STEPS" in caught.value.solution.summary()


def test_wrong_problems_are_refused() -> None:
    linear = Dense(torch.zeros(3, 3))
    cases = [
        ({"q": torch.zeros(3)}, "q"),
        ({"q": torch.zeros(2, 4)}, "q"),
        ({"q": torch.zeros(2, 3, dtype=torch.float64)}, "q"),
        ({"q": torch.zeros(2, 3, dtype=torch.int32)}, "q"),
        ({"metric": WeightedL2.identity(4)}, "metric"),
        ({"linear": Dense(torch.full((3, 3), float("inf")))}, "weight"),
        ({"linear": torch.zeros(3, 3)}, "linear"),
        ({"metric": "l2"}, "metric"),
        ({"activation": 1.0}, "activation"),
        ({"activation": ReLU}, "activation"),
        ({"q": [0.0, 0.0, 0.0]}, "q"),
    ]
    for change, message in cases:
        settings = {"linear": linear, "q": torch.zeros(2, 3), "activation": ReLU(), **change}
        with pytest.raises(InputError, match=rf"\b{message}\b"):
            EquilibriumProblem(**settings)  # type: ignore[arg-type]
    problem = EquilibriumProblem(linear=linear, q=torch.zeros(2, 3), activation=ReLU())
    for options, message in (
        ({"stop": 1e-6}, "stop"),
        ({"stop": False}, "stop"),
        ({"trace": True}, "trace"),
        ({"z0": 0.0}, "z0"),
    ):
        with pytest.raises(InputError, match=rf"\b{message}\b"):
            solve(problem, ForwardBackward(step=0.5), **options)  # type: ignore[arg-type]
        solve(problem, ForwardBackward(step=0.5), **dict.fromkeys(options))  # type: ignore[arg-type]
    solver = ForwardBackward(step=0.5)
    for needs_a_problem in (lambda p: solve(p, solver), FiringRate().bind, PeacemanRachfordFlow().bind, Energy):
        with pytest.raises(InputError, match=r"\bproblem\b"):
            needs_a_problem(torch.zeros(3, 3))  # type: ignore[operator]
    with pytest.raises(InputError, match=r"\bsolver\b"):
        solve(problem, "pr")  # type: ignore[arg-type]


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"contracting-equilibria\[scipy\]"):
        checks.extra("no_such_module_anywhere", "scipy", "this")


def test_default_tolerances_follow_precision_and_size_and_given_ones_are_kept() -> None:
    W, lam = monotone_weight(20, seed=11, scale=400.0)
    small, large = (
        EquilibriumProblem(linear=Dense(W.to(dtype)), q=torch.zeros(1, 20, dtype=dtype), activation=ReLU())
        for dtype in (torch.float64, torch.float32)
    )
    gain = float(torch.linalg.matrix_norm(W, 2))
    assert 0.7 * gain <= small.linear.rough_norm <= 1.0001 * gain
    assert Stop().resolved(small).rtol == 1e-8
    rounding = Stop().resolved(large).rtol
    assert rounding is not None and 1e-5 < rounding < 3 * 1.2e-7 * (1 + gain)
    given = Stop(rtol=1e-6, atol=0.0).resolved(large)
    assert given.rtol == 1e-6 and given.atol == 0.0
    with pytest.raises(InputError, match=r"\bresolved\b"):
        Stop().tolerance(torch.ones(1))


def test_float32_with_a_large_weight_is_no_surprise() -> None:
    """‖W‖ = 1000 in float32: the default tolerance is what rounding lets one reach, and the error bound holds."""
    W, lam = monotone_weight(60, seed=12, scale=1000.0, skew=100.0)
    problem, _ = planted(ReLU(), W.float(), lam.float(), batch=64, seed=13)
    solution = solve(problem, PeacemanRachford())
    assert solution.converged.all()


def test_a_default_tolerance_promises_two_digits_or_refuses() -> None:
    """‖W‖ = 1e6 in float32 lets one resolve 0.24: not called converged, unless asked for."""
    W = 1e6 * torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    metric, q = WeightedL2(torch.ones(2)), torch.randn(3, 2)
    problem = EquilibriumProblem(linear=Dense(W), q=q, activation=ReLU(), metric=metric)
    with pytest.raises(PreconditionError, match=r"float64.*Stop\(rtol="):
        solve(problem, PeacemanRachford())
    assert Stop(rtol=0.1).resolved(problem).rtol == 0.1
    double = EquilibriumProblem(linear=Dense(W.double()), q=q.double(), activation=ReLU(), metric=metric)
    assert Stop().resolved(double).rtol == 1e-8
    smaller = dataclasses.replace(problem, linear=Dense(W / 1000))
    assert Stop().resolved(smaller).rtol == pytest.approx(2 * 2**-23 * 1001, rel=0.5)


def test_tensors_of_a_record_are_made_when_they_are_asked_for() -> None:
    """They are what the loop measured, in copies and in the record without states too; other names are refused."""
    W, lam = monotone_weight(12, seed=1)
    problem, _ = planted(ReLU(), W, lam, batch=5, seed=2)
    found = solve(problem, PeacemanRachford(), stop=Stop(rtol=1e-6))
    assert "status" not in vars(found) and "status" not in vars(found.record)
    copies = found.record, copy.deepcopy(found), pickle.loads(pickle.dumps(found.record))
    image = problem.map(found.z)
    true = (found.z - image).norm(dim=-1)
    for record in (*copies, replace(found, seconds=0.0), found, found.record):
        assert record.status.dtype == torch.int8 and record.converged.tolist() == 5 * [True]
        assert record.steps.dtype == torch.int64 and len(set(record.steps.tolist())) == 1
        torch.testing.assert_close(record.residual, true, rtol=1e-3, atol=1e-14)
        torch.testing.assert_close(record.relative_residual, record.residual / image.norm(dim=-1))
        with pytest.raises(AttributeError, match=r"\bstatuses\b"):
            _ = record.statuses
