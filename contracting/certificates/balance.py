r"""Canonical coordinates of a weight: those that every diagonal change of coordinates leaves as they are.

Rates, bounds and well-posedness do not change when W becomes DWD⁻¹, while every start at "1", every eigenvalue in
float64 and every tolerance does. So all searches look at tWt⁻¹ with a t that turns to tD⁻¹ with the weight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SWEEPS = 40  # More sweeps did not improve a rate by 1e-3 on random weights of 3 to 60 entries.
# The largest entry by which earlier parts drive a part is scaled to this share of the largest entry inside the parts.
_COUPLING = 0.25
_FREE = 2.0**-8  # Where nothing lies inside the parts, this share of the leak, or of 1, stands in its place.
_MOST = 330.0  # |log t| is at most this, so that t² stays in the range of float64.
_OCTAVES = 300.0  # All couplings of parts together are scaled down by at most so many powers of two.


def balancing(W: Tensor, *, leak: float = 1.0) -> Tensor:
    """t > 0 for which the rows and columns of tWt⁻¹ have about the same Euclidean norms, diagonal left out: (n,).

    That is so within strongly connected parts of the graph of W (Osborne 1960, all entries in one step), from a start
    in which the logarithms of the entries are about equal, so that all that follows is the same for DWD⁻¹. A part that
    is driven by others but does not drive them may be scaled at will; it is scaled so that it is driven weakly.

    Args:
        W: (n, n), float64.
        leak: the size of the other term of the Jacobian, −I, beside which a coupling is small; 0 if there is none.
    """
    logs = W.abs().log().fill_diagonal_(-math.inf)
    edges = logs > -math.inf
    parts, whole = _parts(edges), _parts(edges | edges.mT)
    counts, finite = edges.to(W.dtype), torch.where(edges, logs, 0.0)
    laplacian = torch.diag(counts.sum(0) + counts.sum(1)) - counts - counts.mT
    tau = torch.linalg.solve(laplacian + whole.to(W.dtype), finite.sum(0) - finite.sum(1))
    inside = torch.where(parts, logs, -math.inf)
    alone = parts.sum(1) == 1
    for _ in range(0 if bool(alone.all()) else _SWEEPS):
        moved = 2 * (inside + tau[:, None] - tau[None, :])
        tau = torch.where(alone, tau, tau + (moved.logsumexp(0) - moved.logsumexp(1)) / 8)
    within = max(float((inside + tau[:, None] - tau[None, :]).max().exp()), float(W.diagonal().abs().max()))
    count = float((1 / parts.sum(1)).sum())
    target = max(_COUPLING * (within or _FREE * (leak or 1.0)), leak * 2 ** (-_OCTAVES / count))
    tau = _coupled(logs, tau, parts, math.log(max(target, 5e-324)))
    return (tau - (tau.max() + tau.min()) / 2).clamp(-_MOST, _MOST).exp()


def _parts(edges: Tensor) -> Tensor:
    """Whether two entries drive each other, through others or not: (n, n), with true on the diagonal."""
    reach = (edges | torch.eye(len(edges), dtype=torch.bool)).float()
    for _ in range(max(1, math.ceil(math.log2(len(edges))))):
        reach = (reach @ reach).clamp_max(1.0)
    return (reach > 0) & (reach.mT > 0)


def _coupled(logs: Tensor, tau: Tensor, parts: Tensor, target: float) -> Tensor:
    """τ with the parts shifted, the driving ones first, until the largest entry that drives each is e^target."""
    open_, placed = torch.ones(len(tau), dtype=torch.bool), torch.zeros(len(tau), dtype=torch.bool)
    driving = (logs > -math.inf) & ~parts
    while bool(open_.any()):
        # entries of parts that nothing open drives: those whose whole part is free of open drivers
        waiting = (driving & open_[None, :]).any(1)
        ready = open_ & ~(parts & waiting[None, :]).any(1)
        incoming = torch.where(driving & placed[None, :], logs - tau[None, :], -math.inf).amax(1) + tau
        largest = torch.where(parts, incoming[None, :], -math.inf).amax(1)
        tau = torch.where(ready & (largest > -math.inf), tau + (target - largest), tau)
        open_, placed = open_ & ~ready, placed | ready
    return tau


def rescale(W: Tensor, t: Tensor) -> Tensor:
    """tWt⁻¹, exact for powers of two, also where a quotient of two entries of t leaves the range of numbers."""
    mantissa, exponent = torch.frexp(t)
    change = exponent[:, None] - exponent[None, :]
    half = torch.div(change, 2, rounding_mode="floor")
    moved = W * (mantissa[:, None] / mantissa[None, :])
    return torch.ldexp(torch.ldexp(moved, half), change - half)
