"""How tight a certified Lipschitz constant is: the certificate beside a pair of inputs that nearly attains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.records import CertificateError
from contracting.display import Displayed, Row
from contracting.errors import InputError
from equilibrium.convolution.weights import ConvolutionalWeights
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz.bounds import certified_lipschitz, subjects
from equilibrium.lipschitz.certificate import LipschitzCertificate, Norm
from equilibrium.lipschitz.checker import check_lipschitz
from equilibrium.lipschitz.frequency_checker import ImageSystem, check_frequencies
from equilibrium.lipschitz.lower import PairAscent, PatternSearch, RegionWalk, Search
from equilibrium.lipschitz.pairs import AttainedRatio, ImageNetwork, Network, Pairs


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LipschitzReport(Displayed):
    """Upper and lower bound of one ℓ2 Lipschitz constant.

    Attributes:
        certificate: the upper bound with its proof.
        witness: the pair of inputs of the lower bound.
    """

    certificate: LipschitzCertificate
    witness: AttainedRatio

    def shown(self) -> Sequence[Row]:
        return [
            Row("certified", self.certified, f"at most, {self.certificate.method}"),
            Row("attained", self.attained, f"at least, {self.witness.method}"),
            Row("ratio", self.ratio),
            Row("norm", self.certificate.norm.value),
        ]

    @property
    def certified(self) -> float:
        """The upper bound."""
        return self.certificate.bound

    @property
    def attained(self) -> float:
        """The lower bound."""
        return self.witness.ratio

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """The two inputs that attain the lower bound, float64."""
        return self.witness.first, self.witness.second

    @property
    def ratio(self) -> float:
        """attained/certified, in [0, 1]; 1 is a proof that both are exact."""
        return self.attained / self.certified if self.certified > 0 else 1.0

    def __str__(self) -> str:
        return (
            f"{self.attained:.6g} ({self.witness.method}) ≤ Lipschitz constant ≤ {self.certified:.6g} "
            f"({self.certificate.method}), ratio {self.ratio:.4f}"
        )


def attained_lipschitz(
    model: EquilibriumLayer,
    x: Tensor | None = None,
    *,
    searches: Sequence[Search] = (PatternSearch(), RegionWalk(), PairAscent()),
    starts: int = 16,
    seed: int = 0,
) -> AttainedRatio:
    """The largest ratio ‖y(x₁) − y(x₂)‖₂/‖x₁ − x₂‖₂ that the searches find, over unrestricted inputs.

    Args:
        model: the layer; its explicit weights are taken in float64.
        x: inputs to start from, (batch, in), such as data; None draws standard normal ones.
        searches: what to try; the best counts. For a network on images only PairAscent, which needs no matrix.
        starts: how many rows of x are used.
        seed: of everything random.

    Returns:
        The pair and its ratio, recomputed from the pair in float64 with a relative tolerance of 1e-12.

    Raises:
        InputError: if the model is no layer, x does not fit or nothing is to be searched.
    """
    _checked_layer(model)
    checks.whole_number("starts", starts)
    if not isinstance(searches, Sequence) or not searches:
        raise InputError("searches must be a list of at least one search, such as [PatternSearch()]")
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    if x is None:
        x = torch.randn(starts, model.in_features, generator=generator, dtype=torch.float64)
    checks.last_size("x", checks.floating_tensor("x", x), model.in_features)
    if x.numel() == 0:
        raise InputError("x must have at least one row to start from")
    rows = checks.finite("x", x).detach().to("cpu", torch.float64).reshape(-1, model.in_features)[:starts]
    with torch.inference_mode(False), torch.no_grad():  # in the inference mode of a caller no search had gradients
        network = _pairs_of(model)
        found = []
        for search in searches:
            if isinstance(search, PairAscent):
                found.append(search.find(network, rows, generator))
            elif isinstance(network, Network):
                found.append(search.find(network, rows, generator))
    if not found:
        raise InputError("searches must hold PairAscent() for a network on images: the others need its matrix")
    return max(found, key=lambda witness: witness.ratio)


def lipschitz_report(
    model: EquilibriumLayer,
    x: Tensor | None = None,
    *,
    searches: Sequence[Search] = (PatternSearch(), RegionWalk(), PairAscent()),
    starts: int = 16,
    seed: int = 0,
) -> LipschitzReport:
    """Certified and attained ℓ2 Lipschitz constant of a layer; arguments as ``attained_lipschitz``."""
    return LipschitzReport(
        certificate=certified_lipschitz(model),
        witness=attained_lipschitz(model, x, searches=searches, starts=starts, seed=seed),
    )


def pair_ratio(model: EquilibriumLayer, first: Tensor, second: Tensor) -> float:
    """‖y(x₁) − y(x₂)‖₂/‖x₁ − x₂‖₂ of one pair, (in,) each, solved in float64, less what rounding can have added."""
    network = _pairs_of(_checked_layer(model))
    pair = [checks.shape(name, x, (model.in_features,)) for name, x in (("first", first), ("second", second))]
    one, other = (x.detach().to("cpu", torch.float64)[None] for x in pair)
    return float(network.ratios(one, other)[0])


def verify_report(model: EquilibriumLayer, report: LipschitzReport, *, tolerance: float = 1e-6) -> float:
    """Prove the upper bound again and solve the pair again; nothing else in the report is believed.

    Args:
        model: the layer it is claimed to be about.
        report: a report, such as one read from a file.
        tolerance: by how much the ratio of the pair may fall short of the attained one, relatively.

    Returns:
        The ratio of the pair as solved here.

    Raises:
        CertificateError: if the proof fails, the pair does not attain its ratio, or the bounds contradict each other.
    """
    if report.certificate.norm is not Norm.L2:
        raise CertificateError(f"the certificate is of {report.certificate.norm.value}, the pair's ratio of ℓ2")
    _prove_again(report.certificate, model)
    ratio = pair_ratio(model, *report.pair)
    if not ratio >= (1 - tolerance) * report.attained:
        raise CertificateError(f"the pair attains {ratio:.9g}, not {report.attained:.9g}")
    if not ratio <= report.certified:
        raise CertificateError(f"a pair attains {ratio:.9g}, above the certified {report.certified:.9g}")
    return ratio


def _prove_again(certificate: LipschitzCertificate, model: EquilibriumLayer) -> None:
    refusal = CertificateError("the model has no matrices that a certificate could be about")
    for system in subjects(model):
        try:
            if isinstance(system, ImageSystem):
                check_frequencies(certificate, system)
            else:
                check_lipschitz(certificate, system)
            return
        except CertificateError as error:
            refusal = error
    raise refusal


def _pairs_of(model: EquilibriumLayer) -> Pairs:
    with torch.no_grad():
        weights = model.weights()
    if isinstance(weights, ConvolutionalWeights):
        return ImageNetwork(weights, model.activation)
    return Network(weights, model.activation)


def _checked_layer(model: EquilibriumLayer) -> EquilibriumLayer:
    if not isinstance(model, EquilibriumLayer):
        raise InputError(f"model must be an EquilibriumLayer, got {type(model).__name__}")
    return model
