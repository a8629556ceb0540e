"""A process of its own for a measurement of memory: forked from one that has loaded the libraries and done no work."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

_Result = TypeVar("_Result")


def in_own_process(function: Callable[..., _Result], *arguments: object) -> _Result:
    """``function(*arguments)``, where the function is one of the script that runs."""
    # memory is given back to the system at once, or one pass would find what another left
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "0"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()
