"""The convex view: potentials against their definition, and an energy that falls exactly where it should."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import Tensor

from contracting.activations.base import Activation, Curved
from contracting.activations.catalogue import ADMISSIBLE, Arctan, ReLU, Slope, Softplus, Tanh
from contracting.activations.clamped import Clamped
from contracting.activations.potentials import dilogarithm
from contracting.errors import InputError, PreconditionError
from contracting.flows.base import Flow
from contracting.flows.network import FiringRate, Hopfield
from contracting.flows.speed import TimeScaledForwardBackward
from contracting.flows.splitting import ForwardBackwardFlow
from contracting.loop.records import Stop
from contracting.maps.dense import Dense
from contracting.metrics import FullP, WeightedL2
from contracting.problem import EquilibriumProblem
from contracting.simulation.energy import Energy
from contracting.simulation.time_steps import AdaptiveStep
from contracting.simulation.trajectories import simulate
from contracting.solvers.fista import FISTA
from contracting.solvers.splitting import ForwardBackward
from contracting.types import Slopes
from tests.problems import monotone_weight, planted

F64 = torch.float64
each = pytest.mark.parametrize("activation", ADMISSIBLE, ids=lambda a: type(a).__name__)


@each
def test_the_activation_is_the_prox_of_its_potential(activation: Activation) -> None:
    """σ(v) minimises ½(p − v)² + αf(p), for several α and against many other p."""
    v = torch.linspace(-4, 7, 45, dtype=F64)
    others = activation(torch.linspace(-12, 12, 481, dtype=F64))
    for step in (1.0, 0.3, 4.0):

        def objective(p: Tensor, step: float = step) -> Tensor:
            return 0.5 * (p - v[:, None]) ** 2 + step * activation.potential(p)

        best = objective(activation.prox(v, step)[:, None])[:, 0]
        assert torch.isfinite(best).all()
        assert torch.all(best[:, None] <= objective(others[None, :]) + 1e-9)


@each
def test_the_slope_of_the_potential_is_v_minus_z(activation: Activation) -> None:
    v = torch.tensor([-2.5, -0.8, 0.9, 2.0], dtype=F64)
    z = activation(v).detach().requires_grad_()
    inside = activation.derivative(v) > 0  # elsewhere f has a kink or an end, and v − z is only a subgradient
    (slope,) = torch.autograd.grad((activation.potential(z) + 0 * z).sum(), z)
    assert torch.allclose(slope[inside], (v - z)[inside], atol=1e-10)


def test_outside_the_range_the_potential_is_infinite() -> None:
    z = torch.tensor([-1.5, 1.5], dtype=F64)
    assert torch.isinf(Tanh().potential(z)).all()
    assert torch.isinf(ReLU().potential(z)).tolist() == [True, False]
    assert torch.isinf(Softplus(beta=2.0).potential(z)).tolist() == [True, False]
    flat = Slope(slopes=torch.tensor([0.0, 0.5], dtype=F64))
    assert flat.potential(z).tolist() == [float("inf"), 0.5 * 1.5**2]


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_potential_of_a_saturated_arctan_is_finite(sign: int, dtype: torch.dtype) -> None:
    """f(arctan v) = ½log(1 + v²) − ½arctan²v; the float32 nearest to π/2 is larger than π/2, where cos < 0."""
    v = torch.tensor([1.0, 1e3, 1e6, 6.7e7], dtype=F64)
    expected = 0.5 * torch.log1p(v.square()) - 0.5 * v.atan().square()
    found = Arctan().potential(Arctan()(sign * v.to(dtype))).to(F64)
    assert torch.all((found - expected).abs() < (torch.tensor([1e-6, 1e-4, 0.1, 0.1]) if dtype != F64 else 1e-7))
    # what is beyond π/2 by more than rounding is outside the range
    beyond = sign * torch.tensor([1.571, 3.0, 6.0], dtype=dtype)
    assert Arctan().potential(beyond).tolist() == [float("inf")] * 3


def test_the_energy_of_a_saturated_state_is_a_number() -> None:
    W, lam = monotone_weight(2, seed=1, skew=0.0, monotonicity=0.3)
    problem = EquilibriumProblem(
        linear=Dense(W.float()), q=torch.tensor([[1e9, 0.0]]), activation=Arctan(), metric=WeightedL2(lam.float())
    )
    z = problem.map(torch.zeros(1, 2)).requires_grad_()
    energy = Energy(problem)(z)
    (slope,) = torch.autograd.grad(energy.sum(), z)
    assert float(z.detach()[0, 0]) > math.pi / 2 and torch.isfinite(energy).all() and torch.isfinite(slope).all()


@pytest.mark.parametrize("inner", [ReLU(), Tanh()], ids=lambda a: type(a).__name__)
def test_a_clamped_neuron_has_the_indicator_of_zero(inner: Activation) -> None:
    free = torch.tensor([True, False])
    activation = Clamped(inner=inner, free=free)
    z = torch.tensor([[0.5, 0.0], [0.5, 0.1], [-2.0, 0.0]], dtype=F64)
    found = activation.potential(z)
    assert torch.equal(found[:, 0], inner.potential(z[:, 0]))
    assert found[:, 1].tolist() == [0.0, float("inf"), 0.0]
    # the prox of it, and an energy that the equilibrium minimises
    W, lam = monotone_weight(2, seed=1, skew=0.0, monotonicity=0.3)
    problem, equilibrium = planted(activation, W, lam, batch=4, seed=2)
    energy = Energy(problem)
    lowest = energy(equilibrium)
    assert torch.isfinite(lowest).all() and not equilibrium[:, 1].any()
    for scale in (1e-2, 1.0):
        other = activation(problem.preactivation(equilibrium) + scale * torch.randn(4, 2, dtype=F64))
        growth = 0.5 * energy.strong_convexity * energy.metric.norm(other - equilibrium).square()
        assert torch.all(energy(other) >= lowest + growth - 1e-12)


def test_the_dilogarithm_is_exact() -> None:
    x = torch.tensor([0.0, 1e-8, 0.1, 0.49999, 0.5, 0.50001, 0.9, 1 - 1e-9, 1.0], dtype=F64)
    exact = torch.tensor([float(mpmath.polylog(2, float(value)).real) for value in x], dtype=F64)
    assert torch.allclose(dilogarithm(x), exact, rtol=2e-15, atol=1e-300)


def test_an_unknown_activation_is_refused() -> None:
    class Mine(Curved):
        slopes = Slopes(0.5, 0.5)

        def value(self, v: Tensor) -> Tensor:
            return v / 2

        def slope(self, v: Tensor) -> Tensor:
            return torch.full_like(v, 0.5)

    with pytest.raises(InputError, match="potential"):
        Mine().potential(torch.zeros(1))


def symmetric(activation: Activation, *, spread: float = 0.7) -> tuple[EquilibriumProblem, Tensor]:
    W, lam = monotone_weight(5, seed=1, skew=0.0, monotonicity=0.3, scale=3.0, spread=spread)
    return planted(activation, W, lam, batch=4, seed=2)


@each
def test_the_equilibrium_minimises_the_energy(activation: Activation) -> None:
    """With the quadratic growth that strong convexity promises."""
    problem, z = symmetric(activation)
    energy = Energy(problem)
    assert energy.strong_convexity == pytest.approx(0.3) and energy.smoothness == pytest.approx(3.3)
    lowest = energy(z)
    assert torch.isfinite(lowest).all()
    for scale in (1e-3, 0.1, 1.0, 10.0):
        other = activation(problem.preactivation(z) + scale * torch.randn(4, 5, dtype=F64))
        growth = 0.5 * energy.strong_convexity * energy.metric.norm(other - z).square()
        assert torch.all(energy(other) >= lowest + growth - 1e-12)


@each
def test_forward_backward_splitting_is_a_descent_method(activation: Activation) -> None:
    problem, _ = symmetric(activation)
    energy = Energy(problem)
    for step in (0.2, 1.9 / energy.smoothness):
        iteration = ForwardBackward(step=step).bind(problem, Stop())
        z = activation(3 * torch.randn(4, 5, dtype=F64))
        for _ in range(10):
            after = iteration.read(iteration.step(iteration.init(z)))
            drop = energy(z) - energy(after)
            assert torch.all(drop >= energy.guaranteed_decrease(z, after, step) - 1e-10)
            z = after


def test_a_step_that_is_too_long_raises_the_energy() -> None:
    """Negative control: the bound 2/L means something."""
    problem, z = symmetric(ReLU())
    energy = Energy(problem)
    iteration = ForwardBackward(step=2.5 / energy.smoothness).bind(problem, Stop())
    state = iteration.init(z + 1e-3)
    for _ in range(60):
        state = iteration.step(state)
    assert bool((energy(iteration.read(state)) > energy(z + 1e-3)).any())


@pytest.mark.parametrize(
    "flow",
    [FiringRate(), Hopfield(), ForwardBackwardFlow(step=0.4), TimeScaledForwardBackward(step=0.4)],
    ids=lambda f: type(f).__name__,
)
@pytest.mark.parametrize("activation", [ReLU(), Tanh(), Softplus()], ids=lambda a: type(a).__name__)
def test_the_energy_falls_along_flows(flow: Flow, activation: Activation) -> None:
    problem, z = symmetric(activation)
    energy, field = Energy(problem), flow.bind(problem)
    start = field.init(activation(2 * torch.randn(4, 5, dtype=F64)))
    trajectory = simulate(field, start, torch.linspace(0, 8, 17, dtype=F64), integrator=AdaptiveStep(rtol=1e-6))
    values = torch.stack([energy(field.read(state)) for state in trajectory.states])
    assert torch.all(values.diff(dim=0) <= 1e-6)
    assert torch.all(values[-1] - energy(z) < 0.3 * (values[0] - energy(z)))


@pytest.mark.parametrize("step", [0.1, 1.0, 5.0])
def test_the_forward_backward_flow_falls_at_its_proved_speed(step: float) -> None:
    """dE/dt ≤ −‖z'‖²_Λ/α for every α, also where the iteration diverges."""
    problem, _ = symmetric(Tanh())
    energy, field = Energy(problem), ForwardBackwardFlow(step=step).bind(problem)
    z = torch.tanh(torch.randn(4, 5, dtype=F64))
    velocity, h = field(0.0, z), 1e-6
    slope = (energy(z + h * velocity) - energy(z - h * velocity)) / (2 * h)
    assert torch.all(slope <= -energy.metric.norm(velocity).square() / step + 1e-6)


def test_the_gradient_is_the_one_of_the_metric() -> None:
    problem, z = symmetric(ReLU())
    z = z.abs().add(0.1).requires_grad_()
    (gradient,) = torch.autograd.grad(Energy(problem)(z).sum(), z)
    assert torch.allclose(gradient, Energy(problem).metric.weights * Energy(problem).smooth_gradient(z), atol=1e-12)


def test_there_is_no_energy_with_a_skew_part() -> None:
    W, lam = monotone_weight(5, seed=1, skew=1e-6)
    problem, _ = planted(Tanh(), W, lam, batch=1, seed=2)
    with pytest.raises(PreconditionError, match=r"\benergy\b"):
        Energy(problem)
    Energy(problem, tolerance=1e-5)
    bare, _ = planted(Tanh(), W, None, batch=1, seed=2)
    with pytest.raises(PreconditionError, match=r"\bWeightedL2\b"):
        Energy(bare)
    full = EquilibriumProblem(
        linear=Dense(W), q=problem.q, activation=Tanh(), metric=FullP(torch.eye(5, dtype=F64))
    )
    with pytest.raises(PreconditionError, match=r"\bWeightedL2\b"):
        Energy(full)
    # symmetric in another metric does not count
    scaled, _ = symmetric(Tanh())
    with pytest.raises(PreconditionError, match=r"\benergy\b"):
        Energy(planted(Tanh(), scaled.linear.to_dense(), torch.ones(5, dtype=F64), batch=1, seed=2)[0])


def test_a_skew_block_beside_large_entries_is_no_rounding() -> None:
    """Whatever makes the other entries large, the metric or the weight: there is no energy, and FISTA stalls."""
    skewed = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, -2.0, 0.0]])
    stiff = torch.block_diag(torch.tensor([[-1e6]]), skewed[1:, 1:])
    for W, lam in ((skewed, torch.tensor([1e6, 1.0, 1.0])), (stiff, torch.ones(3))):
        problem = EquilibriumProblem(linear=Dense(W), q=torch.ones(1, 3), activation=ReLU(), metric=WeightedL2(lam))
        with pytest.raises(PreconditionError, match=r"\benergy\b"):
            Energy(problem)
        with pytest.raises(PreconditionError, match=r"\bFISTA\b"):
            FISTA().bind(problem, Stop())
    # and a graded weight that is self-adjoint up to rounding has one, in any metric in which it is
    scale = torch.tensor([1e-4, 1.0, 1e4])
    W = torch.tensor([[0.3, 0.2, 0.1], [0.2, -0.4, 0.3], [0.1, 0.3, 0.2]]) * scale[:, None] / scale
    graded = EquilibriumProblem(
        linear=Dense(W), q=torch.ones(1, 3), activation=ReLU(), metric=WeightedL2(scale**-2)
    )
    assert Energy(graded).strong_convexity > 0
    FISTA().bind(graded, Stop())
