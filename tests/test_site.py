"""A walk through the site that `make docs` built: whatever there is, is two clicks from the start page.

The folder with the site is in the environment variable SITE, which `make docs` sets.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urldefrag

import pytest

import contracting
import equilibrium
from equilibrium.experiments.catalogue import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
FACES = [
    module
    for package in (contracting, equilibrium)
    for module in (
        package,
        *(
            importlib.import_module(info.name)
            for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
            if info.ispkg
        ),
    )
    if hasattr(module, "__all__")
]
DEMOS = sorted(path.stem for path in (ROOT / "demos").glob("*.py"))


class Page(HTMLParser):
    """What a page links to, which places in it can be linked to, its pictures and its words."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.pictures: set[str] = set()
        self.outside: set[str] = set()  # what a browser would fetch from elsewhere to show the page
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.places |= {given["id"]} if "id" in given else set()
        if tag == "a" and "href" in given and "://" not in given["href"]:
            self.links.add(unquote(given["href"]))
        if tag == "img":
            self.pictures.add(given.get("src", ""))
        if tag in ("img", "script", "link") and "://" in (source := given.get("src") or given.get("href", "")):
            self.outside.add(source)

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder with the start page."""
    named = os.environ.get("SITE")
    if not named:
        pytest.skip("no site is named: make docs builds it and walks through it")
    if not (ROOT / named / "index.html").is_file():
        pytest.fail(f"SITE names {named!r}, which has no index.html")
    return (ROOT / named).resolve()


@cache
def page(path: Path) -> Page:
    return Page(path)


def targets(path: Path) -> set[tuple[Path, str]]:
    """The local files that a page links to, with the places in them."""
    found = set()
    for link in page(path).links:
        file, place = urldefrag(link)
        found.add(((path.parent / file).resolve() if file else path, place))
    return found


@cache
def within_two_clicks(start: Path) -> frozenset[tuple[Path, str]]:
    """Every page, and place in a page, that two clicks lead to; what is on a page is seen without a click."""
    first = targets(start)
    second = {target for path, _ in first if path.suffix == ".html" for target in targets(path)}
    pages = {path for path, _ in first | second if path.suffix == ".html"}
    return frozenset(first | second | {(path, place) for path in pages for place in page(path).places})


def found_by(name: str) -> object:
    """What a dotted name is, or None."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            value = inspect.getattr_static(value, part, None)
        return value
    return None


@pytest.mark.parametrize("face", FACES, ids=lambda module: module.__name__)
def test_every_public_name_is_two_clicks_away(face: ModuleType, site: Path) -> None:
    places = {place for path, place in within_two_clicks(site / "index.html") if path.parent.name == "reference"}
    index = page(site / "reference" / "index.html").words
    assert face.__all__
    for name in face.__all__:
        assert name in index, name
        same = [place for place in places if place.endswith(f".{name}") and found_by(place) is getattr(face, name)]
        assert same, name


@pytest.mark.parametrize("demo", DEMOS)
def test_every_demo_is_two_clicks_away_with_its_figure(demo: str, site: Path) -> None:
    path = site / "gallery" / f"{demo}.html"
    assert path in {path for path, _ in within_two_clicks(site / "index.html")}
    assert [picture for picture in page(path).pictures if demo in picture]
    assert any(f"{demo}_thumb" in picture for picture in page(site / "gallery" / "index.html").pictures)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_two_clicks_away_with_its_options(command: str, site: Path) -> None:
    path = site / "commands.html"
    assert (path, f"command-{command}") in within_two_clicks(site / "index.html")
    options = [f"--{name.replace('_', '-')}" for name in inspect.signature(COMMANDS[command]).parameters]
    assert options and [option for option in options if option not in page(path).words] == []


def test_every_page_can_be_reached_and_no_link_is_broken(site: Path) -> None:
    start = site / "index.html"
    seen, todo, broken = set(), [start], []
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for target, place in targets(path):
            if not target.is_file() or (place and target.suffix == ".html" and place not in page(target).places):
                broken.append((path.name, target.name, place))
            elif target.suffix == ".html":
                todo.append(target)
    assert broken == []
    written = {path for path in site.rglob("*.html") if "_static" not in path.parts}
    unlinked = {path.relative_to(site).as_posix() for path in written - seen}
    assert unlinked <= {"search.html", "genindex.html", "_modules/index.html"}
    assert len(seen) > 50


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = [path for path in site.rglob("*.html") if "_modules" not in path.parts]
    assert {source for path in pages for source in page(path).outside} == set()
    assert not [path for path in (site / "_static").rglob("*.css") if "@import url(http" in path.read_text()]


def test_a_walk_notices_what_is_missing(tmp_path: Path) -> None:
    for name, text in {
        "index.html": '<a href="near.html">n</a>',
        "near.html": '<a href="far.html#x">f</a><p id="here">',
        "far.html": '<a href="beyond.html">b</a><p id="x"><img src="https://host.example/p.png">',
        "beyond.html": '<p id="lost">',
    }.items():
        (tmp_path / name).write_text(text)
    found = within_two_clicks(tmp_path / "index.html")
    assert {(tmp_path / "near.html", "here"), (tmp_path / "far.html", "x")} <= found
    assert (tmp_path / "beyond.html", "lost") not in found and page(tmp_path / "far.html").outside
