r"""The known trap, ready to run: well-posed for every input, yet two trajectories under the same input diverge.

W = k[[0, 1], [−1, 0]] satisfies Condition 1 with m = 1 for every k, because I − W has symmetric part I. Under a
constant input the firing-rate flow z' = −z + σ(Wz + q) always converges. Under a periodic one it may not: with ReLU, an
input that lets the two units be active in turn, each for the time τ, multiplies a small difference per period by
e^{−2τ}[[1, 0], [−kτ, 1]][[1, kτ], [0, 1]], whose larger eigenvalue exceeds one for large k. The forward–backward flow
of the same problem, with an admissible step, contracts under this input as under any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.activations.catalogue import ReLU
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.problem import EquilibriumProblem


@dataclass(frozen=True, kw_only=True)
class SwitchingCounterexample:
    r"""A periodic input under which the firing-rate flow of W = k[[0, 1], [−1, 0]] separates trajectories.

    The input is chosen so that a known trajectory solves the flow: during each phase one unit follows
    z' = −z + V with pre-activation V > 0, and the other decays with pre-activation −V. Differences smaller than V/k
    do not change who is active and obey a linear equation, so their exponent is known in closed form.

    Args:
        gain: k > 0.
        dwell: τ > 0, the length of a phase; the period is 2τ.
    """

    gain: float = 10.0
    dwell: float = 0.363

    def __post_init__(self) -> None:
        for name in ("gain", "dwell"):
            checks.positive_number(name, getattr(self, name))

    @property
    def drive(self) -> float:
        """V = 1 + e^{−τ}, the size of every pre-activation on the reference trajectory."""
        return 1 + math.exp(-self.dwell)

    @property
    def exponent(self) -> float:
        """Growth exponent of small differences, log(spectral radius of a period)/(2τ)."""
        trace = 2 - (self.gain * self.dwell) ** 2  # of a matrix of determinant one
        radius = 1.0 if abs(trace) <= 2 else (abs(trace) + math.sqrt(trace**2 - 4)) / 2
        return math.log(radius) / (2 * self.dwell) - 1

    @property
    def problem(self) -> EquilibriumProblem:
        """The problem in the Euclidean metric; its own input is zero."""
        W = torch.tensor([[0.0, self.gain], [-self.gain, 0.0]], dtype=torch.float64)
        return EquilibriumProblem(
            linear=Dense(W),
            q=torch.zeros(1, 2, dtype=torch.float64),
            activation=ReLU(),
            metric=WeightedL2(torch.ones(2, dtype=torch.float64)),
        )

    def times(self, phases: int, points: int = 1) -> Tensor:
        """Times over a number of phases, ``points`` in each, the switching moments among them: (phases·points + 1,).

        Raises:
            InputError: if there are no phases or no points in them.
        """
        checks.whole_number("phases", phases)
        checks.whole_number("points", points)
        count = torch.arange(phases * points + 1, dtype=torch.float64)
        phase = torch.floor(count / points)
        return phase * self.dwell + (count - phase * points) * (self.dwell / points)  # switches exactly as in _phase

    def _phase(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Whether unit 1 is active, and the time since the last switch; rounding counts as being at the switch."""
        count = torch.floor(t / self.dwell * (1 + 1e-14))
        # the very last instant before a switch still belongs to the phase before it
        count = torch.where(t < count * self.dwell, count - 1, count)
        return count.remainder(2) == 0, t - count * self.dwell

    def reference(self, t: Tensor) -> Tensor:
        """The trajectory that the input was made for, both units between e^{−τ} and 1: (...,) -> (..., 2)."""
        first, since = self._phase(t)
        falling = torch.exp(-since)
        rising = self.drive - (self.drive - math.exp(-self.dwell)) * torch.exp(-since)
        return torch.stack([torch.where(first, rising, falling), torch.where(first, falling, rising)], -1)

    def signal(self, t: Tensor) -> Tensor:
        """The bounded periodic input q(t), continuous from the right: () -> (2,), (batch, 1) -> (batch, 2)."""
        t = t.squeeze(-1) if t.ndim else t
        first, _ = self._phase(t)
        preactivation = torch.where(first[..., None], t.new_tensor([1.0, -1.0]), t.new_tensor([-1.0, 1.0])) * self.drive
        z = self.reference(t)
        return preactivation - self.gain * torch.stack([z[..., 1], -z[..., 0]], -1)
