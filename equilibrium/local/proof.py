r"""Whether the class stays all over the surroundings of an input: margins against drops, pair by pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.display import Displayed
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz.certificate import Norm
from equilibrium.local.finder import Effort
from equilibrium.local.margins import checked_labels, checked_rows, margins
from equilibrium.local.network import Anchors, LocalNetwork
from equilibrium.local.passes import Narrowing, pieces
from equilibrium.local.surroundings import Surroundings


@dataclass(frozen=True, kw_only=True)
class LocalSearch:
    """How hard local statements are looked for.

    Attributes:
        passes: how often the slopes around an anchor are made narrower at most; a row that is proved takes no more.
        effort: of each search.
        accuracy: a radius is searched to this share of itself.
    """

    passes: int = 4
    effort: Effort = Effort()
    accuracy: float = 0.05

    def __post_init__(self) -> None:
        checks.whole_number("passes", self.passes, low=0)
        checks.number("accuracy", self.accuracy, low=0, high=1, low_open=True, high_open=True)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClassProof(Displayed):
    """For each input, what is known of its class all over its surroundings.

    Attributes:
        proved: the class is the label everywhere, (count,).
        leads: a lower bound of yᵢ − yⱼ of the label i, where it was looked at: (count, classes); ∞ for the label itself
            and where the global constant decides.
        undecided: neurons that are not known to be linear, as far as it was looked at, (count,).
        radius: of the smallest balls of ℓ2 that hold the surroundings, (count,).
    """

    proved: Tensor
    leads: Tensor
    undecided: Tensor
    radius: Tensor


@torch.no_grad()
def certified_within(
    model: EquilibriumLayer | nn.Sequential,
    inputs: Tensor,
    labels: Tensor,
    radius: Tensor | float,
    *,
    bounds: tuple[float, float] | None = None,
    norm: Norm = Norm.L2,
    constants: Tensor | None = None,
    search: LocalSearch | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> ClassProof:
    r"""For which inputs the class is proved to stay the label for all ‖x' − x‖ ≤ radius.

    Args:
        model: the classifier, float64: an equilibrium layer, or an nn.Sequential of linear modules around one.
        inputs: (count, in), float64.
        labels: the true classes, (count,), int64.
        radius: > 0, a number or one for each input.
        bounds: smallest and largest value of an input, where inputs have a range: nothing outside is an input.
        norm: of the ball, ℓ2 or ℓ∞.
        constants: Lipschitz constants in ℓ2 of yᵢ − yⱼ, (classes, classes), such as
            ``pairwise_lipschitz(model).bounds``: what they decide is looked at no further.
        search: how hard to look; None takes ``LocalSearch()``.
        on_batch: called after each batch with its number of inputs.

    Raises:
        InputError: on arguments that do not fit.
        PreconditionError: if the equilibria of the model are not certified.
        SolveError: if a row does not converge.
    """
    checked_rows(inputs, labels)
    network = LocalNetwork(model)
    checked_labels(labels, network.outputs)
    search = LocalSearch() if search is None else search
    around = Surroundings.of(inputs, radius, bounds, norm)
    wide = None if constants is None else checks.shape("constants", constants, (network.outputs,) * 2).to(inputs)
    parts = []
    for part in pieces(network, len(inputs), network.size):
        x, here = inputs[part], around.rows(part)
        parts.append(prove(network, x, network.anchors(x), labels[part], here, wide, search))
        if on_batch is not None:
            on_batch(len(labels[part]))
    return ClassProof(
        **{name: torch.cat([vars(part)[name] for part in parts]) for name in ("proved", "leads", "undecided", "radius")}
    )


def prove(
    network: LocalNetwork,
    x: Tensor,
    anchors: Anchors,
    labels: Tensor,
    around: Surroundings,
    constants: Tensor | None,
    search: LocalSearch,
) -> ClassProof:
    """``certified_within`` of some anchors; a row goes on for as long as it has a pair that is not proved."""
    count, classes = anchors.outputs.shape
    identity = torch.eye(classes, dtype=torch.float64)
    lead = margins(anchors.outputs, labels) - _doubt(network, anchors, identity, labels)
    lead[torch.arange(count), labels] = torch.inf
    found = lead.clone()
    right = (lead > 0).all(-1)
    open_pairs = right[:, None] & torch.isfinite(lead)
    if constants is not None:
        decided = lead > around.radius[:, None] * constants[labels]
        found = torch.where(decided & open_pairs, torch.inf, found)
        open_pairs &= ~decided
    found = torch.where(open_pairs, -torch.inf, found)
    undecided = torch.full((count,), network.size)
    rows = torch.nonzero(open_pairs.any(-1)).flatten()
    if len(rows):
        here = around.rows(rows)
        enclosure = network.enclosure(x[rows], here)
        narrowing = Narrowing(network, anchors.rows(rows), here, search.effort, enclosure=enclosure)
        for k in range(search.passes + 1):
            if k:
                narrowing.step()
            undecided[rows] = narrowing.slopes.undecided
            places, columns = torch.nonzero(open_pairs[rows], as_tuple=True)
            functionals = identity[columns] - identity[labels[rows[places]]]
            least = lead[rows[places], columns] - narrowing.drop(places, functionals)
            found[rows[places], columns] = torch.maximum(found[rows[places], columns], least)
            open_pairs[rows[places], columns] = ~(found[rows[places], columns] > 0)
            going = torch.nonzero(open_pairs[rows].any(-1)).flatten()
            if not len(going):
                break
            if len(going) < len(rows):
                rows = rows[going]
                narrowing.keep(going)
    return ClassProof(proved=right & ~open_pairs.any(-1), leads=found, undecided=undecided, radius=around.radius)


def _doubt(network: LocalNetwork, anchors: Anchors, identity: Tensor, labels: Tensor) -> Tensor:
    """How far each lead can be wrong for the error of the equilibrium, (batch, classes)."""
    reach = network.reach(identity[:, None] - identity[None, :])
    return reach[labels] * anchors.output_error[:, None]
