"""Where the time of a training step goes: each part alone, on the weights and the batch of the step.

What is left over is the work of Python and of autograd between the parts, and one in ten computes the estimates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from contracting.maps.dense import Dense
from equilibrium.experiments.timing import Times, in_turn, timer
from equilibrium.layers import LBEN

_BUDGET = 20.0  # Seconds for each part.


def parts(layer: LBEN, inputs: Tensor, *, rounds: int) -> dict[str, Times]:
    """Times of the parts, of a layer that has just taken a step with these inputs, (batch, in)."""
    free, solves = layer.parameterization, layer.last_solves
    weights = free.explicit()
    problem = weights.problem(inputs, layer.activation).detach()
    W, q = problem.linear.to_dense(), problem.q
    step = 1 / (1 - W.diagonal())
    reflection = Dense(W).make_reflection(step)
    z, cotangent = torch.relu(q), torch.randn_like(W)
    assert solves.forward is not None and solves.backward is not None
    steps = sum(int(solve.numbers()["steps"]) for solve in (solves.forward, solves.backward))

    def backward() -> None:
        made = free.explicit()
        term = made.input_term(inputs)
        torch.autograd.backward([made.state.to_dense(), term], [cotangent, q])
        free.zero_grad(set_to_none=True)

    def forward() -> Tensor:
        return free.explicit().input_term(inputs)

    def norm(rows: Tensor) -> Tensor:
        return torch.linalg.vector_norm(rows, dim=-1)

    def checks() -> None:
        for _ in range(2):
            problem.look(z, norm)

    named: dict[str, Callable[[], object]] = {
        "weights, Ux + b": forward,
        "these and their gradients": backward,
        "inverse": lambda: Dense(W).make_reflection(step),
        f"{steps} steps": lambda: reflection.iterated(torch.abs, q, q, steps),
        "two checks": checks,
        "dW": lambda: q.mT @ z,
    }
    return in_turn({name: timer(run) for name, run in named.items()}, rounds=rounds, shortest=0.02, budget=_BUDGET)
