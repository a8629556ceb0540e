r"""A Lur'e system as explicit matrices: what a certificate of it is about, and what its steady state is.

s' = As + Bw + B₂u,  v = Cs + Dw + D₁₂u,  y = C₂s + D₂₁w + D₂₂u,  wᵢ = σᵢ(vᵢ) with slopes in [lowᵢ, highᵢ].

The firing-rate flow is A = −I, B = I, C = W, D = 0; the Hopfield flow A = −I, B = W, C = I, D = 0; an MLP field has a
strictly block lower triangular D; without a state (n = 0) it is an equilibrium network with the weight D.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from contracting import checks
from contracting.display import Displayed
from contracting.errors import InputError, PreconditionError
from contracting.types import UNIT_SLOPES, Slopes


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LureSystem(Displayed):
    """The matrices of a Lur'e system, float64 on the CPU after construction.

    Constant terms (biases) are left out, as no rate or gain depends on them.

    Attributes:
        A: (n, n), n ≥ 0.
        B: (n, m), m ≥ 0.
        C: (m, n).
        D: (m, m).
        B2: (n, k), from the input; None means no input, k = 0.
        D12: (m, k); None means zero.
        C2: (p, n), to the output; None means the state itself where there is an output to speak of.
        D21: (p, m); None means zero.
        D22: (p, k); None means zero.
        slopes: one interval for all activations, or a pair of tensors (low, high), each (m,).
        hint: a diagonal multiplier Λ > 0 that may be a good start for searches, (m,); trusted by nobody.
        label: the field in words.

    Raises:
        InputError: if shapes do not fit, or an entry is not finite.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    B2: Tensor | None = None
    D12: Tensor | None = None
    C2: Tensor | None = None
    D21: Tensor | None = None
    D22: Tensor | None = None
    slopes: Slopes | tuple[Tensor, Tensor] = UNIT_SLOPES
    hint: Tensor | None = None
    label: str = "Lur'e"

    def __post_init__(self) -> None:
        n, m = _rows("A", self.A), _rows("D", self.D)
        k = next((_columns(name, value) for name, value in self._given("B2", "D12", "D22")), 0)
        p = next((_rows(name, value) for name, value in self._given("C2", "D21", "D22")), n)
        shapes = {
            "A": (n, n), "B": (n, m), "C": (m, n), "D": (m, m), "B2": (n, k), "D12": (m, k), "C2": (p, n),
            "D21": (p, m), "D22": (p, k),
        }  # fmt: skip
        no_output = self.C2 is None and self.D21 is None and self.D22 is None
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is None:
                value = torch.eye(n) if name == "C2" and no_output else torch.zeros(shape)
            object.__setattr__(self, name, _matrix(name, value, shape))
        object.__setattr__(self, "slopes", _intervals(self.slopes, m))
        if self.hint is not None:
            hint = checks.shape("hint", checks.positive_tensor("hint", self.hint), (m,))
            object.__setattr__(self, "hint", hint.detach().to("cpu", torch.float64))

    def _given(self, *names: str) -> list[tuple[str, Any]]:
        return [(name, value) for name in names if (value := getattr(self, name)) is not None]

    @property
    def size(self) -> int:
        """n, entries of the state."""
        return self.A.shape[0]

    @property
    def neurons(self) -> int:
        """m, activations."""
        return self.D.shape[0]

    @property
    def name(self) -> str:
        """The field in words."""
        return self.label

    @property
    def low(self) -> Tensor:
        """The smallest slope of each activation, (m,)."""
        low, _ = self.slopes
        assert isinstance(low, Tensor)
        return low

    @property
    def high(self) -> Tensor:
        """The largest slope of each activation, (m,)."""
        _, high = self.slopes
        assert isinstance(high, Tensor)
        return high

    def with_slopes(self, slopes: Slopes | tuple[Tensor, Tensor]) -> Self:
        """The same system under another assumption on the slopes."""
        return replace(self, slopes=slopes)

    @cached_property
    def steady_weight(self) -> Tensor:
        r"""G(0) = D − CA⁻¹B: for constant input w is the equilibrium of a network with this weight, (m, m).

        Raises:
            PreconditionError: if A is singular, so that a constant input need not have one steady state.
        """
        return self.D + self.C @ steady_gain(self.A, self.B)

    def rescaled(self, states: Tensor, neurons: Tensor | None = None) -> Self:
        """The same system in the coordinates s' = states∘s, v' = neurons∘v and w' = neurons∘w; slopes stay as they are.

        Exact for powers of two.

        Args:
            states: > 0, (n,).
            neurons: > 0, (m,); None leaves them as they are.
        """
        assert self.B2 is not None and self.D12 is not None and self.C2 is not None and self.D21 is not None
        if neurons is None:
            neurons = torch.ones(self.neurons, dtype=torch.float64)
        rows, columns = states[:, None], neurons[:, None]
        return replace(
            self,
            A=self.A * rows / states,
            B=self.B * rows / neurons,
            C=self.C * columns / states,
            D=self.D * columns / neurons,
            B2=self.B2 * rows,
            D12=self.D12 * columns,
            C2=self.C2 / states,
            D21=self.D21 / neurons,
            hint=None if self.hint is None else self.hint / neurons / neurons,
        )

    def jacobians(self, slopes: Tensor) -> Tensor:
        """∂s'/∂s = A + BJ(I − DJ)⁻¹C at diagonal slopes J: (..., m) -> (..., n, n)."""
        loop = torch.eye(self.neurons, dtype=torch.float64) - self.D * slopes[..., None, :]
        return self.A + (self.B * slopes[..., None, :]) @ torch.linalg.solve(
            loop, self.C.expand(loop.shape[:-1] + (-1,))
        )

    def slope_factors(self, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """L and R with which slope i changes ∂s'/∂s by LeᵢeᵢᵀR: (m,) -> (n, m), (m, n)."""
        loop = torch.eye(self.neurons, dtype=torch.float64) - self.D * slopes
        # with X = (I − DJ)⁻¹ the change is B(I + JXD) dJ XC
        out = torch.linalg.solve(loop.mT, (self.B * slopes).mT).mT
        return self.B + out @ self.D, torch.linalg.solve(loop, self.C)


def steady_gain(A: Tensor, right: Tensor) -> Tensor:
    """−A⁻¹R: what a constant drive does to the state at rest, (n, n), (n, k) -> (n, k), differentiable.

    Raises:
        PreconditionError: if A is singular up to rounding, so that a constant input need not have one steady state.
    """
    inverse, info = torch.linalg.inv_ex(A.detach())
    # the norms bound the condition number, and rounding makes its reciprocal about as large where A is singular
    condition = A.detach().abs().sum(0).amax() * inverse.abs().sum(0).amax() if len(A) else A.new_ones(())
    if bool(info) or not bool(condition * len(A) * torch.finfo(A.dtype).eps < 0.01):  # two digits are left
        raise PreconditionError("A is singular up to rounding, so a constant input has no single steady state")
    return -torch.linalg.solve(A, right)


def _matrix(name: str, value: Any, shape: tuple[int, int]) -> Tensor:
    matrix = checks.finite(name, checks.shape(name, checks.floating_tensor(name, value), shape))
    return matrix.detach().to("cpu", torch.float64)


def _rows(name: str, value: Any) -> int:
    if checks.floating_tensor(name, value).ndim != 2:
        raise InputError(f"{name} must be a matrix, got shape {tuple(value.shape)}")
    return int(value.shape[0])


def _columns(name: str, value: Any) -> int:
    _rows(name, value)
    return int(value.shape[1])


def _intervals(value: Any, neurons: int) -> tuple[Tensor, Tensor]:
    """The slopes of each activation, (m,) and (m,), each interval in [−1, 1]."""
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(end, Tensor) for end in value):
        low, high = (checks.shape("slopes", checks.finite("slopes", end), (neurons,)) for end in value)
        low, high = (end.detach().to("cpu", torch.float64) for end in (low, high))
        if bool((low > high).any()) or bool((low < -1).any()) or bool((high > 1).any()):
            raise InputError("slopes must be intervals in [−1, 1], with low ≤ high for every activation")
        return low, high
    interval = Slopes.checked(value)
    low, high = (torch.full((neurons,), end, dtype=torch.float64) for end in interval)
    return low, high
