"""Simulation: exact solutions, independence of rows, gradients; decay, tracking and the known trap."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from contracting.activations.catalogue import Identity, Tanh
from contracting.errors import InputError, PreconditionError
from contracting.flows.base import Flow
from contracting.flows.driven import DrivenFlow
from contracting.flows.fields import LinearFlow, NeuralFlow
from contracting.flows.network import FiringRate, Hopfield
from contracting.flows.speed import DouglasRachfordFlow, TimeScaledForwardBackward
from contracting.flows.splitting import ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.integrators.explicit import BOGACKI_SHAMPINE, EULER, HEUN, RK4_CLASSIC, Tableau
from contracting.loop.records import SolveError
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.simulation.counterexample import SwitchingCounterexample
from contracting.simulation.decay import decay_rate
from contracting.simulation.evidence import Claim
from contracting.simulation.time_steps import AdaptiveStep, FixedStep, Integrator
from contracting.simulation.tracking import moving_equilibrium, track, tracking_bound
from contracting.simulation.trajectories import distance, simulate, simulate_pairs
from tests.problems import monotone_weight, planted

F64 = torch.float64
SPIRAL = torch.tensor([[-0.5, 3.0], [-3.0, -0.5]], dtype=F64)
TIMES = torch.tensor([0.0, 0.3, 1.0, 2.5], dtype=F64)


def exact(matrix: Tensor, start: Tensor, times: Tensor) -> Tensor:
    return torch.stack([start @ torch.linalg.matrix_exp(t * matrix).mT for t in times])


@pytest.mark.parametrize("integrator", [None, AdaptiveStep(tableau=BOGACKI_SHAMPINE, rtol=1e-6), FixedStep(step=0.02)])
def test_a_linear_flow_follows_the_matrix_exponential(integrator: Integrator | None) -> None:
    start = torch.randn(5, 2, dtype=F64)
    trajectory = simulate(LinearFlow(SPIRAL), start, TIMES, integrator=integrator)
    assert trajectory.states.shape == (4, 5, 2) and bool(trajectory.complete.all())
    assert torch.allclose(trajectory.states, exact(SPIRAL, start, TIMES), atol=1e-4)
    assert torch.equal(trajectory.states[0], start)


@pytest.mark.parametrize(("tableau", "order"), [(EULER, 1), (HEUN, 2), (RK4_CLASSIC, 4)])
def test_fixed_steps_have_their_order_on_a_time_varying_field(tableau: Tableau, order: int) -> None:
    """s' = −s + sin 3t, whose solution is known; wrong stage times would cost order."""

    def solution(t: float) -> float:
        return (math.sin(3 * t) - 3 * math.cos(3 * t)) / 10 + 1.3 * math.exp(-t)

    flow = NeuralFlow(lambda t, s: -s + torch.sin(3 * t))
    start = torch.full((1, 1), solution(0.0), dtype=F64)
    times = torch.tensor([0.0, 2.0], dtype=F64)
    errors = [
        abs(float(simulate(flow, start, times, integrator=integrator).states[-1]) - solution(2.0))
        for integrator in (FixedStep(step=h, tableau=tableau) for h in (0.1, 0.05))
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_each_row_keeps_its_own_time_and_step() -> None:
    """A stiff row changes nothing for its neighbour, also in a field that depends on time."""
    flow = NeuralFlow(lambda t, s: -s * s.new_tensor([[1.0], [100.0]])[: len(s)] + torch.sin(3 * t))
    start = torch.ones(2, 2, dtype=F64)
    loose = AdaptiveStep(rtol=1e-5)
    both, alone = (simulate(flow, s, TIMES, integrator=loose) for s in (start, start[:1]))
    assert torch.equal(both.states[:, :1], alone.states) and int(both.steps[0]) == int(alone.steps[0])
    assert int(both.steps[1]) > 2 * int(both.steps[0])


def test_a_row_that_explodes_fails_alone_and_says_so() -> None:
    flow = NeuralFlow(lambda t, s: s**2)  # 1/(1/s₀ − t)
    start = torch.tensor([[0.1], [2.0]], dtype=F64)
    loose = AdaptiveStep(rtol=1e-4)
    with pytest.raises(SolveError, match="1 of 2 trajectories"):
        simulate(flow, start, TIMES, integrator=loose)
    weight = torch.ones((), dtype=F64, requires_grad=True)
    partial = simulate(NeuralFlow(lambda t, s: weight * s**2), start, TIMES, throw=False, integrator=loose)
    assert partial.complete.tolist() == [True, False]
    assert torch.allclose(partial.states[:, 0, 0], 1 / (10 - TIMES), atol=1e-5)
    assert torch.isfinite(partial.states[:2]).all() and torch.isnan(partial.states[2:, 1]).all()
    # the lost row puts no NaN into the gradient
    (gradient,) = torch.autograd.grad(partial.states[-1, 0, 0], weight)
    assert float(gradient) == pytest.approx(2.5 / 7.5**2, rel=1e-3)


def test_nan_in_one_row_of_the_field_stays_there() -> None:
    flow = NeuralFlow(lambda t, s: torch.where(s > 5, float("nan"), -s))
    partial = simulate(flow, torch.tensor([[1.0], [6.0]], dtype=F64), TIMES, throw=False)
    assert torch.allclose(partial.states[:, 0, 0], torch.exp(-TIMES), atol=1e-8)
    assert not bool(partial.complete[1])


@pytest.mark.parametrize("integrator", [FixedStep(step=0.1), AdaptiveStep(rtol=1e-8)], ids=["fixed", "adaptive"])
def test_simulations_are_differentiable(integrator: Integrator) -> None:
    W, lam = monotone_weight(2, seed=1, skew=2.0)
    times = torch.tensor([0.0, 0.2, 0.3], dtype=F64)

    def run(start: Tensor, W: Tensor, q: Tensor) -> Tensor:
        problem = EquilibriumProblem(linear=Dense(W), q=q, activation=Tanh(), metric=WeightedL2(lam))
        signal = lambda t: q * torch.cos(t)  # noqa: E731
        return simulate(FiringRate().bind(problem), start, times, signal=signal, integrator=integrator).states

    inputs = [torch.randn(2, 2, dtype=F64), W, torch.randn(2, 2, dtype=F64)]
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs], atol=1e-6)


def test_the_graph_changes_no_value() -> None:
    A = SPIRAL.clone().requires_grad_()
    start = torch.ones(1, 2, dtype=F64)
    with_graph = simulate(LinearFlow(A), start, TIMES).states
    assert torch.allclose(with_graph, simulate(LinearFlow(SPIRAL), start, TIMES).states, atol=1e-15)


def test_an_input_that_jumps_at_a_requested_time_costs_no_accuracy() -> None:
    problem = EquilibriumProblem(
        linear=Dense(torch.zeros(1, 1, dtype=F64)), q=torch.zeros(1, 1, dtype=F64), activation=Identity()
    )
    times = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    signal = lambda t: torch.where(t >= 1, 5.0, -2.0).to(F64).reshape(-1, 1)  # noqa: E731
    states = simulate(
        FiringRate().bind(problem), torch.zeros(1, 1, dtype=F64), times, signal=signal, integrator=FixedStep(step=0.01)
    ).states[:, 0, 0]
    at_jump = -2 * (1 - math.exp(-1))
    assert states[1] == pytest.approx(at_jump, abs=1e-9)
    assert states[2] == pytest.approx(5 + (at_jump - 5) * math.exp(-1), abs=1e-9)


def test_float32_is_followed() -> None:
    trajectory = simulate(LinearFlow(SPIRAL.float()), torch.ones(1, 2), TIMES)
    assert trajectory.states.dtype == torch.float32
    assert torch.allclose(trajectory.states.double(), exact(SPIRAL, torch.ones(1, 2, dtype=F64), TIMES), atol=1e-4)


# ---------------------------------------------------------------------------------------------------- decay


def test_a_known_rate_is_measured_down_to_the_noise() -> None:
    times = torch.linspace(0, 40, 201, dtype=F64)
    generator = torch.Generator().manual_seed(0)
    scatter = torch.exp(0.01 * torch.randn(201, 2, generator=generator, dtype=F64))
    rates = torch.tensor([1.5, -0.2], dtype=F64)
    d = torch.exp(-rates * times[:, None]) * scatter
    d = torch.where(d < 1e-15, 1e-15, d)  # rounding noise
    fit = decay_rate(times, d)
    assert torch.all((fit.rate - rates).abs() < 4 * fit.uncertainty)
    assert torch.all(fit.uncertainty < 1e-3) and int(fit.points[0]) < 201 == int(fit.points[1])
    assert torch.all(fit.slowest <= fit.rate + 0.2)
    # without the window the noise would halve the rate
    assert float(decay_rate(times, d, floor=1e-16).rate[0]) < 1.0


def test_too_few_points_are_admitted() -> None:
    times = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
    one = decay_rate(times, torch.tensor([1.0, 0.0, 0.0], dtype=F64))
    two = decay_rate(times, torch.tensor([1.0, math.exp(-2), 0.0], dtype=F64))
    assert math.isnan(one.rate) and math.isinf(one.uncertainty) and math.isnan(one.slowest)
    assert float(two.rate) == pytest.approx(2.0) and math.isinf(two.uncertainty) and int(two.points) == 2


def test_distances_that_are_none_are_refused() -> None:
    times = torch.linspace(0, 4, 5, dtype=F64)
    d = torch.exp(-2 * times)[:, None].repeat(1, 2)
    ended = d.clone()
    ended[3:, 1] = math.nan  # as of a trajectory that could not be continued
    fit = decay_rate(times, ended)
    assert torch.allclose(fit.rate, torch.full((2,), 2.0, dtype=F64)) and fit.points.tolist() == [5, 3]
    hole, first = d.clone(), d.clone()
    hole[2, 1], first[0, 0] = math.nan, math.nan
    for bad in (hole, first, d * math.nan):
        with pytest.raises(InputError, match=r"\bdistances\b"):
            decay_rate(times, bad)
    with pytest.raises(InputError, match=r"\bdistances\b"):
        decay_rate(times, -d)
    for moments in (times[[0, 2, 1, 3, 4]], times * math.nan, times.tolist(), times + 1j, times[:, None].expand(5, 3)):
        with pytest.raises(InputError, match=r"\btimes\b"):
            decay_rate(moments, d)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\btimes\b"):
        decay_rate(times[:0], d[:0])
    for floor in (-1.0, math.nan, math.inf, "low"):
        with pytest.raises(InputError, match=r"\bfloor\b"):
            decay_rate(times, d, floor=floor)  # type: ignore[arg-type]


def test_rates_are_differentiable() -> None:
    times = torch.linspace(0, 2, 9, dtype=F64)
    c = torch.tensor(0.7, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(decay_rate(times, torch.exp(-c * times)).rate, c)
    assert float(gradient) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "flow",
    [
        ForwardBackwardFlow(), PeacemanRachfordFlow(), DouglasRachfordFlow(), TimeScaledForwardBackward(step=0.2),
        FiringRate(), Hopfield(),
    ],
    ids=lambda f: type(f).__name__,
)  # fmt: skip
def test_no_pair_decays_slower_than_its_proved_rate(flow: Flow) -> None:
    """Under a moving input, from the first moment on."""
    W, lam = monotone_weight(4, seed=2, skew=0.3, spread=0.5)
    problem, _ = planted(Tanh(), W, lam, batch=1, seed=3)
    field = flow.bind(problem)
    rate = field.contraction_rate
    assert rate is not None and rate > 0 and problem.metric is not None
    first, second = torch.randn(2, 20, 4, dtype=F64)
    signal = lambda t: 2 * torch.sin(t + torch.arange(4, dtype=F64))  # noqa: E731
    pair = simulate_pairs(
        field, first, second, torch.linspace(0, 4, 9, dtype=F64), signal=signal, integrator=AdaptiveStep(rtol=1e-5)
    )
    fit = decay_rate(pair.times, distance(pair, problem.metric))
    assert float(fit.slowest.min()) >= rate - 1e-6


def test_a_measured_rate_attains_the_proved_one() -> None:
    """Worst case of the forward–backward flow: a linear problem whose worst direction is followed."""
    W, lam = monotone_weight(4, seed=4, skew=0.0, monotonicity=0.2)
    problem, _ = planted(Identity(), W, lam, batch=1, seed=5)
    field = ForwardBackwardFlow(step=0.3).bind(problem)
    first = torch.randn(1, 4, dtype=F64)
    times = torch.linspace(0, 200, 41, dtype=F64)
    pair = simulate_pairs(field, first, first + 1, times, integrator=FixedStep(step=1.0))
    assert problem.metric is not None and field.contraction_rate is not None
    fit = decay_rate(pair.times, distance(pair, problem.metric), skip=100)
    assert field.contraction_rate <= float(fit.rate) < 1.05 * field.contraction_rate


# ---------------------------------------------------------------------------------------------------- the known trap


@pytest.fixture(scope="module")
def trap() -> SwitchingCounterexample:
    return SwitchingCounterexample(gain=10.0, dwell=0.363)


def test_two_trajectories_diverge_under_a_bounded_periodic_input(trap: SwitchingCounterexample) -> None:
    flow = FiringRate().bind(trap.problem)
    assert trap.exponent == pytest.approx(2.314, rel=1e-3)
    assert flow.rate == pytest.approx(0.5)  # for a constant input it converges
    assert flow.contraction_rate == pytest.approx(-4.0)  # 1 − k/2: nothing contracts, and no faster separation
    times = trap.times(12)
    start = trap.reference(times[:1])
    pair = simulate_pairs(
        flow, start, start + torch.tensor([[1e-9, 0.0]], dtype=F64), times, signal=trap.signal,
        integrator=FixedStep(step=trap.dwell / 24),
    )  # fmt: skip
    assert (pair.first[:, 0] - trap.reference(times)).abs().max() < 0.01  # the trajectory the input was made for
    metric = trap.problem.metric
    assert metric is not None
    fit = decay_rate(times[::2], distance(pair, metric)[::2], skip=1.0)  # once per period
    assert -float(fit.rate) == pytest.approx(2.314, rel=0.01)
    assert float(fit.uncertainty) < 0.01
    assert max(float(trap.signal(t).abs().max()) for t in times) < 15  # bounded


def test_the_forward_backward_flow_contracts_under_the_same_input(trap: SwitchingCounterexample) -> None:
    flow = ForwardBackwardFlow(step=1 / 101).bind(trap.problem)  # α = m/L² < 4m/(L² − m²)
    rate, metric = flow.contraction_rate, trap.problem.metric
    assert rate is not None and rate > 0 and metric is not None
    pair = simulate_pairs(
        flow, 3 * torch.randn(20, 2, dtype=F64), 3 * torch.randn(20, 2, dtype=F64), trap.times(60),
        signal=trap.signal, integrator=FixedStep(step=trap.dwell / 2),
    )  # fmt: skip
    assert float(decay_rate(pair.times, distance(pair, metric)).slowest.min()) >= rate


@pytest.mark.parametrize("count", [0, -1, 0.5])
def test_no_phases_take_no_time(trap: SwitchingCounterexample, count: int) -> None:
    with pytest.raises(InputError, match=r"\bphases\b"):
        trap.times(count)
    with pytest.raises(InputError, match=r"\bpoints\b"):
        trap.times(2, count)
    assert trap.times(2, 3).shape == (7,)


def test_small_gains_do_not_diverge() -> None:
    assert SwitchingCounterexample(gain=1.0).exponent == pytest.approx(-1.0)


# ---------------------------------------------------------------------------------------------------- tracking


def test_the_lag_behind_a_ramp_attains_the_bound() -> None:
    """s' = −cs + vt lags by exactly v/c² in the long run."""
    c, v = 0.5, 0.3
    problem = EquilibriumProblem(
        linear=Dense(torch.full((1, 1), 1 - c, dtype=F64)),
        q=torch.zeros(1, 1, dtype=F64),
        activation=Identity(),
        metric=WeightedL2(torch.ones(1, dtype=F64)),
    )
    times = torch.linspace(0, 40, 41, dtype=F64)
    result = track(FiringRate().bind(problem), lambda t: (v * t).reshape(-1, 1), times, speed=v / c)
    assert torch.allclose(result.equilibria[:, 0, 0], v * times / c, atol=1e-7)
    assert torch.allclose(result.error[:, 0], result.bound[:, 0], atol=1e-7)
    assert float(result.error[-1]) == pytest.approx(v / c**2, rel=1e-6)
    assert not result.speed_is_sampled


@pytest.mark.parametrize("flow", [FiringRate(), Hopfield(), PeacemanRachfordFlow()], ids=lambda f: type(f).__name__)
def test_tracking_errors_stay_below_their_bound(flow: Flow) -> None:
    W, lam = monotone_weight(4, seed=6, skew=0.2)
    problem, _ = planted(Tanh(), W, lam, batch=3, seed=7)
    field, times = flow.bind(problem), torch.linspace(0, 12, 41, dtype=F64)
    signal = lambda t: torch.sin(0.5 * t + torch.arange(4, dtype=F64)) + problem.q  # noqa: E731
    start = field.init(torch.randn(3, 4, dtype=F64))
    result = track(field, signal, times, start=start, integrator=AdaptiveStep(rtol=1e-5))
    assert torch.all(result.error <= result.bound * 1.01) and result.speed_is_sampled
    assert float(result.error[-1].max()) > 0.05 * float(result.bound[-1].min())
    # the equilibria are those of the frozen inputs
    assert DrivenFlow(field, signal)(times[5], result.equilibria[5]).abs().max() < 1e-7
    # ‖ds*/dt‖ ≤ v/c for the field's response to the input
    assert field.contraction_rate is not None and problem.metric is not None
    h, star = 1e-5, moving_equilibrium(field, signal, times[5:7])[0]
    response = DrivenFlow(field, signal)(times[5] + h, star) / h
    speed = (moving_equilibrium(field, signal, times[5:6] + h)[0] - star) / h
    assert torch.all(problem.metric.norm(speed) <= problem.metric.norm(response) / field.contraction_rate + 1e-3)


def test_no_bound_without_a_rate() -> None:
    with pytest.raises(PreconditionError, match=r"\brate\b"):
        tracking_bound(TIMES, torch.ones(1, dtype=F64), rate=-1.0, speed=1.0)
    W, _ = monotone_weight(3, seed=1)
    problem, _ = planted(Tanh(), W, None, batch=1, seed=1)
    with pytest.raises(PreconditionError, match=r"\bevidence\b"):
        track(FiringRate().bind(problem), lambda t: problem.q, TIMES)


def test_a_metric_of_another_size_measures_nothing() -> None:
    """One of a single entry would broadcast over the states."""
    W, lam = monotone_weight(3, seed=1, skew=0.2)
    problem, _ = planted(Tanh(), W, lam, batch=1, seed=1)
    flow, one, three = FiringRate().bind(problem), WeightedL2.identity(1, dtype=F64), WeightedL2.identity(3, dtype=F64)
    start = torch.ones(1, 3, dtype=F64)
    pair = simulate_pairs(flow, start, 2 * start, TIMES)
    assert float(distance(pair, three)[0]) == pytest.approx(3**0.5)
    with pytest.raises(InputError, match=r"\bvectors\b"):
        distance(pair, one)
    fits = Claim(metric=three, rate=0.1)
    assert track(flow, lambda t: problem.q, TIMES, evidence=fits).error.shape == (len(TIMES), 1)
    with pytest.raises(InputError, match=r"\bevidence\b"):
        track(flow, lambda t: problem.q, TIMES, evidence=Claim(metric=one, rate=0.1))


def test_bounds_of_tracking_rest_on_numbers_that_can_be() -> None:
    times, error = torch.tensor([0.0, 1.0], dtype=F64), torch.ones(2, dtype=F64)
    each = torch.tensor([1.0, 3.0], dtype=F64)
    e = math.exp(-2.0)
    found = tracking_bound(times, error, rate=2.0, speed=each)
    assert torch.allclose(found, torch.tensor([[1.0, 1.0], [e + (1 - e) / 2, e + 1.5 * (1 - e)]], dtype=F64))
    for speed in (-1.0, math.nan, math.inf, "fast", None, -each, each * math.nan, torch.ones(3), torch.ones(2, 2)):
        with pytest.raises(InputError, match=r"\bspeed\b"):
            tracking_bound(times, error, rate=2.0, speed=speed)  # type: ignore[arg-type]
    for rate in ("fast", math.inf, math.nan):
        with pytest.raises(InputError, match=r"\brate\b"):
            tracking_bound(times, error, rate=rate, speed=1.0)  # type: ignore[arg-type]
    for wrong in ([0.0, 1.0], times[:0], times[None, None], times * math.nan, times.flip(0)):
        with pytest.raises(InputError, match=r"\btimes\b"):
            tracking_bound(wrong, error, rate=2.0, speed=1.0)  # type: ignore[arg-type]
    for start in (1.0, error[None]):
        with pytest.raises(InputError, match=r"\binitial_error\b"):
            tracking_bound(times, start, rate=2.0, speed=1.0)  # type: ignore[arg-type]


def test_signals_of_a_wrong_kind_or_shape_are_refused() -> None:
    W, lam = monotone_weight(3, seed=1, skew=0.2)
    problem, _ = planted(Tanh(), W, lam, batch=4, seed=1)
    flow, q, start = FiringRate().bind(problem), problem.q, torch.ones(4, 3, dtype=F64)
    constant = simulate(flow, start, TIMES[:3]).states
    # what fits: one input for all rows, with or without a dimension for them, and one for each
    for signal in (lambda t: q[0], lambda t: q[:1], lambda t: q[0].expand(4, 3)):
        states = simulate(flow, start, TIMES[:3], signal=signal).states
        assert torch.allclose(states, simulate(FiringRate().bind(problem.rows(slice(1))), start, TIMES[:3]).states)
    assert torch.allclose(simulate(flow, start, TIMES[:3], signal=lambda t: q).states, constant)
    wrong: list[Any] = [
        q,
        lambda t: 1.0,
        lambda t: torch.arange(3),
        lambda t: q.float(),
        lambda t: q[:, :2],
        lambda t: t,
        lambda t: q[None],
        lambda t: q[:2],
    ]
    for signal in wrong:
        for integrator in (None, FixedStep(step=0.1)):
            with pytest.raises(InputError, match=r"\bsignal\b"):
                simulate(flow, start, TIMES[:3], signal=signal, integrator=integrator)
        with pytest.raises(InputError, match=r"\bsignal\b"):
            simulate_pairs(flow, start, 2 * start, TIMES[:3], signal=signal)
    for signal in wrong[:-1]:
        with pytest.raises(InputError, match=r"\bsignal\b"):
            track(flow, signal, TIMES[:3])
    with pytest.raises(InputError, match=r"\bsignal\(t\)"):  # a single state does not become four
        simulate(flow.on(problem.rows(slice(1))), start[:1], TIMES[:3], signal=lambda t: q)


def test_mistakes_are_named() -> None:
    flow, start = LinearFlow(SPIRAL), torch.ones(1, 2, dtype=F64)
    with pytest.raises(InputError, match=r"\btimes\b"):
        simulate(flow, start, TIMES[[0, 2, 1]])
    with pytest.raises(InputError, match=r"\bstart\b"):
        simulate(flow, start[0], TIMES)
    with pytest.raises(InputError, match=r"\bflow\b"):
        simulate(FiringRate(), start, TIMES)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\bflow\b"):
        simulate(flow, start, TIMES, signal=lambda t: t)
    with pytest.raises(InputError, match=r"\bintegrator\b"):
        simulate(flow, start, TIMES, integrator="rk4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\btableau\b"):
        AdaptiveStep(tableau=RK4_CLASSIC)
    W, lam = monotone_weight(2, seed=1)
    problem, _ = planted(Tanh(), W, lam, batch=3, seed=1)
    with pytest.raises(InputError, match=r"\bstart\b"):
        simulate(FiringRate().bind(problem), start.expand(2, 2), TIMES)
    with pytest.raises(InputError, match=r"\bdtype\b"):
        simulate(FiringRate().bind(problem), torch.ones(3, 2), TIMES)
    with pytest.raises(InputError, match=r"\bmust\b"):
        simulate(NeuralFlow(lambda t, s: s[:, :1]), start, TIMES)
