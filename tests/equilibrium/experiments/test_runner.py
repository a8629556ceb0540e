"""Resumable tasks: computed once, refused with other settings, equal bits after any number of kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import joblib
import pytest
import torch

from contracting.errors import InputError, MissingExtraError
from equilibrium.experiments.runner import Task, TaskError, Workspace, run_tasks

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Sum:
    terms: int
    start: float = 0.0


def add(settings: Sum, workspace: Workspace, *, calls: list[str] | None = None) -> dict[str, float]:
    def compute() -> float:
        if calls is not None:
            calls.append(workspace.folder.name)
        return settings.start + sum(1 / k for k in range(1, settings.terms + 1))

    return {"total": workspace.once("sum", compute), "threads": torch.get_num_threads()}


def fail(settings: Sum, workspace: Workspace) -> None:
    raise InputError("the settings are no good")


def stop_at_second(settings: Sum, workspace: Workspace, *, broken: bool) -> float:
    first = workspace.once("first", lambda: 1 / 3)
    if broken:
        raise KeyboardInterrupt
    return first + workspace.once("second", lambda: 1.0)


def test_results_come_in_order_and_with_times(tmp_path):
    tasks = [Task(name=f"t{n}", settings=Sum(n), run=add) for n in (3, 1, 2)]
    outcome = run_tasks(tasks, tmp_path)
    assert [(name, result["total"]) for name, result in outcome.results.items()] == [
        ("t3", 1 + 1 / 2 + 1 / 3),
        ("t1", 1.0),
        ("t2", 1.5),
    ]
    assert all(set(times) == {"sum", "result"} for times in outcome.seconds.values())


def test_processes_give_what_one_process_gives(tmp_path):
    tasks = [Task(name=f"t{n}", settings=Sum(n), run=add) for n in (3, 1)]
    alone, together = (run_tasks(tasks, tmp_path / str(jobs), jobs=jobs).results for jobs in (1, 2))
    assert alone == together and alone["t3"]["threads"] == 1


def test_tasks_go_where_joblib_is_told_to_send_them(tmp_path):
    calls: list[str] = []
    tasks = [Task(name=name, settings=Sum(3), run=partial(add, calls=calls)) for name in "abc"]
    with joblib.parallel_config(backend="threading"):  # of this process, where the calls are seen
        results = run_tasks(tasks, tmp_path / "threads", jobs=2).results
    assert sorted(calls) == ["a", "b", "c"] and {result["total"] for result in results.values()} == {1 + 1 / 2 + 1 / 3}
    assert run_tasks(tasks, tmp_path / "processes", jobs=2).results == results and len(calls) == 3


def test_without_joblib_there_is_one_process(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    tasks = [Task(name=name, settings=Sum(1), run=add) for name in "ab"]
    with pytest.raises(MissingExtraError, match="cli"):
        run_tasks(tasks, tmp_path, jobs=2)
    assert len(run_tasks(tasks, tmp_path).results) == 2


def test_finished_work_is_not_repeated(tmp_path):
    calls: list[str] = []
    tasks = [Task(name="t", settings=Sum(4), run=partial(add, calls=calls))]
    first = run_tasks(tasks, tmp_path).results
    assert run_tasks(tasks, tmp_path).results == first and calls == ["t"]
    (tmp_path / "t" / "result.step.json").unlink()  # killed after its only step
    assert run_tasks(tasks, tmp_path).results == first and calls == ["t"]


def test_an_interrupted_task_continues_at_its_step(tmp_path):
    def task(broken: bool) -> list[Task]:
        return [Task(name="t", settings=Sum(1), run=partial(stop_at_second, broken=broken))]

    with pytest.raises(KeyboardInterrupt):
        run_tasks(task(True), tmp_path)
    (tmp_path / "t" / "first.step.json").write_text('{"seconds": 0, "result": 7}')  # what is read, not computed again
    assert run_tasks(task(False), tmp_path).results == {"t": 8.0}


def test_other_settings_are_refused_by_name_before_any_work(tmp_path):
    run_tasks([Task(name="a", settings=Sum(2), run=add)], tmp_path)
    calls: list[str] = []
    run = partial(add, calls=calls)
    with pytest.raises(InputError, match=r"other settings \(terms = 2, now 3\).*--out"):
        run_tasks([Task(name="b", settings=Sum(1), run=run), Task(name="a", settings=Sum(3), run=run)], tmp_path)
    assert not calls


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failing_task_is_named(tmp_path, jobs):
    with pytest.raises(TaskError, match="broken: the settings are no good"):
        run_tasks([Task(name="broken", settings=Sum(1), run=fail)], tmp_path, jobs=jobs)


def divide(settings: Sum, workspace: Workspace) -> float:
    return settings.start / 0


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_defect_in_a_task_gets_through_and_names_it(tmp_path, jobs):
    with pytest.raises(ZeroDivisionError) as caught:
        run_tasks([Task(name="broken", settings=Sum(terms=1), run=divide)], tmp_path, jobs=jobs)
    assert "in the task 'broken'" in caught.value.__notes__[0]


def test_the_others_finish_when_one_fails(tmp_path):
    tasks = [Task(name=f"t{n}", settings=Sum(n), run=add) for n in (1, 2)]
    tasks.insert(0, Task(name="broken", settings=Sum(1), run=fail))
    with pytest.raises(TaskError, match="broken"):
        run_tasks(tasks, tmp_path, jobs=2)
    assert all((tmp_path / name / "result.step.json").exists() for name in ("t1", "t2"))


def test_damaged_files_and_double_names_are_refused(tmp_path):
    task = Task(name="a", settings=Sum(1), run=add)
    with pytest.raises(InputError, match="different names"):
        run_tasks([task, task], tmp_path)
    with pytest.raises(InputError, match="separators"):
        run_tasks([Task(name="../a", settings=Sum(1), run=add)], tmp_path)
    run_tasks([task], tmp_path)
    (tmp_path / "a" / "result.step.json").write_text("{")
    with pytest.raises(TaskError, match="a: .*remove it to compute it again"):
        run_tasks([task], tmp_path)


def start(out: Path, jobs: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "equilibrium", "mnist-robustness", "--small", "--jobs", str(jobs)]
    command += ["--models", "lipschitz-1,perceptron", "--epochs", "1", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    # a session of its own, so that the workers can be killed with their parent
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def state(out: Path) -> int:
    """How many files there are: a clock that runs with the work, not with the load of the machine."""
    return sum(1 for path in out.rglob("*") if path.is_file()) if out.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_moments_the_experiment_gives_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole, 1)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    seed = random.SystemRandom().randrange(2**32)
    print(f"the moments are those of the random seed {seed}")  # which pytest shows where this fails
    rng = random.Random(seed)
    kills = 0
    # each attempt is allowed a few more files than the one before left, and then a moment
    while kills < 2:
        limit = state(killed) + rng.randint(2, 6)
        process = start(killed, 2)
        while process.poll() is None and state(killed) < limit:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is not None:
            process.communicate()  # which closes its pipes
            break
        everyone = kills % 2 == 0  # or the parent alone, whose workers must then end by themselves
        (os.killpg if everyone else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()  # which waits for the workers too: they hold the other end of standard error
        kills += 1
    assert kills >= 1  # what is left may be done before the second
    process = start(killed, 2)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    for name in ("results.json", "table.txt"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    for model in json.loads((whole / "results.json").read_text())["models"]:
        path = Path("models", model, "training.pt")
        first, second = (torch.load(out / path, weights_only=True)["model"] for out in (whole, killed))
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert not list((killed / "models").rglob("*.tmp"))
