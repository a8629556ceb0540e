"""Every demo runs as it is, draws its figure, and shows what its headline says."""

from __future__ import annotations

import ast
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

DEMOS = sorted((Path(__file__).resolve().parents[1] / "demos").glob("*.py"))
LINES = 60


def compare_solvers(seen: dict[str, Any]) -> None:
    assert len(seen["work"]) >= 25 and set(seen["colours"].values()) == set(seen["families"].values())
    assert seen["worst"] < 1e-5


def contracting_ode(seen: dict[str, Any]) -> None:
    assert seen["best"].rate > seen["promised"].rate == 0.5 and seen["gain"].gain == 2
    assert 0.3 < seen["slowest"] <= 1 + 1e-9 and seen["difference"] < 1e-9


def control_loop(seen: dict[str, Any]) -> None:
    assert 0.3 < seen["ratio"] <= 1
    worst = {name: float(run[10:, 1].max()) for name, run in seen["runs"].items()}
    assert 5 * worst["warm"] < min(worst["warm, Euler"], worst["cold"])


def convergence(seen: dict[str, Any]) -> None:
    assert all(0.3 < excess <= 1 + 1e-6 for excess in seen["excess"].values())


def counterexample(seen: dict[str, Any]) -> None:
    assert seen["monotonicity"] == pytest.approx(1) and seen["rates"].quadratic.rate == pytest.approx(-4, abs=1e-3)
    assert seen["growth"] == pytest.approx(2.3137, abs=0.01)
    assert seen["rates"].best.rate <= seen["rates"].bound.rate <= -seen["growth"] + 0.01


def energy(seen: dict[str, Any]) -> None:
    assert 0 < seen["worst"] <= 1 and bool((seen["iteration_gap"].diff() <= 1e-12).all())


def firing_rate_network(seen: dict[str, Any]) -> None:
    assert 0 < seen["certificate"].rate <= seen["rates"].bound.rate and seen["slowest"] <= 1


def lipschitz_training(seen: dict[str, Any]) -> None:
    for gamma, certified, attained in zip(seen["bounds"], seen["certified"], seen["attained"], strict=True):
        assert 0.9 * certified < attained <= certified <= gamma
    assert max(seen["errors"]) < 15


def moving_digit(seen: dict[str, Any]) -> None:
    assert 0.3 < seen["ratio"] <= 1
    warm, integrator, cold = (float(error.max()) for error in seen["errors"])
    assert 3 * warm < integrator < cold


def ode_layer(seen: dict[str, Any]) -> None:
    pairs = zip(seen["residuals"], seen["differences"], strict=True)
    assert all(difference < 10 * residual for residual, difference in pairs)


def one_image(seen: dict[str, Any]) -> None:
    assert 0 < seen["by_global"] < seen["by_local"] <= seen["complete"] < seen["fooled"] < 1.02 * seen["complete"]
    assert seen["other"] != int(seen["label"]) and 0 < len(seen["undecided"]) < 20
    layer, image, ends = seen["layer"], seen["image"], (seen["low"], seen["high"])
    to_attack = torch.nn.functional.normalize(seen["attack"].inputs - image)
    ways = torch.randn(500, image.shape[1], generator=torch.Generator().manual_seed(0), dtype=image.dtype)
    ball = torch.cat([torch.nn.functional.normalize(ways), to_attack])
    ball = (image + seen["complete"] * ball).clamp(*seen["bounds"])
    v = layer.problem(ball).preactivation(layer.equilibrium(ball))
    assert bool(((v >= ends[0]) & (v <= ends[1])).all())
    changed = ((v > 0) != (seen["v"] > 0)).any(0)
    assert set(torch.nonzero(changed).flatten().tolist()) <= set(seen["undecided"]) and bool(changed.any())


def own_neural_ode(seen: dict[str, Any]) -> None:
    assert 0.3 < seen["certificate"].rate <= seen["rates"].bound.rate and 0.2 < seen["kept"] <= 1
    assert float(seen["still"](0.0, seen["rest"]).norm()) < 1e-6


def own_weights(seen: dict[str, Any]) -> None:
    assert seen["found"].monotonicity > 0 and float(seen["solution"].error_bound.max()) < 1e-5
    ratios = seen["change"] / seen["steps"][:, 0]
    assert 0.1 * seen["bound"] < float(ratios.max()) <= seen["bound"]


def phase_portrait(seen: dict[str, Any]) -> None:
    assert seen["certificate"].rate > 0.3 and 0.1 < seen["fills"] <= 1


def tracking(seen: dict[str, Any]) -> None:
    assert seen["certificate"].rate >= 0.4 and seen["ratio"] <= 1 + 1e-9


CLAIMS: dict[str, Callable[[dict[str, Any]], None]] = {
    check.__name__: check
    for check in (
        compare_solvers, contracting_ode, control_loop, convergence, counterexample, energy, firing_rate_network,
        lipschitz_training, moving_digit, ode_layer, one_image, own_neural_ode, own_weights, phase_portrait, tracking,
    )
}  # fmt: skip


def test_every_demo_has_a_claim() -> None:
    assert len(DEMOS) >= 10 and {demo.stem for demo in DEMOS} == set(CLAIMS)


@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.stem)
def test_a_demo_is_short_and_begins_with_its_headline(demo: Path) -> None:
    text = demo.read_text()
    assert len(text.splitlines()) <= LINES and ast.get_docstring(ast.parse(text))


@pytest.mark.slow
@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.stem)
def test_a_demo_shows_what_it_says(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        seen = runpy.run_path(str(demo), run_name="__main__")
    assert capsys.readouterr().out.strip()
    CLAIMS[demo.stem](seen)
    (figure,) = (tmp_path / "out").iterdir()
    with Image.open(figure) as picture:
        assert picture.width >= 900 and len(picture.convert("L").getcolors() or ()) > 10
