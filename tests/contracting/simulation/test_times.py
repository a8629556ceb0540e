"""Times and fields of all kinds: late, backwards, repeated, of each row, and fields that use autograd themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contracting.activations.catalogue import Identity
from contracting.errors import InputError
from contracting.flows.fields import LinearFlow, NeuralFlow
from contracting.flows.network import FiringRate
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.simulation.decay import decay_rate
from contracting.simulation.sampled import sampled_rate, sampled_rate_along
from contracting.simulation.time_steps import AdaptiveStep, FixedStep, Integrator
from contracting.simulation.trajectories import distance, simulate, simulate_pairs

F64 = torch.float64
TIMES = torch.tensor([0.0, 0.3, 1.0, 2.5], dtype=F64)
DECAY = LinearFlow(-torch.eye(1, dtype=F64))
ONE = torch.ones(1, 1, dtype=F64)
both_integrators = pytest.mark.parametrize("integrator", [None, FixedStep(step=0.02)], ids=["adaptive", "fixed"])


@pytest.mark.parametrize(
    ("start", "length", "rate"),
    [(0.0, 2200.0, 1e-3), (3e3, 10.0, 1.0), (0.0, 604800.0, 1e-5), (1e4, 1.0, 1.0), (3e4, 1.0, 1.0), (1e9, 2.0, 1.0)],
)
@pytest.mark.parametrize("adaptive", [True, False])
def test_how_late_it_is_costs_no_accuracy_in_float32(start: float, length: float, rate: float, adaptive: bool) -> None:
    integrator = AdaptiveStep() if adaptive else FixedStep(step=length / 100)
    times = torch.tensor([start, start + length], dtype=F64)
    flow = LinearFlow(-rate * torch.eye(1))
    states = simulate(flow, torch.ones(1, 1), times, integrator=integrator).states
    assert states.dtype == torch.float32
    assert float(states[-1]) == pytest.approx(math.exp(-rate * length), rel=1e-3)


def test_a_late_time_is_kept_in_float64_as_well() -> None:
    times = torch.tensor([1e12, 1e12 + 1], dtype=F64)
    assert float(simulate(DECAY, ONE, times).states[-1]) == pytest.approx(math.exp(-1), abs=1e-9)


@both_integrators
def test_a_moving_input_sees_late_times_in_float64(integrator: Integrator | None) -> None:
    """s' = −s + sin(t − T): the input knows the time that float32 does not, and jumps where it says."""
    T = 1e6
    problem = EquilibriumProblem(linear=Dense(torch.zeros(1, 1)), q=torch.zeros(1, 1), activation=Identity())
    flow = FiringRate().bind(problem)
    times = torch.tensor([T, T + 1, T + 2], dtype=F64)
    solution = [(math.sin(t) - math.cos(t) + math.exp(-t)) / 2 for t in (1.0, 2.0)]
    wave = lambda t: torch.sin(t - T).reshape(-1, 1)  # noqa: E731
    smooth = simulate(flow, torch.zeros(1, 1), times, signal=wave, integrator=integrator)
    assert smooth.states[1:, 0, 0].tolist() == pytest.approx(solution, abs=1e-4)
    step = lambda t: torch.where(t >= T + 1, 5.0, -2.0).reshape(-1, 1)  # noqa: E731
    jump = simulate(flow, torch.zeros(1, 1), times, signal=step, integrator=integrator)
    at_jump = -2 * (1 - math.exp(-1))
    found = [at_jump, 5 + (at_jump - 5) * math.exp(-1)]
    assert jump.states[1:, 0, 0].tolist() == pytest.approx(found, abs=1e-4)
    own = NeuralFlow(lambda t, s: torch.sin(t - T) - s, time_dtype=F64)
    late = simulate(own, torch.zeros(2, 1), times, integrator=integrator)
    assert late.states.dtype == torch.float32
    assert late.states[1:, 1, 0].tolist() == pytest.approx(solution, abs=1e-4)


@both_integrators
def test_a_flow_is_followed_backwards(integrator: Integrator | None) -> None:
    times = torch.tensor([2.0, 1.0, 0.5], dtype=F64)
    flow = NeuralFlow(lambda t, s: torch.sin(3 * t) - s)
    start = torch.randn(3, 2, dtype=F64)
    back = simulate(flow, start, times, integrator=integrator)
    forth = simulate(flow, back.states[-1], times.flip(0), integrator=integrator)
    assert torch.allclose(forth.states.flip(0), back.states, atol=1e-7)
    assert float(simulate(DECAY, ONE, times, integrator=integrator).states[-1]) == pytest.approx(math.exp(1.5))


@both_integrators
def test_an_input_that_jumps_is_the_same_backwards(integrator: Integrator | None) -> None:
    problem = EquilibriumProblem(
        linear=Dense(torch.zeros(1, 1, dtype=F64)), q=torch.zeros(1, 1, dtype=F64), activation=Identity()
    )
    signal = lambda t: torch.where(t >= 1, 5.0, -2.0).to(F64).reshape(-1, 1)  # noqa: E731
    times = torch.tensor([2.0, 1.0, 0.0], dtype=F64)
    flow = FiringRate().bind(problem)
    states = simulate(flow, 2 * ONE, times, signal=signal, integrator=integrator).states[:, 0, 0]
    at_jump = 5 + (2 - 5) * math.e
    assert states.tolist() == pytest.approx([2, at_jump, -2 + (at_jump + 2) * math.e], abs=1e-6)


@both_integrators
def test_rows_may_have_times_of_their_own(integrator: Integrator | None) -> None:
    """Forwards, backwards and padded with the last time, as each would be alone."""
    flow = NeuralFlow(lambda t, s: torch.sin(3 * t) - s)
    times = torch.tensor([[0.0, 1.0, 2.0], [2.0, 0.5, 2.0], [3.0, 0.5, 2.0]], dtype=F64)
    start = torch.randn(3, 2, dtype=F64)
    together = simulate(flow, start, times, integrator=integrator)
    assert torch.equal(together.times, times) and bool(together.complete.all())
    for row in range(3):
        alone = simulate(flow, start[row : row + 1], times[:, row], integrator=integrator)
        assert torch.allclose(together.states[:, row], alone.states[:, 0], atol=1e-13)
        assert int(together.steps[row]) == int(alone.steps[0])
    assert torch.equal(together.states[1, 1], together.states[2, 1])
    assert torch.equal(together.states[0, 2], together.states[2, 2]) and int(together.steps[2]) == 0
    # and all that is made of a trajectory
    metric = WeightedL2.identity(2, dtype=F64)
    pair = simulate_pairs(flow, start[:2], start[:2] + 1, times[:, :2], integrator=integrator)
    fit = decay_rate(pair.times, distance(pair, metric))
    assert fit.rate.tolist() == pytest.approx([1.0, 1.0], abs=1e-6) and fit.slowest.tolist() == pytest.approx([1, 1])
    assert fit.points.tolist() == [3, 2]
    seen = sampled_rate_along(NeuralFlow(lambda t, s: -(2 + torch.cos(t)) * s), together, metric)
    assert seen.worst_time == 3.0 and seen.rate == pytest.approx(2 + math.cos(3.0))


def test_whole_numbers_are_times_and_close_ones_stay_apart() -> None:
    whole = simulate(DECAY, ONE, torch.arange(3))
    assert torch.allclose(whole.states[:, 0, 0], torch.exp(-torch.arange(3, dtype=F64)), atol=1e-8)
    close = torch.tensor([1.0, 1 + 1e-9, 1 + 2e-9], dtype=F64)
    trajectory = simulate(LinearFlow(-1e9 * torch.eye(1)), torch.ones(1, 1), close)
    assert trajectory.states[:, 0, 0].tolist() == pytest.approx([1, math.exp(-1), math.exp(-2)], rel=1e-3)
    assert torch.equal(trajectory.times, close)


def test_times_that_are_none_are_refused() -> None:
    wrong = (TIMES[[0, 2, 1]], TIMES * math.nan, TIMES[:0], TIMES + 1j, TIMES > 1, TIMES.tolist(), TIMES[:, None, None])
    for times in (*wrong, TIMES[:, None].expand(4, 3), "late", None):
        with pytest.raises(InputError, match=r"\btimes\b"):
            simulate(DECAY, ONE, times)  # type: ignore[arg-type]


def test_a_complex_state_is_a_real_one_of_twice_the_size() -> None:
    """The way out that the error names: s' = is turns by one radian in a unit of time."""
    start = torch.tensor([[1.0 + 0.5j, -2.0j]], dtype=torch.complex128)
    rotation = torch.block_diag(*2 * [torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)])
    with pytest.raises(InputError, match=r"\bview_as_real\b"):
        simulate(LinearFlow(rotation), start, TIMES)
    states = simulate(LinearFlow(rotation), torch.view_as_real(start).flatten(-2), TIMES).states
    found = torch.view_as_complex(states[-1].unflatten(-1, (-1, 2)))
    assert torch.allclose(found, start * complex(math.cos(2.5), math.sin(2.5)), atol=1e-7)


# ---------------------------------------------------------------------------------------------------- inside a field


def double_well(t: Tensor, s: Tensor) -> Tensor:
    """s' = −∂E/∂s for E = ¼(s² − 1)², by autograd."""
    (gradient,) = torch.autograd.grad((0.25 * (s.square() - 1).square()).sum(), s, create_graph=True)
    return -gradient


@pytest.mark.parametrize("grad", [True, False])
def test_a_field_may_differentiate_inside(grad: bool) -> None:
    start, plain = torch.tensor([[0.3], [-2.0]], dtype=F64), NeuralFlow(lambda t, s: s - s**3)
    with torch.set_grad_enabled(grad):
        for integrator in (AdaptiveStep(rtol=1e-4), FixedStep(step=0.1)):
            found = simulate(NeuralFlow(double_well), start, TIMES, integrator=integrator)
            assert torch.allclose(found.states, simulate(plain, start, TIMES, integrator=integrator).states, atol=1e-9)
    assert not start.requires_grad
    tilt = torch.tensor(0.1, dtype=F64, requires_grad=True)
    fields = (lambda t, s: double_well(t, s) + tilt * s, lambda t, s: s - s**3 + tilt * s)
    ends = [simulate(NeuralFlow(f), start, TIMES, integrator=FixedStep(step=0.1)).states[-1].sum() for f in fields]
    gradients = [torch.autograd.grad(end, tilt)[0] for end in ends]
    assert float(gradients[0]) == pytest.approx(float(gradients[1]), rel=1e-6)


def test_rates_along_a_trajectory_of_a_trained_module() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    flow, metric = NeuralFlow(lambda t, s: net(s) - s), WeightedL2.identity(2, dtype=F64)
    for field in (flow, NeuralFlow(lambda t, s: double_well(t, s))):
        trajectory = simulate(field, torch.randn(3, 2, dtype=F64), TIMES[:3])
        along = sampled_rate_along(field, trajectory, metric)
        assert along.rate == pytest.approx(sampled_rate(field, trajectory.states.detach().flatten(0, 1), metric).rate)
        assert not along.worst_point.requires_grad
