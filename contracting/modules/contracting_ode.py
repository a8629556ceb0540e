r"""A neural ODE that contracts, whatever its parameters are."""

from __future__ import annotations

from typing import TypedDict, Unpack

import torch
from torch import nn

from contracting.activations.base import Activation
from contracting.gradients.implicit import Backward
from contracting.loop.method import Method
from contracting.loop.records import Stop
from contracting.modules.lure_ode import LureODE
from contracting.modules.parameterization import Contracting
from contracting.modules.supply import Passive
from contracting.simulation.time_steps import Integrator


class ODEOptions(TypedDict, total=False):
    """The keyword arguments of ``LureODE``, which every such module takes."""

    activation: Activation | nn.Module | None
    solver: Method | None
    stop: Stop | None
    backward: Backward | None
    integrator: Integrator | None
    rest: torch.Tensor | None


class ContractingODE(LureODE):
    r"""s' = As + Bw + B₂u + e, w = σ(Cs + Dw + D₁₂u + b), y = C₂s + D₂₁w + D₂₂u + b_y, contracting by construction.

    For every value of the parameters w exists and is unique (D is full: w is the equilibrium of a network), and under
    the same input every two trajectories approach each other, ‖Δs(t)‖_P ≤ e^{−ct}‖Δs(0)‖_P. On request the incremental
    L2 gain from u to y is at most γ, or u ↦ y is incrementally passive. Without a state it is an ``LBEN``.

    Args:
        inputs: k ≥ 0, size of u.
        states: n ≥ 0, size of s.
        neurons: m ≥ 1, size of w.
        outputs: p, size of y; None for y = s.
        contraction_rate: c ≥ 0, per unit of time.
        lipschitz: γ > 0, or None for no bound.
        passive: True, or ``Passive(input=ν, output=ρ)`` for an excess.
        feedback: False makes D zero: one hidden layer, and no equation to solve in a time step.
        feedthrough: whether y has a term D₂₂u.
        epsilon: ε > 0, the margin of the parameterisation.
        device: device of the parameters.
        dtype: floating-point type of the parameters.
        options: activation, solver, stop, backward, integrator, rest, as for ``LureODE``.

    Raises:
        InputError: on any argument out of range, or a combination that is not possible.

    Example:
        >>> layer = ContractingODE(1, 4, 32, 2, contraction_rate=0.5, lipschitz=2.0)
        >>> y = layer(torch.zeros(8, 4), torch.linspace(0, 5, 51), torch.randn(51, 8, 1))
    """

    def __init__(
        self,
        inputs: int,
        states: int,
        neurons: int,
        outputs: int | None,
        *,
        contraction_rate: float = 0.0,
        lipschitz: float | None = None,
        passive: Passive | bool = False,
        feedback: bool = True,
        feedthrough: bool = False,
        epsilon: float = 1e-2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[ODEOptions],
    ):
        free = Contracting(
            inputs,
            states,
            neurons,
            outputs,
            contraction_rate=contraction_rate,
            lipschitz=lipschitz,
            passive=passive,
            feedback=feedback,
            feedthrough=feedthrough,
            epsilon=epsilon,
            device=device,
            dtype=dtype,
        )
        super().__init__(free, **options)
        self.contraction_rate, self.lipschitz, self.passive = free.contraction_rate, free.lipschitz, free.passive
