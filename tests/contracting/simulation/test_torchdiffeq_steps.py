"""torchdiffeq along trajectories: the same states and gradients, and a gradient that would be missing is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from contracting import (
    AdaptiveStep,
    InputError,
    NeuralFlow,
    PreconditionError,
    TorchDiffEqStep,
    VectorField,
    simulate,
)
from contracting.types import Time

DOUBLE = torch.float64
TIMES = torch.tensor([[0.0, 0.2], [0.7, 0.4], [1.0, 2.0]], dtype=DOUBLE)  # a grid for each row


def field() -> tuple[nn.Module, NeuralFlow]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    return module, NeuralFlow(lambda t, s: module(s) * t.cos())


@pytest.mark.parametrize(
    "integrator",
    [
        TorchDiffEqStep(method="dopri5", rtol=1e-10),
        TorchDiffEqStep(method="rk4", step=0.02),
        TorchDiffEqStep(method="dopri5", rtol=1e-10, adjoint=True),
        TorchDiffEqStep(method="rk4", step=0.02, adjoint=True),
    ],
    ids=lambda i: f"{i.method}-{i.adjoint}",
)
def test_states_and_gradients_agree_with_our_own(integrator: TorchDiffEqStep) -> None:
    torch.manual_seed(0)
    module = nn.Linear(2, 2).double()
    flow = NeuralFlow(_Timed(module))
    start = torch.randn(2, 2, dtype=DOUBLE, requires_grad=True)
    results = []
    for chosen in (AdaptiveStep(rtol=1e-11), integrator):
        path = simulate(flow, start, TIMES, integrator=chosen)
        results.append((path.states, *torch.autograd.grad(path.states.square().sum(), [start, *module.parameters()])))
        assert bool((path.steps > 0).all())
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


class _Timed(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return self.module(s).tanh() * t.cos()


def test_an_adjoint_without_all_tensors_is_refused() -> None:
    module, flow = field()  # hides its module in a function
    start = torch.randn(1, 2, dtype=DOUBLE)
    with pytest.raises(PreconditionError, match="adjoint"):
        simulate(flow, start, torch.tensor([0.0, 1.0]), integrator=TorchDiffEqStep(adjoint=True))
    with torch.no_grad():
        simulate(flow, start, torch.tensor([0.0, 1.0]), integrator=TorchDiffEqStep(adjoint=True))
    simulate(NeuralFlow(_Timed(module)), start, torch.tensor([0.0, 1.0]), integrator=TorchDiffEqStep(adjoint=True))


class _Dependent(VectorField):
    """s' = −a²s: of what it says it depends on, the square is computed from the other."""

    def __init__(self, a: torch.Tensor):
        self.a, self.square = a, a * a

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.a, self.square

    def __call__(self, t: Time, state: torch.Tensor) -> torch.Tensor:
        return -self.square * state


def test_an_adjoint_that_would_count_twice_is_refused() -> None:
    flow = _Dependent(torch.ones((), dtype=DOUBLE, requires_grad=True))
    with pytest.raises(PreconditionError, match="independent"):
        simulate(flow, flow.a.detach().expand(1, 1), torch.tensor([0.0, 1.0]), integrator=TorchDiffEqStep(adjoint=True))


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"method": "BDF"}, "method"), ({"method": "rk4"}, "step"), ({"step": 0.1}, "step"), ({"rtol": 0.0}, "rtol")],
)
def test_settings_that_are_of_no_use_are_refused(settings: dict[str, object], name: str) -> None:
    with pytest.raises(InputError, match=name):
        TorchDiffEqStep(**settings)  # type: ignore[arg-type]
