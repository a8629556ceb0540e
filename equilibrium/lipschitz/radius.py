"""Certified radii in ℓ2: how far an input may be moved before its class can change."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.errors import InputError, PreconditionError
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz.bounds import PairwiseLipschitz, certified_lipschitz
from equilibrium.lipschitz.certificate import LipschitzCertificate, Norm
from equilibrium.lipschitz.composite import Model, matrix_of, parts
from equilibrium.lipschitz.frequencies import image_system
from equilibrium.lipschitz.system import lipschitz_system

_BATCH = 1000  # inputs per solve: enough rows for products at full speed, few enough for their memory
Constants = float | LipschitzCertificate | PairwiseLipschitz


@torch.no_grad()
def certified_radius(
    model: EquilibriumLayer | nn.Sequential,
    inputs: Tensor,
    labels: Tensor,
    constants: Constants,
    *,
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
    pairs = _pair_constants(constants, model, len(rows)).to(inputs)
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
    return torch.cat(radii)


def margins(outputs: Tensor, labels: Tensor) -> Tensor:
    """The lead y_label − y_j over every class j, zero for the label itself: (batch, classes), (batch,) -> the same."""
    return with_axes("outputs", outputs, "batch", "classes").gather(-1, labels[:, None]) - outputs


def accuracy_within(radius: Tensor, sizes: Tensor) -> Tensor:
    """The share of inputs whose radius is larger than each size, in percent: (count,), (k,) -> (k,).

    Of certified radii this is the certified accuracy; of the smallest perturbations found, the accuracy under attack.
    """
    radius, sizes = with_axes("radius", radius, "count"), with_axes("sizes", sizes, "k")
    return 100 * (radius[None, :] > sizes[:, None]).double().mean(-1)


def attacks_inside(radius: Tensor, sizes: Tensor) -> Tensor:
    """Indices of the inputs that were fooled by a perturbation smaller than their certified radius: there are none.

    Args:
        radius: certified, (count,).
        sizes: of the smallest perturbation that fooled each input, ∞ where none did, (count,).
    """
    radius, sizes = with_axes("radius", radius, "count"), with_axes("sizes", sizes, "count")
    return torch.nonzero(checks.shape("sizes", sizes, tuple(radius.shape)) < radius).flatten()


def with_axes(name: str, value: Tensor, *axes: str) -> Tensor:
    """Return ``value`` if it is a tensor with these axes, else raise InputError."""
    if checks.floating_tensor(name, value).ndim != len(axes):
        raise InputError(f"{name} must be of shape ({', '.join(axes)}), got {tuple(value.shape)}")
    return value


def checked_rows(inputs: Tensor, labels: Tensor) -> None:
    """Refuse inputs that are no rows, (count, in), or labels that are not one for each."""
    with_axes("inputs", inputs, "count", "in")
    if not isinstance(labels, Tensor):
        raise InputError(f"labels must be a torch.Tensor, got {type(labels).__name__}; use torch.as_tensor(...)")
    checks.shape("labels", labels, (checks.whole_number("the number of inputs", len(inputs)),))


def checked_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels that are no whole numbers in 0 … classes − 1."""
    if labels.dtype != torch.int64 or not bool(((labels >= 0) & (labels < classes)).all()):
        raise InputError(
            f"labels must be int64 in 0 … {classes - 1}, the classes of the model, got {labels.dtype} from "
            f"{labels.min():g} to {labels.max():g}"
        )


def _pair_constants(constants: Constants, model: Model, classes: int) -> Tensor:
    if isinstance(constants, PairwiseLipschitz):
        _check_about(constants.whole, model)
        return constants.bounds
    if isinstance(constants, LipschitzCertificate):
        if constants.norm is not Norm.L2:
            raise InputError(f"constants must be of the ℓ2 norm, this certificate is of {constants.norm.value}")
        _check_about(constants, model)
        gamma = constants.bound
    else:
        gamma = checks.number("constants", constants, low=0, high=math.inf, high_open=True)
        if not (proved := certified_lipschitz(model).bound) <= gamma:
            raise InputError(f"constants must be at least {proved:.9g}, the smallest constant proved for this model")
    return torch.full((classes, classes), math.sqrt(2) * gamma, dtype=torch.float64)


def _check_about(certificate: LipschitzCertificate, model: Model) -> None:
    if certificate.about != (image_system(model) or lipschitz_system(model)).fingerprint:
        raise InputError(
            "constants must be those of the present weights of model, these were proved for other ones: take "
            "pairwise_lipschitz(model) or certified_lipschitz(model) anew, after training and after a change of dtype"
        )


def batches(inputs: Tensor, labels: Tensor, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs (count, in) and labels (count,) in pieces of at most ``batch_size`` rows."""
    checks.whole_number("batch_size", batch_size)
    return list(zip(torch.split(inputs, batch_size), torch.split(labels, batch_size), strict=True))
