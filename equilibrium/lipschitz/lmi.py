"""The post-hoc bound: the best multiplier by semidefinite programming. The only file here that knows cvxpy."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contracting import checks
from equilibrium.lipschitz.finder import LipschitzFinder
from equilibrium.lipschitz.gain import gain
from equilibrium.lipschitz.start import prepared
from equilibrium.lipschitz.system import LipschitzSystem

_BLENDS = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)  # towards an interior point, if the solver stopped on the boundary


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixInequality(LipschitzFinder):
    r"""min ρ = γ² over Λ ⪰ 0 with [[2Λ − ΛW − WᵀΛ − CᵀC, −(ΛU + CᵀD)], [·, ρI − DᵀD]] ⪰ 0, by Clarabel.

    On a multilayer perceptron this is LipSDP-Neuron. Time grows like (n + min(in, n))⁶: under a second at n = 20, over
    four minutes at n = 60. ``InteriorPoint`` reaches the same optimum far faster; this one is for comparison. Nothing
    the solver says is believed: its Λ is rated exactly and checked.

    Args:
        start: Λ in which Condition 1 holds, (n,), up to a factor; None takes the metric of the system or looks for one.
    """

    start: Tensor | None = field(default=None, repr=False)

    name = "matrix inequality"

    def find(self, system: LipschitzSystem) -> Tensor:
        """The optimal Λ, moved towards the start by more and more, and the start: (k, n), by what they prove.

        Raises:
            MissingExtraError: if cvxpy or Clarabel is not installed.
        """
        small, lam = prepared(system, self.start)
        value = gain(small, lam)
        found = _solve(small, lam, value) if value > 0 else None
        candidates = [lam] if found is None else [(1 - t) * found + t * lam for t in _BLENDS] + [lam]
        return torch.stack(sorted(candidates, key=lambda candidate: gain(small, candidate)))


def _solve(system: LipschitzSystem, lam: Tensor, value: float) -> Tensor | None:
    """Λ in the normalisation of γ(Λ), from a program scaled so that the start is Λ = I, γ = 1."""
    checks.extra("clarabel", "certificates", "the bound by a matrix inequality")
    cp: Any = checks.extra("cvxpy", "certificates", "the bound by a matrix inequality")
    low, high = system.slopes
    root = (value * lam).sqrt()
    W = (root[:, None] * system.W / root).numpy()
    U = (root[:, None] * system.U / value).numpy()
    Y = np.concatenate([(system.C / root).numpy(), (system.D / value).numpy()], 1)
    n, inputs = U.shape
    V, E = np.concatenate([W, U], 1), np.eye(n, n + inputs)
    F = np.eye(n + inputs)[n:]
    multiplier, rho = cp.Variable(n, nonneg=True), cp.Variable()
    cross = E.T @ cp.diag(multiplier) @ (E - (low + high) * V)
    matrix = cross + cross.T + rho * (F.T @ F) - Y.T @ Y
    if low > 0:
        matrix = matrix + 2 * low * high * (V.T @ cp.diag(multiplier) @ V)
    problem = cp.Problem(cp.Minimize(rho), [matrix >> 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "solution may be inaccurate": it is checked anyway
        try:
            problem.solve(solver=cp.CLARABEL)
        except cp.error.SolverError:
            return None
    if multiplier.value is None or rho.value is None or not float(rho.value) > 0:
        return None
    solved = torch.from_numpy(np.maximum(multiplier.value, 1e-12)) * root.square()
    return solved / (value * float(rho.value) ** 0.5)
