"""The study of local certificates: it proves more than global constants, less than an attack leaves, and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equilibrium import __main__ as cli


def test_local_constants_prove_more_and_no_attack_gets_inside(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["local-certificates", "--small", "--count", "30", "--radii", "0.3,1", "--jobs", "1"]
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0
    networks = json.loads((tmp_path / "results.json").read_text())["networks"]
    assert len(networks) == 2
    for found in networks.values():
        for plain, local, attacked in zip(found["by_global"], found["by_local"], found["attacked"], strict=True):
            assert plain <= local <= attacked <= found["accuracy"]
        assert found["inside"] == 0 and found["images"] == 30
    assert any(max(found["by_local"]) > max(found["by_global"]) for found in networks.values())
    assert (tmp_path / "figures" / "local-certificates.png").exists()
    before = (tmp_path / "results.json").read_bytes()
    assert cli.main([*arguments, "--out", str(tmp_path)]) == 0  # everything is found again
    assert (tmp_path / "results.json").read_bytes() == before
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "--checkpoints"),
        (["--small", "--networks", "lben_w80"], "--small"),
        (["--checkpoints", ".", "--networks", "nobody"], "--networks"),
        (["--small", "--radii", "0"], "--radii"),
        (["--small", "--count", "0"], "--count"),
    ],
)
def test_bad_options_are_named(arguments: list[str], name: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert cli.main(["local-certificates", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert name in capsys.readouterr().err
