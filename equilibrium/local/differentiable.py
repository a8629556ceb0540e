r"""Bounds of moves as functions of the weights that have a gradient, for training: multipliers are searched, then held.

With slopes in m ± h, Δz = mΔv + w, |w| ≤ h|Δv|, and K = (I − Wm)⁻¹ every move is Δv = K(Ww + UΔx), where w = 0 for
neurons that are decided. Any μ > 0 gives Σ μ(h²Δv² − w²) ≥ 0: with p = [√μ w; Δx] and N = √μ h K[W/√μ, U]
that is pᵀ(I − NᵀN)p ≤ ‖Δx‖². Where S = I − NNᵀ = LLᵀ ≻ 0, a linear form a·p is at most

    r √(aᵀ(I − NᵀN)⁻¹a) = r √(‖a‖² + ‖L⁻¹Na‖²)   for ‖Δx‖ ≤ r:

the ellipsoid of ``relaxation`` by a factor of the size of the network. It is a bound for every μ, and at the best μ its
derivative in W, U, C and the slopes is that of the smallest bound (the envelope theorem), so that no gradient goes
through the search.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contracting.activations.base import Activation
from equilibrium.local.finder import Effort
from equilibrium.local.network import LocalNetwork
from equilibrium.local.passes import Slopes, bounded
from equilibrium.local.relaxation import Forms, middles
from equilibrium.local.slopes import one_sided, secant_slopes
from equilibrium.local.surroundings import Surroundings

_LEAST = 1e-12  # A neuron that nothing reaches would divide by zero; a larger reach is as true.


def drops(
    network: LocalNetwork,
    W: Tensor,
    U: Tensor,
    inner: Tensor,
    forms: Forms,
    radius: float,
    *,
    passes: int,
    effort: Effort,
) -> Tensor:
    """Upper bounds of forms over the ball of ℓ2 around each row, (batch, k), up to rounding; ∞ where none is found.

    Args:
        network: of the same weights, for searches.
        W: (n, n), float64.
        U: (n, in), float64.
        inner: v of each row, (batch, n), float64.
        forms: k for each row.
        radius: of the balls, > 0.
        passes: how often the slopes are made narrower. The first bounds of Δv are by one multiplier for all rows and
            cost next to nothing, any further ones as much as those of the forms.
        effort: of each search.
    """
    batch, n = inner.shape
    low, high = (end.to(W).expand(1, n) for end in network.activation.slope_intervals(n))
    multiplier = network.metric.expand(1, n)
    for _ in range(passes):
        every = Forms(inner=torch.eye(n).to(W).expand(len(low), n, n))
        weights = (1 / (inner.detach().abs() + radius)).mean(0).expand(len(low), n)
        multiplier = _multiplier(network, low, high, multiplier, every, weights, radius, effort)
        reach = bound(W, U, low, high, multiplier, every, radius).clamp_min(_LEAST)
        narrow = _narrow(network.activation, inner, reach.expand(batch, n))
        low, high = torch.maximum(low, narrow[0]), torch.minimum(high, narrow[1])
        multiplier = multiplier.expand(batch, n)
    low, high, multiplier = (part.expand(batch, n) for part in (low, high, multiplier))
    form = next(part for part in (forms.state, forms.inner, forms.direct) if part is not None)
    multiplier = _multiplier(network, low, high, multiplier, forms, torch.ones_like(form[..., 0]), radius, effort)
    return bound(W, U, low, high, multiplier, forms, radius)


def bound(W: Tensor, U: Tensor, low: Tensor, high: Tensor, multiplier: Tensor, forms: Forms, radius: float) -> Tensor:
    """The bound of every form for the multiplier μ as it is, differentiable in all the rest: (batch, k).

    Args:
        W: (n, n).
        U: (n, in).
        low: lowest secant slopes, (batch, n).
        high: highest ones, (batch, n).
        multiplier: μ > 0, (batch, n); that of a decided neuron is ignored.
        forms: k for each row, without constants.
        radius: of the balls.
    """
    middle, half = middles(low, high)
    identity, root = torch.eye(len(W)).to(W), multiplier.sqrt()
    moving = (half > 0) / root
    K = torch.linalg.inv(identity - W * middle[:, None, :])
    own, left = W * moving[:, None, :], (root * half)[..., None] * K
    S = identity - left @ (own @ own.mT + U @ U.mT) @ left.mT
    _, wrong = torch.linalg.cholesky_ex(S.detach())
    factor = torch.linalg.cholesky(torch.where((wrong == 0)[:, None, None], S, identity))
    zero = torch.zeros_like(root[:, None])
    state = zero if forms.state is None else forms.state
    through = (state * middle[:, None] + (zero if forms.inner is None else forms.inner)) @ K
    parts = through @ own + state * moving[:, None], through @ U + (0.0 if forms.direct is None else forms.direct)
    moved = left @ (own @ parts[0].mT + U @ parts[1].mT)
    solved = torch.linalg.solve_triangular(factor, moved, upper=False)
    length = torch.linalg.vector_norm(torch.cat([*parts, solved.mT], -1), dim=-1)
    return torch.where((wrong == 0)[:, None], radius * length, torch.inf)


def _narrow(activation: Activation, inner: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Secant slopes; a gradient goes through those of a σ with one kink, whose range needs no outward rounding."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and one_sided(activation)):
        return secant_slopes(activation, inner, torch.zeros_like(inner), reach)


@torch.no_grad()
def _multiplier(
    network: LocalNetwork,
    low: Tensor,
    high: Tensor,
    start: Tensor,
    forms: Forms,
    weights: Tensor,
    radius: float,
    effort: Effort,
) -> Tensor:
    slopes = Slopes(low=low, high=high, multiplier=start, shift=torch.zeros_like(low))
    around = Surroundings(radius=torch.full_like(low[:, 0], radius))
    return bounded(network, slopes, forms, weights, around, effort)[0].multiplier
