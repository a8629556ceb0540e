"""Time to a true relative residual on trained networks: the default solver against everything it competes with.

‖z − σ(Wz + q)‖/‖σ(Wz + q)‖ of the worst row is computed here in float64 for everybody; whoever does not get there is
reported as failed. Everybody is timed in turn, on the same number of threads; what depends on the weight alone (bounds,
step, inverse, trials of a step) is set-up and reported apart. Other libraries are given the best of a small sweep of
their settings, which costs them nothing. "bare" are the matrix products of our own iterations and nothing else,
"bare-with-checks" has the products of the checks too.

Without --checkpoints a network is trained on the bundled digits; without the environment that make_rivals.sh makes, the
other libraries are reported as not installed. --small is a version of seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import command_line
import reference_algorithm as reference
import rivals as other
import torch
from cases import Network, accepted, networks, true_residual
from solve_time_case import BARE, CHECKED, DEFAULT, Case, Contestant
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from contracting.errors import InputError
from contracting.loop.method import Method
from contracting.loop.records import Stop
from contracting.loop.rows import Rows
from contracting.loop.run import solve
from contracting.maps import dense
from contracting.maps.dense import Dense
from contracting.problem import EquilibriumProblem
from contracting.solvers.automatic import Automatic
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.splitting import DouglasRachford, PeacemanRachford
from equilibrium.experiments.timing import Timer, Times, in_turn, spread, timer
from equilibrium.files import output_directory, write_figure, write_text

SPLITTING = "PeacemanRachford"
HALVED, BEST_STEP, ORACLE = "reference", "reference-best-step", "reference-oracle"
NEWTON = "SemismoothNewton"
NEWTON_ROWS = 128  # Newton's method is left out of larger batches: it keeps an n × n matrix per row.
ORACLE_STEPS = [2.0 ** (k / 2) for k in range(2, -15, -1)]
_GOALS = ("float64:1e-6", "float64:1e-10", "float32:1e-5")
_SMALL_GOALS = ("float64:1e-6", "float32:1e-5")
_SHORTEST = 0.1  # A measurement lasts at least so many seconds, so that a cold start counts for little.
_BUDGET = 20.0  # After three rounds a contestant gets at most so many seconds in one case.
OURS: dict[str, Any] = {
    DEFAULT: Automatic(),  # as of every layer
    SPLITTING: PeacemanRachford(),
    "one-precision": PeacemanRachford(mixed_precision=False),
    "DouglasRachford-1.8": DouglasRachford(relaxation=1.8),
    NEWTON: SemismoothNewton(),
}


class Products(TorchDispatchMode):
    """Writes down every matrix product: precision, rows, and whether it was made to look at the residual."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, int, bool]] = []
        self._looking = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.mm):
            values = args[-2]
            self.seen.append((values.dtype, len(values), self._looking))
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Self:
        assess = self._assess = Rows.assess
        self._few, dense._FEW = dense._FEW, 0  # few rows go through numpy, which nobody here would see

        def watched(rows: Rows, z: Tensor) -> Any:
            self._looking = True
            try:
                return assess(rows, z)
            finally:
                self._looking = False

        Rows.assess = watched  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        Rows.assess = self._assess  # type: ignore[method-assign]
        dense._FEW = self._few
        super().__exit__(*exception)


def bare_products(problem: EquilibriumProblem, stop: Stop, *, checks: bool) -> tuple[Callable[[], None], int]:
    """The products of the iterations that the default solver takes, and how many steps that was.

    Args:
        problem: what it solves.
        stop: how far.
        checks: include those of the checks of the residual.
    """
    solve(problem, PeacemanRachford(), stop=stop, throw=False)  # so that all that depends on the weight is known
    with Products() as products:
        solution = solve(problem, PeacemanRachford(), stop=stop, throw=False)
    taken = [(dtype, rows) for dtype, rows, check in products.seen if checks or not check]
    if len(taken) < int(solution.steps.max()):
        raise SystemExit("fewer products than steps were seen: the bare products would be too few")
    most = max(rows for _, rows in taken)
    n, device = problem.size, problem.template.device
    # in the layout in which a product takes least time
    matrices = {dtype: torch.rand(n, n, dtype=dtype, device=device) for dtype, _ in taken}
    inputs = {dtype: torch.rand(most, n, dtype=dtype, device=device) for dtype in matrices}
    outputs = {dtype: torch.empty_like(values) for dtype, values in inputs.items()}

    def products_alone() -> None:
        for dtype, rows in taken:
            torch.mm(inputs[dtype][:rows], matrices[dtype], out=outputs[dtype][:rows])

    return products_alone, int(solution.steps.max())


class Arena:
    """One case, its contestants prepared one after the other and then timed in turn."""

    def __init__(self, network: Network, rows: int, dtype: torch.dtype, target: float, limit: float):
        self.network, self.target, self.limit, self.dtype = network, target, limit, dtype
        self.problem = network.problem(rows, dtype)
        self.W, self.q = self.problem.linear.to_dense(), self.problem.q
        self.stop = Stop(rtol=target, atol=0.0)
        self.entries: dict[str, Contestant] = {}
        self.timers: dict[str, Timer] = {}

    def enter(self, entry: Contestant, z: Tensor | None, measure: Timer | None) -> None:
        """Judge an answer; whoever gave one is timed."""
        if z is not None:
            entry.residual = true_residual(self.W, self.q, z)
            if not entry.residual <= accepted(self.target, self.dtype):
                entry.failure = f"residual {entry.residual:.1e}"
        self.entries[entry.name] = entry
        if measure is not None:
            self.timers[entry.name] = measure

    def enter_ours(self, name: str, method: Method) -> None:
        def run() -> Tensor:
            return solve(self.problem, method, stop=self.stop, throw=False).z

        setup = min(self._setup_seconds(method) for _ in range(3))
        solution = solve(self.problem, method, stop=self.stop, throw=False)
        entry = Contestant(
            name=name, iterations=int(solution.steps.max()), setting=repr(method), setup_seconds=setup
        )
        self.enter(entry, solution.z, timer(run))

    def _setup_seconds(self, method: Method) -> float:
        fresh = replace(self.problem.rows(slice(0, 1)), linear=Dense(self.W.clone()))
        started = time.perf_counter()
        method.bind(fresh, self.stop.resolved(fresh))
        return time.perf_counter() - started

    def enter_bare(self) -> None:
        choice = OURS[DEFAULT].choose(self.problem, self.stop)
        if choice.method != OURS[SPLITTING]:
            self.enter(Contestant(name=BARE, failure=f"the default is {choice.method}: {choice.reason}"), None, None)
            return
        for name in (BARE, CHECKED):
            products, steps = bare_products(self.problem, self.stop, checks=name == CHECKED)
            self.enter(Contestant(name=name, iterations=steps), None, timer(products))

    def enter_reference(self) -> None:
        started = time.perf_counter()
        halved = reference.halved(self.W, self.q, self.target)
        self._enter_reference(HALVED, halved, time.perf_counter() - started)
        steps = sorted(ORACLE_STEPS, key=lambda alpha: abs(math.log(alpha / halved.alpha)))  # the likely ones first
        for name, choose in ((BEST_STEP, reference.best_step), (ORACLE, reference.oracle)):
            found = choose(self.W, self.q, self.target, steps)
            if found is None:
                self.enter(Contestant(name=name, failure="no step and tolerance reach the residual"), None, None)
            else:
                self._enter_reference(name, found, 0.0)

    def _enter_reference(self, name: str, setting: reference.Setting, trials: float) -> None:
        started = time.perf_counter()
        resolvent = reference.inverse(self.W, setting.alpha)
        entry = Contestant(
            name=name, setting=setting, setup_seconds=trials + time.perf_counter() - started
        )
        z, entry.iterations = reference.equilibrium(self.W, self.q, resolvent, setting)
        self.enter(entry, z, timer(lambda: reference.equilibrium(self.W, self.q, resolvent, setting)))

    def enter_rivals(self, rivals: other.Rivals) -> None:
        rivals.load(self.W, self.q, f"{self.network.name} {self.dtype}")
        for name in other.NAMES:
            entry = Contestant(name=name)
            try:
                z, found = rivals.prepare(name, self.target, accepted(self.target, self.dtype), self.limit)
            except other.RivalFailure as failure:
                entry.failure = str(failure)
                self.enter(entry, None, None)
                continue
            entry.setting, entry.iterations = found["setting"], found["evaluations"]
            self.enter(entry, z, _rival_timer(rivals, entry))

    def race(self, rounds: int, shortest: float) -> Case:
        """Everybody's times."""
        for name, times in in_turn(self.timers, rounds=rounds, shortest=shortest, budget=_BUDGET).items():
            self.entries[name].times = times
        return Case(
            network=self.network.name,
            rows=len(self.q),
            dtype=str(self.dtype).removeprefix("torch."),
            target=self.target,
            contestants=self.entries,
        )


def _rival_timer(rivals: other.Rivals, entry: Contestant) -> Timer:
    def measure(repeats: int) -> tuple[float, float]:
        try:
            return rivals.time(entry.name, entry.setting, repeats)
        except other.RivalFailure as failure:
            entry.failure = str(failure)
            return math.inf, math.inf

    return measure


def measure(
    network: Network, rows: int, dtype: torch.dtype, target: float, rivals: other.Rivals, given: argparse.Namespace
) -> Case:
    arena = Arena(network, rows, dtype, target, given.time_limit)
    for name, method in OURS.items():
        if (name != "one-precision" or dtype == torch.float64) and (name != NEWTON or rows <= NEWTON_ROWS):
            arena.enter_ours(name, method)
    arena.enter_bare()
    arena.enter_reference()
    arena.enter_rivals(rivals)
    return arena.race(given.rounds, 0.0 if given.small else _SHORTEST)


COLUMNS = (*list(OURS)[1:], HALVED, BEST_STEP, ORACLE, *other.NAMES)
_RIVALS = {"torchdiffeq's best": "torchdiffeq", "torchdeq's best": "torchdeq", BEST_STEP: BEST_STEP, ORACLE: ORACLE}


def table(cases: list[Case], clock: str) -> str:
    """Ratios of everybody's time to the default solver's, one table for each precision and residual."""
    lines: list[str] = []
    for dtype, target in dict.fromkeys((case.dtype, case.target) for case in cases):
        lines += [
            f"{dtype}, true relative residual {target:g}: {clock} time of the default solver, median (quartiles of the "
            "rounds), its ratio to the bare products of its own iterations, without and with those of its checks, and "
            "the time of each other divided by the default's; ratios are those within a round",
            "",
            f"| network | rows | default (ms) | / bare | / bare with checks | {' | '.join(COLUMNS)} |",
            "|---" * (5 + len(COLUMNS)) + "|",
        ]
        for case in cases:
            if (case.dtype, case.target) == (dtype, target):
                mine = case.times(DEFAULT)
                cells = [case.network, str(case.rows)]
                cells.append(_failed(case, DEFAULT) if mine is None else mine.text(clock, 1e-3))
                cells += [_cell(case, name, clock) for name in (BARE, CHECKED, *COLUMNS)]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, *verdict(cases, clock)]) + "\n"


def _cell(case: Case, name: str, clock: str) -> str:
    ratio = case.spread(name, clock)
    return spread(*ratio) if ratio is not None else _failed(case, name)


def _failed(case: Case, name: str) -> str:
    entry = case.contestants.get(name)
    return "–" if entry is None else f"failed: {entry.failure}"


def verdict(cases: list[Case], clock: str) -> list[str]:
    """The least favourable network for each claim, for every batch in float64 to 1e-6."""
    chosen = [case for case in cases if case.dtype == "float64" and case.target == 1e-6]
    lines = []
    for rows in sorted({case.rows for case in chosen}):
        some = [case for case in chosen if case.rows == rows]
        parts = []
        for label, prefix in _RIVALS.items():
            best = [min(found) for case in some if (found := _ratios(case, prefix, clock))]
            parts.append(f"{label} {min(best):.3g}× (on {len(best)} of {len(some)})" if best else f"{label} –")
        for name in (BARE, CHECKED):
            bare = [ratio for case in some if (ratio := case.ratio(name, clock)) is not None]
            parts.append(f"default / {name} at most {max(bare):.3g}" if bare else f"default / {name} –")
        lines.append(f"float64, 1e-6, {rows} rows, least favourable network: {', '.join(parts)}")
    return lines


def _ratios(case: Case, prefix: str, clock: str) -> list[float]:
    found = [case.ratio(name, clock) for name in case.contestants if name.startswith(prefix)]
    return [ratio for ratio in found if ratio is not None]


def read(path: Path) -> tuple[list[Case], str]:
    """The cases of a results.json, and the clock of its table.

    Raises:
        InputError: if the file is not such results.
    """
    try:
        return _cases(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be drawn ({type(error).__name__}: {error}); name a results.json") from error


def _cases(content: dict[str, Any]) -> tuple[list[Case], str]:
    cases = []
    for entry in content["cases"]:
        people = {
            name: Contestant(**person | {"times": person["times"] and Times(**person["times"])})
            for name, person in entry["contestants"].items()
        }
        cases.append(Case(**entry | {"contestants": people}))
    return cases, content["settings"]["clock"]


def finish(cases: list[Case], clock: str, folder: Path) -> None:
    from solve_time_plots import draw

    text = table(cases, clock)
    write_text(folder / "table.md", text)
    print(text)
    for name, figure in draw(cases, clock).items():
        print(f"wrote {write_figure(folder / f'{name}.png', figure, dpi=200)}")


def _goal(text: str) -> tuple[torch.dtype, float]:
    dtype, _, target = text.partition(":")
    known = {"float32": torch.float32, "float64": torch.float64}
    if dtype not in known:
        raise argparse.ArgumentTypeError(f"{text} is no goal such as float64:1e-6")
    return known[dtype], command_line.residual(target)


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.with_networks(command_line.timed(command_line.parser(__doc__, "solve-time"), rounds=21))
    parser.add_argument("--rows", type=command_line.whole, nargs="+", help="batch sizes (default 1 128 1000 10000)")
    parser.add_argument("--networks", nargs="+", help="only these (default all)")
    parser.add_argument(
        "--goals", nargs="+", type=_goal, metavar="DTYPE:RESIDUAL",
        help="default float64:1e-6 float64:1e-10 float32:1e-5",
    )
    parser.add_argument("--time-limit", type=command_line.positive, default=30.0, help="seconds of a solve of a rival")
    parser.add_argument("--rivals", type=Path, default=other.DEFAULT_PYTHON, help="Python with the other libraries")
    parser.add_argument("--redraw", type=Path, help="only print and draw this results.json again")
    given = parser.parse_args(arguments)
    if given.redraw is not None:
        finish(*read(given.redraw), output_directory(given.out))
        return
    torch.set_num_threads(given.threads)
    given.rounds = given.rounds or 21
    if given.small:
        given.rounds, given.time_limit = 1, min(given.time_limit, 0.6)
    rows = given.rows or ([1, 20] if given.small else [1, 128, 1000, 10000])
    found = list(networks(given.checkpoints, given.data_dir, small=given.small))
    names = [network.name for network in found]
    if given.networks:
        if strangers := [name for name in given.networks if name not in names]:
            parser.error(f"--networks: there is no {strangers[0]}, only {', '.join(names)}")
        found = [network for network in found if network.name in given.networks]
    folder = output_directory(given.out)
    goals = given.goals or [_goal(goal) for goal in (_SMALL_GOALS if given.small else _GOALS)]
    cases: list[Case] = []
    with other.Rivals(given.rivals, threads=given.threads, cpu_clock=given.clock == "cpu") as rivals:
        about = {"rivals": rivals.versions(), "settings": _settings(given, rows)}
        for network in found:
            for dtype, target in goals:
                for count in rows:
                    case = measure(network, count, dtype, target, rivals, given)
                    cases.append(case)
                    print(_line(case, given.clock), flush=True)
                    # after every case, so that an interrupted run has shown something
                    ratios = {name: ratio for each in cases for name, ratio in each.ours(given.clock).items()}
                    command_line.write_results(folder, ratios=ratios, cases=[asdict(each) for each in cases], **about)
    finish(cases, given.clock, folder)


def _settings(given: argparse.Namespace, rows: list[int]) -> dict[str, Any]:
    return {
        "rows": rows, "threads": given.threads, "rounds": given.rounds, "time_limit": given.time_limit,
        "clock": given.clock, "small": given.small, "shortest_measurement_seconds": _SHORTEST,
    }  # fmt: skip


def _line(case: Case, clock: str) -> str:
    mine = case.seconds(DEFAULT, clock)
    shown = "failed" if mine is None else f"{1e3 * mine:.3g} ms"
    best = {
        prefix: f"{min(found):.3g}×" if (found := _ratios(case, prefix, clock)) else "–"
        for prefix in (BEST_STEP, ORACLE, "torchdiffeq", "torchdeq")
    }
    bare, checked = (case.ratio(name, clock) or math.nan for name in (BARE, CHECKED))
    return (
        f"{case.network}, {case.rows} rows, {case.dtype}, {case.target:g}: {shown}, "
        f"{bare:.3g} times the products ({checked:.3g} with those of the checks); "
        + ", ".join(f"{name} {value}" for name, value in best.items())
    )


if __name__ == "__main__":
    command_line.run(main)
