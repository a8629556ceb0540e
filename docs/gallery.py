"""The gallery: every script of demos/, run as it is, with its figure, its output and its headline as the title."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from sphinx_gallery.scrapers import figure_rst

DEMOS = Path(__file__).resolve().parents[1] / "demos"
_HEADER = """\
Gallery
=======

Each picture is the whole output of one script of a page: click on it for the script. They stand in ``demos/``; run one
by ``python demos/NAME.py``, and its figure is in ``out/``.
"""


def titled(source: str) -> str:
    """A demo whose docstring begins with a title, as sphinx-gallery reads it: its headline up to a colon."""
    docstring = ast.get_docstring(ast.parse(source), clean=False) or ""
    headline, _, rest = docstring.partition("\n")
    title, colon, more = headline.rstrip(".").partition(": ")
    body = f"{more[:1].upper()}{more[1:]}.\n" if colon else ""
    return source.replace(docstring, f"\n{title}\n{'=' * (2 * len(title))}\n\n{body}{rest}", 1)


def write(folder: Path) -> None:
    """Copies of the demos with titles, which is what is shown and run."""
    folder.mkdir(exist_ok=True)
    pages = {path.name: titled(path.read_text(encoding="utf-8")) for path in sorted(DEMOS.glob("*.py"))}
    pages["GALLERY_HEADER.rst"] = _HEADER
    for path in folder.iterdir():
        if path.is_file() and path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def scraper(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """The figures that a demo writes into out/, by the names in its text, moved to the page.

    Two demos run at once, so that whatever else is in the folder may be the other's.
    """
    demo = Path(block_vars["src_file"])
    moved = []
    for name in re.findall(r'"([\w-]+\.png)"', demo.read_text(encoding="utf-8")):
        path = demo.parent / "out" / name
        if path.exists():
            target = Path(block_vars["image_path_iterator"].next())
            target.parent.mkdir(parents=True, exist_ok=True)
            moved.append(str(path.replace(target)))
    return figure_rst(moved, gallery_conf["src_dir"])
