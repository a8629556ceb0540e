"""Proximal operators: what every activation must answer, and the two ways to compute it.

*Curved* activations know σ and find prox_{αf} by a root search; *piecewise linear* ones know the prox in closed form,
and σ is the prox with step 1. An activation that is not what it says cannot be made (``verification``).
"""

from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from contracting import checks
from contracting.activations import verification
from contracting.errors import InputError
from contracting.types import Slopes, Step

Reflection = Callable[..., Tensor]


class _Verified(ABCMeta):
    """Every instance has proved to be what it says before anybody can use it."""

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        activation = super().__call__(*args, **settings)
        activation.verify()
        return activation


class Activation(metaclass=_Verified):
    r"""A scalar function σ = prox_f = argmin_p ½(p − v)² + f(p), applied to every entry of a tensor.

    Every method maps (..., n) -> (..., n), follows dtype and device, and can be differentiated by autograd any number
    of times. At a kink the derivative is the smallest element of Clarke's set, as in torch: 0 for ReLU at 0.

    An activation of one's own is a frozen dataclass that extends ``Curved`` and brings

    * ``slopes``: ``Slopes(low, high)``, an interval in [0, 1] that contains every slope of σ, for all or as a property;
    * ``value(v)``: σ(v);
    * ``slope(v)``: σ'(v), with autograd's history where σ is curved;

    or extends ``PiecewiseLinear`` and brings ``slopes``, ``prox_value(x, step)`` and ``prox_slope(x, step)``. One whose
    entries differ also says in ``tensors`` and ``with_tensors`` what it depends on, and one whose f is known may bring
    ``potential(z)``, from which energies are made. These hooks are called in every
    iteration and check nothing; the methods that users call (``__call__``, ``derivative``, ``prox`` and
    ``prox_derivative``) check their arguments. ``contracting.contracts.ActivationContract`` tests all that is promised.

    Raises:
        InputError: by every constructor, if on a fine grid σ leaves its slopes or is not the prox that it says.

    Reference: theory, activations are proximal operators: prox of f.
    """

    piecewise_linear: ClassVar[bool] = False
    """Whether σ is piecewise linear, so that σ' is piecewise constant and carries no autograd graph in v."""
    homogeneous: ClassVar[bool] = False
    """Whether σ(tv) = tσ(v) for every t > 0."""

    def __call__(self, v: Tensor) -> Tensor:
        """σ(v): (..., n) -> (..., n)."""
        return self.value(checks.floating_tensor("v", v))

    def derivative(self, v: Tensor) -> Tensor:
        """σ'(v) at the pre-activation v, not at the output: (..., n) -> (..., n)."""
        return self.slope(checks.floating_tensor("v", v))

    def prox(self, x: Tensor, step: Step) -> Tensor:
        """prox_{αf}(x) = argmin_p ½(p − x)² + αf(p): (..., n) -> (..., n).

        With step 1 this is exactly σ(x).

        Args:
            x: any points, shape (..., n).
            step: α > 0, a number or a tensor that broadcasts to x: (), (n,) for one per neuron, or the shape of x.
                Gradients flow to a tensor. The sign of its entries is not checked: this runs in every iteration.

        Raises:
            InputError: if the number is not positive and finite, or the tensor does not fit x.
        """
        return self.prox_value(checks.floating_tensor("x", x), _check_step(step, x))

    def prox_derivative(self, x: Tensor, step: Step) -> Tensor:
        """Slope d prox_{αf}(x) / dx, in [0, 1]: (..., n) -> (..., n); arguments and errors as in ``prox``."""
        return self.prox_slope(checks.floating_tensor("x", x), _check_step(step, x))

    def reflection(self, step: Step) -> Reflection:
        """R_f = 2prox_{αf} − I as a function (x, *, out): (..., n) -> (..., n) of its own, for many calls.

        With an ``out`` other than x the result is written there, and nothing is differentiated.
        """

        def reflect(x: Tensor, out: Tensor | None = None) -> Tensor:
            return torch.sub(2 * self.prox_value(x, step), x, out=out)

        return reflect

    def reflection_from(self, base: Tensor, size: Tensor | None, step: Step, dtype: torch.dtype) -> Reflection:
        """d ↦ (R_f(x + s·d) − R_f(x))/s as a function (d, out) in a lower precision, as accurate as d is.

        Args:
            base: x, (batch, n), in the precision of the problem.
            size: s, (batch, 1), powers of two; None for ones.
            step: as for ``prox``.
            dtype: of d and of the result.
        """
        reflect = self.reflection(step)
        start = reflect(base)

        def change(d: Tensor, out: Tensor) -> Tensor:
            if size is None:
                return out.copy_(reflect(base + d).sub_(start))
            return out.copy_(reflect(torch.addcmul(base, size, d.to(base.dtype))).sub_(start).div_(size))

        return change

    @property
    @abstractmethod
    def slopes(self) -> Slopes:
        """An interval [lowest, highest] in [0, 1] that contains every slope of σ; the smaller, the more is proved."""

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors σ depends on differentiably; none for most activations."""
        return ()

    def with_tensors(self, tensors: Sequence[Tensor]) -> Activation:
        """The same activation on other tensors, in the order of ``tensors()``."""
        if len(tensors) != 0:
            raise InputError(f"tensors must be empty: {self!r} depends on none, got {len(tensors)}")
        return self

    def rows(self, index: Tensor | slice) -> Activation:
        """The activation of some rows of the batch only."""
        return self

    def neurons(self, start: int, stop: int) -> Activation:
        """The activation of the neurons start … stop − 1 only; brought by one whose entries differ.

        Raises:
            InputError: if the entries may differ, and nothing is known of some alone.
        """
        if self.tensors():
            raise InputError(f"{type(self).__name__} must bring neurons(start, stop) to serve a part of the neurons")
        return self

    def slope_intervals(self, size: int) -> tuple[Tensor, Tensor]:
        """The lowest and the highest slope of each of so many neurons, float64, (size,) and (size,)."""
        low, high = (torch.full((size,), end, dtype=torch.float64) for end in self.slopes)
        return low, high

    def verify(self) -> None:
        """Refuse an activation that is not what it says; asked by every constructor, and once for equal settings.

        Raises:
            InputError: if on a fine grid σ leaves its slopes or is not the prox that it says.
        """
        verification.verify(self)

    def potential(self, z: Tensor) -> Tensor:
        """The convex f with σ = prox_f, entry by entry, +∞ outside its domain: (..., n) -> (..., n).

        Raises:
            InputError: if no closed form is known for the activation.
        """
        raise InputError(f"no potential is known for {self!r}; bring potential(z): f(z) with f'(σ(v)) = v − σ(v)")

    @abstractmethod
    def value(self, v: Tensor) -> Tensor:
        """σ(v), unchecked."""

    @abstractmethod
    def slope(self, v: Tensor) -> Tensor:
        """σ'(v), unchecked."""

    @abstractmethod
    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        """prox_{αf}(x), unchecked."""

    @abstractmethod
    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        """d prox_{αf}(x) / dx, unchecked."""


def _check_step(step: Any, x: Tensor) -> Step:
    if not isinstance(step, Tensor):
        return checks.positive_number("step", step)
    checks.floating_tensor("step", step)
    if step.ndim == 0:
        return step.to(x)
    checks.same_kind("step", step, "x", x)
    sizes = zip(reversed(step.shape), reversed(x.shape), strict=False)
    if step.ndim > x.ndim or any(size not in (1, target) for size, target in sizes):
        raise InputError(
            f"step must broadcast to the shape of x {tuple(x.shape)}, got {tuple(step.shape)}; "
            "use a number, one entry per neuron, or the shape of x"
        )
    return step


class Curved(Activation):
    r"""An activation given by σ and σ'; its prox is σ(s) where s solves σ(s) + α(s − σ(s)) = x.

    That equation is the optimality condition p + αf'(p) = x at p = σ(s), since f'(σ(s)) = s − σ(s). The prox therefore
    has slope σ'(s) / (σ'(s) + α(1 − σ'(s))). The relative accuracy is about max(1, α) machine epsilons, since α
    amplifies the rounding of s − σ(s). A non-finite entry of x gives NaN in that entry alone.

    Where the root is sought for one x after the other, as in the steps of a solve, ``stride`` and ``value_and_slope``
    say how far one step may go and what it evaluates (``warm.WarmReflection``); both have defaults.
    """

    stride: ClassVar[float] = 2.0
    """How far a Newton step may move s where α is small, about the width of the bend of σ; ∞ where σ' is monotone."""

    def value_and_slope(self, v: Tensor, shift: float) -> tuple[Tensor, Tensor]:
        """σ(v) and σ'(v) + shift as tensors of their own, in no graph, where they cost less together."""
        return self.value(v), self.slope(v) + shift

    def pull(self, v: Tensor, value: Tensor) -> Tensor:
        """The pull of f at value = σ(v): f'(σ(v)) = v − σ(v); overridden where that cancels on a long stretch."""
        return v - value

    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        return self.value(self.preimage(x, step))

    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        slope = self.slope(self.preimage(x, step))
        return slope / (slope + step * (1 - slope))

    def preimage(self, x: Tensor, step: Step) -> Tensor:
        """s with σ(s) + α(s − σ(s)) = x, sought from scratch: (..., n) -> (..., n)."""
        if isinstance(step, float) and step == 1:
            return _nan_unless_finite(x)
        alpha = torch.as_tensor(step, dtype=x.dtype, device=x.device).expand_as(x)
        preimage: Tensor = _Preimage.apply(x, alpha, self)  # type: ignore[no-untyped-call]
        return preimage


def _nan_unless_finite(x: Tensor) -> Tensor:
    return x + (x - x)


class _Preimage(torch.autograd.Function):
    """The root s of σ(s) + α(s − σ(s)) = x with its derivatives by the implicit function theorem.

    ``backward`` uses the saved output itself, which hangs on this node of the graph: derivatives of every order follow.
    """

    @staticmethod
    def forward(x: Tensor, step: Tensor, activation: Curved) -> Tensor:
        return _search(activation, x, step)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Curved], output: Tensor) -> None:
        _, step, ctx.activation = inputs
        ctx.save_for_backward(output, step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        s, step = ctx.saved_tensors
        slope = ctx.activation.slope(s)
        grad_x = grads[0] / (slope + step * (1 - slope))
        grad_step = -grad_x * ctx.activation.pull(s, ctx.activation.value(s)) if ctx.needs_input_grad[1] else None
        return grad_x, grad_step, None


def _search(activation: Curved, x: Tensor, step: Tensor, max_steps: int = 60) -> Tensor:
    """Solve g(s) = σ(s) + α(s − σ(s)) = x in every entry by Newton's method, bisecting where it leaves the bracket.

    An entry is frozen once it has converged, so that its answer does not depend on its neighbours.
    """
    start = s = _nan_unless_finite(x)  # a NaN entry counts as converged at once
    # g' ≥ min(1, α) confines the root to between x and x − r / min(1, α), r = g(x) − x. Twice that width, because
    # rounding may push the root just beyond.
    far = s - 2 * (step - 1) * activation.pull(s, activation.value(s)) / step.clamp(max=1)
    low, high = torch.minimum(s, far), torch.maximum(s, far)
    # Newton's error squares in each step, so a step this small, once taken, leaves an error of rounding size. A limit
    # near eps itself would wait for ever where α amplifies the rounding of s − σ(s).
    small = math.sqrt(torch.finfo(x.dtype).eps)
    active = torch.ones_like(x, dtype=torch.bool)
    for _ in range(max_steps):
        value, slope = activation.value(s), activation.slope(s)
        excess = (value - x) + step * activation.pull(s, value)
        low, high = torch.where(excess < 0, s, low), torch.where(excess > 0, s, high)
        newton = s - excess / (slope + step * (1 - slope))
        converged = ~((newton - s).abs() > small * (s.abs() + value.abs()))
        accept = converged | ((low <= newton) & (newton <= high))
        s = torch.where(active, torch.where(accept, newton, (low + high) / 2), s)
        active = active & ~converged
        if not active.any():
            break
    return torch.where(step == 1, start, s)  # exact where the prox is σ itself


class PiecewiseLinear(Activation):
    """An activation given by its prox and the slope of that; a NaN entry of x gives NaN in that entry alone."""

    piecewise_linear: ClassVar[bool] = True

    def value(self, v: Tensor) -> Tensor:
        return self.prox_value(v, 1.0)

    def slope(self, v: Tensor) -> Tensor:
        return self.prox_slope(v, 1.0)
