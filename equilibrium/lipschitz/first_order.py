"""The scalable bound: first-order descent of γ(Λ) over log Λ. Whatever iterate it stops at is a certificate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError, PreconditionError
from equilibrium.lipschitz.certificate import LipschitzCertificate
from equilibrium.lipschitz.gain import certified_by, compressed, gain, gain_matrix
from equilibrium.lipschitz.system import LipschitzSystem

_SMOOTHING = (0.03, 1e-4)  # first and last temperature of the smoothed largest eigenvalue, relative to γ


@dataclass(frozen=True, kw_only=True)
class FirstOrder:
    r"""Adam on log Λ for γ(Λ), one Cholesky factorisation and one symmetric eigenvalue problem per step.

    The largest eigenvalue, which is multiple at the optimum, is smoothed by a softmax that gets sharper. A step at
    which Condition 1 fails is not accepted: it goes back to the best Λ with a shorter step.

    Args:
        steps: number of steps.
        learning_rate: the first step in log Λ; it decays to a hundredth.
    """

    steps: int = 300
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        checks.whole_number("steps", self.steps, low=0)
        checks.number("learning_rate", self.learning_rate, low=0, low_open=True)

    def bound(self, system: LipschitzSystem, *, start: Tensor | None = None) -> LipschitzCertificate:
        """The checked certificate at the best Λ.

        Args:
            system: the map.
            start: Λ in which Condition 1 holds, (n,); None takes the metric of the system, or looks for one.

        Raises:
            PreconditionError: if no Λ is found in which Condition 1 holds.
        """
        return certified_by(system, self.multiplier(system, start=start), "first-order descent on Λ")

    def multiplier(self, system: LipschitzSystem, *, start: Tensor | None = None) -> Tensor:
        """The best Λ found, (n,); arguments as for ``bound``."""
        return self.multipliers(compressed(system), (starting_multiplier(system) if start is None else start)[None])[0]

    def multipliers(self, system: LipschitzSystem, starts: Tensor) -> Tensor:
        """One Λ for each of a batch of outputs.

        Args:
            system: a compressed one, C of shape (out, n) or (batch, out, n), D likewise.
            starts: (batch, n), Condition 1 holds in each.
        """
        log_lam = best_scale(system, starts).log()
        best, best_value = log_lam.clone(), gain(system, log_lam.exp())
        first, second = torch.zeros_like(log_lam), torch.zeros_like(log_lam)
        shrink = torch.ones_like(best_value)
        for step in range(self.steps):
            progress = step / self.steps
            temperature = _SMOOTHING[0] * (_SMOOTHING[1] / _SMOOTHING[0]) ** progress
            value, slope, good = _smoothed(system, log_lam, temperature)
            better = good & (value < best_value)
            best = torch.where(better[:, None], log_lam, best)
            best_value = torch.where(better, value, best_value)
            shrink = torch.where(good, (1.1 * shrink).clamp_max(1.0), shrink / 2)
            log_lam = torch.where(good[:, None], log_lam, best)
            slope = torch.where(good[:, None], slope, torch.zeros_like(slope))
            first = torch.where(good[:, None], 0.9 * first + 0.1 * slope, torch.zeros_like(first))
            second = torch.where(good[:, None], 0.99 * second + 0.01 * slope.square(), 0.5 * second)
            corrected = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-12)
            rate = self.learning_rate * 0.01**progress
            log_lam = log_lam - rate * shrink[:, None] * corrected
        last = gain(system, log_lam.exp())
        return torch.where((last < best_value)[:, None], log_lam, best).exp()


def _smoothed(system: LipschitzSystem, log_lam: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """γ(Λ), the gradient in log Λ of its smoothed logarithm, and which rows Condition 1 holds in."""
    with torch.enable_grad():
        variable = log_lam.detach().requires_grad_()
        matrix, info = gain_matrix(system, variable.exp())
        with torch.no_grad():
            good = (info == 0) & torch.isfinite(matrix).all(-1).all(-1)
            safe = torch.where(good[:, None, None], matrix, torch.zeros_like(matrix))
            values, vectors = torch.linalg.eigh(safe)
            top = values[:, -1:].clamp_min(1e-300)
            weights = torch.softmax(values / (temperature * top), -1)
            weighted = (vectors * (weights / top)[:, None, :]) @ vectors.mT
        (slope,) = torch.autograd.grad(matrix, variable, weighted)
    return values[:, -1], torch.nan_to_num(slope), good


def best_scale(system: LipschitzSystem, lam: Tensor) -> Tensor:
    """tΛ with the best t > 0: γ(tΛ) is convex in t and grows at both ends, so a ladder and a refinement find it."""
    scales = torch.logspace(-6, 6, 25, dtype=torch.float64)
    for width in (10**0.25, 10**0.06):
        values = torch.stack([gain(system, t * lam) for t in scales])
        lam = lam * scales[values.argmin(0)][:, None]
        scales = torch.logspace(-1, 1, 7, dtype=torch.float64, base=width)
    return lam


def starting_multiplier(system: LipschitzSystem) -> Tensor:
    """A Λ in which Condition 1 holds: the metric of the system, or the identity, or one found by descent.

    Raises:
        PreconditionError: if none is found.
    """
    identity = torch.ones(system.size, dtype=torch.float64)
    for lam in (system.metric, identity):
        if lam is not None and bool(torch.isfinite(gain(system, lam))):
            return lam
    if not bool(torch.isfinite(system.W).all()):
        raise InputError("W has entries that are NaN or infinite; it must be finite")
    found = _monotone(system, identity)
    if found is None:
        raise PreconditionError(
            "no diagonal Λ was found in which I − W is strongly monotone (Condition 1): nothing can be certified in ℓ2"
        )
    return found


def _monotone(system: LipschitzSystem, start: Tensor, steps: int = 500) -> Tensor | None:
    """Ascent of λmin of P at unit diagonal of Λ, up to the first Λ that a Cholesky factorisation accepts."""
    low, high = system.slopes
    W = system.W
    log_lam = start.log().requires_grad_()
    optimiser = torch.optim.Adam([log_lam], lr=0.05)
    for _ in range(steps):
        with torch.enable_grad():
            root = (log_lam / 2).exp()
            scaled = root[:, None] * W / root
            P = 2 * torch.eye(system.size, dtype=torch.float64) - (low + high) * (scaled + scaled.mT)
            P = P + 2 * low * high * scaled.mT @ scaled
            smallest = torch.linalg.eigvalsh(P)[0]
            if float(smallest.detach()) > 1e-9 and bool(torch.isfinite(gain(system, log_lam.detach().exp()))):
                return log_lam.detach().exp()
            optimiser.zero_grad()
            (-smallest).backward()
        optimiser.step()
    return None
