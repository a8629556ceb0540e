r"""Entrywise bounds: |Δy| ≤ (|C|(I − ⌈W⌉)⁻¹|U| + |D|)|Δx|, ⌈W⌉ = |W| off the diagonal and W on it.

One linear solve bounds every input–output pair and every ℓp norm. It needs α(⌈W⌉) < 1 (α the spectral abscissa), which
is more than Condition 1 and fails for most trained networks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contracting.certificates.records import CertificateError
from contracting.errors import PreconditionError
from equilibrium.lipschitz.certificate import LipschitzCertificate, Norm
from equilibrium.lipschitz.checker import checked
from equilibrium.lipschitz.system import LipschitzSystem


def elementwise_bound(system: LipschitzSystem, norm: Norm = Norm.L2) -> LipschitzCertificate:
    """The Lipschitz constant in ``norm`` from the entrywise bound; ``entrywise`` holds the constant of every pair.

    Slopes in [0, b] are used: a positive smallest slope does not help.

    Raises:
        PreconditionError: if α(⌈bW⌉) ≥ 1: use an ℓ2 bound.
    """
    high = system.slopes[1]
    rounded = high * system.W.abs()
    rounded.diagonal().copy_(high * system.W.diagonal())
    if not float(torch.linalg.eigvals(rounded).real.max()) < 1:
        raise PreconditionError(
            "the elementwise bound needs the spectral abscissa of |W| (diagonal as it is) to be below 1; "
            "use the ℓ2 bounds, which need Condition 1 only"
        )
    T = torch.eye(system.size, dtype=torch.float64) - rounded
    target = high * (system.U.abs() + system.errors[0])
    scale = float(target.max().clamp_min(1e-300))
    for slack in (1e-13, 1e-11, 1e-9, 1e-7):
        X: Tensor = torch.linalg.solve(T, target * (1 + slack) + slack * scale).clamp_min(0)
        gains = (system.C.abs() + system.errors[1]) @ X + system.D.abs() + system.errors[2]
        gains = gains * (1 + slack)
        certificate = LipschitzCertificate(
            bound=_NORMS[norm](gains) * (1 + slack + 1e-12 + 1e-15 * max(gains.shape) ** 1.5),
            norm=norm,
            method="elementwise",
            slopes=(0.0, high),
            margin=0.0,
            state_gains=X,
            entrywise=gains * (1 + 1e-14 * system.size),
        )
        try:
            return checked(certificate, system)
        except CertificateError:
            continue
    raise PreconditionError("the elementwise bound is lost in rounding: |W| is too close to its limit")


def _spectral(gains: Tensor) -> float:
    return float(torch.linalg.matrix_norm(gains, 2))


def _columns(gains: Tensor) -> float:
    return float(gains.sum(0).max())


def _rows(gains: Tensor) -> float:
    return float(gains.sum(1).max())


_NORMS = {Norm.L1: _columns, Norm.L2: _spectral, Norm.LINF: _rows}
