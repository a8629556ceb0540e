"""A forecast of the residual is right where the answer is known, and looks at trained and random layers in time."""

from __future__ import annotations

import math

import pytest
import torch

from contracting import Stop, solve
from contracting.maps.dense import Dense
from contracting.solvers.forecast import Forecast, sampled_forecast
from contracting.solvers.reflected import FoldedIteration
from equilibrium import LBEN, DouglasRachford, PeacemanRachford

F32, F64 = torch.float32, torch.float64


def forecast(W: torch.Tensor, step: float) -> Forecast | None:
    linear = Dense(W)
    return sampled_forecast(linear, linear.reflection(step), step)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("size", [10, 1200])
@pytest.mark.parametrize("step", [0.5, 1.0, 8.0])
def test_of_a_multiple_of_the_identity_the_decay_is_that_of_every_direction(
    dtype: torch.dtype, size: int, step: float
) -> None:
    found = forecast(0.5 * torch.eye(size, dtype=dtype), step)
    assert found is not None
    assert found.decay == pytest.approx(abs(1 - step / 2) / (1 + step / 2), rel=2e-3 if dtype == F32 else 1e-6)
    assert found == forecast(0.5 * torch.eye(size, dtype=dtype), step)


def test_what_is_solved_at_once_is_looked_at_soon() -> None:
    found = forecast(0.5 * torch.eye(10, dtype=F64), 2.0)  # 2K − I = 0
    assert found is not None and found.start == 1 and found.steps(1e-8) <= 5


def test_nothing_is_forecast_where_the_residual_grows() -> None:
    assert forecast(3 * torch.eye(10, dtype=F64), 0.2) is None
    assert forecast(3 * torch.eye(10, dtype=F64), 0.5 - 1e-14) is None


@pytest.mark.parametrize("size", [1, 2, 3])
def test_few_neurons_of_which_none_may_be_active_are_no_obstacle(size: int) -> None:
    found = forecast(0.5 * torch.eye(size, dtype=F64), 0.5)
    assert found is not None and found.decay == pytest.approx(0.6, rel=1e-6)


def test_the_step_at_which_a_line_crosses_a_residual() -> None:
    line = Forecast(start=8.0, decay=0.5, margin=(1.0, 0.0))
    assert line.steps(2.0**-7) == pytest.approx(10)
    assert Forecast(start=8.0, decay=0.5, margin=(1.5, 2.0)).steps(2.0**-7) == pytest.approx(17)
    assert line.steps(100.0) == 0
    assert line.at_most(0.25).decay == 0.25 and line.at_most(0.75) is line and line.at_most(None) is line


def test_relaxation_makes_the_expected_decay_slower() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        problem = LBEN(20, 30, 5, lipschitz=1.0).double().problem(torch.randn(3, 20, dtype=F64))
    stop = Stop(rtol=1e-6, atol=0.0)
    plain, half = (method.bind(problem, stop) for method in (PeacemanRachford(), DouglasRachford()))
    assert isinstance(plain, FoldedIteration) and isinstance(half, FoldedIteration)
    assert plain.forecast is not None and half.forecast is not None
    assert half.forecast.decay == pytest.approx(0.5 + plain.forecast.decay / 2)
    assert half.forecast.start == plain.forecast.start


@pytest.mark.parametrize("lasting", [True, False])
@pytest.mark.parametrize("rtol", [1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize("lipschitz", [0.3, 5.0, None])
def test_random_layers_are_looked_at_when_nearly_all_rows_are_solved_and_not_much_later(
    lasting: bool, rtol: float, lipschitz: float | None
) -> None:
    stop = Stop(rtol=rtol, atol=0.0)
    for seed in range(3):
        torch.manual_seed(seed)
        layer = LBEN(20, 60, 5, lipschitz=lipschitz).double()
        with torch.no_grad():
            layer.parameterization.V.mul_(1 + 2 * seed)
        problem = layer.problem(torch.randn(100, 20, dtype=F64)).detach()
        if lasting:
            with torch.no_grad():
                problem = layer.problem(torch.randn(100, 20, dtype=F64))
        for method in (PeacemanRachford(), DouglasRachford(relaxation=1.8)):
            iteration = method.bind(problem, stop)
            assert isinstance(iteration, FoldedIteration)
            looked = iteration.check_after(iteration.cold(), 0)
            needed = solve(problem, method, stop=Stop(rtol=rtol, atol=0.0, check_every=1)).steps.double()
            assert float(needed.quantile(0.5)) <= looked + 1
            assert looked <= 1.6 * float(needed.max()) + 3
            assert math.isfinite(looked)
