"""Every demo runs from the command line in its small version."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DEMOS = sorted((ROOT / "demos").glob("*.py"))
# every solver runs in tests/equilibrium/test_cli.py; here a few will do
ALSO = {
    "compare_solvers": ["--solvers", "PeacemanRachford,SemismoothNewton,DormandPrince,torchdiffeq-rk4"],
    "contraction_cost": ["--seeds", "1", "--hidden", "8"],
    "convolution": ["--models", "lben", "--jobs", "1"],  # all of them: tests/equilibrium/test_convolution_study.py
}


def run(demo, folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    return subprocess.run(
        [sys.executable, str(demo), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


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
        for key in ("certified", "quadratic"):
            assert record[key] == pytest.approx(1 - record["gain"] / 2, abs=1e-3)
        assert record["certified"] <= record["bound"] and record["measured"] >= -record["bound"] - 0.01
        assert 0 < record["forward_certified"] <= record["forward_measured"]
    assert results["gains"][-1]["gain"] == 10 and results["gains"][-1]["measured"] == pytest.approx(2.314, rel=0.01)


def phase_portrait(results, out):
    assert 0.1 < results["fills"] <= 1 and results["drawn"] > 0
    with Image.open(out / "figures" / "phase-portrait.gif") as film:
        assert film.n_frames == 6


def tracking(results, _):
    ratios = {record["flow"]: record["error"] / record["bound"] for record in results["tracking"]}
    assert ratios.pop("one linear unit") == pytest.approx(1, abs=1e-4)  # the bound can be attained
    assert len(ratios) == 3 and all(0.05 < ratio < 1 for ratio in ratios.values())


CLAIMS = {
    "contraction_rates": contraction_rates,
    "counterexample": counterexample,
    "phase_portrait": phase_portrait,
    "tracking": tracking,
}


@pytest.mark.parametrize(
    "demo", [pytest.param(d, id=d.stem, marks=[pytest.mark.slow] if d.stem in CLAIMS else []) for d in DEMOS]
)
def test_small_version_runs(demo, tmp_path):
    done = run(demo, tmp_path, "--small", *ALSO.get(demo.stem, []))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    if demo.stem == "compare_solvers":
        assert (tmp_path / "out" / "results.json").is_file() and (tmp_path / "out" / "figures").is_dir()
        assert "PeacemanRachford" in done.stdout and "test error" in done.stdout
    if demo.stem in CLAIMS:
        out = tmp_path / "out"
        assert {"results.json", "table.txt", "figures"} == {path.name for path in out.iterdir()}
        assert (out / "table.txt").read_text().strip() in done.stdout
        assert all(path.stat().st_size for path in (out / "figures").iterdir())
        CLAIMS[demo.stem](json.loads((out / "results.json").read_text()), out)
    if demo.stem == "ode_layer":
        differences = re.findall(r"differ by at most (\S+)", done.stdout)
        assert len(differences) == 2 and all(float(value) < 1e-8 for value in differences)
