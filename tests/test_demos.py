"""Every demo runs from the command line in its small version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMOS = sorted((ROOT / "demos").glob("*.py"))
# every solver runs in tests/equilibrium/test_cli.py; here a few will do
ALSO = {
    "compare_solvers": ["--solvers", "PeacemanRachford,SemismoothNewton,DormandPrince,torchdiffeq-rk4"],
    "contraction_cost": ["--seeds", "1", "--hidden", "8"],
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


@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.stem)
def test_small_version_runs(demo, tmp_path):
    done = run(demo, tmp_path, "--small", *ALSO.get(demo.stem, []))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    if demo.stem == "compare_solvers":
        assert (tmp_path / "out" / "results.json").is_file() and (tmp_path / "out" / "figures").is_dir()
        assert "PeacemanRachford" in done.stdout and "test error" in done.stdout
    if demo.stem == "ode_layer":
        differences = re.findall(r"differ by at most (\S+)", done.stdout)
        assert len(differences) == 2 and all(float(value) < 1e-8 for value in differences)
