"""What a parameterisation may be asked for besides equilibria: a Lipschitz constant γ, fixed or learnt, and a c."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.errors import InputError
from contracting.metrics import WeightedL2
from equilibrium.parameterizations.base import DenseOptions, DenseParameterization
from equilibrium.weights import Weights


class BoundedOptions(DenseOptions, total=False):
    """The keyword arguments of ``BoundedParameterization``, for all that pass them on."""

    lipschitz: float | None
    learn_lipschitz: bool
    contraction_rate: float | None
    learn_metric: bool


class BoundedParameterization(DenseParameterization):
    """Free parameters with a γ, a rate and a metric Λ = exp(−ψ), each of them on request.

    Args:
        in_features: size of x.
        hidden_features: n, size of z.
        out_features: size of y.
        lipschitz: γ > 0, or None for no bound.
        learn_lipschitz: make log γ a parameter that starts at ``lipschitz``.
        contraction_rate: c in [0, 1), or None for no such certificate.
        learn_metric: whether ψ is a parameter; with False Λ = I.
        feedthrough: whether the network has a term Dx; with ``lipschitz``, ‖D‖ < γ is part of the parameterisation.
        device: device of the parameters.
        dtype: floating-point type of the parameters.

    Raises:
        InputError: on sizes below one, γ ≤ 0 or with a square beyond the range of the dtype, c outside [0, 1), or a γ
            to learn that has no start.
    """

    log_gamma: Tensor | None  # a parameter if γ is learnt, else a buffer

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        lipschitz: float | None = None,
        learn_lipschitz: bool = False,
        contraction_rate: float | None = None,
        learn_metric: bool = True,
        feedthrough: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if lipschitz is not None:
            checked_lipschitz(lipschitz, dtype)
        elif learn_lipschitz:
            raise InputError("learn_lipschitz=True needs a starting value, for example lipschitz=1.0")
        if contraction_rate is not None:
            contraction_rate = checks.number("contraction_rate", contraction_rate, low=0, high=1, high_open=True)
        sizes = (in_features, hidden_features, out_features)
        super().__init__(*sizes, feedthrough=feedthrough, device=device, dtype=dtype)
        self.contraction_rate = contraction_rate
        self._start_lipschitz = lipschitz
        self.V = self.new_parameter(hidden_features, hidden_features)
        self.S = self.new_parameter(hidden_features, hidden_features)
        self.psi = self.new_parameter(hidden_features) if learn_metric else None
        if lipschitz is None:
            self.register_buffer("log_gamma", None)
        elif learn_lipschitz:
            self.register_parameter("log_gamma", self.new_parameter())
        else:
            self.register_buffer("log_gamma", self.example.new_empty(()))

    @abstractmethod
    def explicit(self) -> Weights: ...

    def reset_parameters(self) -> None:
        """Draw new values: small V and S, Λ = I, and the γ that was asked for."""
        super().reset_parameters()
        std = 0.5 / math.sqrt(self.hidden_features)
        nn.init.normal_(self.V, std=std)
        nn.init.normal_(self.S, std=std)
        if self.psi is not None:
            nn.init.zeros_(self.psi)
        if self.log_gamma is not None and self._start_lipschitz is not None:
            nn.init.constant_(self.log_gamma, math.log(self._start_lipschitz))

    @property
    def settings(self) -> dict[str, Any]:
        """What the formula of the weights depends on; γ itself is saved as a tensor."""
        own = {
            "bounded": self.log_gamma is not None,
            "contraction_rate": self.contraction_rate,
            "learn_metric": self.psi is not None,
        }
        return {**super().settings, **own}

    @property
    def lipschitz(self) -> Tensor | None:
        """γ, 0-dim, or None."""
        return None if self.log_gamma is None else self.log_gamma.exp()

    def extra_repr(self) -> str:
        """Sizes and settings."""
        parts = [super().extra_repr()]
        if self.log_gamma is not None:
            learnt = ", learn_lipschitz=True" if isinstance(self.log_gamma, nn.Parameter) else ""
            gamma = "?" if self.log_gamma.is_meta else f"{float(self.log_gamma.detach().exp()):.4g}"
            parts.append(f"lipschitz={gamma}{learnt}")
        if self.contraction_rate is not None:
            parts.append(f"contraction_rate={self.contraction_rate:g}")
        if self.psi is None:
            parts.append("learn_metric=False")
        return ", ".join(parts)


def metric_of(lam: Tensor, psi: Tensor | None) -> WeightedL2:
    """Λ = exp(−ψ) as a metric.

    Raises:
        InputError: if an entry of ψ is so large that Λ or its inverse leaves the range of the dtype.
    """
    try:
        return WeightedL2(lam.detach())
    except InputError:
        if psi is None or psi.is_meta:
            raise
    limit = -math.log(torch.finfo(psi.dtype).tiny)
    low, high = (float(end) for end in psi.detach().aminmax())
    raise InputError(
        f"psi must lie in [-{limit:.0f}, {limit:.0f}], where exp(psi) is in the range of {psi.dtype}, its entries are "
        f"in [{low:.3g}, {high:.3g}]"
    )


def checked_lipschitz(lipschitz: float, dtype: torch.dtype | None) -> float:
    """γ, if γ² is in the range of the dtype, as certificates of a network in it need.

    Raises:
        InputError: if γ is not positive or out of range; None stands for the default dtype.
    """
    gamma = checks.number("lipschitz", lipschitz, low=0, low_open=True, high=math.inf, high_open=True)
    dtype = checks.floating_dtype("dtype", dtype) or torch.get_default_dtype()
    low, high = math.sqrt(torch.finfo(dtype).tiny), math.sqrt(torch.finfo(dtype).max)
    if not low <= gamma <= high:
        raise InputError(
            f"lipschitz must lie in [{low:.3g}, {high:.3g}], where its square is in the range of {dtype}, got "
            f"{gamma:g}; scale the inputs or the outputs instead"
        )
    return gamma
