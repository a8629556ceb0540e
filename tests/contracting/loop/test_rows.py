"""Large batches: finished rows leave, and nobody can tell from the answers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracting import EquilibriumProblem, Stop, Trace, WeightedL2, solve
from contracting.activations.base import Activation
from contracting.activations.catalogue import Identity, LeakyReLU, ReLU
from contracting.errors import Status
from contracting.integrators import ExplicitEuler
from contracting.loop import rows
from contracting.loop.records import SolveError
from contracting.loop.rows import Rows
from contracting.maps.dense import Dense
from equilibrium import ForwardBackward, PeacemanRachford
from tests.problems import monotone_weight

BATCH = 700


def uneven(seed: int = 3) -> EquilibriumProblem:
    """Rows whose number of steps differs widely, because the tolerance is absolute and their scale is not."""
    W, lam = monotone_weight(9, seed=seed, skew=2.0, spread=0.5)
    generator = torch.Generator().manual_seed(seed)
    size = torch.logspace(-9, 2, BATCH, dtype=torch.float64)[torch.randperm(BATCH, generator=generator)]
    q = size[:, None] * torch.randn(BATCH, 9, generator=generator, dtype=torch.float64)
    return EquilibriumProblem(linear=Dense(W), q=q, activation=ReLU(), metric=WeightedL2(lam))


STOP = Stop(rtol=0.0, atol=1e-9, check_every=4)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows at work after each move into a smaller batch."""
    seen: list[int] = []
    compact = Rows._compact

    def watched(self: Rows) -> Tensor | None:
        before = len(self.running)
        staying = compact(self)
        if len(self.running) < before:
            seen.append(len(self.running))
        return staying

    monkeypatch.setattr(Rows, "_compact", watched)
    monkeypatch.setattr(rows, "_SMALL", 2_000)  # entries: the problems here are small
    return seen


@pytest.mark.parametrize("method", [PeacemanRachford(mixed_precision=False), ForwardBackward()], ids=["PR", "FB"])
def test_rows_that_stay_get_the_answer_they_get_alone(method: PeacemanRachford, moves: list[int]) -> None:
    problem = uneven()
    whole = solve(problem, method, stop=STOP)
    assert moves and moves[-1] < BATCH / 2
    assert whole.converged.all() and len(whole.steps.unique()) > 3
    assert (problem.residual(whole.z).norm(dim=-1) <= 1.001e-9).all()
    for part in torch.arange(BATCH).split(50):
        alone = solve(problem.rows(part), method, stop=STOP)
        assert torch.equal(alone.steps, whole.steps[part])
        assert (alone.z - whole.z[part]).abs().max() <= 1e-12 * (1 + whole.z[part].abs().max())


def test_float32_steps_leave_answers_within_the_tolerance_of_those_alone(moves: list[int]) -> None:
    problem = uneven()
    whole = solve(problem, PeacemanRachford(), stop=STOP)
    assert moves and whole.error_bound is not None
    for part in torch.arange(BATCH).split(100):
        alone = solve(problem.rows(part), PeacemanRachford(), stop=STOP)
        assert alone.error_bound is not None and problem.metric is not None
        apart = problem.metric.norm(alone.z - whole.z[part])
        assert (apart <= alone.error_bound + whole.error_bound[part]).all()


def test_a_trace_of_a_shrinking_batch_changes_no_bit_and_keeps_every_row(moves: list[int]) -> None:
    problem, trace = uneven(), Trace(keep_z=True)
    silent = solve(problem, PeacemanRachford(), stop=STOP)
    seen = solve(problem, PeacemanRachford(), stop=STOP, trace=trace)
    assert moves
    assert torch.equal(silent.z, seen.z) and torch.equal(silent.steps, seen.steps)
    assert trace.residual.shape == (len(trace), BATCH)
    assert torch.equal(trace.residual[-1], seen.residual) and torch.equal(trace.z[-1], seen.z)
    # a row is active up to its last step, and its entries after that repeat its answer
    last = (trace.active * torch.arange(len(trace))[:, None]).max(0).values
    assert torch.equal(trace.steps[last], seen.steps)
    for row in range(0, BATCH, 97):
        assert (trace.residual[int(last[row]) :, row] == seen.residual[row]).all()


def test_lost_rows_fail_alone_in_a_large_batch(moves: list[int]) -> None:
    problem = uneven()
    q = problem.q.clone()
    q[::3, 0] = float("nan")
    broken = EquilibriumProblem(linear=problem.linear, q=q, activation=ReLU(), metric=problem.metric)
    tight = replace(STOP, atol=2e-10)  # two solutions may differ by more than the residual of each
    solution = solve(broken, PeacemanRachford(), stop=tight, throw=False)
    lost = torch.zeros(BATCH, dtype=torch.bool)
    lost[::3] = True
    assert (solution.status[lost] == Status.NONFINITE).all() and solution.z[lost].isnan().all()
    assert solution.converged[~lost].all()
    whole = solve(problem, PeacemanRachford(), stop=tight)
    assert (solution.z[~lost] - whole.z[~lost]).abs().max() <= 1e-9


def test_rows_that_cannot_finish_in_time_say_so_wherever_they_are(moves: list[int]) -> None:
    stop = Stop(rtol=0.0, atol=1e-9, check_every=4, max_steps=22)
    solution = solve(uneven(), PeacemanRachford(), stop=stop, throw=False)
    assert moves
    assert set(solution.status.tolist()) == {Status.CONVERGED, Status.MAX_STEPS}
    assert (solution.steps[~solution.converged] == 22).all() and (solution.residual[~solution.converged] > 1e-9).all()


def test_gradients_pass_through_a_shrinking_batch(moves: list[int]) -> None:
    def gradient(rows: Tensor) -> Tensor:
        problem = uneven().rows(rows)
        q = problem.q.clone().requires_grad_()
        z = solve(EquilibriumProblem(linear=problem.linear, q=q, activation=ReLU(), metric=problem.metric),
                  PeacemanRachford(), stop=STOP).z  # fmt: skip
        return torch.autograd.grad(z.sin().sum(), q)[0]

    everything = torch.arange(BATCH)
    whole = gradient(everything)
    assert moves
    assert (gradient(everything[5:35]) - whole[5:35]).abs().max() <= 1e-10


@pytest.mark.parametrize(("step", "dtype"), [(0.5, torch.float32), (0.1, torch.float32), (0.5, torch.float64)], ids=str)
def test_a_slow_divergence_is_no_solution(step: float, dtype: torch.dtype) -> None:
    """z = ReLU(1.5z + 1) has no solution. The scale overflows a step before the residual, and tolerates all of it."""
    problem = EquilibriumProblem(
        linear=Dense(1.5 * torch.eye(3, dtype=dtype)), q=torch.ones(1, 3, dtype=dtype), activation=ReLU()
    )
    with pytest.raises(SolveError, match=r"\bNONFINITE\b") as caught:
        solve(problem, ExplicitEuler(step=step), stop=Stop(max_steps=20_000, patience=20_000))
    assert caught.value.solution is not None and int(caught.value.solution.status) == Status.NONFINITE


@pytest.mark.parametrize("size", [1e-28, 1e-25, 1e-21, 1e20, 1e25, 1e36])
@pytest.mark.parametrize("activation", [Identity(), LeakyReLU(negative_slope=0.1)], ids=lambda a: type(a).__name__)
def test_squares_beyond_the_dtype_change_no_answer(activation: Activation, size: float) -> None:
    """σ(tv) = tσ(v), so the problem at 2ᵏq has the answer 2ᵏz, bit by bit, at any k that float32 has room for."""
    W, lam = monotone_weight(4, seed=1)
    q = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    power = 2.0 ** round(math.log2(size))

    def problem(scale: torch.Tensor) -> EquilibriumProblem:
        weight, metric = Dense(W.float()), WeightedL2(lam.float())
        return EquilibriumProblem(linear=weight, q=scale[:, None] * q, activation=activation, metric=metric)

    # one row of usual size beside the others, and one that is zero: its residual and scale really are
    mixed = torch.tensor([power, 1.0, 0.0])
    for method in (PeacemanRachford(), ForwardBackward()):
        stop = Stop(rtol=1e-5, atol=0.0)
        usual, found = (solve(problem(scale), method, stop=stop) for scale in (torch.tensor([1.0, 1.0, 0.0]), mixed))
        assert found.status.tolist() == 3 * [Status.CONVERGED] and torch.equal(found.steps, usual.steps)
        scale = torch.tensor([power, 1.0, 1.0])
        assert torch.equal(found.z, scale[:, None] * usual.z)
        assert torch.equal(found.residual, scale * usual.residual)
        assert torch.equal(found.relative_residual, usual.relative_residual)
        assert float(found.residual[0]) > 0 == float(found.residual[2])
        assert found.error_bound is not None and usual.error_bound is not None
        assert torch.allclose(found.error_bound, scale * usual.error_bound, atol=0.0)


def test_a_number_beyond_the_dtype_is_still_lost() -> None:
    problem = EquilibriumProblem(
        linear=Dense(0.5 * torch.eye(2)),
        q=torch.tensor([[3e38, 3e38], [math.nan, 1.0], [1e25, 0.0]]),
        activation=ReLU(),
    )
    solution = solve(problem, ForwardBackward(step=1.0), throw=False)
    assert solution.status.tolist() == [Status.NONFINITE, Status.NONFINITE, Status.CONVERGED]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_nearer_start_takes_fewer_steps_whatever_its_neighbours_are(dtype: torch.dtype) -> None:
    W, lam = monotone_weight(30, seed=4, skew=2.0, spread=0.5)
    generator = torch.Generator().manual_seed(4)
    q = torch.randn(6, 30, generator=generator, dtype=torch.float64)
    problem = EquilibriumProblem(linear=Dense(W), q=q, activation=ReLU(), metric=WeightedL2(lam))
    exact = solve(problem, PeacemanRachford(), stop=Stop(rtol=1e-13)).z
    distance = torch.tensor([1e-1, 1e-2, 1e-3, 1e-4, 3e-5, 0.0], dtype=torch.float64)[:, None]
    start = (exact + distance * torch.randn(6, 30, generator=generator, dtype=torch.float64)).to(dtype)
    single = Dense(W.to(dtype))
    problem = EquilibriumProblem(linear=single, q=q.to(dtype), activation=ReLU(), metric=WeightedL2(lam.to(dtype)))
    stop = Stop(rtol=1e-5)
    together = solve(problem, PeacemanRachford(), z0=start, stop=stop).steps.tolist()
    cold = solve(problem, PeacemanRachford(), stop=stop).steps.tolist()
    assert together == sorted(together, reverse=True) and together[-1] == 0 and len(set(together)) >= 4
    assert together[3] <= cold[3] / 2
    for row in range(6):
        alone = solve(problem.rows(slice(row, row + 1)), PeacemanRachford(), z0=start[row : row + 1], stop=stop)
        assert int(alone.steps) == together[row]
