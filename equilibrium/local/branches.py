r"""Branch and bound: a claim that one inequality leaves open is split by the side of a neuron, again and again.

For an activation of two pieces. A node is a claim and the sides of some neurons; at the moves of a node these neurons
are linear, and each side is a cut like the claim itself. A node ends where no move is left that refutes the claim. All
nodes of all claims go on together, one neuron deeper in each round.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from equilibrium.local.counterexamples import counterexamples
from equilibrium.local.passes import Narrowing
from equilibrium.local.slopes import one_sided

_KNOWN = 1e3  # A pre-activation is split if it is so many times as large as its error.


class Branched(NamedTuple):
    """What became of each claim.

    Attributes:
        proved: (m,).
        refuted: (m,).
        inputs: that refute it, (m, in).
    """

    proved: Tensor
    refuted: Tensor
    inputs: Tensor


def branched(claimed: Narrowing, x: Tensor, rows: Tensor, lead: Tensor, *, nodes: int, attack: int) -> Branched:
    """Prove or refute claims row·Δy < lead, as far as a number of nodes for each goes.

    Args:
        claimed: narrowings against the claims, in the same order.
        x: anchors, (m, in).
        rows: functionals of the output, (m, out).
        lead: (m,).
        nodes: of each claim at most.
        attack: gradients of the ascent from the worst move of each node.
    """
    network, count = claimed.network, len(rows)
    refuted, given_up = (torch.zeros(count, dtype=torch.bool) for _ in range(2))
    spent, inputs = torch.zeros(count, dtype=torch.int64), x.clone()
    owner = torch.arange(count)
    if not one_sided(network.activation):
        return Branched(refuted, refuted, inputs)
    known = claimed.anchors.inner.abs() > _KNOWN * claimed.anchors.inner_error  # of each claim
    while len(owner):
        here = rows[owner]
        found, influence, worst = claimed.examined(
            torch.arange(len(owner)), here[:, None], torch.ones_like(here[:, :1])
        )
        drops, moves = found[:, 0], worst[:, 0]
        going = torch.nonzero(~(drops < lead[owner])).flatten()
        if attack and len(going):
            who = owner[going]
            fooled = counterexamples(network, x[who], rows[who], claimed.around.rows(going), attack, moves[going])
            refuted[who[fooled.refuted]] = True
            inputs[who[fooled.refuted]] = fooled.inputs[fooled.refuted]
        score = torch.where(claimed.slopes.live & known[owner], influence.clamp_min(0) + 1e-30, 0.0)
        stuck = score.amax(-1) == 0
        last = going[stuck[going]]
        if len(last):
            ends = claimed.sided(last).drop(torch.arange(len(last)), rows[owner[last]]) < lead[owner[last]]
            going = going[~torch.isin(going, last[ends])]
        spent += torch.bincount(owner[going], minlength=count) * 2
        given_up[owner[going[stuck[going]]]] = True
        given_up |= spent > nodes
        going = going[~(refuted | given_up)[owner[going]]]
        if not len(going):
            break
        claimed.keep(going)
        claimed, owner = claimed.split(score[going].argmax(-1)), owner[going].repeat(2)
        claimed.step()
    given_up &= ~refuted
    return Branched(~refuted & ~given_up, refuted, inputs)
