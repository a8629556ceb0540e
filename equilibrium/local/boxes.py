"""What boxes of equilibria alone prove of classes: one coupled solve for each input, whatever the number of classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contracting.errors import PreconditionError
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz.certificate import Norm
from equilibrium.local.margins import batches, checked_labels, checked_rows
from equilibrium.local.network import LocalNetwork
from equilibrium.local.surroundings import Surroundings

_BATCH = 1000  # inputs per solve: enough rows for products at full speed, few enough for their memory


@torch.no_grad()
def box_leads(
    model: EquilibriumLayer | nn.Sequential,
    inputs: Tensor,
    labels: Tensor,
    radius: float,
    *,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    r"""Lower bounds of y_label − y_j for all ‖x' − x‖_∞ ≤ radius, by the coupled equilibrium: (count, classes).

    Over z ∈ [z̲, z̄] with middle m and half width h, y_label − y_j ≥ (y_label − y_j)(m) − |W_o,label − W_o,j|h, and the
    same of Dx. Zero for the label itself; the class is proved to stay where all others are positive.

    Args:
        model: the classifier, float64: an equilibrium layer, or an nn.Sequential of linear modules around one.
        inputs: (count, in), float64.
        labels: the classes, (count,), int64.
        radius: > 0, half the side of the box.
        bounds: smallest and largest value of an input, where inputs have a range: nothing outside is an input.

    Raises:
        InputError: on arguments that do not fit.
        PreconditionError: if α(⌈W⌉) ≥ 1, where a box need not have a box of equilibria, or nothing is certified.
    """
    checked_rows(inputs, labels)
    network = LocalNetwork(model)
    checked_labels(labels, network.outputs)
    if network.coupled is None:
        raise PreconditionError(
            "the coupled equilibrium needs α(⌈W⌉) < 1: train a NEMON(…), for which that holds, or take "
            "certified_within(…, norm=Norm.LINF), which needs Condition 1 only"
        )
    found = []
    for x, y in batches(inputs, labels, _BATCH):
        around = Surroundings.of(x, radius, bounds, Norm.LINF)
        assert around.low is not None and around.high is not None
        ends = network.coupled.enclosure(x + around.low, x + around.high)
        middle, moved = x + (around.low + around.high) / 2, (around.high - around.low) / 2
        state, half = (ends.high + ends.low) / 2, (ends.high - ends.low) / 2
        inside = nn.Sequential(*network.before)(middle)
        outputs = nn.Sequential(*network.after)(network.layer.weights().readout(state, inside))
        spread = _spread(network.system.C, y, half) + _spread(network.system.D, y, moved)
        # every product and sum rounds by a few units of what it adds up in absolute values
        added = _spread(network.system.C, y, state.abs()) + _spread(network.system.D, y, middle.abs()) + spread
        room = 1e-12 * (added + outputs.abs() + outputs.abs().amax(-1, keepdim=True))
        leads = outputs.gather(-1, y[:, None]) - outputs - spread - room
        leads[torch.arange(len(y)), y] = 0.0
        found.append(leads.nan_to_num(nan=-torch.inf))  # where an end is infinite
    return torch.cat(found)


def _spread(rows: Tensor, labels: Tensor, half: Tensor) -> Tensor:
    """|row of the label − row of every class| · half: (classes, m), (batch,), (batch, m) -> (batch, classes)."""
    differences = (rows[:, None] - rows).abs()
    return (differences[labels] @ half[..., None])[..., 0]
