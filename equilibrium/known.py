"""The weights of a layer whose parameters stay: made once, and again where a value of a parameter is another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from contracting import checks
from equilibrium.parameterizations import Parameterization
from equilibrium.weights import NetworkWeights, identical


@dataclass(frozen=True)
class KnownWeights:
    """Weights, with a copy of all that they were made from.

    Attributes:
        weights: what ``explicit()`` gave, in no graph.
        values: the parameters and buffers, copied: a change through ``.data`` leaves no trace but in the values.
        settings: what else the weights depend on.
    """

    weights: NetworkWeights
    values: tuple[Tensor, ...]
    settings: dict[str, Any]

    @classmethod
    def of(cls, parameterization: Parameterization, weights: NetworkWeights) -> KnownWeights | None:
        """What is known now; None where nobody can look at the values."""
        sources = _sources(parameterization)
        if any(checks.on_trust(tensor) for tensor in sources):
            return None
        return cls(weights, tuple(tensor.detach().clone() for tensor in sources), parameterization.settings)

    def still_of(self, parameterization: Parameterization) -> bool:
        """Whether the weights are those of the present parameters, and a graph that is recorded needs no others."""
        sources, recording = _sources(parameterization), torch.is_grad_enabled()
        # what torch.inference_mode made could not be part of a graph later
        if len(sources) != len(self.values) or (self._of_inference and not torch.is_inference_mode_enabled()):
            return False
        for now, then in zip(sources, self.values, strict=True):
            if (recording and now.requires_grad) or checks.on_trust(now) or not identical(now, then):
                return False
        return self.settings == parameterization.settings

    @cached_property
    def _of_inference(self) -> bool:
        return any(tensor.is_inference() for tensor in self.weights.state.tensors())


def _sources(parameterization: Parameterization) -> Sequence[Tensor]:
    return [*parameterization.parameters(), *parameterization.buffers()]
