"""A layer as people train it: rows that fail, what was measured, warm starts, line searches, averages, processes."""

from __future__ import annotations

import copy
import inspect
import math
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from contracting.errors import InputError, Status
from contracting.loop.method import Method
from contracting.loop.records import LastSolves, SolveError, Stop
from contracting.loop.run import solve
from contracting.problem import EquilibriumProblem
from equilibrium import LBEN, EquilibriumLayer, FailedRows, Implicit, LBENConv2d, TorchDiffEq, Unrolled
from equilibrium.convolution.base import ImageParameterization, ImageParameterOptions
from equilibrium.convolution.parameterization import ConvolutionalMonotone, ConvolutionalOptions
from equilibrium.layers import LayerOptions
from equilibrium.parameterizations import BoundedOptions, BoundedParameterization

D = torch.float64


def test_options_are_those_of_the_constructors() -> None:
    """The one list of each, for those who pass them on."""
    for made, handed_on, options in (
        (BoundedParameterization, set(), BoundedOptions),
        (EquilibriumLayer, set(), LayerOptions),
        (ImageParameterization, set(), ImageParameterOptions),
        (ConvolutionalMonotone, set(ImageParameterOptions.__annotations__), ConvolutionalOptions),
    ):
        keywords = inspect.signature(made).parameters.values()
        assert {p.name for p in keywords if p.kind is p.KEYWORD_ONLY} | handed_on == set(options.__annotations__)
    with pytest.raises(TypeError, match=r"\blipshitz\b"):
        LBEN(2, 3, 1, lipshitz=1.0)  # type: ignore[call-arg]


@pytest.mark.parametrize("backward", [Implicit(), Unrolled()], ids=str)
@pytest.mark.parametrize("rule", [FailedRows.WARN, FailedRows.MASK])
def test_rows_that_fail_are_left_out_as_if_they_had_not_been_there(rule: FailedRows, backward: Implicit) -> None:
    torch.manual_seed(0)
    layer = LBEN(5, 8, 3, lipschitz=1.0, dtype=D, failed_rows=rule, backward=backward)
    alone, x = copy.deepcopy(layer), torch.randn(2, 3, 5, dtype=D)
    x[0, 1, 2] = math.nan
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            y = layer(x)
    assert len(seen) == (rule is FailedRows.WARN)
    forward = layer.last_solves.forward
    assert forward is not None
    sound = forward.converged.reshape(2, 3)
    assert sound.tolist() == [[True, False, True], [True] * 3] and forward.numbers()["failed_rows"] == 1
    assert torch.equal(y.isnan().all(-1), ~sound) and torch.equal(y.isnan().any(-1), ~sound)
    y[sound].square().sum().backward()
    expected = alone(x[sound])
    expected.square().sum().backward()
    assert torch.allclose(y[sound], expected, atol=1e-7)
    for (name, one), other in zip(layer.named_parameters(), alone.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.allclose(one.grad, other.grad, atol=1e-6), name
    assert layer(x[:0]).shape == (0, 3, 3)
    assert layer(x[0, 1:2]).isnan().all()  # no row is left
    assert bool(layer.equilibrium(x).isnan().all(-1).eq(~sound).all())


def test_failed_rows_are_an_error_by_default() -> None:
    layer, x = LBEN(5, 8, 3), torch.full((2, 5), math.nan)
    with pytest.raises(SolveError):
        layer(x)
    assert layer.last_solves.forward is not None and layer.last_solves.forward.status.tolist() == [Status.NONFINITE] * 2
    with pytest.raises(InputError, match=r"\bfailed_rows\b"):
        LBEN(5, 8, 3, failed_rows="mask")  # type: ignore[arg-type]


class Moody(Implicit):
    """Gives up the last row of five, and the first of four: as where rounding decides."""

    def equilibrium(  # type: ignore[override]
        self, problem: EquilibriumProblem, method: Method, stop: Stop, z0: Tensor | None, seen: LastSolves
    ) -> Tensor:
        z = super().equilibrium(problem, method, stop, z0, seen)
        if problem.batch in (4, 5):
            assert seen.forward is not None
            solution = solve(problem.detach(), method, stop=stop)
            solution.status[4 if problem.batch == 5 else 0] = Status.STALLED
            seen.forward = solution.record
            raise SolveError("moody", solution)
        return z


def test_a_row_may_fail_in_other_company_only() -> None:
    torch.manual_seed(0)
    layer, x = LBEN(5, 8, 3, dtype=D, failed_rows=FailedRows.MASK, backward=Moody()), torch.randn(5, 5, dtype=D)
    y = layer(x)
    assert y.isnan().any(-1).tolist() == [True, False, False, False, True]
    assert torch.equal(y[1:4], layer(x[1:4]))
    layer(x)
    assert layer.last_solves.forward.converged.tolist() == [False, True, True, True, False]  # type: ignore[union-attr]


@pytest.mark.parametrize("rule", FailedRows)
def test_a_lost_parameter_is_no_failure_of_rows(rule: FailedRows) -> None:
    """Where it reaches no weight, too: masked, a training would go on with no rows at all."""
    layer, x = LBEN(5, 8, 3, failed_rows=rule), torch.randn(2, 5)
    with torch.no_grad():
        layer.parameterization.bias[1] = math.nan  # type: ignore[index, operator]
    for call in (layer, layer.equilibrium, layer.solve):
        with pytest.raises(InputError, match="bias"):
            call(x)


@pytest.mark.parametrize("solver", [None, TorchDiffEq("dopri5")], ids=str)
def test_what_was_measured_is_there_to_log(solver: TorchDiffEq | None) -> None:
    layer = LBEN(5, 8, 3, lipschitz=1.0, solver=solver)
    assert layer.last_solves.forward is None and layer.last_solves.backward is None
    y = layer(torch.randn(4, 5))
    forward = layer.last_solves.forward
    assert forward is not None and layer.last_solves.backward is None
    assert forward.steps.shape == (4,) and forward.map_evals > 0
    y.sum().backward()
    backward = layer.last_solves.backward
    assert backward is not None and bool(backward.converged.all()) and backward.numbers()["steps"] >= 1
    assert layer.last_solves.forward is forward and not hasattr(forward, "z")
    expected = layer.solve(torch.randn(4, 5)).record
    assert set(expected.numbers()) == set(forward.numbers())
    with torch.no_grad():
        layer(torch.randn(7, 5))
    assert layer.last_solves.forward.numbers()["rows"] == 7
    stopped = LBEN(5, 8, 3, lipschitz=1.0, backward=Implicit(stop=Stop(max_steps=0)))
    with pytest.raises(SolveError):
        stopped(torch.randn(4, 5)).sum().backward()
    assert stopped.last_solves.backward is not None and not bool(stopped.last_solves.backward.converged.any())


def test_a_warm_start_takes_fewer_steps_and_changes_no_derivative() -> None:
    torch.manual_seed(0)
    layer = LBEN(5, 8, 3, lipschitz=1.0, dtype=D)
    x = torch.randn(2, 4, 5, dtype=D)
    z = layer.equilibrium(x)
    cold = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    steps = layer.last_solves.forward.steps  # type: ignore[union-attr]
    warm = torch.autograd.grad(layer(x, z0=z).square().sum(), list(layer.parameters()))
    assert bool((layer.last_solves.forward.steps < steps).all())  # type: ignore[union-attr]
    for one, other in zip(cold, warm, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    with pytest.raises(InputError, match=r"\bz0\b"):
        layer(x, z0=z[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, 200.0], ids=str)
@pytest.mark.parametrize("name", ["psi", "V", "S"])
@pytest.mark.parametrize("feedthrough", [False, True])
def test_parameters_that_make_no_weights_are_named(name: str, value: float, feedthrough: bool) -> None:
    layer = LBEN(5, 8, 3, lipschitz=1.0, feedthrough=feedthrough)
    if (value == 200.0 and name != "psi") or (value == 1e30 and name == "S"):
        return  # which makes weights
    with torch.no_grad():
        getattr(layer.parameterization, name).flatten()[1] = value
    with pytest.raises(InputError, match=rf"\b{name}\b"):
        layer(torch.randn(2, 5))


@pytest.mark.parametrize("name", ["psi", "A", "output", "U"])
def test_parameters_on_images_are_named_as_well(name: str) -> None:
    layer = LBENConv2d(1, 2, 3, image=(4, 4), lipschitz=1.0)
    with torch.no_grad():
        getattr(layer.parameterization, name).flatten()[1] = math.nan
    with pytest.raises(InputError, match=rf"\b{name}\b"):
        layer(torch.randn(2, 1, 4, 4))
    with torch.no_grad():
        getattr(layer.parameterization, name).fill_(0.1)
        layer.parameterization.psi.fill_(300.0)  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"\bpsi\b"):
        layer(torch.randn(2, 1, 4, 4))


class Module(nn.Module):
    """A LightningModule in what matters: it logs, and the trainer calls training_step, zero_grad, backward and step."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(LBEN(4, 12, 6, lipschitz=5.0, failed_rows=FailedRows.MASK), nn.Linear(6, 2))
        self.logged: list[dict[str, float]] = []

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, labels = batch
        features, layer = self.model[0](x), self.model[0]
        assert isinstance(layer, LBEN) and layer.last_solves.forward is not None
        self.logged.append({f"forward/{k}": v for k, v in layer.last_solves.forward.numbers().items()})
        sound = layer.last_solves.forward.converged
        return nn.functional.cross_entropy(self.model[1](features[sound]), labels[sound])

    def on_after_backward(self) -> None:
        record = self.model[0].last_solves.backward
        assert isinstance(self.model[0], LBEN) and record is not None
        self.logged[-1].update({f"backward/{k}": v for k, v in record.numbers().items()})


def test_a_training_in_the_manner_of_lightning() -> None:
    """Sanity check in evaluation mode, epochs with a row of NaN, a checkpoint, and another process that goes on."""
    torch.manual_seed(0)
    module = Module()
    x = torch.randn(32, 4)
    batches = [(x[:16], (x[:16, 0] > 0).long()), (x[16:], (x[16:, 0] > 0).long())]
    batches[1][0][3] = math.nan
    optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
    averaged = AveragedModel(module.model, use_buffers=True)
    module.eval()
    with torch.no_grad():
        module.training_step(batches[0])
    module.train()
    for _ in range(10):
        for batch in batches:
            optimiser.zero_grad()
            loss = module.training_step(batch)
            loss.backward()
            module.on_after_backward()
            optimiser.step()
        averaged.update_parameters(module.model)
    assert float(loss.detach()) < 0.5
    assert [int(entry["forward/failed_rows"]) for entry in module.logged] == [0] + [0, 1] * 10
    assert all(entry["backward/steps"] >= 1 for entry in module.logged[1:])
    other = Module()
    other.load_state_dict(copy.deepcopy(module.state_dict()))
    for model in (other, module, averaged):
        model.eval()
    assert torch.equal(other.model(x[:16]), module.model(x[:16]))
    restored = AveragedModel(Module().model, use_buffers=True)
    restored.eval().load_state_dict(averaged.state_dict())
    assert torch.equal(restored(x[:16]), averaged(x[:16])) and not torch.equal(averaged(x[:16]), other.model(x[:16]))


def test_a_training_step_makes_few_calls() -> None:
    """Of functions of the library, once what guides the solves of ten steps is known: 309 forward and 312 backward.

    A call costs as much as a product with a small weight. 386 and 421 were made before what is decided by the weights
    alone was handed down.
    """
    torch.manual_seed(0)
    layer, x, labels = LBEN(784, 80, 10), torch.randn(32, 784), torch.arange(32) % 10

    def loss() -> Tensor:
        return nn.functional.cross_entropy(layer(x), labels)

    value = loss()
    value.backward()
    calls: Counter[str] = Counter()
    places = tuple(str(Path(inspect.getfile(of)).parent) for of in (EquilibriumLayer, EquilibriumProblem))

    def watch(frame: FrameType, event: str, argument: object) -> None:
        calls[place] += event == "call" and frame.f_code.co_filename.startswith(places)

    for place in ("forward", "backward"):
        sys.setprofile(watch)
        try:
            if place == "forward":
                value = loss()
            else:
                value.backward()
        finally:
            sys.setprofile(None)
    assert 100 < calls["forward"] <= 310 and 100 < calls["backward"] <= 330
