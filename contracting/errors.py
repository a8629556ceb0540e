"""What can go wrong, said once: exceptions, row statuses and the advice each status carries."""

from __future__ import annotations

from enum import IntEnum


class ContractingError(Exception):
    """Base class of every error this library raises on purpose."""


class InputError(ContractingError, ValueError):
    """An argument is wrong; the message names it, says what came and what to do."""


class PreconditionError(ContractingError, ValueError):
    """A method was given a problem it cannot solve; the message says why and what to use instead."""


class MissingExtraError(ContractingError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class Status(IntEnum):
    """How the solve of one row ended.

    ``RUNNING`` is seen only inside the loop; every returned row carries one of the others.
    """

    RUNNING = 0
    CONVERGED = 1
    MAX_STEPS = 2
    NONFINITE = 3
    STALLED = 4
    DIVERGED = 5
    REPELLING = 6

    @property
    def advice(self) -> str:
        """One sentence: what the status means and what to try."""
        return _ADVICE[self]


_ADVICE = {
    Status.RUNNING: "the row was still iterating",
    Status.CONVERGED: "the residual of the returned z is within tolerance",
    Status.MAX_STEPS: "max_steps was reached first: raise Stop(max_steps=...), loosen rtol, or use a "
    "method with a better contraction factor (PeacemanRachford, SemismoothNewton)",
    Status.NONFINITE: "the data or the iterates are not finite: check the input row for NaN or infinity; "
    "otherwise the iteration diverges, so use a smaller step or a well-posed parameterisation",
    Status.STALLED: "the residual stopped improving above the tolerance: where it is close to the rounding error of "
    "this precision, use float64 or a larger rtol; where it is far above, no equilibrium attracts this iteration",
    Status.REPELLING: "the field is at rest there, but nearby states leave, so that the flow never gets there: begin "
    "elsewhere, follow the flow with DormandPrince(), which fails where it oscillates, or accept it by stable=False",
    Status.DIVERGED: "the residual grew to more than a thousand times its smallest value: the iteration diverges on "
    "this problem, so use a smaller step, a well-posed parameterisation, or a method that is proved to converge",
}


