"""The types that flows, maps and activations share."""

from __future__ import annotations

from torch import Tensor

Step = float | Tensor  # α > 0: a number, or a tensor broadcastable to x, such as (n,): one per neuron
Time = Tensor | float  # a number, a tensor of shape (), or (batch, 1): one time per row
