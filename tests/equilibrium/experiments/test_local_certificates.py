"""The study of local certificates: it proves more than global constants, less than an attack leaves, and resumes."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest

from equilibrium import __main__ as cli
from equilibrium import from_sequential, train
from equilibrium.experiments.local_certificates import study
from equilibrium.experiments.local_certificates.study import trained_before
from equilibrium.experiments.robustness.models import Images, load_images, new_model, trained_model
from equilibrium.experiments.robustness.study import Plan, catalogue
from equilibrium.files import plain, write_json


def test_local_constants_prove_more_and_no_attack_gets_inside(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["local-certificates", "--small", "--count", "30", "--radii", "0.3,1", "--jobs", "1"]
    arguments += ["--targeted", "20", "--restarts", "1"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    networks = json.loads((tmp_path / "results.json").read_text())["networks"]
    assert len(networks) == 2
    for found in networks.values():
        for whole, local, attacked in zip(found["by_global"], found["by_local"], found["attacked"], strict=True):
            assert whole <= local <= attacked <= found["accuracy"]
        assert found["inside"] == 0 and found["images"] == 30
        targeted, certified = found["targeted"], round(0.3 * found["by_local"][0])
        assert targeted == {"images": certified, "pairs": 9 * certified, "flipped": 0, "below": 0} and certified > 10
    assert any(max(found["by_local"]) > max(found["by_global"]) for found in networks.values())
    assert (tmp_path / "figures" / "local-certificates.png").exists()
    before = (tmp_path / "results.json").read_bytes()
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0  # everything is found again
    assert (tmp_path / "results.json").read_bytes() == before
    capsys.readouterr()


@pytest.fixture(scope="module")
def perceptron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model as mnist-robustness writes it, after one pass over the digits."""
    settings = catalogue(Plan(images=Images.DIGITS, epochs=1, seed=0, small=True, models=("perceptron",)))["perceptron"]
    folder, dataset = tmp_path_factory.mktemp("models") / "perceptron", load_images(Images.DIGITS, None)
    folder.mkdir()
    write_json(folder / "settings.json", plain(settings))
    train(new_model(settings, dataset), dataset, epochs=1, batch_size=64, checkpoint=folder / "training.pt")
    return folder


def test_a_model_of_mnist_robustness_is_read_from_its_folder(perceptron: Path, tmp_path: Path) -> None:
    arguments = ["local-certificates", "--networks", str(perceptron), "--count", "20", "--radii", "0.3", "--jobs", "1"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    (found,) = json.loads((tmp_path / "results.json").read_text())["networks"].values()
    dataset = load_images(Images.DIGITS, None)
    model = trained_model(perceptron, dataset)
    right = model(dataset.test_inputs[:20]).argmax(-1) == dataset.test_labels[:20]
    assert found["accuracy"] == 100 * right.double().mean() and found["targeted"] is None
    assert found["by_global"][0] <= found["by_local"][0] <= found["attacked"][0]


def test_claims_that_do_not_hold_are_found_by_the_targeted_attack(perceptron: Path) -> None:
    dataset = load_images(Images.DIGITS, None)
    settings = replace(trained_before(perceptron, (1e-4, 4.0), 10), targeted=20, restarts=1)
    model = trained_model(perceptron, dataset)
    layer = from_sequential(copy.deepcopy(model).double())  # type: ignore[arg-type]
    inputs, bounds = dataset.test_inputs.double(), (float(dataset.test_inputs.min()), float(dataset.test_inputs.max()))
    labels = layer(inputs[:10]).argmax(-1)
    for proved, lead, broken in (([True, False], None, False), ([True, True], None, True), ([True, False], 5.0, True)):
        claims = {"proved": [proved] * 10, "leads": [[[lead] * 10] * 2] * 10}
        found = study.attacked_within(model, layer, inputs[:10], labels, claims, bounds, settings)
        assert found["pairs"].tolist() == [9] * 10
        assert bool(found["below"].any()) is broken and bool(found["flipped"].any()) is (broken and lead is None)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "--checkpoints"),
        (["--small", "--networks", "lben_w80"], "--small"),
        (["--checkpoints", ".", "--networks", "nobody"], "--networks"),
        (["--networks", "."], "settings.json"),
        (["--small", "--targeted", "5"], "--targeted"),
        (["--small", "--radii", "0"], "--radii"),
        (["--small", "--count", "0"], "--count"),
    ],
)
def test_bad_options_are_named(arguments: list[str], name: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert cli.main(["local-certificates", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert name in capsys.readouterr().err
