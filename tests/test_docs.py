"""Every Python block of the README and the docs runs, and what the page on extending shows keeps its contracts."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import contracting
import equilibrium
import equilibrium.convolution
import equilibrium.lipschitz
from contracting.activations import names as activations
from contracting.certificates import catalogue as finders
from contracting.contracts import __all__ as contracts
from contracting.solvers import catalogue as solvers
from equilibrium import __main__ as cli
from equilibrium.experiments.catalogue import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in TEXTS if not {"_build", "_demos", "reference", "gallery"} & set(page.parts)]
TUTORIALS = [page for page in PAGES if page.parent.name == "tutorials" and page.stem != "index"]


def blocks(page: Path) -> list[str]:
    """The blocks of Python of a page; the cells of a notebook are one, with what steers their display left out."""
    text = page.read_text(encoding="utf-8")
    cells = re.findall(r"^```\{code-cell\}.*?\n(?:---\n.*?---\n|(?::.*\n)*)(.*?)^```$", text, re.S | re.M)
    return re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M) + (["\n".join(cells)] if cells else [])


def named(page: Path) -> str:
    """What a page is called in the tests, such as howto/extend."""
    return str(page.relative_to(ROOT if page.parent == ROOT else ROOT / "docs").with_suffix(""))


BLOCKS = {f"{named(page)}-{number}": block for page in PAGES for number, block in enumerate(blocks(page), 1)}
EXAMPLES = [name for name, block in BLOCKS.items() if re.search(r"^class Test\w+\(\w+Contract\)", block, re.M)]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """What an example registers is gone after it, and so is the state of the random numbers."""
    tables = solvers._ADDED, activations._NAMED
    before, found = [dict(table) for table in tables], list(finders.FINDERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    finders.FINDERS[:] = found


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A block as a module of its own, as a reader would save it."""
    path = folder / f"{re.sub('[^a-z0-9]', '_', name.lower())}.py"
    path.write_text(BLOCKS[name])
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


def test_there_is_an_example_of_every_suite() -> None:
    shown = {suite for name in EXAMPLES for suite in re.findall(r"^class Test\w+\((\w+)\)", BLOCKS[name], re.M)}
    assert shown == {*contracts, "ParameterizationContract"}


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # torch's own, of its exporter
@pytest.mark.parametrize("name", [name for name in BLOCKS if name not in EXAMPLES])
def test_a_block_of_the_docs_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(name, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_an_extension_runs_and_keeps_its_contract(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = run(name, tmp_path, monkeypatch)
    (suite,) = (value for key, value in vars(module).items() if key.startswith("Test"))
    case = type(suite.__name__, (suite, unittest.TestCase), {"__module__": module.__name__})
    result = unittest.defaultTestLoader.loadTestsFromTestCase(case).run(unittest.TestResult())
    assert result.testsRun >= 5 and not [*result.failures, *result.errors], (result.failures, result.errors)


# What a newcomer looks for, by words of the start page: the page it leads to, and what the code there does.
TASKS = {
    "bring my own W, U, b": ("howto/own-weights", "from_weights("),
    "bring my own ODE": ("howto/own-ode", "NeuralFlow("),
    "find where a field is at rest": ("howto/steady-states", "steady_state("),
    "write my own solver": ("howto/extend", "register_solver("),
    "certify an MLP": ("howto/certify-a-perceptron", "from_sequential("),
    "log the steps": ("howto/log-a-solve", ".numbers()"),
    "export to ONNX": ("howto/deploy", "torch.onnx.export("),
    "compare solvers on my own data as CSV": ("howto/compare-on-your-data", "csv.DictWriter("),
    "warm start": ("howto/warm-start", "z0="),
    "train with a Lipschitz bound γ": ("howto/train-and-certify", "lipschitz=1.0"),
    "find the rate of a Hopfield net": ("howto/hopfield-rate", "Hopfield("),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_start_page_leads_to_code_for_a_task(task: str) -> None:
    page, does = TASKS[task]
    links = re.findall(r"\[([^\]]+)\]\(([^)#]+)[^)]*\)", (ROOT / "docs/index.md").read_text())
    assert (task, f"{page}.md") in links
    assert does in "".join(text for name, text in BLOCKS.items() if name.rpartition("-")[0] == page)


def _said(text: str) -> list[list[str]]:
    """Every command of ours in a text, as words: in blocks a line each, in a sentence between backticks."""
    lines = [line for block in re.findall(r"^```\n(.*?)^```$", text, re.S | re.M) for line in block.splitlines()]
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M))
    found = []
    for line in [*lines, *inline]:
        words = line.partition("#")[0].split()
        if words[:3] == ["python", "-m", "equilibrium"]:
            words = [cli.PROGRAM, *words[3:]]
        if words and words[0] in (cli.PROGRAM, "make", "python"):
            found.append(words)
    return found


def _with_shared_options(text: str) -> str:
    """The text of a benchmark with those functions of its command line that it calls, and that these call."""
    shared = ast.parse((ROOT / "benchmarks" / "command_line.py").read_text()).body
    functions = {node.name: ast.unparse(node).replace("'", '"') for node in shared if isinstance(node, ast.FunctionDef)}
    waiting, seen = re.findall(r"command_line\.(\w+)\(", text), set[str]()
    while waiting:
        name = waiting.pop()
        if name in functions and name not in seen:
            seen.add(name)
            waiting += re.findall(r"\b(\w+)\(", functions[name])
    return text + "".join(functions[name] for name in seen)


def _wrong(words: list[str]) -> list[str]:
    """What of a command does not exist: its name, a target, a file, an option."""
    program, rest = words[0], words[1:]
    options = [word.partition("=")[0] for word in rest if re.match(r"--[a-z]", word)]
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        targets = re.findall(r"^(\w+):", makefile, re.M)
        return [word for word in rest[:1] if word not in targets]
    if program == "python":
        if not rest or not rest[0].endswith(".py") or "NAME" in rest[0]:
            return []
        if not (ROOT / rest[0]).is_file():
            return [rest[0]]
        text = _with_shared_options((ROOT / rest[0]).read_text())
        return [option for option in options if f'"{option}"' not in text]
    own = {"--version", "--help", "--install-completion", "--show-completion"}
    if not rest or rest[0].startswith("--") or rest[0] in ("COMMAND",):
        return [option for option in options if option not in own]
    if rest[0] not in COMMANDS:
        return [rest[0]]
    known = {f"--{name.replace('_', '-')}" for name in inspect.signature(COMMANDS[rest[0]]).parameters} | {"--help"}
    return [option for option in options if option not in known]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_of_a_page_exists_with_its_options(page: Path) -> None:
    assert [(words, wrong) for words in _said(page.read_text()) if (wrong := _wrong(words))] == []


def test_commands_that_do_not_exist_are_noticed() -> None:
    text = "`contracting-equilibria track --x`\n```\npython -m equilibrium tracking --rat 1  # --no\nmake tea\n```\n"
    assert [_wrong(words) for words in _said(text)] == [["--rat"], ["tea"], ["track"]]
    assert _wrong(["python", "benchmarks/convolution.py", "--clock", "cpu", "--target", "1"]) == ["--target"]
    assert _wrong(["python", "benchmarks/none.py"]) and not _wrong(["contracting-equilibria", "tracking", "--rate=1"])


def _tables(text: str) -> Iterator[str]:
    """What stands above each table of measured numbers, back to the headline of its section or of the page.

    A table is one if three of its lines hold decimals, between bars or set in columns.
    """
    section = before = ""
    for chunk in re.split(r"(?m)^(?=## )|\n\n", text):
        if chunk.startswith("## "):
            section = ""
        numbers = [line for line in chunk.splitlines() if len(re.findall(r"(?<![\w.])-?\d+\.\d+", line)) >= 2]
        if len(numbers) >= 3 and ("|" in chunk or "----" in chunk):
            yield before.partition("\n## ")[0] + section
        section += chunk + "\n\n"
        before += chunk + "\n\n"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_table_of_numbers_stands_below_the_command_that_prints_it(page: Path) -> None:
    programs = re.compile(r"contracting-equilibria [a-z-]+|python benchmarks/\w+\.py|make demo")
    text = re.sub(r"^```(?:python|\{code-cell\}).*?^```$", "", page.read_text(), flags=re.S | re.M)
    assert [above for above in _tables(text) if not programs.search(above)] == []


def test_a_table_without_a_command_is_noticed() -> None:
    rows = "| a | 1.0 | 2.0 |\n| b | 1.5 | 2.5 |\n| c | 1.7 | 2.7 |\n"
    (above,) = _tables(f"# Page\n\nText.\n\n## One\n\n`make demo`\n\n## Two\n\n{rows}")
    assert "make demo" not in above
    (above,) = _tables(f"# Page\n\n## Two\n\n`make demo`\n\n{rows}")
    assert "make demo" in above


def test_every_statement_names_a_test_and_a_negative_control_that_exist() -> None:
    text = (ROOT / "docs/theory/statements.md").read_text()
    statements = re.split(r"^\*\*", text, flags=re.M)[1:]
    assert len(statements) > 20
    for statement in statements:
        test, control = re.split(r"^\* Negative control: ", statement, flags=re.M)
        assert "* Test: " in test, statement
        for part in (test, control):
            named_tests = re.findall(r"`([\w/]+\.py)::(test_\w+)`", part)
            assert named_tests, statement
            for file, name in named_tests:
                assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), (file, name)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    everything = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in re.findall(r"`(tests/[\w/]+\.py)`", text) if not (ROOT / name).is_file()] == []
    assert [n for n in re.findall(r"`(?:[^`]*::)?(test_\w+)`", text) if f"\ndef {n}(" not in everything] == []


def test_every_tutorial_is_a_notebook_that_checks_what_it_says() -> None:
    assert len(TUTORIALS) == 4
    for page in TUTORIALS:
        (name,) = (name for name in BLOCKS if name.rpartition("-")[0] == named(page))
        assert page.read_text().startswith("---\njupytext:") and re.search(r"^ *assert ", BLOCKS[name], re.M)


def _resolves(path: str) -> bool:
    """Whether a dotted name is a module, or something inside one."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return all((found := getattr(found, part, None)) is not None for part in parts[length:])
    return False


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    dotted = {name for name in re.findall(r"`((?:contracting|equilibrium)(?:\.\w+)+)", text)}
    homes = contracting, equilibrium, contracting.certificates, equilibrium.lipschitz, equilibrium.convolution
    called = set(re.findall(r"`([A-Z]\w+)\(", text))
    files = {name for name in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in name}
    files -= {"../commands.rst"}  # which make docs writes
    assert sorted(name for name in dotted if not _resolves(name)) == []
    assert sorted(name for name in called if not any(hasattr(home, name) for home in homes)) == []
    assert sorted(name for name in files if not (page.parent / name).exists()) == []
    assert not _resolves("contracting.solve.nothing") and not _resolves("contracting.nothing")
