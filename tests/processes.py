"""Two processes of one process group, both of which can be ended: one that waits inside of gloo hears no signal."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def _begin(work: Callable[..., None], rank: int, port: int, arguments: tuple[Any, ...]) -> None:
    # as torchrun says it to its processes
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    work(rank, *arguments)


def in_two(work: Callable[..., None], *arguments: Any, seconds: float = 500) -> list[int | None]:
    """Call ``work(rank, *arguments)``, of a module, in two new processes; their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = mp.get_context("spawn").Process
    both = [spawn(target=_begin, args=(work, rank, port, arguments), daemon=True) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(seconds)
        process.kill()
        process.join()
    return [process.exitcode for process in both]
