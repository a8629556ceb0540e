"""How docstrings become pages: their mathematics is not markup, and what they refer to exists or is other people's."""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import inspect
import pkgutil
import re
from typing import Any

import torch
from docutils.nodes import Element
from sphinx.ext.napoleon import Config, GoogleDocstring

import contracting
import equilibrium

OTHERS = {
    "collections", "enum", "functools", "matplotlib", "numpy", "os", "pathlib", "sklearn", "torch", "typing", "types",
}  # fmt: skip
_SETTINGS = Config(napoleon_use_ivar=True, napoleon_use_rtype=False)
_NAME = re.compile(r"(?<=\w)_(?!\w)")  # the end of a name such as classes_, which is no link
_LITERAL = re.compile(r"(``.+?``)", re.S)
# a star that opens no emphasis: nothing in its paragraph closes it
_STAR = re.compile(r"(?<![\w*\\])\*(?=[\w,])(?!(?:[^*\n]|\n(?!\n))*[^\s*]\*(?!\w))")


def plain(text: str) -> str:
    """Bars are absolute values, a lone star is a star, names may end in a line: outside of literals none is markup."""
    parts = _LITERAL.split(text)
    parts[::2] = [_STAR.sub(r"\*", _NAME.sub(r"\_", part.replace("|", r"\|"))) for part in parts[::2]]
    return "".join(parts)


def process(app: Any, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """A docstring in Google's style as reStructuredText. A property is read as a method: "m: the rate" has no type."""
    kind = "method" if what in ("property", "attribute", "data") else what
    docstring = GoogleDocstring(plain("\n".join(lines)), _SETTINGS, app, kind, name, obj, options)
    lines[:] = docstring.lines()


@functools.cache
def _inside() -> set[str]:
    """Every name in a module of the two packages."""
    names: set[str] = set()
    for package in (contracting, equilibrium):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            with contextlib.suppress(ImportError):  # of an extra that nobody needs here
                names |= set(vars(importlib.import_module(info.name)))
    return names


def _exists(target: str) -> bool:
    """Whether it names something of ours, of Python or torch, or of another known library."""
    first, _, rest = target.partition(".")
    if first in OTHERS or first in _inside() or hasattr(builtins, target) or hasattr(torch, target):
        return True
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        return all((found := inspect.getattr_static(found, part, None)) is not None for part in parts[length:])
    return False


def unresolved(app: Any, env: Any, node: Element, content: Element) -> Element | None:
    """What Sphinx found no page for stays words if it exists, since nothing is fetched; else Sphinx warns."""
    target = node.get("reftarget", "").partition("[")[0]  # Sphinx takes tuple[complex, …] apart at the comma
    return content if node.get("refdomain") == "py" and _exists(target) else None


def of_others(app: Any, what: str, name: str, obj: object, skip: bool, options: Any) -> bool | None:
    """Leave out methods that another library gives a class of ours."""
    module = getattr(obj, "__module__", None)
    theirs = inspect.isroutine(obj) and module is not None and module.partition(".")[0] in OTHERS
    return True if theirs else None


def without_ways_back(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Pages of source lead back by one name of their module, which is wrong where an object is shown under another."""
    if page.startswith("_modules/") and "body" in context:
        context["body"] = re.sub(r'<a class="viewcode-back"[^>]*>.*?</a>', "", context["body"])


def setup(app: Any) -> None:
    """Called by conf.py."""
    app.connect("html-page-context", without_ways_back)
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", of_others)
    app.connect("missing-reference", unresolved)
