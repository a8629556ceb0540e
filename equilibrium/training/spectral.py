"""Lipschitz-margin training of perceptrons, by the norms of their layers: the baseline that bounded networks beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contracting import as_activation
from contracting.errors import InputError
from equilibrium.training.certified import WorstCase


@dataclass(frozen=True, kw_only=True)
class SpectralMargin(WorstCase):
    r"""The worst outputs over a ball of ℓ2, by the norms of the layers (Tsuzuku, Sato and Sugiyama, arXiv 1802.04034).

    For y = W_L σ(… σ(W₁x + b₁) …) + b_L with slopes of σ in [0, 1], y_j − y_label rises by at most

        radius · ‖w_j − w_label‖₂ · ∏_{l < L} ‖W_l‖₂,   w_j the rows of W_L.

    A loss of perceptrons, which have no equilibrium whose metric would say more: ``CertifiedMargin`` is that of
    equilibrium networks.

    Args:
        radius: of the ball, in units of the inputs.

    Raises:
        InputError: on values out of range; in training, if the model is no nn.Sequential of nn.Linear and activations
            that ends in a linear layer.
    """

    def leads(self, model: nn.Module, inputs: Tensor, labels: Tensor, outputs: Tensor) -> Tensor:
        constants = layerwise_constants(model)
        return outputs - outputs.gather(-1, labels[:, None]) + self.radius * constants[labels]


def layerwise_constants(model: nn.Module) -> Tensor:
    """Bounds of the ℓ2 Lipschitz constant of y_i − y_j by the norms of the layers, (classes, classes), differentiable.

    Raises:
        InputError: if the model is no nn.Sequential of nn.Linear and activations that ends in a linear layer.
    """
    layers = list(model) if isinstance(model, nn.Sequential) else []
    if not layers or not isinstance(layers[-1], nn.Linear):
        raise InputError(
            "model must be an nn.Sequential of nn.Linear and activations that ends in an nn.Linear for a spectral "
            f"margin, got {type(model).__name__}; CertifiedMargin(…) is the loss of equilibrium networks"
        )
    steepest = layers[-1].weight.new_ones(())
    for layer in layers[:-1]:
        if isinstance(layer, nn.Linear):
            steepest = steepest * torch.linalg.matrix_norm(layer.weight, 2)
        else:
            as_activation(layer)  # slopes of an activation are at most one; anything else is refused here
    rows = layers[-1].weight
    squares = (rows[:, None] - rows).square().sum(-1)
    apart = squares > 0
    return steepest * torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
