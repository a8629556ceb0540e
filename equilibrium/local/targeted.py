r"""Attacks on every other class: ascents of yⱼ − y_label over a ball, cut by the range of the inputs.

They know nothing of any certificate, and so test one: no x' with ‖x' − x‖₂ ≤ r may have a smaller lead y_label − yⱼ
than is proved. Steps follow the gradient, begin as long as the radius and shrink; then an ascent begins anew at a
random point. The best point of every start is brought inside exactly, and evaluated anew in float64.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.display import Displayed
from equilibrium.local.margins import checked_labels, checked_rows, margins
from equilibrium.local.surroundings import Surroundings

_BATCH = 1000  # ascents at a time: what a step reads and writes stays in the cache
_SHORTEST = 0.01  # The last step of a start, in radii. Within 50 steps down to it ascents end where 200 do (MNIST).
_INSIDE = 1 - 1e-12  # of the radius, so that rounding leaves x' inside


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TargetedAttack(Displayed):
    """The smallest leads that were found within a radius of each input.

    Attributes:
        inputs: x' of the smallest lead over any other class, (count, in).
        leads: the smallest y_label − yⱼ that was found, (count, classes); ∞ for the label itself.
    """

    inputs: Tensor
    leads: Tensor

    @property
    def fooled(self) -> Tensor:
        """Whether another class leads at x', (count,)."""
        return self.leads.amin(-1) < 0


def targeted_attack(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    radius: Tensor | float,
    *,
    bounds: tuple[float, float] | None = None,
    verify: nn.Module | None = None,
    steps: int = 500,
    restarts: int = 9,
    seed: int = 0,
    batch_size: int = _BATCH,
    on_batch: Callable[[int], None] | None = None,
) -> TargetedAttack:
    r"""The smallest lead over every other class that projected ascents find for ‖x' − x‖₂ ≤ radius.

    Args:
        model: (batch, in) -> (batch, classes), differentiable; a float32 one is faster.
        inputs: (count, in), float64.
        labels: (count,).
        radius: > 0, a number or one for each input.
        bounds: smallest and largest value of an input, to which x' is clipped; None for no limits.
        verify: the model whose leads count, float64; None takes ``model``.
        steps: gradients for each other class, of all starts together.
        restarts: from random points of the sphere, after the one start at x.
        seed: of these points.
        batch_size: ascents at a time.
        on_batch: called after each batch with its number of ascents.

    Raises:
        InputError: on sizes or labels that do not fit, inputs outside the bounds, or fewer steps than starts.
    """
    checked_rows(inputs, labels)
    around = Surroundings.of(inputs, radius, bounds)
    checks.whole_number("restarts", restarts, low=0)
    checks.whole_number("steps", steps, low=restarts + 1)
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    climbed, judge = (_fixed(each) for each in (model, model if verify is None else verify))
    with torch.no_grad():
        checked_labels(labels, judge(inputs[:1]).shape[-1])
    leads = _leads(judge, inputs, labels)
    leads[torch.arange(len(labels)), labels] = math.inf
    least, best = leads.amin(-1), inputs.clone()
    rows, targets = torch.nonzero(torch.isfinite(leads), as_tuple=True)
    each_start = [len(part) for part in torch.arange(steps).tensor_split(restarts + 1)]
    for part in torch.split(torch.arange(len(rows)), batch_size):
        row, target = rows[part], targets[part]
        x, y, here = inputs[row], labels[row], around.rows(row)
        for start, count in enumerate(each_start):
            move = torch.zeros_like(x)
            if start:
                move = 1e3 * here.radius[:, None] * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            move = _ascent(climbed, x, y, target, move, here, count)
            moved = x + _INSIDE * _projected(move.to(x), here)
            lead = _leads(judge, moved, y)[torch.arange(len(y)), target]
            leads[row, target] = torch.minimum(leads[row, target], lead)
            smallest = leads[row].amin(-1)
            better = (lead <= smallest) & (smallest < least[row])
            best[row[better]], least[row[better]] = moved[better], lead[better]
        if on_batch is not None:
            on_batch(len(part))
    return TargetedAttack(inputs=best, leads=leads)


@torch.enable_grad()
def _ascent(
    model: nn.Module, x: Tensor, y: Tensor, target: Tensor, move: Tensor, around: Surroundings, steps: int
) -> Tensor:
    """The move of the smallest lead on the way, in the precision of the model."""
    like = next(itertools.chain(model.parameters(), model.buffers()), x)
    x, around = x.to(like), around.to(like.dtype)
    move = best = _projected(move.to(like), around)
    least = torch.full_like(x[:, 0], math.inf)
    for k in range(steps):
        point = (x + move).requires_grad_()
        outputs = model(point)
        lead = (outputs.gather(1, y[:, None]) - outputs.gather(1, target[:, None]))[:, 0]
        (gradient,) = torch.autograd.grad(lead.sum(), point)
        better = lead.detach() < least
        least, best = torch.where(better, lead.detach(), least), torch.where(better[:, None], move, best)
        norm = torch.linalg.vector_norm(gradient, dim=-1)
        length = around.radius * _SHORTEST ** (k / max(1, steps - 1)) / norm
        move = _projected(move - torch.where(norm > 0, length, 0.0)[:, None] * gradient, around)
    return best


def _projected(move: Tensor, around: Surroundings) -> Tensor:
    """A move made short enough: clipped to the range of the inputs, then scaled, which leaves it in the range."""
    if around.low is not None and around.high is not None:
        move = torch.minimum(torch.maximum(move, around.low), around.high)
    norm = torch.linalg.vector_norm(move, dim=-1)
    return move * (around.radius / norm.clamp_min(torch.finfo(move.dtype).tiny)).clamp_max(1)[:, None]


def _fixed(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode without gradients to parameters: an equilibrium layer then keeps its weights."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def _leads(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    found: Tensor = margins(model(inputs).to(inputs), labels)
    return found
