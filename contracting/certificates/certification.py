"""One call for a certificate, and one for the whole picture: certified ≤ true ≤ bound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from contracting.certificates.catalogue import FINDERS
from contracting.certificates.finders import RateFinder
from contracting.certificates.lmi import VertexInequalities
from contracting.certificates.records import PER_TIME, Certificate, CertificateError
from contracting.certificates.search import golden_section
from contracting.certificates.systems import InclusionSystem, System, system_of, with_slopes
from contracting.certificates.upper_bounds import UpperBound, upper_bound
from contracting.display import Row, Tabular
from contracting.errors import InputError, PreconditionError
from contracting.flows.fields import NeuralFlow, VectorField
from contracting.maps.operator import MonotoneOperator, StepChoice
from contracting.metrics import FullP, WeightedL2
from contracting.types import Slopes


def certify(
    flow: VectorField | System,
    method: RateFinder | None = None,
    *,
    slopes: Slopes | tuple[Tensor, Tensor] | None = None,
) -> Certificate:
    r"""A certified contraction rate of a flow, for every input, constant or not, and every state.

    Args:
        flow: a flow on a problem, such as ``layer.flow(FiringRate)``; a ``NeuralFlow(module)`` of linear layers and
            activations, which is read as a Lur'e system; or explicit matrices.
        method: how to look for the metric, such as ``ParabolaTest()``; None tries what is affordable for the
            size and keeps the largest rate, whatever its norm; ``Certificate.method`` says which it was.
        slopes: interval of slopes to assume in place of the activation's own; of a Lur'e system also (low, high), (m,)
            each.

    Raises:
        InputError: if there is no certificate for such a flow.
        PreconditionError: if the method does not apply to it.
        CertificateError: if nothing was found that passes the checker.
    """
    system = system_of(flow)
    if slopes is not None:
        system = with_slopes(system, slopes)
    if method is not None:
        if not isinstance(method, RateFinder):
            raise InputError(f"method must be a finder such as ParabolaTest(), got {method!r}")
        return method.certify(system)
    return max(certificates(system), key=lambda certificate: certificate.rate)


def certificates(flow: VectorField | System) -> tuple[Certificate, ...]:
    """Every certificate that is affordable for the size of the flow.

    Raises:
        CertificateError: if none passes the checker.
    """
    system, found = system_of(flow), []
    failure: Exception = CertificateError("no method applies")
    for finder in applicable(system):
        affordable = finder.affordable(system)
        if affordable is None:
            continue
        try:
            found.append(affordable.certify(system))
        except (CertificateError, PreconditionError) as error:
            failure = error
    if not found:
        raise CertificateError(f"no certificate was found for the {system.name} flow: {failure}")
    return tuple(found)


def applicable(flow: VectorField | System) -> tuple[RateFinder, ...]:
    """Which certificates there are for a flow: every method that applies to it, whatever it costs; see its ``name``.

    Empty for a ``NeuralFlow`` that cannot be read as a Lur'e system: its rates can be proved on regions, or sampled.
    ``GivenMetric(...)`` takes flows with up to 14 slopes, and linear ones.

    Raises:
        InputError: if nothing is known of such a flow.
    """
    try:
        system = system_of(flow)
    except InputError:
        if isinstance(flow, NeuralFlow):
            return ()
        raise
    return tuple(finder for finder in FINDERS if finder.applies(system))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Report(Tabular):
    """Certified ≤ true ≤ bound, for one flow.

    Attributes:
        best: the certificate with the largest rate.
        all: every certificate that was tried and holds, largest rate first.
        quadratic: the best constant quadratic metric there is, from all vertices of the slopes; None for larger n.
        bound: what no certificate in any norm may exceed.
    """

    best: Certificate
    all: tuple[Certificate, ...]
    quadratic: Certificate | None
    bound: UpperBound

    def shown(self) -> Sequence[Row]:
        return [
            Row("flow", self.best.flow),
            Row("assumption", self.best.assumption),
            Row("certified rate", self.best.rate, PER_TIME),
            Row("upper bound", self.bound.rate, PER_TIME),
            Row("certificates", len(self.all)),
        ]

    def _each(self) -> Iterator[dict[str, Any]]:
        for c in self.all:
            yield {"what": "certified", "rate": c.rate, "norm": c.metric.words, "method": c.method}
        yield {"what": "upper bound", "rate": self.bound.rate, "norm": "any", "method": self.bound.method}

    @property
    def gap(self) -> float:
        """bound − certified: how much of the rate is unknown."""
        return self.bound.rate - self.best.rate

    def __str__(self) -> str:
        rows = [f"{self.best.flow}, {self.best.assumption}"]
        rows += [f"  {c.rate:12.6f}  certified in {c.metric.words}, {c.method}" for c in reversed(self.all)]
        rows.append(f"  {self.bound.rate:12.6f}  upper bound in any norm, {self.bound.method}")
        return "\n".join(rows)


def report(flow: VectorField | System) -> Report:
    """Every affordable certificate of a flow beside the truth it is compared with.

    Raises:
        InputError: if there is no certificate for such a flow.
        CertificateError: if none passes the checker.
    """
    system = system_of(flow)
    found = tuple(sorted(certificates(system), key=lambda certificate: -certificate.rate))
    quadratic = next((c for c in found if c.method == VertexInequalities().name), None)
    guide = next((c.metric for c in found if isinstance(c.metric, FullP)), None)
    bound = upper_bound(system, guide)
    # a rate that is proved is true, whatever rounding may have made of the bound
    bound = replace(bound, rate=max(bound.rate, found[0].rate))
    return Report(best=found[0], all=found, quadratic=quadratic, bound=bound)


def best_forward_backward_step(W: Tensor, metric: WeightedL2) -> StepChoice:
    r"""The α in (0, 1/m] with the best rate of the forward–backward flow in Λ, per unit of its own time.

    ½(1 + αm − ‖I − αÃ‖) is concave in α. In time t/α the rate is divided by α and rises to m as α → 0. It is exact up
    to the rounding of m and of the norm; ``DiagonalMetric().certify`` gives a rate that has passed the checker.

    Args:
        W: (n, n).
        metric: Λ with Condition 1.

    Returns:
        The step, and as its ``factor`` 1 − rate, the factor per unit of time to first order.

    Raises:
        PreconditionError: if Condition 1 fails in the metric.
    """
    operator = _monotone(W, metric)
    m = operator.bounds.monotonicity

    def rate(step: float) -> float:
        return 0.5 * (1 + step * m - operator.forward_factor(step))

    step = golden_section(lambda step: -rate(step), 0.0, 1 / m, steps=20)
    return StepChoice(step=step, factor=1 - rate(step))


def best_peaceman_rachford_step(W: Tensor, metric: WeightedL2) -> StepChoice:
    """The α with the best rate 1 − ‖(I − αÃ)(I + αÃ)⁻¹‖ of the Peaceman–Rachford flow in Λ; Douglas–Rachford: half.

    Raises:
        PreconditionError: if Condition 1 fails in the metric.
    """
    return _monotone(W, metric).best_reflected


def _monotone(W: Tensor, metric: WeightedL2) -> MonotoneOperator:
    W = InclusionSystem(W=W).W
    identity = torch.eye(W.shape[0], dtype=torch.float64)
    lam = WeightedL2(metric.weights.detach().to("cpu", torch.float64))
    operator = MonotoneOperator((identity - lam.whiten(W))[None])
    if not operator.bounds.strongly_monotone:
        raise PreconditionError("I − W is not strongly monotone in this metric (Condition 1 fails); try find_metric(W)")
    return operator
