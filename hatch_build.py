"""The README as the page of the package, which has no files beside it: its links become absolute, or name the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:)([^)]+)\)")


def absolute(text: str, source: str | None, version: str) -> str:
    """The links of ``text`` to files: below ``source`` at the tag of the version, or without it their names in words.

    A picture that nobody can load is left out.
    """

    def replaced(link: re.Match[str]) -> str:
        picture, words, path = link.groups()
        if source is None:
            return "" if picture else path if words == path else f"{words} ({path})"
        return f"{picture}[{words}]({source}/{'raw' if picture else 'blob'}/v{version}/{path})"

    return re.sub(r"\n{3,}", "\n\n", _LINK.sub(replaced, text))


class ReadmeHook(MetadataHookInterface):
    """Sets the description of the package."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling with the table [project]."""
        root = Path(self.root)
        (version,) = re.findall(r'^__version__ = "(.+)"$', (root / "contracting/__init__.py").read_text(), re.M)
        text = (root / "README.md").read_text(encoding="utf-8")
        text = absolute(text, metadata.get("urls", {}).get("Source"), version)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
