"""Where searches over multipliers start: a Λ in which Condition 1 holds, and the best multiple of it."""

from __future__ import annotations

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.wellposedness import find_metric
from contracting.errors import PreconditionError
from equilibrium.lipschitz.barrier import with_unit_slopes
from equilibrium.lipschitz.gain import compressed, gain, halves
from equilibrium.lipschitz.system import LipschitzSystem

# A metric that makes I − W as monotone as possible may be graded without any limit, and is then no place to start a
# search for γ: the blends between it and the balance of inputs and outputs are tried too, as powers of the metric.
_BLENDS = (0.0, 0.03, 0.1, 0.3, 0.6, 1.0)
_HOPS = 32  # steps from neuron to neuron that the balance follows: enough for perceptrons of so many layers


def best_scale(system: LipschitzSystem, lam: Tensor) -> Tensor:
    """tΛ with about the best t > 0; γ(tΛ) is convex in t, so that going downhill with ever shorter strides finds it."""
    inputs, outputs = halves(system, lam)
    if 0 < inputs < float("inf") and 0 < outputs < float("inf"):
        lam = lam * (outputs / inputs)  # what is best without a feedthrough
    best, t = gain(system, lam), 1.0
    for stride in (100.0, 10.0, 3.0, 1.5, 1.1):
        for factor in (stride, 1 / stride):
            while 1e-7 < t * factor < 1e7 and (value := gain(system, t * factor * lam)) < best:
                best, t = value, t * factor
    return t * lam


def prepared(system: LipschitzSystem, start: Tensor | None) -> tuple[LipschitzSystem, Tensor]:
    """The system as finders want it, in its units and compressed, and a Λ to start from at its best multiple.

    Args:
        system: the map.
        start: a Λ of the caller's, of which the ratios count; None takes the metric of the system, or looks for one.

    Raises:
        InputError: if ``start`` has not one finite entry per neuron.
        PreconditionError: if no Λ is found in which Condition 1 holds.
    """
    small = compressed(system.in_units(system.units))
    if start is not None:
        checks.shape("start", checks.positive_tensor("start", checks.floating_tensor("start", start)), (system.size,))
        return small, best_scale(small, start.detach().to("cpu", torch.float64))
    balance = _balance(small)
    for known in (system.metric, None):
        if known is None:
            found = find_metric(with_unit_slopes(system)[0], start=balance)
            if found.metric is None:
                break
            known = found.metric.weights
        candidates = [best_scale(small, balance.pow(1 - blend) * _central(known).pow(blend)) for blend in _BLENDS]
        values = [gain(small, candidate) for candidate in candidates]
        if min(values) < float("inf"):
            return small, candidates[values.index(min(values))]
    raise PreconditionError(f"I − W is not known to be strongly monotone in any diagonal Λ: {found}")


def _central(lam: Tensor) -> Tensor:
    return lam / lam.log().mean().exp()


def _balance(system: LipschitzSystem) -> Tensor:
    """Λᵢ = how much neuron i does for the outputs, over how much the inputs do to it: the same in all coordinates."""
    W = system.slopes[1] * system.W.abs() / 2
    reached = _spread(W, system.U.abs().sum(1))
    seen = _spread(W.mT, system.C.abs().sum(0))
    known = (reached > 0) & (seen > 0)
    if not bool(known.any()):
        return torch.ones_like(reached)
    logs = torch.where(known, seen, 1.0).log() - torch.where(known, reached, 1.0).log()
    return torch.where(known, logs - logs[known].mean(), 0.0).exp()


def _spread(W: Tensor, first: Tensor) -> Tensor:
    total = first
    for _ in range(_HOPS):
        following = first + W @ total
        if not bool(torch.isfinite(following).all()):
            break
        total = following
    return total
