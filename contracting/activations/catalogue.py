"""Activations as proximal operators: σ = prox_f for a convex f, hence monotone with slopes in [0, 1].

A splitting method with step α needs prox_{αf}, which is σ only for α = 1 (or when f is the indicator of an interval).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from contracting import checks
from contracting.activations.base import Activation, Curved, PiecewiseLinear, Reflection
from contracting.activations.potentials import dilogarithm, inside
from contracting.activations.warm import fast_tanh, number
from contracting.errors import InputError
from contracting.memory import Remembering
from contracting.types import UNIT_SLOPES, Slopes, Step


@dataclass(frozen=True, kw_only=True)
class Tanh(Curved):
    """σ(v) = tanh v; slopes (0, 1]."""

    slopes = UNIT_SLOPES

    def value(self, v: Tensor) -> Tensor:
        return torch.tanh(v)

    def slope(self, v: Tensor) -> Tensor:
        return 1 - torch.tanh(v) ** 2

    def value_and_slope(self, v: Tensor, shift: float) -> tuple[Tensor, Tensor]:
        value = fast_tanh(v)
        return value, torch.addcmul(number(1 + shift, v), value, value, value=-1)

    def potential(self, z: Tensor) -> Tensor:
        # the integral of artanh, written so that the ends ±1 are finite
        return inside(z, -1.0, 1.0, (torch.xlogy(1 + z, 1 + z) + torch.xlogy(1 - z, 1 - z) - z.square()) / 2)


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Curved):
    """σ(v) = 1 / (1 + e^−v); slopes (0, 1/4]."""

    slopes = Slopes(0.0, 0.25)
    stride = 4.0

    def value(self, v: Tensor) -> Tensor:
        return torch.sigmoid(v)

    def slope(self, v: Tensor) -> Tensor:
        return torch.sigmoid(v) * torch.sigmoid(-v)

    def value_and_slope(self, v: Tensor, shift: float) -> tuple[Tensor, Tensor]:
        value = torch.sigmoid(v)
        return value, torch.addcmul(value, value, value, value=-1).add_(number(shift, v))

    def potential(self, z: Tensor) -> Tensor:
        return inside(z, 0.0, 1.0, torch.xlogy(z, z) + torch.xlogy(1 - z, 1 - z) - z.square() / 2)


@dataclass(frozen=True, kw_only=True)
class Softplus(Curved):
    """σ(v) = log(1 + e^{βv}) / β, β = ``beta`` > 0; slopes (0, 1)."""

    slopes = UNIT_SLOPES
    stride = math.inf
    beta: float = 1.0

    def __post_init__(self) -> None:
        checks.positive_number("beta", self.beta)

    def value(self, v: Tensor) -> Tensor:
        # torch's own threshold of 20 leaves a jump of 2e-9, which float64 and its derivatives can see; at 40 it cannot.
        return F.softplus(v, self.beta, 40.0)

    def slope(self, v: Tensor) -> Tensor:
        return torch.sigmoid(self.beta * v)

    def value_and_slope(self, v: Tensor, shift: float) -> tuple[Tensor, Tensor]:
        return self.value(v), torch.sigmoid(v if self.beta == 1 else self.beta * v).add_(number(shift, v))

    def pull(self, v: Tensor, value: Tensor) -> Tensor:
        return -self.value(-v)

    def potential(self, z: Tensor) -> Tensor:
        # f' = log(1 − e^{−βz})/β, whose integral from z to ∞ is a dilogarithm
        beta = self.beta
        return inside(z, 0.0, math.inf, dilogarithm(torch.exp(-beta * z.clamp(min=0))) / beta**2)


@dataclass(frozen=True, kw_only=True)
class ELU(Curved):
    """σ(v) = v if v > 0 else a(e^v − 1), a = ``alpha`` in (0, 1]; slopes (0, 1], at 0 the derivative is a."""

    slopes = UNIT_SLOPES
    stride = math.inf
    alpha: float = 1.0

    def __post_init__(self) -> None:
        number = checks.number("alpha", self.alpha, low=0.0, low_open=True)
        if number > 1:
            raise InputError(
                f"alpha must lie in (0, 1], got {number:g}: ELU with alpha > 1 is no proximal operator, its slope just "
                f"below 0 reaches alpha = {number:g} > 1; use ELU(alpha=1)"
            )

    def value(self, v: Tensor) -> Tensor:
        return F.elu(v, self.alpha)

    def slope(self, v: Tensor) -> Tensor:
        # The clamp keeps e^v finite in the branch that is not taken: its gradient would be 0 · ∞.
        return torch.where(v > 0, torch.ones_like(v), self.alpha * torch.exp(v.clamp(max=0)))

    def value_and_slope(self, v: Tensor, shift: float) -> tuple[Tensor, Tensor]:
        value = self.value(v)
        slope = torch.clamp_max(value, 0).add_(number(self.alpha + shift, v))
        return value, slope if self.alpha == 1 else slope.add_(v > 0, alpha=1 - self.alpha)

    def potential(self, z: Tensor) -> Tensor:
        a = self.alpha
        below = torch.xlogy(a + z, 1 + z / a) - z - z.square() / 2
        return inside(z, -a, math.inf, torch.where(z < 0, below, torch.zeros_like(z)))


@dataclass(frozen=True, kw_only=True)
class Softsign(Curved):
    """σ(v) = v / (1 + |v|); slopes (0, 1]."""

    slopes = UNIT_SLOPES

    def value(self, v: Tensor) -> Tensor:
        return v / (1 + v.abs())

    def slope(self, v: Tensor) -> Tensor:
        return (1 + v.abs()) ** -2

    def pull(self, v: Tensor, value: Tensor) -> Tensor:
        return value * v.abs()

    def potential(self, z: Tensor) -> Tensor:
        return inside(z, -1.0, 1.0, -z.abs() - torch.log1p(-z.abs()) - z.square() / 2)


@dataclass(frozen=True, kw_only=True)
class Arctan(Curved):
    """σ(v) = arctan v; slopes (0, 1]."""

    slopes = UNIT_SLOPES

    def value(self, v: Tensor) -> Tensor:
        return torch.atan(v)

    def slope(self, v: Tensor) -> Tensor:
        return 1 / (1 + v**2)

    def potential(self, z: Tensor) -> Tensor:
        # The float32 next to π/2 lies beyond it. The clamp is the cosine of σ(v), up to 7 %, for the smallest v that is
        # rounded there.
        cosine = torch.cos(z).clamp_min(torch.finfo(z.dtype).eps / 8)
        return inside(z, -math.pi / 2, math.pi / 2, -torch.log(cosine) - z.square() / 2)


@dataclass(frozen=True, kw_only=True)
class Identity(PiecewiseLinear):
    """σ(v) = v, f = 0: prox_{αf}(x) = x."""

    homogeneous = True
    slopes = Slopes(1.0, 1.0)

    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        return x

    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        return torch.ones_like(x)

    def potential(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z)


@dataclass(frozen=True, kw_only=True)
class ReLU(PiecewiseLinear):
    """σ(v) = max(v, 0), f the indicator of [0, ∞): prox_{αf} = σ for every α. At 0 the derivative is 0."""

    slopes = UNIT_SLOPES

    homogeneous = True

    def reflection(self, step: Step) -> Reflection:
        return torch.abs  # 2 max(x, 0) − x

    def reflection_from(self, base: Tensor, size: Tensor | None, step: Step, dtype: torch.dtype) -> Reflection:
        # with e = ±d, the sign that of x: |x + d| − |x| is e as long as x + d has that sign, and −2|x| − e beyond
        scaled = (base if size is None else base / size).to(dtype)
        sign = torch.copysign(scaled.new_ones(()), scaled)
        twice = scaled.abs_().mul_(-2)
        beyond = torch.empty_like(twice)

        def change(d: Tensor, out: Tensor) -> Tensor:
            torch.mul(d, sign, out=out)
            return torch.maximum(out, torch.sub(twice, out, out=beyond), out=out)

        return change

    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        return torch.relu(x)

    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        return (x > 0).to(x.dtype)

    def potential(self, z: Tensor) -> Tensor:
        return inside(z, 0.0, math.inf, torch.zeros_like(z))


def _multiplication(factor: Tensor) -> Reflection:
    def multiply(x: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.mul(factor, x, out=out)

    return multiply


@dataclass(frozen=True, kw_only=True)
class HardTanh(PiecewiseLinear):
    """σ(v) = min(max(v, low), high), f the indicator of [low, high]: prox_{αf} = σ for all α; slope 0 at the ends."""

    slopes = UNIT_SLOPES
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        checks.number("high", self.high, low=checks.number("low", self.low), low_open=True)

    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        return F.hardtanh(x, self.low, self.high)

    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        return ((x > self.low) & (x < self.high)).to(x.dtype)

    def potential(self, z: Tensor) -> Tensor:
        return inside(z, self.low, self.high, torch.zeros_like(z))


@dataclass(frozen=True, kw_only=True)
class ReLU6(PiecewiseLinear):
    """σ(v) = min(max(v, 0), 6), f the indicator of [0, 6]: prox_{αf} = σ for all α; slope 0 at the ends."""

    slopes = UNIT_SLOPES

    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        return F.relu6(x)

    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        return ((x > 0) & (x < 6)).to(x.dtype)

    def potential(self, z: Tensor) -> Tensor:
        return inside(z, 0.0, 6.0, torch.zeros_like(z))


@dataclass(frozen=True, kw_only=True)
class HardSigmoid(PiecewiseLinear):
    """σ(v) = min(max((v + 3)/6, 0), 1): prox_{αf}(x) = min(max((x + 3α)/(1 + 5α), 0), 1); slope 0 at ±3."""

    slopes = Slopes(0.0, 1 / 6)

    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        return F.hardtanh((x + 3 * step) / (1 + 5 * step), 0.0, 1.0)

    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        p = self.prox_value(x, step)
        return ((p > 0) & (p < 1)).to(x.dtype) / (1 + 5 * step)

    def potential(self, z: Tensor) -> Tensor:
        # v = 6z − 3 on the ramp
        return inside(z, 0.0, 1.0, 2.5 * z.square() - 3 * z)


@dataclass(frozen=True, kw_only=True)
class Softshrink(PiecewiseLinear):
    """σ(v) = sign(v) max(|v| − t, 0), f = t|·|, t = ``threshold`` > 0: prox_{αf} shrinks by αt; slope 0 at ±t."""

    slopes = UNIT_SLOPES
    threshold: float = 0.5

    def __post_init__(self) -> None:
        checks.positive_number("threshold", self.threshold)

    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        return torch.sign(x) * torch.relu(x.abs() - self.threshold * step)

    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        return (x.abs() > self.threshold * step).to(x.dtype)

    def potential(self, z: Tensor) -> Tensor:
        return self.threshold * z.abs()


@dataclass(frozen=True, kw_only=True)
class LeakyReLU(PiecewiseLinear):
    """σ(v) = v if v > 0 else av, a = ``negative_slope`` in [0, 1]; at 0 the derivative is a.

    prox_{αf}(x) = x if x > 0 else ax / (α + (1 − α)a).
    """

    homogeneous = True
    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        checks.number("negative_slope", self.negative_slope, low=0.0, high=1.0)

    @property
    def slopes(self) -> Slopes:
        """(a, 1)."""
        return Slopes(self.negative_slope, 1.0)

    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        return torch.where(x > 0, x, self._ratio(step) * x)

    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        return torch.where(x > 0, torch.ones_like(x), self._ratio(step) * torch.ones_like(x))

    def _ratio(self, step: Step) -> Step:
        return self.negative_slope / (step + (1 - step) * self.negative_slope)

    def potential(self, z: Tensor) -> Tensor:
        a = self.negative_slope
        if a == 0:
            return inside(z, 0.0, math.inf, torch.zeros_like(z))
        return (1 / a - 1) / 2 * z.clamp(max=0).square()


@dataclass(frozen=True, kw_only=True, eq=False, init=False)
class Slope(PiecewiseLinear, Remembering):
    r"""σ(v) = s·v with given slopes s in [0, 1]: the linear activation of an adjoint problem.

    prox_{αf}(x) = sx / (α + (1 − α)s), exactly 0 where s = 0 (there f is the indicator of {0}). Differentiable with
    respect to s.

    Args:
        slopes: s, shape (batch, n), or (n,) for the same slopes in every row; kept as ``values``.

    Raises:
        InputError: if slopes is no floating-point tensor of one or two dimensions with finite entries in [0, 1].
    """

    homogeneous = True
    slopes = UNIT_SLOPES
    values: Tensor

    def __init__(self, *, slopes: Tensor):
        object.__setattr__(self, "values", slopes)

    def verify(self) -> None:
        """Refuse slopes outside [0, 1]."""
        if checks.floating_tensor("slopes", self.values).ndim not in (1, 2):
            raise InputError(f"slopes must have shape (batch, n) or (n,), got {tuple(self.values.shape)}")
        data = checks.finite("slopes", self.values).detach()
        if bool(((data < 0) | (data > 1)).any()):
            raise InputError(f"slopes must lie in [0, 1], got values in [{float(data.min()):g}, {float(data.max()):g}]")

    @classmethod
    def trusted(cls, slopes: Tensor) -> Self:
        """The same without a look at the slopes, which costs time: for those that some σ' gave."""
        activation = object.__new__(cls)
        object.__setattr__(activation, "values", slopes)
        return activation

    def tensors(self) -> tuple[Tensor, ...]:
        """The slopes."""
        return (self.values,)

    watched = property(tensors)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Slope:
        if len(tensors) != 1:
            raise InputError(f"tensors must hold the slopes alone, got {len(tensors)}")
        return Slope.trusted(tensors[0])

    def rows(self, index: Tensor | slice) -> Slope:
        """The slopes of some rows; slopes of shape (n,) serve every row."""
        every_row = (0, len(self.values), 1)
        if self.values.ndim == 1 or (isinstance(index, slice) and index.indices(len(self.values)) == every_row):
            return self
        return Slope.trusted(self.values[index])

    def neurons(self, start: int, stop: int) -> Slope:
        return Slope.trusted(self.values[..., start:stop])

    def slope_intervals(self, size: int) -> tuple[Tensor, Tensor]:
        """The slopes of each neuron, over all rows."""
        values = self.values.detach().to("cpu", torch.float64).reshape(-1, size)
        return values.amin(0), values.amax(0)

    def reflection(self, step: Step) -> Reflection:
        return _multiplication(2 * self._ratio(step) - 1)

    def reflection_from(self, base: Tensor, size: Tensor | None, step: Step, dtype: torch.dtype) -> Reflection:
        return _multiplication((2 * self._ratio(step) - 1).to(dtype))

    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        return self._ratio(step) * x

    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        return self._ratio(step).expand_as(x)

    def _ratio(self, step: Step) -> Tensor:
        def compute() -> Tensor:
            return self.values / (step + (1 - step) * self.values)

        if self.values.requires_grad or (isinstance(step, Tensor) and step.requires_grad):
            return compute()
        return self.remember("ratio", step, compute)  # asked for in every step of a solve

    def potential(self, z: Tensor) -> Tensor:
        s = self.values
        quadratic = (1 / torch.where(s > 0, s, 1.0) - 1) / 2 * z.square()
        return torch.where(s > 0, quadratic, torch.where(z == 0, 0.0, math.inf))


ADMISSIBLE: tuple[Activation, ...] = (
    ReLU(), LeakyReLU(), ReLU6(), HardTanh(), Tanh(), Sigmoid(), Softplus(), ELU(), Softsign(), Arctan(), HardSigmoid(),
    Softshrink(), Identity(),
)  # fmt: skip
"""Every activation with its default settings; ``Slope``, which needs data, is left out."""
