"""Writes the pages that are made from the code: the reference from every ``__all__``, the commands from theirs."""

from __future__ import annotations

import enum
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args, get_type_hints

from docstrings import plain

import contracting
import equilibrium
from equilibrium.experiments.catalogue import COMMANDS

FACES = (contracting, equilibrium)


def faces() -> Iterator[ModuleType]:
    """Every package that says what it shows: the two, and those inside them that have an ``__all__``."""
    for package in FACES:
        yield package
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if info.ispkg and hasattr(module := importlib.import_module(info.name), "__all__"):
                yield module


def public() -> dict[str, str]:
    """The full name under which each public object is documented, by every name that it can be imported under.

    An object that several packages show is documented once, under the first of their names.
    """
    names: dict[str, str] = {}
    first: dict[int, str] = {}
    for face in faces():
        for name in face.__all__:
            value = getattr(face, name)
            full = f"{face.__name__}.{name}"
            known = first.setdefault(id(value), full) if hasattr(value, "__module__") else full
            names[full] = known
    return names


def home(full: str) -> str:
    """The folder that an object lives in, or the file where that stands in the root: the page that it is on."""
    package, _, name = full.rpartition(".")
    module = getattr(getattr(importlib.import_module(package), name), "__module__", package)
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in ("contracting", "equilibrium") else package


def pages() -> dict[str, list[str]]:
    """The documented names of every page, pages in the order in which the packages import them."""
    found: dict[str, list[str]] = {}
    for full in dict.fromkeys(public().values()):
        found.setdefault(home(full), []).append(full)
    return {page: sorted(found[page], key=lambda full: full.rpartition(".")[2].lower()) for page in sorted(found)}


def _headline(text: str | None) -> str:
    return plain(inspect.cleandoc(text or "").split("\n\n")[0].replace("\n", " "))


def _first_sentence(full: str) -> str:
    package, _, name = full.rpartition(".")
    value = getattr(importlib.import_module(package), name)
    if not hasattr(value, "__module__"):
        return f"The value {value!r}." if len(repr(value)) < 60 else f"A {type(value).__name__}."
    return _headline(inspect.getdoc(value))


def _question(page: str) -> str:
    """The headline of a page: how the docstring of its folder begins, and the folder."""
    words = _headline(importlib.import_module(page).__doc__).rstrip(".").partition(":")[0].replace("``", "")
    return f"{words.partition(', ')[0] if len(words) > 70 else words} ({page})"


def _directive(full: str) -> list[str]:
    package, _, name = full.rpartition(".")
    value = getattr(importlib.import_module(package), name)
    if inspect.isclass(value):
        inherited = issubclass(value, enum.Enum)
        options = ["   :undoc-members:"] if inherited else ["   :show-inheritance:"]
        return [f".. autoclass:: {full}", *options]
    return [f".. autofunction:: {full}" if callable(value) else f".. autodata:: {full}"]


def _page(page: str, names: list[str]) -> str:
    title = _question(page)
    packages = sorted({full.rpartition(".")[0] for full in names})
    lines = [title, "=" * (2 * len(title)), "", f"Imported from {' or '.join(f'``{name}``' for name in packages)}.", ""]
    lines += [f"* :py:obj:`~{full}`: {_first_sentence(full)}" for full in names]
    for full in names:
        name = full.rpartition(".")[2]
        lines += ["", name, "-" * len(name), "", *_directive(full)]
    return "\n".join([*lines, ""])


def _index(found: dict[str, list[str]]) -> str:
    title = "Reference"
    lines = [title, "=" * len(title), ""]
    lines += ["Every public name, by the folder that answers its question: what ``__all__`` of the packages lists.", ""]
    for page, names in found.items():
        heading = _question(page)
        lines += [heading, "-" * (2 * len(heading)), ""]
        lines += [", ".join(f":py:obj:`~{full}`" for full in names) + ".", ""]
    again = sorted(full for full, known in public().items() if full != known)
    lines += ["The same under another name", "---------------------------", ""]
    lines += ["What can be imported from several packages is documented once.", ""]
    lines += [f"* ``{full}`` is :py:obj:`{public()[full]}`." for full in again]
    lines += ["", ".. toctree::", "   :hidden:", "", *(f"   {page}" for page in found)]
    return "\n".join([*lines, ""])


def _commands() -> str:
    lines = ["Commands", "========", ""]
    lines += [
        "``contracting-equilibria COMMAND``, or ``python -m equilibrium COMMAND``, with the extra ``cli``. Each",
        "command is a study: it prints its table and writes it, with ``results.json`` and the figures, into ``--out``.",
        "``--version`` prints the version, ``--install-completion`` lets the shell complete commands and options.", "",
    ]  # fmt: skip
    for name, command in COMMANDS.items():
        lines += [f".. _command-{name}:", "", name, "-" * len(name), "", inspect.cleandoc(command.__doc__ or ""), ""]
        lines += [".. list-table::", "   :header-rows: 1", "   :widths: 20 12 50", ""]
        lines += ["   * - option", "     - default", "     - meaning"]
        hints = get_type_hints(command, include_extras=True)
        for option, parameter in inspect.signature(command).parameters.items():
            kind, text = get_args(hints[option])
            value = parameter.default
            shown = "" if value is None or value is False else str(getattr(value, "value", value))
            choices = [str(member.value) for member in kind] if isinstance(kind, enum.EnumMeta) else []
            lines += [f"   * - ``--{option.replace('_', '-')}``", f"     - ``{shown}``" if shown else "     - –"]
            lines += [f"     - {text}" + (f" One of {', '.join(choices)}." if choices else "")]
        lines += [""]
    return "\n".join(lines)


def _update(path: Path, text: str) -> None:
    """A page whose text is as before is left alone, so that it is not read and drawn again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write(folder: Path) -> None:
    """Write all of it below ``folder``; pages of folders that are gone go."""
    below, found = folder / "reference", pages()
    below.mkdir(exist_ok=True)
    for path in below.glob("*.rst"):
        if path.stem != "index" and path.stem not in found:
            path.unlink()
    for page, names in found.items():
        _update(below / f"{page}.rst", _page(page, names))
    _update(below / "index.rst", _index(found))
    _update(folder / "commands.rst", _commands())
