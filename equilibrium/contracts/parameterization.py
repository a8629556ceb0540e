"""The contract of a parameterisation."""

from __future__ import annotations

import copy
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from contracting.contracts.base import DOUBLE, close, draw, refused, require
from contracting.errors import InputError
from contracting.loop.records import Stop
from equilibrium.layers import EquilibriumLayer
from equilibrium.parameterizations import Parameterization
from equilibrium.weights import NetworkWeights, Weights

_ROWS = 3
_DRAWS = 5  # values of the parameters for which certificates are tested
_PATTERNS = 40  # of active neurons, for each of them
_DIFFERENCE = 1e-6  # of a parameter, in a central difference


class ParameterizationContract(ABC):
    """What every parameterisation promises, for random values of its parameters.

    Bring ``parameterization``; and ``other_settings``, if it has settings.
    """

    @abstractmethod
    def parameterization(self) -> Parameterization:
        """A small one in float64, with values."""

    def other_settings(self) -> Sequence[Parameterization]:
        """Parameterisations with parameters of the same names and shapes that give another map."""
        return ()

    def _drawn(self) -> Iterator[tuple[Parameterization, NetworkWeights, Weights]]:
        """With other values each time, their weights, and these as matrices."""
        for seed in range(_DRAWS):
            free = self.parameterization()
            with torch.no_grad():
                for parameter in free.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.5 * draw(*parameter.shape, seed=seed))
                weights = free.explicit()
                yield free, weights, weights.dense()

    def test_weights_are_of_the_sizes_and_a_function_of_the_parameters(self) -> None:
        free = self.parameterization()
        weights = free.explicit()
        require(isinstance(weights, NetworkWeights), "explicit must return NetworkWeights")
        for name in ("in_features", "hidden_features", "out_features"):
            require(getattr(weights, name) == getattr(free, name), f"{name} of weights and parameterisation must agree")
        _same(weights, free.explicit(), "explicit must not draw anything")

    def test_gradients_are_those_of_the_layer(self) -> None:
        layer = EquilibriumLayer(self.parameterization(), stop=Stop(rtol=1e-12, atol=1e-13))
        x = _inputs(layer.parameterization).requires_grad_()
        moving = [*(p for p in layer.parameters() if p.requires_grad), x]
        along = [draw(*tensor.shape, seed=3 + number) for number, tensor in enumerate(moving)]
        gradients = torch.autograd.grad(layer(x).sin().sum(), moving, allow_unused=True)
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, along, strict=True) if g is not None)
        ends = []
        with torch.no_grad():
            for step in (_DIFFERENCE, -2 * _DIFFERENCE):
                for tensor, change in zip(moving, along, strict=True):
                    tensor += step * change
                ends.append(float(layer(x).sin().sum()))
        expected = (ends[0] - ends[1]) / (2 * _DIFFERENCE)
        same = abs(slope - expected) <= 1e-4 * (1 + abs(expected))
        require(same, f"the gradient along a change of all parameters is {slope}, central differences give {expected}")

    def test_the_metric_certifies_condition_1(self) -> None:
        for _, weights, dense in self._drawn():
            if weights.metric is not None:
                A = weights.metric.weights[:, None] * (torch.eye(dense.hidden_features) - dense.state.to_dense())
                require(torch.linalg.eigvalsh(A + A.mT) > 0, "2Λ − ΛW − WᵀΛ ≻ 0 fails in the metric that is claimed")

    def test_the_lipschitz_constant_is_not_exceeded(self) -> None:
        for _, weights, dense in self._drawn():
            if (gamma := weights.lipschitz) is None:
                continue
            for J in _patterns(dense.hidden_features):
                identity = torch.eye(dense.hidden_features, dtype=DOUBLE)
                inner = torch.linalg.solve(identity - J[:, None] * dense.state.to_dense(), J[:, None] * dense.input)
                gain = dense.output @ inner + (0 if dense.feedthrough is None else dense.feedthrough)
                size = torch.linalg.matrix_norm(gain, 2)
                require(size <= gamma * (1 + 1e-9), f"‖W_o(I − JW)⁻¹JU + D‖ is {float(size)} and exceeds γ")

    def test_the_flows_contract_at_the_rate(self) -> None:
        for _, weights, dense in self._drawn():
            if weights.contraction_rate is None:
                continue
            W, firing_rate, hopfield = dense.state.to_dense(), dense.firing_rate_metric, dense.hopfield_metric
            if firing_rate is None or hopfield is None:
                raise AssertionError("a contraction rate needs the metrics in which it holds")
            for J in _patterns(dense.hidden_features):
                for metric, field in ((firing_rate, J[:, None] * W), (hopfield, W * J)):
                    rate = 1 - float(metric.matrix_measure(field))
                    require(rate >= weights.contraction_rate - 1e-8, f"with slopes of zeros and ones it is {rate}")

    def test_it_moves_and_is_copied_pickled_and_saved(self) -> None:
        free, weights, _ = next(self._drawn())
        loaded = self.parameterization()
        loaded.load_state_dict(free.state_dict())
        for twin in (copy.deepcopy(free), pickle.loads(pickle.dumps(free)), loaded):
            _same(twin.explicit(), weights, "copies, pickles and state dicts must hold all that the weights depend on")
        layer = EquilibriumLayer(self.parameterization().to(torch.float32))
        y = layer(_inputs(layer.parameterization))
        require(y.dtype == torch.float32 and y.shape == (_ROWS, free.out_features), "y must follow the module")

    def test_other_settings_are_refused(self) -> None:
        state = self.parameterization().state_dict()
        for other in self.other_settings():
            for strict in (True, False):
                load = partial(other.load_state_dict, state, strict=strict)
                refused(InputError, load, f"{other} must refuse the state dict of other settings: bring settings")


def _inputs(free: Parameterization) -> Tensor:
    return draw(_ROWS, free.in_features, seed=1).to(free.example)


def _patterns(size: int) -> Tensor:
    draws = torch.rand(_PATTERNS, size, generator=torch.Generator().manual_seed(4), dtype=DOUBLE)
    return torch.cat((draws.round(), torch.ones(1, size, dtype=DOUBLE)))


def _same(one: NetworkWeights, other: NetworkWeights, promise: str) -> None:
    """That both map alike."""
    x, z = draw(_ROWS, one.in_features, seed=5), draw(_ROWS, one.hidden_features, seed=6)
    close(one.state.apply(z), other.state.apply(z), promise, 0.0)
    close(one.input_term(x), other.input_term(x), promise, 0.0)
    close(one.readout(z, x), other.readout(z, x), promise, 0.0)
