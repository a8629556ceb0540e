"""The cost of contraction: what is promised is kept and measured, and the command writes it down."""

from __future__ import annotations

import json

import pytest
import torch

from contracting.certificates import CertificateError
from equilibrium import LBEN
from equilibrium import __main__ as cli
from equilibrium.experiments.contraction_cost.study import CostSettings, contraction_cost_of, cost_table, measure_layer
from equilibrium.training.data import digits, subset


@pytest.fixture(scope="module")
def data():
    return subset(digits(seed=0), train=128, test=64)


@pytest.fixture(scope="module")
def layers(data):
    torch.manual_seed(0)
    return contraction_cost_of(data, CostSettings(seeds=1, hidden=8, epochs=1))


def test_every_layer_keeps_what_it_promises_and_no_trajectory_is_slower(layers):
    assert [layer.contraction_rate for layer in layers] == [None, 0.2, 0.5]
    assert [layer.kept for layer in layers] == [None, True, True]
    for layer in layers:
        assert layer.lipschitz == pytest.approx(1, abs=1e-6)
        assert layer.explicit >= (layer.contraction_rate or -1)
        assert layer.explicit <= layer.certified + 1e-6 <= min(layer.bound, layer.sampled, layer.slowest) + 2e-6
        assert 0 <= layer.test_error <= 100


def test_a_layer_that_does_not_keep_its_rate_is_not_reported(data, monkeypatch):
    layer = LBEN(64, 6, 10, contraction_rate=0.5, lipschitz=1.0, dtype=torch.float64)
    real = layer.weights

    def spoilt():
        from dataclasses import replace

        return replace(real(), contraction_rate=1.5)

    monkeypatch.setattr(layer, "weights", spoilt)
    with pytest.raises(CertificateError):
        measure_layer(layer, data, seed=0, test_error=0.0)


def test_table_has_a_row_per_rate(layers):
    lines = cost_table([*layers, *layers]).splitlines()
    assert len(lines) == 5 and lines[2].startswith("| none |") and "±" in lines[3] and lines[4].startswith("| 0.5 |")


def test_command_writes_everything(tmp_path, capsys):
    arguments = ["--small", "--rates", "none,0.5", "--seeds", "1", "--hidden", "6"]
    assert cli.main(["contraction-cost", *arguments, "--out", str(tmp_path / "a")]) == 0
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert [layer["contraction_rate"] for layer in results["layers"]] == [None, 0.5]
    assert (tmp_path / "a" / "table.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "a" / "figures" / "contraction-cost.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("option", "value"),
    [("rates", "fast"), ("rates", ","), ("rates", "0.2,0.2"), ("rates", "1"), ("seeds", "0"), ("lipschitz", "0")],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(option, value, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["contraction-cost", f"--{option}", value, "--out", str(out)]) == 2
    assert option in capsys.readouterr().err and not out.exists()
