"""What a contraction rate rests on, which decides the word that is said of it: a certificate, samples, or a claim."""

from __future__ import annotations

import math
from dataclasses import dataclass

from contracting import checks
from contracting.certificates.records import Certificate
from contracting.display import Displayed
from contracting.errors import InputError
from contracting.metrics import Metric
from contracting.regions.records import RegionCertificate
from contracting.simulation.sampled import SampledRate


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Claim(Displayed):
    """A contraction rate in a metric that nobody has proved or sampled; it is drawn as claimed.

    Raises:
        InputError: if the rate is not finite, or the metric is none.
    """

    rate: float
    metric: Metric

    def __post_init__(self) -> None:
        checks.number("rate", self.rate, low=-math.inf, low_open=True, high=math.inf, high_open=True)
        if not isinstance(self.metric, Metric):
            raise InputError(f"metric must be a Metric such as that of a certificate, got {self.metric!r}")


Evidence = Certificate | RegionCertificate | SampledRate | Claim
"""A contraction rate with its metric, and by its type what it rests on."""


def standing(evidence: Evidence) -> str:
    """The word for a rate, from the type of its evidence alone: "certified", "sampled" or "claimed".

    Raises:
        InputError: if it is none of the three, as a bare number, or a ``Convergence``, which says nothing of two
            trajectories.
    """
    if isinstance(evidence, (Certificate, RegionCertificate)):
        return "certified"
    if isinstance(evidence, SampledRate):
        return "sampled"
    if isinstance(evidence, Claim):
        return "claimed"
    raise InputError(
        "evidence must be a Certificate, a RegionCertificate, a SampledRate, or Claim(rate=..., metric=...) for a rate "
        f"that has none of them, got {evidence!r}"
    )
