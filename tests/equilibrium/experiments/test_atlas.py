"""The atlas: its systems are what they are said to be, and its command proves, compares and refuses."""

from __future__ import annotations

import json

import pytest
import torch

from contracting import NeuralFlow, largest_contracting_ball
from equilibrium import __main__ as cli
from equilibrium.experiments.atlas.study import densely_sampled
from equilibrium.experiments.atlas.systems import known_systems

F64 = torch.float64


def test_differences_of_three_oscillators_follow_their_phases() -> None:
    system = known_systems()["kuramoto"]()
    torch.manual_seed(0)
    phases, frequencies = 3 * torch.randn(20, 3, dtype=F64), torch.tensor([0.3, 0.0, -0.1], dtype=F64)
    speeds = frequencies + (phases[:, None, :] - phases[:, :, None]).sin().sum(-1) / 3
    value = system.flow(0.0, phases[:, :2] - phases[:, 1:])
    assert torch.allclose(value, speeds[:, :2] - speeds[:, 1:], atol=1e-12)


def test_logarithms_of_prey_and_predators_follow_their_numbers() -> None:
    system = known_systems()["lotka-volterra"]()
    numbers = 0.2 + torch.rand(20, 2, dtype=F64)
    prey, predators = numbers.unbind(-1)
    growth = torch.stack([prey * (1 - 0.5 * prey - 0.5 * predators), predators * (prey - 0.5 - 0.5 * predators)], -1)
    assert torch.allclose(system.flow(0.0, numbers.log()) * numbers, growth, atol=1e-12)


@pytest.mark.parametrize("name", ["van-der-pol", "fitzhugh-nagumo", "toggle-switch", "lotka-volterra", "kuramoto"])
def test_the_proved_ball_is_nearly_as_large_as_a_dense_sample_allows(name: str) -> None:
    system = known_systems()[name]()
    found = largest_contracting_ball(system.flow, torch.tensor(system.guess, dtype=F64))
    dense = densely_sampled(system, found, rays=360)
    assert 0.95 * dense <= found.radius <= dense
    assert found.certificate.invariant is not None and found.certificate.equilibrium is not None


def test_the_command_proves_and_draws(tmp_path, capsys) -> None:
    assert cli.main(["atlas", "--small", "--systems", "trained-spiral", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())["systems"]
    assert set(results) == {"trained-spiral"}
    for numbers in results.values():
        assert 0.8 <= numbers["ratio"] <= 1.0
        pairs = zip(numbers["certified_rates"], numbers["sampled_rates"], strict=True)
        assert all(0 < certified <= sampled for certified, sampled in pairs)
    assert "| Trained spiral |" in capsys.readouterr().out
    assert (tmp_path / "figures" / "atlas.png").exists()


@pytest.mark.parametrize("arguments", [["--systems", "pendulum"], ["--systems", ","], ["--threads", "0"]])
def test_bad_input_is_one_sentence(arguments, tmp_path, capsys) -> None:
    assert cli.main(["atlas", *arguments, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert arguments[0].strip("-") in line and list(tmp_path.iterdir()) == []


def test_the_spiral_is_the_same_every_time() -> None:
    first, second = (known_systems(small=True)["trained-spiral"]() for _ in range(2))
    s = torch.randn(5, 2, dtype=F64)
    assert isinstance(first.flow, NeuralFlow) and torch.equal(first.flow(0.0, s), second.flow(0.0, s))
