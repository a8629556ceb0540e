"""Runge–Kutta–Chebyshev: order, stability, spectra, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contracting.activations.catalogue import Identity, ReLU, Tanh
from contracting.errors import PreconditionError
from contracting.flows.network import FiringRate, Hopfield
from contracting.flows.speed import DouglasRachfordFlow, TimeScaledForwardBackward
from contracting.flows.splitting import ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.integrators import ExplicitEuler, RungeKuttaChebyshev
from contracting.integrators.chebyshev import best_ellipse, best_scheme, first_order, growth, spectral_hull
from contracting.integrators.explicit import DORMAND_PRINCE, runge_kutta_step
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.problem import EquilibriumProblem
from tests.problems import monotone_weight, planted

END = 2.0
FLOWS = (FiringRate(), Hopfield(), ForwardBackwardFlow(), PeacemanRachfordFlow())


def smooth_problem(**shape: float) -> EquilibriumProblem:
    W, lam = monotone_weight(4, seed=1, **({"skew": 2.0} | shape))  # type: ignore[arg-type]
    return planted(Tanh(), W, lam, batch=3, seed=2)[0]


def polynomial(scheme, values: Tensor) -> Tensor:
    """P(λ) by running the scheme on y' = λy."""
    return scheme.advance(lambda t, y: values * y, torch.ones_like(values))


def measured_order(errors: list[float]) -> float:
    return math.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize("flow", FLOWS, ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("stages", [1, 2, 5])
def test_the_order_is_one(stages: int, flow) -> None:
    field = flow.bind(smooth_problem())
    start = torch.full((3, 4), 0.5, dtype=torch.float64)
    exact = start
    for _ in range(60):
        exact, _ = runge_kutta_step(DORMAND_PRINCE, field, exact, END / 60)
    errors = []
    for steps in (20, 40):
        unit = first_order(1.2, 0.5, stages)
        scheme = first_order(1.2 * (scale := unit.step * steps / END), 0.5 * scale**2, stages)
        assert scheme.step == pytest.approx(END / steps)
        state = start
        for _ in range(steps):
            state = scheme.advance(field, state)
        errors.append(float((state - exact).abs().max()))
    assert measured_order(errors) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("focal", [0.0, 0.5, -3.0])
def test_growth_bounds_the_polynomial_on_the_hull(focal: float) -> None:
    hull = (complex(0.6, 0.9), complex(1.5, 0.9))
    x = torch.complex(*torch.meshgrid(
        torch.linspace(0.6, 1.5, 60, dtype=torch.float64), torch.linspace(-0.9, 0.9, 60, dtype=torch.float64),
        indexing="ij"))  # fmt: skip
    for stages in (1, 2, 5, 8):
        measured = float(polynomial(first_order(1.2, focal, stages), -x).abs().max())
        bound = growth(hull, 1.2, focal, stages)
        assert measured <= bound * (1 + 1e-9)
        assert bound < 6 * measured  # not vacuous


@pytest.mark.parametrize(
    "flow", [*FLOWS, DouglasRachfordFlow(), TimeScaledForwardBackward(step=0.3)], ids=lambda f: type(f).__name__
)
def test_the_hull_contains_every_spectrum(flow) -> None:
    W, lam = monotone_weight(6, seed=3, skew=3.0, spread=0.5)
    problem, _ = planted(ReLU(), W, lam, batch=40, seed=4)
    bound = flow.bind(problem)
    hull = spectral_hull(bound)
    assert hull is not None
    eigenvalues = -torch.linalg.eigvals(bound.jacobian(5 * torch.randn(40, 6, dtype=torch.float64)))
    real, imag = zip(*((corner.real, corner.imag) for corner in hull), strict=True)
    assert eigenvalues.real.min() >= min(real) - 1e-9 and eigenvalues.real.max() <= max(real) + 1e-9
    assert eigenvalues.imag.abs().max() <= max(imag) + 1e-9


def test_stages_grow_like_the_root_of_the_stiffness() -> None:
    """Self-adjoint, σ = identity: √κ stages per tenfold reduction, where Euler needs κ steps."""
    products = {}
    for scale in (100.0, 1600.0):
        W, lam = monotone_weight(20, seed=5, skew=0.0, scale=scale)
        problem, _ = planted(Identity(), W, lam, batch=2, seed=6)
        products[scale] = solve(problem, RungeKuttaChebyshev()).map_evals
        assert products[scale] < 0.2 * solve(problem, ExplicitEuler(), stop=Stop(max_steps=200_000)).map_evals
    assert products[1600.0] / products[100.0] == pytest.approx(4, rel=0.3)


def test_the_factor_is_attained_on_a_linear_field() -> None:
    W, lam = monotone_weight(10, seed=7, skew=0.0, scale=20.0)
    problem, exact = planted(Identity(), W, lam, batch=1, seed=8)
    iteration = RungeKuttaChebyshev().bind(problem, Stop().resolved(problem))
    state = iteration.init(problem.zeros())
    assert iteration.factor is not None and problem.metric is not None
    for _ in range(4):
        before = problem.metric.norm(state[0] - exact)
        state = iteration.step(state)
        assert (problem.metric.norm(state[0] - exact) <= iteration.factor * before).all()


def test_a_tall_spectrum_moves_the_foci_off_the_axis() -> None:
    center, focal = best_ellipse((complex(1, 20), complex(1.5, 20)))
    assert focal < 0
    flat = best_ellipse((complex(1, 0.1), complex(100, 0.1)))
    assert flat[1] > 0 and flat[0] == pytest.approx(50.5, rel=0.1)


@pytest.mark.parametrize("skew", [0.5, 5.0, 20.0])
@pytest.mark.parametrize("low", [0.05, 1e-3])
def test_an_automatic_step_is_stable_on_a_tall_spectrum_near_the_axis(low: float, skew: float) -> None:
    """Foci confined to twice the height of the spectrum left every number of stages unstable, and nobody said so."""
    hull = (complex(low, skew), complex(1, skew))
    scheme, factor = best_scheme(hull)
    assert factor is not None and factor < 1
    side = torch.linspace(0, skew, 200, dtype=torch.float64)
    edges = [torch.complex(torch.full_like(side, real), side) for real in (low, 1.0)]
    edges.append(torch.complex(torch.linspace(low, 1, 200, dtype=torch.float64), torch.full_like(side, skew)))
    assert polynomial(scheme, -torch.cat(edges)).abs().max() <= factor * (1 + 1e-6)


@pytest.mark.parametrize("flow", [FiringRate(), Hopfield()], ids=lambda f: type(f).__name__)
def test_a_skew_part_costs_stages_but_not_stability(flow) -> None:
    W = torch.diag(torch.tensor([0.95, 0.0, 0.0], dtype=torch.float64))
    W[1, 2], W[2, 1] = 5.0, -5.0
    problem, exact = planted(Identity(), W, torch.ones(3, dtype=torch.float64), batch=2, seed=1)
    solution = solve(problem, RungeKuttaChebyshev(flow=flow), stop=Stop(max_steps=100))
    assert torch.allclose(solution.z, exact, atol=1e-6)


def test_a_spectrum_on_the_imaginary_axis_is_refused() -> None:
    with pytest.raises(PreconditionError, match=r"\bstages\b"):
        best_scheme((complex(0, 5), complex(1, 5)))


def test_a_flow_of_which_nothing_is_known_is_refused() -> None:
    uncertified, _ = planted(ReLU(), torch.zeros(3, 3, dtype=torch.float64), None, batch=1, seed=0)
    with pytest.raises(PreconditionError, match=r"\bspectrum\b"):
        solve(uncertified, RungeKuttaChebyshev())
