"""Gain and passivity: what linear systems at fixed slopes show is not exceeded, and is nearly reached."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from contracting.certificates import (
    CertificateError,
    FiringRateSystem,
    GainCertificate,
    PassivityCertificate,
    certify_gain,
    certify_passivity,
    check,
)
from contracting.certificates.lure.views import lure_view
from contracting.errors import InputError, PreconditionError
from contracting.lure.system import LureSystem
from contracting.metrics import FullP
from equilibrium.lipschitz import InteriorPoint, LipschitzSystem
from tests.contracting.certificates.lure.lure_instances import corners, normal, random_system, seeded


def transfers(system: LureSystem) -> Tensor:
    """From u to y at every vertex of the slopes and many frequencies, (vertices, frequencies, p, k)."""
    assert system.B2 is not None and system.D12 is not None and system.C2 is not None
    assert system.D21 is not None and system.D22 is not None
    J = torch.diag_embed(corners(system))
    loop = J @ torch.linalg.inv(torch.eye(system.neurons).double() - system.D @ J)
    A, B = system.A + system.B @ loop @ system.C, system.B2 + system.B @ loop @ system.D12
    C, D = system.C2 + system.D21 @ loop @ system.C, system.D22 + system.D21 @ loop @ system.D12
    omega = torch.cat([torch.zeros(1), torch.logspace(-2, 3, 100)]).to(torch.complex128)
    resolvent = 1j * omega[:, None, None] * torch.eye(system.size) - A[:, None]
    return C.to(omega.dtype)[:, None] @ torch.linalg.solve(resolvent, B.to(omega.dtype)[:, None]) + D[:, None]


def best_by_program(system: LureSystem, *, gain: bool) -> float:
    """The best γ or ν for all P and Λ at slopes in [0, 1], by a semidefinite program."""
    cp = pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    names = ("A", "B", "C", "D", "B2", "D12", "C2", "D21", "D22")
    A, B, C, D, B2, D12, C2, D21, D22 = (getattr(system, name).numpy() for name in names)
    (n, m), k = B.shape, D22.shape[1]
    identity = np.eye(n + m + k)
    s, w, u = identity[:n], identity[n : n + m], identity[n + m :]
    field, v, y = np.hstack([A, B, B2]), np.hstack([C, D, D12]), np.hstack([C2, D21, D22])
    P, lam, level = cp.Variable((n, n), symmetric=True), cp.Variable(m, nonneg=True), cp.Variable()
    half = s.T @ P @ field + w.T @ cp.diag(lam) @ (v - w)
    supply = level * u.T @ u - y.T @ y if gain else y.T @ u + u.T @ y - 2 * level * u.T @ u
    goal = cp.Minimize(level) if gain else cp.Maximize(level)
    cp.Problem(goal, [supply - half - half.T >> 0, P >> 0]).solve(solver=cp.CLARABEL)
    return float(level.value) ** 0.5 if gain else float(level.value)


@pytest.mark.parametrize("seed", [1, 3])
def test_gain_and_passivity_are_nearly_those_of_the_worst_slopes_and_frequency(seed: int) -> None:
    system = random_system(seed, inputs=2, intervals="random")
    gain, passivity, found = certify_gain(system), certify_passivity(system), transfers(system)
    shown = float(torch.linalg.matrix_norm(found, 2).max())
    assert shown <= gain.gain <= 1.05 * shown
    assert passivity.input_index <= float(torch.linalg.eigvalsh((found + found.mH) / 2).min())
    assert check(gain, system) == gain.margin > 0 and check(passivity, system) > 0 and not passivity.passive
    view = lure_view(system).system
    assert gain.gain == pytest.approx(best_by_program(view, gain=True), rel=1e-3)
    assert passivity.input_index == pytest.approx(best_by_program(view, gain=False), rel=1e-3)


def test_feedthrough_makes_it_passive_with_both_indices() -> None:
    system = random_system(3, inputs=2, intervals="random")
    certificate = certify_passivity(system)
    shifted = replace(system, D22=system.D22 + (1 - certificate.input_index) * torch.eye(2).double())
    passive = certify_passivity(shifted, output_index=0.001)
    assert passive.passive and passive.input_index < 1.01


def test_a_linear_system_has_its_exact_gain_and_index() -> None:
    none = torch.zeros(1, 0).double()
    one = torch.ones(1, 1).double()
    system = LureSystem(A=-2 * one, B=none, C=none.mT, D=torch.zeros(0, 0), B2=one, C2=3 * one, D22=0.5 * one)
    assert abs(certify_gain(system).gain - 2.0) < 1e-5  # 3/(jω + 2) + 0.5 is largest at ω = 0
    assert abs(certify_passivity(system).input_index - 0.5) < 1e-5  # and its real part smallest at ω = ∞
    assert certify_gain(system, rate=1.0).gain == pytest.approx(3.5, rel=1e-4)  # at jω − 1


@pytest.mark.parametrize("seed", range(3))
def test_without_a_state_it_is_the_lipschitz_constant_of_a_network(seed: int) -> None:
    g = seeded(seed)
    W, U, C = 0.3 * normal(5, 5, generator=g), normal(5, 2, generator=g), normal(3, 5, generator=g)
    D = 0.2 * normal(3, 2, generator=g)
    nothing = torch.zeros(0, 5).double()
    system = LureSystem(A=torch.zeros(0, 0), B=nothing, C=nothing.mT, D=W, D12=U, D21=C, D22=D)
    exact = tuple(torch.zeros_like(matrix) for matrix in (U, C, D))
    network = LipschitzSystem(W=W, U=U, C=C, D=D, slopes=(0.0, 1.0), errors=exact)  # type: ignore[arg-type]
    assert certify_gain(system).gain == pytest.approx(InteriorPoint().certify(network).bound, rel=1e-3)
    assert certify_gain(system).metric is None


def test_the_units_do_not_matter() -> None:
    system = random_system(3, inputs=2, intervals="random")
    states, neurons = torch.tensor([1e-6, 1.0, 1e6]).double(), torch.tensor([1e5, 1e-5, 1.0, 10.0]).double()
    assert certify_gain(system.rescaled(states, neurons)).gain == pytest.approx(certify_gain(system).gain, rel=1e-5)


def test_what_is_spoilt_is_refused() -> None:
    system = random_system(3, inputs=2, intervals="random")
    gain, index = certify_gain(system), certify_passivity(system)
    assert isinstance(gain.metric, FullP) and isinstance(index.metric, FullP)
    forged: list[GainCertificate | PassivityCertificate] = [
        replace(gain, gain=0.999 * gain.gain),
        replace(gain, metric=FullP(1.05 * gain.metric.matrix)),
        replace(gain, metric=None),
        replace(gain, rate=gain.rate + 0.01),
        replace(gain, multiplier=1.1 * gain.multiplier),
        replace(gain, slopes=(system.low, system.high + 0.01)),
        replace(index, input_index=index.input_index + 0.01),
        replace(index, output_index=0.1),
    ]
    for certificate in forged:
        with pytest.raises(CertificateError):
            check(certificate, system)
    for certificate in (gain, index):
        for changed in (
            replace(system, B2=1.05 * system.B2), replace(system, D22=system.D22 - 0.05 * torch.eye(2).double()),
            replace(system, D21=1.05 * system.D21),
        ):  # fmt: skip
            with pytest.raises(CertificateError):
                check(certificate, changed)
    made = certify_gain(system.with_slopes((0.95 * system.low, 0.95 * system.high)))
    with pytest.raises(CertificateError):
        check(made, system)
    with pytest.raises(CertificateError, match="Lur'e"):
        check(gain, FiringRateSystem(W=torch.zeros(3, 3)))


def test_what_cannot_be_asked_is_refused_by_name() -> None:
    system = random_system(3, inputs=2, intervals="random")
    with pytest.raises(PreconditionError, match="rate"):
        certify_gain(system, rate=5.0)
    with pytest.raises(InputError, match="input"):
        certify_gain(random_system(3))
    with pytest.raises(InputError, match="outputs"):
        certify_passivity(replace(system, C2=None, D21=None, D22=None))
    with pytest.raises(InputError, match="system"):
        certify_gain(FiringRateSystem(W=torch.zeros(3, 3)))
    with pytest.raises(InputError, match="output_index"):
        certify_passivity(system, output_index=-1.0)
