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
from equilibrium.local.branches import branched
from equilibrium.local.counterexamples import counterexamples
from equilibrium.local.finder import Effort
from equilibrium.local.given import Constants, pair_constants
from equilibrium.local.margins import checked_labels, checked_rows, margins
from equilibrium.local.network import Anchors, LocalNetwork
from equilibrium.local.passes import Narrowing, pieces
from equilibrium.local.surroundings import Surroundings


@dataclass(frozen=True, kw_only=True)
class LocalSearch:
    """How hard local statements are looked for.

    Attributes:
        passes: how often the slopes around an anchor are made narrower at most; a row that is proved takes no more.
        attack: gradients of the ascent that looks for a counterexample after the first pass; a row that is refuted
            takes no more.
        claims: how often the slopes are made narrower for each claim y_label > yⱼ that is left, at the moves that
            refute it only.
        branches: nodes of the branch and bound of each claim that is left then, at most; 0 for none. It serves
            activations of two pieces (ReLU, LeakyReLU).
        effort: of each search.
        accuracy: a radius is searched to this share of itself.
    """

    passes: int = 3
    attack: int = 30
    claims: int = 4
    branches: int = 0
    effort: Effort = Effort()
    accuracy: float = 0.05

    def __post_init__(self) -> None:
        for name in ("passes", "attack", "claims", "branches"):
            checks.whole_number(name, getattr(self, name), low=0)
        checks.number("accuracy", self.accuracy, low=0, high=1, low_open=True, high_open=True)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClassProof(Displayed):
    """For each input, what is known of its class all over its surroundings.

    Attributes:
        proved: the class is the label everywhere, (count,).
        refuted: there is an input with another class, (count,); rows with neither are open.
        counterexamples: such inputs, (count, in), each checked with the certified error of its solve; the input itself
            where none was found.
        leads: a lower bound of yᵢ − yⱼ of the label i, where it was looked at: (count, classes); ∞ for the label itself
            and where the global constant decides, 0 where it is larger because the contrary was refuted. The least one
            is the gap of a row that is open.
        branched: whether it took branch and bound to know that, (count,).
        undecided: neurons that are not known to be linear, as far as it was looked at, (count,).
        radius: of the smallest balls of ℓ2 that hold the surroundings, (count,).
    """

    proved: Tensor
    refuted: Tensor
    counterexamples: Tensor
    leads: Tensor
    branched: Tensor
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
    constants: Constants | None = None,
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
        constants: for all inputs, of these very weights, such as ``pairwise_lipschitz(model)``; otherwise as for
            ``certified_radius``. What they decide is looked at no further.
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
    wide = None if constants is None else pair_constants(constants, model, network.outputs).to(inputs)
    parts = []
    for part in pieces(network, len(inputs), network.size):
        x, here = inputs[part], around.rows(part)
        parts.append(prove(network, x, network.anchors(x), labels[part], here, wide, search))
        if on_batch is not None:
            on_batch(len(labels[part]))
    return ClassProof(**{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})


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
    ledger = _Ledger(network, x, anchors, labels, around)
    if constants is not None:
        ledger.take_global(constants)
    rows = torch.nonzero(ledger.open.any(-1)).flatten()
    if not len(rows):
        return ledger.proof()
    here = around.rows(rows)
    enclosure = network.enclosure(x[rows], here)
    narrowing = Narrowing(network, anchors.rows(rows), here, search.effort, enclosure=enclosure)
    for k in range(search.passes + 1):
        if k:
            narrowing.step()
        ledger.undecided[rows] = narrowing.slopes.undecided
        places, columns, claims, weights = ledger.together(rows)
        drops = narrowing.examined(torch.arange(len(rows)), claims, weights)[0]
        ledger.take(rows[places], columns, drops[weights > 0])
        if k == min(1, search.passes) and search.attack:
            ledger.attack(search.attack)
        going = torch.nonzero(ledger.open[rows].any(-1)).flatten()
        if not len(going):
            return ledger.proof()
        rows = rows[going]
        narrowing.keep(going)
    places, columns = torch.nonzero(ledger.open[rows], as_tuple=True)
    rows = rows[places]
    claims = ledger.claims(rows, columns)
    claimed = narrowing.against(places, claims, ledger.lead[rows, columns])
    for _ in range(search.claims):
        claimed.step()
        ledger.undecided[rows] = claimed.slopes.undecided
        ledger.take(rows, columns, claimed.drop(torch.arange(len(rows)), claims), refuting=True)
        going = torch.nonzero(ledger.open[rows, columns]).flatten()
        if not len(going):
            break
        rows, columns, claims = rows[going], columns[going], claims[going]
        claimed.keep(going)
    if search.branches and len(going := torch.nonzero(ledger.open[rows, columns]).flatten()):
        rows, columns, claims = rows[going], columns[going], claims[going]
        lead = ledger.lead[rows, columns]
        ledger.branched[rows] = True
        found = branched(claimed, x[rows], claims, lead, nodes=search.branches, attack=search.attack)
        ledger.refute(rows[found.refuted], found.inputs[found.refuted])
        ledger.take(rows[found.proved], columns[found.proved], lead[found.proved] - 1.0, refuting=True)
    return ledger.proof()


class _Ledger:
    """What is known so far of every pair of label and class.

    Attributes:
        lead: y_label − yⱼ at the anchors, less what the error of the equilibrium may be, (batch, classes).
        least: a lower bound of it all over the surroundings, (batch, classes).
        open: pairs that are to be looked at further, (batch, classes).
        branched: rows that came to branch and bound, (batch,).
        undecided: neurons of each row, (batch,).
    """

    def __init__(self, network: LocalNetwork, x: Tensor, anchors: Anchors, labels: Tensor, around: Surroundings):
        self.network, self.x, self.labels, self.around = network, x, labels, around
        count, classes = anchors.outputs.shape
        self.identity = torch.eye(classes, dtype=torch.float64)
        doubt = _doubt(network, anchors, self.identity, labels)
        self.lead = margins(anchors.outputs, labels) - doubt
        others = torch.arange(classes) != labels[:, None]
        self.refuted = (others & (self.lead + 2 * doubt <= 0)).any(-1)
        self.lead[torch.arange(count), labels] = torch.inf
        self.right = (self.lead > 0).all(-1)
        self.open = self.right[:, None] & torch.isfinite(self.lead)
        self.least = torch.where(self.open, -torch.inf, self.lead)
        self.branched = torch.zeros_like(self.right)
        self.undecided = torch.full((count,), network.size)
        self.counterexamples = x.clone()

    def claims(self, rows: Tensor, columns: Tensor) -> Tensor:
        """yⱼ − y_label of some pairs as functionals of the output, (m, out)."""
        return self.identity[columns] - self.identity[self.labels[rows]]

    def together(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The open pairs of some rows as (row, column), and side by side: (m, k, out), with weights, 0 beyond them."""
        still = self.open[rows]
        order = torch.argsort(still, dim=-1, descending=True, stable=True)[:, : int(still.sum(-1).max())]
        weights = torch.where(still.gather(-1, order), 1 / self.lead[rows].gather(-1, order), 0.0)
        places, column = torch.nonzero(weights, as_tuple=True)
        claims = self.identity[order] - self.identity[self.labels[rows]][:, None]
        return places, order[places, column], claims, weights

    def take_global(self, constants: Tensor) -> None:
        """Close the pairs that Lipschitz constants decide."""
        decided = self.open & (self.lead > self.around.radius[:, None] * constants[self.labels])
        self.least = torch.where(decided, torch.inf, self.least)
        self.open &= ~decided

    def take(self, rows: Tensor, columns: Tensor, drops: Tensor, *, refuting: bool = False) -> None:
        """Close what bounds of the drops decide, (m,): all over the surroundings, or at moves that refute only."""
        lead = self.lead[rows, columns]
        least = lead - drops
        proved = least > 0
        self.least[rows, columns] = torch.maximum(self.least[rows, columns], least.clamp_max(0) if refuting else least)
        self.open[rows, columns] &= ~proved

    def attack(self, steps: int) -> None:
        """Look for counterexamples of the open pairs."""
        rows, columns = torch.nonzero(self.open, as_tuple=True)
        if not len(rows):
            return
        claims, around = self.claims(rows, columns), self.around.rows(rows)
        found = counterexamples(self.network, self.x[rows], claims, around, steps)
        self.refute(rows[found.refuted], found.inputs[found.refuted])

    def refute(self, rows: Tensor, inputs: Tensor) -> None:
        """Close rows with a counterexample, (m, in)."""
        self.refuted[rows], self.counterexamples[rows] = True, inputs
        self.open[rows] = False

    def proof(self) -> ClassProof:
        """What is known."""
        return ClassProof(
            proved=(proved := self.right & ~self.refuted & ~self.open.any(-1)),
            refuted=self.refuted,
            counterexamples=self.counterexamples,
            leads=self.least,
            branched=self.branched & (proved | self.refuted),
            undecided=self.undecided,
            radius=self.around.radius,
        )


def _doubt(network: LocalNetwork, anchors: Anchors, identity: Tensor, labels: Tensor) -> Tensor:
    """How far each lead can be wrong for the error of the equilibrium, (batch, classes)."""
    reach = network.reach(identity[:, None] - identity[None, :])
    return reach[labels] * anchors.output_error[:, None]
