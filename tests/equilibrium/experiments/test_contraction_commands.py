"""The commands about contraction: refused in one sentence before any work, and right in what they claim."""

from __future__ import annotations

import json

import pytest
from matplotlib import animation
from PIL import Image

from equilibrium import __main__ as cli
from equilibrium.experiments.catalogue import COMMANDS
from equilibrium.experiments.publishing import on_axes, write_figures
from equilibrium.experiments.tables import Column, aligned, markdown

BAD = {
    "counterexample": [
        ["--gains", "1,many"], ["--gains", ","], ["--gains", "-1"], ["--gains", "1,1"], ["--threads", "0"],
    ],
    "tracking": [["--frequencies", "fast"], ["--frequencies", "0"], ["--rate", "1"], ["--hidden", "0"]],
    "phase-portrait": [["--film", "avi"], ["--threads", "0"]],
    "contraction-rates": [["--hidden", "0"], ["--rate", "1.5"], ["--checkpoint", "none.pt"], ["--epochs", "0"]],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(name, tmp_path, capsys):
    assert name in COMMANDS
    for arguments in BAD[name]:
        assert cli.main([name, *arguments, "--small", "--out", str(tmp_path / "deep" / "out")]) == 2, arguments
        captured = capsys.readouterr()
        (line,) = captured.err.splitlines()
        assert captured.out == "" and arguments[0].strip("-") in line.replace("contraction_rate", "rate"), line
        assert list(tmp_path.iterdir()) == []


def test_a_film_without_ffmpeg_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(animation.writers, "is_available", lambda name: False)
    assert cli.main(["phase-portrait", "--film", "mp4", "--out", str(tmp_path / "out")]) == 2
    assert "ffmpeg" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def contraction_rates(results, _):
    rates = {record["flow"].split(",")[0]: record for record in results["rates"]}
    assert {"firing rate", "Hopfield", "forward–backward", "Peaceman–Rachford", "inclusion"} == set(rates)
    for record in rates.values():
        others = [record[key] for key in ("seen", "sampled", "bound") if record[key] is not None]
        assert all(record["certified"] <= other + 1e-6 for other in others), record
    assert rates["firing rate"]["certified"] >= 0.2 and rates["Hopfield"]["certified"] >= 0.2  # what was built in


def counterexample(results, _):
    for record in results["gains"]:
        assert record["monotonicity"] == pytest.approx(1, abs=1e-6)  # Condition 1
        assert record["quadratic"] == pytest.approx(1 - record["gain"] / 2, abs=1e-3)
        assert record["quadratic"] + 0.05 < record["certified"] <= record["bound"]
        assert record["measured"] >= -record["bound"] - 0.01
        assert 0 < record["forward_certified"] <= record["forward_measured"]


def phase_portrait(results, out):
    assert 0.1 < results["fills"] <= 1 and results["drawn"] > 0
    with Image.open(out / "figures" / "phase-portrait.gif") as film:
        assert film.n_frames == 6


def tracking(results, _):
    ratios = {record["flow"]: record["error"] / record["bound"] for record in results["tracking"]}
    assert ratios.pop("one linear unit") == pytest.approx(1, abs=1e-4)  # the bound can be attained
    assert len(ratios) == 3 and all(0.05 < ratio < 1 for ratio in ratios.values())


@pytest.mark.slow
@pytest.mark.parametrize("claim", [contraction_rates, counterexample, phase_portrait, tracking])
def test_the_small_version_writes_what_it_claims(claim, tmp_path, capsys):
    assert cli.main([claim.__name__.replace("_", "-"), "--small", "--out", str(tmp_path / "out")]) == 0
    out, captured = tmp_path / "out", capsys.readouterr()
    assert captured.err == "" and {"results.json", "table.txt", "figures"} == {path.name for path in out.iterdir()}
    assert (out / "table.txt").read_text().strip() in captured.out
    assert all(path.stat().st_size for path in (out / "figures").iterdir())
    claim(json.loads((out / "results.json").read_text()), out)


@pytest.mark.slow
def test_the_counterexample_for_every_gain(tmp_path):
    """The best quadratic metric gives 1 − k/2, a norm of degree 4 more, and a pair diverges as the closed form says."""
    assert cli.main(["counterexample", "--out", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "results.json").read_text())["gains"]
    assert [record["gain"] for record in records] == [1, 1.9, 2.01, 4, 10]
    for record in records:
        assert record["quadratic"] == pytest.approx(1 - record["gain"] / 2, abs=1e-3)
        assert record["quadratic"] + 0.05 < record["certified"] < record["bound"]
        assert record["measured"] == pytest.approx(record["exponent"], rel=0.01)
    assert records[-1]["measured"] == pytest.approx(2.314, rel=0.01)
    assert len(list((tmp_path / "figures").iterdir())) == 4


def test_figures_of_an_earlier_run_go_where_they_have_no_successor(tmp_path):
    def plot(axes):
        axes.plot([0, 1], [0, 1])
        return axes

    draw = on_axes(plot, heights=(0.5, 2.0))
    assert [draw(width).get_size_inches().tolist() for width in (6.8, 3.4)] == [[6.8, 3.4], [3.4, 6.8]]
    names = [path.name for path in write_figures(tmp_path, {"line": draw}, small=False)]
    assert names == ["line.png", "line-half-width.png"]
    assert [path.name for path in write_figures(tmp_path, {"line": draw}, small=True)] == ["line.png"]
    (tmp_path / "figures" / "mine.png").touch()
    assert [path.name for path in sorted((tmp_path / "figures").iterdir())] == ["line.png", "mine.png"]
    assert write_figures(tmp_path, {"line": None}, small=True) == []
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["mine.png"]


def test_tables_are_aligned():
    columns = (Column("a", lambda row: row[0]), Column("bb", lambda row: row[1], ".3g"))
    rows = [("long", 1.0), ("x", -22.123), (None, None)]
    lines = ["a        bb", "-----------", "long      1", "x     -22.1", "–         –"]
    assert aligned(columns, rows).splitlines() == lines
    assert markdown(columns, rows[1:]).splitlines() == ["| a | bb |", "| --- | --- |", "| x | -22.1 |", "| – | – |"]
    assert Column("real").cell(2.0) == "2.0000"
