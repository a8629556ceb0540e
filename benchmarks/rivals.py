"""The other libraries as this process sees them: a worker in their own environment, or the word that there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
DEFAULT_PYTHON = HERE / ".rivals" / "bin" / "python"
NAMES = ("torchdiffeq-dopri5", "torchdiffeq-bosh3", "torchdiffeq-BDF", "torchdeq-anderson", "torchdeq-broyden")
NOT_INSTALLED = "not installed"


class RivalFailure(Exception):
    """A rival did not solve the problem; the message says why."""


class Rivals:
    """The worker, started once and kept; a context manager.

    Args:
        python: the interpreter of the environment that make_rivals.sh made.
        threads: of the worker.
        cpu_clock: let it choose settings by process CPU time instead of wall time.
    """

    def __init__(self, python: Path, *, threads: int, cpu_clock: bool):
        self.python, self.threads, self.clock = python, threads, "cpu" if cpu_clock else "wall"
        self.worker: subprocess.Popen[str] | None = None
        self.loaded: dict[str, str] | None = None
        self.folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Rivals:
        if self.python.is_file():
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.worker is not None:
            self.worker.communicate()
        self.folder.cleanup()

    @property
    def installed(self) -> bool:
        """Whether there is an environment to work in."""
        return self.worker is not None

    def _start(self) -> None:
        # what this environment reads is not for the other one
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.worker = subprocess.Popen(
            [str(self.python), str(HERE / "rival_worker.py"), str(self.threads), self.clock],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, env=environment,
        )

    def _ask(self, **command: Any) -> dict[str, Any]:
        if self.worker is None:
            raise RivalFailure(NOT_INSTALLED)
        assert self.worker.stdin is not None and self.worker.stdout is not None
        try:
            self.worker.stdin.write(json.dumps(command) + "\n")
            self.worker.stdin.flush()
            line = self.worker.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:  # killed, for example for its memory; the next rival gets a new one
            code = self.worker.wait()
            self._start()
            if self.loaded is not None and command["do"] != "load":
                self._ask(do="load", **self.loaded)
            raise RivalFailure(f"the worker ended with code {code}")
        reply: dict[str, Any] = json.loads(line)
        if "failure" in reply:
            raise RivalFailure(reply["failure"])
        return reply

    def versions(self) -> dict[str, str]:
        """Of the libraries in the worker's environment."""
        return self._ask(do="versions") if self.installed else {}

    def load(self, W: Tensor, q: Tensor, weight: str) -> None:
        """Hand over a problem; ``weight`` names its W and its rows, for which settings are swept once."""
        if self.installed:
            file = Path(self.folder.name) / "problem.pt"
            torch.save({"W": W.contiguous(), "q": q.contiguous()}, file)
            self.loaded = {"file": str(file), "key": weight}
            self._ask(do="load", **self.loaded)

    def prepare(self, rival: str, target: float, accepted: float, limit: float) -> tuple[Tensor, dict[str, Any]]:
        """Its answer with the fastest setting that ends with a residual of at most ``accepted``, and that setting.

        Raises:
            RivalFailure: if there is none within ``limit`` seconds for a run, or no environment.
        """
        answer = Path(self.folder.name) / "answer.pt"
        reply = self._ask(do="prepare", rival=rival, target=target, accepted=accepted, limit=limit, answer=str(answer))
        return torch.load(answer, weights_only=True), reply

    def time(self, rival: str, setting: dict[str, Any], repeats: int) -> tuple[float, float]:
        """Wall and CPU seconds of ``repeats`` solves with that setting."""
        reply = self._ask(do="time", rival=rival, setting=setting, repeats=repeats)
        return reply["wall"], reply["cpu"]
