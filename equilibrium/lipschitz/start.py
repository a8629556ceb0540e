"""Where searches over multipliers start: a Λ in which Condition 1 holds, and the best multiple of it."""

from __future__ import annotations

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError, PreconditionError
from equilibrium.lipschitz.gain import gain
from equilibrium.lipschitz.system import LipschitzSystem


def best_scale(system: LipschitzSystem, lam: Tensor) -> Tensor:
    """tΛ with about the best t > 0; γ(tΛ) is convex in t, so that going downhill with ever shorter strides finds it.

    Raises:
        InputError: if Λ, the start of a finder, has not one finite entry per neuron.
    """
    checks.shape("start", checks.finite("start", checks.floating_tensor("start", lam)), (system.size,))
    best, t = float(gain(system, lam)), 1.0
    for stride in (100.0, 10.0, 3.0, 1.5):
        for factor in (stride, 1 / stride):
            while 1e-7 < t * factor < 1e7 and (value := float(gain(system, t * factor * lam))) < best:
                best, t = value, t * factor
    return t * lam


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
