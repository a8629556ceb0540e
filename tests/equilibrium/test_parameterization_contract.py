"""Every parameterisation of the library keeps the contract, and one that brings only what is documented."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from contracting import ReLU, Tanh
from contracting.errors import InputError
from contracting.flows.network import FiringRate
from contracting.maps.dense import Dense
from contracting.metrics import WeightedL2
from equilibrium import (
    LBEN,
    NEMON,
    Contractive,
    EquilibriumLayer,
    Monotone,
    Parameterization,
    Unconstrained,
    Weights,
    from_weights,
)
from equilibrium.contracts import ParameterizationContract
from equilibrium.convolution import ContractiveConv2d, LBENConv2d, MultiScaleConv2d

D = torch.float64


class TestMonotone(ParameterizationContract):
    """All options at once."""

    options = {"lipschitz": 0.7, "contraction_rate": 0.3, "epsilon": 0.1, "learn_lipschitz": True}

    def parameterization(self) -> Parameterization:
        return Monotone(3, 5, 2, dtype=D, **self.options)  # type: ignore[arg-type]

    def other_settings(self) -> list[Parameterization]:
        others = {"epsilon": 0.2}, {"contraction_rate": None}, {"contraction_rate": 0.0}
        return [Monotone(3, 5, 2, dtype=D, **{**self.options, **other}) for other in others]  # type: ignore[arg-type]


class TestMonotoneWithFeedthrough(ParameterizationContract):
    """Where ‖D‖ < γ is part of the parameterisation."""

    def parameterization(self) -> Parameterization:
        return Monotone(3, 5, 2, lipschitz=2.0, feedthrough=True, dtype=D)

    def other_settings(self) -> list[Parameterization]:
        return [
            Monotone(3, 5, 2, lipschitz=2.0, feedthrough=True, epsilon=0.5, dtype=D),
            Monotone(3, 5, 2, feedthrough=True, dtype=D),
            Monotone(3, 5, 2, lipschitz=2.0, dtype=D),
            Monotone(3, 5, 2, lipschitz=2.0, feedthrough=True, learn_metric=False, dtype=D),
        ]


class TestNEMON(ParameterizationContract):
    """Contracting in a weighted maximum norm."""

    def parameterization(self) -> Parameterization:
        return NEMON(3, 5, 2, feedthrough=True, dtype=D)

    def other_settings(self) -> list[Parameterization]:
        others = {"epsilon": 0.2}, {"learn_metric": False}, {"feedthrough": False}
        return [NEMON(3, 5, 2, dtype=D, **{"feedthrough": True, **other}) for other in others]  # type: ignore[arg-type]


class TestContractive(ParameterizationContract):
    """Rate and bound, which is learnt."""

    options = {"lipschitz": 0.7, "contraction_rate": 0.3, "learn_lipschitz": True}

    def parameterization(self) -> Parameterization:
        return Contractive(3, 5, 2, dtype=D, **self.options)  # type: ignore[arg-type]

    def other_settings(self) -> list[Parameterization]:
        other = Contractive(3, 5, 2, dtype=D, **{**self.options, "contraction_rate": 0.1})  # type: ignore[arg-type]
        return [other, Monotone(3, 5, 2, dtype=D, **self.options)]  # type: ignore[arg-type]


class TestContractiveWithFeedthrough(ParameterizationContract):
    """Where ‖D‖ < γ is part of the parameterisation, and c = 0."""

    def parameterization(self) -> Parameterization:
        return Contractive(3, 5, 2, lipschitz=2.0, feedthrough=True, dtype=D)

    def other_settings(self) -> list[Parameterization]:
        return [Contractive(3, 5, 2, lipschitz=2.0, dtype=D), Contractive(3, 5, 2, feedthrough=True, dtype=D)]


class TestContractiveWithoutBound(ParameterizationContract):
    """The rate alone, in a metric that is given."""

    def parameterization(self) -> Parameterization:
        return Contractive(3, 5, 2, contraction_rate=0.8, learn_metric=False, dtype=D)


class TestUnconstrained(ParameterizationContract):
    """Nothing is claimed."""

    def parameterization(self) -> Parameterization:
        return Unconstrained(3, 5, 2, feedthrough=True, dtype=D)


class TestExplicit(ParameterizationContract):
    """Given weights."""

    def parameterization(self) -> Parameterization:
        torch.manual_seed(0)
        return from_weights(LBEN(3, 5, 2, dtype=D).weights()).parameterization


class TestConvolutional(ParameterizationContract):
    """On images, with a bound and a rate."""

    def made(self, **options: object) -> Parameterization:
        options = {"lipschitz": 0.8, "contraction_rate": 0.2, "image": (4, 4), **options}
        return LBENConv2d(1, 2, 2, dtype=D, **options).parameterization  # type: ignore[arg-type]

    def parameterization(self) -> Parameterization:
        return self.made()

    def other_settings(self) -> list[Parameterization]:
        others = {"epsilon": 0.1}, {"lipschitz": 0.5}, {"contraction_rate": 0.1}, {"border": 0, "image": (6, 6)}
        return [self.made(**other) for other in others]  # type: ignore[arg-type]


class TestConvolutionalContractive(ParameterizationContract):
    """On images, with a rate, and a bound whose readout is seen as it is."""

    def made(self, **options: object) -> Parameterization:
        options = {"lipschitz": 0.8, "contraction_rate": 0.2, "image": (4, 4), "stride": 2, "pool": 2, **options}
        return ContractiveConv2d(1, 2, 2, dtype=D, **options).parameterization  # type: ignore[arg-type]

    def parameterization(self) -> Parameterization:
        return self.made()

    def other_settings(self) -> list[Parameterization]:
        others = {"lipschitz": 0.5}, {"lipschitz": None}, {"contraction_rate": 0.1}, {"border": 0, "image": (8, 8)}
        return [self.made(**other) for other in others]  # type: ignore[arg-type]


class TestMultiScale(ParameterizationContract):
    """Two resolutions."""

    def parameterization(self) -> Parameterization:
        return MultiScaleConv2d(1, (1, 2), 2, image=(4, 4), lipschitz=0.8, dtype=D).parameterization


class OwnMap(Parameterization):
    """z = σ(aSz + Bx), ‖aS‖ < 1 for a skew S of two entries: no parameter is called as one of ours is."""

    def __init__(self, in_features: int, *, gain: float = 1.0, dtype: torch.dtype | None = None):
        super().__init__(in_features, 2, 2, dtype=dtype)
        self.gain = gain
        self.twist = self.new_parameter()
        self.mix = nn.Parameter(torch.linspace(-1, 1, 2 * in_features, dtype=dtype).reshape(2, in_features))
        nn.init.constant_(self.twist, 0.3)

    @property
    def settings(self) -> dict[str, float]:
        return {"gain": self.gain}

    def explicit(self) -> Weights:
        zero = torch.zeros_like(self.twist)
        W = self.gain * self.twist.tanh() * torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).to(zero)
        return Weights(
            state=Dense(W),
            input=self.mix,
            bias=1 + zero.expand(2),
            output=torch.eye(2).to(zero),
            output_bias=zero.expand(2),
            metric=WeightedL2(torch.ones(2).to(zero)),
        )


class TestOwn(ParameterizationContract):
    """What is documented is enough."""

    def parameterization(self) -> Parameterization:
        return OwnMap(3, dtype=D)

    def other_settings(self) -> list[Parameterization]:
        return [OwnMap(3, gain=0.5, dtype=D)]


def test_a_parameterisation_that_brings_only_what_is_documented_makes_a_layer() -> None:
    """The layer, its flows, its training and its input checks ask for nothing else."""
    layer = EquilibriumLayer(OwnMap(3, dtype=D))
    layer(torch.randn(2, 4, 3, dtype=D)).sum().backward()
    assert layer.parameterization.twist.grad != 0
    assert layer.flow(FiringRate).problem.q.shape == (1, 2)
    with pytest.raises(InputError, match=r"\bx\b"):
        layer(torch.randn(2, 3))
    assert layer.float()(torch.randn(2, 3)).dtype == torch.float32


def test_the_contract_notices_what_is_broken() -> None:
    class Claims(OwnMap):
        def explicit(self) -> Weights:
            weights = super().explicit()
            object.__setattr__(weights, "lipschitz", 0.1 * self.mix.new_ones(()))
            object.__setattr__(weights, "state", Dense(3 * torch.eye(2).to(self.mix)))
            return weights

    class Forgets(OwnMap):
        settings = {}  # type: ignore[assignment]

    class Cuts(OwnMap):
        def explicit(self) -> Weights:
            weights = super().explicit()
            object.__setattr__(weights, "state", Dense(weights.state.to_dense().detach()))
            return weights

    def broken(made: type[OwnMap]) -> ParameterizationContract:
        class Suite(ParameterizationContract):
            def parameterization(self) -> Parameterization:
                return made(3, dtype=D)

            def other_settings(self) -> list[Parameterization]:
                return [made(3, gain=0.5, dtype=D)]

        return Suite()

    for test in ("test_the_metric_certifies_condition_1", "test_the_lipschitz_constant_is_not_exceeded"):
        with pytest.raises(AssertionError):
            getattr(broken(Claims), test)()
    with pytest.raises(AssertionError):
        broken(Forgets).test_other_settings_are_refused()
    with pytest.raises(AssertionError):
        broken(Cuts).test_gradients_are_those_of_the_layer()


def test_the_state_dict_of_another_map_is_refused_before_anything_is_copied() -> None:
    layer = LBEN(3, 5, 2, lipschitz=1.0, epsilon=0.1)
    model = nn.Sequential(nn.Linear(3, 3), layer)
    others = (
        LBEN(3, 5, 2, lipschitz=1.0),
        LBEN(3, 5, 2, lipschitz=1.0, contraction_rate=0.1),
        LBEN(3, 5, 2, lipschitz=1.0, epsilon=0.1, activation=Tanh()),
    )
    for other, name in zip(others, ("epsilon", "contraction_rate", "activation"), strict=True):
        before = copy.deepcopy(other.state_dict())
        for strict in (True, False):
            with pytest.raises(InputError, match=rf"\b{name}\b"):
                other.load_state_dict(layer.state_dict(), strict=strict)
            with pytest.raises(InputError, match=rf"\b{name}\b"):
                nn.Sequential(nn.Linear(3, 3), other).load_state_dict(model.state_dict(), strict=strict)
        assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())
    x = torch.randn(2, 3)
    same = LBEN(3, 5, 2, lipschitz=5.0, epsilon=0.1, activation=ReLU())
    same.load_state_dict({key: value.clone() for key, value in layer.state_dict().items()})
    assert torch.equal(same(x), layer(x))
    averaged = torch.optim.swa_utils.AveragedModel(layer)
    averaged.update_parameters(layer)
    torch.optim.swa_utils.AveragedModel(same).load_state_dict(averaged.state_dict())


def test_state_dicts_can_be_averaged_and_cast_by_hand() -> None:
    models = [LBEN(3, 5, 2, lipschitz=1.0, epsilon=0.1) for _ in range(3)]
    entries = [model.state_dict() for model in models]
    soup = {key: sum(state[key] for state in entries) / 3 for key in entries[0]}
    moving = {key: 0.9 * entries[0][key] + 0.1 * entries[1][key] for key in entries[0]}
    half = {key: value.half() for key, value in entries[0].items()}
    for state in (soup, moving, half):
        models[0].load_state_dict(state)
        with pytest.raises(InputError, match="epsilon"):
            LBEN(3, 5, 2, lipschitz=1.0).load_state_dict(state)
    other = LBEN(3, 5, 2, lipschitz=1.0, epsilon=0.3).state_dict()
    with pytest.raises(InputError):
        models[0].load_state_dict({key: (entries[0][key] + other[key]) / 2 for key in other})


def test_a_state_dict_of_an_earlier_version_loads_with_a_warning() -> None:
    layer, other = LBEN(3, 5, 2), LBEN(3, 5, 2)
    old = {key: value for key, value in layer.state_dict().items() if not key.endswith("_extra_state")}
    with pytest.warns(UserWarning) as seen:
        other.load_state_dict(old)
    assert any("epsilon" in str(warning.message) for warning in seen)
    x = torch.randn(2, 3)
    assert torch.equal(other(x), layer(x))
    with warnings.catch_warnings():
        other.load_state_dict({}, strict=False)  # says nothing about this layer
