"""Two processes train as one, continue after one of them was killed, agree on failures, and leave the files to one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from contracting.errors import InputError
from contracting.loop.records import Stop
from equilibrium import LBEN, Implicit
from equilibrium.__main__ import main
from equilibrium.files import write_text
from equilibrium.training import ranks
from equilibrium.training.data import Dataset, digits, subset
from equilibrium.training.loop import train
from equilibrium.training.losses import CrossEntropy
from equilibrium.training.records import TrainingError, TrainingRecord
from tests.processes import in_two

pytestmark = pytest.mark.timeout(1200)  # for machines with other work

_CLOSELY = Stop(rtol=1e-13, atol=1e-15)
_COMMAND = ["mnist-robustness", "--small", "--models", "perceptron", "--epochs", "2", "--jobs", "1", "--out"]


def images() -> Dataset:
    return subset(digits(dtype=torch.float64), train=46, test=25)


def layer(seed: int) -> LBEN:
    torch.manual_seed(seed)
    return LBEN(64, 6, 10, lipschitz=1.0, stop=_CLOSELY, backward=Implicit(stop=_CLOSELY), dtype=torch.float64)


def trained(model: nn.Module, **options: Any) -> TrainingRecord:
    """Batches of 15, 15, 15 and one row, which no two processes divide evenly."""
    return train(model, images(), **{"epochs": 3, "batch_size": 15, "noise": 0.1, "shift": 1} | options)


class MeanOfMeans(CrossEntropy):
    """What gradients would be of that are averaged over processes, whatever rows these have."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        halves = zip(outputs.tensor_split(2), targets.tensor_split(2), strict=True)
        means = [super(MeanOfMeans, self).__call__(*half) for half in halves if len(half[0])]
        return torch.stack(means).mean()


class Torn(nn.Module):
    """Fails in one process; a parameter that nothing uses, and one that every call draws anew."""

    def __init__(self, failing: int | None) -> None:
        super().__init__()
        self.linear, self.unused, self.failing = nn.Linear(64, 10, dtype=torch.float64), nn.Linear(2, 2), failing
        self.drawn: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.failing == ranks.own() and self.training:
            raise InputError("x is torn")
        self.drawn.append(float(torch.rand(())))
        out: Tensor = self.linear(x)
        return out


def _parallel(rank: int) -> list[Tensor]:
    """Gradients in both processes, by PyTorch's own wrapper around a layer."""
    torch.manual_seed(rank)  # the parameters of the first are those of both
    parallel = nn.parallel.DistributedDataParallel(LBEN(4, 6, 2, lipschitz=1.0))
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(7)).chunk(2)[rank]
    for _ in range(2):
        parallel.zero_grad()
        parallel(x).square().mean().backward()
    own = torch.cat([p.grad.flatten() for p in parallel.parameters() if p.grad is not None])
    found = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(found, own)
    return found


def _refused(kind: type[Exception], **options: Any) -> str:
    try:
        trained(**options)
    except kind as error:
        return str(error)
    raise AssertionError("nothing was refused")


def begin(rank: int, folder: Path) -> None:
    """Everything in two processes that begin; at last the first is killed in the middle of a training."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=400))
    own = folder / str(rank)  # nothing of the second process's folder is read or written
    own.mkdir()
    found: dict[str, Any] = {"parallel": _parallel(rank)}
    model, steps = layer(rank), []
    record = trained(model, checkpoint=own / "whole.pt", callback=lambda step: steps.append(step.loss))
    found["model"] = model.state_dict()
    found["record"], found["steps"] = json.dumps([vars(epoch) for epoch in record.epochs]), steps
    torn = Torn(None)
    trained(torn, epochs=1)
    found["drawn"], found["unused"] = torn.drawn[:3], torn.unused.weight.grad is None
    found["torn"] = _refused(TrainingError, model=Torn(1))
    found["asked"] = _refused(InputError, model=Torn(None), batch_size=15 + rank)
    write_text(own / "written.txt", "by the first alone")
    torch.save(found, folder / f"{rank}.pt")

    def kill(step: Any) -> None:
        if step.step == 10:  # of 12, in the last of three epochs
            os.kill(os.getpid(), signal.SIGKILL)

    trained(layer(rank), checkpoint=own / "killed.pt", callback=kill)


def go_on(rank: int, folder: Path) -> None:
    """Continue what was killed, and run commands."""
    with open(folder / f"said-{rank}.txt", "w") as file, contextlib.redirect_stdout(file), ranks.joined():
        model = layer(rank + 5)
        trained(model, checkpoint=folder / str(rank) / "killed.pt")
        torch.save(model.state_dict(), folder / f"continued-{rank}.pt")
        assert main(["atlas", "--small"]) == 2
        assert main([*_COMMAND[:-2], "2", "--out", str(folder / "refused")]) == 2
        assert main([*_COMMAND, str(folder / "study")]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    first, second = in_two(begin, folder)
    assert first == -signal.SIGKILL and second not in (0, -signal.SIGKILL)  # which ended by itself
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_train_as_one(found: list[dict[str, Any]]) -> None:
    alone, steps = layer(0), []
    record = trained(alone, callback=lambda step: steps.append(step.loss))
    for name, expected in alone.state_dict().items():
        assert torch.equal(found[0]["model"][name], found[1]["model"][name])
        torch.testing.assert_close(found[0]["model"][name], expected, rtol=1e-9, atol=1e-10)
    assert found[0]["steps"] == pytest.approx(steps, rel=1e-9) and found[1]["steps"] == []
    for rank in range(2):
        for one, own in zip(record.epochs, json.loads(found[rank]["record"]), strict=True):
            expected = vars(one) | {"seconds": own["seconds"]}
            assert own.pop("unproved") is expected.pop("unproved") is None
            assert own.pop("solver_steps") == pytest.approx(expected.pop("solver_steps"), rel=0.05)
            assert own == pytest.approx(expected, rel=1e-9)
    wrong = layer(0)
    trained(wrong, loss=MeanOfMeans())
    assert not torch.allclose(next(wrong.parameters()), next(alone.parameters()), rtol=1e-4, atol=1e-5)


def test_the_wrapper_of_pytorch_averages_the_gradients_of_layers(found: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    alone = LBEN(4, 6, 2, lipschitz=1.0)
    alone(torch.randn(8, 4, generator=torch.Generator().manual_seed(7))).square().mean().backward()
    expected = torch.cat([p.grad.flatten() for p in alone.parameters() if p.grad is not None])
    for gradients in (*found[0]["parallel"], *found[1]["parallel"]):
        assert torch.allclose(gradients, expected, atol=1e-5) and torch.equal(gradients, found[0]["parallel"][0])


def test_failures_are_those_of_both(found: list[dict[str, Any]]) -> None:
    assert "in process 1 of 2: x is torn" in found[0]["torn"] and "x is torn" in found[1]["torn"]
    assert "batch_size is 15 here and 16 in process 1" in found[0]["asked"]
    assert "batch_size is 16 here and 15 in process 0" in found[1]["asked"]


def test_each_draws_from_a_stream_of_its_own_and_unused_parameters_stay_without_gradient(
    found: list[dict[str, Any]],
) -> None:
    assert not set(found[0]["drawn"]) & set(found[1]["drawn"]) and found[0]["unused"] and found[1]["unused"]


def test_killed_it_continues_to_the_same_bits_and_a_command_runs(
    folder: Path, found: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone, killed = layer(3), tmp_path / "killed.pt"
    killed.write_bytes((folder / "0" / "killed.pt").read_bytes())
    assert in_two(go_on, folder) == [0, 0]
    for rank in range(2):
        continued = torch.load(folder / f"continued-{rank}.pt", weights_only=True)
        assert all(torch.equal(continued[name], found[0]["model"][name]) for name in continued)
    trained(alone, checkpoint=killed)  # one process continues what two began
    for name, expected in alone.state_dict().items():
        torch.testing.assert_close(found[0]["model"][name], expected, rtol=1e-9, atol=1e-10)
    assert sorted(path.name for path in (folder / "0").iterdir()) == ["killed.pt", "whole.pt", "written.txt"]
    assert not list((folder / "1").iterdir())
    assert "perceptron" in (folder / "said-0.txt").read_text() and not (folder / "said-1.txt").read_text()
    assert not [path for path in (folder / "refused").rglob("*") if path.is_file()]
    assert main([*_COMMAND, str(tmp_path / "study")]) == 0
    one, two = (
        json.loads((path / "study" / "results.json").read_text())["models"]["perceptron"]["training"]
        for path in (tmp_path, folder)
    )
    assert [epoch["loss"] for epoch in two] == pytest.approx([epoch["loss"] for epoch in one], rel=1e-4)


def test_dropout_continues_to_the_same_bits(tmp_path: Path) -> None:
    """One process; what was drawn before the break does not matter either."""

    class Killed(Exception):
        pass

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 10, dtype=torch.float64))

    def kill(step: Any) -> None:
        if step.step == 6:
            raise Killed

    whole, continued = model(), model()
    record = trained(whole)
    with pytest.raises(Killed):
        trained(model(), checkpoint=tmp_path / "killed.pt", callback=kill)
    torch.rand(7)
    again = trained(continued, checkpoint=tmp_path / "killed.pt")
    assert [replace(e, seconds=0.0) for e in again.epochs] == [replace(e, seconds=0.0) for e in record.epochs]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), continued.parameters(), strict=True))
