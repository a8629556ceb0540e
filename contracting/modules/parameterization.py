r"""Free parameters → a Lur'e system that contracts at rate c, for every value of the parameters.

With [G] := G + ε(I + diag G) for G ⪰ 0, and any X, X_P, S₁, S₂, λ, C, B₂, D₁₂, C₂, D₂₁, let P = [X_PᵀX_P],
Λ = diag(exp λ) and, in blocks of states and neurons, H = [XᵀX + Q], Q ⪰ 0 from the gain or passivity that is asked for
(``supply``). Then

    A = P⁻¹(−½(H₁₁ + S₁ − S₁ᵀ) − cP),   B = −P⁻¹(H₁₂ + CᵀΛ),   D = I − ½Λ⁻¹(H₂₂ + S₂ − S₂ᵀ)

make [[AᵀP + PA + 2cP, PB + CᵀΛ], [·, −(2Λ − ΛD − DᵀΛ)]] = −H ≺ −Q: the state contracts at rate c in P, and D is exactly
the weight of an equilibrium network in the metric Λ. (The published continuous recurrent equilibrium networks, arXiv
2304.02976, need a strictly triangular D.) The margin ε is relative to every diagonal entry, and so is the condition of
P, n/ε at unit diagonal: therefore rounding leaves the inequality true however large parameters are.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.certificates.lure.checker import Supply, gain_supply, passivity_supply
from contracting.errors import InputError
from contracting.modules.settings import WithSettings
from contracting.modules.supply import Passive, feedthrough_of, roots_of
from contracting.modules.weights import LureWeights

# The spread of the eigenvalues that X and the skew parts start with: so H is between a quarter and four times its mean,
# and the first states and neurons neither fight nor ignore each other.
_SPREAD = 0.5


class LureParameterization(WithSettings):
    """Free parameters of a Lur'e system whose neurons are well-posed; one of your own brings ``explicit``.

    Args:
        inputs: k ≥ 0, size of u.
        states: n ≥ 0, size of s.
        neurons: m ≥ 1, size of w.
        outputs: p, size of y; None for y = s.
        feedback: whether the neurons act on each other, with a full D. Without, D = 0: one hidden layer, and there is
            no equation to solve in a time step.
        feedthrough: whether y has a term D₂₂u.
        epsilon: ε > 0, the margin by which Gram matrices are made definite, relative to their diagonal.
        device: device of the parameters.
        dtype: floating-point type of the parameters.

    Raises:
        InputError: on a size that is not possible.
    """

    example: Tensor
    contraction_rate: float | None = None  # what is promised; None where nothing is
    lipschitz: float | None = None
    passive: Passive | None = None

    def __init__(
        self,
        inputs: int,
        states: int,
        neurons: int,
        outputs: int | None,
        *,
        feedback: bool = True,
        feedthrough: bool = False,
        epsilon: float = 1e-2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.inputs = k = checks.whole_number("inputs", inputs, low=0)
        self.states = n = checks.whole_number("states", states, low=0)
        self.neurons = m = checks.whole_number("neurons", neurons)
        self.outputs = p = n if outputs is None else checks.whole_number("outputs", outputs)
        if outputs is None and (n == 0 or feedthrough):
            raise InputError("outputs=None makes the state the output: it needs states ≥ 1 and no feedthrough")
        self.epsilon = checks.positive_number("epsilon", epsilon)
        # a zero whose dtype and device are those of the module, wherever it is moved
        zero = torch.zeros((), device=device, dtype=checks.floating_dtype("dtype", dtype))
        self.register_buffer("example", zero, persistent=False)
        self.log_multiplier = self.new_parameter(m)
        self.S2 = self.new_parameter(m, m) if feedback else None
        self.C = self.new_parameter(m, n)
        self.B2: nn.Parameter | None = self.new_parameter(n, k)
        self.D12: nn.Parameter | None = self.new_parameter(m, k)
        self.C2 = None if outputs is None else self.new_parameter(p, n)
        self.D21 = None if outputs is None else self.new_parameter(p, m)
        self.D22 = self.new_parameter(p, k) if feedthrough else None
        self.state_bias, self.bias = self.new_parameter(n), self.new_parameter(m)
        self.output_bias = None if outputs is None else self.new_parameter(p)

    def new_parameter(self, *shape: int) -> nn.Parameter:
        """A parameter of the dtype and device of this module, without values yet."""
        return nn.Parameter(self.example.new_empty(shape))

    @abstractmethod
    def explicit(self) -> LureWeights:
        """The matrices, differentiable in the free parameters."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the formula of the matrices depends on, beside sizes."""
        return {"epsilon": self.epsilon, "feedback": self.S2 is not None, "feedthrough": self.D22 is not None}

    def reset_parameters(self) -> None:
        """Draw new values: moderate inputs and outputs, one time constant of about one unit of time."""
        for weight in (self.C2, self.D21):
            if weight is not None:
                nn.init.normal_(weight, std=1 / math.sqrt(max(1, weight.shape[1])))
        for weight in (self.C, self.B2, self.D12):  # of which squares from either side enter the field
            if weight is not None:
                nn.init.normal_(weight, std=max(1, weight.numel()) ** -0.25)
        if self.S2 is not None:
            nn.init.normal_(self.S2, std=_SPREAD / math.sqrt(self.neurons))
        nn.init.uniform_(self.bias, -1, 1)
        for parameter in (self.log_multiplier, self.state_bias, self.output_bias, self.D22):
            if parameter is not None:
                nn.init.zeros_(parameter)

    def with_matrices(
        self, A: Tensor, B: Tensor, symmetric: Tensor | None, P: Tensor | None, **others: Any
    ) -> LureWeights:
        """The weights with D = I − ½Λ⁻¹(symmetric + S₂ − S₂ᵀ), or zero; parameters where ``others`` has no others."""
        D = None
        if self.S2 is not None and symmetric is not None:
            bracket = symmetric + self.S2 - self.S2.mT
            D = self.identity(self.neurons) - bracket / (2 * self.multiplier[:, None])
        own = {name: getattr(self, name) for name in ("B2", "D12", "C2", "D21", "D22")}
        return LureWeights(
            A=A,
            B=B,
            C=self.C,
            D=D,
            P=P,
            multiplier=self.multiplier,
            state_bias=self.state_bias,
            bias=self.bias,
            output_bias=self.output_bias,
            **{**own, **others},
        )

    def definite(self, *roots: Tensor) -> Tensor:
        """[G] = G + ε(I + diag G) with G = Σ XᵀX: (k, n), … -> (n, n)."""
        stacked = torch.cat(roots)
        gram = stacked.mT @ stacked
        return gram + torch.diag(self.epsilon * (1 + gram.diagonal()))

    @property
    def multiplier(self) -> Tensor:
        """Λ, (m,)."""
        return self.log_multiplier.exp()

    def identity(self, size: int) -> Tensor:
        """I of the dtype and device of this module."""
        return torch.eye(size, dtype=self.example.dtype, device=self.example.device)

    def extra_repr(self) -> str:
        """Sizes and settings."""
        sizes = f"inputs={self.inputs}, states={self.states}, neurons={self.neurons}"
        outputs = "None" if self.C2 is None else self.outputs
        options = "".join(f", {name}={value}" for name, value in self.settings.items() if value not in (None, False))
        return f"{sizes}, outputs={outputs}{options}"


class WellPosed(LureParameterization):
    """A, B and C are free and only the neurons are well-posed: nothing contracts. A control for experiments."""

    def __init__(self, inputs: int, states: int, neurons: int, outputs: int | None, **options: Any):
        super().__init__(inputs, states, neurons, outputs, **options)
        self.A, self.B = self.new_parameter(self.states, self.states), self.new_parameter(self.states, self.neurons)
        self.X = None if self.S2 is None else self.new_parameter(self.neurons, self.neurons)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values, with a field of moderate size."""
        super().reset_parameters()
        nn.init.normal_(self.A, std=1 / math.sqrt(max(1, self.states)))
        nn.init.normal_(self.B, std=1 / math.sqrt(self.neurons))
        if self.X is not None:
            _near_identity(self.X)

    def explicit(self) -> LureWeights:
        """The matrices; nothing is promised of the state."""
        return self.with_matrices(self.A, self.B, None if self.X is None else self.definite(self.X), None)


class Contracting(LureParameterization):
    """The direct parameterisation: rate c, and on request gain γ and passivity, for every value of the parameters.

    Args:
        inputs: k ≥ 0, size of u.
        states: n ≥ 0, size of s; without any it is an equilibrium network.
        neurons: m ≥ 1, size of w.
        outputs: p, size of y; None for y = s.
        contraction_rate: c ≥ 0, per unit of time.
        lipschitz: γ > 0, bound of the incremental L2 gain from u to y; None for no bound.
        passive: whether u ↦ y is to be incrementally passive, or with which excess.
        options: feedback, feedthrough, epsilon, device, dtype, as for ``LureParameterization``.

    Raises:
        InputError: on a size, number or combination that is not possible.
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
        **options: Any,
    ):
        super().__init__(inputs, states, neurons, outputs, **options)
        self.contraction_rate: float = checks.number(
            "contraction_rate", contraction_rate, low=0, high=math.inf, high_open=True
        )
        self.lipschitz = None if lipschitz is None else checks.positive_number("lipschitz", lipschitz)
        if not isinstance(passive, bool | Passive):
            raise InputError(f"passive must be True, False or Passive(input=…, output=…), got {passive!r}")
        self.passive = passive if isinstance(passive, Passive) else Passive() if passive else None
        self._refuse_impossible()
        n, m = self.states, self.neurons
        size = n if self.S2 is None else n + m
        self.X, self.X_P, self.S1 = (self.new_parameter(size, size) for size in (size, n, n))
        self.H12 = self.new_parameter(n, m) if self.S2 is None else None
        if self.S2 is None and self.supplies:  # then inputs and outputs act on the state alone
            self.D12 = self.D21 = None
        if self.passive is not None and self.D22 is None:  # then the outputs determine the inputs
            self.B2 = self.D12 = None
        half_space = self.D22 is not None and self.passive is not None and not self.passive.output
        self.D22_root = self.new_parameter(self.inputs, self.inputs) if half_space else None
        self.reset_parameters()

    def _refuse_impossible(self) -> None:
        if not self.inputs and self.supplies:
            raise InputError("lipschitz and passive are about an input: inputs must be at least 1")
        if self.passive is None:
            return
        if self.inputs != self.outputs:
            raise InputError(f"passive needs as many outputs as inputs, got {self.outputs} and {self.inputs}")
        if self.passive.input and self.D22 is None:
            raise InputError("passive=Passive(input=…) needs feedthrough=True: without one there is no such excess")
        if self.D22 is not None and self.lipschitz is not None:
            raise InputError(
                "feedthrough=True goes with lipschitz or with passive, not with both: leave one of them out, or take "
                "passive=Passive(output=1/γ), which bounds the gain by γ as well"
            )

    @property
    def supplies(self) -> list[Supply]:
        """What is promised of inputs and outputs."""
        gain = [] if self.lipschitz is None else [gain_supply(self.lipschitz)]
        passive = self.passive
        return gain + ([] if passive is None else [passivity_supply(passive.input, passive.output)])

    @property
    def settings(self) -> dict[str, Any]:
        """What the formula of the matrices depends on, beside sizes."""
        passive = None if self.passive is None else [self.passive.input, self.passive.output]
        own = {"contraction_rate": self.contraction_rate, "lipschitz": self.lipschitz, "passive": passive}
        return {**own, **super().settings}

    def reset_parameters(self) -> None:
        """Draw new values, with P and Λ close to I and time constants of about 1/(1 + c)."""
        super().reset_parameters()
        _near_identity(self.X)
        if self.H12 is not None:
            nn.init.normal_(self.H12, std=1 / math.sqrt(self.neurons))
        nn.init.eye_(self.X_P)
        nn.init.normal_(self.S1, std=_SPREAD / math.sqrt(max(1, self.states)))
        if self.D22_root is not None:
            nn.init.eye_(self.D22_root)
        if self.lipschitz is not None:
            with torch.no_grad():  # keeps Q of the size of XᵀX, however small γ is
                for weight in (self.B2, self.D12, self.C2, self.D21):
                    if weight is not None:
                        weight.mul_(min(1.0, math.sqrt(self.lipschitz)))

    def explicit(self) -> LureWeights:
        """The matrices, with every promise kept up to the rounding of their computation."""
        n, m, lam = self.states, self.neurons, self.multiplier
        P = self.definite(self.X_P)
        factor = torch.linalg.cholesky(P)
        C2 = self.identity(n) if self.C2 is None else self.C2
        output = torch.cat([C2, C2.new_zeros(len(C2), m) if self.D21 is None else self.D21], 1)
        B2: Tensor | None = self.B2
        D12: Tensor | None = self.D12
        D22: Tensor | None = self.D22
        if B2 is None:  # passive without a feedthrough
            coupled = output.mT
            B2, D12 = torch.cholesky_solve(coupled[:n], factor), coupled[n:] / lam[:, None]
        else:
            coupled = torch.cat([P @ B2, B2.new_zeros(m, self.inputs) if D12 is None else lam[:, None] * D12])
        if D22 is not None and self.supplies:
            D22 = feedthrough_of(self.supplies[0], D22, self.D22_root, self.epsilon)
        roots = [root for supply in self.supplies for root in roots_of(supply, coupled, output, D22)]
        if self.H12 is None:
            H = self.definite(self.X, *roots)
            H11, H12, H22 = H[:n, :n], H[:n, n:], H[n:, n:]
        else:  # H₂₂ = 2Λ, so that D = 0, and the least H₁₁ that goes with it
            H12, H22 = self.H12, None
            H11 = self.definite(self.X, *(root[:, :n] for root in roots), (H12 / (2 * lam).sqrt()).mT)
        A = torch.cholesky_solve(-(H11 + self.S1 - self.S1.mT) / 2, factor) - self.contraction_rate * self.identity(n)
        B = -torch.cholesky_solve(H12 + self.C.mT * lam, factor)
        return self.with_matrices(A, B, H22, P, B2=B2, D12=D12, D22=D22)


def _near_identity(root: Tensor) -> None:
    """Draw X = √2(I + noise), so that XᵀX is 2I in the mean: then D is about zero, and A about −(1 + c)I."""
    size = len(root)
    with torch.no_grad():
        nn.init.normal_(root, std=_SPREAD / math.sqrt(size))
        root.diagonal().add_(1)
        root.mul_(math.sqrt(2))
