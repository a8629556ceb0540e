"""What guides the solves of a training may be a few updates old: it costs steps, never correctness."""

from __future__ import annotations

import copy

import pytest
import torch

from contracting import Stop, solve
from contracting.loop.records import SolveError
from contracting.maps import base as linear
from contracting.maps import dense, estimates
from contracting.maps.estimates import Estimates
from contracting.solvers import reflected as folded
from equilibrium import LBEN, Implicit, LBENConv2d, PeacemanRachford, SemismoothNewton

STOP = Stop(rtol=1e-6, atol=0.0)


def layer_on_rows() -> LBEN:
    torch.manual_seed(0)
    return LBEN(6, 20, 3, lipschitz=1.0, stop=STOP, backward=Implicit(stop=STOP)).double()


def layer_on_images() -> LBENConv2d:
    torch.manual_seed(0)
    return LBENConv2d(1, 3, 2, image=(6, 6), stop=STOP, backward=Implicit(stop=STOP)).double()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often estimates and forecasts were computed."""
    counts = {"estimates": 0, "forecasts": 0}

    def estimated(*args: object, **options: object) -> Estimates | None:
        counts["estimates"] += 1
        return estimates.estimate(*args, **options)  # type: ignore[arg-type]

    forecast = folded.sampled_forecast

    def sampled(*args: object, **options: object) -> object:
        counts["forecasts"] += 1
        return forecast(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(linear, "estimate", estimated)
    monkeypatch.setattr(dense, "estimate", estimated)
    monkeypatch.setattr(folded, "sampled_forecast", sampled)
    return counts


def updates(layer: LBEN | LBENConv2d, x: torch.Tensor, count: int, rate: float) -> None:
    for _ in range(count):
        layer.zero_grad()
        layer(x).square().sum().backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= rate * parameter.grad


@pytest.mark.parametrize("make", [layer_on_rows, layer_on_images])
def test_one_update_in_ten_computes_what_guides_it(make: object, computed: dict[str, int]) -> None:
    layer = make()  # type: ignore[operator]
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    updates(layer, x, 20, 1e-3)
    compared = 4 if make is layer_on_rows else 1  # one step for all, and multiples of one per neuron
    assert computed == {"estimates": 2, "forecasts": 2 * compared}
    layer.train()  # starts anew, so that a resumed training is the same as one that was not interrupted
    updates(layer, x, 1, 1e-3)
    assert computed == {"estimates": 3, "forecasts": 3 * compared}
    layer.eval()
    updates(layer, x, 3, 1e-3)
    assert computed == {"estimates": 6, "forecasts": 3 * compared + 3}


@pytest.mark.parametrize("make", [layer_on_rows, layer_on_images])
@pytest.mark.parametrize("factor", [0.02, 20.0])
def test_gradients_are_right_however_old_it_is(make: object, factor: float) -> None:
    layer = make()  # type: ignore[operator]
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    updates(layer, x, 2, 1e-3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter *= factor
    fresh = copy.deepcopy(layer)
    gradients = []
    for module in (layer, fresh):
        module.zero_grad()
        module(x).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    assert fresh._lineage is not layer._lineage
    difference = torch.linalg.vector_norm(gradients[0] - gradients[1]) / torch.linalg.vector_norm(gradients[1])
    assert difference <= 1e-4


@pytest.mark.parametrize("make", [layer_on_rows, layer_on_images])
def test_it_serves_no_weights_of_another_dtype(make: object) -> None:
    layer = make()  # type: ignore[operator]
    x = torch.randn(5, layer.in_features, dtype=torch.float64)
    exact = copy.deepcopy(layer).solve(x).z
    double, single = layer.problem(x).detach(), layer.float().problem(x.float()).detach()
    for problem in (double, single, double):  # in turn, and after the other one was made
        z = solve(problem, PeacemanRachford()).z
        assert torch.linalg.vector_norm(z - exact) <= 1e-4 * torch.linalg.vector_norm(exact)
    updates(layer, x.float(), 2, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_guess_that_fails_is_not_what_a_solve_ends_with(dtype: torch.dtype) -> None:
    """An update such as a line search tries: the step of the weights before it does not converge within the limits."""
    stop = Stop(max_steps=2_000)
    torch.manual_seed(0)
    layer = LBEN(20, 32, 5, lipschitz=1.0, dtype=dtype, stop=stop, backward=Implicit(stop=stop))
    x = torch.randn(64, 20, dtype=dtype)
    layer(x).square().mean().backward()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if not name.endswith("psi"):
                parameter *= 20
    fresh = copy.deepcopy(layer)
    gradients = []
    for module in (layer, fresh):
        module.zero_grad()
        (module(x).square().mean() * 1e3).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    assert torch.linalg.vector_norm(gradients[0] - gradients[1]) <= 1e-2 * torch.linalg.vector_norm(gradients[1])
    x[3, 0] = float("nan")  # fails whatever the guess was
    with pytest.raises(SolveError) as caught:
        layer(x)
    assert caught.value.solution is not None and (~caught.value.solution.converged).nonzero().tolist() == [[3]]


def test_an_adjoint_solve_starts_anew_as_well() -> None:
    """Newton's method needs no guess, so that the adjoint solve is the first to meet it."""
    layer = layer_on_rows()
    x = torch.randn(5, 6, dtype=torch.float64)
    layer(x).square().sum().backward()
    layer.backward = Implicit(solver=PeacemanRachford(), stop=Stop(max_steps=300))
    layer.solver = SemismoothNewton()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if not name.endswith("psi"):
                parameter *= 20
    layer.zero_grad()
    layer(x).square().sum().backward()
    guessed = torch.cat([p.grad.flatten() for p in layer.parameters()])  # type: ignore[union-attr]
    layer.zero_grad()
    layer.train()
    layer(x).square().sum().backward()
    own = torch.cat([p.grad.flatten() for p in layer.parameters()])  # type: ignore[union-attr]
    assert torch.linalg.vector_norm(guessed - own) <= 1e-4 * torch.linalg.vector_norm(own)


def test_a_line_search_of_lbfgs() -> None:
    torch.manual_seed(0)
    layer, x, y = LBEN(20, 32, 5, lipschitz=1.0), torch.randn(64, 20), torch.randn(64, 5)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=4, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        return loss

    first = float(closure().detach())
    optimiser.step(closure)
    assert float(closure().detach()) < 0.9 * first
