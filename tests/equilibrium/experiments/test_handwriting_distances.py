"""Dynamic time warping against known answers and against all alignments of short paths."""

from __future__ import annotations

import pytest
import torch

from contracting.errors import InputError
from equilibrium.experiments.handwriting.distances import rms_distance, warped_distance


def every_chain(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    """All chains of pairs from (0, 0) to the last pair."""
    chains, complete = [[(0, 0)]], []
    while chains:
        chain = chains.pop()
        i, j = chain[-1]
        if (i, j) == (rows - 1, columns - 1):
            complete.append(chain)
        steps = ((i + 1, j), (i, j + 1), (i + 1, j + 1))
        chains += [[*chain, (a, b)] for a, b in steps if a < rows and b < columns]
    return complete


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (4, 1), (4, 5), (5, 4)])
def test_the_cheapest_of_all_alignments(rows, columns):
    generator = torch.Generator().manual_seed(rows + 10 * columns)
    paths = torch.randn(6, rows, 2, generator=generator, dtype=torch.float64)
    references = torch.randn(6, columns, 2, generator=generator, dtype=torch.float64)
    costs = torch.cdist(paths, references)
    found = warped_distance(paths, references)
    for cost, value in zip(costs, found, strict=True):
        sums = [(sum(float(cost[pair]) for pair in chain), len(chain)) for chain in every_chain(rows, columns)]
        total, pairs = min(sums)
        assert abs(float(value) - total / pairs) < 1e-12


def test_another_pace_of_the_same_path_is_no_distance():
    line = torch.linspace(0, 1, 11, dtype=torch.float64)
    slow = line.repeat_interleave(3)
    reference, path = (torch.stack([x, x.square()], -1)[None] for x in (line, slow))
    assert float(warped_distance(path, reference)) == 0.0
    bent = torch.stack([line.sqrt(), line], -1)[None]  # the same parabola at another pace
    assert float(warped_distance(bent, reference)) < 0.3 * float(rms_distance(bent, reference))


def test_parallel_lines_are_as_far_apart_as_they_are():
    x = torch.linspace(0, 1, 20, dtype=torch.float64)
    first, second = torch.stack([x, 0 * x], -1)[None], torch.stack([x, 0 * x + 0.7], -1)[None]
    assert abs(float(warped_distance(first, second)) - 0.7) < 1e-12
    assert abs(float(rms_distance(first, second)) - 0.7) < 1e-12


def test_paths_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="references"):
        warped_distance(torch.zeros(2, 4, 2), torch.zeros(3, 4, 2))
    with pytest.raises(InputError, match="references"):
        warped_distance(torch.zeros(2, 4, 2), torch.zeros(2, 0, 2))
