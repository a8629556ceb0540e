r"""A loss that asks a bounded network to use its Lipschitz constant: some direction of the inputs shall be steep.

A γ that holds by construction is left unused where it does not serve the classes: with a low temperature, half of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracting import checks
from equilibrium.layers import EquilibriumLayer
from equilibrium.training.losses import CrossEntropy, Judged


@dataclass(frozen=True, kw_only=True)
class SteepCrossEntropy(CrossEntropy):
    r"""The cross-entropy, and a penalty while one step of the inputs moves the outputs by less than it is asked to.

    With d the unit direction in which the Jacobians G of ``probes`` rows of a batch are steepest on the whole, the top
    eigenvector of Σ GᵀG, and ``rows`` rows x of it,

        value = cross-entropy + weight · max(0, log(gain / r)),   r = mean ‖y(x + td) − y(x)‖₂ / t,

    where d has no gradient. A direction that is steep already is found again in the next batch, so that it comes to be
    one for all rows. It says nothing about robustness: what it buys is a γ that is attained.

    Args:
        gain: what r is to reach, such as 0.95 of the γ of a network.
        weight: of the penalty, against a cross-entropy of outputs/τ.
        distance: t, in units of the inputs.
        rows: of a batch, which have the step; the first ones.
        probes: rows of which the Jacobian is taken; the first ones.
        temperature: τ of the cross-entropy.

    Raises:
        InputError: on values out of range.
    """

    gain: float
    weight: float = 3.0
    distance: float = 4.0
    rows: int = 16
    probes: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gain", "weight", "distance"):
            checks.number(name, getattr(self, name), low=0, low_open=True, high=math.inf, high_open=True)
        for name in ("rows", "probes"):
            checks.whole_number(name, getattr(self, name))

    def of(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Judged:
        some = inputs[: self.rows]
        step = self.distance * steepest_direction(model, inputs[: self.probes])
        both = model(torch.cat([inputs, some + step]))
        outputs, moved = both[: len(inputs)], both[len(inputs) :] - both[: len(some)]
        reached = torch.linalg.vector_norm(moved, dim=-1).mean() / self.distance
        missing = (self.gain / reached.clamp_min(torch.finfo(reached.dtype).tiny)).log().clamp_min(0)
        return Judged(value=self(outputs, targets) + self.weight * missing, outputs=outputs)


def steepest_direction(model: nn.Module, inputs: Tensor) -> Tensor:
    """The unit direction d of largest Σ ‖G d‖², G the Jacobians of the model at these rows: (batch, in) -> (in,)."""
    if isinstance(model, EquilibriumLayer):
        count = model.out_features
    else:
        with torch.no_grad():
            count = model(inputs[:1]).shape[-1]
    with torch.enable_grad():
        # every row once for each output, so that one adjoint solve gives all rows of all Jacobians
        repeated = inputs.detach().repeat_interleave(count, 0).requires_grad_()
        chosen = torch.arange(count, device=inputs.device).repeat(len(inputs))
        outputs = model(repeated).gather(-1, chosen[:, None]).sum()
        (jacobians,) = torch.autograd.grad(outputs, repeated)
    return torch.linalg.svd(jacobians, full_matrices=False).Vh[0]
