"""Certified Lipschitz constants of models: the tightest affordable bound, and one constant per pair of outputs."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.activations.base import Activation
from contracting.certificates.finder import Finder
from contracting.certificates.records import CertificateError
from contracting.display import Row, Tabular
from contracting.errors import InputError, PreconditionError
from equilibrium.lipschitz.branches import Branches
from equilibrium.lipschitz.certificate import LipschitzCertificate, Norm
from equilibrium.lipschitz.composite import Model, parts
from equilibrium.lipschitz.coupled import Coupled
from equilibrium.lipschitz.elementwise import Elementwise
from equilibrium.lipschitz.finder import BuiltIn
from equilibrium.lipschitz.first_order import FirstOrder
from equilibrium.lipschitz.frequencies import PerFrequency, image_system
from equilibrium.lipschitz.frequency_checker import ImageSystem
from equilibrium.lipschitz.interior import InteriorPoint
from equilibrium.lipschitz.rowwise import RowByRow
from equilibrium.lipschitz.start import prepared
from equilibrium.lipschitz.system import LipschitzSystem, lipschitz_system, moving

Bounding = Finder[LipschitzSystem, Any, LipschitzCertificate]

_TIGHT_UP_TO = 200  # n up to which the optimum is found to six digits; beyond, to four
_BORDER_UP_TO = 2000  # neurons on images up to which a border is left out afterwards, in half a minute
_PAIR_TOLERANCE = 2e-3  # of the duality gap of γ²; the error itself is about a hundredth of it


def certified_lipschitz(
    model: Model,
    *,
    preceding: Tensor | nn.Linear | None = None,
    following: Tensor | nn.Linear | None = None,
    norm: Norm = Norm.L2,
    activation: Activation | None = None,
    cases: int = 1,
    couplings: int = 0,
) -> LipschitzCertificate:
    """The tightest affordable certified Lipschitz constant of ``following ∘ model ∘ preceding``.

    In ℓ2 it is the best of the optimal multiplier (interior point, O(n³) per step), the built-in γ and the elementwise
    bound; in ℓ1 and ℓ∞ of the elementwise bound and the optimal multipliers of single inputs or outputs. The linear
    maps become part of the weights, which is tighter than a product of norms. Every candidate is proved again by the
    independent checker. A network on images with more than 500 neurons inside its border is treated per frequency, in
    ℓ2 and without ``preceding``, and up to 2,000 its multiplier judged again without the border; otherwise its matrices
    are needed.

    Args:
        model: a layer, explicit weights, or an nn.Sequential of linear modules around one layer, in evaluation mode.
        preceding: linear map before the model, such as a normalisation: (in, k), or nn.Linear(k, in).
        following: linear map after the model, such as a readout: (m, out), or nn.Linear(out, m).
        norm: of inputs and outputs.
        activation: σ of explicit weights; None assumes slopes in [0, 1]. A layer knows its own.
        cases: of slopes into which a proof in ℓ2 from matrices may be split at most, as by ``Branches``; each takes the
            time of one proof.
        couplings: rounds in which a proof in ℓ2 from matrices is tightened by couplings of slopes, as by ``Coupled``;
            for some hundred neurons they take as long as a hundred proofs and win more than as many cases do.

    Returns:
        The certificate; ``assumption`` says what was assumed.

    Raises:
        InputError: if a map does not fit, an entry is not finite, ``cases`` is no whole number ≥ 1 or ``couplings``
            none ≥ 0.
        PreconditionError: if nothing can be certified: no Λ for Condition 1 was found.
    """
    if not isinstance(norm, Norm):
        raise InputError(f"norm must be Norm.L1, Norm.L2 or Norm.LINF, got {norm!r}")
    checks.whole_number("cases", cases)
    checks.whole_number("couplings", couplings, low=0)
    images = image_system(model, following, activation)
    if images is not None and preceding is None and norm is Norm.L2:
        found = PerFrequency().certify(images)
        held, _ = moving(parts(model)[1], activation)
        if found.multiplier is None or int((~held).sum()) > _BORDER_UP_TO:
            return found
        inside = lipschitz_system(model, following=following, activation=activation)
        proofs, _ = _certified_by([FirstOrder(steps=0, start=found.multiplier[~held])], inside)
        proofs = [replace(proof, method=f"{found.method}, then without the border") for proof in proofs]
        return min(found, *proofs, key=lambda certificate: certificate.bound)
    system = lipschitz_system(model, preceding=preceding, following=following, activation=activation)
    return certified_bound(system, norm, cases=cases, couplings=couplings)


def subjects(model: Model) -> Iterator[ImageSystem | LipschitzSystem]:
    """What an ℓ2 certificate of a model may be about: its kernels per frequency, and its matrices if not too large."""
    images = image_system(model)
    if images is not None:
        yield images
    if images is None or int((~moving(parts(model)[1], None)[0]).sum()) <= _BORDER_UP_TO:
        yield lipschitz_system(model)


def certified_bound(
    system: LipschitzSystem, norm: Norm = Norm.L2, *, cases: int = 1, couplings: int = 0
) -> LipschitzCertificate:
    """``certified_lipschitz`` of explicit matrices."""
    checks.whole_number("couplings", couplings, low=0)
    optimum: Bounding
    if norm is Norm.L2:
        tolerance = 1e-6 if system.size <= _TIGHT_UP_TO else 1e-4
        optimum = InteriorPoint(tolerance=tolerance) if cases == 1 else Branches(leaves=cases, tolerance=tolerance)
    else:
        optimum = RowByRow(norm=norm)
    finders: list[Bounding] = [optimum, Elementwise(norm=norm)]
    if norm is Norm.L2:
        finders.insert(0, BuiltIn())
        finders += [Coupled(rounds=couplings)] if couplings else []
    found, refusals = _certified_by(finders, system)
    if not found:
        raise PreconditionError(f"no Lipschitz constant can be certified: {refusals[optimum]}")
    return min(found, key=lambda certificate: certificate.bound)


def _certified_by(
    finders: Sequence[Bounding], system: LipschitzSystem
) -> tuple[list[LipschitzCertificate], dict[Bounding, Exception]]:
    """What each finder proves, and why the others do not."""
    found: list[LipschitzCertificate] = []
    refusals: dict[Bounding, Exception] = {}
    for finder in finders:
        try:
            found.append(finder.certify(system))
        except (PreconditionError, CertificateError) as error:
            refusals[finder] = error
    return found, refusals


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PairwiseLipschitz(Tabular):
    """One ℓ2 constant for every difference yᵢ − yⱼ of outputs: what a classification margin needs.

    Attributes:
        certificates: of the pairs i < j, in lexicographic order.
        whole: the certificate of all outputs together; √2 times its bound is what a pair would get from it.
    """

    certificates: tuple[LipschitzCertificate, ...]
    whole: LipschitzCertificate

    def shown(self) -> Sequence[Row]:
        largest = max((certificate.bound for certificate in self.certificates), default=0.0)
        whole = Row("of all together", self.whole.bound)
        return [Row("outputs", self.outputs), Row("largest of a pair", largest), whole]

    def _each(self) -> Iterator[dict[str, Any]]:
        for (i, j), certificate in zip(self.pairs, self.certificates, strict=True):
            yield {"first": i, "second": j, "bound": certificate.bound, "method": certificate.method}

    @property
    def outputs(self) -> int:
        """How many there are."""
        return (1 + math.isqrt(1 + 8 * len(self.certificates))) // 2

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The pairs (i, j) in the order of ``certificates``."""
        return list(itertools.combinations(range(self.outputs), 2))

    @property
    def bounds(self) -> Tensor:
        """(out, out), symmetric, zero on the diagonal: |(yᵢ − yⱼ)(x) − (yᵢ − yⱼ)(x')| ≤ boundsᵢⱼ‖x − x'‖₂."""
        bounds = torch.zeros(self.outputs, self.outputs, dtype=torch.float64)
        for (i, j), certificate in zip(self.pairs, self.certificates, strict=True):
            bounds[i, j] = bounds[j, i] = certificate.bound
        return bounds

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
    images = image_system(model, following, activation)
    if images is not None and preceding is None:
        return _pairs_of_images(images)
    system = lipschitz_system(model, preceding=preceding, following=following, activation=activation)
    whole = certified_bound(system)
    finders: list[Bounding] = []
    if whole.multiplier is None:  # only these bounds may exist, and only they are cheap
        finders.append(Elementwise())
    with contextlib.suppress(PreconditionError):
        finders.append(InteriorPoint(tolerance=_PAIR_TOLERANCE, start=prepared(system, whole.multiplier)[1]))
    certificates = []
    for i, j in itertools.combinations(range(system.C.shape[0]), 2):
        found, refusals = _certified_by(finders, system.difference(i, j))
        if not found:
            raise next(iter(refusals.values()))
        certificates.append(min(found, key=lambda certificate: certificate.bound))
    return PairwiseLipschitz(certificates=tuple(certificates), whole=whole)


def _pairs_of_images(system: ImageSystem) -> PairwiseLipschitz:
    pairs = itertools.combinations(range(system.weights.out_features), 2)
    return PairwiseLipschitz(
        certificates=tuple(PerFrequency(steps=0).certify(system.difference(i, j)) for i, j in pairs),
        whole=PerFrequency().certify(system),
    )
