r"""Free parameters → explicit weights: any parameter values give weights with the certificate that was asked for.

W = I − Ψ( Q_γ + VᵀV + εI + S̃ + Q_c ),   Ψ = diag(exp ψ),  S̃ = S − Sᵀ,  with, where they are asked for,

* Q_γ = (W_oᵀW_o + BBᵀ)/(2γ), B = Ψ⁻¹U: x ↦ y is γ-Lipschitz in ℓ2 (arXiv 2010.01732, Theorem 5);
* Q_c = cΨ⁻¹ + S̃ᵀΨS̃/(4(1 − c)): the firing-rate flow contracts at rate ≥ c in P = (1 − 2c)Ψ⁻¹ + G, G the symmetric
  part of the bracket, and the Hopfield flow in Ψ⁻¹P⁻¹Ψ⁻¹. In coordinates with Ψ = I: P + W = 2(1 − c)I − S̃, so
  (P + Wᵀ)(P + W) = 4(1 − c)²I + S̃ᵀS̃ ⪯ 4(1 − c)P, the condition for all slopes in [0, 1]; Hopfield's is the same with
  (P + W)(P + Wᵀ) and the inverse metric.

Without either, the network is well-posed: 2Λ − ΛW − WᵀΛ = 2(VᵀV + εI) ≻ 0 with Λ = Ψ⁻¹. With Ψ = I it is the monDEQ of
arXiv 2006.08591. Q_γ and Q_c are positive semidefinite, so asking for one never costs the other. With a feedthrough D,
Q_γ becomes (W_oᵀW_o/γ + (γB + W_oᵀD)(γ²I − DᵀD)⁻¹(γB + W_oᵀD)ᵀ/γ)/2, which is the same condition completed by Schur.
"""

from __future__ import annotations

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from contracting import checks
from contracting.modules.ball import into_unit_ball
from equilibrium.parameterizations.base import DenseOptions
from equilibrium.parameterizations.bounded import BoundedOptions, BoundedParameterization, metric_of
from equilibrium.weights import Weights, survives_rounding


class MonotoneOptions(BoundedOptions, total=False):
    """The keyword arguments of ``Monotone``, for all that pass them on."""

    epsilon: float


class Monotone(BoundedParameterization):
    r"""The LBEN parameterisation: well-posed for every parameter value, on request γ-Lipschitz and contracting.

    Args:
        in_features: size of x.
        hidden_features: n, size of z.
        out_features: size of y.
        epsilon: ε > 0; the strong monotonicity of the bracket. The authors train with 1.
        options: lipschitz, learn_lipschitz, contraction_rate, learn_metric (with False Ψ = I, a monDEQ), feedthrough,
            device and dtype as for ``BoundedParameterization``.

    Raises:
        InputError: as ``BoundedParameterization``, or on ε ≤ 0.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        epsilon: float = 1.0,
        **options: Unpack[BoundedOptions],
    ):
        epsilon = checks.number("epsilon", epsilon, low=0, low_open=True, high=math.inf, high_open=True)
        super().__init__(in_features, hidden_features, out_features, **options)
        self.epsilon = epsilon
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values; W starts close to (1 − ε)I with a random symmetric and skew part of moderate size."""
        super().reset_parameters()
        if self._start_lipschitz is not None:
            with torch.no_grad():
                # keep Q_γ of the size of the other terms however small γ is
                scale = min(1.0, math.sqrt(self._start_lipschitz))
                self.U.mul_(scale)
                self.output.mul_(scale)

    @property
    def settings(self) -> dict[str, Any]:
        """What the formula of the weights depends on; γ itself is saved as a tensor."""
        return {**super().settings, "epsilon": self.epsilon}

    def explicit(self) -> Weights:
        """The weights and their certificates."""
        n, gamma, c = self.hidden_features, self.lipschitz, self.contraction_rate
        identity = torch.eye(n, dtype=self.V.dtype, device=self.V.device)
        lam = torch.ones_like(self.bias) if self.psi is None else (-self.psi).exp()  # Λ = Ψ⁻¹
        metric = metric_of(lam, self.psi)
        skew = self.S - self.S.mT
        D: Tensor | None = self.D
        if gamma is None:
            symmetric, terms = gram(self.V), n  # a sum of so many products
        else:
            unit = None if D is None else into_unit_ball(D)
            D = None if unit is None else gamma * unit
            symmetric, terms = self._bounded(lam, gamma, unit), n + self.in_features + self.out_features
        symmetric = symmetric + self.epsilon * identity
        if c is not None:
            scaled = skew / lam.sqrt()[:, None]
            symmetric = symmetric + torch.diag(c * lam) + scaled.mT @ scaled / (4 * (1 - c))
        weights = self.with_state(
            identity - (symmetric + skew) / lam[:, None],
            feedthrough=D,
            metric=metric,
            lipschitz=gamma,
            contraction_rate=c,
            contraction_matrix=None if c is None else torch.diag((1 - 2 * c) * lam) + symmetric,
        )
        if gamma is None and c is None:
            return weights
        roundings: Tensor | float = terms + n + 16
        if self.D is not None:  # the factor of I − DᵀD/γ² has relative errors of the size in² over its least eigenvalue
            roundings = roundings + 8 * (1 + self.in_features**2) * (1 + self.D.detach().square().sum())
        size = symmetric.detach().diagonal().sum()  # Σ‖X‖_F² bounds the norm of Σ|X|ᵀ|X|
        certain = survives_rounding(size * roundings, skew.detach(), lam.detach(), self.epsilon, c)
        return weights if certain else weights.proved()

    def _bounded(self, lam: Tensor, gamma: Tensor, unit: Tensor | None) -> Tensor:
        """VᵀV + Q_γ, from D/γ: so the square of γ, which might underflow, is not needed."""
        share = 1 / (2 * gamma)
        if unit is None:
            return bounded(self.V, self.output, self.U, lam, share)
        identity = torch.eye(self.in_features, dtype=unit.dtype, device=unit.device)
        factor = torch.linalg.cholesky(identity - unit.mT @ unit)
        coupled = lam[:, None] * self.U + self.output.mT @ unit
        half = torch.linalg.solve_triangular(factor, coupled.mT, upper=False)
        return gram(torch.cat([self.V, share.sqrt() * self.output, share.sqrt() * half]))

    def extra_repr(self) -> str:
        """Sizes and settings."""
        return f"{super().extra_repr()}, epsilon={self.epsilon:g}"


class MonDEQ(Monotone):
    """The monDEQ of arXiv 2006.08591: W = (1 − ε)I − VᵀV − S + Sᵀ, well-posed in the Euclidean metric.

    Arguments as for ``Monotone``, without those about the metric and the bounds.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        epsilon: float = 1.0,
        **options: Unpack[DenseOptions],
    ):
        sizes = (in_features, hidden_features, out_features)
        super().__init__(*sizes, epsilon=epsilon, learn_metric=False, **options)


class _Gram(torch.autograd.Function):
    """XᵀX, whose gradient X(G + Gᵀ) is one product, where autograd takes two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(X: Tensor) -> Tensor:
        return X.mT @ X

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        (X,), (G,) = ctx.saved_tensors, cotangents
        return X @ (G + G.mT)


def gram(X: Tensor) -> Tensor:
    """XᵀX: (..., k, n) -> (n, n), differentiable to any order."""
    product: Tensor = _Gram.apply(X)  # type: ignore[no-untyped-call]
    return product


class _Bounded(torch.autograd.Function):
    """VᵀV + (CᵀC + ΛUUᵀΛ)/(2γ), and UUᵀ: one node in place of fifteen, and no scaled copy of the wide U.

    UUᵀ is a result so that the gradient, which needs it, is itself differentiable.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(V: Tensor, C: Tensor, U: Tensor, lam: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        square = U @ U.mT
        inputs = torch.addmm(lam[:, None] * square * lam, C.mT, C)
        return torch.addmm(share * inputs, V.mT, V), square

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        V, C, U, lam, share, square = ctx.saved_tensors
        G, of_square = cotangents
        by_square = None if of_square is None else (of_square + of_square.mT) @ U
        if G is None:
            return None, None, by_square, None, None
        twice = G + G.mT
        scaled = share * twice
        of_U = (lam[:, None] * scaled * lam) @ U
        of_share = None
        if ctx.needs_input_grad[4]:
            of_share = (G * (lam[:, None] * square * lam)).sum() + (C * (C @ G)).sum()
        return (
            V @ twice,
            C @ scaled,
            of_U if by_square is None else of_U + by_square,
            (scaled * square) @ lam,
            of_share,
        )


def bounded(V: Tensor, C: Tensor, U: Tensor, lam: Tensor, share: Tensor) -> Tensor:
    """VᵀV + (CᵀC + ΛUUᵀΛ)·share: (n, n), (out, n), (n, in), (n,), () -> (n, n), differentiable to any order."""
    bracket: Tensor = _Bounded.apply(V, C, U, lam, share)[0]  # type: ignore[no-untyped-call]
    return bracket
