"""The contract of activations: all of the library's keep it, one of one's own does, and what lies cannot be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from contracting.activations import names, verification
from contracting.activations.base import Activation, Curved, PiecewiseLinear
from contracting.activations.blockwise import Blockwise, joined
from contracting.activations.catalogue import ADMISSIBLE, ELU, HardTanh, LeakyReLU, ReLU, Slope, Softplus, Tanh
from contracting.activations.clamped import Clamped
from contracting.activations.names import activation_named, as_activation, register_activation
from contracting.activations.sheared import _FUNCTIONS, Sheared
from contracting.contracts import ActivationContract
from contracting.errors import InputError
from contracting.types import Slopes, Step


def suite(activation: Activation) -> type[ActivationContract]:
    return type("TestActivation", (ActivationContract,), {"activation": lambda self: activation})


@dataclass(frozen=True, kw_only=True)
class Half(Curved):
    """The least that a curved activation may bring: σ(v) = ½ sin-like ramp, v/2 + sin(v)/4."""

    slopes = Slopes(0.25, 0.75)

    def value(self, v: Tensor) -> Tensor:
        return v / 2 + torch.sin(v) / 4

    def slope(self, v: Tensor) -> Tensor:
        return 0.5 + torch.cos(v) / 4


@dataclass(frozen=True, eq=False, kw_only=True)
class PerNeuron(PiecewiseLinear):
    """One whose entries differ: a leaky ReLU with a slope below zero for each neuron."""

    leaks: Tensor
    slopes = (0.0, 1.0)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.leaks,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> PerNeuron:
        return PerNeuron(leaks=tensors[0])

    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        return self.prox_slope(x, step) * x

    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        return torch.where(x > 0, 1.0, self.leaks / (step + (1 - step) * self.leaks))


OWN = PerNeuron(leaks=torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64))
EVERY = (
    *ADMISSIBLE, LeakyReLU(negative_slope=0.3), Softplus(beta=4.0), ELU(alpha=0.3), Half(), OWN,
    Slope(slopes=torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)),
    Clamped(inner=Tanh(), free=torch.tensor([True, False, True, True])),
    *(Sheared(function=name) for name in _FUNCTIONS),
    Blockwise(parts=(Tanh(), ReLU()), sizes=(1, 3)), Blockwise(parts=(HardTanh(), ReLU()), sizes=(2, 2)),
)  # fmt: skip
for _number, _activation in enumerate(EVERY):
    globals()[f"Test{type(_activation).__name__}{_number}"] = suite(_activation)


class Steep(Half):
    """The activation of the issue, on which a certificate of 0.9967 was false: 1.5455 is attained."""

    slopes = Slopes(0.0, 1.0)

    def value(self, v: Tensor) -> Tensor:
        return 3 * torch.tanh(v)

    def slope(self, v: Tensor) -> Tensor:
        return 3 * (1 - torch.tanh(v) ** 2)


class Narrow(Half):
    slopes = Slopes(0.3, 0.7)


class Hidden(Steep):
    """Steep, with a derivative that does not say so."""

    def slope(self, v: Tensor) -> Tensor:
        return 1 - torch.tanh(v) ** 2


class Flat(Half):
    """A derivative within the interval, and not that of σ."""

    def slope(self, v: Tensor) -> Tensor:
        return torch.full_like(v, 0.5)


class Falling(Half):
    slopes = Slopes(-0.25, 0.75)


class Unproximal(Half):
    """σ in place of the prox, for every step."""

    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        return self.value(x)


class Missing(Half):
    """A prox with the slope of another."""

    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        return self.slope(x)


class Late(Tanh):
    """Admissible in the middle, steeper far out."""

    def value(self, v: Tensor) -> Tensor:
        return torch.tanh(v) + 2 * torch.relu(v - 300)


class Bent(Half):
    homogeneous = True


class Undefined(Tanh):
    def value(self, v: Tensor) -> Tensor:
        return torch.where(v < -15, torch.nan, torch.tanh(v))


LIARS = (Steep, Narrow, Hidden, Flat, Falling, Unproximal, Missing, Late, Bent, Undefined)


@pytest.mark.parametrize("kind", LIARS, ids=lambda kind: kind.__name__)
def test_what_is_no_proximal_operator_cannot_be_made(kind: type[Half]) -> None:
    with pytest.raises(InputError):
        kind()


def test_one_bad_neuron_is_enough() -> None:
    with pytest.raises(InputError, match=r"\bslopes\b"):
        PerNeuron(leaks=torch.tensor([0.1, 1.3], dtype=torch.float64))
    assert PerNeuron(leaks=torch.tensor([0.1, 0.3], dtype=torch.float32)).leaks.dtype == torch.float32


def test_slopes_have_to_be_stated() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Silent(Curved):
        def value(self, v: Tensor) -> Tensor:
            return torch.tanh(v)

        def slope(self, v: Tensor) -> Tensor:
            return 1 - torch.tanh(v) ** 2

    with pytest.raises(TypeError, match=r"\bslopes\b"):
        Silent()  # type: ignore[abstract]


def test_verification_does_not_depend_on_the_surroundings() -> None:
    with torch.device("meta"), torch.inference_mode():
        assert Softplus(beta=7.75).slopes == (0.0, 1.0)
        with pytest.raises(InputError, match=r"\bslopes\b"):
            Steep()


def test_equal_settings_are_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(verification, "_verify", seen.append)
    verification._verify_once.cache_clear()
    for beta in (2.0, 2.0, 3.0, 2.0):
        Softplus(beta=beta)
    assert seen == [Softplus(beta=2.0), Softplus(beta=3.0)]


def test_an_own_activation_is_taken_by_its_class_and_once_registered_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class CELU(Half):
        """As torch has one of that name, which the catalogue lacks."""

    monkeypatch.setattr(names, "_NAMED", dict(names._NAMED))
    assert as_activation(CELU) == CELU()
    for refused in (CELU, nn.CELU(), "celu", Tanh()):  # a class, a module, a name, and what is taken
        with pytest.raises(InputError, match=r"\bactivation\b"):
            register_activation(refused)  # type: ignore[arg-type]
    own = register_activation(CELU())
    assert activation_named("celu") is as_activation(nn.CELU()) is own
    with pytest.raises(InputError, match=r"\bPerNeuron\b"):
        as_activation(PerNeuron)


def test_blocks_of_neurons_know_their_slopes_and_their_parts() -> None:
    leaky, half = LeakyReLU(negative_slope=0.3), Slope(slopes=torch.full((2,), 0.5, dtype=torch.float64))
    clamped = Clamped(inner=leaky, free=torch.tensor([True, False]))
    activation = joined([(leaky, 1), (leaky, 1), (half, 2), (clamped, 2)])
    assert isinstance(activation, Blockwise) and activation.sizes == (2, 2, 2)
    low, high = activation.slope_intervals(6)
    assert low.tolist() == [0.3, 0.3, 0.5, 0.5, 0.3, 0.0] and high.tolist() == [1.0, 1.0, 0.5, 0.5, 1.0, 0.0]
    v = torch.linspace(-3, 2, 6, dtype=torch.float64)[None]
    for start, stop in ((0, 2), (1, 3), (1, 6), (4, 5), (0, 6)):
        assert torch.equal(activation.neurons(start, stop)(v[:, start:stop]), activation(v)[:, start:stop])
    assert activation.neurons(0, 2) == leaky and joined([(leaky, 3), (leaky, 2)]) == leaky
    with pytest.raises(InputError, match="neurons"):
        OWN.neurons(0, 2)
    for parts, sizes in (((), ()), ((leaky,), (1, 2)), ((leaky,), (0,)), ((torch.tanh,), (1,))):
        with pytest.raises(InputError, match="sizes|parts"):
            Blockwise(parts=parts, sizes=sizes)
    with pytest.raises(InputError, match="v"):
        activation(v[:, :5])
