"""The experiment on networks on images: complete results, resumed exactly, CIFAR-10 by the same command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from equilibrium import CrossEntropy, SteepCrossEntropy
from equilibrium import __main__ as cli
from equilibrium.convolution import LBENConv2d, MetricShape
from equilibrium.experiments.robustness.figures import plot_tightness
from equilibrium.experiments.robustness.models import Images, Kind, load_images, new_model, training_loss
from equilibrium.experiments.robustness.study import Plan, catalogue

MODELS = ("contracting", "lipschitz-1", "lipschitz-1-steep", "lben-full", "lben", "mondeq")
SMALL = Plan(images=Images.DIGITS, epochs=1, seed=0, small=True, convolutional=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert cli.main(["convolution", "--small", "--jobs", "1", "--out", str(out)]) == 0
    return out


@pytest.mark.slow
def test_results_figures_and_table_are_complete(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "figures", "models", "results.json", "table.txt", "timings.json"
    }  # fmt: skip
    names = {path.name for path in (finished / "figures").iterdir()}
    assert names == {
        "certified-and-attained.png", "error-under-attack.png", "convergence.png", "equilibrium.png", "relaxation.gif",
    }  # fmt: skip
    with Image.open(finished / "figures" / "relaxation.gif") as film:
        assert film.n_frames > 3
    lines = (finished / "table.txt").read_text().splitlines()
    assert all(sum(line.startswith(name + " ") for line in lines) == 1 for name in MODELS)


@pytest.mark.slow
def test_certificates_hold_and_bracket_what_is_attained(finished: Path) -> None:
    models = json.loads((finished / "results.json").read_text())["models"]
    assert set(models) == set(MODELS)
    for model in models.values():
        lipschitz, robustness = model["lipschitz"], model["robustness"]
        assert 0.1 < lipschitz["attained"] / lipschitz["certified"] <= 1
        assert robustness["inside"] == 0 and robustness["images"] == 50
        under_attack, certified = robustness["attacked_accuracy"], robustness["certified_accuracy"]
        assert all(seen >= proved - 1e-9 for seen, proved in zip(under_attack[1:], certified[1:], strict=True))
        assert certified[0] == pytest.approx(100 - model["test_error"])
    assert models["lipschitz-1"]["lipschitz"]["certified"] <= 1


@pytest.mark.slow
def test_the_figure_names_the_constant_and_the_rate_of_the_network_it_shows(finished: Path) -> None:
    models = json.loads((finished / "results.json").read_text())["models"]
    _, axes = plt.subplots()
    labels = {str(line.get_label()) for line in plot_tightness(models, axes).lines}
    assert " to " in axes.get_title(loc="left")
    _, alone = plt.subplots()
    assert " to " not in plot_tightness({"lben": models["lben"]}, alone).get_title(loc="left")
    plt.close("all")
    assert "γ = 10, c = 0.2" in labels


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_results(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished / "results.json").read_text()
    training = (finished / "models" / "lben" / "training.pt").stat().st_mtime_ns
    (finished / "models" / "lben" / "result.step.json").unlink()  # as if it had been killed before the end
    assert cli.main(["convolution", "--small", "--jobs", "1", "--out", str(finished)]) == 0
    assert (finished / "results.json").read_text() == before
    assert (finished / "models" / "lben" / "training.pt").stat().st_mtime_ns == training
    assert cli.main(["convolution", "--small", "--epochs", "3", "--out", str(finished)]) == 2
    assert "was begun with other settings" in capsys.readouterr().err


def test_an_unknown_model_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convolution", "--models", "contractin", "--mnist", str(tmp_path / "none"), "--out", str(tmp_path)]
    assert cli.main(arguments) == 2 and "contractin" in capsys.readouterr().err


def test_the_models_are_networks_on_images_of_the_kinds_asked_for() -> None:
    images = load_images(Images.DIGITS, None)
    models = {name: new_model(settings, images) for name, settings in catalogue(SMALL).items()}
    assert all(isinstance(model, LBENConv2d) for model in models.values())
    assert models["lipschitz-1"].parameterization.lipschitz == 1.0  # type: ignore[union-attr]
    assert models["mondeq"].parameterization.metric is MetricShape.IDENTITY  # type: ignore[union-attr]
    assert models["lben"].parameterization.metric is MetricShape.CHANNEL  # type: ignore[union-attr]
    assert models["lben-full"].parameterization.metric is MetricShape.FULL  # type: ignore[union-attr]
    again = new_model(catalogue(SMALL)["lben"], images)
    assert all(torch.equal(a, b) for a, b in zip(models["lben"].parameters(), again.parameters(), strict=True))
    full = catalogue(replace(SMALL, images=Images.MNIST, small=False))
    assert full["lipschitz-1"].lipschitz == 1.0 and full["mondeq"].kind is Kind.MONDEQ
    assert training_loss(full["lipschitz-1-steep"]) == SteepCrossEntropy(gain=0.88, temperature=0.3)
    assert training_loss(full["lipschitz-1"]) == CrossEntropy(temperature=0.3)


@pytest.mark.slow
def test_cifar_by_the_same_command(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    folder = tmp_path / "files"
    folder.mkdir()
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records = generator.integers(0, 256, (4, 1 + 3 * 32 * 32), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    out = tmp_path / "out"
    arguments = ["convolution", "--cifar", str(folder), "--models", "lben", "--epochs", "1", "--jobs", "1"]
    assert cli.main([*arguments, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["models"]["lben"]["settings"]["images"] == "CIFAR10"
    assert results["models"]["lben"]["robustness"]["images"] == 4


def test_images_are_chosen_once_and_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--small", "--cifar", str(tmp_path)], "give one of them"),
        (["--cifar", str(tmp_path / "nowhere")], "cannot be read"),
        (["--small", "--models", "resnet"], "unknown name 'resnet'"),
    ):
        assert cli.main(["convolution", *arguments, "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
