"""Certified radii in ℓ2: how far an input may be moved before its class can change."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from contracting.errors import InputError, PreconditionError
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz.composite import matrix_of, parts
from equilibrium.local.given import Constants, pair_constants
from equilibrium.local.margins import batches, checked_labels, checked_rows, margins
from equilibrium.local.network import LocalNetwork
from equilibrium.local.passes import pieces
from equilibrium.local.proof import LocalSearch, prove
from equilibrium.local.surroundings import Surroundings

_BATCH = 1000  # inputs per solve: enough rows for products at full speed, few enough for their memory
_PROBES = 24  # radii that are tried for an input at most; doubling from a global radius takes a handful


@torch.no_grad()
def certified_radius(
    model: EquilibriumLayer | nn.Sequential,
    inputs: Tensor,
    labels: Tensor,
    constants: Constants,
    *,
    local: LocalSearch | bool = False,
    bounds: tuple[float, float] | None = None,
    batch_size: int = _BATCH,
) -> Tensor:
    """The ℓ2 radius around each input within which the class cannot change, (count,); 0 where it is wrong already.

    From each margin the certified error of its solve is taken away. Rounding is not, so that the model must be in
    float64, where it is negligible.

    Args:
        model: the classifier, float64: a layer, or an nn.Sequential of linear modules around one.
        inputs: (count, in), float64.
        labels: the true classes, (count,), whole numbers in 0 … classes − 1.
        constants: of these very weights: one per pair of classes (the tightest radius), a certificate of the whole map,
            or a number γ, for which it is then proved here that the map has it.
        local: whether to look further, for the largest radius that local constants prove (dense networks); True takes
            ``LocalSearch()``.
        bounds: smallest and largest value of an input, where inputs have a range: then nothing outside is an input.
        batch_size: inputs per solve.

    Raises:
        InputError: on another kind of model, sizes or labels that do not fit, another dtype, or constants that are not
            of ℓ2, of other weights, or smaller than what can be proved.
        PreconditionError: if the equilibria of the model are not certified.
        SolveError: if a row does not converge.
    """
    before, layer, after = parts(model)
    if not isinstance(layer, EquilibriumLayer):
        raise InputError(f"model must be an EquilibriumLayer to certify a radius, got {type(model).__name__}")
    checked_rows(inputs, labels)
    if inputs.dtype != torch.float64:
        raise InputError(
            f"inputs must be float64 to certify a radius, got {inputs.dtype}: rounding of a margin is not accounted "
            "for; take model.double(), inputs.double() and the constants of that model"
        )
    weights = layer.weights()
    rows = weights.output_matrix
    for module in after:
        if (linear := matrix_of(module, len(rows))) is not None:
            rows = linear[0].to(rows) @ rows
    checked_labels(labels, len(rows))
    if weights.metric is None:
        raise PreconditionError(
            "no radius is certified without Condition 1, and no metric is claimed for this model: "
            "from_weights(explicit_weights(W, …, metric=find_metric(W).metric.weights)) claims one, where there is one"
        )
    pairs = pair_constants(constants, model, len(rows)).to(inputs)
    difference = (rows[:, None] - rows[None, :]) / weights.metric.weights.to(inputs).sqrt()
    reach = torch.linalg.vector_norm(difference, dim=-1)  # (classes, classes), of the Λ-norm of an error in z
    radii = []
    for x, y in batches(inputs, labels, batch_size):
        x = nn.Sequential(*before)(x)
        solution = layer.solve(x)
        error = solution.error_bound
        if error is None:
            raise PreconditionError(
                "no radius is certified, Condition 1 does not hold for the metric of this model: find_metric(W) may "
                "know a better one"
            )
        outputs = nn.Sequential(*after)(weights.readout(solution.z, x))
        margin = margins(outputs, y) - reach[y] * error[:, None]
        ratio = torch.where(margin > 0, margin / pairs[y], 0.0)  # infinite where a difference is constant
        ratio[torch.arange(len(y)), y] = math.inf
        radii.append(ratio.amin(-1))
    radius = torch.cat(radii)
    if local is False:
        return radius
    return grown(model, inputs, labels, radius, pairs, bounds, LocalSearch() if local is True else local)


def grown(
    model: EquilibriumLayer | nn.Sequential,
    inputs: Tensor,
    labels: Tensor,
    radius: Tensor,
    constants: Tensor,
    bounds: tuple[float, float] | None,
    search: LocalSearch,
) -> Tensor:
    """The largest radius of each input that local constants prove, found by doubling and halving, (count,)."""
    network = LocalNetwork(model)
    found = radius.clone()
    for part in pieces(network, len(inputs), network.size):
        anchors, label = network.anchors(inputs[part]), labels[part]
        low, high = found[part], torch.full_like(found[part], math.inf)  # ``low`` is a view: what is proved stays
        for _ in range(_PROBES):
            rows = torch.nonzero((low > 0) & torch.isfinite(low) & (high > (1 + search.accuracy) * low)).flatten()
            if not len(rows):
                break
            trial = torch.where(torch.isinf(high), 2 * low, (low * high).sqrt())[rows]
            x = inputs[part][rows]
            around = Surroundings.of(x, trial, bounds)
            proved = prove(network, x, anchors.rows(rows), label[rows], around, constants, search).proved
            low[rows], high[rows] = torch.where(proved, trial, low[rows]), torch.where(proved, high[rows], trial)
    return found
