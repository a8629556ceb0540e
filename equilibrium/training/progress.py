"""Progress bars: tqdm's on a terminal, silent everywhere else."""

from __future__ import annotations

from typing import Any

from contracting import checks


def progress_bar(total: int, description: str, *, show: bool, place: int = 0, start: int = 0) -> Any:
    """A tqdm bar on standard error, silent where that is no terminal or ``show`` is off.

    Args:
        total: number of updates.
        description: text before the bar.
        show: whether it is wanted.
        place: line below the first bar, so that several can stand together.
        start: updates of an earlier run that is continued.

    Raises:
        MissingExtraError: with ``show`` but without tqdm, the extra ``cli``.
    """
    if not show:
        return _Silent()
    tqdm = checks.extra("tqdm", "cli", "the progress bar").tqdm
    return tqdm(
        total=total,
        desc=description,
        disable=None,
        leave=False,
        dynamic_ncols=True,
        position=place,
        initial=start,
    )


def share_terminal(lock: Any) -> None:
    """Draw the bars of this process only while it holds ``lock``, which other processes share; nothing without tqdm."""
    try:
        tqdm = checks.extra("tqdm", "cli", "the progress bar").tqdm
    except ImportError:
        return
    tqdm.set_lock(lock)


class _Silent:
    """What this library asks of a tqdm bar, doing nothing."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, n: int = 1) -> None: ...

    def set_postfix_str(self, text: str) -> None: ...
