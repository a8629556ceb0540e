r"""How finders and bounds see a system: at unit speed, Hopfield as the firing rate of the transpose, and balanced.

In these coordinates "1" is a start that no change of the caller's coordinates moves, and nothing is graded.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.balance import balancing
from contracting.certificates.candidates import Candidate
from contracting.certificates.multipliers import perron_weights, scaled
from contracting.certificates.numerical_range import reach, support
from contracting.certificates.records import CertificateError
from contracting.certificates.systems import (
    FiringRateSystem,
    HopfieldSystem,
    InclusionSystem,
    LinearSystem,
    System,
    WeightSystem,
)
from contracting.errors import InputError, PreconditionError
from contracting.lure.system import LureSystem
from contracting.metrics import Metric

_COMPARED = 400  # Up to this n the starts are compared, at up to a dozen eigenvalue problems each.


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """A system in the coordinates that finders work in, and the way back.

    Attributes:
        system: what they work on, in the coordinates x' = scale∘x.
        transposed: whether it is the transpose of the caller's own, so that its metrics are dual to his.
        scale: t > 0, (n,).
    """

    system: WeightSystem
    transposed: bool
    scale: Tensor

    def own(self, weights: Tensor) -> Tensor:
        """A diagonal metric or multiplier of the view in the caller's own coordinates."""
        weights = weights * self.scale * self.scale
        return 1 / weights if self.transposed else weights

    def seen(self, weights: Tensor) -> Tensor:
        """The inverse of ``own``."""
        return (1 / weights if self.transposed else weights) / self.scale / self.scale

    def metric(self, metric: Metric) -> Metric:
        """A metric of the caller's in the coordinates of the view."""
        return (metric.dual() if self.transposed else metric).rescaled(self.scale)

    def candidate(self, candidate: Candidate) -> Candidate:
        """What was found in the view, for the caller's own system.

        Raises:
            CertificateError: if it is no metric in float64.
        """
        try:
            candidate = candidate.rescaled(1 / self.scale)
            return candidate.dual() if self.transposed else candidate
        except InputError as error:
            raise CertificateError(f"what was found is no metric in float64: {error}") from error

    def weights(self, name: str, given: Tensor | None) -> Tensor:
        """Where a search starts: what the caller gave, else the hint of the system, else the best guess, (n,).

        Args:
            name: of the argument, for the error.
            given: positive weights in the caller's own coordinates, (n,), or None.

        Raises:
            InputError: if what was given is not positive, or of another size.
        """
        if given is not None:
            checks.shape(name, checks.positive_tensor(name, checks.floating_tensor(name, given)), (self.system.size,))
            return self.seen(given.detach().to("cpu", torch.float64))
        return self.guess if self.system.hint is None else self.system.hint

    @cached_property
    def guess(self) -> Tensor:
        """The best of the balanced coordinates, the hint and the quotient of the Perron vectors, (n,)."""
        system, n = self.system, self.system.size
        guesses = [torch.ones(n, dtype=torch.float64)]
        if system.hint is not None:
            guesses.insert(0, system.hint)
        if n > _COMPARED:
            return guesses[0]
        left, right = perron_weights(system.W)
        guesses.append(left / right)
        return min(guesses, key=self._cost)

    def _cost(self, weights: Tensor) -> float:
        """How much the weight leaves of the rate, by a cheap estimate."""
        M = scaled(self.system.W, weights)
        if not bool(torch.isfinite(M).all()):
            return float("inf")
        if isinstance(self.system, InclusionSystem):
            return support(M, 0.0)
        if self.system.slopes.low < 0:
            return float(torch.linalg.matrix_norm(M, 2))
        return reach(M, tolerance=1e-3, most_cuts=12).lower


def view_of(system: WeightSystem) -> View:
    """The view of a system, made once."""
    view: View | None = system.__dict__.get("_view")
    if view is None:
        unit, transposed = system.at_speed(1.0), isinstance(system, HopfieldSystem)
        if isinstance(unit, HopfieldSystem):
            unit = unit.transposed()
        scale = balancing(unit.W, leak=0.0 if isinstance(unit, LinearSystem) else 1.0)
        view = View(system=unit.rescaled(scale), transposed=transposed, scale=scale)
        system.__dict__["_view"] = view
    return view


def slopes_view(system: System) -> tuple[View, FiringRateSystem]:
    """The view of a flow with slopes, and the firing-rate system in it.

    Raises:
        PreconditionError: for the inclusion, whose slopes are unbounded, and for linear flows, which have none.
    """
    if isinstance(system, LureSystem):
        raise PreconditionError("this certificate is about one weight; for a Lur'e system use CircleCriterion()")
    if isinstance(system, LinearSystem):
        raise PreconditionError("this certificate is about slopes; for a linear flow use LyapunovMetric()")
    if isinstance(system, InclusionSystem):
        raise PreconditionError("this certificate needs bounded slopes; for the inclusion use InclusionMetric()")
    view = view_of(system)
    assert isinstance(view.system, FiringRateSystem)
    return view, view.system
