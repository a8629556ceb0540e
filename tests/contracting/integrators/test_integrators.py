"""Integrators as integrators: measured orders, tableaux, adaptive control, implicit steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from contracting.activations.catalogue import ReLU, ReLU6, Sigmoid, Tanh
from contracting.errors import InputError
from contracting.flows.base import BoundFlow
from contracting.flows.network import FiringRate, Hopfield
from contracting.flows.splitting import PeacemanRachfordFlow
from contracting.integrators import BackwardEuler, DormandPrince, ExplicitEuler, PseudoTransient
from contracting.integrators.explicit import (
    BOGACKI_SHAMPINE,
    DORMAND_PRINCE,
    EULER,
    HEUN,
    RK4_CLASSIC,
    Tableau,
    runge_kutta_step,
)
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.problem import EquilibriumProblem
from tests.problems import monotone_weight, perturbed, planted

TABLEAUX = {
    "Euler": EULER,
    "Heun": HEUN,
    "RK4": RK4_CLASSIC,
    "Bogacki–Shampine": BOGACKI_SHAMPINE,
    "Dormand–Prince": DORMAND_PRINCE,
}
END = 2.0


def smooth_problem() -> EquilibriumProblem:
    W, lam = monotone_weight(4, seed=1, skew=2.0)
    problem, _ = planted(Tanh(), W, lam, batch=3, seed=2)
    return problem


def advance(tableau: Tableau, flow: BoundFlow, start: Tensor, steps: int) -> Tensor:
    state = start
    for _ in range(steps):
        state, _ = runge_kutta_step(tableau, flow, state, END / steps)
    return state


def measured_order(errors: list[float], ratio: float = 2.0) -> float:
    return math.log(errors[-2] / errors[-1]) / math.log(ratio)


@pytest.mark.parametrize("flow", [FiringRate(), Hopfield()], ids=lambda f: type(f).__name__)
@pytest.mark.parametrize("tableau", TABLEAUX.values(), ids=TABLEAUX.keys())
def test_explicit_orders(tableau: Tableau, flow: FiringRate | Hopfield) -> None:
    field = flow.bind(smooth_problem())
    start = torch.full((3, 4), 0.5, dtype=torch.float64)
    exact = advance(DORMAND_PRINCE, field, start, 2000)
    coarsest = {1: 200, 2: 80, 3: 40, 4: 40, 5: 40}[tableau.order]
    errors = [float((advance(tableau, field, start, k * coarsest) - exact).abs().max()) for k in (1, 2, 4)]
    assert measured_order(errors) == pytest.approx(tableau.order, abs=0.25)


@pytest.mark.parametrize("tableau", TABLEAUX.values(), ids=TABLEAUX.keys())
def test_tableaux_are_consistent(tableau: Tableau) -> None:
    assert sum(tableau.weights) == pytest.approx(1, abs=1e-14)
    if tableau.error is not None:
        assert sum(tableau.error) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("tableau", [BOGACKI_SHAMPINE, DORMAND_PRINCE], ids=["3(2)", "5(4)"])
def test_error_estimates_have_their_order(tableau: Tableau) -> None:
    """The estimate of one step is O(hᵏ) with k the order of the pair's better solution."""
    field = FiringRate().bind(smooth_problem())
    start = torch.full((3, 4), 0.5, dtype=torch.float64)
    assert tableau.error is not None
    sizes = []
    for h in (0.1, 0.05):
        _, slopes = runge_kutta_step(tableau, field, start, h)
        error = sum(h * c * slope for c, slope in zip(tableau.error, slopes, strict=True))
        sizes.append(float(torch.as_tensor(error).abs().max()))
    assert measured_order(sizes) == pytest.approx(tableau.order, abs=0.35)


def test_each_row_has_its_own_step() -> None:
    """A stiff row makes small steps; its neighbour does not follow."""
    W = torch.diag(torch.tensor([-200.0, 0.0], dtype=torch.float64))
    problem, _ = planted(Tanh(), W, torch.ones(2, dtype=torch.float64), batch=2, seed=1)
    q = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    iteration = DormandPrince().bind(problem.with_tensors([q, W]), Stop())
    state = iteration.init(torch.zeros(2, 2, dtype=torch.float64))
    for _ in range(15):
        state = iteration.step(state)
    assert state[2][1] > 5 * state[2][0]


def test_backward_euler_has_order_one() -> None:
    problem = smooth_problem()
    field = FiringRate().bind(problem)
    start = torch.full((3, 4), 0.5, dtype=torch.float64)
    exact = advance(DORMAND_PRINCE, field, start, 1000)
    errors = []
    for steps in (80, 160):
        iteration = BackwardEuler(step=END / steps).bind(problem, Stop())
        state = iteration.init(start)
        for _ in range(steps):
            state = iteration.step(state)
        errors.append(float((state[0] - exact).abs().max()))
    assert measured_order(errors) == pytest.approx(1, abs=0.25)


def test_backward_euler_solves_its_step() -> None:
    problem = smooth_problem()
    field = FiringRate().bind(problem)
    iteration = BackwardEuler(step=3.0).bind(problem, Stop())
    start = torch.full((3, 4), 0.5, dtype=torch.float64)
    (new, h) = iteration.step(iteration.init(start))
    assert torch.allclose(new, start + h[:, None] * field(0.0, new), atol=1e-11)


def test_pseudo_transient_grows_its_step_into_newtons() -> None:
    problem = smooth_problem()
    iteration = PseudoTransient().bind(problem, Stop())
    state = iteration.init(problem.zeros())
    sizes = []
    for _ in range(9):
        state = iteration.step(state)
        sizes.append(float(state[1].norm()))
    assert state[2].min() > 100
    assert sizes[-1] < 1e-10


@pytest.mark.parametrize("activation", [Tanh(), Sigmoid(), ReLU6(), ReLU()], ids=str)
@pytest.mark.parametrize("flow", [FiringRate(), Hopfield(), PeacemanRachfordFlow()], ids=lambda f: type(f).__name__)
def test_pseudo_transient_gets_past_saturation(flow, activation) -> None:  # type: ignore[no-untyped-def]
    """κ = 150: where a step is judged by ‖f‖ alone, all of these rows get stuck with tanh."""
    problem = perturbed(activation, 0.1, rows=10)
    solution = solve(problem, PseudoTransient(flow=flow), stop=Stop(max_steps=80))
    residual = solution.z - activation(solution.z @ problem.linear.to_dense().mT + problem.q)
    assert (residual.norm(dim=-1) <= 1.001e-8 * solution.z.norm(dim=-1)).all()


@pytest.mark.parametrize("activation", [Tanh(), ReLU6()], ids=str)
def test_backward_euler_returns_to_its_step_after_a_hard_one(activation) -> None:  # type: ignore[no-untyped-def]
    problem = perturbed(activation, 0.1, rows=10)
    assert solve(problem, BackwardEuler(), stop=Stop(max_steps=100)).converged.all()


def test_automatic_steps_come_from_the_operator() -> None:
    problem = smooth_problem()
    assert problem.operator is not None
    assert ExplicitEuler().bind(problem, Stop()).step_size == problem.operator.best_euler.step
    assert ExplicitEuler(step=0.1).bind(problem, Stop()).step_size == 0.1


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ExplicitEuler, {"step": 0}, "step"),
        (ExplicitEuler, {"step": -1.0}, "step"),
        (ExplicitEuler, {"flow": "hopfield"}, "flow"),
        (DormandPrince, {"flow": "hopfield"}, "flow"),
        (BackwardEuler, {"step": float("inf")}, "step"),
        (PseudoTransient, {"step": float("nan")}, "step"),
    ],
)
def test_bad_settings_are_refused(kind: type, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=rf"\b{message}\b"):
        kind(**settings)
