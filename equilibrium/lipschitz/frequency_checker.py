r"""The judge of Lipschitz certificates of networks on images: one small matrix per frequency, all rounding bounded.

It builds its matrices from the explicit weights and shares no formula with the finder. To prove, for the multiplier Λ
and the bound γ, is λ-by-λ (arXiv 2010.01732), for slopes in [0, h],

    zᵀNz ≥ ‖Gz‖² for every z,   N = ΛA + AᵀΛ − h²γ⁻²Q,   A = I − hW,   Q ⪰ ΛUUᵀΛ,   G = W_oP.

**Per frequency.** N is a convolution: Λ is constant over the image where W is one, or Λ = tΨ⁻¹ where I − W = Ψ(I − V)
with a convolution V, and then ΛA = t((1 − h)Ψ⁻¹ + h(I − V)), with Ψ⁻¹ at least its smallest entry in each channel. U is
zero padding, convolution C on the torus and sampling S, so UUᵀ ⪯ SCCᵀSᵀ, a convolution; where Λ varies over the image,
ΛUUᵀΛ ⪯ ν t²I with ν ≥ ‖ΛSC‖²/t², which is proved like the rest.
With ẑ, Ĝ the Fourier transforms and shares wᶠ, zᵀNz = Σwᶠ ẑᴴNᶠẑ and Gz = Σwᶠ Re Ĝᶠᴴẑ. If there are Hermitian
Sᶠ with

    [[Nᶠ, Ĝᶠ], [Ĝᶠᴴ, Sᶠ]] ≻ 0 for every f,   and   Σ wᶠ Re Sᶠ ≺ I,

then 2yᵀGz ≤ zᵀNz + yᵀ(ΣwᶠSᶠ)y ≤ zᵀNz + ‖y‖² for every y, and y = Gz is the claim. The Sᶠ may be any numbers; they are
taken as ĜᴴN⁻¹Ĝ, a little enlarged. So all that is to be proved is that matrices known up to rounding are definite, by
``contracting.certificates.definite``.

**Rounding**, u = 2⁻⁵³. A phase 2πk/N, k reduced in whole numbers, is wrong by at most 3u·2π, and cos and sin (of the
mathematical library, within 2u) by 21u: a wave e^{iφ} by 32u. A complex inner product of length L is two real ones of
length 2L, hence wrong by 2√2 Lu Σ|w||x|. Transforming one axis after the other, of lengths L₁ and L₂, is wrong by

    c·Σ|x|,   c = 1.01(3(L₁ + L₂) + 70)u,

whatever the frequency. To that come the rounding of what is transformed (the Gram kernel of U: as many roundings as
it has terms, relative to the Gram kernel of |U|; the readout: two; what h multiplies: two more), and 14u of the size
of every entry of the assembly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.definite import SMALLEST, UNIT, definite_margin, definite_margins, sizes
from contracting.certificates.records import CertificateError
from contracting.errors import PreconditionError
from contracting.maps.base import LinearMap
from contracting.maps.frequencies import per_channel
from contracting.maps.per_neuron import Scaled
from contracting.types import UNIT_SLOPES, Slopes
from equilibrium.convolution.parameterization import sampled_gram
from equilibrium.convolution.weights import ConvolutionalWeights
from equilibrium.lipschitz.certificate import LipschitzCertificate, Norm
from equilibrium.lipschitz.images import convolution_of
from equilibrium.lipschitz.system import Units, as_double, fingerprint, in_power, product, times_power

_BLOCK = 64  # frequencies whose matrices are formed at a time: more would only cost memory
_SAME = 1e-12  # relative difference up to which a multiplier counts as a multiple of Ψ⁻¹: the proof takes the multiple


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSystem:
    """The map x ↦ y of a network on images, in float64 on the CPU.

    Attributes:
        weights: explicit weights.
        output_error: an entrywise bound of the error of W_o, (out, cells), or None where it is exact.
        slopes: an interval in [0, 1] with the slopes of the neurons inside the border.
    """

    weights: ConvolutionalWeights
    output_error: Tensor | None = None
    slopes: Slopes = UNIT_SLOPES

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", self.weights.double())

    @property
    def constant(self) -> bool:
        """Whether y does not depend on x at all, whatever W is."""
        return not self.weights.output.any() and (self.output_error is None or not self.output_error.any())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the slopes and of all weights but the biases: which map a certificate is about."""
        weights, state = self.weights, self.weights.state
        kernels = (*state.tensors(), weights.input_kernel, weights.output)
        return fingerprint(tuple(self.slopes), weights.geometry, type(state), *kernels)

    @property
    def units(self) -> Units:
        """Exponents (p, q) with which the largest entries of U·2⁻ᵖ and W_o·2⁻ᑫ are about one."""
        tops = (float(m.abs().max()) for m in (self.weights.input_kernel, self.weights.output))
        p, q = (int(torch.frexp(torch.tensor(top, dtype=torch.float64)).exponent) if top > 0 else 0 for top in tops)
        return p, q

    def with_output(self, rows: Tensor, rows_error: Tensor) -> ImageSystem:
        """The map followed by the matrix ``rows``, (k, out), of which each entry may be wrong by ``rows_error``."""
        weights = self.weights
        checks.last_size("following", rows, weights.out_features)
        output, error = product(rows, rows_error, weights.output, self.output_error)
        return replace(
            self,
            weights=replace(weights, output=output, output_bias=weights.output_bias.new_zeros(len(rows))),
            output_error=error,
        )

    def difference(self, i: int, j: int) -> ImageSystem:
        """The map x ↦ yᵢ − yⱼ."""
        output = self.weights.output[i : i + 1] - self.weights.output[j : j + 1]
        error = UNIT * output.abs()
        if self.output_error is not None:
            error = error + (1 + UNIT) * (self.output_error[i : i + 1] + self.output_error[j : j + 1])
        bias = self.weights.output_bias.new_zeros(1)
        return replace(self, weights=replace(self.weights, output=output, output_bias=bias), output_error=error)

    def in_units(self, units: Units) -> ImageSystem:
        """The map x ↦ 2⁻ᵖ⁻ᑫ·y(x) written with U·2⁻ᵖ and W_o·2⁻ᑫ."""
        p, q = units
        weights = replace(
            self.weights,
            input_kernel=times_power(self.weights.input_kernel, -p),
            output=times_power(self.weights.output, -q),
        )
        error = None if self.output_error is None else times_power(self.output_error, -q)
        return replace(self, weights=weights, output_error=error)


def check_frequencies(certificate: LipschitzCertificate, system: ImageSystem) -> float:
    """Prove again, from the explicit weights, that a certificate holds for a network on images.

    Args:
        certificate: its bound, multiplier, units, norm and slopes are read, nothing else.
        system: the network it is claimed to be about.

    Returns:
        The margin, > 0: of the matrices of the module's docstring, at unit diagonal.

    Raises:
        PreconditionError: if W is no convolution.
        CertificateError: if the proof fails.
    """
    lam, bound = certificate.multiplier, in_power(certificate.bound, -sum(certificate.units))
    if system.constant and bound >= 0:
        bound = float("inf")  # any bound holds: only N for γ → ∞, Condition 1, is left to prove
    low, high = certificate.slopes
    if not (low == 0 < high <= 1 and Slopes(low, high).contains(system.slopes)):
        raise CertificateError(f"the certificate is for slopes in {certificate.slopes}, the map has {system.slopes}")
    if lam is None or certificate.norm is not Norm.L2 or not bound > 0:
        raise CertificateError("a certificate per frequency is an ℓ2 bound with a multiplier")
    weights = system.weights
    if lam.shape != (weights.hidden_features,) or not bool((torch.isfinite(lam) & (lam > 0)).all()):
        raise CertificateError(f"the multiplier must be positive of shape ({weights.hidden_features},)")
    parts = _Parts(system.in_units(certificate.units), lam, bound, high)
    products, blocks = [], []
    for N, N_error, G in parts.blocks():
        factor, info = torch.linalg.cholesky_ex(N)
        if bool((info != 0).any()):
            raise _refusal(certificate)
        half = torch.linalg.solve_triangular(factor, G, upper=False)
        products.append(half.mH @ half)
        blocks.append((N, N_error, G))
    approximate = torch.cat(products)
    room = 1 - float(torch.linalg.eigvalsh((parts.share[:, None, None] * approximate.real).sum(0))[-1])
    if not room > 0:
        raise _refusal(certificate)
    identity = torch.eye(approximate.shape[-1], dtype=torch.complex128)
    S = (approximate + approximate.mH) / 2 * (1 + room / 4) + room / 4 * identity
    margins = [parts.norm_margin]
    for (N, N_error, G), corner in zip(blocks, torch.split(S, _BLOCK), strict=True):
        matrix = torch.cat([torch.cat([N, G], 2), torch.cat([G.mH, corner], 2)], 1)
        G_error = parts.G_error.expand(G.shape)
        error = torch.cat([torch.cat([N_error, G_error], 2), torch.cat([G_error.mT, 0 * corner.real], 2)], 1)
        margins.append(float(definite_margins(matrix, error + SMALLEST).min()))
    total = (parts.share[:, None, None] * S.real).sum(0)
    rounding = (len(S) + 8) * UNIT * (parts.share[:, None, None] * sizes(S.real)).sum(0)
    margins.append(definite_margin(identity.real - total, rounding + 2 * UNIT))
    if not min(margins) > 0:
        raise _refusal(certificate)
    return min(margins)


def _refusal(certificate: LipschitzCertificate) -> CertificateError:
    return CertificateError(f"not certified: the multiplier does not prove that {certificate.bound:.6g} is a constant")


class _Parts:
    """N, Ĝ and their errors, frequency by frequency."""

    def __init__(self, system: ImageSystem, lam: Tensor, bound: float, high: float):
        weights = system.weights
        geometry, C = weights.geometry, weights.geometry.channels
        convolution = convolution_of(weights.state)
        if convolution is None:
            raise PreconditionError(f"a proof per frequency needs a convolution as W, got {type(weights.state)}")
        self.grid = geometry.grid
        scale, largest, least = _multiplier(weights.state, lam, C)
        kernel = as_double(weights.input_kernel)
        weighted = kernel if largest is None else largest.reshape(-1, *[1] * (kernel.ndim - 1)) * kernel
        gram, of_sizes = sampled_gram(weighted, geometry), sampled_gram(sizes(weighted), geometry)
        terms = kernel[0].numel() + 4  # two of them for the weights of the channels
        V, V_error = self._symbol(as_double(convolution.kernel), None)
        Q, Q_error = self._symbol(gram, terms * UNIT * of_sizes)
        identity = torch.eye(C, dtype=torch.complex128)
        self.norm_margin = 1.0
        if largest is not None:
            top = float(torch.linalg.eigvalsh(Q)[:, -1].max()) * (1 + 1e-9) + float(Q_error.sum()) + SMALLEST
            self.norm_margin = float(definite_margins(top * identity - Q, Q_error + 2 * UNIT * top + SMALLEST).min())
            Q, Q_error = (top * identity).expand(Q.shape), 0 * Q_error
        own = (1 - high) * least + high  # times the identity; where Λ is free it is one
        multiplied = 4 * UNIT * (high * _total(sizes(as_double(convolution.kernel))) + torch.diag(own))
        self.A, self.A_error = own[:, None] * identity - high * V, 1.01 * (high * V_error + multiplied)
        share = high / bound
        self.Q, self.Q_error = Q * share * share, Q_error * share * share
        self.scale = scale
        rows = geometry.average_adjoint(as_double(weights.output))
        rounding = 2 * UNIT * sizes(rows)
        if system.output_error is not None:
            rounding = rounding + (1 + 4 * UNIT) * geometry.average_adjoint(as_double(system.output_error))
        images, errors = (t.reshape(-1, C, *self.grid) for t in (rows, rounding))
        waves, positions = [_waves(self.grid, [torch.arange(n) for n in self.grid], -1), sum(self.grid)]
        self.G = _transformed(images, waves).permute(0, 2, 1)
        self.G_error = (_rate(positions) * _total(sizes(images)) + 1.01 * _total(errors)).mT
        height, *rest = self.grid
        half = torch.arange(height // 2 + 1)
        twice = torch.where((half == 0) | (2 * half == height), 1.0, 2.0).to(torch.float64)
        count = int(torch.tensor(rest).prod()) if rest else 1
        self.share = twice.repeat_interleave(count) / (height * count)

    def _symbol(self, kernel: Tensor, error: Tensor | None) -> tuple[Tensor, Tensor]:
        """Σ_d k(d)e^{2πi f·d/N}, (F, out, in), and what it may be wrong by at every frequency, (out, in)."""
        offsets = [torch.arange(side) - side // 2 for side in kernel.shape[2:]]
        symbol = _transformed(kernel, _waves(self.grid, offsets, 1))
        wrong = _rate(sum(kernel.shape[2:])) * _total(sizes(kernel))
        return symbol, wrong if error is None else wrong + 1.01 * _total(error)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """N, its entrywise error, and Ĝ, a few frequencies at a time."""
        rows, columns = self.scale[:, None], self.scale[None, :]
        for A, Q, G in zip(*(torch.split(t, _BLOCK) for t in (self.A, self.Q, self.G)), strict=True):
            half, square = rows * A, rows * Q * columns
            size = sizes(half) + sizes(half.mH) + sizes(square)
            given = rows * self.A_error + (rows * self.A_error).mT + rows * self.Q_error * columns
            yield half + half.mH - square, 1.01 * (given + 14 * UNIT * size), G


def _multiplier(state: LinearMap, lam: Tensor, channels: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Λ per channel, None and ones; where it varies t for every channel, and the largest and least Ψ⁻¹ in each."""
    if not isinstance(state, Scaled):
        values = per_channel(lam, channels)
        if values is None:
            raise CertificateError("the multiplier must be constant over the image")
        return values, None, torch.ones_like(values)
    inverse = 1 / as_double(state.left)
    ratio = lam / inverse
    if float(ratio.max() - ratio.min()) > _SAME * float(ratio.max()):
        raise CertificateError("the multiplier must be a multiple of the metric of W")
    each = inverse.reshape(channels, -1)
    return ratio.mean().expand(channels), each.amax(1), each.amin(1)


def _waves(grid: tuple[int, ...], positions: list[Tensor], sign: int) -> list[Tensor]:
    """e^{±2πi f·p/N} of each axis, (frequencies, positions); half of the frequencies on the first axis."""
    waves = []
    for axis, (size, at) in enumerate(zip(grid, positions, strict=True)):
        count = size // 2 + 1 if axis == 0 else size
        turns = (torch.arange(count)[:, None] * at % size).to(torch.float64) / size
        phase = turns * (2 * torch.pi)
        waves.append(torch.complex(phase.cos(), sign * phase.sin()))
    return waves


def _transformed(values: Tensor, waves: list[Tensor]) -> Tensor:
    """(a, b, *positions) -> (frequencies, a, b), the last axis first."""
    result = values.to(torch.complex128)
    for wave in reversed(waves):
        result = torch.tensordot(result, wave, dims=([2 + len(waves) - 1], [1])).movedim(-1, 2)
    return result.flatten(2).movedim(-1, 0)


def _rate(lengths: int) -> float:
    """c of the module's docstring."""
    return 1.01 * (3 * lengths + 70) * UNIT


def _total(values: Tensor) -> Tensor:
    """Σ over positions: (a, b, *positions) -> (a, b)."""
    return values.flatten(2).sum(-1)
