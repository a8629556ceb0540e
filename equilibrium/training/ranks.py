"""Processes that work on one model, as ``torchrun`` starts them: which of them this is, and what they tell each other.

Without a process group of ``torch.distributed``, or with one process in it, nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from contracting.errors import ContractingError, InputError
from equilibrium.files import is_first

_Result = TypeVar("_Result")

# The others wait while the first measures, for hours in a long study. One that died is noticed by its connection.
_PATIENCE = timedelta(days=7)


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own() -> int:
    """The number of this process, from zero."""
    return dist.get_rank() if count() > 1 else 0


def part(rows: int) -> slice:
    """The rows of this process: all processes have as many, or one more; none at all where there are too few."""
    each, more = divmod(rows, count())
    start = own() * each + min(own(), more)
    return slice(start, start + each + (own() < more))


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in their order."""
    found = [value] * count()
    if count() > 1:
        dist.all_gather_object(found, value)
    return found


def from_first(compute: Callable[[], _Result]) -> _Result:
    """What ``compute`` returns in the first process, which alone calls it; an error of this library is everybody's.

    Raises:
        ContractingError: what it raised.
    """
    if count() == 1:
        return compute()
    said: list[Any] = [None, None, None]
    error: ContractingError | None = None
    if is_first():
        try:
            said[0] = compute()
        except ContractingError as raised:
            error = raised
            said[1:] = [InputError if isinstance(error, InputError) else ContractingError, str(error)]
    dist.broadcast_object_list(said, src=0)
    if error is not None:
        raise error
    if said[1] is not None:
        raise said[1](said[2])
    result: _Result = said[0]
    return result


def total(compute: Callable[[], Tensor], like: Tensor) -> Tensor:
    """The sum over all processes of what ``compute`` returns in each: a vector as ``like``.

    One whose ``compute`` fails says so in the same message, so that nobody waits for it.

    Raises:
        ContractingError: everywhere, if ``compute`` raised one, or a failure of linear algebra, in any process.
    """
    if count() == 1:
        return compute()
    error: Exception | None = None
    message = like.new_zeros(len(like) + 1)
    try:
        message[:-1] = compute()
    except (ContractingError, torch.linalg.LinAlgError) as raised:  # type: ignore[attr-defined]
        error, message[-1] = raised, 1.0
    dist.all_reduce(message)
    if message[-1] == 0:
        return message[:-1]
    said = gathered(None if error is None else str(error))
    if error is not None:
        raise error
    number = next(number for number, text in enumerate(said) if text is not None)
    raise ContractingError(f"in process {number} of {count()}: {said[number]}")


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The process group that ``torchrun`` asks for by its environment; only the first process prints meanwhile."""
    begins = int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available() and not dist.is_initialized()
    if begins:
        dist.init_process_group("gloo", timeout=_PATIENCE)  # of the commands, which work on the processor
    try:
        with contextlib.ExitStack() as silent:
            if not is_first():
                nowhere = silent.enter_context(open(os.devnull, "w"))
                silent.enter_context(contextlib.redirect_stdout(nowhere))
            yield
    finally:
        if begins:
            dist.destroy_process_group()
