r"""The circle criterion by its frequencies: a second proof, without a metric.

At a rate c and for slopes in [0, 1] the criterion is λmin(He(I − G(jω))) > 0 for all ω, G = D + C(jωI − A − cI)⁻¹B with
C and B scaled by Λ^½. Around ω₀, with R = (jω₀I − A − cI)⁻¹,

    G(j(ω₀ + δ)) = G₀ − jδ CR²B + remainder,  ‖remainder‖ ≤ δ²‖CR‖‖R‖‖RB‖/(1 − δ‖R‖),

and λmin of an affine function of δ is concave, so that its ends decide: an interval is proved by two eigenvalue
problems, or halved. Far out G is next to D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.definite import UNIT
from contracting.certificates.lure.views import lure_view
from contracting.certificates.spectra import abscissa_from_above
from contracting.lure.system import LureSystem

_MOST = 4000  # So many intervals at most: then nothing is proved. A dozen are enough far below the best rate.


def frequency_margin(system: LureSystem, multiplier: Tensor, rate: float, *, most: int = _MOST) -> float:
    """A lower bound of λmin(He(I − G(jω))) over all ω; above 0 it proves the criterion, so that a metric exists.

    Args:
        system: any slopes; its loop is shifted to slopes in [0, 1] first, whose rounding is not part of the bound.
        multiplier: Λ, (m,).
        rate: c.
        most: intervals at most.

    Returns:
        The bound, rounding included; −∞ where A + cI is not proved to be Hurwitz or ``most`` intervals do not suffice.

    Raises:
        InputError: if the multiplier is not positive, or of another size.
    """
    view = lure_view(system)
    root = view.multiplier(multiplier).sqrt()
    seen = view.system.rescaled(torch.ones(system.size, dtype=torch.float64), root)
    A = seen.A + checks.number("rate", rate) * torch.eye(seen.size, dtype=torch.float64)
    if not abscissa_from_above(A) + 4 * seen.size * UNIT * abs(rate) < 0:
        return -math.inf
    sizes = [float(torch.linalg.matrix_norm(matrix, 2)) for matrix in (A, seen.B, seen.C)]
    through = _smallest(torch.eye(seen.neurons, dtype=torch.float64) - seen.D)
    if not through > 0:
        return -math.inf
    # beyond this frequency what goes through the state is at most half of what is left of 2 − D − Dᵀ
    last = sizes[0] + 4 * sizes[1] * sizes[2] / through
    lowest, open_ = through / 2, [(0.0, last)]
    for _ in range(most):
        if not open_:
            return lowest
        left, right = open_.pop()
        proved = _proved(seen, A, sizes, (left + right) / 2, (right - left) / 2)
        if proved is None or proved <= 0:
            # halves of about the same ratio: the resolvent changes with the logarithm of a frequency that is large
            cut = math.sqrt(left * right) if left > 0 else right / 4
            if not left < cut < right:
                return -math.inf
            open_ += [(left, cut), (cut, right)]
        else:
            lowest = min(lowest, proved)
    return -math.inf


def _proved(seen: LureSystem, A: Tensor, sizes: list[float], centre: float, radius: float) -> float | None:
    """A lower bound over an interval; None where the resolvent may have a pole in it."""
    n = seen.size
    matrix = 1j * centre * torch.eye(n, dtype=torch.float64) - A
    Y, info = torch.linalg.inv_ex(matrix)
    if int(info):
        return None
    identity = torch.eye(n, dtype=Y.dtype)
    norm = float(torch.linalg.matrix_norm(Y, 2))
    rounding = 8 * (n + 2) * UNIT * norm * (centre + sizes[0])
    defect = float(torch.linalg.matrix_norm(identity - Y @ matrix)) + math.sqrt(n) * rounding
    if not defect < 0.5:
        return None
    norm = norm / (1 - defect)  # of the resolvent itself
    if not radius * norm < 1:
        return None
    B, C = seen.B.to(Y.dtype), seen.C.to(Y.dtype)
    into, out = Y @ B, C @ Y
    at_centre, change = seen.D + C @ into, -1j * (out @ into)
    # what the computed resolvent may be wrong by, in G and in its change
    error = 2 * sizes[1] * sizes[2] * norm * (2 * defect + rounding) * (1 + 2 * radius * norm)
    outer = [
        float(torch.linalg.matrix_norm(part, 2)) + size * norm * 2 * defect
        for part, size in ((out, sizes[2]), (into, sizes[1]))
    ]
    remainder = radius**2 * outer[0] * norm * outer[1] / (1 - radius * norm)
    unit = torch.eye(seen.neurons, dtype=Y.dtype)
    ends = (_smallest(unit - at_centre - sign * radius * change) for sign in (1, -1))
    return min(ends) - 2 * (remainder + error) * (1 + 1e-9)


def _smallest(matrix: Tensor) -> float:
    """λmin of M + Mᴴ, less the rounding of its computation."""
    hermitian = matrix + matrix.mH
    size = float(torch.linalg.matrix_norm(hermitian))
    return float(torch.linalg.eigvalsh(hermitian)[0]) - 16 * len(hermitian) * UNIT * size
