"""The command line: complete results or one sentence on standard error and nothing else."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from contracting.solvers.catalogue import default_solvers
from equilibrium import LBEN, EquilibriumLayer, Unconstrained, save_reference
from equilibrium import __main__ as cli
from equilibrium.experiments.compare_solvers import command as compare_solvers

REFUSES = {"FISTA"}  # the trained weight is not self-adjoint
SMALL_FIGURES = {
    f"{name}.png"
    for name in (
        "residual-against-iteration",
        "residual-against-time",
        "work-precision",
        "work-precision-in-maps",
        "predicted-iterations",
    )
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One small run of everything."""
    out = tmp_path_factory.mktemp("run") / "deep" / "out"
    assert cli.main(["compare-solvers", "--small", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    torch.manual_seed(0)
    save_reference(LBEN(64, 8, 10, lipschitz=2.0), path)
    return path


@pytest.fixture
def idle(monkeypatch):
    """Any work is a mistake."""

    def work(*_, **__):
        raise AssertionError("work was started")

    for name in ("train", "compare"):
        monkeypatch.setattr(compare_solvers, name, work)


@pytest.fixture
def no_figures(monkeypatch):
    """Saves time where the figures are not what is tested."""
    monkeypatch.setattr(compare_solvers, "draws", lambda comparison: {})


def strict(text):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def files(folder):
    return {path.name for path in folder.iterdir()}


def test_run_writes_everything(finished):
    assert files(finished) == {"results.json", "table.txt", "figures"}
    assert files(finished / "figures") == SMALL_FIGURES
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (finished / "figures").iterdir())


def test_results_are_complete(finished):
    results = strict((finished / "results.json").read_text())
    assert {"torch", "threads", "platform"} <= results["environment"].keys()
    settings = results["settings"]
    assert settings["seed"] == 0 and settings["threads"] == 1 and settings["data"] == "digits"
    assert settings["solvers"] == list(default_solvers())
    assert len(results["training"]["epochs"]) == settings["epochs"] == 1
    assert results["test_error"] == pytest.approx(results["training"]["epochs"][-1]["test_error"], abs=1)
    comparison = results["comparison"]
    assert comparison["tolerances"] == settings["tolerances"]
    for record in comparison["solvers"]:
        if record["name"] in REFUSES:
            assert "self-adjoint" in record["refused"]
            continue
        assert record["refused"] is None
        measured = [m for m in comparison["measurements"] if m["solver"] == record["name"]]
        assert [m["tolerance"] for m in measured] == settings["tolerances"]
        assert all(m["status"] == {"CONVERGED": m["rows"]} for m in measured), record["name"]


def test_table_has_a_line_per_solver(finished):
    lines = (finished / "table.txt").read_text().splitlines()
    for name in default_solvers().keys() - REFUSES:
        (line,) = [line for line in lines if line.startswith(name + " ")]
        assert " converged " in line
    assert all(len(line) <= 145 for line in lines)
    assert any(line.startswith("Certified") for line in lines)


def test_chosen_solvers_tolerances_and_threads(tmp_path, no_figures, capsys):
    threads = torch.get_num_threads()
    arguments = ["--small", "--solvers", "heun, PeacemanRachford", "--tolerances", "1e-3,1e-5", "--rows", "4"]
    assert cli.main(["compare-solvers", *arguments, "--seed", "5", "--out", str(tmp_path)]) == 0
    comparison = strict((tmp_path / "results.json").read_text())["comparison"]
    assert {record["name"] for record in comparison["solvers"]} == {"PeacemanRachford", "Heun"}
    assert comparison["tolerances"] == [1e-3, 1e-5] and comparison["rows"] == 4
    assert torch.get_num_threads() == threads
    out = capsys.readouterr().out
    assert "test error" in out and str(tmp_path / "results.json") in out


def test_same_seed_gives_the_same_numbers(tmp_path, no_figures):
    def numbers(folder):
        arguments = ["--small", "--solvers", "PeacemanRachford", "--rows", "4", "--seed", "3"]
        assert cli.main(["compare-solvers", *arguments, "--out", str(folder)]) == 0
        results = strict((folder / "results.json").read_text())
        cells = [(m["distance"], m["steps_max"], m["map_evals"]) for m in results["comparison"]["measurements"]]
        return results["test_error"], results["comparison"]["bounds"], cells

    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")


def test_checkpoint_is_used_instead_of_training(checkpoint, tmp_path, no_figures, monkeypatch):
    monkeypatch.setattr(compare_solvers, "train", None)
    arguments = ["--checkpoint", str(checkpoint), "--lipschitz", "2", "--small", "--solvers", "PeacemanRachford"]
    assert cli.main(["compare-solvers", *arguments, "--out", str(tmp_path)]) == 0
    results = strict((tmp_path / "results.json").read_text())
    assert results["training"] is None and results["settings"]["checkpoint"] == "model.pt"
    assert str(checkpoint.parent) not in (tmp_path / "results.json").read_text()


def test_refusal_of_every_solver_is_told_and_old_figures_go(tmp_path, capsys):
    torch.manual_seed(0)
    save_reference(EquilibriumLayer(Unconstrained(64, 8, 10)), tmp_path / "wild.pt")
    (tmp_path / "figures").mkdir()
    for name in ("work-precision.png", "work-precision-half-width.png", "mine.png"):
        (tmp_path / "figures" / name).write_text("old")
    arguments = ["--checkpoint", str(tmp_path / "wild.pt"), "--small", "--solvers", "PeacemanRachford,Heun"]
    assert cli.main(["compare-solvers", *arguments, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("refused: ") == 2
    comparison = strict((tmp_path / "results.json").read_text())["comparison"]
    assert comparison["measurements"] == [] and all(record["refused"] for record in comparison["solvers"])
    assert files(tmp_path / "figures") == {"mine.png"}


@pytest.mark.slow
def test_reference_checkpoint_on_mnist(shared_data, tmp_path, no_figures, capsys):
    arguments = ["--checkpoint", str(shared_data / "lben-checkpoints" / "fc_lip1.0_w80.pt"), "--lipschitz", "1"]
    arguments += ["--data", "mnist", "--data-dir", str(shared_data / "mnist"), "--rows", "8", "--tolerances", "1e-6"]
    arguments += ["--solvers", "PeacemanRachford,SemismoothNewton", "--out", str(tmp_path)]
    assert cli.main(["compare-solvers", *arguments]) == 0
    assert "test error 2.29 % on 10000 test images of mnist" in capsys.readouterr().out


def bad_input(tmp_path, checkpoint):
    corrupt, other = tmp_path / "corrupt.pt", tmp_path / "other.pt"
    corrupt.write_bytes(checkpoint.read_bytes()[:200])
    save_reference(LBEN(7, 3, 2, lipschitz=1.0), other)
    return {
        "unknown solver": (["--solvers", "PeacemanRachford,Newtn"], "unknown name 'Newtn'; known are PeacemanRachford"),
        "no solver": (["--solvers", ","], "--solvers"),
        "no number": (["--tolerances", "1e-3,tight"], "--tolerances"),
        "tolerance": (["--tolerances", "1e-3,2"], "--tolerances"),
        "missing checkpoint": (["--checkpoint", str(tmp_path / "none.pt"), "--lipschitz", "1"], "none.pt"),
        "corrupt checkpoint": (["--checkpoint", str(corrupt), "--lipschitz", "1"], "corrupt.pt"),
        "checkpoint of another lipschitz": (["--checkpoint", str(checkpoint), "--lipschitz", "5"], "lipschitz"),
        "checkpoint for other data": (["--checkpoint", str(other), "--lipschitz", "1"], "7 inputs"),
        "data folder": (["--data", "mnist", "--data-dir", str(tmp_path / "nowhere")], "nowhere"),
        "data folder of digits": (["--data-dir", str(tmp_path)], "--data mnist"),
        "unknown data": (["--data", "cifar"], "cifar"),
        "rows": (["--rows", "0"], "--rows"),
        "lipschitz": (["--lipschitz", "-1"], "lipschitz"),
        "threads": (["--threads", "0"], "--threads"),
        "no integer": (["--epochs", "many"], "--epochs"),
        "misspelt option": (["--toleranses", "1e-3"], "--toleranses"),
    }


def one_sentence(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("contracting-equilibria: ") and "Traceback" not in line
    return line


def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, checkpoint, idle, capsys):
    out = tmp_path / "deep" / "out"
    for what, (arguments, expected) in bad_input(tmp_path, checkpoint).items():
        assert cli.main(["compare-solvers", *arguments, "--out", str(out)]) == 2, what
        assert expected in one_sentence(capsys), what
        assert not out.parent.exists(), what


def test_output_folder_is_checked_before_any_work(tmp_path, idle, monkeypatch, capsys):
    monkeypatch.setattr(compare_solvers, "digits_for", None)
    (tmp_path / "file").write_text("kept")
    assert cli.main(["compare-solvers", "--out", str(tmp_path / "file" / "below")]) == 2
    assert "output folder" in one_sentence(capsys)
    assert files(tmp_path) == {"file"} and (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("arguments", [["--out", ""], ["--out="]])
@pytest.mark.parametrize("command", ["compare-solvers", "mnist-robustness", "square-wave"])
def test_an_empty_output_folder_is_not_the_current_one(tmp_path, idle, monkeypatch, capsys, command, arguments):
    monkeypatch.chdir(tmp_path)
    assert cli.main([command, "--small", *arguments]) == 2
    assert one_sentence(capsys).endswith("the value of --out is the empty text; give another one or leave it out")
    assert files(tmp_path) == set()


def test_failed_run_keeps_what_was_there(tmp_path, checkpoint, capsys):
    (tmp_path / "results.json").write_text("older")
    assert cli.main(["compare-solvers", "--checkpoint", "none.pt", "--out", str(tmp_path)]) == 2
    one_sentence(capsys)
    assert files(tmp_path) == {"results.json"} and (tmp_path / "results.json").read_text() == "older"


def test_interrupt_is_quiet_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_solvers, "train", interrupted)
    assert cli.main(["compare-solvers", "--small", "--out", str(tmp_path / "out")]) == 130
    assert "interrupted" in one_sentence(capsys)
    assert files(tmp_path) == set()


def test_missing_typer_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "typer", None)
    assert cli.main([]) == 2
    assert "contracting-equilibria[cli]" in one_sentence(capsys)


@pytest.mark.parametrize(("arguments", "expected"), [([], "compare-solvers"), (["ode-layer", "--help"], "--hidden")])
def test_help(arguments, expected, capsys):
    assert cli.main(arguments) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        "compare-solvers", "contraction-rates", "convolution", "handwriting", "lipschitz-report", "mnist-robustness",
        "ode-layer", "pendulum", "square-wave", "tracking",
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_no_generator_takes_is_one_sentence(tmp_path, monkeypatch, capsys, command, seed):
    monkeypatch.chdir(tmp_path)
    assert cli.main([command, "--seed", str(seed)]) == 2
    assert "seed must be a whole number" in one_sentence(capsys)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("arguments", [["--method", "dopri99"], ["--hidden", "0"], ["--epochs", "0"], ["nonsense"]])
def test_ode_layer_bad_input(arguments, capsys):
    assert cli.main(["ode-layer", *arguments]) == 2
    one_sentence(capsys)


def test_ode_layer_agrees_with_splitting(capsys):
    assert cli.main(["ode-layer", "--small", "--hidden", "10", "--epochs", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "largest difference" in line]
    assert [line.split(":")[0] for line in lines] == ["outputs", "gradients"]
    assert all(float(line.rsplit(" ", 1)[1]) < 1e-8 for line in lines)
