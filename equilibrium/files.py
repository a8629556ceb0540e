"""Results on disk: each file appears complete or not at all, and says on what it was computed.

Of several processes that work on one model, the first alone writes; in the others the same calls do nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from contracting import __version__
from contracting.errors import InputError

if TYPE_CHECKING:
    from matplotlib.animation import Animation
    from matplotlib.figure import Figure

FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
FILM_SUFFIXES = (".gif", ".mp4")


def is_first() -> bool:
    """Whether this process is the one that writes, of all those that work on one model."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def output_directory(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` as a folder that exists and can be written to, made with its parents if need be.

    Raises:
        InputError: If it is not a folder, or cannot be made or written to, or is the empty text.
    """
    if not os.fspath(path):
        raise InputError("the output folder is the empty text; name one, or '.' for the current folder")
    folder = Path(path)
    if not is_first():
        return folder
    probe = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        reason = "it is not a folder" if folder.exists() and not folder.is_dir() else error.strerror or error
        raise InputError(
            f"the output folder {str(folder)!r} cannot be used ({reason}); name another one "
            "(at the command line: --out)"
        ) from error
    return folder


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` in UTF-8; a failure leaves what was there before.

    Raises:
        InputError: If the file cannot be written.
    """
    return _write(path, lambda file: file.write(text.encode()))


def write_json(path: str | os.PathLike[str], obj: Any) -> Path:
    """Write ``obj`` as JSON; a failure leaves what was there before.

    Tensors and arrays become nested lists, dataclasses become objects, enum members become their names. NaN and
    infinities, for which JSON has no word, become null.

    Raises:
        InputError: If ``obj`` holds something JSON cannot say, named by its place; or if the file cannot be written.
    """
    text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def write_tensors(path: str | os.PathLike[str], content: Any) -> Path:
    """Write tensors, in dicts and lists with numbers and text, by ``torch.save``; a failure leaves what was there."""
    return _write(path, lambda file: torch.save(content, file))


def write_figure(path: str | os.PathLike[str], figure: Figure, *, dpi: float = 150) -> Path:
    """Draw a matplotlib figure into a .png, .svg or .pdf file; a failure leaves what was there before.

    Raises:
        InputError: For another suffix, or if the file cannot be written.
    """
    suffix = Path(path).suffix
    if suffix not in FIGURE_SUFFIXES:
        raise InputError(f"a figure's file name must end in one of {', '.join(FIGURE_SUFFIXES)}, got {str(path)!r}")
    return _write(path, lambda file: figure.savefig(file, format=suffix[1:], dpi=dpi, bbox_inches="tight"))


def check_film(path: str | os.PathLike[str]) -> None:
    """Whether ``write_animation`` can write this file here: to be asked before the work starts.

    Raises:
        InputError: For another suffix than .gif or .mp4, or an .mp4 where matplotlib finds no ffmpeg.
    """
    from matplotlib import animation

    suffix = Path(path).suffix
    if suffix not in FILM_SUFFIXES:
        raise InputError(f"a film's file name must end in one of {', '.join(FILM_SUFFIXES)}, got {str(path)!r}")
    if suffix == ".mp4" and not animation.writers.is_available("ffmpeg"):
        raise InputError("an .mp4 needs the program ffmpeg, which is not installed: install it, or write a .gif")


def write_animation(
    path: str | os.PathLike[str], film: Animation, *, dpi: float = 100, frames_per_second: int = 10
) -> Path:
    """Draw an animation into a .gif (by pillow) or .mp4 (by ffmpeg) file; a failure leaves what was there before.

    Raises:
        InputError: As ``check_film`` does, or if the file cannot be written.
    """
    from matplotlib import animation

    check_film(path)
    suffix = Path(path).suffix
    if not is_first():
        return Path(path)
    kind = animation.PillowWriter if suffix == ".gif" else animation.FFMpegWriter
    with _complete(path, suffix) as temporary:
        film.save(temporary, kind(fps=frames_per_second), dpi=dpi)
    return Path(path)


def environment() -> dict[str, str | int]:
    """Versions, with the revision of a checkout, the machine and threads, without names of hosts and paths."""
    return {
        "contracting-equilibria": " ".join([__version__, *_revision()]),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count() or 1,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": str(torch.__version__),
        "torchdiffeq": _version("torchdiffeq"),
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    """The name of its model, which Linux keeps in a file of its own."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _revision() -> list[str]:
    """The commit of this very code and whether it was changed since; nothing outside a checkout of it."""
    here = Path(__file__)
    # a package that is installed inside somebody's checkout has files there that are not tracked
    commands = ["ls-files", "--error-unmatch", here.name], ["describe", "--always", "--dirty=-modified", "--exclude=*"]
    try:
        said = [
            subprocess.run(
                ["git", "-C", str(here.parent), *command], capture_output=True, text=True, check=True, timeout=10
            ).stdout
            for command in commands
        ]
    except (OSError, subprocess.SubprocessError):
        return []
    return [f"({said[-1].strip()})"]


def _write(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one step."""
    if is_first():
        with _complete(path, ".tmp") as temporary, open(temporary, "xb") as file:
            write(file)
    return Path(path)


@contextlib.contextmanager
def _complete(path: str | os.PathLike[str], suffix: str) -> Iterator[Path]:
    """A temporary name beside ``path``; the file written there takes its place in one step, or disappears."""
    path = Path(path)
    temporary = path.parent / f".{secrets.token_hex(8)}{suffix}"
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # else a power cut could leave the new name with no content
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"{str(path)!r} cannot be written ({error.strerror or error}); make room, or name a file in another folder "
            "(at the command line: --out)"
        ) from error
    finally:
        # Already gone after a success; removed after an error or an interrupt, whose own message must get through.
        with contextlib.suppress(OSError):
            temporary.unlink()


def plain(value: Any, where: str = "obj") -> Any:
    """``value`` in the types of JSON, as ``write_json`` writes it; ``where`` names its place for the error message.

    Raises:
        InputError: If it holds something JSON cannot say.
    """
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist(), where)
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{where} has the key {key!r}; JSON needs text, use str(...)")
        return {key: plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    raise InputError(f"{where} is of type {type(value).__name__}, which JSON cannot say; convert it to text or numbers")
