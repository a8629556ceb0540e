"""On an accelerator: the contract of every solver, solves and training steps timed, and how often it is waited for.

The contract suite of the solvers runs with all problems on the device. A solve of the default is timed beside its bare
products and beside forward–backward, a training step beside the same on the processor; the numbers that come to the
host in a solve are counted beside the planned checks of its residual. Whatever does not begin within --seconds is
skipped and named. Without an accelerator all of it is skipped, and the script says so; --device cpu runs it on the
processor, to see that it works.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import command_line
import torch
from cases import Network, digits_network
from solve_time import bare_products
from torch import nn

from contracting.contracts import SolverContract
from contracting.loop.method import Method
from contracting.loop.records import Solution, Stop
from contracting.loop.rows import Rows
from contracting.loop.run import solve
from contracting.solvers.automatic import Automatic
from contracting.solvers.catalogue import default_solvers
from contracting.solvers.fista import FISTA
from contracting.solvers.splitting import ForwardBackward
from equilibrium.experiments.timing import Spread, Timer, in_turn, spread, timer
from equilibrium.files import output_directory

_GOALS = ((torch.float32, 1e-5), (torch.float64, 1e-6))
_SHORTEST = 0.1  # A measurement lasts at least so many seconds, so that a cold start counts for little.
_BUDGET = 10.0  # After three rounds nobody gets more seconds in one case.


class OnDevice(SolverContract):
    """The contract of one solver, on one device."""

    def __init__(self, solver: Method, device: torch.device):
        self.solver, self.device = solver, device

    def method(self) -> Method:
        return self.solver

    def broken(self) -> dict[str, str]:
        """What is not kept, by the name of the promise."""
        found = {}
        for name in sorted(name for name in dir(self) if name.startswith("test_")):
            try:
                getattr(self, name)()
            except Exception as error:  # whatever a device may raise is what is looked for
                found[name.removeprefix("test_")] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return found


class Budget:
    """Parts of the run, each of which begins only while there is time."""

    def __init__(self, seconds: float):
        self.end, self.skipped = time.monotonic() + seconds, list[str]()

    def allows(self, name: str) -> bool:
        """Whether a part may begin; it is named at the end otherwise."""
        if time.monotonic() < self.end:
            return True
        self.skipped.append(name)
        return False


def finished(device: torch.device, run: Callable[[], object]) -> Timer:
    """The timer of work on a device, which is over when the device has done it."""

    def whole() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return timer(whole)


def contracts(device: torch.device, budget: Budget, *, small: bool) -> dict[str, dict[str, str]]:
    """What each solver does not keep; one that needs a self-adjoint weight is not asked."""
    solvers = {name: solver for name, solver in default_solvers().items() if not isinstance(solver, FISTA)}
    if small:
        solvers = dict(list(solvers.items())[:2])
    return {
        name: OnDevice(solver, device).broken()
        for name, solver in solvers.items()
        if budget.allows(f"the contract of {name}")
    }


def solves(network: Network, rows: int, dtype: torch.dtype, target: float, given: Any) -> dict[str, Spread]:
    """The default over its bare products, and over forward–backward."""
    problem, stop = network.problem(rows, dtype), Stop(rtol=target, atol=0.0)
    bare, _ = bare_products(problem, stop, checks=True)
    people = {"default": partial(solve, problem, Automatic(), stop=stop), "bare-with-checks": bare}
    people["ForwardBackward"] = partial(solve, problem, ForwardBackward(), stop=stop)
    timers = {name: finished(problem.template.device, run) for name, run in people.items()}
    times = in_turn(timers, rounds=given.rounds, shortest=0.0 if given.small else _SHORTEST, budget=_BUDGET)
    where = f"{given.device}: solve, {rows} rows, {str(dtype).removeprefix('torch.')}, {target:g}: default"
    return {f"{where} / {name}": times["default"].over(times[name], given.clock) for name in list(people)[1:]}


def training(network: Network, rows: int, given: Any) -> dict[str, Spread]:
    """A forward and backward pass on the device over that on the processor."""
    layers = {"device": network.layer.float(), "cpu": copy.deepcopy(network.layer).float().cpu()}
    inputs = network.inputs[torch.arange(rows) % len(network.inputs)].float()
    labels = torch.arange(rows) % network.layer.out_features

    def step(layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        layer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(layer(x), y).backward()

    timers = {}
    for name, layer in layers.items():
        device = torch.device(given.device if name == "device" else "cpu")
        timers[name] = finished(device, partial(step, layer, inputs.to(device), labels.to(device)))
    times = in_turn(timers, rounds=given.rounds, shortest=0.0 if given.small else _SHORTEST, budget=_BUDGET)
    ratio = times["device"].over(times["cpu"], "wall")
    return {f"{given.device}: training step, {rows} rows, float32: {given.device} / cpu": ratio}


def waits(network: Network, rows: int, dtype: torch.dtype, target: float) -> dict[str, int]:
    """How often one solve waits for a CUDA device, as torch sees it, beside its looks at the residual."""
    problem, stop = network.problem(rows, dtype), Stop(rtol=target, atol=0.0)
    looks, check = [0], Rows.check

    def counted(rows: Rows, *arguments: Any, **options: Any) -> None:
        looks[0] += 1
        check(rows, *arguments, **options)

    def solved() -> Solution:
        return solve(problem, Automatic(), stop=stop)

    solved()  # so that all that depends on the weight is known
    Rows.check = counted  # type: ignore[method-assign]
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            if problem.template.is_cuda:
                torch.cuda.set_sync_debug_mode("warn")
            steps = int(solved().steps.max())
    finally:
        Rows.check = check  # type: ignore[method-assign]
        if problem.template.is_cuda:
            torch.cuda.set_sync_debug_mode("default")
    # the record of the solve is five arrays that go to the device at its end, and the steps are read here
    return {"steps": steps, "looks": looks[0], "waits": sum("synchroniz" in str(one.message) for one in seen)}


def table(
    device: str, kept: dict[str, dict[str, str]], ratios: dict[str, Spread], waited: dict[str, Any], skipped: list[str]
) -> str:
    lines = [f"Contracts on {device}", ""]
    for name, broken in kept.items():
        lines += [f"{name}: {'all kept' if not broken else f'{len(broken)} not kept'}"]
        lines += [f"    {promise}: {reason}" for promise, reason in broken.items()]
    lines += ["", "| ours / other, less is better | median (quartiles) |", "|---|---|"]
    lines += [f"| {name} | {spread(*ratio)} |" for name, ratio in ratios.items()]
    lines += ["", *(f"{name}: {', '.join(f'{v} {k}' for k, v in one.items())}" for name, one in waited.items())]
    if skipped:
        lines += ["", f"skipped for lack of time: {', '.join(skipped)}"]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.timed(command_line.parser(__doc__, "accelerator"), rounds=11)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default cuda")
    parser.add_argument("--seconds", type=command_line.positive, default=240.0, help="of all parts (default 240)")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "torch finds no CUDA device: skipped the contracts of the solvers, the ratios of solves and training steps "
            "and the count of waits there; --device cpu runs them on the processor"
        )
        return
    torch.set_num_threads(given.threads)
    given.rounds = given.rounds or (2 if given.small else 11)
    folder, budget, device = output_directory(given.out), Budget(given.seconds), torch.device(given.device)
    network = digits_network(small=given.small)
    network.layer.to(device)
    ratios: dict[str, Spread] = {}
    waited = {}
    for rows in [20] if given.small else [1, 128, 1000, 10_000]:
        for dtype, target in _GOALS:
            name = f"{rows} rows, {dtype}, {target:g}"
            if budget.allows(f"solves of {name}"):
                ratios |= solves(network, rows, dtype, target, given)
                waited[name] = waits(network, rows, dtype, target)
        if budget.allows(f"training steps of {rows} rows"):
            ratios |= training(network, rows, given)
    kept = contracts(device, budget, small=given.small)
    command_line.finish(
        folder, table(given.device, kept, ratios, waited, budget.skipped), ratios=ratios,
        settings=command_line.settings(given), contracts=kept, waits=waited, skipped=budget.skipped,
    )  # fmt: skip


if __name__ == "__main__":
    command_line.run(main)
