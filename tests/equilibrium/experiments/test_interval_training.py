"""The study of boxes of pixels: the interval loss makes boxes prove more, nothing proved is fooled, and it resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equilibrium import __main__ as cli


def test_nothing_proved_is_fooled_and_it_resumes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["interval-training", "--small", "--neurons", "6", "--radii", "0.05", "--count", "10", "--jobs", "1"]
    assert cli.main([*arguments, "--epochs", "2", "--out", str(tmp_path)]) == 0
    networks = json.loads((tmp_path / "results.json").read_text())["networks"]
    assert [found["settings"]["loss"] for found in networks.values()] == ["cross-entropy", "interval-margin"]
    for found in networks.values():
        assert found["inside"] == [0] and found["proved"][0] <= found["attacked_of_these"][0]
        assert (found["by_boxes"][0] or 0) <= found["accuracy"] + 1e-9
    usual, trained = networks.values()
    assert trained["by_boxes"][0] > 0 and usual["by_boxes"][0] in (None, pytest.approx(0, abs=trained["by_boxes"][0]))
    assert (tmp_path / "figures" / "interval-training.png").exists()
    before = (tmp_path / "results.json").read_bytes()
    assert cli.main([*arguments, "--epochs", "2", "--out", str(tmp_path)]) == 0  # everything is found again
    assert (tmp_path / "results.json").read_bytes() == before
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--small", "--data-dir", "."], "--data-dir"),
        (["--small", "--losses", "hinge"], "--losses"),
        (["--small", "--neurons", "ten"], "--neurons"),
        (["--small", "--radii", "2"], "--radii"),
        (["--small", "--epochs", "0"], "--epochs"),
        (["--small", "--count", "0"], "--count"),
        (["--small", "--local", "0"], "--local"),
    ],
)
def test_bad_options_are_named(arguments: list[str], name: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert cli.main(["interval-training", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert name in capsys.readouterr().err
