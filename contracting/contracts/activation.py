"""The contract of an activation."""

from __future__ import annotations

import copy
import pickle
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.contracts.base import DOUBLE, close, require

_STEPS = (1e-2, 0.3, 1.0, 5.0, 1e2)


class ActivationContract(ABC):
    """What every activation promises, besides what its constructor tries: that σ is the prox that it says.

    Bring ``activation``; and ``points``, if σ has other than 4 neurons, or a kink at a point.
    """

    @abstractmethod
    def activation(self) -> Activation:
        """The activation to be tested."""

    def points(self) -> Tensor:
        """Pre-activations in float64, (batch, n), of which none is at a kink of σ."""
        return 10 * torch.rand(20, 4, generator=torch.Generator().manual_seed(0), dtype=DOUBLE) - 5

    def test_the_prox_has_every_kind_of_step(self) -> None:
        activation, x = self.activation(), self.points()
        activation.verify()
        close(activation.prox(x, 1.0), activation(x), "prox with step 1 must be σ", 1e-13)
        per_neuron = torch.logspace(-1, 1, x.shape[-1], dtype=DOUBLE)
        for step in (*_STEPS, torch.tensor(0.3, dtype=DOUBLE), per_neuron, per_neuron.expand_as(x)):
            p, slope = activation.prox(x, step), activation.prox_derivative(x, step)
            close(activation(p + (x - p) / step), p, "prox must be the point whose subgradient is (x − p)/α", 1e-7)
            require((slope >= 0) & (slope <= 1), "the slope of a prox lies in [0, 1]")
        if activation.homogeneous:
            close(activation(3 * x), 3 * activation(x), "σ is said to be homogeneous", 1e-12)

    def test_derivatives_are_those_of_autograd(self) -> None:
        activation, v = self.activation(), self.points().requires_grad_()
        derivative = activation.derivative(v)
        (found,) = torch.autograd.grad(activation(v).sum(), v)
        close(derivative, found, "derivative must be σ'")
        for step in _STEPS:
            (found,) = torch.autograd.grad(activation.prox(v, step).sum(), v)
            close(activation.prox_derivative(v, step), found, "prox_derivative must be that of prox", 1e-6)
        if activation.piecewise_linear:
            require(not derivative.requires_grad, "σ' of a piecewise linear σ is constant in v")
        else:
            (second,) = torch.autograd.grad(derivative.sum(), v)
            require(second.isfinite(), "σ' of a curved σ must be differentiable in v")

    def test_reflections_are_those_of_the_prox(self) -> None:
        activation, x = self.activation(), self.points()
        d, size = 0.1 * x.flip(0), torch.full((len(x), 1), 0.5, dtype=DOUBLE)
        for step in (0.3, 1.0, 5.0):
            reflect, expected, out = activation.reflection(step), 2 * activation.prox(x, step) - x, torch.empty_like(x)
            reflect(x, out=out)
            by_neuron = x.mT.contiguous().mT  # as images lie in memory
            for found in (reflect(x), out, reflect(by_neuron, out=torch.empty_like(by_neuron))):
                close(found, expected, "reflection(x) and reflection(x, out) must be 2prox − I", 1e-12)
            change = activation.reflection_from(x, size, step, torch.float32)(d.float(), torch.empty_like(d).float())
            wanted = (reflect(x + size * d) - expected) / size
            close(change.double(), wanted, "reflection_from must be the change of the reflection", 1e-5)

    def test_precision_and_bad_entries(self) -> None:
        activation, x = self.activation(), self.points()
        if not activation.tensors():
            single = activation.prox(x.float(), 0.3)
            require(single.dtype == torch.float32, "the dtype must be that of the argument")
            close(single.double(), activation.prox(x, 0.3), "float32 must be the same to its rounding", 1e-4)
        spoiled = x.clone()
        spoiled[1, 0] = torch.nan
        for found in (activation(spoiled), activation.prox(spoiled, 0.3)):
            require(found.isnan() == spoiled.isnan(), "a NaN must stay in its entry alone")
        require(activation.prox(x[:0], 0.3).shape == x[:0].shape, "an empty batch must pass")

    def test_copies_are_the_same_activation(self) -> None:
        activation, x, some = self.activation(), self.points(), torch.tensor([0, 2])
        copies = copy.deepcopy(activation), pickle.loads(pickle.dumps(activation))
        for twin in (activation.with_tensors(activation.tensors()), *copies):
            close(twin.prox(x, 0.3), activation.prox(x, 0.3), "a copy, or with_tensors(tensors()), must be equal", 0.0)
            require(twin.slopes == activation.slopes, "a copy must have the same slopes")
        close(activation.rows(some)(x[some]), activation(x)[some], "rows must be those of the batch", 1e-14)
