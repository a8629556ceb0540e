r"""The one judge of every Lipschitz certificate: explicit matrices in, yes or no out, with an allowance for rounding.

It shares no formula with the finders. A matrix is proved positive definite by the Cholesky factorisation of
``contracting.certificates.definite``, whose shift covers the rounding of assembling the matrix, entry by entry, what
may underflow in it, and the errors that the system declares of its own matrices.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from contracting.certificates.balance import balancing, rescale
from contracting.certificates.definite import SMALLEST, UNIT, definite_margin, sizes
from contracting.certificates.multipliers import perron_weights
from contracting.certificates.records import CertificateError
from equilibrium.lipschitz.certificate import Couplings, LipschitzCertificate, Norm
from equilibrium.lipschitz.system import LipschitzSystem, in_power, times_power

_ASSEMBLY = 16  # roundings of one entry beside those of its inner products
_FAIL = -float("inf")


def check_lipschitz(certificate: LipschitzCertificate, system: LipschitzSystem) -> float:
    """Prove again, from explicit matrices only, that a certificate holds for a map.

    Args:
        certificate: its bound, norm and slopes, and its multiplier, state gains or rows; nothing else is read.
        system: the matrices of the map it is claimed to be about.

    Returns:
        The margin, > 0: of the matrix inequality scaled to unit diagonal, or relative to the bound (elementwise).

    Raises:
        CertificateError: if the proof fails: another map, a bound too small, or rounding in the way.
    """
    low, high = certificate.slopes
    if not 0 <= low <= high <= 1 or system.slopes[0] < low or system.slopes[1] > high:
        raise CertificateError(f"the certificate is for slopes in {certificate.slopes}, the map has {system.slopes}")
    p, q = certificate.units
    scaled, bound = system.in_units(certificate.units), in_power(certificate.bound, -p - q)
    margin = _FAIL
    if certificate.branches is not None:
        margin = _branches_margin(certificate, scaled, bound)
    elif certificate.multiplier is not None:
        margin = _multiplier_margin(certificate, scaled, bound)
    elif certificate.state_gains is not None:
        margin = _elementwise_margin(certificate, scaled, bound)
    elif certificate.rows is not None:
        margin = _row_margin(certificate, scaled, bound)
    if not margin > 0:
        raise CertificateError(
            f"not certified: {certificate.norm.value} constant {certificate.bound:.6g} by {certificate.method}"
        )
    return margin


def checked(certificate: LipschitzCertificate, system: LipschitzSystem) -> LipschitzCertificate:
    """The certificate with the margin that the checker found, and the fingerprint of what it is about.

    Raises:
        CertificateError: if it does not hold.
    """
    return replace(certificate, margin=check_lipschitz(certificate, system), about=system.fingerprint)


def _multiplier_margin(certificate: LipschitzCertificate, system: LipschitzSystem, bound: float) -> float:
    r"""Margin of bound²‖Δx‖² − ‖Δy‖² − 2Σλᵢ(Δzᵢ − aΔvᵢ)(bΔvᵢ − Δzᵢ) ≻ 0 as a form in (Δz, Δx), Δv = WΔz + UΔx.

    The slopes make every summand nonnegative, so ‖Δy‖ ≤ bound·‖Δx‖. Its (Δz, Δz) block, [Condition 1], makes the
    equilibrium unique; where y does not depend on x, that block alone is left to prove.
    """
    lam, n = certificate.multiplier, system.size
    if certificate.norm is not Norm.L2 or lam is None or lam.shape != (n,):
        return _FAIL
    low, high = (torch.full((n,), end, dtype=torch.float64) for end in certificate.slopes)
    return _form_margin(system, lam, low, high, bound)


def _branches_margin(certificate: LipschitzCertificate, system: LipschitzSystem, bound: float) -> float:
    r"""The least margin of all cases, if they cover every pattern of ends of the slopes, and of Condition 1.

    With Condition 1 no I − JW is singular. The gain C(I − JW)⁻¹JU + D moves along one matrix of rank one while a slope
    goes through its interval, in one direction, so that its norm is largest at an end: patterns of ends bound every J.
    Where a slope is fixed, a = b, the summand −2λ(Δz − aΔv)² of ``_multiplier_margin`` is zero. With every slope at an
    end one of pᵢ, rᵢ and one of pⱼ, rⱼ is zero, and a coupling of i and j is a square, of h_x x − s_xy h_y y of the
    other two.
    """
    assert certificate.branches is not None
    (patterns, multipliers), n, root = certificate.branches, system.size, certificate.multiplier
    if certificate.norm is not Norm.L2 or root is None or root.shape != (n,):
        return _FAIL
    if patterns.ndim != 2 or patterns.shape != multipliers.shape or patterns.shape[1] != n or not _covering(patterns):
        return _FAIL
    low, high = (torch.full((n,), end, dtype=torch.float64) for end in certificate.slopes)
    nothing = (torch.zeros_like(system.U), torch.zeros_like(system.C), torch.zeros_like(system.D))
    none = replace(system, C=nothing[1], D=nothing[2], errors=nothing)
    margin = _form_margin(none, root, low, high, bound)
    coupled = None if certificate.couplings is None else _coupled(certificate.couplings, system, certificate.slopes)
    for pattern, lam in zip(patterns, multipliers, strict=True):
        ends = torch.where(pattern > 0, high, low), torch.where(pattern == 0, low, high)
        margin = min(margin, _form_margin(system, lam, *ends, bound, coupled))
    return margin


def _coupled(couplings: Couplings, system: LipschitzSystem, slopes: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The sum of the couplings as a form in (Δz, Δx), and an entrywise bound of what it is wrong by.

    Raises:
        CertificateError: if they are not about two neurons each, with finite weights and signs ±1.
    """
    neurons, weights, signs = couplings.neurons, couplings.weights, couplings.signs
    (low, high), n, count = slopes, system.size, len(neurons)
    shaped = neurons.shape == (count, 2) and weights.shape == (count, 4) and signs.shape == (count, 2, 2)
    if not (shaped and bool(torch.isfinite(weights).all()) and bool((signs.abs() == 1).all())):
        raise CertificateError("couplings need two neurons, four finite weights and four signs ±1 each")
    apart = neurons.dtype == torch.int64 and bool((neurons[:, 0] != neurons[:, 1]).all())
    if not (apart and bool(((neurons >= 0) & (neurons < n)).all())):
        raise CertificateError(f"a coupling is about two different neurons of {n}")
    places = torch.stack([neurons[:, 0], neurons[:, 0] + n, neurons[:, 1], neurons[:, 1] + n], 1)
    forms = torch.diag_embed(weights.square())
    forms[:, :2, 2:] = -signs * weights[:, :2, None] * weights[:, None, 2:]
    forms[:, 2:, :2] = forms[:, :2, 2:].mT
    flat = (places[:, :, None] * 2 * n + places[:, None]).flatten()
    B, B_size = (
        torch.zeros(4 * n * n, dtype=torch.float64).index_add_(0, flat, part.flatten()).reshape(2 * n, 2 * n)
        for part in (forms, sizes(forms))
    )
    V = torch.cat([system.W, system.U], 1)
    V_error = torch.cat([_state_error(system), system.errors[0]], 1)
    states = torch.eye(*V.shape, dtype=torch.float64)
    S, S_size = torch.cat([states - low * V, high * V - states]), torch.cat([states + low * V.abs()] * 2)
    S_size[n:] = states + high * V.abs()
    S_error = torch.cat([low * V_error, high * V_error])
    cross = S_size.mT @ B_size @ S_error
    error = cross + cross.mT + S_error.mT @ B_size @ S_error
    return S.mT @ B @ S, error + (4 * n + count + 2 * _ASSEMBLY) * UNIT * (S_size.mT @ B_size @ S_size)


def _covering(patterns: Tensor) -> bool:
    """Whether every pattern of ends belongs to one of these cases: −1 leaves an end open, 0 and 1 are the low and high.

    Any two must differ in an end that both fix; then their shares of all patterns add up, and to one if all are there.
    """
    if not bool(((patterns == -1) | (patterns == 0) | (patterns == 1)).all()):
        return False
    fixed = (patterns >= 0).sum(1)
    apart = (patterns[:, None] + patterns == 1) & (patterns[:, None] >= 0) & (patterns >= 0)
    others = ~torch.eye(len(patterns), dtype=torch.bool)
    shares = torch.ldexp(torch.ones(len(patterns), dtype=torch.float64), -fixed)
    return bool(fixed.max() < 50) and bool(apart.any(-1)[others].all()) and float(shares.sum()) == 1.0


def _form_margin(
    system: LipschitzSystem,
    lam: Tensor,
    low: Tensor,
    high: Tensor,
    bound: float,
    coupled: tuple[Tensor, Tensor] | None = None,
) -> float:
    """Of the form in ``_multiplier_margin``, for one interval of slopes for each neuron, (n,) each, less couplings."""
    n = system.size
    if not bool((torch.isfinite(lam) & (lam > 0)).all()) or not 0 <= bound < float("inf"):
        return _FAIL
    U_error, C_error, D_error = system.errors
    V, Y = torch.cat([system.W, system.U], 1), torch.cat([system.C, system.D], 1)
    V_error = torch.cat([_state_error(system), U_error], 1)
    Y_error = torch.cat([C_error, D_error], 1)
    if system.constant:
        V, Y, V_error, Y_error = V[:, :n], 0 * Y[:, :n], V_error[:, :n], 0 * Y_error[:, :n]
    total = V.shape[1]
    cross = torch.zeros(total, total, dtype=torch.float64)
    middle = ((low + high) * lam)[:, None]
    cross[:n] = middle * V
    cross_error = torch.zeros_like(cross)
    cross_error[:n] = middle * V_error
    diagonal = torch.cat([2 * lam, torch.full((total - n,), bound * bound, dtype=torch.float64)])
    matrix = torch.diag(diagonal) - (cross + cross.mT) - Y.mT @ Y
    size = torch.diag(diagonal) + cross.abs() + cross.mT.abs() + Y.abs().mT @ Y.abs()
    product_error = Y.abs().mT @ Y_error
    error = cross_error + cross_error.mT + product_error + product_error.mT + Y_error.mT @ Y_error
    if bool((low > 0).any()):
        root = (2 * low * high * lam).sqrt()[:, None]
        scaled, scaled_error = root * V, root * V_error
        matrix = matrix + scaled.mT @ scaled
        size = size + sizes(scaled).mT @ sizes(scaled)
        half = sizes(scaled).mT @ scaled_error
        error = error + half + half.mT + scaled_error.mT @ scaled_error
    if coupled is not None:
        matrix = matrix - coupled[0][:total, :total]
        size, error = size + sizes(coupled[0])[:total, :total], error + coupled[1][:total, :total]
    inner = max(n, system.C.shape[0]) + _ASSEMBLY
    return definite_margin(matrix, 1.01 * (inner * UNIT * (size + SMALLEST) + error))


def _elementwise_margin(certificate: LipschitzCertificate, system: LipschitzSystem, bound: float) -> float:
    r"""Relative room between the bound and the norm of |C|X + |D|, if X ≥ (I − ⌈bW⌉)⁻¹|bU| is proved, else −inf.

    With T = I − ⌈bW⌉ (no positive entry off the diagonal): a v > 0 with Tv > 0 proves T⁻¹ ≥ 0, and then TX ≥ |bU|
    proves X ≥ T⁻¹|bU|. Slopes in [0, b] give T|Δz| ≤ |bU||Δx|.
    """
    X, high = certificate.state_gains, certificate.slopes[1]
    if X is None or X.shape != system.U.shape or not bool((X >= 0).all()) or not bool(torch.isfinite(X).all()):
        return _FAIL
    n, T, error = system.size, comparison(system.W, high), _state_error(system)
    v = positive_vector(T - high * error)
    rounding = (n + _ASSEMBLY) * UNIT
    size = sizes(high * system.W) + torch.eye(n, dtype=torch.float64) + high * error
    T = T - high * (1 + 4 * UNIT) * error
    if v is None or not bool((T @ v > rounding * (size @ v)).all()):
        return _FAIL
    target = high * (system.U.abs() + system.errors[0])
    if not bool((T @ X >= target * (1 + 4 * UNIT) + rounding * (size @ sizes(X))).all()):
        return _FAIL
    gains = (sizes(system.C) + system.errors[1]) @ X + system.D.abs() + system.errors[2]
    needed = norm_of(gains, certificate.norm) * (1 + 2 * (n + sum(gains.shape)) * UNIT)
    if certificate.entrywise is not None:
        claimed = times_power(certificate.entrywise, -sum(certificate.units))
        if claimed.shape != gains.shape or not bool((claimed >= gains * (1 + 4 * n * UNIT)).all()):
            return _FAIL
    return (bound - needed) / max(needed, SMALLEST)


def _row_margin(certificate: LipschitzCertificate, system: LipschitzSystem, bound: float) -> float:
    r"""Relative room between the bound and the largest of the rows' own, each proved in ℓ2 for its units of the inputs.

    With x = u∘ξ, ‖Δξ‖₂ ≤ ‖1/u‖₂‖Δx‖∞, so that a row with a constant γ in ξ has the constant γ‖1/u‖₂ in ℓ∞.
    """
    rows, units = certificate.rows, certificate.input_units
    if rows is None or units is None or certificate.norm not in (Norm.L1, Norm.LINF):
        return _FAIL
    system = turned(system, certificate.norm)
    outputs, inputs = system.D.shape
    usable = len(rows) == outputs and units.shape == (outputs, inputs)
    if not (usable and bool((torch.isfinite(units) & (units > 0)).all())):
        return _FAIL
    needed = 0.0
    for i, row in enumerate(rows):
        if row.norm is not Norm.L2:
            return _FAIL
        check_lipschitz(row, single_output(system, i, units[i]))
        reach = float(torch.linalg.vector_norm(1 / units[i])) * (1 + 2 * (inputs + _ASSEMBLY) * UNIT)
        needed = max(needed, row.bound * reach * (1 + 4 * UNIT))
    return (bound - needed) / max(needed, SMALLEST)


def _state_error(system: LipschitzSystem) -> Tensor:
    return torch.zeros_like(system.W) if system.state_error is None else system.state_error


def turned(system: LipschitzSystem, norm: Norm) -> LipschitzSystem:
    """The map whose constant in ℓ∞ is that of ``system`` in ``norm``: itself, or in ℓ1 that of Wᵀ, Cᵀ, Uᵀ and Dᵀ."""
    if norm is not Norm.L1:
        return system
    U_error, C_error, D_error = (error.mT for error in system.errors)
    W, U, C, D = (matrix.mT.contiguous() for matrix in (system.W, system.U, system.C, system.D))
    errors = (C_error, U_error, D_error)
    error = None if system.state_error is None else system.state_error.mT
    return replace(system, W=W, U=C, C=U, D=D, errors=errors, state_error=error, metric=None, claimed=None)


def single_output(system: LipschitzSystem, i: int, units: Tensor) -> LipschitzSystem:
    """The map ξ ↦ yᵢ for inputs x = u∘ξ, (in,)."""
    U_error, C_error, D_error = system.errors
    errors = (U_error, C_error[i : i + 1], D_error[i : i + 1])
    row = replace(system, C=system.C[i : i + 1], D=system.D[i : i + 1], errors=errors, claimed=None)
    return row.with_input(torch.diag(units))


def positive_vector(T: Tensor) -> Tensor | None:
    """v > 0 with Tv > 0, or None; T has no positive entry off the diagonal. Any will do: it is tried, not trusted.

    It is sought in the coordinates of the Perron vector of −T, balanced first, in which graded weights are not.
    """
    scale = balancing(T)
    balanced = rescale(T, scale)
    _, right = perron_weights(-balanced)
    scaled = balanced * right / right[:, None]
    v = right / scale * torch.linalg.lstsq(scaled, torch.ones(len(T), 1, dtype=torch.float64)).solution[:, 0]
    return v if bool((torch.isfinite(v) & (v > 0)).all()) else None


def comparison(W: Tensor, high: float) -> Tensor:
    """T = I − ⌈bW⌉, b the largest slope."""
    T = -high * W.abs()
    T.diagonal().copy_(1 - high * W.diagonal())
    return T


def norm_of(gains: Tensor, norm: Norm) -> float:
    """The operator norm of a matrix that is ≥ 0, not rounded down in ℓ2."""
    if norm is Norm.L1:
        return float(gains.sum(0).max())
    if norm is Norm.LINF:
        return float(gains.sum(1).max())
    # the rounding of a singular value is small against the largest one
    return float(torch.linalg.matrix_norm(gains, 2)) * (1 + 8 * max(gains.shape) ** 1.5 * UNIT)
