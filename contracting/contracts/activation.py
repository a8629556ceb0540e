"""The contract of an activation: subclass ``ActivationContract``, bring two factories, inherit the tests."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import Tensor

from contracting.activations.base import Activation

_STEPS = (1e-2, 0.3, 1.0, 5.0, 1e2)


class ActivationContract:
    """What every activation promises, on pre-activations that its own curvature is seen at.

    * ``activation()``: the activation.
    * ``points()``: pre-activations (batch, n) in float64, none of them at a kink of σ; by default 20 in [−5, 5] for
      each of n = 4 neurons.

    >>> class TestMine(ActivationContract):
    ...     def activation(self):
    ...         return Mine()
    """

    def activation(self) -> Activation:
        """The activation."""
        raise NotImplementedError("bring activation(), which returns the activation")

    def points(self) -> Tensor:
        """Pre-activations, (batch, n)."""
        return 10 * torch.rand(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 5

    def test_it_is_what_it_says(self) -> None:
        """Slopes in their interval, and the prox that of σ, on a fine grid."""
        self.activation().verify()
        low, high = self.activation().slopes
        slopes = self.activation().derivative(self.points())
        assert bool(((slopes >= low) & (slopes <= high)).all()), "derivative must lie in slopes"

    def test_the_prox_minimises(self) -> None:
        """With step 1 it is σ, and σ takes p + (x − p)/α back to p."""
        activation, x = self.activation(), self.points()
        _close(activation.prox(x, 1.0), activation(x), 1e-13, "prox with step 1 must be σ")
        per_neuron = torch.logspace(-1, 1, x.shape[-1], dtype=x.dtype)
        for step in (*_STEPS, torch.tensor(0.3, dtype=x.dtype), per_neuron, per_neuron.expand_as(x)):
            p = activation.prox(x, step)
            _close(activation(p + (x - p) / step), p, 1e-7, "prox must be the point whose subgradient is (x − p)/α")
            slope = activation.prox_derivative(x, step)
            assert bool(((slope >= 0) & (slope <= 1)).all()), "the slope of a prox lies in [0, 1]"

    def test_derivatives_are_those_of_autograd(self) -> None:
        """σ' and the slope of the prox, and autograd through both."""
        activation, v = self.activation(), self.points().requires_grad_()
        (found,) = torch.autograd.grad(activation(v).sum(), v)
        _close(activation.derivative(v.detach()), found, 1e-9, "derivative must be σ'")
        for step in _STEPS:
            (found,) = torch.autograd.grad(activation.prox(v, step).sum(), v)
            _close(activation.prox_derivative(v.detach(), step), found, 1e-6, "prox_derivative must be that of prox")
        if activation.piecewise_linear:
            assert not activation.derivative(v).requires_grad, "σ' of a piecewise linear σ is constant in v"
        else:
            (second,) = torch.autograd.grad(activation.derivative(v).sum(), v)
            assert bool(second.isfinite().all()), "σ' of a curved σ must be differentiable in v"

    def test_reflections_are_those_of_the_prox(self) -> None:
        """R = 2prox − I, into a place of its own and from a base point."""
        activation, x = self.activation(), self.points()
        for step in (0.3, 1.0, 5.0):
            reflect, expected = activation.reflection(step), 2 * activation.prox(x, step) - x
            out = torch.empty_like(x)
            _close(reflect(x), expected, 1e-12, "reflection must be 2prox − I")
            reflect(x, out)
            _close(out, expected, 1e-12, "reflection(x, out) must write into out")
            d, size = 0.1 * x.flip(0), torch.full((len(x), 1), 0.5, dtype=x.dtype)
            change = activation.reflection_from(x, size, step, torch.float32)(d.float(), torch.empty_like(d.float()))
            wanted = (reflect(x + size * d) - expected) / size
            _close(change.double(), wanted, 1e-5, "reflection_from must be the change of the reflection")

    def test_homogeneity_is_as_claimed(self) -> None:
        """σ(tv) = tσ(v) for t > 0 where that is said."""
        activation, v = self.activation(), self.points()
        if activation.homogeneous:
            _close(activation(3 * v), 3 * activation(v), 1e-12, "σ is said to be homogeneous")

    def test_precision_and_bad_entries(self) -> None:
        """float32 in, float32 out; a NaN stays where it is; an empty batch passes."""
        activation, x = self.activation(), self.points()
        if not activation.tensors():
            single = activation.prox(x.float(), 0.3)
            assert single.dtype == torch.float32, "the dtype is that of the argument"
            _close(single.double(), activation.prox(x, 0.3), 1e-4, "float32 must be the same to its rounding")
        spoiled = x.clone()
        spoiled[1, 0] = torch.nan
        for found in (activation(spoiled), activation.prox(spoiled, 0.3)):
            assert bool((found.isnan() == spoiled.isnan()).all()), "a NaN must stay in its entry alone"
        assert activation.prox(x[:0], 0.3).shape == x[:0].shape, "an empty batch must pass"

    def test_copies_and_other_tensors_are_the_same_activation(self) -> None:
        """with_tensors(tensors()), rows, deep copies and pickles."""
        activation, x = self.activation(), self.points()
        for twin in (
            activation.with_tensors(activation.tensors()),
            copy.deepcopy(activation),
            pickle.loads(pickle.dumps(activation)),
        ):
            assert torch.equal(twin.prox(x, 0.3), activation.prox(x, 0.3)), "a copy must be the same activation"
            assert twin.slopes == activation.slopes
        some = torch.tensor([0, 2])
        _close(activation.rows(some)(x[some]), activation(x)[some], 1e-14, "rows must be those of the batch")


def _close(found: Tensor, expected: Tensor, tolerance: float, promise: str) -> None:
    assert found.shape == expected.shape, f"{promise}: its shape is {tuple(found.shape)}, not {tuple(expected.shape)}"
    miss = float(((found - expected).abs() / (1 + expected.abs())).max())
    assert miss <= tolerance, f"{promise}: it is off by {miss:.1e}"
