"""Finders of the incremental L2 gain and of passivity of Lur'e systems; ``records`` says what is certified."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.lure.questions import (
    GainQuestion,
    PassivityQuestion,
    Question,
    RateQuestion,
)
from contracting.certificates.lure.records import (
    Dissipation,
    GainCertificate,
    PassivityCertificate,
    check_dissipation,
    square,
)
from contracting.certificates.lure.search import best_multiplier, well_posed
from contracting.certificates.lure.views import LureView, lure_view
from contracting.certificates.records import CertificateError
from contracting.certificates.search import golden_section
from contracting.certificates.systems import System, system_of
from contracting.errors import InputError, PreconditionError
from contracting.flows.fields import VectorField
from contracting.lure.system import LureSystem
from contracting.metrics import FullP

# How far from the best level the metric is looked for, in logarithms of γ or in units of ν and of the output: closer
# gives more, farther an equation that float64 solves. What is given away is at most twice that.
_BACK_OFF = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1)
_OPTIMISED = 25  # Gradients of log Λ at most per level of smoothing, where nothing is said.

D = TypeVar("D", bound=Dissipation)


def certify_gain(
    system: VectorField | System,
    *,
    rate: float = 0.0,
    multiplier: Tensor | None = None,
    optimise: int = _OPTIMISED,
    tolerance: float = 1e-9,
) -> GainCertificate:
    r"""The smallest incremental L2 gain from the input to the output that is found, checked.

    Args:
        system: a ``LureSystem`` with B₂, D₁₂ or D₂₂, or a flow that has one.
        rate: c, at which it must contract in the same P.
        multiplier: Λ, (m,), in whose direction the search starts; None takes the hint of the system, else a guess.
        optimise: gradients of log Λ at most per level of smoothing; 0 searches for the size of Λ alone.
        tolerance: relative, of the gain for a multiplier.

    Raises:
        InputError: if an argument is wrong, or the system has no input.
        PreconditionError: if the system does not contract at this rate even where nothing is asked of its gain.
        CertificateError: if nothing was found that passes the checker.
    """
    system = _with_input(system)
    view = lure_view(system)
    question = GainQuestion(system=view.system, rate=checks.number("rate", rate))
    found = _found(view, question, multiplier, optimise, tolerance)

    slopes, method = (system.low, system.high), _method(optimise)

    def claimed(level: float, metric: FullP | None, lam: Tensor) -> GainCertificate:
        return GainCertificate(
            gain=math.exp(-level), rate=rate, metric=metric, multiplier=lam, slopes=slopes, method=method,
            flow=system.name,
        )  # fmt: skip

    return _best(system, view, question, found, claimed, tolerance)


def certify_passivity(
    system: VectorField | System,
    *,
    rate: float = 0.0,
    output_index: float = 0.0,
    multiplier: Tensor | None = None,
    optimise: int = _OPTIMISED,
    tolerance: float = 1e-9,
) -> PassivityCertificate:
    r"""The largest input index ν of incremental passivity that is found, checked; it may be negative.

    Without a feedthrough D₂₂ no ν above zero is possible, and what is proved with an allowance for rounding stays a
    little below: at −1e-7, say, where the system is passive.

    Args:
        system: a ``LureSystem`` with as many outputs as inputs, or a flow that has one.
        rate: c, at which it must contract in the same P.
        output_index: ρ ≥ 0, how much of the output it must dissipate.
        multiplier: as for ``certify_gain``, and so are the other arguments.
        optimise: gradients of log Λ at most per level of smoothing.
        tolerance: absolute, of ν for a multiplier.

    Raises:
        InputError: if an argument is wrong, or outputs are not as many as inputs.
        PreconditionError: if the system does not contract at this rate even where nothing else is asked.
        CertificateError: if nothing was found that passes the checker.
    """
    system = square(_with_input(system))
    checks.number("output_index", output_index, low=0)
    view = lure_view(system)
    question = PassivityQuestion(system=view.system, rate=checks.number("rate", rate), output_index=output_index)
    found = _found(view, question, multiplier, optimise, tolerance)

    slopes, method = (system.low, system.high), _method(optimise)

    def claimed(level: float, metric: FullP | None, lam: Tensor) -> PassivityCertificate:
        return PassivityCertificate(
            input_index=level, output_index=output_index, rate=rate, metric=metric, multiplier=lam, slopes=slopes,
            method=method, flow=system.name,
        )  # fmt: skip

    return _best(system, view, question, found, claimed, tolerance)


def _method(optimise: int) -> str:
    return "circle criterion, optimised multiplier" if optimise else "circle criterion"


def _found(
    view: LureView, question: Question, multiplier: Tensor | None, optimise: int, tolerance: float
) -> tuple[Tensor, float]:
    """A multiplier of the view for what is asked, and how much faster than asked the system contracts with one."""
    checks.whole_number("optimise", optimise, low=0)
    checks.number("tolerance", tolerance, low=0, low_open=True, high=1)
    lam, rate = view.multiplier(multiplier), question.asked(0.0)[0]
    rates = RateQuestion(system=view.system)
    if multiplier is None:
        lam = well_posed(question, lam)
    reserve = 1.0
    if view.system.size:
        accuracy = 1e-6 * rates.scale
        reached = rates.best(lam, accuracy)
        if reached <= rate and optimise:
            lam = best_multiplier(rates, lam, evaluations=optimise, tolerance=accuracy)
            reached = rates.best(lam, accuracy)
        if reached <= rate:
            raise PreconditionError(
                f"rate must be below {reached:.4g}, the best contraction rate that was found for this system, got "
                f"{rate:.4g}: ask for less, or make the linear part more stable (its spectral abscissa must be "
                "negative) or the loop through the activations smaller"
            )
        reserve = min(rates.scale, reached - rate)
    lam = lam * _scale(question, lam)
    for _ in range(8):
        if question.best(lam, tolerance) > -math.inf:
            break
        lam = 10 * lam  # an index of the output must be paid by the energy, which grows with the multiplier
    if optimise and view.system.neurons:
        return best_multiplier(question, lam, evaluations=optimise, tolerance=max(tolerance, 1e-7)), reserve
    exponent = golden_section(lambda power: -question.best(lam * 10**power, 1e-3), -3.0, 3.0, steps=20)
    return lam * 10**exponent, reserve


def _scale(question: Question, lam: Tensor) -> float:
    """Of the multiplier, at which what comes from the input and what goes to the output weigh the same."""
    rate, m = question.asked(0.0)[0], question.system.neurons
    transfer = question.transfer(rate, torch.tensor([0.0, math.inf]).double(), ports=True)
    loop = lam[:, None] * transfer[:, :m, :m]
    root, info = torch.linalg.cholesky_ex(torch.diag(2 * lam) - loop - loop.mH)
    if bool(info.any()):
        return 1.0
    into = torch.linalg.solve_triangular(root, lam[:, None] * transfer[:, :m, m:], upper=False)
    out = torch.linalg.solve_triangular(root, transfer[:, m:, :m].mH, upper=False)
    driven, seen = float(into.abs().amax()) if into.numel() else 0.0, float(out.abs().amax()) if out.numel() else 0.0
    return seen / driven if driven > 0 and seen > 0 else 1.0


def _best(
    system: LureSystem,
    view: LureView,
    question: Question,
    found: tuple[Tensor, float],
    claimed: Callable[..., D],
    tolerance: float,
) -> D:
    """The certificate with the best level for a multiplier of the view that the checker accepts."""
    lam, reserve = found
    level, own = question.best(lam, tolerance), view.own(lam)
    failure: Exception = CertificateError(f"nothing was found at any level for the {system.name} system")
    for back_off in _BACK_OFF if level > -math.inf else ():
        metric, below = None, level - back_off
        if view.system.size:
            P = question.inequality(below, lam).metric(0.1 * back_off * reserve)
            if P is None:
                continue
            try:
                metric = FullP(P).rescaled(1 / view.states)
            except InputError as error:
                failure = error
                continue
        certificate = claimed(below - back_off, metric, own)
        try:
            return replace(certificate, margin=check_dissipation(certificate, system))
        except CertificateError as error:
            failure = error
    raise CertificateError(f"no certificate passes the checker: {failure}")


def _with_input(system: VectorField | System) -> LureSystem:
    found = system_of(system)
    if not isinstance(found, LureSystem):
        raise InputError("system must have an input and an output: pass a LureSystem with B2, C2 and the like")
    assert found.D22 is not None
    if not found.D22.shape[1]:
        raise InputError("system has no input: give it B2, D12 or D22, the matrices of u")
    return found
