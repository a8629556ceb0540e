"""What finders have in common that take a diagonal multiplier, or search for the best one by gradients."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from contracting import checks
from contracting.certificates.finders import RateFinder
from contracting.certificates.records import Certificate
from contracting.certificates.systems import System

_AFFORDABLE = ((40, 25), (120, 6))  # Up to each size so many gradients per level of smoothing take seconds at most.


@dataclass(frozen=True, kw_only=True, eq=False)
class OptimisingFinder(RateFinder):
    """A finder whose proof has a multiplier.

    Args:
        multiplier: a positive one, (m,), or None.
        optimise: gradients of its logarithm at most per level of smoothing; 0 keeps it. None keeps a multiplier that is
            given, and else takes what the size affords.
        tolerance: of the rate.
    """

    multiplier: Tensor | None = None
    optimise: int | None = None
    tolerance: float = 1e-9

    title: ClassVar[str]

    def __post_init__(self) -> None:
        if self.optimise is not None:
            checks.whole_number("optimise", self.optimise, low=0)
        checks.number("tolerance", self.tolerance, low=0, high=1, low_open=True)

    @property
    def optimises(self) -> bool:
        """Whether it searches for the multiplier of systems that are not too large for that."""
        return self.multiplier is None if self.optimise is None else self.optimise > 0

    @property
    def name(self) -> str:
        """The method in words."""
        return f"{self.title}, optimised multiplier" if self.optimises else self.title

    @abstractmethod
    def cost(self, system: System) -> int:
        """The size that decides how many gradients are affordable."""

    def settled(self, system: System) -> Self:
        """The same with the number of gradients that the size affords, where none is given."""
        return self if self.optimise is not None else replace(self, optimise=self._gradients(system))

    def affordable(self, system: System) -> Self | None:
        if not self.optimises:
            return self
        gradients = self._gradients(system)
        return replace(self, optimise=gradients) if gradients else None

    def certify(self, system: System) -> Certificate:
        if self.optimise is None:
            return self.settled(system).certify(system)
        return super().certify(system)

    def _gradients(self, system: System) -> int:
        if not self.optimises:
            return 0
        most = next((gradients for size, gradients in _AFFORDABLE if self.cost(system) <= size), 0)
        return most if self.optimise is None else min(most, self.optimise)
