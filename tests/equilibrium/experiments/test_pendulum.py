"""The pendulum: what is sampled, that both models begin alike, what is counted, and the command."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from contracting import certify, simulate
from equilibrium import __main__ as cli
from equilibrium.experiments.pendulum import study
from equilibrium.experiments.pendulum.study import (
    EULER_NAME,
    INTEGRATORS,
    MODELS,
    PAIR_NAME,
    RK4_NAME,
    Counted,
    PendulumSettings,
    field_of,
    integrator_named,
    model_named,
    pendulum,
    swings,
)

SMALL = PendulumSettings(trajectories=3, samples=5, window=1.0, neurons=3, iterations=4, refinements=1)


def test_small_swings_turn_at_the_frequency_of_the_linear_pendulum() -> None:
    values = torch.linalg.eigvals(field_of_pendulum().jacobian(torch.zeros(1, 2, dtype=torch.float64)).detach())[0]
    assert torch.allclose(values.real, torch.tensor(-0.75, dtype=torch.float64))
    assert math.isclose(float(values.imag.max()), math.sqrt(9.81 / 0.5 - 0.75**2))


def field_of_pendulum() -> study.VectorField:
    return study.NeuralFlow(lambda t, s: pendulum(s))


def test_samples_are_irregular_and_noisy_and_other_ones_in_the_test() -> None:
    settings = PendulumSettings(trajectories=50, samples=40)
    data = swings(settings, part=0, end=4.0, regular=False)
    assert data.times[0] == 0 and float(data.times[-1]) <= 4 and float(data.times.diff().std()) > 0.02
    assert math.isclose(float((data.seen - data.true).std()), settings.noise, rel_tol=0.05)
    assert float(data.true[..., 0].abs().max()) < 1.0  # where the pendulum contracts
    assert not torch.equal(data.true[0], swings(settings, part=1, end=4.0, regular=False).true[0])


def test_both_models_begin_as_one_field_at_rest_at_zero() -> None:
    s = torch.randn(7, 2, dtype=torch.float64)
    one, other = (field_of(model_named(name, SMALL)) for name in MODELS)
    assert torch.allclose(one(0.0, s), other(0.0, s))
    assert torch.allclose(one(0.0, 0 * s), 0 * s)


@pytest.mark.parametrize(("name", "per_second"), [(EULER_NAME, 50), (RK4_NAME, 40)])
def test_evaluations_are_counted(name: str, per_second: int) -> None:
    field = Counted(field_of_pendulum())
    start = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    simulate(field, start, torch.tensor([0.0, 1.0]), integrator=integrator_named(name, SMALL))
    extra = field.count - per_second  # that simulate spends on seeing that rows are strangers
    again = Counted(field_of_pendulum())
    simulate(again, start, torch.tensor([0.0, 1.0]), integrator=integrator_named(name, SMALL, 2.0))
    assert again.count - 2 * per_second == extra and 0 <= extra <= 6
    finer = [integrator_named(PAIR_NAME, SMALL, f).rtol for f in (1.0, 2.0)]  # type: ignore[attr-defined]
    assert math.isclose(finer[0] / finer[1], 32)


def test_training_makes_the_error_smaller() -> None:
    model, data = model_named("contracting", SMALL), swings(SMALL, part=0, end=1.0, regular=False)
    integrator = integrator_named(RK4_NAME, SMALL)
    few = study.train(model, integrator, data, SMALL)
    again = study.train(model, integrator, data, SMALL)
    assert again < few and certify(field_of(model)).rate >= 0.05


def test_training_begins_with_the_first_samples_and_ends_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = model_named("unconstrained", SMALL), swings(SMALL, part=0, end=1.0, regular=False)
    asked: list[torch.Tensor] = []

    def watched(field: study.VectorField, start: torch.Tensor, times: torch.Tensor, **options: Any) -> Any:
        asked.append(times)
        return simulate(field, start, times, **options)

    monkeypatch.setattr(study, "simulate", watched)
    error = study.train(model, integrator_named(RK4_NAME, SMALL), data, SMALL)
    counts = [len(times) for times in asked]
    assert counts == sorted(counts) and set(counts) == {3, 4, 6}
    assert all(torch.equal(times, data.times[: len(times)]) for times in asked)
    ends = simulate(field_of(model), data.seen[0], data.times, integrator=integrator_named(RK4_NAME, SMALL)).states
    missed = (ends - data.seen)[1:].detach()
    assert math.isclose(error, float(missed.square().mean().sqrt()) / SMALL.noise, rel_tol=1e-9)


def test_the_command_is_continued_and_writes_table_numbers_and_figures(tmp_path, monkeypatch, capsys) -> None:
    arguments = ["pendulum", "--small", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    first = (tmp_path / "table.md").read_text()
    assert all(name in first for name in (*MODELS, *INTEGRATORS))
    found = json.loads((tmp_path / "results.json").read_text())["fits"]
    assert len(found) == 6 and all(fit["within"] > 0 and len(fit["curve"]) == 3 for fit in found)
    assert {fit["parameters"] for fit in found if fit["model"] == "unconstrained"} == {19}
    assert (tmp_path / "figures" / "pendulum.png").exists()
    monkeypatch.setattr(study, "fit", None)  # nothing is computed again
    assert cli.main(arguments) == 0
    assert (tmp_path / "table.md").read_text() == first
    assert cli.main([*arguments, "--seed", "1"]) == 2
    assert "seed" in capsys.readouterr().err
    assert cli.main([*arguments, "--integrators", "euler,leapfrog"]) == 2
    assert "--integrators" in capsys.readouterr().err
    assert cli.main([*arguments, "--integrators", "euler"]) == 0
    assert "RK4" not in (tmp_path / "table.md").read_text()
