"""What is packed: one version, a wheel that works with the core dependencies alone, everything in the source."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import contracting
import equilibrium
from equilibrium import __main__ as cli
from equilibrium.experiments.catalogue import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


def needed(name: str, found: dict[str, metadata.Distribution]) -> None:
    """The distribution of this name and all that it needs without extras."""
    if name not in found:
        found[name] = metadata.distribution(name)
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed(requirement.name.lower().replace("_", "-"), found)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def installed(packed: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs Python where the wheel is installed beside torch, torchdiffeq, numpy, matplotlib and what these need."""
    home = tmp_path_factory.mktemp("empty")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    core: dict[str, metadata.Distribution] = {}
    for line in metadata.requires("contracting-equilibria") or []:
        if "extra ==" not in line:
            needed(Requirement(line).name, core)
    for distribution in core.values():
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(packed[0])], check=True, capture_output=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*arguments: str, code: int = 0, program: str = "python") -> str:
        done = subprocess.run(
            [home / "bin" / program, *arguments], env=environment, cwd=home, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        return (done.stdout + done.stderr).strip()

    return run


@pytest.mark.slow
def test_the_wheel_works_with_the_core_dependencies_alone(installed: Callable[..., str]) -> None:
    script = """
import contracting, equilibrium, importlib.metadata, importlib.util, pathlib, torch
absent = [n for n in ("sklearn", "typer", "cvxpy", "onnx", "foolbox", "pytest") if importlib.util.find_spec(n)]
layer = equilibrium.LBEN(4, 8, 2, lipschitz=1.0, dtype=torch.float64)
layer(torch.randn(3, 4, dtype=torch.float64)).sum().backward()
assert equilibrium.certified_lipschitz(layer).bound <= 1
rate = contracting.certify(equilibrium.LBEN(4, 8, 2, contraction_rate=0.2).flow(contracting.FiringRate)).rate
assert rate >= 0.2 - 1e-6 and importlib.metadata.version("contracting-equilibria") == contracting.__version__
typed = [(pathlib.Path(p.__file__).parent / "py.typed").exists() for p in (contracting, equilibrium)]
print(contracting.__version__, absent, typed, "site-packages" in contracting.__file__)
"""
    assert installed("-W", "error", "-c", script) == f"{contracting.__version__} [] [True, True] True"


@pytest.mark.slow
@pytest.mark.parametrize("start", [("python", "-m", "equilibrium"), ("contracting-equilibria",)], ids=lambda s: s[0])
def test_the_command_line_of_the_wheel_names_the_extra_that_it_needs(
    installed: Callable[..., str], start: tuple[str, ...]
) -> None:
    (line,) = installed(*start[1:], "counterexample", code=2, program=start[0]).splitlines()
    assert "contracting-equilibria[cli]" in line


def test_the_source_distribution_is_whole_and_holds_nothing_that_was_built(packed: tuple[Path, Path]) -> None:
    with tarfile.open(packed[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {
        str(path.relative_to(ROOT))
        for folder in ("contracting", "equilibrium", "tests", "demos", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".css") or path.parent.name == "figures"
    }
    built = ("docs/_build/", "docs/_demos/", "docs/reference/", "docs/gallery/", "docs/commands.rst")
    tracked = {name for name in tracked if not name.startswith(built)}
    assert len(tracked) > 300 and sorted(tracked - names) == []
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "constraints.txt"} <= names
    assert not [name for name in names if name.startswith((*built, "out", ".venv")) or "__pycache__" in name]


def test_the_page_of_the_package_has_no_link_to_a_file_that_is_not_there(packed: tuple[Path, Path]) -> None:
    with tarfile.open(packed[1]) as archive:
        (name,) = (name for name in archive.getnames() if name.endswith("PKG-INFO"))
        member = archive.extractfile(name)
        assert member is not None
        page = member.read().decode()
    relative = re.compile(r"\]\((?!\w+:)")
    assert relative.search((ROOT / "README.md").read_text()) and not relative.search(page)
    assert "lipschitz=1.0" in page and f"Version: {contracting.__version__}" in page


def test_links_of_the_readme_become_absolute_below_the_address_of_the_source() -> None:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    text = "a [b](docs/b.md) ![c](c.png) [d](https://d.example) [e.md](e.md)"
    with_address = hook.absolute(text, "https://host.example/x", "1.2")
    assert with_address == (
        "a [b](https://host.example/x/blob/v1.2/docs/b.md) ![c](https://host.example/x/raw/v1.2/c.png) "
        "[d](https://d.example) [e.md](https://host.example/x/blob/v1.2/e.md)"
    )
    assert hook.absolute(text, None, "1.2") == "a b (docs/b.md)  [d](https://d.example) e.md"


def test_there_is_one_version(capsys: pytest.CaptureFixture[str]) -> None:
    version = contracting.__version__
    assert equilibrium.__version__ is version and re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == version
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert not end.value.code and capsys.readouterr().out.split()[-1] == version


@pytest.mark.parametrize("newer", ["3.12", "3.13", "3.14"])
def test_newer_interpreters_compile_every_file_without_a_warning(newer: str) -> None:
    script = """
import pathlib, sys
files = [path for name in sys.argv[1:] for path in pathlib.Path(name).rglob("*.py")]
for path in files:
    compile(path.read_text(encoding="utf-8"), str(path), "exec")
print(sys.version_info[:2], len(files))
"""
    for python in (f"python{newer}", *Path.home().glob(f".pyenv/versions/{newer}.*/bin/python")):
        try:
            subprocess.run([python, "--version"], check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError):  # absent, or a shim for a version that is not chosen
            continue
        command = [python, "-W", "error", "-c", script, "contracting", "equilibrium", "demos", "benchmarks"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        major, minor, count = re.findall(r"\d+", done.stdout)
        assert f"{major}.{minor}" == newer and int(count) > 200
        return
    pytest.skip(f"Python {newer} is not installed")


def words(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(arguments) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_is_chosen_by_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = words([command, "--help"], capsys)
    options = re.split(r" (?=--[a-z][a-z-]* )", text.partition("Options: ")[2])
    valued = [option for option in options if re.match(r"--[a-z-]+ <", option)]
    assert valued and [option for option in valued if "default" not in option] == []


def test_help_lists_solvers_models_and_integrators(capsys: pytest.CaptureFixture[str]) -> None:
    text = words(["compare-solvers", "--help"], capsys).replace(" ", "")
    assert all(name in text for name in contracting.default_solvers())
    assert "lipschitz-0.3" in words(["mnist-robustness", "--help"], capsys).replace("- ", "-")
    assert "adaptive_heun" in words(["ode-layer", "--help"], capsys)


def test_the_shell_completes_commands() -> None:
    asked = {"_CONTRACTING_EQUILIBRIA_COMPLETE": "complete_bash", "COMP_WORDS": "contracting-equilibria pha"}
    done = subprocess.run(
        [sys.executable, "-m", "equilibrium"], env={**os.environ, **asked, "COMP_CWORD": "1"}, cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["phase-portrait"] and not done.stderr
