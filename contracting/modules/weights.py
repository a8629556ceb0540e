"""Explicit matrices of a Lur'e system that a module runs, with what its parameterisation promises of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from contracting.activations.base import Activation
from contracting.gradients.implicit import Backward
from contracting.loop.method import Method
from contracting.loop.records import Stop
from contracting.lure.flow import LureFlow
from contracting.metrics import FullP, WeightedL2


@dataclass(frozen=True, kw_only=True, eq=False)
class LureWeights:
    r"""s' = As + Bw + B₂u + e,  w = σ(Cs + Dw + D₁₂u + b),  y = C₂s + D₂₁w + D₂₂u + b_y.

    Attributes:
        A: (n, n).
        B: (n, m).
        C: (m, n).
        D: (m, m), or None where it is zero.
        B2: (n, k).
        D12: (m, k), or None where it is zero.
        C2: (p, n); None, as D21 and the output bias, where the output is the state itself.
        D21: (p, m), or None where it is zero.
        D22: (p, k), or None without a feedthrough.
        state_bias: e, (n,).
        bias: b, (m,).
        output_bias: b_y, (p,).
        P: (n, n), the metric in which the state contracts, or None where nothing is promised.
        multiplier: Λ > 0, (m,): 2Λ − ΛD − DᵀΛ ≻ 0.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    B2: Tensor
    D12: Tensor | None
    C2: Tensor | None
    D21: Tensor | None
    D22: Tensor | None
    state_bias: Tensor
    bias: Tensor
    output_bias: Tensor | None
    P: Tensor | None
    multiplier: Tensor

    @property
    def metric(self) -> FullP | None:
        """‖s‖ = √(sᵀPs), or None."""
        return None if self.P is None else FullP(self.P.detach())

    def flow(self, activation: Activation, solver: Method | None, stop: Stop | None, backward: Backward) -> LureFlow:
        """The field that runs, without an input, and without the bias of the output."""
        names = {"e": "state_bias", "q": "bias"}
        names |= {name: name for name in ("A", "B", "C", "D", "B2", "D12", "C2", "D21", "D22")}
        # A parameter such as C is part of B as well. As a view it is a tensor of its own, so that an adjoint equation,
        # which asks for the gradient of each matrix with the others held, does not count it twice.
        matrices: dict[str, Any] = {
            name: None if (value := getattr(self, own)) is None else value.view_as(value) for name, own in names.items()
        }
        return LureFlow(
            **matrices,
            activation=activation,
            layers=(len(self.C),),
            metric=WeightedL2(self.multiplier.detach()),
            solver=solver,
            stop=stop,
            backward=backward,
        )
