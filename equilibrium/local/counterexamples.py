r"""Inputs near an anchor that refute a claim about it: an ascent from below, each of whose finds is checked.

A step goes towards the input of the surroundings that is best for the linearisation at the present one, first all the
way, as a power method does, then by less and less (Frank and Wolfe).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from equilibrium.local.network import LocalNetwork
from equilibrium.local.surroundings import Surroundings

_FULL = 4  # So many steps go all the way; later ones follow Frank and Wolfe.
_INSIDE = 1 - 1e-9  # A counterexample goes so far towards the border of its surroundings: its distance is rounded.


@dataclass(frozen=True, kw_only=True, eq=False)
class Counterexamples:
    """The best inputs that were found against claims row·y(x) < 0, one for each.

    Attributes:
        inputs: (m, in), each inside its surroundings.
        values: what row·y is at least there, less the certified error of its solve, (m,).
    """

    inputs: Tensor
    values: Tensor

    @property
    def refuted(self) -> Tensor:
        """Which of the claims are refuted, (m,)."""
        return self.values >= 0


def counterexamples(
    network: LocalNetwork,
    x: Tensor,
    rows: Tensor,
    around: Surroundings,
    steps: int,
    start: Tensor | None = None,
) -> Counterexamples:
    """Ascents of row·y over the surroundings; one that has refuted its claim ends.

    Args:
        network: the network.
        x: anchors, (m, in).
        rows: functionals of the output, (m, out).
        around: the surroundings of the anchors.
        steps: gradients at most.
        start: first moves, (m, in); None begins at the anchors.
    """
    best = x.clone()
    values = torch.full_like(x[:, 0], -torch.inf)
    move = torch.zeros_like(x) if start is None else start
    going = torch.arange(len(x))
    for k in range(steps + 1):
        here, row = around.rows(going), rows[going]
        inputs = x[going] + inside(move, here)
        anchors = network.anchors(inputs)
        value = (row * anchors.outputs).sum(-1) - network.reach(row) * anchors.output_error
        better = value > values[going]
        values[going] = torch.where(better, value, values[going])
        best[going] = torch.where(better[:, None], inputs, best[going])
        open_still = value < 0
        if k == steps or not bool(open_still.any()):
            break
        going, move = going[open_still], move[open_still]
        towards = farthest(_gradient(network, anchors.inner[open_still], row[open_still]), here.rows(open_still))
        move = move + (1.0 if k < _FULL else 2 / (k - _FULL + 3)) * (towards - move)
    return Counterexamples(inputs=best, values=values)


def _gradient(network: LocalNetwork, inner: Tensor, rows: Tensor) -> Tensor:
    """Of row·y in x, from slopes at the pre-activations, (m, in)."""
    system = network.system
    slopes = network.activation.derivative(inner)
    loop = torch.eye(system.size, dtype=inner.dtype) - system.W * slopes[:, None, :]
    adjoint = torch.linalg.solve(loop.mT, (slopes * (rows @ system.C))[..., None])[..., 0]
    return adjoint @ system.U + rows @ system.D


def farthest(direction: Tensor, around: Surroundings) -> Tensor:
    """The move of the surroundings that goes farthest in a direction, (m, in): clip(t·direction)."""
    radius = around.radius[:, None]
    unit = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True).clamp_min(1e-300)
    if around.low is None or around.high is None:
        return radius * unit
    low, high = (
        radius.clone(),
        (around.high - around.low).amax(-1, keepdim=True) / unit.abs().clamp_min(1e-9).amin(-1, keepdim=True),
    )
    high = torch.maximum(high, low)
    for _ in range(40):
        middle = (low * high).sqrt()
        long = torch.linalg.vector_norm((middle * unit).clamp(around.low, around.high), dim=-1, keepdim=True) > radius
        low, high = torch.where(long, low, middle), torch.where(long, middle, high)
    return (low * unit).clamp(around.low, around.high)


def inside(move: Tensor, around: Surroundings) -> Tensor:
    """The move made short enough to be one of the surroundings, (m, in)."""
    if around.low is not None and around.high is not None:
        move = move.clamp(around.low, around.high)
    norm = torch.linalg.vector_norm(move, dim=-1)
    return _INSIDE * move * (around.radius / norm.clamp_min(1e-300)).clamp_max(1.0)[:, None]
