"""What appears in a notebook: figures without a call to show them, bars of progress, and short outputs."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import matplotlib
import nbclient
import nbformat
import pytest
from matplotlib import pyplot

from contracting.plots import new_axes

CELLS = (
    """
import torch
from contracting import Dense, EquilibriumProblem, FiringRate, SemismoothNewton, Tanh, certify, solve
from contracting.plots import plot_phase_portrait
W = torch.tensor([[-0.3, 1.2], [-1.5, 0.1]], dtype=torch.float64)
problem = EquilibriumProblem(linear=Dense(W), q=torch.tensor([[0.3, 0.5]]).double(), activation=Tanh())
solve(problem, SemismoothNewton())
""",
    "certify(FiringRate().bind(problem))",
    """
axes = plot_phase_portrait(FiringRate().bind(problem), x=(-1, 1), y=(-1, 1), names=("voltage", "recovery"))
""",
    """
from equilibrium.training.progress import progress_bar
with progress_bar(3, "training", show=True) as bar:
    bar.update(3)
""",
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What each cell leaves, by a kernel of its own."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    kernel = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.delenv("MPLBACKEND", raising=False)
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        nbclient.NotebookClient(notebook, timeout=120, resources=kernel).execute()
    return [cell["outputs"] for cell in notebook.cells]


def _data(found: list[Any], kind: str) -> str:
    (text,) = (output["data"][kind] for output in found if kind in output.get("data", {}))
    return str(text)


def test_records_are_tables(outputs: list[list[Any]]) -> None:
    for found, name in ((outputs[0], "Solution"), (outputs[1], "Certificate")):
        assert name in _data(found, "text/html") and len(_data(found, "text/html")) < 2000
        assert _data(found, "text/plain").startswith(name) and len(_data(found, "text/plain")) < 400


def test_figures_appear_by_themselves(outputs: list[list[Any]]) -> None:
    picture = base64.b64decode(_data(outputs[2], "image/png"))
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_bars_of_progress_appear(outputs: list[list[Any]]) -> None:
    said = "".join(output.get("text", "") for output in outputs[3])
    widgets = [output for output in outputs[3] if "text/plain" in output.get("data", {})]
    assert "training" in said or widgets
    assert "Warning" not in said


def test_figures_of_a_script_belong_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pyplot.get_fignums()
    new_axes()
    assert pyplot.get_fignums() == before
    with matplotlib.rc_context({"interactive": True}):
        axes = new_axes(3.0)
        assert len(pyplot.get_fignums()) == len(before) + 1 and pyplot.gcf() is axes.get_figure()
        assert pyplot.gcf().get_figwidth() == 3.0
        pyplot.close(pyplot.gcf())
        monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
        new_axes()  # nobody has asked for pyplot: nothing to show it on
    assert pyplot.get_fignums() == before
