"""How far a reproduced path is from the demonstrated one: at equal times, and after the best alignment of times."""

from __future__ import annotations

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError


def rms_distance(paths: Tensor, references: Tensor) -> Tensor:
    """Root mean square distance at equal times: two (..., T, 2) -> (...)."""
    return (paths - references).square().sum(-1).mean(-1).sqrt()


def warped_distance(paths: Tensor, references: Tensor) -> Tensor:
    r"""Dynamic time warping: the mean distance of the pairs in the cheapest alignment of two paths.

    min Σ ‖pᵢ − rⱼ‖ over all chains of pairs (i, j) from (1, 1) to (T, S) in which i, j or both grow by one from pair to
    pair, divided by the number of pairs; of equally cheap chains the shortest counts.

    Args:
        paths: (batch, T, d).
        references: (batch, S, d).

    Returns:
        (batch,), in the unit of the paths.

    Raises:
        InputError: if the shapes do not fit, or a path is empty.
    """
    if paths.ndim != 3 or references.ndim != 3 or paths.shape[::2] != references.shape[::2]:
        raise InputError(
            f"paths and references must have shapes (batch, T, d) and (batch, S, d), got {tuple(paths.shape)} and "
            f"{tuple(references.shape)}"
        )
    rows = checks.whole_number("the points of paths", paths.shape[1])
    columns = checks.whole_number("the points of references", references.shape[1])
    # differences, not products of matrices: equal points are then at distance zero
    costs = torch.cdist(paths, references, compute_mode="donot_use_mm_for_euclid_dist")
    batch = len(paths)
    # Each entry of a table is (cost, pairs) of the best chain up to there; a border of infinite cost surrounds it.
    best = costs.new_full((rows + 1, columns + 1, batch), float("inf"))
    pairs = costs.new_zeros((rows + 1, columns + 1, batch))
    best[0, 0] = 0.0
    for diagonal in range(2, rows + columns + 1):  # of equal i + j, none of which depends on another
        i = torch.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        before = torch.stack([best[i - 1, j - 1], best[i - 1, j], best[i, j - 1]])
        counts = torch.stack([pairs[i - 1, j - 1], pairs[i - 1, j], pairs[i, j - 1]])
        cheapest = before.amin(0)
        counts = torch.where(before == cheapest, counts, float("inf"))
        best[i, j] = cheapest + costs[:, i - 1, j - 1].mT
        pairs[i, j] = counts.amin(0) + 1
    return best[rows, columns] / pairs[rows, columns]
