r"""The parabola test: how far the numerical range of a weight reaches into the right half-plane.

For M = Q^½WQ^−½ and slopes in [0, β] the firing-rate flow contracts at rate c in some P with multiplier Q iff the
numerical range of βM lies in the parabola Re ω ≤ s − (Im ω)²/(4s), s = 1 − c. Hence the rate is

    c = 1 − max g(ω) over the numerical range of βM,   g(ω) = ½(|ω| + Re ω) = max_θ cosθ Re(e^{−jθ}ω).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.definite import UNIT

# What an eigenvalue of the Hermitian part and its assembly are charged for rounding, in units of n‖M‖_F.
_ROUNDING = 16 * UNIT


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Certified bounds on max g over the numerical range, and where it is attained.

    Attributes:
        upper: an upper bound, rounding included; 1 − upper is a certified rate.
        lower: a lower bound up to rounding.
        angles: every θ that was looked at.
    """

    upper: float
    lower: float
    angles: tuple[float, ...]


def support(M: Tensor, angle: float) -> float:
    """Largest Re(e^{−jθ}ω) over the numerical range: the top eigenvalue of the Hermitian part of e^{−jθ}M."""
    rotated = M * complex(math.cos(angle), -math.sin(angle)) if angle else M
    return float(torch.linalg.eigvalsh((rotated + rotated.mH) / 2)[-1])


def boundary(M: Tensor, *, points: int = 361) -> Tensor:
    """Points ω = xᴴMx on the boundary of the numerical range, in order around it: complex, (points,).

    Each is the one farthest in its direction, x being the top eigenvector of the Hermitian part of e^{−jθ}M, so their
    convex hull lies inside the range and touches its boundary everywhere.

    Args:
        M: (n, n), n ≥ 1.
        points: directions θ in [0, 2π], the last the same as the first.

    Raises:
        InputError: if there are no points.
    """
    checks.whole_number("points", points)
    theta = torch.linspace(0, 2 * math.pi, points, dtype=torch.float64)
    rotated = torch.polar(torch.ones_like(theta), -theta)[:, None, None] * M
    _, vectors = torch.linalg.eigh((rotated + rotated.mH) / 2)
    top = vectors[..., -1]
    return (top.conj() * (M.to(top.dtype) @ top[..., None])[..., 0]).sum(-1)


def reach(M: Tensor, *, tolerance: float = 1e-9, most_cuts: int = 60) -> Reach:
    """Bounds on max g by cutting planes: a handful of eigenvalue problems, to any accuracy.

    The support lines at angles in [0, π/2] enclose the numerical range in a polygon; g is convex and increasing in
    Re ω, so its maximum over the polygon sits at a vertex. The next line is drawn in the direction in which g grows
    fastest there.

    Args:
        M: real, (n, n), n ≥ 1.
        tolerance: on upper − lower, relative to ‖M‖.
        most_cuts: eigenvalue problems at most; the upper bound holds whenever it stops.
    """
    scale = float(torch.linalg.matrix_norm(M))
    lines = {angle: support(M, angle) for angle in (0.0, math.pi / 4, math.pi / 2)}
    while True:
        upper, angle = _worst_vertex(lines)
        lower = max(0.0, *(math.cos(known) * lines[known] for known in lines))
        done = upper - lower <= tolerance * scale or len(lines) >= most_cuts
        if done or min(abs(angle - known) for known in lines) < 1e-12:
            return Reach(upper=upper + _ROUNDING * len(M) * scale, lower=lower, angles=tuple(sorted(lines)))
        lines[angle] = support(M, angle)


def _worst_vertex(lines: dict[float, float]) -> tuple[float, float]:
    """max g over the vertices of the polygon, and half the argument of the vertex that attains it."""
    ordered, upper, worst = sorted(lines), 0.0, 0.0
    for left, right in zip(ordered, ordered[1:], strict=False):
        p, q, sine = lines[left], lines[right], math.sin(right - left)
        x = (p * math.sin(right) - q * math.sin(left)) / sine
        y = (q * math.cos(left) - p * math.cos(right)) / sine
        value = (math.hypot(x, y) + x) / 2
        if value > upper:
            upper, worst = value, math.atan2(y, x) / 2
    return upper, min(max(worst, 0.0), math.pi / 2)
