"""Rate, gain and passivity hold for every value of the parameters: by the independent checker, and seen in signals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from contracting import (
    Certificate,
    CertificateError,
    ContractingODE,
    FixedStep,
    LeakyReLU,
    Passive,
    ReLU,
    ZeroOrderHold,
    check,
)
from contracting.certificates.lure.records import Dissipation, GainCertificate, PassivityCertificate, check_dissipation

DOUBLE = torch.float64
OPTIONS: list[dict[str, Any]] = [
    {},
    {"lipschitz": 0.5},
    {"lipschitz": 2.0, "feedthrough": True},
    {"passive": True},
    {"passive": Passive(output=0.3), "lipschitz": 2.0},
    {"passive": Passive(input=0.2), "feedthrough": True},
    {"passive": Passive(input=0.2, output=0.4), "feedthrough": True},
]


def made(seed: int, scale: float | None, **options: Any) -> ContractingODE:
    torch.manual_seed(seed)
    layer = ContractingODE(2, 3, 5, 2, **{"dtype": DOUBLE, "activation": ReLU(), "contraction_rate": 0.3, **options})
    if scale is not None:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(scale * torch.randn_like(parameter))
            layer.parameterization.log_multiplier.clamp_(-3, 3)
    return layer


def named(options: dict[str, Any]) -> str:
    return ",".join(options) or "rate"


@pytest.mark.parametrize("options", OPTIONS, ids=named)
@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("scale", [None, 1e-3, 1.0, 30.0])
def test_what_is_promised_passes_the_checker(options: dict[str, Any], feedback: bool, scale: float | None) -> None:
    layer = made(0, scale, feedback=feedback, **options)
    found, system = layer.certificates(), layer.system()
    asked = {Certificate: True, GainCertificate: "lipschitz" in options, PassivityCertificate: "passive" in options}
    assert [type(certificate) for certificate in found] == [kind for kind, wanted in asked.items() if wanted]
    for certificate in found:
        assert certificate.rate == 0.3 and certificate.margin > 0
        if isinstance(certificate, Certificate):
            check(certificate, system)
        else:
            check_dissipation(certificate, system)
        if isinstance(certificate, PassivityCertificate):
            # without a feedthrough rounded numbers are passive up to a little
            assert certificate.input_index >= layer.parameterization.passive.input - 1e-6  # type: ignore[union-attr]


@pytest.mark.parametrize("options", OPTIONS, ids=named)
def test_less_is_not_certified(options: dict[str, Any]) -> None:
    """X and ε are small here, so that there is nothing to give away."""
    layer = made(0, 0.3, epsilon=1e-6, **options)
    with torch.no_grad():
        layer.parameterization.X.mul_(1e-3)  # type: ignore[operator, union-attr]
    system = layer.system()
    for certificate in layer.certificates():
        assert certificate.multiplier is not None
        changed: list[Certificate | Dissipation] = [
            replace(certificate, multiplier=certificate.multiplier * torch.linspace(0.5, 1, 5, dtype=DOUBLE))
        ]
        if len(layer.certificates()) == 1:  # what is promised besides leaves something to the rate
            changed.append(replace(certificate, rate=certificate.rate + 0.05))
        if isinstance(certificate, GainCertificate) and "passive" not in options:
            changed.append(replace(certificate, gain=0.95 * certificate.gain))
        if isinstance(certificate, PassivityCertificate):
            changed.append(replace(certificate, input_index=certificate.input_index + 0.05))
        for wrong in changed:
            with pytest.raises(CertificateError):
                if isinstance(wrong, Certificate):
                    check(wrong, system)
                else:
                    check_dissipation(wrong, system)


def test_float32_claims_only_what_it_proves() -> None:
    assert len(made(1, 30.0, dtype=torch.float32, lipschitz=1.0).certificates()) == 2
    for dtype, proved in ((DOUBLE, 2), (torch.float32, 0)):
        bare = made(1, 3.0, dtype=dtype, lipschitz=1.0, epsilon=1e-8)  # a margin below the rounding of float32
        with torch.no_grad():
            bare.parameterization.X.zero_()  # type: ignore[operator, union-attr]
        assert len(bare.certificates()) == proved


def test_slopes_of_any_admissible_activation_are_covered() -> None:
    layer = made(2, 1.0, activation=LeakyReLU(negative_slope=0.3), lipschitz=1.0)
    assert len(layer.certificates()) == 2


def ascended_gain(layer: ContractingODE, steps: int = 60, length: int = 40, step: float = 0.25) -> float:
    """The largest ‖Δy‖/‖Δu‖ that gradient ascent on pairs of inputs finds, from equal states: a lower bound of γ.

    Inputs are held between times and vanish in the second half, the outputs are integrated by the trapezoidal rule.
    """
    layer.integrator = FixedStep(step=step / 2)
    times = step * torch.arange(2 * length + 1, dtype=DOUBLE)
    torch.manual_seed(0)
    first, delta = torch.randn(length, 4, 2, dtype=DOUBLE), torch.randn(length, 4, 2, dtype=DOUBLE)
    first.requires_grad_(), delta.requires_grad_()
    silence = torch.zeros(length + 1, 4, 2, dtype=DOUBLE)
    optimizer, best = torch.optim.Adam([first, delta], lr=0.1), 0.0
    for _ in range(steps):
        inputs = [torch.cat([u, silence]) for u in (first, first + delta)]
        one, two = (layer(torch.zeros(4, 3, dtype=DOUBLE), times, ZeroOrderHold(u)) for u in inputs)
        squares = (one - two).square().sum(-1)
        energy = step * (squares.sum(0) - (squares[0] + squares[-1]) / 2)
        gain = (energy / (step * delta.square().sum((0, 2)))).sqrt()
        best = max(best, float(gain.detach().max()))
        optimizer.zero_grad()
        (-gain.log().sum()).backward()
        optimizer.step()
    return best


def test_no_pair_of_inputs_exceeds_the_gain() -> None:
    layer = made(3, None, lipschitz=0.5, contraction_rate=0.0, feedback=False)
    found = ascended_gain(layer, steps=10, length=10)
    assert 0.05 < found < 0.5


def test_a_passive_module_takes_in_energy() -> None:
    layer = made(4, None, passive=True)
    layer.integrator = FixedStep(step=0.05)
    times = torch.linspace(0, 6, 121, dtype=DOUBLE)
    generator = torch.Generator().manual_seed(0)

    def smooth() -> Tensor:
        waves = torch.randn(4, 6, 2, generator=generator, dtype=DOUBLE)
        return torch.einsum("tm,bmk->tbk", torch.sin(times[:, None] * torch.arange(1, 7) / 2), waves)

    one, two = smooth(), smooth()
    start = torch.zeros(4, 3, dtype=DOUBLE)
    with torch.no_grad():
        gap = layer(start, times, lambda t: _at(one, times, t)) - layer(start, times, lambda t: _at(two, times, t))
    power = (gap * (one - two)).sum(-1)
    energy = torch.cumulative_trapezoid(power, times, dim=0)
    assert bool((energy > -1e-3 * power.abs().max()).all()) and float(energy[-1].max()) > 0


def _at(values: Tensor, times: Tensor, t: Tensor) -> Tensor:
    share = (t.expand(values.shape[1], 1)[:, 0] / times[-1] * (len(times) - 1)).clamp(0, len(times) - 1)
    low = share.floor().long().clamp_max(len(times) - 2)
    rows = torch.arange(values.shape[1])
    return torch.lerp(values[low, rows], values[low + 1, rows], (share - low)[:, None])


def test_numbers_of_a_passivity_that_no_system_has_are_refused() -> None:
    for options in ({"input": -1.0}, {"output": math.inf}, {"input": 1.0, "output": 0.25}):
        with pytest.raises(ValueError, match="input|output"):
            Passive(**options)
