r"""The one judge of every certificate of a Lur'e system: explicit matrices in, a margin out, in float64.

A rate, a gain and passivity are one inequality. With V = ΔsᵀPΔs, rate c, multiplier λ > 0 and a quadratic supply rate
q(u, y) it says for all (s, w, u) ≠ 0

    2sᵀP(As + Bw + B₂u) + 2c sᵀPs + 2Σλᵢ(wᵢ − lᵢvᵢ)(hᵢvᵢ − wᵢ) − q(u, y) < 0,   v = Cs + Dw + D₁₂u,

for differences of any two solutions, whose slopes make the sum ≥ 0. Hence dV/dt ≤ −2cV + q(Δu, Δy). The block of w
alone makes the loop v = Cs + Dσ(v) well-posed, so that this too is proved.

It is written in w' = w − K(Ṽ of s, w', u) with the middles K of the slopes and any computed Ṽ ≈ v, because narrow
intervals of slopes would lose all digits in w. A congruence that makes it definite is regular, whatever Ṽ is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.balance import balancing
from contracting.certificates.definite import UNIT, definite_margin, sizes
from contracting.certificates.enclosures import Enclosure, definite_form, solved
from contracting.certificates.records import CertificateError, assumption
from contracting.certificates.systems import vertices
from contracting.errors import InputError
from contracting.lure.system import LureSystem
from contracting.types import Slopes

LARGEST_BY_VERTICES = 14  # The most slopes for a proof at all vertices, each of which takes a factorisation.


@dataclass(frozen=True, kw_only=True, eq=False)
class Supply:
    """q(u, y) = output·|y|² + 2·cross·yᵀu + input·|u|²: what may flow into a system.

    The gain γ is (−1/γ, 0, γ); passivity with indices ν of the input and ρ of the output is (−2ρ, 1, −2ν).
    """

    output: float
    cross: float
    input: float


def gain_supply(gain: float) -> Supply:
    """γ|u|² − |y|²/γ."""
    return Supply(output=-1 / gain, cross=0.0, input=gain)


def passivity_supply(input_index: float, output_index: float) -> Supply:
    """2yᵀu − 2ν|u|² − 2ρ|y|²."""
    return Supply(output=-2 * output_index, cross=1.0, input=-2 * input_index)


def middle(system: LureSystem) -> tuple[Tensor, Tensor]:
    """Middles and half-widths of the intervals of slopes, the latter rounded up: (m,), (m,)."""
    K = (system.low + system.high) / 2
    return K, torch.maximum(system.high - K, K - system.low) * (1 + 4 * UNIT)


def dissipation_margin(
    system: LureSystem, P: Tensor | None, multiplier: Tensor, rate: float, supply: Supply | None = None
) -> float:
    """How much is left of the inequality after the allowance for rounding; it holds where that is > 0.

    Args:
        system: explicit matrices and slopes.
        P: (n, n), or None without a state.
        multiplier: λ, (m,).
        rate: c.
        supply: q, or None to leave out inputs and outputs.
    """
    if P is not None and not bool(torch.isfinite(P).all() & (P.diagonal() > 0).all()):
        return -math.inf
    if not bool((torch.isfinite(multiplier) & (multiplier > 0)).all()):
        return -math.inf
    margin = definite_form(lambda kind: dissipation(system, P, multiplier, rate, supply, kind)[1])
    return margin if P is None or not system.size else min(margin, definite_margin((P + P.mT) / 2, UNIT * sizes(P)))


def dissipation(
    system: LureSystem,
    P: Tensor | None,
    multiplier: Tensor,
    rate: float,
    supply: Supply | None = None,
    kind: type[Enclosure] = Enclosure,
) -> tuple[Tensor, Enclosure]:
    """P and minus the form above as a matrix of (s, w', u), in units in which P and λ are about 1, by powers of two.

    Raises:
        InputError: if P or the multiplier are of another size.
    """
    n, m = system.size, system.neurons
    lam = checks.shape("multiplier", multiplier, (m,)).detach().to("cpu", torch.float64)
    if P is None:
        P = lam.new_zeros(0, 0)
    P = checks.shape("metric", P, (n, n)).detach().to("cpu", torch.float64)
    states, neurons = power_of_two(P.diagonal().sqrt()), power_of_two(lam.sqrt())
    P, lam = (P + P.mT) / 2 / states[:, None] / states, lam / neurons.square()
    system = system.rescaled(states, neurons)
    assert system.B2 is not None and system.D12 is not None and system.C2 is not None
    assert system.D21 is not None and system.D22 is not None
    k = 0 if supply is None else system.D22.shape[1]
    identity = torch.eye(n + m + k, dtype=torch.float64)
    state, neuron, inputs = identity[:n], identity[n : n + m], identity[n + m :]
    K, half = middle(system)

    def row(of_state: Tensor, of_input: Tensor) -> Enclosure:
        nothing = of_state.new_zeros(len(of_state), m)
        return kind.exact(torch.cat([of_state, nothing, of_input[:, :k]], 1))

    pre = torch.cat([system.C, system.D, system.D12[:, :k]], 1)
    guess, _ = torch.linalg.solve_ex(torch.eye(m, dtype=torch.float64) - system.D * K, pre)
    w = kind.exact(K[:, None] * torch.nan_to_num(guess) + neuron)
    v = row(system.C, system.D12) + kind.exact(system.D) @ w
    deviation = w - v * K[:, None]  # w − Kv, which is w' up to rounding
    field = row(system.A, system.B2) + kind.exact(system.B) @ w
    energy = kind.exact(state.mT) @ (kind.exact(P) @ field)
    form = energy + energy.mT
    form = form + kind.exact(state.mT) @ (kind.exact(2 * P) * rate) @ kind.exact(state)
    # λ(w − lv)(hv − w) = λ(half²v² − (w − Kv)²); the factor covers the roundings of λ·half²
    form = form + v.mT @ (v * (2 * lam * half.square() * (1 + 4 * UNIT))[:, None])
    form = form - deviation.mT @ (deviation * (2 * lam)[:, None])
    if supply is not None:
        y = row(system.C2, system.D22) + kind.exact(system.D21) @ w
        u = kind.exact(inputs)
        cross = y.mT @ (u * supply.cross) if supply.cross else None
        form = form - y.mT @ (y * supply.output) - u.mT @ (u * supply.input)
        if cross is not None:
            form = form - cross - cross.mT
    return P, -form


def dissipated_rate(system: LureSystem, P: Tensor, multiplier: Tensor) -> float:
    """The largest rate for which P and λ fulfil the inequality, up to rounding; −∞ if there is none."""
    n = system.size
    P, inequality = dissipation(system, P, multiplier, 0.0)
    whole = (inequality.value + inequality.value.mT) / 2
    root, info = torch.linalg.cholesky_ex(whole[n:, n:])
    if int(info):
        return -math.inf
    half = torch.linalg.solve_triangular(root, whole[n:, :n], upper=False)
    gap, root = whole[:n, :n] - half.mT @ half, torch.linalg.cholesky(P)
    half = torch.linalg.solve_triangular(root, gap, upper=False)
    whitened = torch.linalg.solve_triangular(root, half.mT, upper=False)
    if not bool(torch.isfinite(whitened).all()):
        return -math.inf
    return float(torch.linalg.eigvalsh((whitened + whitened.mT) / 2)[0]) / 2


def vertex_margin(system: LureSystem, P: Tensor, rate: float) -> float:
    """Margin of −(FᵀP + PF + 2cP) ≻ 0 for the Jacobians F at every vertex of the slopes.

    Raises:
        CertificateError: if there are too many neurons.
    """
    states = power_of_two(P.diagonal().sqrt())
    system, P = system.rescaled(states, neuron_units(system)), (P + P.mT) / 2 / states[:, None] / states
    worst = definite_margin(P, UNIT * sizes(P))
    for F in enclosed_vertices(system):
        if F is None:
            return -math.inf
        worst = min(worst, lyapunov_margin(P, F, rate))
    return worst


def lyapunov_margin(P: Tensor, F: Enclosure, rate: float) -> float:
    """The least margin of −(FᵀP + PF + 2cP) ≻ 0 of all F: (..., n, n)."""

    def form(kind: type[Enclosure]) -> Enclosure:
        product = kind.exact(P) @ F
        return -(product + product.mT + kind.exact(2 * P) * rate)

    return definite_form(form)


def enclosed_vertices(system: LureSystem) -> Iterator[Enclosure | None]:
    """The Jacobians at all vertices of the slopes in blocks, or None where nothing follows from them.

    Changing one slope moves F along a line, and monotonically as long as I − DJ stays regular, so that the vertices
    decide. It does if det(I − DJ) has one sign, which is proved along every edge: from J to J + δeᵢ it is multiplied by
    1 − δ[(I − DJ)⁻¹D]ᵢᵢ.

    Raises:
        CertificateError: if there are too many neurons.
    """
    n, m = system.size, system.neurons
    if m > LARGEST_BY_VERTICES:
        raise CertificateError(f"a proof by vertices needs at most {LARGEST_BY_VERTICES} neurons, got {m}")
    width = (system.high - system.low) * (1 + 4 * UNIT)
    for block in vertices((system.low, system.high), m):
        loop = loops_solved(system, block, torch.cat([system.C, system.D], 1))
        if loop is None:
            yield None
            return
        own = loop[..., n:]
        regular = width * (own.value + own.radius).diagonal(dim1=-2, dim2=-1) < 1 - 8 * UNIT
        if not bool((regular | (block > system.low)).all()):
            yield None
            return
        yield jacobians_enclosed(system, block, loop[..., :n])


def loops_solved(system: LureSystem, slopes: Tensor, right: Tensor) -> Enclosure | None:
    """(I − DJ)⁻¹R at diagonal slopes, or None where I − DJ may be singular: (batch, m), (m, k) -> (batch, m, k)."""
    loop = Enclosure.exact(torch.eye(system.neurons, dtype=torch.float64))
    loop = loop - Enclosure.exact(system.D) * slopes[..., None, :]
    return solved(loop, right.expand(*slopes.shape[:-1], -1, -1))


def jacobians_enclosed(system: LureSystem, slopes: Tensor, pre: Enclosure) -> Enclosure:
    """A + BJ(I − DJ)⁻¹C at diagonal slopes J from the last factor, (I − DJ)⁻¹C: (batch, m) -> (batch, n, n)."""
    return Enclosure.exact(system.A) + Enclosure.exact(system.B) * slopes[..., None, :] @ pre


def jacobian_error(system: LureSystem, slopes: Tensor) -> float:
    """By how much the norm of a Jacobian as it is computed may differ from the true one: (m,) -> a number."""
    pre = loops_solved(system, slopes, system.C)
    if pre is None:
        return math.inf
    found = jacobians_enclosed(system, slopes, pre)
    return float(torch.linalg.matrix_norm(found.radius + (found.value - system.jacobians(slopes)).abs()))


def neuron_units(system: LureSystem) -> Tensor:
    """Powers of two for which the rows and columns of D are about alike, (m,)."""
    return power_of_two(balancing(system.D)) if system.neurons else system.D.new_ones(0)


def power_of_two(values: Tensor) -> Tensor:
    """The next one below each."""
    return torch.ldexp(torch.ones_like(values), torch.frexp(values)[1] - 1)


def covered(slopes: Slopes | tuple[Tensor, Tensor], system: LureSystem) -> LureSystem:
    """The system with the slopes that a certificate speaks of, which must contain the system's own.

    Raises:
        CertificateError: if they do not.
    """
    try:
        claimed = system.with_slopes(slopes)
    except InputError as error:
        raise CertificateError(f"the certificate is about other neurons: {error}") from error
    if not bool(((claimed.low <= system.low) & (system.high <= claimed.high)).all()):
        raise CertificateError(
            f"the certificate is about {assumption(slopes)}; the system, {system.name}, has "
            f"{assumption((system.low, system.high))}"
        )
    return claimed
