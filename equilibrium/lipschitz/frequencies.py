r"""The Lipschitz constant of an equilibrium network on images, certified frequency by frequency: no n×n matrix.

With a diagonal Λ, the network is γ-Lipschitz if N(μ) := 2μH − Q ≻ 0 and t := ‖G N⁻¹Gᵀ‖^½ satisfies μt ≤ γ, where

* 2H = Λ(I − W) + (I − W)ᵀΛ is a convolution: for Λ constant over the image where W is one, and for Λ = Ψ⁻¹ where
  I − W = ΨM;
* Q ⪰ ΛUUᵀΛ is one too. U = SCE is zero padding, convolution on the torus and sampling: UUᵀ ⪯ SCCᵀSᵀ. Where Λ varies
  over the image, ΛUUᵀΛ ⪯ ‖NSC‖²I with N its largest entry in each channel;
* G = W_oP has few rows, so G N⁻¹Gᵀ is a small matrix: one solve per frequency.
* Slopes in [0, h] are those in [0, 1] of the network with hW and hU, where Λ(I − hW) = (1 − h)Λ + hΛ(I − W), and a Λ
  that varies over the image is at least its smallest entry in each channel.

Proof: the multiplier tΛ turns the inequality of arXiv 2010.01732 into γ·2tH − t²ΛUUᵀΛ ⪰ GᵀG. With γ = μt its left side
is ⪰ t²N, and t²N ⪰ GᵀG is, by Schur, G N⁻¹Gᵀ ⪯ t²I. Clamped neurons have slope 0, which the inequality covers. For
given Λ the best μ is found by a search in one variable, and Λ, one entry per channel, by descent on log Λ. How they are
found does not matter: ``frequency_checker`` proves what comes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from contracting.activations.base import Activation
from contracting.certificates.finder import Finder
from contracting.certificates.records import CertificateError
from contracting.certificates.search import golden_section
from contracting.errors import PreconditionError
from contracting.maps.frequencies import over_space, per_channel, symbol_of
from contracting.maps.per_neuron import Scaled
from contracting.maps.transform import shares, spectrum
from equilibrium.convolution.parameterization import sampled_gram
from equilibrium.convolution.weights import ConvolutionalWeights
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz.certificate import LipschitzCertificate, Norm
from equilibrium.lipschitz.composite import Model, matrix_of, parts
from equilibrium.lipschitz.frequency_checker import ImageSystem, check_frequencies
from equilibrium.lipschitz.images import convolution_of
from equilibrium.lipschitz.system import as_double, in_power, linear_map, moving

_DENSE_UP_TO = 1000  # Neurons inside the border up to which the matrix of a W that is no convolution is formed.
_TIGHT_UP_TO = 500  # The same of a convolution, where one multiplier for each neuron takes about ten seconds.
_INFLATIONS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)  # of the bound: the room that the checker needs for rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class FrequencySystem:
    """What the bound is made of, at the frequencies of the real transform, in double precision on the CPU.

    Attributes:
        A: symbol of I − hW, or of what is at most Ψ⁻¹(I − hW), (F, C, C).
        Q: symbol of the bound of h²UUᵀ, or of h²ΛUUᵀΛ where Λ = Ψ⁻¹ is fixed, (F, C, C).
        G: transform of the rows of G, (F, C, out).
        share: what a frequency counts for in an inner product of real images, (F,).
        fixed: Λ = Ψ⁻¹ of every neuron, (n,), where it varies over the image; None where Λ is free per channel.
        start: Λ per channel to start from, (C,).
    """

    A: Tensor
    Q: Tensor
    G: Tensor
    share: Tensor
    fixed: Tensor | None
    start: Tensor

    def at(self, lam: Tensor) -> tuple[Tensor, Tensor]:
        """2H and Q for Λ per channel (all ones stand for a fixed Λ)."""
        scaled = lam[:, None] * self.A
        return scaled + scaled.mH, lam[:, None] * self.Q * lam

    def response(self, N: Tensor) -> Tensor:
        """G N⁻¹Gᵀ, (out, out); fails with an error of torch where an N is not positive definite."""
        factor = torch.linalg.cholesky(N)
        half = torch.linalg.solve_triangular(factor, self.G, upper=False)
        return torch.einsum("f,fki,fkj->ij", self.share.to(half.dtype), half.conj(), half).real


def image_system(
    model: Model, following: Tensor | nn.Linear | None = None, activation: Activation | None = None
) -> ImageSystem | None:
    """The map ``following ∘ model`` if the model is a network on images with more neurons than matrices are for.

    Raises:
        InputError: if ``following`` does not fit.
    """
    before, core, after = parts(model)
    held, slopes = moving(core, activation)
    if isinstance(core, EquilibriumLayer):
        with torch.no_grad():
            core = core.weights()
    if not isinstance(core, ConvolutionalWeights) or any(matrix_of(m, core.in_features) is not None for m in before):
        return None
    if int((~held).sum()) <= (_DENSE_UP_TO if convolution_of(core.state) is None else _TIGHT_UP_TO):
        return None  # its matrix proves a tighter bound
    system = ImageSystem(weights=core, slopes=slopes)
    for module in after:
        if (linear := matrix_of(module, system.weights.out_features)) is not None:
            system = system.with_output(*linear)
    return system if following is None else system.with_output(*linear_map("following", following))


def frequency_system(weights: ConvolutionalWeights, high: float = 1.0) -> FrequencySystem:
    """The system of explicit weights, for slopes in [0, high].

    Raises:
        PreconditionError: if W is no convolution, or the metric is not known.
    """
    geometry = weights.geometry
    grid, C = geometry.grid, geometry.channels
    state = weights.state
    fixed, least = None, torch.ones(C, dtype=torch.float64)
    start = torch.ones(C, dtype=torch.float64)
    kernel = as_double(weights.input_kernel)
    convolution = convolution_of(state)
    if convolution is None:
        promised = "" if weights.lipschitz is None else (
            f"; certified by construction is lipschitz = {float(weights.lipschitz):.6g} of these weights"
        )
        raise PreconditionError(
            f"a bound per frequency needs a convolution as W, got {type(state).__name__}: up to n = {_DENSE_UP_TO} its "
            f"matrix is taken instead, as by certified_lipschitz(weights.dense()), and n is {state.size}{promised}"
        )
    if not isinstance(state, Scaled):
        Q = symbol_of(sampled_gram(kernel, geometry), grid)
        if weights.metric is not None:
            found = per_channel(as_double(weights.metric.weights), C)
            start = start if found is None else found
    else:
        fixed = 1 / as_double(state.left)
        least, largest = fixed.reshape(C, -1).aminmax(dim=1)
        product = symbol_of(sampled_gram(largest.reshape(-1, *[1] * (kernel.ndim - 1)) * kernel, geometry), grid)
        norm = float(torch.linalg.eigvalsh(product)[:, -1].max())
        Q = (norm * torch.eye(C, dtype=torch.complex128)).expand(len(product), C, C)
    W = symbol_of(as_double(convolution.kernel), grid)
    images = geometry.average_adjoint(as_double(weights.output)).reshape(-1, C, *grid)
    G, share = spectrum(images, grid), shares(grid)
    A = torch.diag((1 - high) * least + high) - high * W
    return FrequencySystem(A=A, Q=high**2 * Q, G=G, share=share, fixed=fixed, start=start)


@dataclass(frozen=True, kw_only=True)
class PerFrequency(Finder[ImageSystem, Tensor, LipschitzCertificate]):
    """The ℓ2 Lipschitz constant of a network on images, without a matrix of its size.

    It proposes Λ of every neuron, (n,), of which the ratios count; t and μ are found when it is judged.

    Args:
        steps: of the descent on Λ, where it is free; 0 keeps the metric of the weights.
    """

    steps: int = 30

    name = "per frequency"

    @torch.inference_mode(False)  # whatever mode the caller is in: the descent needs gradients
    def find(self, system: ImageSystem) -> Tensor:
        """Λ.

        Raises:
            PreconditionError: if W is no convolution or no Λ is known for which H ≻ 0.
        """
        small = system.in_units(system.units)
        matrices = frequency_system(small.weights, small.slopes.high)
        lam = matrices.start
        if not math.isfinite(_best_ratio(matrices, lam)[0]):
            raise PreconditionError(
                "no Lipschitz constant can be certified: I − W is not monotone in the metric it claims"
            )
        if matrices.fixed is None and not system.constant:
            lam = _descend(matrices, lam, self.steps)
        return over_space(lam, small.weights.geometry.grid) if matrices.fixed is None else matrices.fixed

    def judge(self, system: ImageSystem, proposal: Tensor) -> LipschitzCertificate:
        """The certificate of Λ at the smallest bound, increased as little as the checker asks for.

        Raises:
            CertificateError: if rounding is in the way of the proof.
        """
        units = system.units
        matrices = frequency_system(system.in_units(units).weights, system.slopes.high)
        lam = proposal if matrices.fixed is None else proposal / matrices.fixed
        bound, scale = _best_ratio(matrices, lam.reshape(len(matrices.start), -1)[:, 0])
        if not 0 <= bound < math.inf:
            raise CertificateError("the multiplier proves no bound: H is not positive definite in it")
        refusal = CertificateError("no inflation of the bound was tried")
        if system.constant:
            bound, scale = 0.0, 1.0
        for inflation in _INFLATIONS:
            inflated = bound * (1 + inflation)
            certificate = LipschitzCertificate(
                bound=in_power(inflated, sum(units)),
                norm=Norm.L2,
                method=self.name,
                slopes=(0.0, system.slopes.high),
                margin=0.0,
                multiplier=proposal if system.constant else inflated * scale * proposal,
                units=units,
                about=system.fingerprint,
            )
            try:
                return replace(certificate, margin=check_frequencies(certificate, system))
            except CertificateError as error:
                refusal = error
        raise refusal


def _best_ratio(system: FrequencySystem, lam: Tensor) -> tuple[float, float]:
    """The smallest μt over μ, and its t; infinite where H is not positive definite."""
    H, Q = system.at(lam)
    factor, info = torch.linalg.cholesky_ex(H)
    if bool((info != 0).any()):
        return math.inf, math.nan
    half = torch.linalg.solve_triangular(factor, Q, upper=False)
    product = torch.linalg.solve_triangular(factor, half.mH, upper=False)
    lowest = float(torch.linalg.eigvalsh((product + product.mH) / 2)[:, -1].max())  # μ of a singular N

    def ratio(log_excess: float) -> tuple[float, float]:
        mu = lowest + math.exp(log_excess)
        try:
            t = float(torch.linalg.eigvalsh(system.response(mu * H - Q))[-1].clamp_min(0)) ** 0.5
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return math.inf, math.nan
        return mu * t, t

    size = math.log(max(lowest, 1e-12))
    best = golden_section(lambda x: ratio(x)[0], size - 12, size + 12)
    return ratio(best)


def _descend(system: FrequencySystem, lam: Tensor, steps: int) -> Tensor:
    """Adam on log Λ for log γ at the best μ (which, being the best, needs no derivative)."""
    best_bound, scale = _best_ratio(system, lam)
    best = lam
    log_lam = lam.log().requires_grad_()
    optimiser = torch.optim.Adam([log_lam], lr=0.1)
    mu = best_bound / scale
    for step in range(steps):
        optimiser.zero_grad()
        H, Q = system.at(log_lam.exp())
        try:
            loss = 0.5 * torch.linalg.eigvalsh(system.response(mu * H - Q))[-1].log()
            loss.backward()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            break
        optimiser.step()
        if step % 5 == 4 or step == steps - 1:
            bound, scale = _best_ratio(system, log_lam.detach().exp())
            if bound < best_bound:
                best_bound, best = bound, log_lam.detach().exp()
            if not math.isfinite(bound):
                break
            mu = bound / scale
    return best
