r"""All networks that one certificate proves contracting and Lipschitz, and only these, for any parameter values.

The firing-rate flow contracts at rate c in P if (P + ΛW)ᵀΛ⁻¹(P + ΛW) ⪯ 4(1−c)P for a diagonal Λ: the sector inequality
of all slopes in [0, 1]. In coordinates with Λ = I, where M = Λ^½WΛ^−½, it says P + M = 2√(1−c) SV, VᵀV = P, ‖S‖ ≤ 1:

    W = Λ^−½ (2√(1−c) SV − VᵀV) Λ^½,  any V, any ‖S‖ ≤ 1, any Λ        (arXiv 2604.15238, Theorem 35).

Multiplied from both sides by (I; I) the inequality gives 2Λ − ΛW − WᵀΛ =: R ⪰ 2cP, so Condition 1 holds in Λ and the
network is γ-Lipschitz in it iff W_oᵀW_o + ΛUUᵀΛ ⪯ γR, that is

    [W_oᵀ, ΛU] = √γ K T,  KKᵀ = R, any ‖T‖ ≤ 1;

with a feedthrough D, ‖D‖ < γ, of [W_oᵀ, (ΛU + W_oᵀD/γ)F⁻ᵀ], FFᵀ = I − DᵀD/γ² (Schur). ``Monotone`` with a rate reaches
only the part of it in which V and S are tied to each other. ``room`` keeps rounding from spoiling a certificate.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from contracting.certificates.riccati import riccati_metric
from contracting.errors import InputError, PreconditionError
from contracting.types import UNIT_SLOPES
from equilibrium.parameterizations.bounded import BoundedOptions, BoundedParameterization, metric_of
from equilibrium.parameterizations.monotone import gram
from equilibrium.parameterizations.room import Room, within
from equilibrium.weights import Weights

# ψ is squashed into ±40, so that Λ and the quotients of its roots stay in the range of float32 with room for W itself.
_WIDEST = 40.0
START = 0.3  # the spread of the entries of V and X around multiples of I that they start with, times √n


class Contractive(BoundedParameterization):
    r"""Every contracting network with a γ: rate c, and on request γ, for each value of the parameters.

    With S and T of ``onto_unit_ball`` of the parameters S and [outputᵀ, U]; without γ, U and output are the weights.

    Args:
        in_features: size of x.
        hidden_features: n, size of z.
        out_features: size of y.
        contraction_rate: c in [0, 1).
        options: lipschitz, learn_lipschitz, learn_metric, feedthrough, device and dtype as for
            ``BoundedParameterization``.

    Raises:
        InputError: as ``BoundedParameterization``, and on a c too close to one for the dtype.
    """

    contraction_rate: float

    def __init__(
        self, in_features: int, hidden_features: int, out_features: int, **options: Unpack[BoundedOptions]
    ):
        options = {**options, "contraction_rate": options.get("contraction_rate") or 0.0}
        super().__init__(in_features, hidden_features, out_features, **options)
        if self._room().largest_V < 1:
            raise InputError(f"contraction_rate = {self.contraction_rate!r} is too close to 1 for {self.example.dtype}")
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values: V and S close to multiples of I for which W is of order one, and so are its gradients."""
        super().reset_parameters()
        n = self.hidden_features
        nn.init.normal_(self.V, std=START / math.sqrt(n))
        nn.init.normal_(self.S, std=START / math.sqrt(n))
        with torch.no_grad():
            self.V.diagonal().add_(math.sqrt(1 - self.contraction_rate))

    def _room(self) -> Room:
        n, both = self.hidden_features, self.D is not None and self.log_gamma is not None
        size = n + self.in_features + self.out_features if both else n
        return Room.of(size=size, rate=self.contraction_rate, dtype=self.example.dtype, feedthrough=both)

    def explicit(self) -> Weights:
        """The weights and their certificates."""
        n, c, gamma, dtype, room = (
            self.hidden_features, self.contraction_rate, self.lipschitz, self.example.dtype, self._room()
        )
        identity = torch.eye(n, dtype=torch.float64, device=self.example.device)
        psi = torch.zeros_like(self.bias) if self.psi is None else squashed(self.psi)
        lam = (-psi).exp()
        root = lam.double().sqrt()
        V = within(self.V, room.largest_V)
        P = gram(V) + room.floor(V.square().sum()) * identity
        M = 2 * math.sqrt(1 - c) * room.ball(self.S) @ V - P
        W = (M * root / root[:, None]).to(dtype)
        claims: dict[str, Tensor] = {}
        if gamma is not None:
            claims = self._bounded(W, gamma, root, room)
        return self.with_state(
            W,
            metric=metric_of(lam, None),
            lipschitz=gamma,
            contraction_rate=c,
            contraction_matrix=(root[:, None] * P * root).to(dtype),
            **claims,
        )

    def _bounded(self, W: Tensor, gamma: Tensor, root: Tensor, room: Room) -> dict[str, Tensor]:
        """U, W_o and D from T, for the W that is stored."""
        dtype, share = W.dtype, gamma.double().sqrt()
        K = _root_of_condition_1(W, root)
        inside = room.ball(torch.cat([self.output.mT, self.U], 1).mT).mT
        outputs, inputs = torch.split(share * (K @ inside), [self.out_features, self.in_features], 1)
        output = (root[:, None] * outputs).mT.to(dtype)
        if self.D is None:
            return {"output": output, "input": (inputs / root[:, None]).to(dtype)}
        D = (gamma.double() * room.ball(self.D)).to(dtype)
        unit = D.double() / gamma.double()
        inputs = inputs @ _root_of_the_rest(unit).mT - (output.double() / root).mT @ unit
        return {"output": output, "input": (inputs / root[:, None]).to(dtype), "feedthrough": D}

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        weights: Weights,
        *,
        contraction_rate: float,
        lipschitz: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> Contractive:
        """The free parameters of given weights: ``Contractive.of(weights, …).explicit()`` are these weights again.

        Args:
            weights: with the metric Λ in which they are contracting, and γ-Lipschitz; P is their
                ``contraction_matrix``, or found where they have none.
            contraction_rate: c ≥ 0 to be certified.
            lipschitz: γ to be certified, or None.
            dtype: of the parameters; None for that of the weights.

        Raises:
            PreconditionError: if Λ certifies no such c or γ of them, or rounding leaves too little of it.
        """
        if weights.metric is None:
            raise PreconditionError("weights need a metric: find one with contracting.find_metric")
        D = weights.feedthrough
        free = cls(
            weights.in_features, weights.hidden_features, weights.out_features,
            lipschitz=lipschitz, contraction_rate=contraction_rate, feedthrough=D is not None,
            device=weights.input.device, dtype=dtype or weights.input.dtype,
        )
        assert free.psi is not None
        W, lam = weights.state.to_dense().double(), weights.metric.weights.double()
        root, room = lam.sqrt(), free._room()
        unsquashed = _WIDEST * torch.atanh(-lam.log() / _WIDEST)
        if not bool(unsquashed.isfinite().all()):
            raise PreconditionError(f"the metric of the weights leaves exp(±{_WIDEST:g})")
        M = W * root[:, None] / root
        try:
            P = _metric_of_rate(M, weights.contraction_matrix, root, contraction_rate)
            V = _root_above_floor(P, room)
            S = torch.linalg.solve_triangular(V, M + P, upper=True, left=False) / (2 * math.sqrt(1 - contraction_rate))
            values = {"psi": unsquashed, "V": V, "S": room.out_of_ball(S)}
            values |= {"U": weights.input, "output": weights.output}
            if lipschitz is not None:
                values |= free._unbounded(weights, root, lipschitz)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            asked = f"c = {contraction_rate:g}" + ("" if lipschitz is None else f" and γ = {lipschitz:g}")
            raise PreconditionError(
                f"weights have no certificate of {asked} in their metric with room for rounding: ask for less, or find "
                "another metric"
            ) from error
        if D is not None and lipschitz is None:
            values["D"] = D
        for name, value in {**values, "bias": weights.bias, "output_bias": weights.output_bias}.items():
            getattr(free, name).copy_(value)
        return free

    def _unbounded(self, weights: Weights, root: Tensor, gamma: float) -> dict[str, Tensor]:
        """The parameters U, output and D of given weights, the inverse of ``_bounded``."""
        room, W = self._room(), weights.state.to_dense()
        inputs, outputs = weights.input.double() * root[:, None], weights.output.double().mT / root[:, None]
        values = {}
        if weights.feedthrough is not None:
            unit = weights.feedthrough.double() / gamma
            values["D"] = room.out_of_ball(unit)
            coupled = inputs + outputs @ unit
            inputs = torch.linalg.solve_triangular(_root_of_the_rest(unit), coupled.mT, upper=False).mT
        columns = torch.cat([outputs, inputs], 1) / math.sqrt(gamma)
        T = torch.linalg.solve_triangular(_root_of_condition_1(W, root), columns, upper=False)
        X = room.out_of_ball(T.mT).mT
        return {**values, "output": X[:, : self.out_features].mT, "U": X[:, self.out_features :]}


def squashed(psi: Tensor) -> Tensor:
    """ψ inside ±40."""
    return _WIDEST * torch.tanh(psi / _WIDEST)


def _root_of_condition_1(W: Tensor, root: Tensor) -> Tensor:
    """K with KKᵀ = 2I − M − Mᵀ, M = Λ^½WΛ^−½ in float64."""
    M = W.double() * root[:, None] / root
    return torch.linalg.cholesky(2 * torch.eye(len(M), dtype=M.dtype, device=M.device) - M - M.mT)


def _root_of_the_rest(unit: Tensor) -> Tensor:
    """F with FFᵀ = I − DᵀD, ‖D‖ < 1."""
    return torch.linalg.cholesky(torch.eye(unit.shape[1], dtype=unit.dtype, device=unit.device) - unit.mT @ unit)


def _metric_of_rate(M: Tensor, known: Tensor | None, root: Tensor, rate: float) -> Tensor:
    """P in coordinates with Λ = I: the one that is known, or one inside the inequality."""
    if known is not None:
        return known.double() / root[:, None] / root
    found = riccati_metric(M.cpu(), UNIT_SLOPES, rate)
    if found is None:
        raise torch.linalg.LinAlgError("no metric")  # type: ignore[attr-defined]
    return found.to(M)


def _root_above_floor(P: Tensor, room: Room) -> Tensor:
    """The upper triangular V with P = VᵀV + pI; p less that of ‖V‖_F² = tr P − np increases in p: by bisection."""
    trace = P.trace()
    low, high = torch.zeros_like(trace), trace / len(P)
    for _ in range(200):
        middle = (low + high) / 2
        enough = room.floor(trace - len(P) * middle) <= middle
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return torch.linalg.cholesky(P - high * torch.eye(len(P), dtype=P.dtype, device=P.device)).mT
