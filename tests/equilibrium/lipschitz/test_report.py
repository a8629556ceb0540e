"""The report as a command: both bounds, the data that proves them, and what a changed claim is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from equilibrium import LBEN, EquilibriumLayer, LBENConv2d
from equilibrium.__main__ import main
from equilibrium.lipschitz import PairAscent, lipschitz_report, pairwise_lipschitz, verify_report


def test_a_checkpoint_is_reported_and_its_claims_verified(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = shared_data / "lben-checkpoints" / "fc_lip0.3_w80.pt"
    results = tmp_path / "results.json"
    assert main(["lipschitz-report", "--checkpoint", str(checkpoint), "--out", str(tmp_path), "--small"]) == 0
    printed = capsys.readouterr().out
    (entry,) = json.loads(results.read_text())["networks"]
    assert entry["name"] == "fc_lip0.3_w80" and entry["gamma"] == 0.3
    assert entry["reported"] == pytest.approx(0.28249, rel=1e-4)
    assert entry["reported"] <= entry["attained"] <= entry["certified"] <= 0.3
    assert len(entry["pair"]["first"]) == len(entry["pair"]["second"]) == 784
    assert f"{entry['certified']:.5g}" in printed and (tmp_path / "table.md").read_text() in printed

    verify = ["lipschitz-report", "--checkpoint", str(checkpoint), "--verify", str(results)]
    assert main(verify) == 0
    assert "verified 0.2" in capsys.readouterr().out
    for key, factor in (("certified", 0.999), ("attained", 1.001)):
        claim = json.loads(results.read_text())
        claim["networks"][0][key] *= factor
        changed = tmp_path / f"{key}.json"
        changed.write_text(json.dumps(claim))
        assert main([*verify[:-1], str(changed)]) == 2
        assert "fc_lip0.3_w80" in capsys.readouterr().err
    for damage in ('{"networks": [', "[]", '{"networks": [{"name": "fc_lip0.3_w80"}]}'):
        changed.write_text(damage)
        assert main([*verify[:-1], str(changed)]) == 2
        assert "attained.json' is damaged" in capsys.readouterr().err
    claim = json.loads(results.read_text())
    claim["networks"][0]["name"] = "another"
    results.write_text(json.dumps(claim))
    assert main(verify) == 2


@pytest.mark.slow
def test_every_search_and_a_trained_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["lipschitz-report", "--small", "--thorough", "--lipschitz", "0.5", "--out", str(tmp_path)]
    assert main(arguments) == 0
    (entry,) = json.loads((tmp_path / "results.json").read_text())["networks"]
    assert 0 < entry["attained"] <= entry["certified"] <= 0.5 and entry["reported"] is None


def test_bad_arguments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none.pt")
    for arguments, message in (
        (["--checkpoint", missing], "no checkpoint file"),
        (["--checkpoint", str(tmp_path)], "no checkpoint"),
        (["--verify", missing], "--checkpoint"),
        (["--seed", "-1"], "--seed"),
    ):
        assert main(["lipschitz-report", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("images", [False, True])
def test_constants_are_found_in_whatever_mode_a_model_is_evaluated(
    mode: type[torch.no_grad] | type[torch.inference_mode], images: bool
) -> None:
    torch.manual_seed(0)
    layer: EquilibriumLayer = LBEN(3, 4, 2, lipschitz=1.0, dtype=torch.float64)
    if images:
        layer = LBENConv2d(1, 2, 2, image=(4, 4), lipschitz=1.0, dtype=torch.float64)
    found = []
    for context in (torch.enable_grad, mode):
        with context():
            report = lipschitz_report(layer, searches=[PairAscent(steps=2)], starts=1)
            assert verify_report(layer, report) > 0
            found.append((report.certified, report.attained, pairwise_lipschitz(layer).certificates[0].bound))
    assert found[0] == found[1]
