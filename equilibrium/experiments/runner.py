"""Resumable experiments: named tasks whose steps are computed once, written complete, and read back ever after.

A task has a folder of its own. Killed at any moment, it continues there: finished steps are read, and a step in the
middle continues from whatever checkpoint it keeps in the folder. Because a step that was just computed is read back
from its file too, an interrupted run returns exactly what an uninterrupted one does.

The processes of ``torchrun`` work on one task after the other: all of them train its model, the first alone takes the
steps of a workspace, and the others are told what it found.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contracting import ContractingError, InputError, checks
from equilibrium.experiments.publishing import on_threads
from equilibrium.files import is_first, output_directory, plain, write_json
from equilibrium.training import ranks
from equilibrium.training.progress import progress_bar

_SETTINGS = "settings.json"
_STEP = ".step.json"
_WATCH = 0.2  # Seconds from look to look whether the parent is there: what a killed run goes on for at most.


class TaskError(ContractingError, RuntimeError):
    """A task of an experiment failed; the message names it. The others have finished or can be continued."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One piece of an experiment, which may run in a process of its own.

    Attributes:
        name: of its folder.
        settings: everything that its result depends on; a dataclass or another value that JSON can say.
        run: a function of a module, (settings, workspace) -> result; the result is one that JSON can say.
    """

    name: str
    settings: Any
    run: Callable[[Any, Workspace], Any]


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """The folder of one task.

    Attributes:
        folder: where the task keeps its files.
        progress: whether the task may show bars.
    """

    folder: Path
    progress: bool = False

    def once(self, step: str, compute: Callable[[], Any], *, together: bool = False) -> Any:
        """What ``compute`` returned in this or an earlier run, as JSON gives it back.

        Args:
            step: its name.
            compute: called unless the step is finished; its result is one that JSON can say.
            together: whether all processes of ``torchrun`` call it, as a training asks, or the first alone.
        """
        path = self.folder / f"{step}{_STEP}"

        def taken() -> dict[str, Any]:
            started = time.perf_counter()
            result = compute()
            return {"seconds": time.perf_counter() - started, "result": result}

        content = taken() if together and not ranks.from_first(path.exists) else None

        def read() -> Any:
            if not path.exists():
                write_json(path, taken() if content is None else content)
            return _read(path)["result"]

        return ranks.from_first(read)

    def seconds(self) -> dict[str, float]:
        """Wall time of each finished step, in the run that finished it; ``result`` is the end of the task."""
        return {path.name.removesuffix(_STEP): _read(path)["seconds"] for path in sorted(self.folder.glob(f"*{_STEP}"))}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the tasks gave, by name in the order of the tasks; the seconds of their steps, which no rerun repeats."""

    results: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)


def run_tasks(
    tasks: Sequence[Task], folder: str | os.PathLike[str], *, jobs: int = 1, progress: bool = False
) -> Outcome:
    """Run the tasks, or what is left of them, each on one thread.

    Args:
        tasks: with different names; they are started in this order.
        folder: made if need be; an earlier run of the same tasks in it is continued.
        jobs: processes at work at once; no result depends on it. With 1 the tasks run in this process. With more, they
            are those of joblib: on this machine, or wherever ``joblib.parallel_config`` says, such as on a cluster of
            dask or ray, which must reach the same folder.
        progress: show bars where standard error is a terminal: of the tasks, and within them where ``jobs`` is 1.

    Returns:
        Results and times.

    Raises:
        InputError: if two tasks have one name, a name is not that of a folder, the folder holds tasks of these names
            with other settings, or ``torchrun`` started this process and ``jobs`` is not 1.
        TaskError: if a task raised an error of this library or its process died; any other exception of a task gets
            through, with a note that names the task.
        MissingExtraError: with ``progress`` but without tqdm, or with ``jobs`` but without joblib: the extra ``cli``.
    """
    checks.whole_number("jobs", jobs)
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise InputError(f"tasks must have different names, got {', '.join(names)}")
    for name in names:
        if Path(name).name != name:
            raise InputError(f"a task is named after its folder: {name!r} must be a plain name, without separators")
    if jobs > 1 and ranks.count() > 1:
        raise InputError(f"the processes of torchrun train one model after the other: give --jobs 1, got {jobs}")
    joblib = checks.extra("joblib", "cli", "more than one process") if jobs > 1 else None
    root = output_directory(folder)
    folders = [_claim(root, task) for task in tasks]
    if joblib is None:
        running = _in_this_process(tasks, folders, progress)
    else:
        running = _in_processes(joblib, tasks, folders, jobs)
    outcome = Outcome(results=dict.fromkeys(names), seconds=dict.fromkeys(names, {}))
    with progress_bar(len(tasks), "tasks", show=progress) as bar:
        for index, result in running:
            outcome.results[names[index]] = result
            outcome.seconds[names[index]] = Workspace(folder=folders[index]).seconds()
            bar.update()
    for task_folder in folders if is_first() else ():
        for leftover in task_folder.glob(".*.tmp"):  # of writes that were killed
            leftover.unlink(missing_ok=True)
    return outcome


def _claim(root: Path, task: Task) -> Path:
    """The folder of the task, which holds the settings it was begun with; refused if they are others now."""
    folder = output_directory(root / task.name)
    path, wanted = folder / _SETTINGS, plain(task.settings)

    def begun() -> Any:
        if not path.exists():
            write_json(path, wanted)
        return _read(path)

    found = ranks.from_first(begun)
    if found != json.loads(json.dumps(wanted)):
        raise InputError(
            f"the folder {str(folder)!r} was begun with other settings ({_difference(found, wanted)}); repeat those, "
            "or name another folder (at the command line: --out)"
        )
    return folder


def _difference(found: Any, wanted: Any) -> str:
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return f"{found!r}, now {wanted!r}"
    missing = "(none)"
    keys = [key for key in sorted(found.keys() | wanted.keys()) if found.get(key, missing) != wanted.get(key, missing)]
    return ", ".join(f"{key} = {found.get(key, missing)!r}, now {wanted.get(key, missing)!r}" for key in keys)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({type(error).__name__}: {error}); remove it to compute it again"
        ) from error


def _run(task: Task, workspace: Workspace) -> Any:
    """Always through the file, so that a result does not depend on when it was computed."""
    try:
        return workspace.once("result", lambda: task.run(task.settings, workspace), together=True)
    except ContractingError as error:
        raise TaskError(f"{task.name}: {error}") from error
    except Exception as error:
        error.add_note(f"in the task {task.name!r} of the experiment, in {str(workspace.folder)!r}")
        raise


_Running = Iterator[tuple[int, Any]]


def _in_this_process(tasks: Sequence[Task], folders: Sequence[Path], progress: bool) -> _Running:
    with on_threads(1):
        for index, (task, folder) in enumerate(zip(tasks, folders, strict=True)):
            yield index, _run(task, Workspace(folder=folder, progress=progress))


def _in_processes(joblib: Any, tasks: Sequence[Task], folders: Sequence[Path], jobs: int) -> _Running:
    chosen, _ = joblib.parallel.get_active_backend()
    ours = {"initializer": _end_with, "initargs": (os.getpid(),)} if type(chosen).__name__ == "LokyBackend" else {}
    # one task at a time, as soon as a process is free for it
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1, pre_dispatch=jobs, **ours)
    calls = zip(range(len(tasks)), tasks, folders, strict=True)
    failed: TaskError | None = None
    try:
        for index, result in parallel(joblib.delayed(_work)(*call) for call in calls):
            if isinstance(result, TaskError):
                failed = failed or result
            else:
                yield index, result
    except BrokenProcessPool as error:
        raise TaskError(
            "a process of the experiment died, perhaps for lack of memory; run the same command again to continue, "
            "with fewer jobs"
        ) from error
    if failed is not None:
        raise failed


def _work(index: int, task: Task, folder: Path) -> tuple[int, Any]:
    """Which task it was, and its result; an error of this library counts as one, since the others can finish."""
    with on_threads(1):
        try:
            return index, _run(task, Workspace(folder=folder))
        except TaskError as error:
            return index, error


def _end_with(owner: int) -> None:
    """End this process when its parent was killed, or it would go on computing what the next run computes again."""

    def watch() -> None:
        while os.getppid() == owner:
            time.sleep(_WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
