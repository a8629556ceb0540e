"""A learned start of the solve: an affine guess of the pre-activation, fitted to what was solved before."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.errors import InputError
from equilibrium.layers import EquilibriumLayer

_RIDGE = 1e-6  # Of the mean square of the inputs: directions that were hardly seen keep the coefficients of zero.


class AffineStart(nn.Module):
    r"""z₀ = σ(q + Aq + a), with A and a fitted by least squares to Wz of the equilibria that were seen.

    At the equilibrium z = σ(Wz + q), and between its kinks Wz is affine in q. Whatever the start, the
    equilibrium and its gradient are the same to the tolerance; no gradient reaches A and a.

        start = AffineStart(layer)
        y = layer(x, z0=start(x))                              # before anything is learned, z₀ = σ(q)
        start.learn(x, layer.solve(x, z0=start(x)).z)

    Args:
        layer: whose equilibria are guessed; it is not part of this module.
        memory: what a row seen in the last call of ``learn`` still counts for in the next, in (0, 1]: below one where
            the layer is being trained, so that its former weights are forgotten.

    Raises:
        InputError: if ``layer`` is no equilibrium layer, or on a memory out of range.
    """

    moments: Tensor
    cross: Tensor

    def __init__(self, layer: EquilibriumLayer, *, memory: float = 0.9):
        super().__init__()
        if not isinstance(layer, EquilibriumLayer):
            raise InputError(f"layer must be an EquilibriumLayer, got {type(layer).__name__}")
        self.memory = checks.number("memory", memory, low=0, low_open=True, high=1)
        self._layer = (layer,)  # in a tuple, so that its parameters are not counted among those of this module
        n = layer.hidden_features
        like = next(iter(layer.parameters()))
        self.register_buffer("moments", torch.zeros(n + 1, n + 1, dtype=torch.float64, device=like.device))
        self.register_buffer("cross", torch.zeros(n + 1, n, dtype=torch.float64, device=like.device))
        self._coefficients: Tensor | None = None

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """z₀: (..., in) -> (..., hidden), without a graph."""
        layer = self._layer[0]
        q = layer.problem(x).q
        coefficients = self._fitted().to(q)
        z0 = layer.activation.value(q + torch.addmm(coefficients[-1], q, coefficients[:-1]))
        return z0.reshape(*x.shape[:-1], z0.shape[-1])

    @torch.no_grad()
    def learn(self, x: Tensor, z: Tensor) -> None:
        """Take the equilibria z of x, (..., in) and (..., hidden), into the fit; rows that are not finite are left out.

        Raises:
            InputError: if the shapes do not fit.
        """
        problem = self._layer[0].problem(x)
        q = problem.q
        z = checks.shape("z", z, (*x.shape[:-1], q.shape[-1])).reshape(q.shape)
        wanted = problem.preactivation(z) - q
        sound = torch.isfinite(q).all(-1) & torch.isfinite(wanted).all(-1)
        rows = torch.cat([q, q.new_ones(len(q), 1)], 1)[sound].double()
        self.moments.mul_(self.memory).addmm_(rows.mT, rows)
        self.cross.mul_(self.memory).addmm_(rows.mT, wanted[sound].double())
        self._coefficients = None

    def _fitted(self) -> Tensor:
        """Aᵀ over aᵀ, (n + 1, n), float64: the least squares of what is remembered, and zero of nothing."""
        if self._coefficients is None:
            ridge = _RIDGE * float(self.moments.diagonal().mean())
            if ridge == 0 or not math.isfinite(ridge):
                return torch.zeros_like(self.cross)
            regular = self.moments + ridge * torch.eye(len(self.moments)).to(self.moments)
            self._coefficients = torch.cholesky_solve(self.cross, torch.linalg.cholesky(regular))
        return self._coefficients

    def _load_from_state_dict(self, *args: object, **options: object) -> None:
        super()._load_from_state_dict(*args, **options)
        self._coefficients = None
