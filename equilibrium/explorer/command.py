"""``explore``: serve the page on this machine and open it in the browser."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from contracting import ContractingError, InputError, checks
from equilibrium.explorer.setting import Setting

_OPENED = "CONTRACTING_EQUILIBRIA_EXPLORE"  # The variable by which the page learns which file was opened.
_PATIENCE = 60.0  # The server may take so many seconds to start; it takes two on an idle machine.


class ServerError(ContractingError, RuntimeError):
    """The server of the page did not start."""


def explore(
    problem: Annotated[
        Path | None, "A problem saved by the page, or a reference checkpoint, to start from (default: its own)."
    ] = None,
    port: Annotated[int, "Port on this machine; 0 takes a free one."] = 0,
    headless: Annotated[bool, "Open no browser; the address is printed."] = False,
) -> None:
    """Explore a small network on a page in the browser: certificates, flows and solvers at every change of a slider."""
    with serving(None if problem is None else Setting.read(problem), port=port) as address:
        print(f"the explorer is at {address} until you press Ctrl-C", flush=True)
        if not headless:
            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)


@contextlib.contextmanager
def serving(setting: Setting | None = None, *, port: int = 0) -> Iterator[str]:
    """Serve the page to this machine only, at the address that is given; the server is gone at the end.

    Raises:
        InputError: on a port that is none, or taken.
        MissingExtraError: without marimo, the extra ``explore``.
        ServerError: if the server does not start.
    """
    checks.extra("marimo", "explore", "the explorer")
    at = _free_port(checks.whole_number("port", port, low=0))
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MARIMO_SKIP_UPDATE_CHECK": "1"}  # no question to anybody else
        if setting is not None:
            environment[_OPENED] = str(setting.save(Path(folder, "opened.json")))
        page = Path(__file__).with_name("app.py")
        # the server has no token, since it listens to this machine only, and no business with any other
        options = ["--headless", "--no-token", "--host", "127.0.0.1", "--port", str(at)]
        server = subprocess.Popen(
            [sys.executable, "-m", "marimo", "--quiet", "--yes", "run", str(page), *options],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{at}"
            _wait_for(server, address)
            yield address
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            assert server.stderr is not None
            server.stderr.close()


def opened() -> Setting | None:
    """What the page starts from, where a file was given."""
    path = os.environ.get(_OPENED)
    return None if path is None else Setting.read(path)


def _free_port(wanted: int) -> int:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except (OSError, OverflowError) as error:
            raise InputError(f"port {wanted} cannot be used ({error}); take another, or 0 for a free one") from error
        port: int = probe.getsockname()[1]
        return port


def _wait_for(server: subprocess.Popen[bytes], address: str) -> None:
    last = time.monotonic() + _PATIENCE
    while time.monotonic() < last and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.1)
    said = b""
    if server.poll() is not None and server.stderr is not None:
        said = server.stderr.read()
    reason = said.decode(errors="replace").strip().splitlines()[-1:] or [f"no answer within {_PATIENCE:g} s"]
    raise ServerError(f"the server of the explorer did not start: {reason[0]}; choose another --port")
