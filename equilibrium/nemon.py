r"""Free parameters → weights that contract in a weighted ℓ∞: boxes of inputs have boxes of equilibria, always.

W = [η]T[η]⁻¹,  η = exp ψ,  Tᵢⱼ = Aᵢⱼ/n for i ≠ j,  Tᵢᵢ = 1 − ε − Σⱼ≠ᵢ|Tᵢⱼ| − Aᵢᵢ².

Every W with μ_{∞,η}(W) = maxᵢ(Wᵢᵢ + Σⱼ≠ᵢ|Wᵢⱼ|ηⱼ/ηᵢ) ≤ 1 − ε is one of these, and no other (Jafarpour, Davydov,
Proskurnikov and Bullo, arXiv 2106.03194, whose diagonal has Aᵢᵢ − |Aᵢᵢ| in place of −Aᵢᵢ², with no gradient for
Aᵢᵢ > 0). The division by n keeps a step of an optimiser that moves every entry alike, as Adam does, from moving the sum
of a row n times as far. With ⌈W⌉ = |W| beside the diagonal and W on it, ⌈W⌉η ≤ (1 − ε)η, and so α(⌈W⌉) ≤ 1 − ε: the
coupled lower and upper equilibrium is well-posed for every value of the parameters. And every W with α(⌈W⌉) < 1 is
reached where ε is small enough, because then (I − ⌈W⌉)η = 1 has a solution η > 0.

Condition 1 holds as well. Let l > 0 solve (I − ⌈T⌉)ᵀl = 1 and Λ = diag(l/η²). In coordinates z/η the matrix
B = [l](I − ⌈T⌉) + (I − ⌈T⌉)ᵀ[l] has no positive entries beside its diagonal, and B1 = [l](I − ⌈T⌉)1 + 1 ≥ εl + 1 > 0,
so that B ≻ 0; and 2Λ − ΛW − WᵀΛ there has the diagonal of B and no larger entries beside it. For a σ that does not care
about positive factors, such as ReLU, z ↦ Λ^½z makes it a monDEQ (arXiv 2006.08591): Λ is then the identity.
"""

from __future__ import annotations

import math
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from contracting import checks
from equilibrium.parameterizations import DenseOptions, DenseParameterization, metric_of
from equilibrium.weights import Weights


class NEMON(DenseParameterization):
    r"""The non-Euclidean monotone operator network: μ_{∞,η}(W) ≤ 1 − ε for every value of the parameters.

    W = [η]T[η]⁻¹ with Tᵢᵢ + Σⱼ≠ᵢ|Tᵢⱼ| ≤ 1 − ε (arXiv 2106.03194): equilibria exist, are unique, and those of a box of
    inputs are enclosed by the coupled lower and upper equilibrium, as ``IntervalMargin`` and ``certified_within`` with
    ``norm=Norm.LINF`` use it. For the ReLU it is a monDEQ, up to positive factors of the neurons.

    Args:
        in_features: size of x.
        hidden_features: n, size of z.
        out_features: size of y.
        epsilon: ε > 0. A perturbation of the pre-activations by δ moves no zᵢ/ηᵢ by more than δ/ε.
        learn_metric: whether ψ is a parameter; with False η = 1.
        options: ``feedthrough``, ``device`` and ``dtype`` as for every parameterisation.

    Raises:
        InputError: on sizes below one, or ε ≤ 0.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        epsilon: float = 1.0,
        learn_metric: bool = True,
        **options: Unpack[DenseOptions],
    ):
        epsilon = checks.number("epsilon", epsilon, low=0, low_open=True, high=math.inf, high_open=True)
        super().__init__(in_features, hidden_features, out_features, **options)
        self.epsilon = epsilon
        self.A = self.new_parameter(hidden_features, hidden_features)
        self.psi = self.new_parameter(hidden_features) if learn_metric else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values; the sizes of a row of T beside its diagonal add up to about 0.4."""
        super().reset_parameters()
        nn.init.normal_(self.A, std=0.5)
        if self.psi is not None:
            nn.init.zeros_(self.psi)

    @property
    def settings(self) -> dict[str, Any]:
        """What the formula of the weights depends on."""
        return {**super().settings, "epsilon": self.epsilon, "learn_metric": self.psi is not None}

    def explicit(self) -> Weights:
        """The weights and a metric for Condition 1."""
        own = self.A.diagonal()
        beside = (self.A - torch.diag(own)) / self.hidden_features
        size = beside.abs().sum(-1)
        T = beside + torch.diag(1 - self.epsilon - size - own.square())
        if self.psi is None:
            return self.with_state(T, metric=self._metric(beside, T))
        eta = self.psi.exp()
        return self.with_state(T * (eta[:, None] / eta), metric=self._metric(beside, T))

    @torch.no_grad()
    def _metric(self, beside: Tensor, T: Tensor) -> Any:
        """Λ, or None where rounding may have taken ε away."""
        identity = torch.eye(len(T), dtype=T.dtype, device=T.device)
        loop = identity - torch.diag(T.diagonal()) - beside.abs()
        if not checks.on_trust(T):
            rounding = (len(T) + 16) * torch.finfo(T.dtype).eps * (1 + (identity - T).diagonal().amax())
            if not bool(rounding < self.epsilon / 2):
                return None
        left = torch.linalg.solve(loop.mT, torch.ones_like(T[0]))
        psi = torch.zeros_like(left) if self.psi is None else self.psi
        return metric_of(left * (-2 * psi).exp(), self.psi)

    def extra_repr(self) -> str:
        """Sizes and settings."""
        metric = "" if self.psi is not None else ", learn_metric=False"
        return f"{super().extra_repr()}, epsilon={self.epsilon:g}{metric}"
