"""Runs the solvers of other libraries, in the environment that make_rivals.sh made; knows nothing of this library.

Reads one JSON command per line, answers with one JSON line. It stays alive between the rounds of a benchmark, so that
neither imports nor sweeps count. What is solved, z = ReLU(Wz + q), comes in a file.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

SWEEP_ROWS = 256  # The settings of a rival are swept on the first rows of a batch, at most so many.
FINALISTS = 4  # So many of the settings that were fast there are tried on all rows; the fastest is taken.
BDF_SWEEP_ROWS = 4  # BDF is swept on fewer rows, for each is an integration of its own.
_FINAL_TIMES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # A flow is followed for these multiples of ln(1/target).
_RTOLS = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)  # An integrator gets these multiples of the target as rtol.
_STEPS = 1000  # Anderson and Broyden may take so many in the sweep; later runs get what was needed.
Setting = dict[str, Any]


class OutOfTime(Exception):
    """A run took longer than it may."""


class Problem:
    """z = ReLU(Wz + q) and a deadline, looked at in every evaluation of the map."""

    def __init__(self, W: Tensor, q: Tensor, clock: Callable[[], float]):
        self.W, self.q, self.clock = W, q, clock
        self.transposed = W.mT
        self.deadline = math.inf
        self.evaluations = 0

    def rows(self, count: int) -> Problem:
        return Problem(self.W, self.q[:count], self.clock)

    def map(self, z: Tensor) -> Tensor:
        self.evaluations += 1
        if self.clock() > self.deadline:
            raise OutOfTime
        return torch.relu(torch.addmm(self.q, z, self.transposed))

    def residual(self, z: Tensor) -> float:
        """Of the worst row, in float64."""
        z, W, q = z.double(), self.W.double(), self.q.double()
        image = torch.relu(torch.addmm(q, z, W.mT))
        worst = float((torch.linalg.vector_norm(z - image, dim=-1) / torch.linalg.vector_norm(image, dim=-1)).max())
        return worst if math.isfinite(worst) else math.inf


def integrate(problem: Problem, setting: Setting) -> Tensor:
    """z' = −z + ReLU(Wz + q) from 0 to a final time."""
    from torchdiffeq import odeint

    times = torch.tensor([0.0, setting["time"]], dtype=problem.q.dtype)
    tolerances = {"rtol": setting["rtol"], "atol": setting["atol"]}
    with torch.no_grad():
        if setting["method"] != "BDF":
            return odeint(lambda t, z: problem.map(z) - z, torch.zeros_like(problem.q), times, **tolerances,
                          method=setting["method"])[-1]
        # a batch is one system to BDF, with a Jacobian of (rows·n)² entries: row by row is all that is possible
        answers = []
        for q in problem.q:
            row = Problem(problem.W, q[None], problem.clock)
            row.deadline = problem.deadline
            answers.append(
                odeint(lambda t, z, row=row: row.map(z) - z, torch.zeros_like(row.q), times, **tolerances,
                       method="scipy_solver", options={"solver": "BDF"})[-1]
            )
            problem.evaluations += row.evaluations
        return torch.cat(answers)


@functools.cache
def deq(method: str, most: int, tolerance: float) -> Any:
    """The module of torchdeq, made once as a user makes it."""
    from torchdeq import get_deq

    return get_deq(f_solver=method, f_max_iter=most, f_tol=tolerance, f_stop_mode="rel").eval()


def accelerate(problem: Problem, setting: Setting) -> Tensor:
    """Anderson or Broyden of torchdeq on z ↦ ReLU(Wz + q)."""
    own = ("method", "f_tol", "f_max_iter", "steps")
    options = {key: value for key, value in setting.items() if key not in own}
    solver = deq(setting["method"], setting["f_max_iter"], setting["f_tol"])
    with torch.no_grad():
        found, info = solver(problem.map, torch.zeros_like(problem.q), solver_kwargs=options)
    setting["steps"] = int(info["nstep"].max())
    return found[-1]


def integrations(method: str, target: float) -> Iterator[Setting]:
    tolerances = (1.0, 0.1, 0.01) if method == "BDF" else _RTOLS
    for share in (1.5, 3.0, 6.0) if method == "BDF" else _FINAL_TIMES:
        for times in tolerances:
            rtol = max(times * target, 3e-14)
            yield {"method": method, "rtol": rtol, "atol": rtol, "time": share * math.log(1 / target)}


def accelerations(method: str, target: float) -> Iterator[Setting]:
    choices: list[Setting]
    if method == "anderson":
        choices = [
            {"m": m, "tau": tau, "lam": lam}
            for lam in (target**2, 1e-4)  # it is added to a Gram matrix of residuals
            for tau in (0.5, 0.1, 1.0, 0.03)
            for m in (10, 5, 20)
        ]
    else:
        choices = [{"LBFGS_thres": kept, "ls": search} for search in (True, False) for kept in (30, 10, 60)]
    for choice in choices:
        yield {"method": method, "f_tol": target, "f_max_iter": _STEPS} | choice


RIVALS: dict[str, tuple[Callable[[Problem, Setting], Tensor], Callable[[str, float], Iterator[Setting]], str]] = {
    "torchdiffeq-dopri5": (integrate, integrations, "dopri5"),
    "torchdiffeq-bosh3": (integrate, integrations, "bosh3"),
    "torchdiffeq-BDF": (integrate, integrations, "BDF"),
    "torchdeq-anderson": (accelerate, accelerations, "anderson"),
    "torchdeq-broyden": (accelerate, accelerations, "broyden"),
}


class Worker:
    """The commands."""

    def __init__(self, clock: Callable[[], float]):
        for name in ("torchdiffeq", "scipy.integrate", "torchdeq"):  # so that no first run pays for it
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        self.clock = clock
        self.problem: Problem | None = None
        self.sweeps: dict[tuple[Any, ...], list[tuple[float, Setting]] | str] = {}

    def versions(self) -> dict[str, str]:
        found = {}
        for name in ("torch", "torchdiffeq", "torchdeq", "scipy", "numpy"):
            with contextlib.suppress(PackageNotFoundError):
                found[name] = version(name)
        return found

    def load(self, file: str, key: str) -> dict[str, str]:
        content = torch.load(file, weights_only=True)
        self.problem, self.key = Problem(content["W"], content["q"], self.clock), key
        return {}

    def prepare(self, rival: str, target: float, accepted: float, limit: float, answer: str) -> dict[str, Any]:
        """Choose the setting: the fastest of a sweep that reaches the target; then solve with it once."""
        problem = self.problem
        run, settings, method = RIVALS[rival]
        rows = min(len(problem.q), BDF_SWEEP_ROWS if method == "BDF" else SWEEP_ROWS)
        key = (self.key, rival, target, rows)
        if key not in self.sweeps:
            self.sweeps[key] = self._sweep(run, settings(method, target), problem.rows(rows), accepted, limit)
        found = self.sweeps[key]
        if isinstance(found, str):
            return {"failure": found}
        reason = "no setting of the sweep reaches the target on all rows"
        best: dict[str, Any] | None = None
        finalists = 0
        for seconds, setting in found:
            if seconds * len(problem.q) / rows > 4 * limit and method == "BDF":
                return {"failure": f"time limit: {seconds / rows:.2g} s for each of {len(problem.q)} rows"}
            setting = dict(setting)
            # what is fastest on some rows need not be so on all of them
            most = 4 * limit if best is None else 1.5 * best["seconds"]
            z, seconds, failed = self._attempt(run, problem, setting, most)
            residual = math.inf if z is None else problem.residual(z)
            if z is not None and residual <= accepted:
                finalists += 1
                if best is None or seconds < best["seconds"]:
                    torch.save(z, answer)
                    evaluations = problem.evaluations
                    best = {"setting": setting, "seconds": seconds, "residual": residual, "evaluations": evaluations}
            elif best is None:
                reason = failed or f"residual {residual:.1e} at best on all rows"
            if finalists == FINALISTS or rows == len(problem.q) and best is not None:
                break
        return {"failure": reason} if best is None else best

    def _sweep(
        self,
        run: Callable[[Problem, Setting], Tensor],
        settings: Iterator[Setting],
        problem: Problem,
        accepted: float,
        limit: float,
    ) -> list[tuple[float, Setting]] | str:
        found: list[tuple[float, Setting]] = []
        lowest, spent, given_up, before = math.inf, 0.0, None, (None, math.inf)
        reasons: list[str] = []
        for setting in settings:
            # nothing slower than the fastest one is of interest, except as a second choice on more rows
            best = min((seconds for seconds, _ in found), default=math.inf)
            if spent > 2 * limit:
                break
            final_time = setting.get("time")
            if final_time is not None and final_time == given_up:
                continue
            z, seconds, reason = self._attempt(run, problem, setting, min(limit, 1.5 * best))
            spent += seconds
            if z is None:
                reasons.append(reason)
                continue
            residual = problem.residual(z)
            if accepted < residual < 20 * accepted and "f_tol" in setting:  # its last step is not what it returns
                setting["f_tol"] *= 0.2
                z, seconds, reason = self._attempt(run, problem, setting, limit)
                spent += seconds
                residual = math.inf if z is None else problem.residual(z)
            if final_time is not None and before[0] == final_time and residual > 0.7 * before[1]:
                given_up = final_time  # a tighter tolerance does not help where the time is too short
            before = (final_time, residual)
            lowest = min(lowest, residual)
            if residual <= accepted:
                if "f_max_iter" in setting:  # torchdeq fills its record up to the most iterations: give it no more
                    setting["f_max_iter"] = setting["steps"] * 3 // 2 + 10
                    z, seconds, reason = self._attempt(run, problem, setting, limit)
                found.append((seconds, setting))
        if found:
            return sorted(found, key=lambda entry: entry[0])
        return f"residual {lowest:.1e} at best" if math.isfinite(lowest) else (reasons or ["it diverges"])[-1]

    def _attempt(
        self, run: Callable[[Problem, Setting], Tensor], problem: Problem, setting: Setting, limit: float
    ) -> tuple[Tensor | None, float, str]:
        problem.evaluations = 0
        started = self.clock()
        problem.deadline = started + limit
        try:
            return run(problem, setting), self.clock() - started, ""
        except OutOfTime:
            return None, self.clock() - started, f"time limit of {limit:.3g} s"
        except Exception as error:  # a failure of a rival is a result
            text = str(error).splitlines()[0] if str(error) else ""
            return None, self.clock() - started, f"{type(error).__name__}: {text}"[:160]
        finally:
            problem.deadline = math.inf

    def time(self, rival: str, setting: Setting, repeats: int) -> dict[str, float]:
        run = RIVALS[rival][0]
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            run(self.problem, setting)
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    warnings.filterwarnings("ignore")  # of the libraries, about their own arguments
    worker = Worker(time.process_time if sys.argv[2] == "cpu" else time.perf_counter)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the libraries print is no answer
    for line in sys.stdin:
        command = json.loads(line)
        reply = getattr(worker, command.pop("do"))(**command)
        answers.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main()
