"""The contract of a parameterisation: subclass ``ParameterizationContract``, bring one, inherit the tests."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import torch
from torch import Tensor

from contracting.errors import InputError
from contracting.loop.records import Stop
from equilibrium.layers import EquilibriumLayer
from equilibrium.parameterizations import Parameterization
from equilibrium.weights import NetworkWeights, Weights

_ROWS = 3
_DRAWS = 5  # values of the parameters for which certificates are tested
_PATTERNS = 40  # of active neurons, for each of them
_ROUNDING = 1e-9  # relative; float64 leaves it at the sizes of a test
_DIFFERENCE = 1e-6  # of a parameter, in a central difference


class ParameterizationContract:
    """What every parameterisation promises, in float64 and for random values of its parameters.

    Bring ``parameterization``; bring ``other_settings`` as well if it has settings.
    """

    def parameterization(self) -> Parameterization:
        """A small one in float64, with values."""
        raise NotImplementedError("bring parameterization(), which returns a small one of yours in float64")

    def other_settings(self) -> list[Parameterization]:
        """Parameterisations with parameters of the same names and shapes that give another map."""
        return []

    def _drawn(self) -> Iterator[tuple[Parameterization, NetworkWeights, Weights]]:
        """With other values each time, their weights, and these as matrices."""
        for seed in range(_DRAWS):
            free, generator = self.parameterization(), torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in free.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
                weights = free.explicit()
                yield free, weights, weights.dense()

    def test_weights_are_of_the_sizes_and_a_function_of_the_parameters(self) -> None:
        """``explicit`` gives the same numbers twice, of the sizes that were handed to the base class."""
        free = self.parameterization()
        weights, again = free.explicit(), free.explicit()
        assert isinstance(weights, NetworkWeights), "explicit must return NetworkWeights"
        for name in ("in_features", "hidden_features", "out_features"):
            assert getattr(weights, name) == getattr(free, name), f"{name} of the weights must be that of the class"
        assert _same(weights, again), "explicit must not draw anything"

    def test_gradients_are_those_of_the_layer(self) -> None:
        """The derivative of y along random changes of all parameters, by central differences."""
        stop = Stop(rtol=1e-12, atol=1e-13)
        layer = EquilibriumLayer(self.parameterization(), stop=stop)
        x, direction = _inputs(layer.parameterization), _inputs(layer.parameterization, seed=2)
        free = [p for p in layer.parameters() if p.requires_grad]
        generator = torch.Generator().manual_seed(3)
        along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in free] + [direction]
        moving = [*free, x.requires_grad_()]
        gradients = torch.autograd.grad(layer(x).sin().sum(), moving, allow_unused=True)
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, along, strict=True) if g is not None)
        ends = []
        with torch.no_grad():
            for step in (_DIFFERENCE, -2 * _DIFFERENCE):
                for tensor, change in zip(moving, along, strict=True):
                    tensor += step * change
                ends.append(float(layer(x).sin().sum()))
        expected = (ends[0] - ends[1]) / (2 * _DIFFERENCE)
        assert abs(slope - expected) <= 1e-4 * (1 + abs(expected)), f"the gradient is {slope}, differences {expected}"

    def test_the_metric_certifies_condition_1(self) -> None:
        """2Λ − ΛW − WᵀΛ ≻ 0 wherever a metric is claimed."""
        for _, weights, dense in self._drawn():
            if weights.metric is not None:
                A = torch.diag(weights.metric.weights) @ (torch.eye(dense.hidden_features) - dense.state.to_dense())
                assert float(torch.linalg.eigvalsh(A + A.mT)[0]) > 0, "Condition 1 fails in the metric that is claimed"

    def test_the_lipschitz_constant_is_not_exceeded(self) -> None:
        """‖W_o(I − JW)⁻¹JU + D‖ ≤ γ for slopes J of zeros and ones."""
        for _, weights, dense in self._drawn():
            if weights.lipschitz is None:
                continue
            for J in _patterns(dense.hidden_features):
                identity = torch.eye(dense.hidden_features, dtype=J.dtype)
                inner = torch.linalg.solve(identity - J[:, None] * dense.state.to_dense(), J[:, None] * dense.input)
                gain = dense.output @ inner + (0 if dense.feedthrough is None else dense.feedthrough)
                size = float(torch.linalg.matrix_norm(gain, 2))
                assert size <= float(weights.lipschitz) * (1 + _ROUNDING), f"a gain of {size} exceeds γ"

    def test_the_flows_contract_at_the_rate(self) -> None:
        """sym(P(JW − I)) ⪯ −cP for the firing rate, and for WJ in its own metric, for slopes J of zeros and ones."""
        for _, weights, dense in self._drawn():
            if weights.contraction_rate is None:
                continue
            W, metrics = dense.state.to_dense(), (dense.firing_rate_metric, dense.hopfield_metric)
            assert all(metrics), "a contraction rate needs the metrics in which it holds"
            for J in _patterns(dense.hidden_features):
                for metric, field in zip(metrics, (J[:, None] * W, W * J), strict=True):
                    assert metric is not None
                    root = torch.linalg.cholesky(metric.matrix).mT
                    seen = torch.linalg.solve_triangular(root, root @ field, upper=True, left=False)
                    rate = 1 - float(torch.linalg.eigvalsh((seen + seen.mT) / 2)[-1])
                    assert rate >= weights.contraction_rate - 1e-8, f"the rate is {rate}"

    def test_it_moves_and_is_copied_pickled_and_saved(self) -> None:
        """Other precisions, copies, pickles and state dicts give the same weights."""
        free, weights, _ = next(self._drawn())
        for twin in (copy.deepcopy(free), pickle.loads(pickle.dumps(free))):
            assert _same(twin.explicit(), weights), "a copy must give the same weights"
        loaded = self.parameterization()
        loaded.load_state_dict(free.state_dict())
        assert _same(loaded.explicit(), weights), "a state dict must hold all that the weights depend on"
        layer = EquilibriumLayer(self.parameterization().to(torch.float32))
        y = layer(_inputs(layer.parameterization))
        assert y.dtype == torch.float32 and y.shape == (_ROWS, free.out_features), "y must follow the module"

    def test_other_settings_are_refused(self) -> None:
        """A state dict of another map is no state dict of this one, whether loading is strict or not."""
        state = self.parameterization().state_dict()
        for other in self.other_settings():
            for strict in (True, False):
                try:
                    other.load_state_dict(state, strict=strict)
                except InputError:
                    continue
                raise AssertionError(f"{other} must refuse the state dict of other settings")


def _inputs(free: Parameterization, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(_ROWS, free.in_features, generator=generator, dtype=torch.float64).to(free.example)


def _patterns(size: int) -> Tensor:
    draws = torch.rand(_PATTERNS, size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return torch.cat((draws.round(), torch.ones(1, size, dtype=torch.float64)))


def _same(one: NetworkWeights, other: NetworkWeights) -> bool:
    """Whether both map alike."""
    generator = torch.Generator().manual_seed(5)
    x, z = (
        torch.randn(_ROWS, size, generator=generator, dtype=torch.float64)
        for size in (one.in_features, one.hidden_features)
    )
    values = [(w.state.apply(z), w.input_term(x), w.readout(z, x)) for w in (one, other)]
    return all(torch.equal(mine, theirs) for mine, theirs in zip(*values, strict=True))
