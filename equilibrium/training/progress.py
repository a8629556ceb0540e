"""Progress bars: tqdm's on a terminal and in a notebook, silent everywhere else."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from contracting import checks


def progress_bar(total: int, description: str, *, show: bool, start: int = 0) -> Any:
    """A tqdm bar on standard error or in a notebook, silent where there is neither or ``show`` is off.

    Args:
        total: number of updates.
        description: text before the bar.
        show: whether it is wanted.
        start: updates of an earlier run that is continued.

    Raises:
        MissingExtraError: with ``show`` but without tqdm, the extra ``cli``.
    """
    if not show:
        return _Silent()
    return _bars()(
        total=total,
        desc=description,
        disable=False if _in_notebook() else None,  # None: where standard error is no terminal
        leave=False,
        dynamic_ncols=True,
        initial=start,
    )


def _bars() -> Any:
    with warnings.catch_warnings():
        # without ipywidgets a notebook has bars of text, which is no reason to warn
        warnings.filterwarnings("ignore", message="IProgress not found")
        return checks.extra("tqdm.auto", "cli", "the progress bar").tqdm


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")  # it is there already if it runs this
    return shell is not None and "IPKernelApp" in getattr(shell.get_ipython(), "config", {})


class _Silent:
    """What this library asks of a tqdm bar, doing nothing."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, n: int = 1) -> None: ...

    def set_postfix_str(self, text: str) -> None: ...
