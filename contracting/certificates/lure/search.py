"""Searches over the multiplier Λ of a Lur'e system, by gradient on log Λ: for its rate, its gain or passivity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contracting.certificates.lure.questions import Question
from contracting.certificates.multipliers import descend, monotone_metric, scaled

# The maximum over frequencies is smoothed on these levels, one after the other, relative to the loop: a coarse one
# leads the search over kinks, a fine one makes it accurate.
_SMOOTHING = (0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)
_ROUNDS = 4  # On one level the search starts so often at most, each time from what was found and with new frequencies.
_MOST_FREQUENCIES = 40  # So many are kept: each costs an eigenvalue problem per gradient.


def well_posed(question: Question, start: Tensor) -> Tensor:
    """The start, or where the loop is not proved well-posed in it, the best Λ for that: 2Λ − ΛD − DᵀΛ ≻ 0."""
    D = question.system.D
    M = scaled(D, start)
    if not len(D) or float(torch.linalg.eigvalsh((M + M.mT) / 2)[-1]) < 1:
        return start
    return monotone_metric(D, start)


def best_multiplier(question: Question, start: Tensor, *, evaluations: int, tolerance: float) -> Tensor:
    """The Λ with the highest level found from ``start``; never a lower one.

    At a given level the largest eigenvalue over frequencies is lowered as far as possible, which leaves room for a
    higher level; that is the next one.

    Args:
        question: what is asked.
        start: Λ, (m,).
        evaluations: gradients at most on each level of smoothing.
        tolerance: of the level, absolute.
    """
    best, value = start, question.best(start, tolerance)
    if value == -math.inf or not len(best):
        return best
    frequencies = _merged(torch.tensor([0.0, math.inf]).double(), _critical(question, best, value, tolerance))
    for smoothing in _SMOOTHING:
        for _ in range(_ROUNDS):
            loops, known = question.loops(value, frequencies)
            multipliers = torch.cat([best, known])
            size = float(torch.linalg.matrix_norm(loops * multipliers.sqrt()[:, None] / multipliers.sqrt(), 2).max())
            candidate = descend(
                loops, best, temperature=smoothing * max(size, 1e-300), evaluations=evaluations, known=known
            )
            reached = question.best(candidate, tolerance, above=value)
            seen = _critical(question, candidate, max(value, reached), tolerance)
            count, frequencies = len(frequencies), _merged(frequencies, seen)
            improved = reached - value
            if improved > 0:
                best, value = candidate, reached
            if improved < 10 * tolerance and len(frequencies) == count:
                break
    return best


def _critical(question: Question, multiplier: Tensor, level: float, tolerance: float) -> Tensor:
    """Frequencies at which a multiplier fails just above a level; infinity where it fails at once."""
    above = level + 10 * tolerance
    if above >= question.most:
        return multiplier.new_zeros(1)
    found = question.inequality(above, multiplier).imaginary()
    if found is None:
        return multiplier.new_full((1,), math.inf)
    return torch.cat([found, (found[1:] + found[:-1]) / 2])


def _merged(known: Tensor, seen: Tensor) -> Tensor:
    """Both, without frequencies that are nearly the same, the newest first to stay."""
    kept: list[float] = []
    for frequency in (*seen.tolist(), *reversed(known.tolist())):
        apart = all(frequency != other and not abs(frequency - other) <= 1e-4 * other for other in kept)
        if len(kept) < _MOST_FREQUENCIES and apart:
            kept.append(frequency)
    return torch.tensor(kept[::-1], dtype=torch.float64)
