"""Between two looks at the residual nothing comes to the host and nothing leaves it; a look is one transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from contracting.activations.catalogue import ReLU, Tanh
from contracting.flows.splitting import PeacemanRachfordFlow
from contracting.integrators import RK4, DormandPrince, ExplicitEuler
from contracting.loop.method import Method
from contracting.loop.records import Stop
from contracting.loop.rows import Rows
from contracting.loop.run import solve
from contracting.problem import EquilibriumProblem
from contracting.solvers.anderson import Anderson
from contracting.solvers.automatic import Automatic
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from contracting.solvers.tseng import Tseng
from tests.host import Traffic
from tests.problems import monotone_weight, planted

STAYING = (
    Automatic(), PeacemanRachford(mixed_precision=False), DouglasRachford(mixed_precision=False), ForwardBackward(),
    Tseng(), Anderson(ForwardBackward()), ExplicitEuler(), RK4(flow=PeacemanRachfordFlow()), DormandPrince(),
)  # fmt: skip

# These ask for the prox of a curved activation from scratch, which is a search of its own.
SEARCHING = (ForwardBackward(), Tseng(), Anderson(ForwardBackward()), RK4(flow=PeacemanRachfordFlow()))


@dataclass
class Seen:
    """What crossed between host and device in one solve: at looks, and apart from them."""

    looks: int
    at_looks: list[str]
    apart: list[str]


def seen(monkeypatch: pytest.MonkeyPatch, problem: EquilibriumProblem, method: Method) -> Seen:
    stop = Stop(rtol=1e-4, atol=0.0)
    solve(problem, method, stop=stop)  # so that all that depends on the weight is known
    found, check, looking = Seen(0, [], []), Rows.check, [False]

    class Sorted(Traffic):
        def note(self, name: str) -> None:
            super().note(name)
            (found.at_looks if looking[0] else found.apart).append(self.seen[-1])

    def watched(rows: Rows, *arguments: Any, **options: Any) -> None:
        found.looks, looking[0] = found.looks + 1, True
        check(rows, *arguments, **options)
        looking[0] = False

    with monkeypatch.context() as patch, Sorted():
        patch.setattr(Rows, "check", watched)
        solution = solve(problem, method, stop=stop)
    assert int(solution.steps.max()) > 1
    return found


def problem(dtype: torch.dtype, activation: Any = None) -> EquilibriumProblem:
    W, lam = monotone_weight(12, seed=1)
    # more rows than numpy takes the steps of, where there is no device but the host
    return planted(activation or ReLU(), W.to(dtype), lam.to(dtype), batch=20, seed=2)[0]


@pytest.mark.parametrize(
    ("method", "activation"),
    [*((method, ReLU()) for method in STAYING), *((method, Tanh()) for method in STAYING if method not in SEARCHING)],
    ids=str,
)
def test_a_solve_reads_at_its_looks_only_and_once_in_each(
    monkeypatch: pytest.MonkeyPatch, method: Method, activation: Any
) -> None:
    found = seen(monkeypatch, problem(torch.float32, activation), method)
    assert found.apart == []
    assert len(found.at_looks) == found.looks, found.at_looks


def test_the_default_in_float64_reads_two_norms_for_each_float32_part_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen(monkeypatch, problem(torch.float64), Automatic())
    assert len(found.at_looks) == found.looks
    assert len(found.apart) <= 2 * found.looks and all("reflected_single" in line for line in found.apart)


@dataclass(frozen=True)
class Nosy(ForwardBackward):
    """Looks at its state in every step, or brings an array."""

    how: str = "float"

    def bind(self, problem: Any, stop: Stop) -> Any:
        iteration: Any = super().bind(problem, stop)
        step = iteration.step

        def nosy(state: Any) -> Any:
            z: Tensor = state[0]
            if self.how == "float":
                float(z.sum())
            elif self.how == "mask":
                z[z > 0]
            elif self.how == "where":
                torch.where(z > 0)
            else:
                torch.tensor([1.0, 2.0])
            return step(state)

        iteration.step = nosy
        iteration.advance = lambda state, taken, steps: [state := nosy(state) for _ in range(steps)][-1]
        return iteration


@pytest.mark.parametrize("how", ["float", "mask", "where", "tensor"])
def test_one_that_reads_in_every_step_is_seen(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    assert len(seen(monkeypatch, problem(torch.float32), Nosy(how=how)).apart) > 3


def test_what_searches_reads_whether_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line search of Newton's methods, and each prox of a curved activation where no step remembers the last."""
    newton = seen(monkeypatch, problem(torch.float32), SemismoothNewton())
    assert any("newton" in line for line in newton.apart)
    prox = seen(monkeypatch, problem(torch.float32, Tanh()), ForwardBackward())
    assert prox.apart and all("activations/base" in line for line in prox.apart)
