"""Certified Lipschitz constants of models: the tightest affordable bound, and one constant per pair of outputs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from contracting.activations.base import Activation
from contracting.certificates.records import CertificateError
from contracting.errors import InputError, PreconditionError
from equilibrium.convolution.weights import ConvolutionalWeights
from equilibrium.lipschitz.certificate import LipschitzCertificate, Norm
from equilibrium.lipschitz.checker import checked
from equilibrium.lipschitz.elementwise import elementwise_bound
from equilibrium.lipschitz.frequencies import frequency_bound, image_weights
from equilibrium.lipschitz.gain import certified_by
from equilibrium.lipschitz.interior import InteriorPoint
from equilibrium.lipschitz.start import starting_multiplier
from equilibrium.lipschitz.system import LipschitzSystem, Model, lipschitz_system

_TIGHT_UP_TO = 200  # n up to which the optimum is found to six digits; beyond, to four
_PAIR_TOLERANCE = 2e-3  # of the duality gap of γ²; the error itself is about a hundredth of it
_INFLATIONS = (0.0, 1e-9, 1e-7)


def built_in_bound(system: LipschitzSystem) -> LipschitzCertificate:
    """The γ that the parameterisation promises, checked with its own Λ.

    Raises:
        PreconditionError: if nothing is promised.
        CertificateError: if the promise does not hold for these weights.
    """
    if system.claimed is None or system.metric is None:
        raise PreconditionError("this map has no built-in Lipschitz bound; use certified_lipschitz")
    for inflation in _INFLATIONS:
        bound = system.claimed * (1 + inflation)
        certificate = LipschitzCertificate(
            bound=bound,
            norm=Norm.L2,
            method="built-in",
            slopes=(0.0, 1.0),
            margin=0.0,
            multiplier=bound * system.metric,
        )
        try:
            return checked(certificate, system)
        except CertificateError:
            continue
    raise CertificateError(f"the built-in constant {system.claimed:.6g} does not hold for these weights")


def certified_lipschitz(
    model: Model,
    *,
    preceding: Tensor | nn.Linear | None = None,
    following: Tensor | nn.Linear | None = None,
    norm: Norm = Norm.L2,
    activation: Activation | None = None,
) -> LipschitzCertificate:
    """The tightest affordable certified Lipschitz constant of ``following ∘ model ∘ preceding``.

    In ℓ2 it is the best of the optimal multiplier (interior point, O(n³) per step), the built-in γ and the elementwise
    bound; in ℓ1 and ℓ∞ the elementwise bound. The linear maps become part of the weights, which is tighter than a
    product of norms. Every candidate is proved again by the independent checker. For a network on images, in ℓ2 and
    without ``preceding``, all this is done per frequency; otherwise its matrices are needed.

    Args:
        model: a layer, or explicit weights.
        preceding: linear map before the model, such as a normalisation: (in, k), or nn.Linear(k, in).
        following: linear map after the model, such as a readout: (m, out), or nn.Linear(out, m).
        norm: of inputs and outputs.
        activation: σ of explicit weights; None assumes slopes in [0, 1]. A layer knows its own.

    Returns:
        The certificate; ``assumption`` says what was assumed.

    Raises:
        InputError: if a map does not fit or an entry is not finite.
        PreconditionError: if nothing can be certified: no Λ for Condition 1 was found.
    """
    if not isinstance(norm, Norm):
        raise InputError(f"norm must be Norm.L1, Norm.L2 or Norm.LINF, got {norm!r}")
    images = image_weights(model, following)
    if images is not None and preceding is None and norm is Norm.L2:
        return frequency_bound(images)
    system = lipschitz_system(model, preceding=preceding, following=following, activation=activation)
    return certified_bound(system, norm)


def certified_bound(system: LipschitzSystem, norm: Norm = Norm.L2) -> LipschitzCertificate:
    """``certified_lipschitz`` of explicit matrices."""
    if norm is not Norm.L2:
        return elementwise_bound(system, norm)
    found: list[LipschitzCertificate] = []
    refusal: Exception | None = None
    try:
        found.append(built_in_bound(system))
    except (PreconditionError, CertificateError):
        pass  # nothing promised, or not kept: then it must be found
    try:
        found.append(_multiplier_bound(system))
    except (PreconditionError, CertificateError) as error:
        refusal = error
    try:
        found.append(elementwise_bound(system))
    except PreconditionError:
        pass  # it needs more than Condition 1
    if not found:
        raise PreconditionError(f"no Lipschitz constant can be certified: {refusal}")
    return min(found, key=lambda certificate: certificate.bound)


def _multiplier_bound(system: LipschitzSystem) -> LipschitzCertificate:
    finder = InteriorPoint(tolerance=1e-6 if system.size <= _TIGHT_UP_TO else 1e-4)
    return finder.bound(system, start=starting_multiplier(system))


@dataclass(frozen=True, kw_only=True, eq=False)
class PairwiseLipschitz:
    """One ℓ2 constant for every difference yᵢ − yⱼ of outputs: what a classification margin needs.

    Attributes:
        bounds: (out, out), symmetric, zero on the diagonal: |(yᵢ − yⱼ)(x) − (yᵢ − yⱼ)(x')| ≤ boundsᵢⱼ‖x − x'‖₂.
        certificates: of the pairs i < j, in lexicographic order.
        whole: the certificate of all outputs together; √2 times its bound is what a pair would get from it.
    """

    bounds: Tensor
    certificates: tuple[LipschitzCertificate, ...]
    whole: LipschitzCertificate

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs (i, j) in the order of ``certificates``."""
        return list(itertools.combinations(range(self.bounds.shape[0]), 2))

    @property
    def assumption(self) -> str:
        """What is assumed, in words; of the slopes, what every one of the certificates allows."""
        slopes = [certificate.slopes for certificate in (self.whole, *self.certificates)]
        common = max(low for low, _ in slopes), min(high for _, high in slopes)
        return replace(self.whole, slopes=common).assumption


def pairwise_lipschitz(
    model: Model,
    *,
    preceding: Tensor | nn.Linear | None = None,
    following: Tensor | nn.Linear | None = None,
    activation: Activation | None = None,
) -> PairwiseLipschitz:
    """Certified constants of all differences of two outputs; arguments and errors as ``certified_lipschitz``.

    Each is at most √2 times the constant of the whole map, and usually much less.
    """
    images = image_weights(model, following)
    if images is not None and preceding is None:
        return _pairs_of_images(images)
    system = lipschitz_system(model, preceding=preceding, following=following, activation=activation)
    whole = certified_bound(system)
    outputs = system.C.shape[0]
    pairs = list(itertools.combinations(range(outputs), 2))
    bounds = torch.zeros(outputs, outputs, dtype=torch.float64)
    start = starting_multiplier(system) if whole.multiplier is None else whole.multiplier / whole.bound
    certificates = []
    for i, j in pairs:
        rows = torch.zeros(1, outputs, dtype=torch.float64)
        rows[0, i], rows[0, j] = 1.0, -1.0
        certificate = _pair_bound(system.with_output(rows), start, whole)
        certificates.append(certificate)
        bounds[i, j] = bounds[j, i] = certificate.bound
    return PairwiseLipschitz(bounds=bounds, certificates=tuple(certificates), whole=whole)


def _pairs_of_images(weights: ConvolutionalWeights) -> PairwiseLipschitz:
    outputs = weights.out_features
    bounds = torch.zeros(outputs, outputs, dtype=torch.float64)
    certificates = []
    for i, j in itertools.combinations(range(outputs), 2):
        difference = (weights.output[i] - weights.output[j])[None]
        certificate = frequency_bound(replace(weights, output=difference), steps=0)
        certificates.append(certificate)
        bounds[i, j] = bounds[j, i] = certificate.bound
    return PairwiseLipschitz(bounds=bounds, certificates=tuple(certificates), whole=frequency_bound(weights))


def _pair_bound(system: LipschitzSystem, start: Tensor, whole: LipschitzCertificate) -> LipschitzCertificate:
    lam = InteriorPoint(tolerance=_PAIR_TOLERANCE).multiplier(system, start)
    certificate = certified_by(system, lam, f"pair of outputs, {whole.method}")
    if certificate.bound <= 2**0.5 * whole.bound * (1 + 1e-12):
        return certificate
    if whole.multiplier is None:
        return elementwise_bound(system)
    return certified_by(system, 2**0.5 * start, f"pair of outputs, {whole.method}")
