"""Every Python block of the README and the docs runs, and what the page on extending shows keeps its contracts."""

from __future__ import annotations

import importlib
import importlib.util
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
EXAMPLES = [name for name in BLOCKS if name.startswith("howto/extend-")]


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
    files = {name for name in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in name}
    assert sorted(name for name in dotted if not _resolves(name)) == []
    assert sorted(name for name in called if not any(hasattr(home, name) for home in homes)) == []
    assert sorted(name for name in files if not (page.parent / name).exists()) == []
    assert not _resolves("contracting.solve.nothing") and not _resolves("contracting.nothing")
