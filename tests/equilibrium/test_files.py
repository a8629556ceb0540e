"""A result file is complete or absent, whatever fails and wherever."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import animation
from matplotlib.figure import Figure
from PIL import Image

import contracting
from contracting.errors import InputError, Status
from equilibrium import files


def names(folder: Path) -> list[str]:
    """Everything in the folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


class BrokenFigure:
    """Writes half a picture, then fails."""

    def __init__(self, failure: BaseException):
        self.failure = failure

    def savefig(self, fname, **_):
        fname.write(b"half")
        raise self.failure


def test_output_directory_is_made_with_its_parents(tmp_path):
    folder = files.output_directory(tmp_path / "a" / "b")
    assert folder.is_dir() and names(folder) == []
    (folder / "kept.txt").write_text("kept")
    assert files.output_directory(str(folder)) == folder
    assert names(folder) == ["kept.txt"]


def test_output_directory_refuses_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out"):
        files.output_directory(tmp_path / "file")
    with pytest.raises(InputError, match="--out") as error:
        files.output_directory(tmp_path / "file" / "below")
    assert "\n" not in str(error.value)


def test_output_directory_refuses_the_empty_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"'\.'"):
        files.output_directory("")
    assert files.output_directory(".") == Path()


def test_a_remedy_names_the_option_as_one_of_the_command_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="command line: --out"):
        files.output_directory(tmp_path / "file")
    with pytest.raises(InputError, match="command line: --out"):
        files.write_tensors(tmp_path / "file" / "weights.pt", {})


def test_output_directory_refuses_what_cannot_be_written(tmp_path, monkeypatch):
    def touch(self, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(InputError, match="Permission denied"):
        files.output_directory(tmp_path)


def test_text_replaces_and_returns_the_path(tmp_path):
    path = tmp_path / "note.txt"
    assert files.write_text(path, "γ ≤ 1\n") == path
    files.write_text(str(path), "γ ≤ 2\n")
    assert path.read_text(encoding="utf-8") == "γ ≤ 2\n"
    assert names(tmp_path) == ["note.txt"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    files.write_text(tmp_path / "ours", "")
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}
    assert modes["ours"] == modes["usual"]


@dataclass
class Row:
    solver: str
    residual: torch.Tensor


def test_json_writes_what_results_are_made_of(tmp_path):
    obj = {
        "rows": [Row("newton", torch.tensor([1.0, float("nan")]))],
        "shape": (2, 3),
        "time": np.float64(0.5),
        "counts": np.array([1, 2]),
        "status": Status.CONVERGED,
        "bound": math.inf,
        "ok": True,
        "name": "ℓ1",
        "none": None,
        "half": torch.tensor(0.5, dtype=torch.float16, requires_grad=True),
    }
    path = files.write_json(tmp_path / "results.json", obj)
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "rows": [{"solver": "newton", "residual": [1.0, None]}],
        "shape": [2, 3],
        "time": 0.5,
        "counts": [1, 2],
        "status": "CONVERGED",
        "bound": None,
        "ok": True,
        "name": "ℓ1",
        "none": None,
        "half": 0.5,
    }
    assert path.read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize(
    ("obj", "place"),
    [({"a": [1, object()]}, r"obj\['a'\]\[1\]"), ({"a": {1: 2}}, r"obj\['a'\].*key 1"), ({"p": Path("x")}, "Path")],
)
def test_json_names_what_it_cannot_say_and_keeps_the_old_file(tmp_path, obj, place):
    path = files.write_json(tmp_path / "results.json", [1])
    with pytest.raises(InputError, match=place):
        files.write_json(path, obj)
    assert json.loads(path.read_text()) == [1]
    assert names(tmp_path) == ["results.json"]


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")], ids=["png", "svg", "pdf"]
)
def test_figures_in_every_format(tmp_path, suffix, start):
    figure = Figure()
    figure.subplots().plot([0, 1])
    path = files.write_figure(tmp_path / f"figure{suffix}", figure)
    assert path.read_bytes().startswith(start)
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["figure", "figure.txt", "figure.PNG2"])
def test_figures_refuse_other_formats(tmp_path, name):
    with pytest.raises(InputError, match=r"\.png\b"):
        files.write_figure(tmp_path / name, Figure())
    assert names(tmp_path) == []


@pytest.mark.parametrize("failure", [RuntimeError("drawing"), KeyboardInterrupt(), MemoryError()])
def test_failure_while_writing_keeps_the_old_file(tmp_path, failure):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with pytest.raises(type(failure)):
        files.write_figure(path, BrokenFigure(failure))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["figure.png"]


def test_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="No space left") as error:
        files.write_figure(path, BrokenFigure(OSError(28, "No space left on device")))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["figure.png"]


def test_failure_to_put_in_place_leaves_nothing(tmp_path, monkeypatch):
    def replace(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(InputError, match="Permission denied"):
        files.write_text(tmp_path / "note.txt", "text")
    assert names(tmp_path) == []


def test_targets_that_cannot_be_files_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    for target in (tmp_path / "folder", tmp_path / "nothing" / "note.txt", tmp_path / "file" / "note.txt"):
        with pytest.raises(InputError, match=target.name):
            files.write_text(target, "text")
    assert names(tmp_path) == ["file", "folder"]


def film(frames: int = 3):
    axes = Figure(figsize=(1, 1)).subplots()
    (dot,) = axes.plot([0], [0], "o")
    axes.set_xlim(0, frames)
    return animation.FuncAnimation(axes.figure, lambda k: (dot.set_xdata([k]), dot)[1:], frames=frames)


def test_a_film_is_complete(tmp_path):
    path = files.write_animation(tmp_path / "film.gif", film(), frames_per_second=5)
    assert names(tmp_path) == ["film.gif"]
    with Image.open(path) as written:
        assert written.n_frames == 3


def test_an_mp4_needs_ffmpeg(tmp_path, monkeypatch):
    moving = film()
    monkeypatch.setattr(animation.writers, "is_available", lambda name: False)
    with pytest.raises(InputError, match=r"\bffmpeg\b.*\.gif\b"):
        files.write_animation(tmp_path / "film.mp4", moving)
    with pytest.raises(InputError, match=r"\.gif\b.*\.mp4\b"):
        files.write_animation(tmp_path / "film.avi", moving)
    assert names(tmp_path) == []
    files.write_animation(tmp_path / "film.gif", moving)  # drawn once, or matplotlib warns


def test_a_film_that_fails_keeps_the_old_one(tmp_path):
    class Broken:
        def save(self, filename, writer, **_):
            Path(filename).write_bytes(b"half")
            raise KeyboardInterrupt

    (tmp_path / "film.gif").write_text("older")
    with pytest.raises(KeyboardInterrupt):
        files.write_animation(tmp_path / "film.gif", Broken())
    assert names(tmp_path) == ["film.gif"] and (tmp_path / "film.gif").read_text() == "older"


def test_environment_tells_versions_and_no_names():
    environment = files.environment()
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(environment)) == environment
    assert not any("/" in str(value) or "\\" in str(value) for value in environment.values())
    # Nothing else, such as a host name, is told.
    versions = {"contracting-equilibria", "python", "torch", "torchdiffeq", "numpy"}
    assert set(environment) == versions | {"platform", "processor", "accelerator", "cpus", "threads"}


def test_environment_without_an_install(monkeypatch):
    def version(name):
        raise files.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(files.metadata, "version", version)
    monkeypatch.setattr(files, "_revision", list)
    environment = files.environment()
    assert environment["torchdiffeq"] == "not installed"
    assert environment["contracting-equilibria"] == contracting.__version__


def test_environment_names_the_commit_of_a_checkout_and_of_no_other(monkeypatch, tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]

    def run(*command):
        return subprocess.run([*git, *command], check=True, capture_output=True, text=True).stdout.strip()

    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    file = tmp_path / "files.py"
    file.write_text("here")
    monkeypatch.setattr(files, "__file__", str(file))
    assert files._revision() == []  # no checkout
    run("init", "--quiet")
    (tmp_path / "other").write_text("there")
    run("add", "other")
    run("commit", "--quiet", "-m", "other")
    assert files._revision() == []  # a checkout of something else
    run("add", "files.py")
    run("commit", "--quiet", "-m", "ours")
    commit = run("rev-parse", "--short", "HEAD")
    assert files._revision() == [f"({commit})"]
    assert files.environment()["contracting-equilibria"].endswith(f"({commit})")
    file.write_text("changed")
    assert files._revision() == [f"({commit}-modified)"]
    monkeypatch.setenv("PATH", "")  # no git
    assert files._revision() == []
