r"""What is proved of tracking before the first frame: how fast the solution moves, and how fast the steps get there.

A Peaceman–Rachford step u ← T(u) has the fixed point u* = (1 − α)z* + α(Wz* + Ux + b), from which z* is read as z* =
prox_{αf}(u*). Two constants, both in the norm ‖u‖ = ‖r∘u‖₂ with r = Λ^½, are all that tracking rests on:

    ‖T(u) − T(v)‖ ≤ ρ‖u − v‖   and   ‖u*(x) − u*(x')‖ ≤ L‖x − x'‖₂.

Both are proved from explicit matrices by a Cholesky factorisation, which shares no formula with what found them. With
y = (I + αA)⁻¹x the reflection 2(I + αA)⁻¹ − I maps (I + αA)y to (I − αA)y, so that ρ holds where

    ρ²(I + αA)ᵀΛ(I + αA) − (I − αA)ᵀΛ(I − αA) ≻ 0,

which for ρ ≤ 1 also proves Condition 1. And x ↦ r∘u*(x) is the output of an equilibrium network, whose W_o and D are
r∘((1 − α)I + αW) and αr∘U: L is a Lipschitz constant like any other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.certificates.definite import UNIT, definite_margin, sizes
from contracting.certificates.records import CertificateError
from contracting.display import Displayed, Row
from contracting.errors import PreconditionError
from contracting.types import Slopes
from equilibrium.fixed import with_constant_step
from equilibrium.lipschitz.bounds import certified_bound
from equilibrium.lipschitz.certificate import LipschitzCertificate
from equilibrium.lipschitz.checker import check_lipschitz
from equilibrium.lipschitz.system import LipschitzSystem, as_double
from equilibrium.weights import Weights

# The checker needs a little room for its rounding: the factor grows by these shares until it is accepted.
_WIDER = (1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2)
_ASSEMBLY = 16  # roundings of an entry beside those of its inner products


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TrackingCertificate(Displayed):
    """Two constants of one network, in the norm ‖r∘u‖₂ of the state u of Peaceman–Rachford.

    Attributes:
        step: α.
        factor: ρ < 1, by which every step contracts.
        root: r = Λ^½, (n,).
        motion: the certificate of L, a Lipschitz constant of x ↦ r∘u*(x).
    """

    step: float
    factor: float
    root: Tensor
    motion: LipschitzCertificate

    @property
    def speed(self) -> float:
        """L: how far the solution moves at most, for each unit that the input moves."""
        return self.motion.bound

    def shown(self) -> Sequence[Row]:
        return [
            Row("steps contract by", self.factor),
            Row("the solution moves by", self.speed, "for each unit of the input"),
            Row("step", self.step),
        ]


def certify_tracking(
    weights: Weights, activation: Activation, known: TrackingCertificate | None = None
) -> TrackingCertificate:
    """Both constants, proved.

    Args:
        weights: of the network, with the metric Λ in which they are proved.
        activation: σ.
        known: a certificate of earlier weights, which is returned if it is proved of these: where only biases and
            outputs have changed it is, and nothing is searched.

    Raises:
        PreconditionError: if no metric is certified, σ has parameters, or no factor below one is proved.
    """
    if known is not None:
        with contextlib.suppress(CertificateError):
            check_tracking(known, weights, activation.slopes)
            return known
    step = with_constant_step(weights, activation, "tracking")[1]
    problem = weights.problem(weights.input.new_zeros(1, weights.in_features), activation)
    factor = problem.require_operator("tracking").reflected_factor(step)
    assert weights.metric is not None  # else no step could be chosen
    root = as_double(weights.metric.weights).sqrt()
    tried = (factor * (1 + share) for share in _WIDER)
    proved = next((value for value in tried if value < 1 and _factor_margin(weights, root, step, value) > 0), None)
    if proved is None:
        raise PreconditionError(
            f"no contraction of the steps is proved for tracking, whose factor is about {factor:.6g}: use float64 "
            "weights or a better conditioned parameterisation"
        )
    motion = certified_bound(state_system(weights, activation.slopes, root, step))
    return TrackingCertificate(step=step, factor=proved, root=root, motion=motion)


def check_tracking(certificate: TrackingCertificate, weights: Weights, slopes: Slopes) -> float:
    """Prove both constants again from explicit matrices, of which nothing that was found before is believed.

    Args:
        certificate: its numbers and its multiplier; nothing else is read.
        weights: of the network that it is claimed to be about.
        slopes: of its activation.

    Returns:
        The smaller of the two margins, > 0.

    Raises:
        CertificateError: if a proof fails: other weights, or a constant too small.
    """
    if not 0 <= certificate.factor < 1:
        raise CertificateError(f"not certified: steps with a factor of {certificate.factor:.6g} need not contract")
    if len(certificate.root) != weights.hidden_features:
        raise CertificateError(f"not certified: of {len(certificate.root)} neurons, not {weights.hidden_features}")
    margin = _factor_margin(weights, certificate.root, certificate.step, certificate.factor)
    if not margin > 0:
        raise CertificateError(f"not certified: steps that contract by {certificate.factor:.6g}")
    system = state_system(weights, slopes, certificate.root, certificate.step)
    return min(margin, check_lipschitz(certificate.motion, system))


def state_system(weights: Weights, slopes: Slopes, root: Tensor, step: float) -> LipschitzSystem:
    """x ↦ r∘u*(x) as an equilibrium network."""
    W, U = as_double(weights.state.to_dense()), as_double(weights.input)
    identity = torch.eye(len(W), dtype=torch.float64)
    own, through = (1 - step) * identity, step * W
    C, D = root[:, None] * (own + through), step * root[:, None] * U
    C_error = 4 * UNIT * sizes(root[:, None]) * (sizes(own) + sizes(through))
    return LipschitzSystem(
        W=W,
        U=U,
        C=C,
        D=D,
        slopes=slopes,
        errors=(torch.zeros_like(U), C_error, 3 * UNIT * sizes(D)),
        metric=root.square(),
    )


def _factor_margin(weights: Weights, root: Tensor, step: float, factor: float) -> float:
    """Of ρ²(I + αA)ᵀΛ(I + αA) − (I − αA)ᵀΛ(I − αA), with all rounding of its assembly."""
    W = as_double(weights.state.to_dense())
    identity = torch.eye(len(W), dtype=torch.float64)
    A = step * (identity - W)
    plus, minus = root[:, None] * (identity + A), root[:, None] * (identity - A)
    size = sizes(root[:, None] * (identity + step * (identity + W.abs())))
    error = (len(W) + _ASSEMBLY) * UNIT * 1.01 * (size.mT @ size)
    return definite_margin(factor**2 * (plus.mT @ plus) - minus.mT @ minus, 2 * error)
