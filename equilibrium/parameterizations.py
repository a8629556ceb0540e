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
from abc import abstractmethod
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.errors import InputError
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from contracting.modules.ball import into_unit_ball
from contracting.modules.settings import WithSettings
from equilibrium.weights import NetworkWeights, Weights, survives_rounding


class Parameterization(WithSettings):
    """Free parameters of a network; what a parameterisation of your own derives from.

    It brings ``explicit``, and an ``__init__`` that hands the sizes to this one and makes the parameters, with
    ``new_parameter`` or as in any module. If the weights depend on anything but parameters and buffers, it brings
    ``settings`` too, which are saved with the parameters. Nothing else is asked for. Whether the promises are kept says
    ``equilibrium.contracts.ParameterizationContract``.

    Args:
        in_features: size of x.
        hidden_features: n, size of z.
        out_features: size of y.
        device: device of the parameters.
        dtype: floating-point type of the parameters.

    Raises:
        InputError: on sizes below one, or a dtype that is no floating-point type.
    """

    example: Tensor

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_features = checks.whole_number("in_features", in_features)
        self.hidden_features = checks.whole_number("hidden_features", hidden_features)
        self.out_features = checks.whole_number("out_features", out_features)
        # a zero whose dtype and device are those of the module, wherever it is moved
        zero = torch.zeros((), device=device, dtype=checks.floating_dtype("dtype", dtype))
        self.register_buffer("example", zero, persistent=False)

    def new_parameter(self, *shape: int) -> nn.Parameter:
        """A parameter of the dtype and device of this module, without values yet."""
        return nn.Parameter(self.example.new_empty(shape))

    @abstractmethod
    def explicit(self) -> NetworkWeights:
        """The weights, differentiable in the free parameters, with the certificates that hold for every value of these.

        ``metric``, ``lipschitz`` and ``contraction_rate`` are None where nothing is certified.
        """

    def extra_repr(self) -> str:
        """Sizes."""
        sizes = f"in_features={self.in_features}, hidden_features={self.hidden_features}"
        return f"{sizes}, out_features={self.out_features}"


class DenseOptions(TypedDict, total=False):
    """The keyword arguments of ``DenseParameterization``, for all that pass them on."""

    feedthrough: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


class DenseParameterization(Parameterization):
    """Free parameters of a network whose input and output weights are matrices."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        feedthrough: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, hidden_features, out_features, device=device, dtype=dtype)
        self.U = self.new_parameter(hidden_features, in_features)
        self.bias = self.new_parameter(hidden_features)
        self.output = self.new_parameter(out_features, hidden_features)
        self.output_bias = self.new_parameter(out_features)
        self.D = self.new_parameter(out_features, in_features) if feedthrough else None

    @abstractmethod
    def explicit(self) -> Weights: ...

    def with_state(self, W: Tensor, **claims: Any) -> Weights:
        """The weights with this W, (n, n), and what is certified of them by the names of ``Weights``."""
        own = {"bias": self.bias, "output": self.output, "output_bias": self.output_bias, "feedthrough": self.D}
        return Weights(state=Dense(W), input=self.U, **{**own, **claims})

    def reset_parameters(self) -> None:
        """Draw new values: inputs and outputs as torch.nn.Linear does, no feedthrough."""
        for weight, bias in ((self.U, self.bias), (self.output, self.output_bias)):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)
        if self.D is not None:
            nn.init.zeros_(self.D)

    @property
    def settings(self) -> dict[str, Any]:
        """Whether there is a feedthrough."""
        return {"feedthrough": self.D is not None}

    def extra_repr(self) -> str:
        """Sizes and settings."""
        return super().extra_repr() + ("" if self.D is None else ", feedthrough=True")


class Unconstrained(DenseParameterization):
    """W itself is free: nothing is certified, an equilibrium need not exist. A control for experiments."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        **options: Unpack[DenseOptions],
    ):
        super().__init__(in_features, hidden_features, out_features, **options)
        self.W = self.new_parameter(hidden_features, hidden_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values with ‖W‖ < 1 in the mean, so that training can start."""
        super().reset_parameters()
        nn.init.normal_(self.W, std=0.3 / math.sqrt(self.hidden_features))

    def explicit(self) -> Weights:
        """The weights; no metric is claimed."""
        return self.with_state(self.W)


class MonotoneOptions(DenseOptions, total=False):
    """The keyword arguments of ``Monotone``, for all that pass them on."""

    lipschitz: float | None
    learn_lipschitz: bool
    contraction_rate: float | None
    epsilon: float
    learn_metric: bool


class Monotone(DenseParameterization):
    r"""The LBEN parameterisation: well-posed for every parameter value, on request γ-Lipschitz and contracting.

    Args:
        in_features: size of x.
        hidden_features: n, size of z.
        out_features: size of y.
        lipschitz: γ > 0, or None for no bound.
        learn_lipschitz: make log γ a parameter that starts at ``lipschitz``.
        contraction_rate: c in [0, 1), or None for no such certificate.
        epsilon: ε > 0; the strong monotonicity of the bracket. The authors train with 1.
        learn_metric: whether ψ is a parameter; with False Ψ = I, a monDEQ.
        feedthrough: whether the network has a term Dx; with ``lipschitz``, ‖D‖ < γ is part of the parameterisation.
        device: device of the parameters.
        dtype: floating-point type of the parameters.

    Raises:
        InputError: on sizes below one, γ ≤ 0 or with a square beyond the range of the dtype, c outside [0, 1), ε ≤ 0,
            or a γ to learn that has no start.
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
        epsilon: float = 1.0,
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
        epsilon = checks.number("epsilon", epsilon, low=0, low_open=True, high=math.inf, high_open=True)
        sizes = (in_features, hidden_features, out_features)
        super().__init__(*sizes, feedthrough=feedthrough, device=device, dtype=dtype)
        self.contraction_rate, self.epsilon = contraction_rate, epsilon
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
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values; W starts close to (1 − ε)I with a random symmetric and skew part of moderate size."""
        super().reset_parameters()
        std = 0.5 / math.sqrt(self.hidden_features)
        nn.init.normal_(self.V, std=std)
        nn.init.normal_(self.S, std=std)
        if self.psi is not None:
            nn.init.zeros_(self.psi)
        if self.log_gamma is not None and self._start_lipschitz is not None:
            nn.init.constant_(self.log_gamma, math.log(self._start_lipschitz))
            with torch.no_grad():
                # keep Q_γ of the size of the other terms however small γ is
                scale = min(1.0, math.sqrt(self._start_lipschitz))
                self.U.mul_(scale)
                self.output.mul_(scale)

    @property
    def settings(self) -> dict[str, Any]:
        """What the formula of the weights depends on; γ itself is saved as a tensor."""
        own = {
            "bounded": self.log_gamma is not None,
            "contraction_rate": self.contraction_rate,
            "epsilon": self.epsilon,
            "learn_metric": self.psi is not None,
        }
        return {**super().settings, **own}

    @property
    def lipschitz(self) -> Tensor | None:
        """γ, 0-dim, or None."""
        return None if self.log_gamma is None else self.log_gamma.exp()

    def explicit(self) -> Weights:
        """The weights and their certificates."""
        n, gamma, c = self.hidden_features, self.lipschitz, self.contraction_rate
        identity = torch.eye(n, dtype=self.V.dtype, device=self.V.device)
        lam = torch.ones_like(self.bias) if self.psi is None else (-self.psi).exp()  # Λ = Ψ⁻¹
        metric = metric_of(lam, self.psi)
        skew = self.S - self.S.mT
        D: Tensor | None = self.D
        roots: list[Tensor] = [self.V]  # of the symmetric part, Σ XᵀX
        if gamma is not None:
            unit = None if D is None else into_unit_ball(D)
            D = None if unit is None else gamma * unit
            roots += self._lipschitz_roots(lam, gamma, unit)
        symmetric = gram(torch.cat(roots)) + self.epsilon * identity
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
        roundings: Tensor | float = sum(len(root) for root in roots) + n + 16
        if self.D is not None:  # the factor of I − DᵀD/γ² has relative errors of the size in² over its least eigenvalue
            roundings = roundings + 8 * (1 + self.in_features**2) * (1 + self.D.detach().square().sum())
        size = symmetric.detach().diagonal().sum()  # Σ‖X‖_F² bounds the norm of Σ|X|ᵀ|X|
        certain = survives_rounding(size * roundings, skew.detach(), lam.detach(), self.epsilon, c)
        return weights if certain else weights.proved()

    def _lipschitz_roots(self, lam: Tensor, gamma: Tensor, unit: Tensor | None) -> list[Tensor]:
        """X, ... with Q_γ = Σ XᵀX, from D/γ: so the square of γ, which might underflow, is not needed."""
        share = (2 * gamma).rsqrt()
        B, output = lam[:, None] * self.U, self.output
        if unit is None:
            return [share * output, share * B.mT]
        coupled = B + output.mT @ unit
        identity = torch.eye(self.in_features, dtype=unit.dtype, device=unit.device)
        factor = torch.linalg.cholesky(identity - unit.mT @ unit)
        half = torch.linalg.solve_triangular(factor, coupled.mT, upper=False)
        return [share * output, share * half]

    def extra_repr(self) -> str:
        """Sizes and settings."""
        parts = [super().extra_repr()]
        if self.log_gamma is not None:
            learnt = ", learn_lipschitz=True" if isinstance(self.log_gamma, nn.Parameter) else ""
            gamma = "?" if self.log_gamma.is_meta else f"{float(self.log_gamma.detach().exp()):.4g}"
            parts.append(f"lipschitz={gamma}{learnt}")
        if self.contraction_rate is not None:
            parts.append(f"contraction_rate={self.contraction_rate:g}")
        parts.append(f"epsilon={self.epsilon:g}")
        if self.psi is None:
            parts.append("learn_metric=False")
        return ", ".join(parts)


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
