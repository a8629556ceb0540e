"""The shape of the house: who may import whom, what is documented, what stays small."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import contracting
import equilibrium

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (contracting, equilibrium)
MODULES = sorted(
    info.name for package in PACKAGES for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)
OPTIONAL = {"foolbox", "scipy", "sklearn", "pooch", "tqdm", "typer", "cvxpy", "clarabel", "mpmath", "rich", "click"}


def source(module: str) -> Path:
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(module: str, *, top_level: bool) -> set[str]:
    """Modules that are imported, at import time only or anywhere in the file; type-checking imports do not count."""
    tree = ast.parse(source(module).read_text())
    nodes: list[ast.AST] = list(tree.body) if top_level else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_modules_are_found() -> None:
    assert len(MODULES) > 20


@pytest.mark.parametrize("module", MODULES)
def test_contracting_never_imports_equilibrium(module: str) -> None:
    if module.startswith("contracting"):
        assert not any(name.split(".")[0] == "equilibrium" for name in imports(module, top_level=False))


def test_solvers_and_parameterisations_do_not_know_each_other() -> None:
    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            current = todo.pop()
            if current in seen or current not in MODULES:
                continue
            seen.add(current)
            todo += [name for name in imports(current, top_level=True) if name in MODULES]
        return seen

    solvers = {"equilibrium.splitting", "equilibrium.newton"}
    assert not reachable("equilibrium.parameterizations") & solvers
    for solver in solvers:
        assert not reachable(solver) & {"equilibrium.parameterizations", "equilibrium.weights", "equilibrium.layers"}


def test_the_import_graph_has_no_cycle() -> None:
    graph = {m: {name for name in imports(m, top_level=True) if name in MODULES and name != m} for m in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path, module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_where_they_belong(module: str) -> None:
    everywhere = {name.split(".")[0] for name in imports(module, top_level=False)}
    if not module.endswith(".artifacts") and ".plots" not in module:
        assert "matplotlib" not in everywhere
    if not module.endswith(("torchdiffeq_adapter", ".artifacts")):
        assert "torchdiffeq" not in everywhere
    assert not {name.split(".")[0] for name in imports(module, top_level=True)} & OPTIONAL


def test_importing_the_library_needs_no_extra() -> None:
    block = "; ".join(f"sys.modules[{name!r}] = None" for name in sorted(OPTIONAL))
    code = f"import sys; {block}; import contracting, equilibrium, contracting.integrators; equilibrium.LBEN(2, 3, 1)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.parametrize("module", MODULES)
def test_files_are_small_and_say_what_is_inside(module: str) -> None:
    text = source(module).read_text()
    assert len(text.splitlines()) <= 430
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("module", MODULES)
def test_public_things_are_documented_where_they_are_or_where_they_come_from(module: str) -> None:
    loaded = importlib.import_module(module)
    for name, value in vars(loaded).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{module}.{name}"
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                    assert inspect.getdoc(getattr(value, attribute)), f"{module}.{name}.{attribute}"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.__name__)
def test_public_names_exist(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert len(set(names)) == len(names)
    assert all(hasattr(package, name) for name in names)
