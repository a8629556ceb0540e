r"""What is certified of a Lur'e system from its input to its output: records, and one judge of them.

For any two solutions with inputs u₁, u₂ and outputs y₁, y₂, and V = ΔsᵀPΔs,

    dV/dt ≤ −2cV + γ|Δu|² − |Δy|²/γ            (gain γ),
    dV/dt ≤ −2cV + 2ΔyᵀΔu − 2ν|Δu|² − 2ρ|Δy|²   (passivity with indices ν and ρ).

Integrated from equal states: ∫|Δy|² ≤ γ²∫|Δu|², and ∫ΔyᵀΔu ≥ ν∫|Δu|² + ρ∫|Δy|². Without a state it is the Lipschitz
constant, and the monotonicity, of a network.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from contracting.certificates.lure.checker import Supply, covered, dissipation_margin, gain_supply, passivity_supply
from contracting.certificates.records import PER_TIME, CertificateError, assumption
from contracting.display import Displayed
from contracting.errors import InputError
from contracting.lure.system import LureSystem
from contracting.metrics import FullP, WeightedL2
from contracting.types import Slopes


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dissipation(Displayed):
    r"""dV/dt ≤ −2cV + q(Δu, Δy) for any two solutions, V = ΔsᵀPΔs, with the supply rate q of the kind of certificate.

    Attributes:
        rate: c, at which solutions approach each other under equal inputs, if the supply rate is then not positive.
        metric: P, or None of a system without a state.
        multiplier: λ > 0 of the sector inequalities, one entry per neuron.
        slopes: (low, high) of each neuron for which it holds.
        method: how P and λ were found.
        flow: the system it is about, in words.
        margin: by how much the inequality holds after the allowance for rounding, at unit diagonal; > 0.
    """

    _units = {"rate": PER_TIME}

    rate: float
    metric: FullP | WeightedL2 | None
    multiplier: Tensor
    slopes: Slopes | tuple[Tensor, Tensor]
    method: str = ""
    flow: str = "Lur'e"
    margin: float = 0.0

    @property
    @abstractmethod
    def supply(self) -> Supply:
        """q."""

    @property
    def assumption(self) -> str:
        """What is assumed of the activations, in words."""
        return assumption(self.slopes)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GainCertificate(Dissipation):
    r"""∫|Δy|² ≤ γ²∫|Δu|² from equal states, and ‖Δs‖_P ≤ e^{−ct}‖Δs(0)‖_P under equal inputs.

    Attributes:
        gain: γ.
    """

    gain: float

    @property
    def supply(self) -> Supply:
        return gain_supply(self.gain)

    def __str__(self) -> str:
        return f"{self.flow}: L2 gain ≤ {self.gain:.6g} at rate {self.rate:.6g}, {self.assumption} ({self.method})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PassivityCertificate(Dissipation):
    r"""∫ΔyᵀΔu ≥ ν∫|Δu|² + ρ∫|Δy|² from equal states.

    Attributes:
        input_index: ν; the system is passive where ν and ρ are not negative, strictly so for the input where ν > 0.
        output_index: ρ.
    """

    input_index: float
    output_index: float = 0.0

    @property
    def supply(self) -> Supply:
        return passivity_supply(self.input_index, self.output_index)

    @property
    def passive(self) -> bool:
        """Whether neither index is negative."""
        return self.input_index >= 0 and self.output_index >= 0

    def __str__(self) -> str:
        return (
            f"{self.flow}: passive with input index ≥ {self.input_index:.6g}, output index {self.output_index:.6g} at "
            f"rate {self.rate:.6g}, {self.assumption} ({self.method})"
        )


def check_dissipation(certificate: Dissipation, system: LureSystem) -> float:
    """Prove again, from explicit matrices only, that a gain or passivity holds for a system.

    Args:
        certificate: nothing is read but its numbers, P, λ and slopes.
        system: what it is claimed to be about.

    Returns:
        The margin, > 0.

    Raises:
        CertificateError: if the proof fails.
    """
    metric, claimed = certificate.metric, covered(certificate.slopes, system)
    if (0 if metric is None else metric.size) != system.size:
        raise CertificateError(f"the metric acts on another number of entries than the {system.size} of the system")
    if isinstance(certificate, PassivityCertificate):
        square(system)
    P = None if metric is None else metric.matrix
    try:
        margin = dissipation_margin(claimed, P, certificate.multiplier, certificate.rate, certificate.supply)
    except (InputError, ZeroDivisionError, OverflowError) as error:
        raise CertificateError(f"not certified, or beyond the range of float64: {error}") from error
    if not margin > 0:
        raise CertificateError(f"not certified: {certificate}")
    return margin


def square(system: LureSystem) -> LureSystem:
    """The system, if it has as many outputs as inputs.

    Raises:
        InputError: if it has not.
    """
    assert system.D22 is not None
    outputs, inputs = system.D22.shape
    if outputs != inputs:
        raise InputError(f"system must have as many outputs as inputs to be passive, got {outputs} and {inputs}")
    return system
