"""Float32 steps in a float64 solve: rounding is relative to what still changes, and decides nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracting import EquilibriumProblem, Stop, WeightedL2, solve
from contracting.activations.base import Activation
from contracting.activations.catalogue import ADMISSIBLE, ReLU
from contracting.activations.clamped import Clamped
from contracting.maps.counting import Count, counting
from contracting.maps.dense import Dense
from contracting.solvers.reflected_single import Phase, RefinedIteration
from equilibrium import Anderson, DouglasRachford, PeacemanRachford
from tests.contracting.solvers.test_reflected import F64, SLOPES, problem
from tests.problems import monotone_weight

CLAMPED = Clamped(inner=ReLU(), free=torch.tensor([True, False, True, True, True, True, False]))


@pytest.mark.parametrize("activation", [*ADMISSIBLE, SLOPES, CLAMPED], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("step", [0.3, torch.linspace(0.2, 2.0, 7, dtype=F64)], ids=["scalar", "diagonal"])
@pytest.mark.parametrize("far", [1e-2, 1e-7, 1e-11])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_change_of_a_reflection_is_as_accurate_as_the_change(
    activation: Activation, step: float | Tensor, far: float, scaled: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    base = 2 * torch.randn(20, 7, generator=generator, dtype=F64)
    base[0], base[1] = 0.0, far * base[1]  # a kink, and entries that change sign
    size = torch.ones(20, 1, dtype=F64)
    if scaled:
        size[2:4] = torch.tensor([[2.0**-70], [2.0**70]], dtype=F64)
    base = size * base
    d = (far * torch.randn(20, 7, generator=generator)).float()
    reflect, out = activation.reflection(step), torch.empty_like(d)
    exact = (reflect(base + size * d) - reflect(base)) / size
    change = activation.reflection_from(base, size if scaled else None, step, torch.float32)
    assert change(d, out=out) is out
    resolved = 1e-15 * (1 + (base / size).abs() + reflect(base).abs() / size) * 10  # of the difference itself
    assert ((out - exact).abs() <= 3e-7 * d.abs().amax(-1, keepdim=True) + resolved).all()
    plain = reflect((base / size + d).float().double()) - reflect((base / size).float().double())
    if far < 1e-8:  # what would be left of so small a change in float32
        assert (plain[4:] - exact[4:]).abs().max() > 10 * (out[4:] - exact[4:]).abs().max()


@pytest.mark.parametrize("activation", [ReLU(), ADMISSIBLE[4], SLOPES], ids=["ReLU", "Tanh", "Slope"])
@pytest.mark.parametrize("method", [PeacemanRachford(), DouglasRachford(relaxation=1.6)], ids=["PR", "DR"])
@pytest.mark.parametrize("near", [1.0, 1e-6, 1e-10])
def test_steps_are_those_of_the_flow_to_single_precision_of_what_they_change(
    activation: Activation, method: PeacemanRachford, near: float
) -> None:
    case = problem(activation)
    if not activation.piecewise_linear:
        method = replace(method, step=1.0)  # with another one a curved prox is followed in float64
    iteration = method.bind(case, Stop().resolved(case))
    assert isinstance(iteration, RefinedIteration)
    exact = solve(case, PeacemanRachford(mixed_precision=False), stop=Stop(rtol=1e-15, atol=1e-15), throw=False).z
    start = iteration.init(exact + near * torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)))
    for steps in (1, 2, 7):
        expected = start
        for _ in range(steps):
            expected = iteration.step(expected)
        found = iteration._whole(iteration.advance(start, 10, steps))
        moved = (expected[0] - start[0]).abs().max()
        assert 1e-3 * near < moved < 1e3 * near
        rounding = 4e-15 * start[0].abs().max()  # of float64 itself, where little moves
        assert (found - expected[0]).abs().max() <= 1e-5 * moved + rounding


def test_the_state_is_single_until_a_check_and_solves_are_double() -> None:
    case, stop = problem(), Stop(rtol=1e-12)
    iteration = PeacemanRachford().bind(case, stop.resolved(case))
    phase = iteration.advance(iteration.cold(), 0, 3)
    assert phase.change.dtype == phase.drive.dtype == torch.float32 and (phase.base == 0).all()
    double = PeacemanRachford(mixed_precision=False).bind(case, stop.resolved(case))
    assert not isinstance(double, RefinedIteration)
    solution = solve(case, PeacemanRachford(), stop=stop)
    assert solution.converged.all() and (case.residual(solution.z).norm(dim=-1) <= 1e-11).all()
    single = case.with_tensors([t.float() for t in case.tensors()])
    assert not isinstance(PeacemanRachford().bind(single, Stop().resolved(single)), RefinedIteration)


def test_where_no_check_comes_the_point_moves_by_itself() -> None:
    case = problem()
    exact = solve(case, PeacemanRachford(mixed_precision=False), stop=Stop(rtol=1e-14, atol=1e-14)).z
    solution = solve(case, PeacemanRachford(), stop=Stop(rtol=1e-12, atol=0.0, check_every=400))
    assert (solution.steps == 400).all() and (solution.z - exact).abs().max() <= 1e-12
    moves = solution.map_evals - 400 - 1  # beyond one product each for the steps and the check
    assert 2 <= moves <= 100


def test_steps_one_by_one_are_the_same_steps() -> None:
    case, stop = problem(), Stop(rtol=1e-12)
    together, apart = (PeacemanRachford().bind(case, stop.resolved(case)) for _ in range(2))
    state = apart.cold()
    for taken in range(60):
        state = apart.advance(state, taken, 1)
    assert torch.equal(apart.read(state), together.read(together.advance(together.cold(), 0, 60)))


def test_a_method_around_it_sees_the_steps_in_double_precision() -> None:
    solution = solve(problem(), Anderson(PeacemanRachford()), stop=Stop(rtol=1e-13))
    plain = solve(problem(), Anderson(PeacemanRachford(mixed_precision=False)), stop=Stop(rtol=1e-13))
    assert torch.equal(solution.steps, plain.steps) and (solution.z - plain.z).abs().max() <= 1e-12


def test_steps_that_hardly_contract_are_double() -> None:
    W = torch.diag(torch.tensor([1 - 1e-7, 0.0], dtype=F64))
    slow = EquilibriumProblem(
        linear=Dense(W), q=torch.ones(3, 2, dtype=F64), activation=ReLU(), metric=WeightedL2(torch.ones(2, dtype=F64))
    )
    iteration = PeacemanRachford(step=1e-3).bind(slow, Stop().resolved(slow))
    assert not isinstance(iteration, RefinedIteration)


@pytest.mark.parametrize("seed", range(4))
def test_large_weights_are_solved_to_the_same_residual(seed: int) -> None:
    """‖W‖ = 1e3: float32 by itself would stop four digits above the tolerance."""
    W, lam = monotone_weight(30, seed=seed, skew=1e3, spread=0.5)
    q = torch.randn(40, 30, generator=torch.Generator().manual_seed(seed), dtype=F64)
    case = EquilibriumProblem(linear=Dense(W), q=q, activation=ReLU(), metric=WeightedL2(lam))
    solution = solve(case, PeacemanRachford(), stop=Stop(rtol=1e-9, atol=0.0))
    double = solve(case, PeacemanRachford(mixed_precision=False), stop=Stop(rtol=1e-9, atol=0.0))
    assert solution.converged.all()
    assert int(solution.steps.max()) <= 1.3 * int(double.steps.max()) + 10
    single = case.with_tensors([t.float() for t in case.tensors()])
    alone = solve(single, PeacemanRachford(), stop=Stop(rtol=1e-9, atol=0.0, max_steps=5_000), throw=False)
    assert not alone.converged.any()


@pytest.mark.parametrize("activation", [ReLU(), ADMISSIBLE[4]], ids=["ReLU", "Tanh"])
def test_rows_beyond_the_range_of_single_precision_are_solved_all_the_same(activation: Activation) -> None:
    case = problem(activation, batch=4)
    scale = torch.tensor([1.0, 1e40, 1e-60, 1e150 if isinstance(activation, ReLU) else 1e60], dtype=F64)[:, None]
    wide = EquilibriumProblem(linear=case.linear, q=scale * case.q, activation=activation, metric=case.metric)
    assert not torch.isfinite(wide.q.float()).all()  # or nothing is tested
    solution = solve(wide, PeacemanRachford(), stop=Stop(rtol=1e-10, atol=0.0))
    exact = solve(wide, PeacemanRachford(mixed_precision=False), stop=Stop(rtol=1e-12, atol=0.0))
    assert solution.converged.all()
    size = exact.z.abs().amax(-1, keepdim=True)
    assert ((solution.z - exact.z) / size).abs().max() <= 1e-9
    usual = solve(problem(activation, batch=4), PeacemanRachford(), stop=Stop(rtol=1e-10, atol=0.0))
    assert (usual.z[0] - solution.z[0]).abs().max() <= 1e-9  # whoever its neighbours are


def test_a_given_start_is_not_spoilt_by_single_precision() -> None:
    case = problem()
    exact = solve(case, PeacemanRachford(), stop=Stop(rtol=1e-14, atol=1e-14)).z
    again = solve(case, PeacemanRachford(), z0=exact + 1e-10, stop=Stop(rtol=1e-13, atol=1e-13))
    assert int(again.steps.max()) < 30
    at_once = solve(case, PeacemanRachford(), z0=exact, stop=Stop(rtol=1e-12))
    assert (at_once.steps == 0).all()


@pytest.mark.parametrize("method", [PeacemanRachford(), DouglasRachford(relaxation=1.6)], ids=["PR", "DR"])
def test_near_the_floor_of_single_precision_an_exact_offset_saves_a_move(method: PeacemanRachford) -> None:
    generator = torch.Generator().manual_seed(0)
    S = torch.randn(40, 40, generator=generator, dtype=F64)
    W, q = S - S.mT - 5 * torch.eye(40, dtype=F64), 20 * torch.randn(100, 40, generator=generator, dtype=F64)
    case = EquilibriumProblem(linear=Dense(W), q=q, activation=ReLU(), metric=WeightedL2(torch.ones(40, dtype=F64)))
    unit = torch.finfo(torch.float32).eps * (1 + case.linear.rough_norm)
    for share, exact, moves in ((1.0, False, 0), (0.5, True, 0), (0.2, False, 1)):  # of the unit of rounding
        stop = Stop(rtol=share * unit, atol=0.0)
        iteration = method.bind(case, stop)
        assert isinstance(iteration, RefinedIteration)
        steps, count = min(iteration.check_after(iteration.cold(), 0), 99), Count()
        _ = iteration.flow.offset  # known beforehand, or counted where it is needed
        with counting(count):
            state = iteration.advance(iteration.cold(), 0, steps)
        assert count.rows == case.batch * (steps - exact + moves)
        first = iteration.advance(iteration.cold(), 0, 1).drive.double()
        offset = method.share * iteration.flow.offset
        rounding = (first - offset).abs().max() / offset.abs().max()
        assert (rounding <= 2.0**-24) == exact, rounding
        solution = solve(case, method, stop=stop)
        residual = torch.linalg.vector_norm(case.residual(solution.z), dim=-1)
        assert (residual <= 1.001 * stop.rtol * torch.linalg.vector_norm(case.map(solution.z), dim=-1)).all()
        assert isinstance(state, Phase)
