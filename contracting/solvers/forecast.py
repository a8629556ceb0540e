r"""How many steps Peaceman–Rachford usually takes, from a small linear problem solved with the same weights.

A forecast says when the residual is worth a look; it certifies nothing. It is a function of the weights and the step
alone (in training, of the weights a few updates ago): rows are looked at after the same steps whatever else is solved
with them.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracting.flows.splitting import driven, reflected_steps
from contracting.maps.base import LinearMap
from contracting.types import Step

_LARGE = 1_000  # neurons beyond which few patterns say as much as many, and a look costs hardly more than a step
_PATTERNS, _FEW_PATTERNS = 8, 4  # of active neurons, for small and for large n
_DENSITIES = 0.2, 0.8  # share of active neurons in the first and the last pattern
_LOOKS = 2, 4, 12  # steps after which the residual is looked at
_MARGIN = 1.3, 1.0  # times the steps of the sample, and more: the slowest rows of trained networks take 1.0 to 1.4
_BALANCED = 1.2, 0.5  # the same where each neuron has its own step: 1.1 to 1.2, as rows then differ less
_EAGER = 1.12, 0.0  # the same for large n
_FASTEST = 1e-3  # decay per step that is counted on


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A relative residual of start·decayᵏ after k steps.

    Attributes:
        start: the residual where the line through the later ones meets k = 0.
        decay: what a step leaves of it, below one.
        margin: a factor and a number of steps that make the steps of a mean those of the slowest rows.
    """

    start: float
    decay: float
    margin: tuple[float, float]

    def at_most(self, factor: float | None) -> Forecast:
        """With no slower decay than a proved factor, where there is one."""
        return self if factor is None or factor >= self.decay else replace(self, decay=factor)

    def steps(self, residual: float) -> float:
        """After how many steps all rows of a batch are usually below a relative residual."""
        return max(0.0, math.log(residual / self.start) * self.steps_per_digit) + self.margin[1]

    @property
    def steps_per_digit(self) -> float:
        """How many steps all rows of a batch usually take for each factor e, times −1."""
        return self.margin[0] / math.log(max(self.decay, _FASTEST))


@torch.no_grad()
def sampled_forecast(linear: LinearMap, reflection: LinearMap, step: Step) -> Forecast | None:
    """The mean residual of z = J(Wz + q) for random q and random slopes J of zeros and ones.

    Args:
        linear: W, or its transpose, which decays alike.
        reflection: 2(I + α(I − W))⁻¹ − I.
        step: α.

    Returns:
        The forecast, or None where the residual does not get smaller.
    """
    q, active = _sample(linear.size, reflection.dtype, reflection.device)
    u = offset = driven(reflection, step * q)
    signs = 2 * active - 1
    seen, taken = [], 0
    for look in _LOOKS:
        u = reflected_steps(reflection, offset, lambda u, out: torch.mul(u, signs, out=out), u, look - taken)
        seen.append(u)
        taken = look
    z = torch.stack(seen) * active
    image = linear.affine(z.flatten(0, 1), q.repeat(len(seen), 1)).view(z.shape) * active
    sizes = torch.linalg.vector_norm(torch.cat((z - image, image[-1:])), dim=-1)
    # a pattern without an active neuron is solved from the start
    residuals = sizes[:-1] / sizes[-1].clamp_min(torch.finfo(u.dtype).tiny)
    fit = _fitted(residuals.mean(-1).tolist(), 10 * torch.finfo(u.dtype).eps)
    margin = _EAGER if linear.size > _LARGE else _BALANCED if isinstance(step, Tensor) else _MARGIN
    return None if fit is None else Forecast(start=fit[0], decay=fit[1], margin=margin)


def _fitted(residuals: list[float], rounding: float) -> tuple[float, float] | None:
    """Start and decay of the line through the last two looks that are no mere rounding."""
    if not all(math.isfinite(residual) for residual in residuals):
        return None
    sound = sum(1 for residual in residuals if residual >= rounding)
    if sound < 2:
        return 1.0, rounding ** (1 / _LOOKS[0])
    early, late = sound - 2, sound - 1
    if not residuals[late] < residuals[early]:
        return None
    decay = (residuals[late] / residuals[early]) ** (1 / (_LOOKS[late] - _LOOKS[early]))
    return residuals[late] / decay ** _LOOKS[late], decay


@functools.lru_cache(maxsize=8)
def _sample(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Inputs q and slopes J, each (patterns, n): the same in every call."""
    patterns = _FEW_PATTERNS if size > _LARGE else _PATTERNS
    generator = torch.Generator().manual_seed(5)
    share = torch.linspace(*_DENSITIES, patterns)[:, None]
    active = torch.rand(patterns, size, generator=generator) < share
    q = torch.randn(patterns, size, generator=generator)
    return q.to(device, dtype), active.to(device, dtype)
