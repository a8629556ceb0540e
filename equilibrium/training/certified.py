r"""Losses of the worst outputs that are not excluded around an input, so that training asks for certified accuracy.

With leads d_j ≥ max (y_j − y_label) over the surroundings of x, d_label = 0, the loss is

    (1 − κ) cross-entropy(y(x), label) + κ cross-entropy(d, label),

whose second part is at least the cross-entropy of every input there, and the class is proved to stay where d_j < 0 for
all others. Differences of outputs are bounded, not outputs: what both have in common cancels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from contracting import checks
from contracting.activations.base import Activation
from contracting.errors import InputError, PreconditionError
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz.composite import parts
from equilibrium.local.coupled import CoupledNetwork
from equilibrium.local.differentiable import drops
from equilibrium.local.finder import Effort
from equilibrium.local.network import LocalNetwork
from equilibrium.local.relaxation import Forms
from equilibrium.training.losses import CrossEntropy, Judged


@dataclass(frozen=True, kw_only=True, eq=False)
class Explicit:
    """z = σ(Wz + Ux + b), y = Cz + Dx + d, with the linear maps around the layer in U, b, C, D, d; differentiable."""

    layer: EquilibriumLayer
    W: Tensor
    U: Tensor
    bias: Tensor
    C: Tensor
    D: Tensor | None
    offset: Tensor
    metric: Tensor | None
    lipschitz: Tensor | None

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The matrices of a layer, or of an nn.Sequential of linear modules around one.

        Raises:
            InputError: on another model.
        """
        if not isinstance(model, EquilibriumLayer | nn.Sequential):
            raise InputError(
                f"model must be an EquilibriumLayer or an nn.Sequential around one for a certified loss, got "
                f"{type(model).__name__}"
            )
        before, layer, after = parts(model)
        assert isinstance(layer, EquilibriumLayer)
        weights = layer.weights().dense()
        U, bias, C, D, offset = weights.input, weights.bias, weights.output, weights.feedthrough, weights.output_bias
        alone = not before and not after
        if before:
            first, shift = _matrix(before, U.shape[1], U)
            U, bias = U @ first, bias + U @ shift
            D, offset = (None, offset) if D is None else (D @ first, offset + D @ shift)
        if after:
            last, shift = _matrix(after, len(C), C)
            C, D, offset = last @ C, None if D is None else last @ D, last @ offset + shift
        return cls(
            layer=layer, W=weights.state.to_dense(), U=U, bias=bias, C=C, D=D, offset=offset,
            metric=None if weights.metric is None else weights.metric.weights,
            lipschitz=weights.lipschitz if alone else None,
        )  # fmt: skip

    def outputs(self, z: Tensor, x: Tensor) -> Tensor:
        """y: (batch, n), (batch, in) -> (batch, out)."""
        y = z @ self.C.mT + self.offset
        return y if self.D is None else y + x @ self.D.mT

    @property
    def activation(self) -> Activation:
        """σ."""
        return self.layer.activation


def _matrix(modules: list[nn.Module], size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Linear modules as x ↦ Mx + m: those before the layer end in ``size`` entries, those after it begin with them."""
    linear = next((module for module in modules if isinstance(module, nn.Linear)), None)
    inputs = size if linear is None else linear.in_features
    image = nn.Sequential(*modules)(torch.cat([like.new_zeros(1, inputs), torch.eye(inputs).to(like)]))
    return (image[1:] - image[:1]).mT, image[0]


@dataclass(frozen=True, kw_only=True)
class WorstCase(CrossEntropy):
    """The cross-entropy at the inputs and at the worst outputs around them; one of your own brings ``leads``.

    Args:
        radius: of the surroundings that count, in units of the inputs.
        share: κ in (0, 1], of the worst outputs in the loss.
        warm_up: share of the training in which the radius rises from zero.
        temperature: of both cross-entropies.

    Raises:
        InputError: on values out of range.
    """

    radius: float
    share: float = 0.5
    warm_up: float = 0.5

    of_outputs: ClassVar[bool] = True
    """Whether ``leads`` uses the outputs, whose gradient is then needed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number("radius", self.radius, low=0, high=math.inf, high_open=True)
        checks.number("share", self.share, low=0, low_open=True, high=1)
        checks.number("warm_up", self.warm_up, low=0, high=1)

    @abstractmethod
    def leads(self, model: nn.Module, inputs: Tensor, labels: Tensor, outputs: Tensor) -> Tensor:
        """Upper bounds of y_j − y_label over the surroundings, zero for the label: (batch, classes)."""

    def at(self, progress: float) -> Self:
        if progress >= self.warm_up:
            return self
        return replace(self, radius=self.radius * progress / self.warm_up)

    def of(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Judged:
        with torch.set_grad_enabled(torch.is_grad_enabled() and (self.share < 1 or self.of_outputs)):
            outputs = model(inputs)
        worst = cross_entropy(self.leads(model, inputs, targets, outputs) / self.temperature, targets)
        plain = (1 - self.share) * self(outputs, targets) if self.share < 1 else 0.0
        return Judged(value=plain + self.share * worst, outputs=outputs)

    @torch.no_grad()
    def unproved(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Rows whose class is not proved to be the label all over the surroundings, up to rounding: (batch,)."""
        leads = self.leads(model, inputs, targets, model(inputs))
        others = torch.nn.functional.one_hot(targets, leads.shape[-1]) == 0
        return ((leads >= 0) & others).any(-1)


@dataclass(frozen=True, kw_only=True)
class IntervalMargin(WorstCase):
    r"""The worst outputs over a box of inputs, by the coupled lower and upper equilibrium: interval bound propagation.

    (z̄, −z̲) is the equilibrium of [[M, −N], [−N, M]] over the box ‖x' − x‖_∞ ≤ radius, cut by ``bounds``
    (arXiv 2112.05310), differentiated implicitly as any other; y_j − y_label ≤ Σᵢ max(cᵢz̄ᵢ, cᵢz̲ᵢ) with c the difference
    of two rows of W_o (Wei and Kolter 2022 train such networks).

    Args:
        radius: half the side of the box, in units of the inputs.
        bounds: smallest and largest value of an input: nothing outside is an input. None for no range.

    Raises:
        InputError: on values out of range.
        PreconditionError: in training, if α(⌈W⌉) ≥ 1, where a box need not have a box of equilibria: ``NEMON`` is the
            parameterisation for which that cannot happen.
    """

    bounds: tuple[float, float] | None = None

    of_outputs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bounds is not None:
            low, high = (checks.number("bounds", end) for end in self.bounds)
            if not low < high:
                raise InputError(f"bounds must be the smallest and the largest value of an input, got {self.bounds!r}")

    def leads(self, model: nn.Module, inputs: Tensor, labels: Tensor, outputs: Tensor) -> Tensor:
        network = Explicit.of(model)
        low, high = inputs - self.radius, inputs + self.radius
        if self.bounds is not None:
            low, high = low.clamp(*self.bounds), high.clamp(*self.bounds)
        try:
            coupled = CoupledNetwork(network.W, network.U, network.bias, network.activation)
        except PreconditionError as error:
            raise PreconditionError(f"{error}; the parameterisation NEMON(…) has them for all parameters") from None
        layer, n = network.layer, len(network.W)
        ends = layer.backward.equilibrium(coupled.problem(low, high), layer.solver, layer.stop)
        upper, lower = ends[:, :n], -ends[:, n:]
        middle = network.outputs((upper + lower) / 2, (high + low) / 2)
        spread = _differences(network.C, labels) @ (upper - lower)[..., None] / 2
        if network.D is not None:
            spread = spread + _differences(network.D, labels) @ (high - low)[..., None] / 2
        return middle - middle.gather(-1, labels[:, None]) + spread[..., 0]


@dataclass(frozen=True, kw_only=True)
class CertifiedMargin(WorstCase):
    r"""The worst outputs over a ball of ℓ2, by Lipschitz constants of the whole map: Lipschitz-margin training.

    y_j − y_label rises by at most radius·K_j (Tsuzuku, Sato and Sugiyama, arXiv 1802.04034), with the smaller of √2γ,
    where the layer has a γ, and of what its metric Λ proves of the difference c of two rows of W_o: with
    RRᵀ = 2Λ − ΛW − WᵀΛ,

        K_j = ‖BᵀR⁻¹cᵀ + Dᵀ(e_j − e_label)‖ + ‖R⁻¹cᵀ‖‖B‖,   B = R⁻¹ΛU.

    Slopes in [0, 1] give 0 ≤ ⟨Δz, Λ(WΔz + UΔx − Δz)⟩ = wᵀBΔx − ½‖w‖², w = RᵀΔz, so that ‖w − BΔx‖ ≤ ‖BΔx‖: that is
    the bound. It holds for every Λ and is differentiated in W, U and W_o with Λ as it is.

    Args:
        radius: of the ball, in units of the inputs.

    Raises:
        InputError: on values out of range.
        PreconditionError: in training, of a model with neither γ nor a metric.
    """

    def leads(self, model: nn.Module, inputs: Tensor, labels: Tensor, outputs: Tensor) -> Tensor:
        constants = margin_constants(Explicit.of(model))
        return outputs - outputs.gather(-1, labels[:, None]) + self.radius * constants[labels]


@dataclass(frozen=True, kw_only=True)
class LocalMargin(CertifiedMargin):
    r"""The worst outputs over a ball of ℓ2, by constants of the surroundings of each row: local Lipschitz margins.

    Bounds of the pre-activations over the ball narrow the secant slopes of every neuron, and with these slopes
    y_j − y_label rises by less than with those that hold everywhere (``local_lipschitz``). Multipliers are searched
    without a gradient and then held fixed, where each gives a bound; the gradient goes through W, U, W_o, the
    equilibria and, of activations with one kink, the slopes. Where ``CertifiedMargin`` proves more, that counts.

    The search and the bounds are made in float64 on the CPU; a step costs several times that of ``CertifiedMargin``.

    Args:
        radius: of the ball, in units of the inputs.
        passes: how often the slopes are made narrower.
        rows: so many rows of each batch, the first ones, have local constants, the others those of ``CertifiedMargin``;
            None for all. Batches are shuffled, so that every row has its turn.
        effort: of each search.

    Raises:
        InputError: on values out of range; in training, of a model with more neurons than local constants take.
        PreconditionError: in training, of a model without a metric.
    """

    passes: int = 1
    rows: int | None = None
    effort: Effort = Effort(steps=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole_number("passes", self.passes)
        if self.rows is not None:
            checks.whole_number("rows", self.rows)

    def leads(self, model: nn.Module, inputs: Tensor, labels: Tensor, outputs: Tensor) -> Tensor:
        network = Explicit.of(model)
        rise = self.radius * margin_constants(network)[labels]
        if self.radius > 0:
            some = slice(self.rows)
            local = self._rise(model, network, inputs[some], labels[some])
            rise = torch.cat([torch.minimum(rise[some], local.to(rise)), rise[len(local) :]])
        return outputs - outputs.gather(-1, labels[:, None]) + rise

    def unproved(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        if self.rows is not None:
            return replace(self, rows=None).unproved(model, inputs, targets)
        return super().unproved(model, inputs, targets)

    def _rise(self, model: nn.Module, network: Explicit, inputs: Tensor, labels: Tensor) -> Tensor:
        """How much every y_j − y_label can rise, (batch, classes); zero for the label."""
        assert isinstance(model, EquilibriumLayer | nn.Sequential)
        before, _, _ = parts(model)
        z = network.layer.equilibrium(nn.Sequential(*before)(inputs))
        inner = z @ network.W.mT + inputs @ network.U.mT + network.bias
        others = torch.nn.functional.one_hot(labels, len(network.C)) == 0
        columns = torch.nonzero(others)[:, 1].reshape(len(labels), -1)  # of the label nothing rises, nor has a gradient
        exact = {
            name: None if matrix is None else _double(matrix[columns] - matrix[labels][:, None])
            for name, matrix in (("state", network.C), ("direct", network.D))
        }
        W, U, v = (_double(part) for part in (network.W, network.U, inner))
        found = drops(LocalNetwork(model), W, U, v, Forms(**exact), self.radius, passes=self.passes, effort=self.effort)
        return found.new_zeros(len(labels), len(network.C)).scatter(-1, columns.to(found.device), found)


def margin_constants(network: Explicit) -> Tensor:
    """Bounds of the ℓ2 Lipschitz constant of y_i − y_j, zero for i = j: (classes, classes), differentiable.

    Raises:
        PreconditionError: if the network has neither γ nor a metric in which Condition 1 holds.
    """
    classes = torch.arange(len(network.C), device=network.C.device)
    found = []
    if network.lipschitz is not None:
        apart = (classes[:, None] != classes).to(network.C)
        found.append(math.sqrt(2) * network.lipschitz * apart)
    if network.metric is not None:
        lam, identity = network.metric, torch.eye(len(network.W)).to(network.W)
        bracket = lam[:, None] * (identity - network.W)
        R, wrong = torch.linalg.cholesky_ex(bracket + bracket.mT)
        if not bool(wrong):
            B = torch.linalg.solve_triangular(R, lam[:, None] * network.U, upper=False)
            rows = torch.linalg.solve_triangular(R, network.C.mT, upper=False).mT  # R⁻¹cᵀ of each output
            through = rows @ B if network.D is None else rows @ B + network.D
            largest = torch.linalg.eigvalsh(B @ B.mT)[-1].sqrt()
            found.append(_lengths(through) + _lengths(rows) * largest)
    if not found:
        raise PreconditionError(
            "a certified margin needs a layer with a Lipschitz constant γ or a metric in which Condition 1 holds, such "
            "as LBEN(…, lipschitz=1.0) or LBEN(…); nothing is known of this one"
        )
    return found[0] if len(found) == 1 else torch.minimum(*found)


def _differences(rows: Tensor, labels: Tensor) -> Tensor:
    """|row of every class − row of the label|: (classes, m), (batch,) -> (batch, classes, m)."""
    return (rows - rows[labels][:, None]).abs()


def _double(part: Tensor) -> Tensor:
    """In float64 on the CPU, where bounds are made; differentiable."""
    return part.to("cpu", torch.float64)


def _lengths(rows: Tensor) -> Tensor:
    """‖rowᵢ − rowⱼ‖ of every pair, with a gradient of zero where that is zero: (k, m) -> (k, k)."""
    squares = (rows[:, None] - rows).square().sum(-1)
    apart = squares > 0
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)


LOSSES = {
    "cross-entropy": CrossEntropy,
    "certified-margin": CertifiedMargin,
    "local-margin": LocalMargin,
    "interval-margin": IntervalMargin,
}
"""Losses of classes by the names that commands take."""
