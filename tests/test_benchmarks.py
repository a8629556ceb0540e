"""Every benchmark runs from the command line in its small version, and prints what it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / script), "--small", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_certificate_scaling(tmp_path: Path) -> None:
    rows = [line.split() for line in run("certificate_scaling.py", tmp_path).splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [10, 40]
    assert all(float(row[6]) > 0 for row in rows)  # the checker's margin


@pytest.mark.slow
def test_lipschitz_bounds(tmp_path: Path) -> None:
    pytest.importorskip("clarabel")
    printed = run("lipschitz_bounds.py", tmp_path, "--out", str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["comparison"]) == 4
    for row in results["comparison"]:
        assert -1e-3 < row["gap_percent"] < 0.1
        assert abs(row["interior"] / row["program"] - 1) < 1e-5
    assert results["random"]["above"] == 0 and results["random"]["worst_ratio"] <= 1
    assert (tmp_path / "table.md").read_text() in printed
