r"""Local constants: how far the outputs can move while the input moves around an anchor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.display import Displayed
from contracting.errors import InputError
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz.certificate import Norm
from equilibrium.local.finder import Effort
from equilibrium.local.network import LocalNetwork
from equilibrium.local.passes import Narrowing, pieces
from equilibrium.local.surroundings import Surroundings


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LocalLipschitz(Displayed):
    r"""For each anchor x₀ and all x around it: c·(y(x) − y(x₀)) ≤ drops, for each row c of ``functionals``.

    Attributes:
        drops: (batch, k); ∞ where nothing is proved.
        functionals: rows c, (k, out), or (batch, k, out).
        radius: of the balls in ``norm``, (batch,).
        norm: ℓ2 or ℓ∞.
        cut: whether the balls are cut by the range of the inputs.
        undecided: neurons that are not linear all over the surroundings, as far as is known, (batch,).
        assumption: in words.
    """

    drops: Tensor
    functionals: Tensor
    radius: Tensor
    norm: Norm
    cut: bool
    undecided: Tensor

    @property
    def constants(self) -> Tensor:
        """drops/radius, (batch, k): for whole balls, local Lipschitz constants from the anchor."""
        return self.drops / self.radius[:, None]

    @property
    def exact(self) -> Tensor:
        """Rows all over whose surroundings the network is affine, so that the bounds of whole balls are attained."""
        return self.undecided == 0

    @property
    def assumption(self) -> str:
        """What is assumed, in words."""
        where = "inputs in the given range" if self.cut else "any inputs"
        return f"{where} within the radius ({self.norm.value}) of the anchor, the explicit weights as they are, float64"


def local_lipschitz(
    model: EquilibriumLayer | nn.Sequential,
    inputs: Tensor,
    radius: Tensor | float,
    *,
    functionals: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
    norm: Norm = Norm.L2,
    passes: int = 3,
    effort: Effort | None = None,
) -> LocalLipschitz:
    r"""How far outputs can move around each input: c·(y(x) − y(x₀)) ≤ drop for ‖x − x₀‖ ≤ radius.

    Args:
        model: an equilibrium layer, or an nn.Sequential of linear modules around one, float64.
        inputs: anchors x₀, (batch, in), float64.
        radius: of the ball, > 0, a number or one for each input, (batch,).
        functionals: rows c, (k, out), or (batch, k, out); None takes yᵢ − yⱼ for every ordered pair of outputs, in the
            order of ``itertools.permutations``, or ±y where there is a single output.
        bounds: smallest and largest value of an input, where inputs have a range; a ball is cut by it.
        norm: of the ball, ℓ2 or ℓ∞.
        passes: how often the slopes are made narrower; 0 takes those that hold everywhere.
        effort: of each search.

    Raises:
        InputError: on arguments that do not fit.
        PreconditionError: if the equilibria of the model are not certified.
        SolveError: if a row does not converge.

    Reference: theory, anchored local constants.
    """
    network = LocalNetwork(model)
    _check_inputs(inputs)
    effort = Effort() if effort is None else effort
    checks.whole_number("passes", passes, low=0)
    c = _functionals(functionals, network.outputs, len(inputs))
    around = Surroundings.of(inputs, radius, bounds, norm)
    drops, undecided = [], []
    for part in pieces(network, len(inputs), network.size):
        here = around.rows(part)
        enclosure = network.enclosure(inputs[part], here)
        narrowing = Narrowing(network, network.anchors(inputs[part]), here, effort, enclosure=enclosure)
        rows = c[part] if c.ndim == 3 else c.expand(len(inputs[part]), -1, -1)
        batch, k, _ = rows.shape
        index, rows = torch.arange(batch).repeat_interleave(k), rows.flatten(0, 1)
        # slopes never become wider, but a search with them can fail where an earlier one has not
        drop = narrowing.drop(index, rows)
        for _ in range(passes):
            narrowing.step()
            drop = torch.minimum(drop, narrowing.drop(index, rows))
        drops.append(drop.reshape(batch, k))
        undecided.append(narrowing.slopes.undecided)
    return LocalLipschitz(
        drops=torch.cat(drops),
        functionals=c,
        radius=torch.as_tensor(radius, dtype=inputs.dtype).expand(len(inputs)),
        norm=norm,
        cut=bounds is not None,
        undecided=torch.cat(undecided),
    )


def _check_inputs(inputs: Tensor) -> None:
    if checks.floating_tensor("inputs", inputs).ndim != 2:
        raise InputError(f"inputs must have shape (batch, in), got {tuple(inputs.shape)}")


def _functionals(given: Tensor | None, outputs: int, batch: int) -> Tensor:
    if given is None:
        identity = torch.eye(outputs, dtype=torch.float64)
        if outputs == 1:
            return torch.stack([identity[0], -identity[0]])
        return torch.stack([identity[i] - identity[j] for i in range(outputs) for j in range(outputs) if i != j])
    rows = checks.finite("functionals", checks.floating_tensor("functionals", given)).to(torch.float64)
    if rows.ndim not in (2, 3) or rows.shape[-1] != outputs or (rows.ndim == 3 and len(rows) != batch):
        raise InputError(
            f"functionals must have shape (k, {outputs}) or ({batch}, k, {outputs}), got {tuple(rows.shape)}"
        )
    return rows
