r"""How finders see a Lur'e system: balanced, with slopes in [0, 1] after a loop shift, and the way back.

A change of the neurons' units, v' = t∘v and w' = t∘w, leaves their slopes as they are, so that everything that is said
in ``balance`` of the states of a network holds for states and neurons of [[A, B], [C, D]] together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.balance import balancing
from contracting.certificates.candidates import Candidate
from contracting.certificates.lure.shift import shifted
from contracting.certificates.records import CertificateError
from contracting.errors import InputError
from contracting.lure.system import LureSystem

# The narrowest interval of slopes that a finder looks at, in units of a slope: what has one slope only has a free
# multiplier, which this keeps finite. The checker takes the intervals as they are.
_NARROWEST = 1e-7


@dataclass(frozen=True, kw_only=True, eq=False)
class LureView:
    """A Lur'e system as finders see it: balanced, with slopes in [0, 1] after a loop shift, and the way back.

    With w = low∘v + width∘w̃ the slopes of w̃ are in [0, 1]; its sector inequality with λ̃ is the one of w with
    λ = λ̃/width².

    Attributes:
        system: the balanced and shifted system.
        states: t > 0 of the states, (n,).
        neurons: t > 0 of the neurons, (m,).
        width: of the intervals of slopes, (m,).
    """

    system: LureSystem
    states: Tensor
    neurons: Tensor
    width: Tensor

    def own(self, multiplier: Tensor) -> Tensor:
        """A multiplier of the view in the caller's own coordinates and slopes."""
        return multiplier / self.width.square() * self.neurons.square()

    def seen(self, multiplier: Tensor) -> Tensor:
        """The inverse of ``own``."""
        return multiplier * self.width.square() / self.neurons.square()

    def candidate(self, candidate: Candidate) -> Candidate:
        """What was found in the view, for the caller's own system.

        Raises:
            CertificateError: if it is no metric in float64.
        """
        try:
            metric = candidate.metric.rescaled(1 / self.states)
        except InputError as error:
            raise CertificateError(f"what was found is no metric in float64: {error}") from error
        multiplier = candidate.multiplier
        return replace(candidate, metric=metric, multiplier=None if multiplier is None else self.own(multiplier))

    def multiplier(self, given: Tensor | None) -> Tensor:
        """Where a search starts: what the caller gave, else the hint, else 1 in these coordinates, (m,)."""
        if given is not None:
            checks.shape("multiplier", checks.positive_tensor("multiplier", given), (self.system.neurons,))
            return self.seen(given.detach().to("cpu", torch.float64))
        if self.system.hint is not None:
            return self.system.hint
        return torch.ones(self.system.neurons, dtype=torch.float64)


def lure_view(system: LureSystem) -> LureView:
    """The view of a system, made once.

    Raises:
        PreconditionError: if the loop is ill-posed at the lowest slopes.
    """
    view: LureView | None = system.__dict__.get("_view")
    if view is None:
        width = (system.high - system.low).clamp_min(_NARROWEST)
        states, neurons = _balancing(system)
        seen = shifted(system.rescaled(states, neurons), width)
        more_states, more_neurons = _balancing(seen)
        view = LureView(
            system=seen.rescaled(more_states, more_neurons),
            states=states * more_states,
            neurons=neurons * more_neurons,
            width=width,
        )
        system.__dict__["_view"] = view
    return view


def _balancing(system: LureSystem) -> tuple[Tensor, Tensor]:
    """t > 0 of the states and neurons, (n,) and (m,), in which the rows and columns of [[A, B], [C, D]] are alike."""
    loop = torch.cat([torch.cat([system.A, system.B], 1), torch.cat([system.C, system.D], 1)])
    t = balancing(loop, leak=0.0) if len(loop) else loop.new_ones(0)
    return t[: system.size], t[system.size :]
