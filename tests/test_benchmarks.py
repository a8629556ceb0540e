"""The benchmark of the Lipschitz bounds in its small version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_lipschitz_bounds_small(tmp_path: Path) -> None:
    pytest.importorskip("clarabel")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "lipschitz_bounds.py"), "--small", "--out", str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["comparison"]) == 4
    for row in results["comparison"]:
        assert -1e-3 < row["gap_percent"] < 0.1
        assert abs(row["interior"] / row["program"] - 1) < 1e-5
    assert results["random"]["above"] == 0 and results["random"]["worst_ratio"] <= 1
    assert (tmp_path / "table.md").read_text() in done.stdout
