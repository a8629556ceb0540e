"""What every finder of certificates is: settings that propose a proof, on which a checker of its own then judges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Self, TypeVar

import torch

from contracting.certificates.records import CertificateError

S = TypeVar("S")  # the explicit matrices that a certificate is about
P = TypeVar("P")  # what a finder proposes: the data of a proof
C = TypeVar("C")  # the certificate


class Finder(ABC, Generic[S, P, C]):
    r"""One way to find a certificate: a frozen dataclass of settings, which keeps nothing from one call to the next.

    ``RateFinder`` (contraction rates of flows) and ``LipschitzFinder`` (Lipschitz constants of networks) bring
    ``judge``. A finder of your own subclasses one of them and must bring

    * ``find(system)``: propose the data of a proof from explicit matrices. Any heuristic will do, as nothing that it
      returns is believed. It raises ``PreconditionError`` where the method does not apply, before any work, and
      ``CertificateError`` where it applies and finds nothing.

    It may bring

    * ``applies(system)``: whether the method is about such a system at all (default of rates: a flow with slopes);
    * ``name``: the method in words, as it stands in the certificate (default: the name of the class);
    * ``affordable(system)``: the finder with the settings that are affordable for such a system, or None where there
      are none (default: itself).

    A setting that is a start or a metric is in the coordinates of the caller's own system, and None takes what the
    system knows (its hint or metric), else what is found without a start. ``register_finder`` puts a finder of rates
    among those that are tried where none is named; ``contracting.contracts.FinderContract`` has the tests that each of
    these must pass.
    """

    @property
    def name(self) -> str:
        """The method in words, as it appears in the certificate."""
        return type(self).__name__

    @abstractmethod
    def find(self, system: S) -> P:
        """Propose the data of a proof.

        Raises:
            PreconditionError: if this method does not apply to such a system.
            CertificateError: if it applies and finds nothing.
        """

    @abstractmethod
    def judge(self, system: S, proposal: P) -> C:
        """The best certificate that the checker accepts for a proposal.

        Raises:
            CertificateError: if it accepts none.
        """

    def applies(self, system: S) -> bool:
        """Whether this method is about such a system; elsewhere ``find`` raises ``PreconditionError``."""
        return True

    def affordable(self, system: S) -> Self | None:
        """This finder with settings that are affordable for a system, or None if it should not be tried in passing."""
        return self

    def certify(self, system: S) -> C:
        """Find and check.

        Raises:
            PreconditionError: if this method does not apply to such a system.
            CertificateError: if it finds nothing that passes the checker.
        """
        try:
            return self.judge(system, self.find(system))
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # overflow, or no convergence
            raise CertificateError(f"{self.name}: numerical breakdown, {error}") from error
