r"""Searches over diagonal multipliers Q (and metrics Λ), by gradient on log Q.

The questions minimise, over positive diagonal Q and M = Q^½WQ^−½, the largest top eigenvalue of He(cosθ e^{−jθ}M) over
a set of angles: all θ for the parabola test, θ = 0 alone for Condition 1 and the inclusion; or ‖M‖, the top eigenvalue
of [[0, M], [Mᵀ, 0]], for the small-gain theorem. The first two are quasi-convex in log Q, the last is convex. The
maximum is smoothed by log-sum-exp, with the angles gathered where the parabola test finds the worst ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from contracting.certificates.numerical_range import reach, support
from contracting.certificates.spectra import eigenvectors

# The maximum is smoothed on these levels, one after the other, relative to ‖M‖: a coarse one leads the search over
# kinks, a fine one makes it accurate.
_LEVELS = (0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
_ROUNDS = 3  # On one level the search starts so often at most, each time with the angles that were found missing.
_MOST_ANGLES = 40  # So many angles are kept: each costs an eigenvalue problem per gradient.
_DENSE_PERRON = 150  # Up to this n, Perron vectors are eigenvectors; beyond, 500 products are cheaper.

_Angles = tuple[float, ...]
_Judge = Callable[[Tensor], tuple[float, _Angles]]
_Loops = Callable[[Tensor, _Angles], Tensor]


def scaled(W: Tensor, multiplier: Tensor) -> Tensor:
    """Q^½WQ^−½."""
    root = multiplier.sqrt()
    return W * root[:, None] / root[None, :]


def parabola_multiplier(W: Tensor, start: Tensor, *, evaluations: int) -> Tensor:
    """The Q with the best parabola rate found from ``start``; never worse than it.

    Args:
        W: (n, n), float64.
        start: Q > 0, (n,).
        evaluations: gradients at most on each level of smoothing.
    """

    def judge(multiplier: Tensor) -> tuple[float, _Angles]:
        found = reach(scaled(W, multiplier))
        return found.upper, found.angles

    return _minimise(W, start, judge, evaluations)


def small_gain_multiplier(W: Tensor, start: Tensor, *, evaluations: int) -> Tensor:
    """The Q with the smallest ‖Q^½WQ^−½‖ found from ``start``; never worse than it."""

    def judge(multiplier: Tensor) -> tuple[float, _Angles]:
        return float(torch.linalg.matrix_norm(scaled(W, multiplier), 2)), ()

    def loops(W: Tensor, angles: _Angles) -> Tensor:
        # with the scales (Q, Q), the symmetric part of [[0, 2W], [0, 0]] becomes [[0, M], [Mᵀ, 0]]
        return torch.nn.functional.pad(2 * W, (len(W), 0, 0, len(W)))[None]

    return _minimise(W, start, judge, evaluations, loops=loops)


def monotone_metric(W: Tensor, start: Tensor, *, evaluations: int = 25) -> Tensor:
    """The Λ with the largest m = λmin(sym Λ^½(I − W)Λ^−½) found from ``start``; never worse than it."""

    def judge(multiplier: Tensor) -> tuple[float, _Angles]:
        return support(scaled(W, multiplier), 0.0), (0.0,)

    return _minimise(W, start, judge, evaluations)


def _minimise(W: Tensor, start: Tensor, judge: _Judge, evaluations: int, loops: _Loops | None = None) -> Tensor:
    W = normalised(W)  # Q does not depend on the unit of W
    best = start / torch.exp(start.log().mean())
    value, angles = judge(best)
    for level in _LEVELS:
        size = float(torch.linalg.matrix_norm(scaled(W, best), 2))
        if size == 0:
            break
        for _ in range(_ROUNDS):
            candidate = descend((loops or _rotated)(W, angles), best, temperature=level * size, evaluations=evaluations)
            judged, seen = judge(candidate)
            known = len(angles)
            # the judge shows which angles were missing
            angles = _merged(angles, seen)
            if judged < value:
                best, value = candidate, judged
            elif len(angles) == known:
                break
    return best / torch.exp(best.log().mean())


def descend(
    loops: Tensor, start: Tensor, *, temperature: float, evaluations: int, known: Tensor | None = None
) -> Tensor:
    """Q > 0 with a smaller maximum of the top eigenvalues of the symmetric parts of Q^½MQ^−½, over a stack of M.

    Args:
        loops: M, (k, n, n), real or complex; of several times the size where Q is repeated along the diagonal.
        start: Q, (n,), without the entries that are known.
        temperature: of the smoothing of the maximum.
        evaluations: gradients at most.
        known: the last entries of Q, which stay as they are.
    """
    log_q, rest = start.log().clone().requires_grad_(), start.new_zeros(0) if known is None else known.log()
    copies = (loops.shape[-1] - len(rest)) // len(start)
    optimiser = torch.optim.LBFGS(
        [log_q], max_iter=evaluations, max_eval=evaluations, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )

    def closure() -> Tensor:
        objective, gradient = _smoothed(loops, torch.cat([*copies * (log_q.detach(),), rest]), temperature)
        log_q.grad = gradient[: copies * len(start)].reshape(copies, -1).sum(0)
        return objective

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    found = log_q.detach().exp()
    return found if bool(torch.isfinite(found).all() and (found > 0).all()) else start


def _merged(known: _Angles, seen: _Angles) -> _Angles:
    """Both, without angles that are nearly the same, the newest first to stay."""
    kept: list[float] = []
    for angle in (*sorted(seen), *reversed(known)):
        if len(kept) < _MOST_ANGLES and all(abs(angle - other) > 1e-3 for other in kept):
            kept.append(angle)
    return tuple(kept)


def _rotated(W: Tensor, angles: _Angles) -> Tensor:
    """cosθ e^{−jθ}W for each angle; real where there is the angle 0 alone."""
    if angles == (0.0,):
        return W[None]
    theta = torch.tensor(angles, dtype=torch.float64)
    return torch.polar(theta.cos(), -theta)[:, None, None] * W


def _smoothed(loops: Tensor, log_q: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """μ log Σ exp(λₖ/μ) over a stack and its gradient in log Q; d log Qᵢ moves Mᵢⱼ by ½Mᵢⱼ and Mⱼᵢ by −½Mⱼᵢ."""
    half = (log_q / 2).exp()
    rotated = loops * half[:, None] / half[None, :]
    values, vectors = torch.linalg.eigh((rotated + rotated.mH) / 2)
    weights = torch.softmax(values.flatten() / temperature, 0).reshape(values.shape)
    objective = temperature * torch.logsumexp(values.flatten() / temperature, 0)
    outgoing = torch.real(vectors.conj() * (rotated @ vectors))
    incoming = torch.real(vectors.conj() * (rotated.mH @ vectors))
    gradient = 0.5 * (weights[:, None, :] * (outgoing - incoming)).sum((0, 2))
    return objective, gradient


def normalised(W: Tensor) -> Tensor:
    """W divided by its largest entry, so that no product leaves the range of float64; zeros stay as they are."""
    size = W.abs().max()
    return W / size if bool(size > 0) else W


def perron_weights(W: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right Perron vectors > 0 of ⌈W⌉, ⌈W⌉ᵢᵢ = Wᵢᵢ, ⌈W⌉ᵢⱼ = |Wᵢⱼ|: (n,), (n,).

    A reducible ⌈W⌉ is connected by entries too small to matter, so that both vectors are positive; W should be in
    balanced coordinates, in which it is clear what is small.
    """
    n = W.shape[0]
    metzler = normalised(W.abs() - torch.diag(W.diagonal().abs() - W.diagonal())) + 1e-9 / n
    if n <= _DENSE_PERRON:
        try:
            return _leading(metzler.mT), _leading(metzler)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            pass
    return _power_iteration(metzler.mT), _power_iteration(metzler)


def _leading(metzler: Tensor) -> Tensor:
    values, vectors = eigenvectors(metzler)
    at = int(values.real.argmax())
    return vectors[:, at].abs().clamp_min(math.sqrt(torch.finfo(torch.float64).tiny))


def _power_iteration(metzler: Tensor) -> Tensor:
    shift = float(metzler.diagonal().abs().max())
    x = torch.ones(metzler.shape[0], dtype=torch.float64)
    for _ in range(500):
        x = metzler @ x + shift * x
        x = x / x.max()
    return x
