r"""The Lipschitz constant of an equilibrium network on images, certified frequency by frequency: no n×n matrix.

With a diagonal Λ, the network is γ-Lipschitz if N(μ) := 2μH − Q ≻ 0 and t := ‖G N⁻¹Gᵀ‖^½ satisfies μt ≤ γ, where

* 2H = Λ(I − W) + (I − W)ᵀΛ is a convolution: for Λ constant over the image where W is one, and for Λ = Ψ⁻¹ where
  I − W = ΨM;
* Q ⪰ ΛUUᵀΛ is one too. U = SCE is zero padding, convolution on the torus and sampling: UUᵀ ⪯ SCCᵀSᵀ. Where Λ varies
  over the image, ΛUUᵀΛ ⪯ ‖NSC‖²I with N its largest entry in each channel;
* G = W_oP has few rows, so G N⁻¹Gᵀ is a small matrix: one solve per frequency.

Proof: the multiplier tΛ turns the inequality of arXiv 2010.01732 into γ·2tH − t²ΛUUᵀΛ ⪰ GᵀG. With γ = μt its left side
is ⪰ t²N, and t²N ⪰ GᵀG is, by Schur, G N⁻¹Gᵀ ⪯ t²I. Clamped neurons have slope 0, which the inequality covers. For
given Λ the best μ is found by a search in one variable, and Λ, one entry per channel, by descent on log Λ. How they are
found does not matter: ``check_frequencies`` proves what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.certificates.records import CertificateError
from contracting.errors import PreconditionError
from contracting.maps.base import LinearMap
from contracting.maps.convolution import CircularConvolution
from contracting.maps.frequencies import over_space, per_channel, symbol_of
from contracting.maps.per_neuron import Scaled
from contracting.maps.transform import shares, spectrum
from equilibrium.convolution.parameterization import sampled_gram
from equilibrium.convolution.weights import ConvolutionalWeights
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz.certificate import LipschitzCertificate, Norm
from equilibrium.lipschitz.system import Model, as_double

_ROUNDING = 1e-12  # of the size of a symbol: what its transform and assembly in float64 may be wrong by, generously
_DENSE_UP_TO = 1000  # n for which the matrix of a W that is no convolution is formed instead
_INFLATIONS = (1e-9, 1e-7, 1e-5, 1e-3)


@dataclass(frozen=True, kw_only=True, eq=False)
class FrequencySystem:
    """What the bound is made of, at the frequencies of the real transform, in double precision on the CPU.

    Attributes:
        A: symbol of I − W, or of M where I − W = ΨM, (F, C, C).
        Q: symbol of the bound of UUᵀ, or of ΛUUᵀΛ where Λ = Ψ⁻¹ is fixed, (F, C, C).
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


def image_weights(model: Model, following: Tensor | nn.Linear | None = None) -> ConvolutionalWeights | None:
    """The explicit weights of ``following ∘ model`` if the model is a network on images, else None.

    None also where W is no convolution, for instance because it contains the readout, and n allows for its matrix.

    Raises:
        InputError: if ``following`` does not fit.
    """
    if isinstance(model, EquilibriumLayer):
        with torch.no_grad():
            weights = model.weights()
    else:
        weights = model
    if not isinstance(weights, ConvolutionalWeights):
        return None
    if _convolution(weights.state) is None and weights.hidden_features <= _DENSE_UP_TO:
        return None  # its matrix is another way
    if following is None:
        return weights
    rows = (following.weight if isinstance(following, nn.Linear) else following).detach().to(weights.output)
    checks.last_size("following", rows, weights.out_features)
    # in float64, where the product is exact to a rounding that the proof allows for
    exact = weights.double()
    return replace(exact, output=rows.double() @ exact.output, output_bias=rows.new_zeros(len(rows)).double())


def _convolution(state: LinearMap) -> CircularConvolution | None:
    """V where W = V or W = I − Ψ(I − V) is made of a convolution V, else None."""
    if isinstance(state, Scaled) and bool((state.right == 1).all()):
        state = state.inner
    return state if isinstance(state, CircularConvolution) else None


def frequency_system(weights: ConvolutionalWeights) -> FrequencySystem:
    """The system of explicit weights.

    Raises:
        PreconditionError: if W is no convolution, or the metric is not known.
    """
    geometry = weights.geometry
    grid, C = geometry.grid, geometry.channels
    state = weights.state
    fixed = None
    start = torch.ones(C, dtype=torch.float64)
    kernel = as_double(weights.input_kernel)
    convolution = _convolution(state)
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
        largest = fixed.reshape(C, -1).amax(1)
        product = symbol_of(sampled_gram(largest.reshape(-1, *[1] * (kernel.ndim - 1)) * kernel, geometry), grid)
        norm = float(torch.linalg.eigvalsh(product)[:, -1].max()) * (1 + _ROUNDING)
        Q = (norm * torch.eye(C, dtype=torch.complex128)).expand(len(product), C, C)
    W = symbol_of(as_double(convolution.kernel), grid)
    images = geometry.average_adjoint(as_double(weights.output)).reshape(-1, C, *grid)
    G, share = spectrum(images, grid), shares(grid)
    return FrequencySystem(A=torch.eye(C, dtype=torch.complex128) - W, Q=Q, G=G, share=share, fixed=fixed, start=start)


def frequency_bound(weights: ConvolutionalWeights, *, steps: int = 30) -> LipschitzCertificate:
    """A certified ℓ2 Lipschitz constant of x ↦ y of a network on images.

    Args:
        weights: explicit weights.
        steps: of the descent on Λ, where it is free; 0 keeps the metric of the weights.

    Raises:
        PreconditionError: if W is no convolution or no Λ is known for which H ≻ 0.
        CertificateError: if rounding is in the way of the proof.
    """
    system = frequency_system(weights)
    lam = system.start
    if not math.isfinite(_best_ratio(system, lam)[0]):
        raise PreconditionError("no Lipschitz constant can be certified: I − W is not monotone in the metric it claims")
    if system.fixed is None:
        lam = _descend(system, lam, steps)
    bound, scale = _best_ratio(system, lam)
    everywhere = over_space(lam, weights.geometry.grid) if system.fixed is None else system.fixed
    refusal = CertificateError("no inflation of the bound was tried")
    for inflation in _INFLATIONS:  # the margin has to cover the rounding that the proof allows for
        inflated = bound * (1 + inflation)
        certificate = LipschitzCertificate(
            bound=inflated,
            norm=Norm.L2,
            method="per frequency",
            slopes=(0.0, 1.0),
            margin=0.0,
            multiplier=inflated * scale * everywhere,
        )
        try:
            return replace(certificate, margin=check_frequencies(certificate, weights))
        except CertificateError as error:
            refusal = error
    raise refusal


def check_frequencies(certificate: LipschitzCertificate, weights: ConvolutionalWeights) -> float:
    r"""Prove a certificate again from the explicit weights: its bound and multiplier are read, nothing else.

    With the multiplier Λ, N = 2H − Q/bound² ≻ 0 is proved by Cholesky factorisations of N − δI, which also gives
    λmin(N) ≥ δ; and G N⁻¹Gᵀ ⪯ I from an approximate X ≈ N⁻¹Gᵀ whose residual R = Gᵀ − NX is charged:
    G N⁻¹Gᵀ = GX + X ᵀR + RᵀN⁻¹R, so ‖G N⁻¹Gᵀ‖ ≤ ‖GX‖ + ‖X‖‖R‖ + ‖R‖²/δ. Every symbol may be wrong by 10⁻¹² of its size.

    Returns:
        The margin 1 − ‖G N⁻¹Gᵀ‖, > 0.

    Raises:
        CertificateError: if the proof fails.
    """
    lam, bound = certificate.multiplier, certificate.bound
    if certificate.norm is not Norm.L2 or lam is None or certificate.slopes != (0.0, 1.0) or not bound > 0:
        raise CertificateError("a certificate per frequency is an ℓ2 bound for slopes in [0, 1] with a multiplier")
    system = frequency_system(weights)
    if lam.shape != (weights.hidden_features,) or not bool((torch.isfinite(lam) & (lam > 0)).all()):
        raise CertificateError(f"the multiplier must be positive of shape ({weights.hidden_features},)")
    if system.fixed is None:
        values = per_channel(lam, len(system.start))
    else:
        ratio = lam / system.fixed
        same = float(ratio.max() - ratio.min()) <= _ROUNDING * float(ratio.max())
        values = ratio.mean().expand(len(system.start)) if same else None
    if values is None:
        raise CertificateError("the multiplier must be constant over the image, or a multiple of the metric of W")
    H, Q = system.at(values)
    N = H - Q / bound**2
    size = float((H.abs().sum(-1) + Q.abs().sum(-1) / bound**2).max())
    allowance = _ROUNDING * size * N.shape[-1]
    identity = torch.eye(N.shape[-1], dtype=N.dtype)
    delta = 0.0
    for candidate in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
        shifted = N - (candidate * size + allowance) * identity
        if not bool((torch.linalg.cholesky_ex(shifted)[1] != 0).any()):
            delta = candidate * size
            break
    if delta == 0.0:
        raise CertificateError(f"not certified: the multiplier does not prove that {bound:.6g} is a Lipschitz constant")
    X = torch.linalg.solve(N, system.G)
    share = system.share.to(N.dtype)
    product = torch.einsum("f,fki,fkj->ij", share, system.G.conj(), X).real

    def norm(columns: Tensor) -> float:
        return math.sqrt(float((system.share[:, None, None] * columns.abs().square()).sum()))

    residual = norm(system.G - N @ X) + allowance * norm(X) + _ROUNDING * norm(system.G)
    error = 2 * norm(X) * residual + residual**2 / delta
    margin = 1 - float(torch.linalg.matrix_norm((product + product.mT) / 2, 2)) * (1 + _ROUNDING) - error
    if not margin > 0:
        raise CertificateError(f"not certified: {bound:.6g} is too small a Lipschitz constant for this multiplier")
    return margin


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
    best = _golden_section(lambda x: ratio(x)[0], size - 12, size + 12)
    return ratio(best)


def _golden_section(function: Callable[[float], float], low: float, high: float, steps: int = 40) -> float:
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(steps):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = function(right)
    return left if at_left <= at_right else right


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
